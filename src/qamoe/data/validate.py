"""A look at a corpus before anything is made of it: what is there, and all that is wrong with it.

An error is what a stage would refuse; a warning costs one modality of one clip, or is worth a second look. Media are
opened and their packets counted, not decoded: damage within a picture shows in extraction alone. Nothing is written.
"""

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qamoe.config.params import Extract
from qamoe.config.task import Task, is_classification
from qamoe.data.arrow_store import SPLITS
from qamoe.data.clip import Corpus, LabelledClip, check_text, noted
from qamoe.data.manifest import COLUMNS
from qamoe.data.readers import READERS, iemocap, meld, mintrec
from qamoe.errors import UserError
from qamoe.extractors.registry import extractor
from qamoe.media.decode import ClipError, Contents, contents

MEDIA = {
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv", ".mpg", ".mpeg", ".ts", ".wmv", ".3gp"),
    *(".wav", ".mp3", ".m4a", ".aac", ".flac", ".ogg", ".opus", ".aiff", ".aif", ".au", ".amr"),
}
_MOST_CLASSES = 50  # words beyond this many are no classes
_BEHIND_S = 0.5  # a span may end this much behind its file, as rounded times do
Watch = Callable[[list[Path]], Iterable[Path]]


@dataclass
class Findings:
    """What was seen, in lines to print, and what is wrong, in sentences."""

    told: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> dict[str, list[str]]:
        """The sentences by severity, the lesser first, so that what matters stands last on a terminal."""
        return {"warning": self.warnings, "error": self.errors}

    @property
    def exit_code(self) -> int:
        """0: nothing is wrong; 1: warnings alone; 2: errors."""
        return 2 if self.errors else 1 if self.warnings else 0


def check(path: Path, extract: Extract, kind: str | None = None, watch: Watch = iter) -> Findings:
    """Look at the corpus at `path`; `extract` says which labels are allowed, `watch` may show the progress over media.

    Raises UserError where there is nothing at that path, or no such kind.
    """
    if not path.exists():
        raise UserError(f"There is nothing at {path}.")
    if kind is not None and kind not in READERS:
        raise UserError(f"--kind {kind!r} is unknown; allowed are {', '.join(READERS)}.")
    found = Findings()
    kind = kind or kind_of(path)
    if kind is None:
        _without_manifest(path, found, watch)
        return found
    try:
        task = _task(path, kind, extract.task, found)
        corpus = READERS[kind](path, task, found.errors)
    except UserError as refusal:
        found.errors.append(str(refusal))
        return found
    looked = _look(corpus.clips, watch)
    _tell(corpus, kind, path, task, looked, found)
    _text(corpus, extract, path, found)
    _splits(corpus, task, found)
    _frames(corpus, found)
    bad = _media(corpus.clips, looked, found)
    if bad > extract.max_problem_share * len(corpus.clips):
        found.errors.append(
            f"{bad} of {len(corpus.clips)} clips have problems, above extract.max_problem_share "
            f"({extract.max_problem_share:g})."
        )
    return found


def kind_of(path: Path) -> str | None:
    """The kind of corpus that lies at a path, by the files that it must have; None for a folder without any."""
    if path.is_file():
        return "mmsa"
    if (path / "corpus.json").is_file():
        return "sample"
    if (path / "manifest.csv").is_file():
        return "clips"
    if (path / "train.tsv").is_file():
        return "mintrec"
    if any((place / "train_sent_emo.csv").is_file() for place in (path, path / "data" / "MELD")):
        return "meld"
    if any(path.glob("IEMOCAP_features_raw_?way.pkl")):
        return "iemocap"
    return None


def _task(path: Path, kind: str, asked: Task, found: Findings) -> Task:
    """The corpus's own task where it has one; of one's own clips, the one asked for or what the labels look like."""
    classes: tuple[str, ...] = ()
    if kind == "mintrec" and set(asked.classes) != set(mintrec.CLASSES):
        classes = mintrec.CLASSES
    elif kind == "meld" and set(asked.classes) not in (set(meld.EMOTIONS), set(meld.SENTIMENTS)):
        classes = meld.EMOTIONS
    elif kind == "iemocap" and len(asked.classes) not in iemocap.CLASSES:
        ways = 4 if (path / "IEMOCAP_features_raw_4way.pkl").is_file() else 6
        classes = iemocap.CLASSES[ways]
    elif kind in ("clips", "sample") and not is_classification(asked):
        classes = _words(path / "manifest.csv")
    if not classes:
        return asked
    names = ", ".join(classes)
    found.told.append(
        f"task         labels are classes; write extract.task: {{kind: classification, classes: [{names}]}}"
    )
    return Task(kind="classification", classes=classes)


def _words(manifest: Path) -> tuple[str, ...]:
    """The labels of a manifest where most are no numbers and there are not too many, else nothing."""
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as lines:
            labels = [(row.get("label") or "").strip() for row in csv.DictReader(lines)]
    except (OSError, ValueError, csv.Error):
        return ()  # the reader says what is wrong
    words = [label for label in labels if label and not _is_number(label)]
    classes = tuple(sorted(set(words)))
    return classes if len(words) * 2 > len(labels) and 2 <= len(classes) <= _MOST_CLASSES else ()


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True


def _without_manifest(path: Path, found: Findings, watch: Watch) -> None:
    """List the media of a folder and say how to make a corpus of them."""
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in MEDIA and file.is_file())
    for file in watch(files):
        name = file.relative_to(path).as_posix()
        try:
            inside = contents(file)
        except ClipError as problem:
            found.warnings.append(f"{name}: {problem}")
            continue
        streams = " and ".join(what for what, there in (("sound", inside.audio), ("film", inside.vision)) if there)
        found.told.append(f"{inside.seconds:8.1f} s  {streams:14}  {name}")
    found.told.append(f"{len(files)} media files")
    if files:
        found.told += ["", "Write a manifest.csv with one row a clip; this is its header:", ",".join(COLUMNS)]
    found.errors.append(f"There is no manifest.csv in {path}, and no other corpus that is known.")


def _look(clips: list[LabelledClip], watch: Watch) -> dict[Path, Contents | str]:
    """What each media file holds, or the reason why it cannot be used."""
    looked: dict[Path, Contents | str] = {}
    for media in watch(sorted({clip.media.path for clip in clips if clip.media is not None})):
        try:
            looked[media] = contents(media)
        except ClipError as problem:
            looked[media] = str(problem)
    return looked


def _seconds(clip: LabelledClip, looked: dict[Path, Contents | str]) -> float | None:
    inside = looked.get(clip.media.path) if clip.media is not None else None
    if clip.media is None or not isinstance(inside, Contents):
        return None
    end_s = inside.seconds if clip.media.end_s is None else min(clip.media.end_s, inside.seconds)
    return max(end_s - clip.media.start_s, 0.0)


def _present(clip: LabelledClip, modality: str, looked: dict[Path, Contents | str]) -> bool:
    if modality == "text":
        return bool(clip.text) or clip.tokens is not None or "text" in clip.frames
    if modality in clip.frames:
        return len(clip.frames[modality]) > 0
    inside = looked.get(clip.media.path) if clip.media is not None else None
    return isinstance(inside, Contents) and getattr(inside, modality)


def _tell(
    corpus: Corpus, kind: str, path: Path, task: Task, looked: dict[Path, Contents | str], found: Findings
) -> None:
    clips = corpus.clips
    found.told.append(f"corpus       {path}, kind {kind}")
    found.told += [
        f"{key:12} {value}" for key, value in corpus.about.items() if key not in ("corpus", "clips", "task") and value
    ]
    found.told.append(f"clips        {len(clips)}, of {len({clip.source for clip in clips})} sources")
    for modality in ("text", "audio", "vision"):
        count = sum(_present(clip, modality, looked) for clip in clips)
        given = {clip.frames[modality].shape for clip in clips if modality in clip.frames}
        ready = ""
        if given:
            lengths = [shape[0] for shape in given]
            ready = f", ready features: {next(iter(given))[1]} columns, {min(lengths)} to {max(lengths)} frames"
        absent = "" if modality in corpus.modalities else " (the corpus lacks it)"
        found.told.append(f"{modality:12} {count} clips{ready}{absent}")
    seconds = [s for clip in clips if (s := _seconds(clip, looked)) is not None]
    if seconds:
        found.told.append(
            f"duration     {min(seconds):.1f} to {max(seconds):.1f} s, median {np.median(seconds):.1f} s, "
            f"{sum(seconds) / 60:.1f} min in all"
        )
    found.told += _label_lines(clips, task)


def _label_lines(clips: list[LabelledClip], task: Task) -> Iterator[str]:
    of_split = {split: [clip for clip in clips if clip.split == split] for split in SPLITS}
    yield ""
    yield "split    clips  sources" + ("" if is_classification(task) else "    mean   sd  min to max")
    for split, its in of_split.items():
        line = f"{split:6} {len(its):7} {len({clip.source for clip in its}):8}"
        labels = np.array([clip.label for clip in its])
        if not is_classification(task) and its:
            line += f"   {labels.mean():+.2f} {labels.std():.2f}  {labels.min():g} to {labels.max():g}"
        yield line
    yield ""
    if not is_classification(task):
        edges = np.linspace(*task.range, 8)
        counts, _ = np.histogram([clip.label for clip in clips], edges)
        yield "label" + " " * 11 + "clips"
        for low, high, n in zip(edges[:-1], edges[1:], counts, strict=True):
            yield f"{low:+.2f} to {high:+.2f} {n:6}"
    else:
        yield f"{'class':16}" + "".join(f"{split:>7}" for split in SPLITS)
        for i, name in enumerate(task.classes):
            yield f"{name:16}" + "".join(f"{sum(c.label == i for c in its):7}" for its in of_split.values())
    yield ""


def _text(corpus: Corpus, extract: Extract, path: Path, found: Findings) -> None:
    with noted(found.errors):  # also where its folder holds no tokenizer
        check_text(corpus, extractor(extract.text), str(path))
    silent = [clip for clip in corpus.clips if not _present(clip, "text", {})]
    if corpus.clips and len(silent) == len(corpus.clips):
        found.warnings.append(f"{path}: no clip has a text.")
    else:
        found.warnings += [f"{clip.where}: clip {clip.clip_id} has no text." for clip in silent]


def _splits(corpus: Corpus, task: Task, found: Findings) -> None:
    for split, stage in (("train", "preprocess"), ("valid", "train"), ("test", "evaluate")):
        if corpus.clips and not any(clip.split == split for clip in corpus.clips):
            found.errors.append(f"No clip is in split {split}; the stage {stage} needs some.")
    labels = {clip.label for clip in corpus.clips if clip.split == "train"}
    if is_classification(task) and labels:
        absent = [name for i, name in enumerate(task.classes) if i not in labels]
        if absent:
            found.warnings.append(f"No training clip is of class {', '.join(absent)}.")
    elif len(labels) == 1:
        found.warnings.append(f"All training clips have the label {labels.pop():g}.")


def _frames(corpus: Corpus, found: Findings) -> None:
    """Ready features: values that are no numbers, which preprocess sets to the training mean."""
    for clip in corpus.clips:
        for modality, frames in clip.frames.items():
            wrong = int((~np.isfinite(frames)).sum())
            if wrong:
                found.warnings.append(f"{clip.where}: {modality} holds {wrong} values that are NaN or infinite.")


def _media(clips: list[LabelledClip], looked: dict[Path, Contents | str], found: Findings) -> int:
    """Warn of media and spans that cannot be used; returns how many clips that concerns."""
    bad = 0
    for clip in clips:
        media = clip.media
        inside = looked.get(media.path) if media is not None else None
        if media is None or inside is None:
            continue
        if isinstance(inside, str):
            found.warnings.append(f"{clip.where}: {media.path.name}: {inside}")
        elif media.start_s >= inside.seconds:
            found.warnings.append(
                f"{clip.where}: start_s {media.start_s:g} lies behind the end of {media.path.name} "
                f"({inside.seconds:.2f} s)."
            )
        elif media.end_s is not None and media.end_s > inside.seconds + _BEHIND_S:
            found.warnings.append(
                f"{clip.where}: end_s {media.end_s:g} lies behind the end of {media.path.name} "
                f"({inside.seconds:.2f} s)."
            )
            continue  # the clip ends earlier, and is used
        else:
            continue
        bad += 1
    return bad
