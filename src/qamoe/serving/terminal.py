"""`qamoe predict`: one clip of one's own, answered in the terminal."""

import json
import sys
from pathlib import Path

import pandas as pd

from qamoe.errors import Refused
from qamoe.serving.messages import ClassAnswer, Either, answers
from qamoe.serving.source import Served, open_model
from qamoe.serving.uploads import in_process

_BAR = 20  # characters


def predict(clip: Path | None, text: str | None, model: str, folder: Path | None, as_json: bool) -> None:
    """Print what the model says of a media file, of words, or of both. Raises Refused where there is neither."""
    if clip is None and not text:
        raise Refused("There is nothing to predict: give a media file, --text, or both.")
    if clip is not None and not clip.is_file():
        raise Refused(f"There is no file {clip}; a clip is a film or a sound file.")
    served = open_model(model, folder)
    row: dict[str, object] = {"text": text}
    problems = {}
    if clip is not None:
        extractors = served.extractors()
        if not extractors:
            raise Refused(f"{served.name} knows no media: its corpus came with ready features.")
        found = in_process(clip, extractors)
        if not found.frames:
            why = "; ".join(f"{m}: {reason}" for m, reason in found.problems.items())
            raise Refused(f"{clip} has nothing that can be used ({why}).")
        row |= found.frames
        problems = found.problems
    answer = answers(served.predict(pd.DataFrame({name: pd.Series([v], dtype=object) for name, v in row.items()})))[0]
    if as_json:
        for modality, reason in problems.items():
            print(f"{modality}: {reason}", file=sys.stderr)
        print(json.dumps({"model": served.name, **answer.model_dump()}, allow_nan=False))
    else:
        _show(served, answer, problems)


def _show(served: Served, answer: Either, problems: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    task = served.trained.config["task"]
    out = Console(highlight=False)
    if isinstance(answer, ClassAnswer):
        ordered = sorted(answer.probabilities.items(), key=lambda pair: -pair[1])
        out.print(f"class  {answer.label}", style="bold", markup=False)
        out.print("       " + "  ".join(f"{name} {share:.0%}" for name, share in ordered), markup=False)
    else:
        out.print(f"score  [bold]{answer.score:+.2f}[/]   90 % interval {answer.low_90:+.2f} to {answer.high_90:+.2f}"
                  f"   scale {task['low']:g} to {task['high']:g}")  # fmt: skip
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "trust", "", "r"):
        table.add_column(name, justify="right" if name == "trust" else "left")
    for modality in served.trained.config["modalities"]:
        trust, r = answer.trust[modality], answer.r[modality]
        if trust is None or r is None:
            table.add_row(modality, "[dim]none[/]", "", "")
            continue
        filled = round(trust * _BAR)
        bar = f"{'█' * filled}[dim]{'░' * (_BAR - filled)}[/]"
        table.add_row(modality, f"{trust:.0%}", bar, f"{r:.3f}")
    out.print(table)
    if answer.routing is not None:
        used = sorted(((share, i + 1) for i, share in enumerate(answer.routing) if share >= 0.005), reverse=True)
        out.print("experts  " + "  ".join(f"{number}: {share:.0%}" for share, number in used))
    for modality, reason in problems.items():
        out.print(f"{modality}: {reason}", style="yellow", markup=False)
    out.print(served.name, style="dim", markup=False)
