"""Show the diagnostic of r (evaluation/quality_diagnostic.py): a section of the page, and `qamoe diagnose`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from qamoe.errors import UserError
from qamoe.evaluation.bootstrap import MODALITIES
from qamoe.evaluation.metrics import lower_is_better
from qamoe.evaluation.reliability import Effect, intervention_effects
from qamoe.evaluation.summary import INTERVENTIONS
from qamoe.report.results import CELLS, DIAGNOSTIC, Results, Seed, evaluations, read_table
from qamoe.report.section import Numbers, Section
from qamoe.report.tables import is_share, number, stdout_console
from qamoe.terminal import printable

if TYPE_CHECKING:
    from rich.console import Console

CONTROLS = ("corruption", "correctness")
LABELS = {"mae": "MAE", "acc2_non0": "Acc-2 Non0", "accuracy": "Accuracy"}


class Diagnosis(NamedTuple):
    """The effects of every intervention by metric, averaged over training seeds; the last metric is the accuracy."""

    model: str
    effects: dict[str, dict[str, Effect]]
    sources: int

    @property
    def metrics(self) -> list[str]:
        return list(self.effects["native"])


@dataclass(frozen=True)
class DiagnosticTable:
    """One row per model and intervention, and one sentence per model."""

    columns: list[str]
    rows: list[list[str]]
    sentences: list[str]


def section(results: Results) -> Section[DiagnosticTable | None]:
    """Return the table of all models with a diagnostic.parquet for each seed; None without such a model."""
    diagnosed = [
        model for model, seeds in results.folders.items() if all((f / DIAGNOSTIC).is_file() for f in seeds.values())
    ]
    rows: list[list[str]] = []
    columns: list[str] = []
    sentences: list[str] = []
    numbers: Numbers = {}
    for diagnosis in (_diagnosis(results, model) for model in diagnosed):
        columns = ["Model", "r", *_columns(diagnosis)]
        rows += [[diagnosis.model, name, *_texts(diagnosis, name)] for name in INTERVENTIONS]
        sentences.append(sentence(diagnosis))
        numbers |= _numbers(diagnosis)
    return Section(DiagnosticTable(columns, rows, sentences) if rows else None, numbers)


def of_model(evaluated: Path, model: str, seed: int | None = None) -> Diagnosis:
    """Return the diagnosis of a model of artifacts/evaluate, of one seed or of the mean over all.

    Raises UserError if model or seed was not evaluated, if the model has no r, and without slice mixed.
    """
    folders = evaluations(evaluated)
    if model not in folders:
        raise UserError(f"model {model!r} was not evaluated in {evaluated}; evaluated: {', '.join(folders)}")
    seeds = folders[model]
    if seed is not None and seed not in seeds:
        known = ", ".join(map(str, seeds))
        raise UserError(f"seed {seed} of {model} was not evaluated in {evaluated}; evaluated: {known}")
    chosen: dict[Seed, Path] = seeds if seed is None else {seed: seeds[seed]}
    results = Results(pd.DataFrame(), {model: chosen}, [])
    if not any(results.has(model, f"r_{m}") for m in MODALITIES):
        raise UserError(f"model {model!r} in {evaluated} estimates no r, so there is nothing to exchange")
    for folder in chosen.values():
        slices = read_table(folder / CELLS, columns=["slice"])["slice"].unique()
        if "mixed" not in slices:
            raise UserError(
                f"{folder} has the slices {', '.join(slices)}; the diagnostic needs mixed (evaluate.slices)"
            )
        if not (folder / DIAGNOSTIC).is_file():
            raise UserError(f"{folder} has no {DIAGNOSTIC}; evaluate with evaluate.quality_permutations above 0")
    return _diagnosis(results, model)


def _diagnosis(results: Results, model: str) -> Diagnosis:
    rows = results.compared(model, file=DIAGNOSTIC)
    return Diagnosis(model, intervention_effects(rows), rows["source"].nunique())


def sentence(diagnosis: Diagnosis) -> str:
    """Say whether the controls raise the accuracy and whether permuting makes anything worse, by the intervals."""
    accuracy = diagnosis.metrics[-1]
    raising = [name for name in CONTROLS if diagnosis.effects[name][accuracy].low > 0]
    others = [name for name in CONTROLS if name not in raising]
    clauses = []
    if raising:
        clauses.append(f"r in the order of {' or '.join(raising)} raises {LABELS[accuracy]}")
    if others:
        clauses.append(f"r in the order of {' or '.join(others)} is not shown to raise {LABELS[accuracy]}")
    permuted = diagnosis.effects["permuted"]
    worse = [m for m, effect in permuted.items() if (effect.low > 0 if lower_is_better(m) else effect.high < 0)]
    if worse:
        clauses.append(f"permuting r makes {' and '.join(LABELS[m] for m in worse)} worse")
    else:
        clauses.append(f"permuting r is not shown to make {' or '.join(LABELS[m] for m in permuted)} worse")
    return f"{diagnosis.model}: {'; '.join(clauses)}."


def _numbers(diagnosis: Diagnosis) -> Numbers:
    numbers: Numbers = {}
    for name, by_metric in diagnosis.effects.items():
        for metric, effect in by_metric.items():
            prefix = f"{diagnosis.model}.diagnostic.{name}.{metric}"
            numbers[prefix] = effect.value
            if name != "native":
                limits = {"": effect.difference, ".low": effect.low, ".high": effect.high}
                numbers |= {f"{prefix}.difference{end}": value for end, value in limits.items()}
    return numbers


def _columns(diagnosis: Diagnosis) -> list[str]:
    return [
        column
        for metric in diagnosis.metrics
        for column in (LABELS[metric], "Points" if is_share(metric) else "Change", "95 % interval")
    ]


def _texts(diagnosis: Diagnosis, name: str) -> list[str]:
    """Return value, difference and interval for each metric; the differences of native are empty."""
    texts = []
    for metric, effect in diagnosis.effects[name].items():
        signed = [_signed(value, metric) for value in effect[1:]]
        interval = "" if pd.isna(effect.low) else f"{signed[1]}, {signed[2]}"
        texts += [number(effect.value, metric), *(("", "") if name == "native" else (signed[0], interval))]
    return texts


def _signed(difference: float, metric: str) -> str:
    text = f"{100 * difference:+.1f}" if is_share(metric) else f"{difference:+.3f}"
    return text.replace("-", "−")


def show(diagnosis: Diagnosis, console: "Console | None" = None) -> None:
    """Print the table of a model, and its sentence."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = console or stdout_console()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("r")
    for heading in _columns(diagnosis):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in INTERVENTIONS:
        table.add_row(name, *(Text(text) for text in _texts(diagnosis, name)))
    console.print(table)
    console.print(printable(sentence(diagnosis)), highlight=False, markup=False)
    console.print(
        f"Slice mixed, differences to native. Bootstrap over {diagnosis.sources} sources, training seeds averaged."
        " Nothing is corrected for multiple comparisons.",
        highlight=False,
    )
