"""Score the raw clips of a folder with the champion: scores.parquet and drift.csv.

scores.parquet has one row per clip that the source holds now: clip_id, path, text, start_s, end_s, confidence (of each
word of a text that was recognised in the clip's voice), the outputs of qamoe.inference.predict, the input statistics of
qamoe.registry.drift, problem, key, model. A clip is scored again only if its media, span, text or model have changed.
Its features are kept in parts/ for the next champion. drift.csv compares these clips with the training and validation
clips of the champion.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qamoe.config import params as parameters
from qamoe.config import settings
from qamoe.files import atomic_write
from qamoe.pipeline import runner
from qamoe.terminal import printable

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from qamoe.config.extractor_settings import ExtractorSettings, TranscribeSettings
    from qamoe.data.clip import MediaSpan
    from qamoe.models.checkpoint_config import CheckpointConfig
    from qamoe.serving.model_loader import Served

SCORES = "scores.parquet"
DRIFT = "drift.csv"
_CLIP_COLUMNS = ("clip_id", "path", "text", "start_s", "end_s", "confidence")
_LAST_COLUMNS = ("problem", "key", "model")
_SECONDS_PER_CLIP = 60.0  # limit for feature extraction


def run(source: Path, out: Path, model: str, transcribe: bool = True) -> None:
    """Score the new clips and print their number. Raises UserError if the source or the model cannot be used.

    `transcribe`: recognise the words of clips without a transcript.
    """
    import pandas as pd

    from qamoe.data import inbox
    from qamoe.inference import predict
    from qamoe.registry import drift
    from qamoe.serving.model_loader import open_model

    faults: list[str] = []
    left_out: list[str] = []
    clips, without_words = _with_transcripts(inbox.read(source, faults, left_out))
    for sentence in [*left_out, *(f"not scored: {fault}" for fault in faults)]:
        runner.log.warning("%s", printable(sentence))
    served = open_model(model, None)
    config = served.trained.config
    outputs, inputs = predict.output_columns(config["task"]), drift.columns(config["modalities"])
    columns = [*_CLIP_COLUMNS, *outputs, *inputs, *_LAST_COLUMNS]
    recogniser = _recogniser(config, clips) if transcribe else None
    keys = [_key(clip, served.digest, recogniser) for clip in clips]
    before = _read(out / SCORES, columns)
    known = before[before["key"].isin(keys)].drop_duplicates("key").set_index("key")
    waiting = [clip for clip, key in zip(clips, keys, strict=True) if key not in known.index]
    extractors = served.extractors if recogniser is None else served.extractors | {"text": recogniser}
    frames, problems = _frames(waiting, extractors, out / "parts")
    scored, unread = _scored(served, waiting, frames, outputs)
    rows_of_table = []
    for clip, key in zip(clips, keys, strict=True):
        cells: dict[Any, Any]
        if key in known.index:
            cells = known.loc[key, ["text", "confidence", *outputs, *inputs, "problem"]].to_dict()
        else:
            cells = {**_heard(frames.get(clip.clip_id, {})), **scored.loc[clip.clip_id]}
            reasons = (named.get(clip.clip_id) for named in (without_words, unread, problems))
            cells["problem"] = "; ".join(filter(None, reasons))
        rows_of_table.append({**_clip_columns(clip, source), **cells, "key": key, "model": served.name})
    table = pd.DataFrame(rows_of_table, columns=columns)
    _write(table, out / SCORES)
    _remove_parts(clips, extractors, out / "parts")
    invalid = f", {len(faults)} rows that cannot be used" if faults else ""
    new = f"{len(waiting)} new clips of {printable(str(source))}"
    print(f"scored {new}, {len(clips) - len(waiting)} kept{invalid}", flush=True)
    (out / DRIFT).unlink(missing_ok=True)
    reference = served.reference()
    if reference is None:
        print("drift: this model has no reference to compare with", flush=True)
        return
    compared = drift.drift(reference, drift.with_reliability(table[inputs].astype(float), table))
    with atomic_write(out / DRIFT) as temporary:
        compared.features.to_csv(temporary, index=False)
    print(compared.sentence, flush=True)


def _scored(
    served: "Served", clips: list["MediaSpan"], frames: dict[str, dict[str, "np.ndarray"]], outputs: list[str]
) -> tuple["pd.DataFrame", dict[str, str]]:
    """Return outputs and input statistics by clip id, and why not all of a clip's text is read.

    The outputs of a clip without any modality are empty.
    """
    import pandas as pd

    from qamoe.inference import predict
    from qamoe.registry import drift

    config = served.trained.config
    names = [clip.clip_id for clip in clips]
    made = [predict.clip_row(config, clip.text or None, frames.get(clip.clip_id, {})) for clip in clips]
    rows = pd.DataFrame([row for row, _ in made], names, predict.INPUTS, dtype=object)
    unread = {name: f"text: {reason}" for name, (_, reason) in zip(names, made, strict=True) if reason}
    scored = served.predict(rows) if len(rows) else pd.DataFrame(columns=outputs)
    unusable = [
        clip.clip_id
        for clip, (row, _) in zip(clips, made, strict=True)
        if not frames.get(clip.clip_id) and not (clip.text and len(row.get("tokens", clip.text)))
    ]
    scored.loc[unusable, list(predict.numeric_columns(config["task"]))] = float("nan")
    if outputs[0] in ("class", "labels"):
        scored.loc[unusable, outputs[0]] = None
    inputs = drift.describe(predict.prepare_clips(served.trained, rows), config["stats"]).set_axis(rows.index)
    return scored.join(inputs), unread


def _with_transcripts(clips: list["MediaSpan"]) -> tuple[list["MediaSpan"], dict[str, str]]:
    """Return clips with the words of their transcripts if they have no text, and the problems of these, by clip."""
    from dataclasses import replace

    from qamoe.data.subtitles import transcript
    from qamoe.media.decode import ClipError

    with_words, problems = [], {}
    for clip in clips:
        words = clip.text
        if not words:
            try:
                words = transcript(clip.path, clip.start_s, clip.end_s)
            except ClipError as problem:
                problems[clip.clip_id] = f"text: {problem}"
        with_words.append(replace(clip, text=words))
    return with_words, problems


def _clip_columns(clip: "MediaSpan", source: Path) -> dict[str, Any]:
    root = (source if source.is_dir() else source.parent).resolve()
    path = clip.path.relative_to(root).as_posix()
    end_s = float("nan") if clip.end_s is None else clip.end_s
    row = {"clip_id": clip.clip_id, "path": path, "text": clip.text, "start_s": clip.start_s, "end_s": end_s}
    return row | {"confidence": None}


def _heard(features: dict[str, "np.ndarray"]) -> dict[str, Any]:
    """Return the cells of words that were recognised; none for a text that was given."""
    words = features.get("text")
    return {} if words is None else {"text": " ".join(words["word"]), "confidence": words["confidence"].tolist()}


def _recogniser(config: "CheckpointConfig", clips: list["MediaSpan"]) -> "TranscribeSettings | None":
    """Return the speech recognition if a clip needs it; warn if it is missing."""
    from qamoe.extractors.registry import recogniser_of

    silent = sum(not clip.text for clip in clips)
    recogniser = recogniser_of(config) if silent else ""
    if not isinstance(recogniser, str):
        return recogniser
    if recogniser:
        runner.log.warning("text: %d of %d clips have no transcript; %s", silent, len(clips), recogniser)
    return None


def _key(clip: "MediaSpan", model: str, recogniser: "TranscribeSettings | None") -> str:
    """Return a digest of everything that a clip's score depends on."""
    from qamoe.extractors.registry import extractor
    from qamoe.extractors.worker_pool import media_digest

    text = clip.text
    if recogniser is not None and not text:
        text = f"{extractor(recogniser).version} {extractor(recogniser).made_with}"
    track = [clip.track] if clip.track else []
    return parameters.digest(model, media_digest(clip.path), clip.start_s, clip.end_s, text, *track)


def _read(path: Path, columns: list[str]) -> "pd.DataFrame":
    """Read the earlier scores; none if the file is missing or has the columns of another task or version."""
    import pandas as pd

    try:
        before = pd.read_parquet(path)
    except (FileNotFoundError, OSError, ValueError):
        return pd.DataFrame(columns=columns)
    return before if list(before) == columns else pd.DataFrame(columns=columns)


def _write(rows: "pd.DataFrame", path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    strings = {"clip_id", "path", "text", "class", "labels", *_LAST_COLUMNS}
    types = {**dict.fromkeys(("routing", "confidence"), pa.list_(pa.float64())), **dict.fromkeys(strings, pa.string())}
    schema = pa.schema([(column, types.get(column, pa.float64())) for column in map(str, rows)])
    with atomic_write(path) as temporary:
        pq.write_table(pa.Table.from_pandas(rows, schema, preserve_index=False), temporary)


def _jobs(
    clips: list["MediaSpan"], extractors: dict[str, "ExtractorSettings"], parts: Path
) -> dict[tuple[str, str], tuple[Any, Path]]:
    """Return the extraction job and the part file of each clip and modality of media."""
    from qamoe.extractors.registry import extractor
    from qamoe.extractors.worker_pool import Job, media_digest, part_key

    jobs = {}
    for modality, block in extractors.items():
        media_extractor = extractor(block)
        for clip in clips:
            if modality == "text" and clip.text:
                continue
            job = Job(clip.clip_id, modality, clip.path, clip.start_s, clip.end_s, track=clip.track)
            key = part_key(job, media_digest(media_extractor.reads(clip.path)), media_extractor)
            jobs[clip.clip_id, modality] = (job, parts / modality / key[:2] / key)
    return jobs


def _frames(
    clips: list["MediaSpan"], extractors: dict[str, "ExtractorSettings"], parts: Path
) -> tuple[dict[str, dict[str, "np.ndarray"]], dict[str, str]]:
    """Return the raw frames, or recognised words, by clip and modality, and the problems by clip."""
    from qamoe.extractors.worker_pool import make_parts, read_note, read_part

    jobs = _jobs(clips, extractors, parts)
    waiting = [job for job in jobs.values() if read_part(job[1]) is None]
    failures: dict[tuple[str, str], str] = {}
    if waiting:
        failures = make_parts(waiting, extractors, settings.workers(), _SECONDS_PER_CLIP, lambda: None)
    frames: dict[str, dict[str, np.ndarray]] = {}
    problems: dict[str, list[str]] = {}
    for (clip_id, modality), (_, part) in jobs.items():
        content = failures.get((clip_id, modality)) or read_part(part)
        if isinstance(content, str):
            if content:
                problems.setdefault(clip_id, []).append(f"{modality}: {content}")
        elif content is not None and len(content):
            frames.setdefault(clip_id, {})[modality] = content
            if note := read_note(part):
                problems.setdefault(clip_id, []).append(f"{modality}: {note}")
    return frames, {clip_id: "; ".join(reasons) for clip_id, reasons in problems.items()}


def _remove_parts(clips: list["MediaSpan"], extractors: dict[str, "ExtractorSettings"], parts: Path) -> None:
    """Delete the features of clips that the source no longer holds."""
    used = {part for _, part in _jobs(clips, extractors, parts).values()}
    for file in parts.rglob("*") if parts.is_dir() else ():
        if file.is_file() and file.with_suffix("") not in used:
            file.unlink()
