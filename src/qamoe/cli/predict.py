"""`qamoe predict`: predictions of your own clips, as a table in a terminal or lines of JSON in a pipe."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qamoe.cli import inputs
from qamoe.config.extractor_settings import TranscribeSettings
from qamoe.config.task import has_classes
from qamoe.errors import UserError
from qamoe.extractors.registry import extractors_of, recogniser_of
from qamoe.extractors.transcribe import word_records
from qamoe.inference.extraction_worker import Extraction, WorkerLost
from qamoe.models.checkpoint_config import CONFIG, check, read_config
from qamoe.serving import model_loader
from qamoe.serving.model_loader import LocatedModel, Served
from qamoe.terminal import printable

_BAR = 20  # characters


@dataclass(frozen=True)
class Prediction:
    """The prediction of a clip or window, as qamoe.inference.predict.json_answers returns it; None where there is none.

    `reasons` say why a modality, or the whole "clip", could not be used. `text` has the clip's words; `heard` are those
    of them that were recognised in its voice, with confidence and times.
    """

    name: str
    answer: dict[str, Any] | None
    reasons: dict[str, str]
    text: str | None = None
    heard: list[dict[str, Any]] | None = None


def predict(
    paths: Sequence[Path],
    text: str | None,
    window: float | None,
    model: str,
    folder: Path | None,
    as_json: bool,
    transcribe: bool = True,
    track: str | None = None,
) -> bool:
    """Print the predictions of media files, of words, or of both; returns whether every clip has one.

    `text` holds the words of a single clip, `track` is the audio track of all. Longer clips are cut into windows of
    `window` seconds. `transcribe`: recognise the words of clips without a transcript. Raises UserError where there is
    no input or no model.
    """
    _check(paths, text, window)
    clips = inputs.clips(paths) if paths else [inputs.PredictInput("", words=text or "")]
    if text is not None and len(clips) > 1:
        raise UserError(
            f"--text holds the words of one clip, but {len(clips)} were given; put a .txt or .srt next to each clip."
        )
    only = clips[0] if inputs.one_file(paths) else None
    if isinstance(only, inputs.PredictInput):
        raise UserError(only.fault)
    transcribe = transcribe and text is None
    first = next((clip for clip in clips if not isinstance(clip, inputs.PredictInput)), None)
    silent = transcribe and first is not None and inputs.words_of(first, None, True, False)[1] == inputs.NO_TRANSCRIPT
    with (
        model_loader.located(model, folder) as located,
        _extraction(located, bool(paths), transcribe, silent) as (extraction, recogniser),
    ):
        served = model_loader.load(located)
        longest = served.trained.config["stats"].get("seconds_max")
        options = inputs.InputOptions(text, window, longest, recogniser, track)
        _check_window(served, options)
        rows = _rows(served, extraction, clips, options, single=only is not None)
        return _print_all(served, rows, as_json, alone=only is not None or not paths)


@contextmanager
def _extraction(
    located: LocatedModel, media: bool, transcribe: bool, silent: bool
) -> Iterator[tuple[Extraction | None, TranscribeSettings | str]]:
    """Yield a worker process that extracts features and starts while the model is loaded; None without media.

    With it comes its speech recognition, or the reason why it has none; it is loaded at once for clips that are
    `silent`, with no transcript. Raises UserError where the model was trained on
    ready-made features.
    """
    config = read_config(located.folder) if media else None
    if config is None:  # words alone; loading refuses a folder without a checkpoint
        yield None, ""
        return
    check(config, located.folder / CONFIG)
    extractors = extractors_of(config)
    if not extractors:
        raise UserError(f"{located.name} was trained on ready-made features and cannot read media files.")
    recogniser = recogniser_of(config) if transcribe else ""
    likely = dict(extractors)
    if silent and not isinstance(recogniser, str):
        likely["text"] = recogniser
    extraction = Extraction(None, likely)
    try:
        yield extraction, recogniser
    finally:
        extraction.close()


def _print_all(served: Served, rows: Iterable[tuple[int, Prediction]], as_json: bool, alone: bool) -> bool:
    """Print predictions, each given with its clip's number; a clip `alone` is not put in a table.

    Returns whether every clip has a prediction.
    """
    printed_at_end: list[Prediction] = []
    answered: dict[int, bool] = {}
    for number, row in rows:
        if row.answer is not None and not any(answered.values()):
            _warn(served)
        answered[number] = answered.get(number, False) or row.answer is not None
        if as_json:
            print(json.dumps(_json_line(served, row), allow_nan=False), flush=True)
        else:
            printed_at_end.append(row)
    if len(printed_at_end) == 1 and printed_at_end[0].answer is not None and alone:
        _print_one(served, printed_at_end[0], printed_at_end[0].answer)
    elif printed_at_end:
        _print_table(served, printed_at_end)
    failed = len(answered) - sum(answered.values())
    if failed:
        print(f"qamoe: {failed} of {len(answered)} clips have no prediction; see the reasons above.", file=sys.stderr)
    return not failed


def _check(paths: Sequence[Path], text: str | None, window: float | None) -> None:
    """Refuse options that exclude each other, before anything is loaded."""
    if not paths and not text:
        raise UserError("no input: give a media file, --text, or both.")
    if window is not None and text is not None:
        raise UserError(
            "--text and --window exclude each other, because --text has no times: put the words into a .srt next to the"
            " clip instead."
        )
    if window is not None and not window >= inputs.SHORTEST_WINDOW:
        raise UserError(f"--window is {window:g} s; the minimum is {inputs.SHORTEST_WINDOW:g} s.")


def _check_window(served: Served, options: inputs.InputOptions) -> None:
    window, longest = options.window, options.longest
    if window is not None and longest is not None and window > inputs.LONGEST * longest:
        limit = f"{inputs.LONGEST * longest:.1f} s, twice the longest training clip of {served.name}"
        raise UserError(f"--window is {window:g} s; the maximum is {limit}.")


def _rows(
    served: Served, extraction: Extraction | None, clips: Sequence[Any], options: inputs.InputOptions, single: bool
) -> Iterator[tuple[int, Prediction]]:
    """Predict the clips and their windows, each with its clip's number. Raises UserError if a `single` file fails."""
    for number, clip in enumerate(_with_progress(clips)):
        parts = [clip] if isinstance(clip, inputs.PredictInput) else inputs.inputs_of(clip, options)
        if number == 0 and extraction is not None and any(part.words for part in parts):
            served.warm_up()  # while the worker process starts
        for part in parts:
            row = _predict_one(served, extraction, part, options.recogniser)
            if single and len(parts) == 1 and row.answer is None:
                why = "; ".join(_sentences(row.reasons))
                raise UserError(part.fault or f"{part.name} has no usable modality ({why}).")
            yield number, row


def _with_progress(clips: Sequence[Any]) -> Iterable[Any]:
    """Iterate over the clips, with a progress bar for several clips in a terminal."""
    if len(clips) == 1 or not sys.stderr.isatty():
        return clips
    from rich.console import Console
    from rich.progress import track

    return track(clips, "predict", console=Console(stderr=True), transient=True)


def _predict_one(
    served: Served,
    extraction: Extraction | None,
    to_predict: inputs.PredictInput,
    recogniser: TranscribeSettings | str,
) -> Prediction:
    """Extract features and predict; a prediction without an answer has the reasons."""
    import pandas as pd

    from qamoe.inference.predict import clip_row, json_answers, predict

    if to_predict.fault:
        return Prediction(to_predict.name, None, {"clip": to_predict.fault})
    modalities = served.trained.config["modalities"]
    extractors, silent = dict(served.extractors), to_predict.silent
    if silent == inputs.NO_TRANSCRIPT and not isinstance(recogniser, str):
        extractors["text"] = recogniser
    elif silent == inputs.NO_TRANSCRIPT and recogniser:
        silent = f"{silent}; {recogniser}"
    frames, problems = {}, dict.fromkeys(modalities, "no clip")
    if extraction is not None and (span := to_predict.span) is not None:
        try:
            extracted = extraction.extract(span.path, extractors, span.start_s, span.end_s, span.track)
        except WorkerLost as lost:
            return Prediction(to_predict.name, None, {"clip": str(lost)})
        frames, problems = extracted.frames, extracted.problems
        if to_predict.unreadable and not frames:
            return Prediction(to_predict.name, None, {"clip": to_predict.unreadable})
    reasons = {}
    for modality in modalities:
        if modality == "text" and silent and "text" not in frames:
            reasons["text"] = problems.get("text", silent)
        elif modality != "text" and (modality not in frames or modality in problems):
            reasons[modality] = problems.get(modality, "its features cannot be extracted from media")
    row, unread = clip_row(served.trained.config, to_predict.words or None, frames)
    if unread:
        reasons["text"] = unread
    words = "text" in modalities and to_predict.words and len(row.get("tokens", to_predict.words))
    if not frames and not words and (to_predict.span is not None or unread):
        return Prediction(to_predict.name, None, reasons)
    columns = {name: pd.Series([value], dtype=object) for name, value in row.items()}
    (answer,) = json_answers(predict(served.trained, pd.DataFrame(columns), served.device))
    if "text" not in frames:
        return Prediction(to_predict.name, answer, reasons, to_predict.words or None)
    heard = word_records(frames["text"])
    return Prediction(to_predict.name, answer, reasons, " ".join(word["word"] for word in heard), heard)


def _warn(served: Served) -> None:
    if served.trained.config["trained_on_generated"]:
        print(f"qamoe: {served.name} was trained on generated clips only; its predictions of real people mean nothing.",
              file=sys.stderr)  # fmt: skip


def _sentences(reasons: dict[str, str]) -> list[str]:
    return [reason if what == "clip" else f"{what}: {reason}" for what, reason in reasons.items()]


def _json_line(served: Served, row: Prediction) -> dict[str, Any]:
    """Return a prediction for JSON: clip, score or class, interval, trust and reasons first; null if there is none."""
    answer = row.answer
    of_classes = served.trained.classifies
    what = {"regression": "score", "classification": "class", "multilabel": "labels"}[
        served.trained.config["task"]["kind"]
    ]
    line: dict[str, Any] = {"clip": row.name or None, what: None}
    line |= {"interval": None, "trust": None if answer is None else answer["trust"], "reasons": row.reasons}
    if answer is not None and of_classes:
        line |= {what: answer["label" if what == "class" else what], "probabilities": answer["probabilities"]}
    elif answer is not None:
        line |= {"score": answer["score"], "interval": [answer["low_90"], answer["high_90"]]}
        line |= {"variance": answer["variance"]}
    if answer is not None:
        line |= {"r": answer["r"], "routing": answer["routing"]}
    return line | {"text": row.text, "words": row.heard, "model": served.name}


def _print_one(served: Served, row: Prediction, answer: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    task = served.trained.config["task"]
    out = Console(highlight=False)
    if "probabilities" in answer:
        ordered = sorted(answer["probabilities"].items(), key=lambda pair: -pair[1])
        what = "labels" if "labels" in answer else "class"
        out.print(f"{what}  {_answer_cells(answer)[0]}", style="bold", markup=False)
        out.print("       " + "  ".join(f"{name} {share:.0%}" for name, share in ordered), markup=False)
    else:
        low, high = answer["low_90"], answer["high_90"]
        out.print(f"score  [bold]{answer['score']:+.2f}[/]   90 % interval {low:+.2f} to {high:+.2f}"
                  f"   scale {task['low']:g} to {task['high']:g}")  # fmt: skip
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "trust", "", "r"):
        table.add_column(name, justify="right" if name == "trust" else "left")
    for modality in served.trained.config["modalities"]:
        trust, r = answer["trust"][modality], answer["r"][modality]
        if trust is None or r is None:
            table.add_row(modality, "[dim]none[/]", "", "")
            continue
        filled = round(trust * _BAR)
        bar = f"{'█' * filled}[dim]{'░' * (_BAR - filled)}[/]"
        table.add_row(modality, f"{trust:.0%}", bar, f"{r:.3f}")
    out.print(table)
    if answer["routing"] is not None:
        used = sorted(((share, i + 1) for i, share in enumerate(answer["routing"]) if share >= 0.005), reverse=True)
        out.print("experts  " + "  ".join(f"{number}: {share:.0%}" for share, number in used))
    if row.heard:
        confidence = sum(word["confidence"] for word in row.heard) / len(row.heard)
        out.print(f"heard  {printable(row.text or '')}   (confidence {confidence:.0%})", markup=False)
    for line in _sentences(row.reasons):
        out.print(printable(line), style="yellow", markup=False)
    out.print(served.name, style="dim", markup=False)


def _print_table(served: Served, rows: Sequence[Prediction]) -> None:
    """Print one line per clip or window: score or class, the trust in each modality, and why one is missing."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    config = served.trained.config
    of_classes = has_classes(config["task"])
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("\nclip", overflow="fold")
    for name in ("class", "probability") if of_classes else ("score", "90 % interval"):
        table.add_column(f"\n{name}", justify="right", no_wrap=True)
    for number, modality in enumerate(config["modalities"]):
        table.add_column(f"{'' if number else 'trust'}\n{modality}", justify="right", no_wrap=True)
    heard = any(row.heard for row in rows)
    if heard:
        table.add_column("\nheard", overflow="fold")
    table.add_column("\nreasons", overflow="fold", style="yellow")
    for row in rows:
        trusts = [_trust_cell(row.answer, modality) for modality in config["modalities"]]
        words = [row.text or "" if row.heard else ""] * heard
        cells = [row.name, *_answer_cells(row.answer), *trusts, *words, "; ".join(_sentences(row.reasons))]
        table.add_row(*(Text(printable(cell)) for cell in cells))
    out = Console(highlight=False)
    out.print(table)
    out.print(served.name, style="dim", markup=False)


def _answer_cells(answer: dict[str, Any] | None) -> tuple[str, str]:
    if answer is None:
        return "-", ""
    if "labels" in answer:
        return ", ".join(answer["labels"]) or "none", ""
    if "label" in answer:
        return answer["label"], f"{answer['probabilities'][answer['label']]:.0%}"
    return f"{answer['score']:+.2f}", f"{answer['low_90']:+.2f} to {answer['high_90']:+.2f}"


def _trust_cell(answer: dict[str, Any] | None, modality: str) -> str:
    if answer is None:
        return ""
    trust = answer["trust"][modality]
    return "none" if trust is None else f"{trust:.0%}"
