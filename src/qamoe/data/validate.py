"""Check a corpus before the pipeline uses it: summarise its contents and collect everything that is wrong.

An error is a fault that a stage would reject. A warning costs one modality of one clip, or deserves a closer look.
Media are opened and their packets counted, but not decoded: only extraction finds damage within a video frame. Nothing
is written.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from qamoe.config.params import Extract
from qamoe.config.task import Task, has_classes, is_multilabel, label_names
from qamoe.data.arrow_store import SPLITS
from qamoe.data.clip import Corpus, LabelledClip, MediaSpan, check_text, collect_faults, open_table, text_reading
from qamoe.data.file_kinds import pickle_in
from qamoe.data.manifest import COLUMNS
from qamoe.data.readers import READERS, iemocap, meld, mintrec
from qamoe.data.subtitles import TRANSCRIPTS
from qamoe.errors import UserError
from qamoe.extractors.registry import extractor
from qamoe.extractors.tokens import Reading
from qamoe.media.decode import SUFFIXES, ClipError, Contents, contents, reading
from qamoe.terminal import printable

_BESIDE = (*TRANSCRIPTS, ".csv")  # endings of files that may belong to a media file
_MOST_NAMED = 5
_MOST_CLASSES = 50  # more distinct words than this are not classes
_OVERRUN_S = 0.5  # a span may end this much after its file, because times are rounded
Inspected = dict[tuple[Path, str], "Contents | str"]  # by file and audio track
Watch = Callable[[list[Path]], Iterable[Path]]


@dataclass
class Findings:
    """A summary of the corpus, as lines to print, and its faults, one sentence each."""

    summary: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> dict[str, list[str]]:
        """The faults by severity; errors come last, where a terminal shows them."""
        return {"warning": self.warnings, "error": self.errors}

    @property
    def exit_code(self) -> int:
        """0: no faults; 1: only warnings; 2: errors."""
        return 2 if self.errors else 1 if self.warnings else 0


def check(
    path: Path, extract: Extract, kind: str | None = None, watch: Watch = iter, most_tokens: int | None = None
) -> Findings:
    """Check the corpus at `path`; `extract` gives the allowed labels, `watch` may show the progress over media.

    `most_tokens` is the limit of preprocess, if it is below that of `extract`. Raises UserError if the path does not
    exist or the kind is unknown.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist.")
    if kind is not None and kind not in READERS:
        raise UserError(f"--kind is {kind!r}, must be one of {', '.join(READERS)}.")
    findings = Findings()
    kind = kind or kind_of(path)
    if kind is None:
        _without_manifest(path, findings, watch)
        return findings
    try:
        task = _task(path, kind, extract.task, findings)
        corpus = READERS[kind](path, task, findings.errors)
    except UserError as error:
        findings.errors.append(str(error))
        return findings
    inspected = _inspect_media(corpus.clips, watch)
    readings = _read_text(corpus, extract, path, most_tokens, findings)
    _summarise(_without_unread(corpus, readings), kind, path, task, inspected, findings)
    _check_text(corpus, extract, path, inspected, findings)
    _check_readings(corpus, readings, path, findings)
    _check_splits(corpus, task, findings)
    _check_frames(corpus, findings)
    bad = _check_media(corpus.clips, inspected, findings)
    if bad > extract.max_problem_share * len(corpus.clips):
        findings.errors.append(
            f"{bad} of {len(corpus.clips)} clips have problems, above extract.max_problem_share "
            f"({extract.max_problem_share:g})."
        )
    return findings


def kind_of(path: Path) -> str | None:
    """Return the kind of the corpus at a path, by the files that it must have; None if no kind matches."""
    if path.is_file():
        return "mmsa"
    if (path / "corpus.json").is_file():
        return "sample"
    if (path / "manifest.csv").is_file():
        return "clips"
    if (path / "train.tsv").is_file():
        return "mintrec"
    if any((folder / "train_sent_emo.csv").is_file() for folder in (path, path / "data" / "MELD")):
        return "meld"
    if any(path.glob("IEMOCAP_features_raw_?way.pkl")):
        return "iemocap"
    return None


def _task(path: Path, kind: str, configured: Task, findings: Findings) -> Task:
    """Return the configured task, or the corpus's own one if its labels do not fit the configured task."""
    classes: tuple[str, ...] = ()
    if kind == "mintrec" and set(configured.classes) != set(mintrec.CLASSES):
        classes = mintrec.CLASSES
    elif kind == "meld" and set(configured.classes) not in (set(meld.EMOTIONS), set(meld.SENTIMENTS)):
        classes = meld.EMOTIONS
    elif kind == "iemocap" and len(configured.classes) not in iemocap.CLASSES:
        ways = 4 if (path / "IEMOCAP_features_raw_4way.pkl").is_file() else 6
        classes = iemocap.CLASSES[ways]
    elif kind in ("clips", "sample") and not has_classes(configured):
        classes = _label_classes(path / "manifest.csv")
    if not classes:
        return configured
    names = ", ".join(classes)
    findings.summary.append(
        f"task         labels are classes; write extract.task: {{kind: classification, classes: [{names}]}}"
    )
    return Task(kind="classification", classes=classes)


def _label_classes(manifest: Path) -> tuple[str, ...]:
    """Return the distinct labels of a manifest if most are words and not too many differ, else nothing."""
    try:
        with open_table(manifest) as rows:
            labels = [(row.get("label") or "").strip() for row in rows]
    except UserError:
        return ()  # the reader reports the error
    words = [label for label in labels if label and not _is_number(label)]
    classes = tuple(sorted(set(words)))
    return classes if len(words) * 2 > len(labels) and 2 <= len(classes) <= _MOST_CLASSES else ()


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True


def media_files(root: Path, faults: list[str], left_out: list[str]) -> Iterator[Path]:
    """Yield the media files below a folder; what cannot be listed, or has a name that no table can hold, is a fault.

    `left_out` gets a sentence on the other files, without hidden ones and those that belong to a media file by their
    names, such as transcripts.
    """

    def not_readable(error: OSError) -> None:
        faults.append(f"{error.filename} is not readable: {error.strerror}.")

    others: list[str] = []
    for folder, folders, names in os.walk(root, onerror=not_readable):
        folders[:] = [name for name in folders if not _hidden(name)]
        stems = tuple(f"{Path(name).stem}." for name in names if Path(name).suffix.lower() in SUFFIXES)
        for file in (Path(folder, name) for name in sorted(names) if not _hidden(name)):
            try:
                if file.suffix.lower() not in SUFFIXES or not file.is_file():
                    beside = file.suffix.lower() in _BESIDE and file.name.startswith(stems)
                    others += [] if beside else [printable(file.relative_to(root).as_posix())]
                    continue
                str(file.relative_to(root)).encode()
                yield file
            except OSError as error:
                not_readable(error)
            except UnicodeEncodeError:
                faults.append(f"{file}: the name is not UTF-8; rename the file.")
    if others:
        more = f" and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
        left_out.append(
            f"{root}: left out {len(others)} file{'s' if len(others) > 1 else ''} whose names do not end like those of "
            f"media: {', '.join(others[:_MOST_NAMED])}{more}."
        )


def _hidden(name: str) -> bool:
    """Whether a name is of a hidden file or folder, or of those that macOS adds to archives and foreign disks."""
    return name.startswith(".") or name == "__MACOSX"


def _without_manifest(path: Path, findings: Findings, watch: Watch) -> None:
    """List the media of a folder and explain how to make a corpus of them."""
    left_out: list[str] = []
    files = sorted(media_files(path, findings.warnings, left_out))
    for file in watch(files):
        name = file.relative_to(path).as_posix()
        try:
            media = contents(file)
        except ClipError as problem:
            findings.warnings.append(f"{name}: {problem}")
            continue
        streams = " and ".join(kind for kind, present in (("audio", media.audio), ("video", media.vision)) if present)
        findings.summary.append(f"{media.seconds:8.1f} s  {streams:15}  {name}")
    findings.summary += [f"{len(files)} media files", *left_out]
    if files:
        findings.summary += ["", "Write a manifest.csv with one row per clip and this header:", ",".join(COLUMNS)]
    inside = pickle_in(path)
    table = next((file.name for file in sorted(path.glob("*.csv"))), None)
    way_out = ""
    if inside is not None:
        way_out = f" It holds the pickle {inside.name}; check it by 'qamoe check {inside}'."
    elif table is not None:
        way_out = f" It holds the table {table}; if it lists the clips, name it manifest.csv."
    findings.errors.append(f"{path} has no manifest.csv and is not a known kind of corpus.{way_out}")


def _inspect_media(clips: list[LabelledClip], watch: Watch) -> Inspected:
    """Return the contents of each media file and named track, or the reason why it cannot be used."""
    inspected: Inspected = {}
    tracks: dict[Path, set[str]] = {}
    for clip in clips:
        if clip.media is not None:
            tracks.setdefault(clip.media.path, set()).add(clip.media.track)
    for media in watch(sorted(tracks)):
        for track in tracks[media]:
            with reading(track):
                try:
                    inspected[media, track] = contents(media)
                except ClipError as problem:
                    inspected[media, track] = str(problem)
    return inspected


def _seconds(clip: LabelledClip, inspected: Inspected) -> float | None:
    media_contents = inspected.get((clip.media.path, clip.media.track)) if clip.media is not None else None
    if clip.media is None or not isinstance(media_contents, Contents):
        return None
    end_s = media_contents.seconds if clip.media.end_s is None else min(clip.media.end_s, media_contents.seconds)
    return max(end_s - clip.media.start_s, 0.0)


def _present(clip: LabelledClip, modality: str, inspected: Inspected) -> bool:
    if modality == "text":
        return bool(clip.text) or clip.tokens is not None or "text" in clip.frames
    if modality in clip.frames:
        return len(clip.frames[modality]) > 0
    media_contents = inspected.get((clip.media.path, clip.media.track)) if clip.media is not None else None
    return isinstance(media_contents, Contents) and getattr(media_contents, modality)


def _summarise(corpus: Corpus, kind: str, path: Path, task: Task, inspected: Inspected, findings: Findings) -> None:
    clips = corpus.clips
    findings.summary.append(f"corpus       {path}, kind {kind}")
    findings.summary += [
        f"{key:12} {value}" for key, value in corpus.about.items() if key not in ("corpus", "clips", "task") and value
    ]
    findings.summary.append(f"clips        {len(clips)}, of {len({clip.source for clip in clips})} sources")
    for modality in ("text", "audio", "vision"):
        count = sum(_present(clip, modality, inspected) for clip in clips)
        shapes = {clip.frames[modality].shape for clip in clips if modality in clip.frames}
        ready = ""
        if shapes:
            lengths = [shape[0] for shape in shapes]
            ready = f", ready features: {next(iter(shapes))[1]} columns, {min(lengths)} to {max(lengths)} frames"
        absent = "" if modality in corpus.modalities else " (the corpus lacks it)"
        findings.summary.append(f"{modality:12} {count} clips{ready}{absent}")
    seconds = [s for clip in clips if (s := _seconds(clip, inspected)) is not None]
    if seconds:
        findings.summary.append(
            f"duration     {min(seconds):.1f} to {max(seconds):.1f} s, median {np.median(seconds):.1f} s, "
            f"{sum(seconds) / 60:.1f} min in all"
        )
    findings.summary += _label_lines(clips, task)


def _label_lines(clips: list[LabelledClip], task: Task) -> Iterator[str]:
    by_split = {split: [clip for clip in clips if clip.split == split] for split in SPLITS}
    yield ""
    yield "split    clips  sources" + ("" if has_classes(task) else "    mean   sd  min to max")
    for split, members in by_split.items():
        line = f"{split:6} {len(members):7} {len({clip.source for clip in members}):8}"
        labels = np.array([clip.label for clip in members])
        if not has_classes(task) and members:
            line += f"   {labels.mean():+.2f} {labels.std():.2f}  {labels.min():g} to {labels.max():g}"
        yield line
    yield ""
    if not has_classes(task):
        edges = np.linspace(*task.range, 8)
        counts, _ = np.histogram([clip.label for clip in clips], edges)
        yield "label" + " " * 11 + "clips"
        for low, high, n in zip(edges[:-1], edges[1:], counts, strict=True):
            yield f"{low:+.2f} to {high:+.2f} {n:6}"
    else:
        yield f"{'class':16}" + "".join(f"{split:>7}" for split in SPLITS)
        for name in task.classes:
            with_class = [sum(name in _names(clip, task) for clip in members) for members in by_split.values()]
            yield f"{name:16}" + "".join(f"{count:7}" for count in with_class)
    yield ""


def _names(clip: LabelledClip, task: Task) -> list[str]:
    """Return the classes that a clip has."""
    return label_names(clip.label, task.classes) if is_multilabel(task) else [task.classes[int(clip.label)]]


def _read_text(
    corpus: Corpus, extract: Extract, path: Path, most_tokens: int | None, findings: Findings
) -> dict[str, Reading]:
    """Return what the text extractor reads of each clip that has words, by clip id."""
    with collect_faults(findings.errors):  # includes errors of the extractor, such as a folder without a tokenizer
        tokens = extractor(extract.text)
        check_text(corpus, tokens, str(path))
        read = ((clip.clip_id, text_reading(clip, corpus, tokens, most_tokens)) for clip in corpus.clips)
        return {clip_id: reading for clip_id, reading in read if reading is not None}
    return {}


def _without_unread(corpus: Corpus, readings: dict[str, Reading]) -> Corpus:
    """Return the corpus without text that counts as missing."""
    unread = {clip_id for clip_id, reading in readings.items() if not len(reading.ids)}
    clips = [
        replace(clip, span=replace(clip.span, text="")) if clip.clip_id in unread else clip for clip in corpus.clips
    ]
    return replace(corpus, clips=clips)


def _check_readings(corpus: Corpus, readings: dict[str, Reading], path: Path, findings: Findings) -> None:
    """Warn of text that the encoder does not read, by script, and of text beyond its limit, with the longest one."""
    read = [(clip, readings[clip.clip_id]) for clip in corpus.clips if clip.clip_id in readings]
    unread = [(clip, reading) for clip, reading in read if not len(reading.ids)]
    if unread:
        clip, first = unread[0]
        scripts = Counter(reading.script or "no known letters" for _, reading in unread)
        findings.warnings.append(
            f"{path}: the text of {len(unread)} of {len(corpus.clips)} clips ({len(unread) / len(corpus.clips):.0%}) "
            f"counts as missing ({', '.join(f'{script} {n}' for script, n in scripts.most_common())}); the first is "
            f"clip {clip.clip_id}: {first.reason} ({clip.where})."
        )
    cut = [(clip, reading) for clip, reading in read if reading.reason and len(reading.ids)]
    if cut:
        clip, longest = max(cut, key=lambda pair: pair[1].words_in_text)
        findings.warnings.append(
            f"{path}: {len(cut)} of {len(corpus.clips)} clips have more words than extract.text.max_tokens and "
            f"preprocess.max_frames.text allow; the longest is clip {clip.clip_id}: {longest.reason} ({clip.where})."
        )


def _check_text(corpus: Corpus, extract: Extract, path: Path, inspected: Inspected, findings: Findings) -> None:
    without_text = [clip for clip in corpus.clips if not _present(clip, "text", inspected)]
    recogniser = extract.text.recogniser
    spoken = {clip.clip_id for clip in without_text if clip.media is not None and _present(clip, "audio", inspected)}
    if recogniser is not None and spoken:
        findings.summary.append(f"text         {len(spoken)} clips without one: to be recognised by {recogniser.model}")
        without_text = [clip for clip in without_text if clip.clip_id not in spoken]
        with collect_faults(findings.errors):  # its package or weights may be missing
            extractor(recogniser)
    if corpus.clips and len(without_text) == len(corpus.clips):
        findings.warnings.append(f"{path}: no clip has a text.")
    else:
        findings.warnings += [f"{clip.where}: clip {clip.clip_id} has no text." for clip in without_text]


def _check_splits(corpus: Corpus, task: Task, findings: Findings) -> None:
    for split, stage in (("train", "preprocess"), ("valid", "train"), ("test", "evaluate")):
        if corpus.clips and not any(clip.split == split for clip in corpus.clips):
            findings.errors.append(f"The {split} split has no clips; the stage {stage} needs some.")
    train = [clip for clip in corpus.clips if clip.split == "train"]
    labels = {clip.label for clip in train}
    if has_classes(task) and labels:
        seen = {name for clip in train for name in _names(clip, task)}
        absent = [name for name in task.classes if name not in seen]
        if absent:
            findings.warnings.append(f"The train split has no clips of class {', '.join(absent)}.")
    elif len(labels) == 1:
        findings.warnings.append(f"All clips of the train split have the label {labels.pop():g}.")


def _check_frames(corpus: Corpus, findings: Findings) -> None:
    """Warn of ready features that are NaN or infinite; preprocess sets them to the training mean."""
    for clip in corpus.clips:
        for modality, frames in clip.frames.items():
            wrong = int((~np.isfinite(frames)).sum())
            if wrong:
                findings.warnings.append(f"{clip.where}: {modality} holds {wrong} values that are NaN or infinite.")


def _check_media(clips: list[LabelledClip], inspected: Inspected, findings: Findings) -> int:
    """Warn of media and spans that cannot be used; return the number of unusable clips."""
    bad = 0
    for clip in clips:
        media = clip.media
        media_contents = inspected.get((media.path, media.track)) if media is not None else None
        if media is None or media_contents is None:
            continue
        if isinstance(media_contents, str):
            findings.warnings.append(f"{clip.where}: {media.path.name}: {media_contents}")
        elif media.start_s >= media_contents.seconds:
            findings.warnings.append(
                f"{clip.where}: start_s {media.start_s:g} is after the end of {media.path.name} "
                f"({media_contents.seconds:.2f} s)."
            )
        elif media.end_s is not None and media.end_s > media_contents.seconds + _OVERRUN_S:
            findings.warnings.append(
                f"{clip.where}: end_s {media.end_s:g} is after the end of {media.path.name} "
                f"({media_contents.seconds:.2f} s)."
            )
            continue  # the clip is shorter than stated, but usable
        elif not _outside_a_stream(clip, media, media_contents, findings):
            continue
        bad += 1
    return bad


def _outside_a_stream(clip: LabelledClip, media: MediaSpan, found: Contents, findings: Findings) -> bool:
    """Warn of a span that the audio or the video of its file does not cover; return whether it is wholly outside."""
    outside = False
    given = media.start_s > 0 or media.end_s is not None
    for modality, (begin_s, end_s) in found.spans.items() if given else ():
        last_s = found.seconds if media.end_s is None else media.end_s
        missed = media.start_s >= end_s or last_s <= begin_s
        outside |= missed
        if missed or (media.end_s is not None and last_s > end_s + _OVERRUN_S):
            findings.warnings.append(
                f"{clip.where}: the span from {media.start_s:g} s to {last_s:g} s is {'' if missed else 'partly '}"
                f"outside the {modality} of {media.path.name} ({begin_s:.2f} s to {end_s:.2f} s)."
            )
    return outside
