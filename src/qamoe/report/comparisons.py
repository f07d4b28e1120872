"""QA-MoE against every control, ablation and specialist: what the page says about differences, with their intervals.

Everything shown goes into the flat summary too, rounded nowhere.
"""

import re
from typing import Any

import pandas as pd

from qamoe.evaluation.bootstrap import DRAWS, Comparison, Resampled, compared, holm, non_inferior, resample
from qamoe.report import tables
from qamoe.report.pairwise import texts, verdict
from qamoe.report.results import Results
from qamoe.report.tables import number, percent

Summary = dict[str, float | int | bool | None]

COMPARED = ("qamoe", "concat")  # the first minus the second, in full
FAMILY = (("concat", "moe"), ("mixed", "alone"))  # named before any result was seen; Holm corrects over it
JUDGED = ("mixed", "missing")  # where QA-MoE must be no worse than the best control
SIGNIFICANT = 0.05  # below it, Holm's p of a member of FAMILY is a difference
MARGIN = 0.01  # by how much of its MAE it may be worse there
FROM = 0.3  # severity from which the clean specialist should lose

Pairs = dict[tuple[str, str], Comparison]  # (other model, slice)


def values(results: Results, summary: Summary) -> dict[tuple[str, str], Resampled]:
    """(model, slice) -> the error under the same draws of sources, specialists apart."""
    metric = tables.error_metric(results.cells)
    found = {}
    if metric is None:
        return {}
    for model in results.models:
        if model.startswith("specialist-"):
            continue
        for name in results.slices_of(model):
            own = resample(results.compared(model, name), metric, DRAWS)
            _, low, high = own.interval
            summary |= {f"{model}.{name}.{metric}.area.low": low, f"{model}.{name}.{metric}.area.high": high}
            found[model, name] = own
    return found


def pairs(found: dict[tuple[str, str], Resampled], metric: str, summary: Summary) -> Pairs:
    """The first of COMPARED against every other model on every slice that both have; none where it is absent."""
    first = COMPARED[0]
    made: Pairs = {}
    for (model, name), own in found.items():
        if model == first or (first, name) not in found:
            continue
        pair = compared(found[first, name], own, name)
        made[model, name] = pair
        _note(summary, f"comparison.{first}-{model}.{name}.{metric}", pair)
    return made


def _note(summary: Summary, prefix: str, pair: Comparison) -> None:
    names = ("difference", "difference.low", "difference.high", "p", "ratio", "ratio.low", "ratio.high")
    summary |= {f"{prefix}.{name}": value for name, value in zip(names, pair, strict=True)}


def rows(made: Pairs, metric: str, summary: Summary) -> list[dict[str, Any]]:
    """COMPARED, a slice a row, then what else is of the family: the comparison, and its p corrected over the family."""
    corrected = family(made, metric, summary)
    shown_ = {key: pair for key, pair in made.items() if key[0] == COMPARED[1]}
    shown_ |= {key: made[key] for key in corrected}
    return [
        {"against": model, "slice": name, "metric": metric, "pair": pair, "corrected": corrected.get((model, name))}
        for (model, name), pair in shown_.items()
    ]


def family(made: Pairs, metric: str, summary: Summary) -> dict[tuple[str, str], float]:
    """Holm's p of each member of FAMILY that was measured."""
    members = {
        f"{m}.{s}": made[m, s].p for m in FAMILY[0] for s in FAMILY[1] if (m, s) in made and not pd.isna(made[m, s].p)
    }
    corrected = {}
    for name, p in holm(members).items():
        model, slice_ = name.split(".")
        summary[f"comparison.{COMPARED[0]}-{model}.{slice_}.{metric}.p_holm"] = p
        corrected[model, slice_] = p
    return corrected


def shows(pair: Comparison, corrected: float | None) -> bool:
    """Whether a pair shows a difference: its interval leaves out 0 and, in the family, Holm's p is small too."""
    return pair.claimed and (corrected is None or corrected < SIGNIFICANT)


def shown(row: dict[str, Any]) -> dict[str, str]:
    """A row of `rows` as the page prints it."""
    difference, interval, p, ratio, ratio_interval = texts(row["pair"])
    said = verdict(row["pair"], row["metric"]) if shows(row["pair"], row["corrected"]) else ""
    return {
        "against": row["against"],
        "slice": row["slice"],
        "difference": difference,
        "interval": interval,
        "p": p,
        "corrected": "" if row["corrected"] is None else f"{row['corrected']:.3f}",
        "ratio": ratio,
        "ratio_interval": ratio_interval,
        "verdict": f"{COMPARED[0]} is {said}" if said else "no difference shown",
    }


def matrix(found: dict[tuple[str, str], Resampled], made: Pairs, metric: str) -> list[dict[str, Any]]:
    """Controls, and ablations where there are any: tables of a row a model and a column a slice.

    `errors` holds each model's error, `differences` how much that of the first of COMPARED exceeds it, both with
    their intervals.
    """
    models = list(dict.fromkeys(model for model, _ in found))
    slices = list(dict.fromkeys(name for _, name in found))
    groups = (
        ("Controls", [m for m in models if not m.startswith("ablation-")]),
        ("Ablations", [m for m in models if m.startswith("ablation-") or m == COMPARED[0]]),
    )
    shown_ = []
    for title, own in groups:
        if len(own) < 2:
            continue
        errors = [{"model": m, "cells": [_error(found.get((m, s)), metric) for s in slices]} for m in own]
        others = [m for m in own if any((m, s) in made for s in slices)]
        differences = [{"model": m, "cells": [_difference(made.get((m, s))) for s in slices]} for m in others]
        shown_.append({"title": title, "slices": slices, "errors": errors, "differences": differences})
    return shown_


def _error(own: Resampled | None, metric: str) -> dict[str, Any]:
    if own is None:
        return {"value": "", "interval": "", "claimed": False}
    value, low, high = (number(v, metric) for v in own.interval)
    return {"value": value, "interval": f"{low}, {high}", "claimed": False}


def _difference(pair: Comparison | None) -> dict[str, Any]:
    if pair is None:
        return {"value": "", "interval": "", "claimed": False}
    difference, interval = texts(pair)[:2]
    return {"value": difference, "interval": interval.replace(" to ", ", "), "claimed": pair.claimed}


def no_worse(found: dict[tuple[str, str], Resampled], made: Pairs, summary: Summary) -> list[dict[str, str]]:
    """On the slices of JUDGED: the first of COMPARED against the control that errs least there, by MAE."""
    lines = []
    for name in JUDGED:
        controls = {m: own for (m, s), own in found.items() if s == name and tables.is_control(m) and (m, s) in made}
        if not controls:
            continue
        best = min(controls, key=lambda m: controls[m].values[0])
        pair = made[best, name]
        upper = pair.ratio_high - 1
        summary[f"non_inferior.{name}.{best}.mae.upper"] = upper
        summary[f"non_inferior.{name}"] = non_inferior(pair, MARGIN)
        lines.append(
            {
                "slice": name,
                "best": best,
                "relative": percent(pair.ratio - 1),
                "upper": percent(upper),
                "said": "no worse" if non_inferior(pair, MARGIN) else "not shown to be no worse",
            }
        )
        summary[f"non_inferior.{name}.{best}.mae.relative"] = pair.ratio - 1
    return lines


def specialists(results: Results, summary: Summary) -> dict[str, Any]:
    """One checkpoint against a specialist in each one's own cell; the clean specialist also in all worse ones."""
    lines: list[dict[str, str]] = []
    own_ratios = []
    first = COMPARED[0]
    if first not in results.models or tables.error_metric(results.cells) != "mae":
        return {"rows": lines}
    there = set(results.cells.loc[results.cells["model"] == first, "cell"])
    for model in (m for m in results.models if m.startswith("specialist-")):
        for cell in _cells_of(model, results.cells):
            if cell not in there:
                continue
            sides = [resample(results.compared(m, cells=[cell]), "mae", DRAWS) for m in (first, model)]
            pair = compared(sides[0], sides[1], cell)
            _note(summary, f"comparison.{first}-{model}.{_key(cell)}.mae", pair)
            own = cell == _own_cell(model)
            if own:
                own_ratios.append(pair.ratio)
            _, _, _, ratio, interval = texts(pair)
            maes = [number(side.values[0], "mae") for side in sides]
            name = f"specialists.{model}.{_key(cell)}"
            summary |= {f"{name}.mae": float(sides[1].values[0]), f"{name}.{first}.mae": float(sides[0].values[0])}
            said = verdict(pair, "mae")
            lines.append(
                {
                    "model": model,
                    "cell": cell,
                    "ours": maes[0],
                    "theirs": maes[1],
                    "ratio": ratio,
                    "interval": interval,
                    "said": f"{first} is {said}" if said else "no difference shown",
                }
            )
    if not own_ratios:
        return {"rows": lines}
    mean = sum(own_ratios) / len(own_ratios)
    summary["specialists.mean_ratio"] = mean
    return {"rows": lines, "mean": f"{mean:.3f}", "count": len(own_ratios)}


def _key(cell: str) -> str:
    """missing-0.3 -> missing-s03: names of the summary hold no dot of their own."""
    return re.sub(r"-(\d)\.(\d)$", r"-s\1\2", cell)


def _own_cell(model: str) -> str:
    """specialist-missing-03 -> missing-0.3; specialist-clean -> clean."""
    kind, _, tenths = model.removeprefix("specialist-").rpartition("-")
    return f"{kind}-{int(tenths) / 10:.1f}" if kind else "clean"


def _cells_of(model: str, cells: pd.DataFrame) -> list[str]:
    own = _own_cell(model)
    if own != "clean":
        return [own]
    graded = cells[cells["slice"].isin(("missing", "noise")) & (cells["severity"] > FROM - 0.05)]
    return [own, *graded["cell"].unique()]
