"""What the page says in words and tables, section by section."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from qamoe.config.task import is_classification
from qamoe.report import plots, tables
from qamoe.report.comparisons import COMPARED
from qamoe.report.results import Results, Seed
from qamoe.report.section import Figures, Image, Numbers, Section
from qamoe.report.tables import number, plain, spread

FORMS = {
    "alone": "Mean of the areas over severity",
    "held_out": "Mean of the areas over severity",
    "signals": "Mean of the areas over severity",
    "joint": "Mean over cells",
    "swap": "Mean over cells",
    "subsets": "Mean over the announced cells",
}
CURVES = ("mae", "corr", "acc7", "acc2_non0", "accuracy")  # whose values at each severity go into summary.json
HARDEST = 10  # sources that the page lists

# Second-hand and unverified: name, what, slice, severity, metric, the paper's figure, the paper's best other.
REFERENCES = (
    ("acc7", "Acc-7, clean", "clean", 0.0, "acc7", 0.536, 0.469),
    ("noise.acc2.s07", "Acc-2, noise λ = 0.7", "noise", 0.7, "acc2_non0", 0.877, 0.873),
    ("missing.acc7.s07", "Acc-7, 70 % missing", "missing", 0.7, "acc7", 0.305, 0.264),
)
WITHOUT_QUALITY_GATE = 0.359  # MAE added by leaving the quality gate out, likewise second-hand


@dataclass(frozen=True)
class About:
    """The head of the page: test split, models and task; `data` is the start of the data's digest."""

    clips: int
    sources: int
    models: str
    target: str
    modalities: str
    generated: bool
    data: str


def about(results: Results) -> Section[About]:
    """What was evaluated on what."""
    model = results.models[0]
    first = results.predictions(model, results.slices_of(model)[0])
    clips, sources = int(first["clip_id"].nunique()), int(first["source"].nunique())
    config = results.runs[-1].config
    seeds = {model: sum(run.model == model for run in results.runs) for model in results.models}
    models = [f"{model} × {count}" for model, count in seeds.items() if not model.startswith("specialist-")]
    specialists = len(seeds) - len(models)
    if specialists:
        models.append("one specialist" if specialists == 1 else f"{specialists} specialists")
    task = config["task"]
    target = f"a class ({', '.join(task['classes'])})"
    if not is_classification(task):
        target = f"a number from {task['low']:g} to {task['high']:g}".replace("-", "−")
    context = About(
        clips,
        sources,
        models=", ".join(models),
        target=target,
        modalities=", ".join(config["modalities"]),
        generated=config["trained_on_generated"],
        data=config["digests"].get("data", "")[:12],
    )
    counts: Numbers = {f"{model}.seeds": count for model, count in seeds.items()}
    return Section(context, {"test.clips": clips, "test.sources": sources, **counts})


@dataclass(frozen=True)
class Measured:
    """A value of the headline: mean and SD over seeds as the page prints them."""

    label: str
    mean: str
    sd: str
    undefined: bool  # every prediction was the same, and the metric is a correlation


@dataclass(frozen=True)
class HeadlineRow:
    model: str
    values: list[Measured]


@dataclass(frozen=True)
class Headline:
    columns: list[str]
    rows: list[HeadlineRow]
    undefined: bool  # whether any value is


def headline(headline: pd.DataFrame, cells: pd.DataFrame) -> Headline:
    """tables.headline as the page prints it; its numbers are those of `slices`."""
    columns = tables.columns_of(cells)
    undefined = set(_undefined(cells))
    rows = [
        HeadlineRow(
            row["model"],
            [
                Measured(
                    column.label,
                    mean=number(row[column.name], column.metric),
                    sd=spread(row[f"{column.name}.sd"], column.metric),
                    undefined=column.metric == "corr" and (row["model"], column.slice) in undefined,
                )
                for column in columns
            ],
        )
        for _, row in headline.iterrows()
    ]
    any_undefined = any(value.undefined for row in rows for value in row.values)
    return Headline([column.label for column in columns], rows, any_undefined)


def _undefined(cells: pd.DataFrame) -> dict[tuple[str, str], tuple[int, int]]:
    """(model, slice) -> how many of its cells had a constant prediction in any seed or draw, of how many."""
    flags = cells[cells["metric"] == "corr_undefined"]
    worst = flags.groupby(["model", "slice", "cell"], sort=False)["value"].max() > 0
    count = worst.groupby(["model", "slice"], sort=False).agg(["sum", "size"])
    return {key: (int(row["sum"]), int(row["size"])) for key, row in count.iterrows() if row["sum"]}  # type: ignore[misc]


@dataclass(frozen=True)
class MeanAndSd:
    mean: str
    sd: str


@dataclass(frozen=True)
class MetricRow:
    """A metric of a slice, a value a model."""

    label: str
    values: list[MeanAndSd]


@dataclass(frozen=True)
class SliceTable:
    """A slice's metrics; `form` says what its values are means of."""

    name: str
    form: str
    models: list[str]
    rows: list[MetricRow]


def slices(cells: pd.DataFrame, runs: pd.DataFrame) -> Section[list[SliceTable]]:
    """Every slice's summary: tables of a row a metric and a column a model. runs: tables.summaries(cells)."""
    error, graded = tables.error_metric(cells), tables.graded_slices(cells)
    numbers = _slice_numbers(cells, runs, graded)
    models = list(runs["model"].unique())
    slice_tables = []
    for name in runs["slice"].unique():
        metrics = [m for m in runs.loc[runs["slice"] == name, "metric"].unique() if m != "corr_undefined"]
        rows = [_slice_row(numbers, models, name, m, "area", m) for m in metrics]
        if name in graded and error:
            rows[1:1] = [
                _slice_row(numbers, models, name, error, "area09", f"{error}, mean over severities 0 to 0.9"),
                _slice_row(numbers, models, name, error, "worst", f"{error}, worst cell"),
            ]
        form = "Area over severity" if name in graded else FORMS.get(name, "Over all rows")
        slice_tables.append(SliceTable(name, form, models, rows))
    return Section(slice_tables, numbers)


def _slice_numbers(cells: pd.DataFrame, runs: pd.DataFrame, graded: list[str]) -> Numbers:
    """Every statistic of every run and over seeds, and the graded slices' CURVES at each severity."""
    numbers: Numbers = {}
    for row in runs.itertuples(index=False):
        for statistic in tables.STATISTICS:
            numbers[f"{row.model}.{row.slice}.{row.metric}.{statistic}.seed{row.seed}"] = plain(getattr(row, statistic))
    for statistic in tables.STATISTICS:
        for row in tables.over_seeds(runs, ["model", "slice", "metric"], statistic).itertuples(index=False):
            name = f"{row.model}.{row.slice}.{row.metric}.{statistic}"
            numbers |= {f"{name}.mean": plain(row.mean), f"{name}.sd": plain(row.sd)}
    for name in graded:
        of_slice = cells[(cells["slice"] == name) & cells["metric"].isin(CURVES)]
        per_seed = of_slice.groupby(["model", "seed", "severity", "metric"], sort=False)["value"].mean().reset_index()
        for row in tables.over_seeds(per_seed, ["model", "severity", "metric"], "value").itertuples(index=False):
            at = tables.severity_key(row.severity)  # type: ignore[arg-type]
            numbers[f"{row.model}.{name}.{row.metric}.{at}.mean"] = plain(row.mean)
    return numbers


def _slice_row(numbers: Numbers, models: list[str], name: str, metric: str, statistic: str, label: str) -> MetricRow:
    values = []
    for model in models:
        mean, sd = (numbers.get(f"{model}.{name}.{metric}.{statistic}.{end}") for end in ("mean", "sd"))
        values.append(MeanAndSd(number(_nan(mean), metric), spread(_nan(sd), metric)))
    return MetricRow(label, values)


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value


@dataclass(frozen=True)
class TrainingRow:
    """A run: its validation value, the epoch that was kept and how many there were, empty where not known."""

    model: str
    seed: Seed
    selection: str
    best: int | str
    epochs: int | str


def training(results: Results) -> Section[list[TrainingRow]]:
    """Per run: the epoch that was chosen, of how many, and the validation value that chose it."""
    rows = []
    numbers: Numbers = {}
    for run in results.runs:
        selection, best = run.config.get("selection"), run.config.get("best_epoch")
        values = {"selection": selection, "best_epoch": best, "epochs": len(run.epochs)}
        numbers |= {f"{run.model}.training.{name}.seed{run.seed}": value for name, value in values.items()}
        rows.append(
            TrainingRow(
                run.model,
                run.seed,
                selection=number(_nan(selection), "mae"),
                best="" if best is None else best,
                epochs=len(run.epochs) or "",
            )
        )
    return Section(rows, numbers)


SEARCHED = {  # plots of a study
    "history": "Each trial's validation error, and the best so far",
    "importances": "How much of the difference between good and other trials each parameter explains (PED-ANOVA)",
    "slice": "Each trial's validation error against what it tried; dark trials are late ones",
}


def search(tuned: Path | None) -> Section[Figures]:
    """Optuna's plots of the search whose results lie in artifacts/tune; no figure where there was none."""
    if tuned is None or not (tuned / "trials.csv").is_file():
        return Section(Figures("Search", "", [], small=False), {})
    trials = pd.read_csv(tuned / "trials.csv")
    ended = trials["state"].value_counts()
    complete, pruned = (int(ended.get(state, 0)) for state in ("COMPLETE", "PRUNED"))
    best = plain(trials.loc[trials["state"] == "COMPLETE", "value"].min())
    text = (
        f"{complete} trials ran to their end and {pruned} were pruned; "
        f"the best has a validation error of {number(_nan(best), 'mae')}. "
        "What it tried is in best_params.yaml, which nothing above was trained with until somebody accepts it."
    )
    drawn = {name: tuned / "plots" / f"{name}.svg" for name in SEARCHED}
    images = [
        Image(plots.svg_uri(path.read_bytes()), SEARCHED[name], f"{SEARCHED[name]}.")
        for name, path in drawn.items()
        if path.is_file()
    ]
    numbers: Numbers = {
        "tune.trials.complete": complete,
        "tune.trials.pruned": pruned,
        "tune.selection.best": best,
    }
    return Section(Figures("Search", text, images, small=False), numbers)


@dataclass(frozen=True)
class Reference:
    """A second-hand figure of the paper beside ours."""

    what: str
    paper: str
    best_other: str
    ours: str


def references(measured: Numbers) -> Section[list[Reference]]:
    """The paper's second-hand figures, and ours on this corpus where the same cell is in `measured`.

    measured: the numbers of `slices`.
    """
    rows = []
    numbers: Numbers = {"reference.paper.mosi.without_quality_gate.mae": WITHOUT_QUALITY_GATE}
    for name, what, slice_, severity, metric, paper, best_other in REFERENCES:
        numbers |= {f"reference.paper.mosi.{name}": paper, f"reference.paper.mosi.{name}.best_other": best_other}
        at = "clean" if slice_ == "clean" else tables.severity_key(severity)
        ours = measured.get(f"{COMPARED[0]}.{slice_}.{metric}.{at}.mean")
        rows.append(Reference(what, number(paper, metric), number(best_other, metric), number(_nan(ours), metric)))
    return Section(rows, numbers)


@dataclass(frozen=True)
class SourceRow:
    """A source of the test split with its error, a value a model."""

    source: str
    clips: int
    values: list[str]


@dataclass(frozen=True)
class Sources:
    models: list[str]
    rows: list[SourceRow]


def sources(results: Results) -> Section[Sources]:
    """The sources on which the first of COMPARED errs most in slice mixed, the second beside it."""
    models = [m for m in COMPARED if m in results.models] or results.models[-1:]
    errors = {}
    for model in models:
        if "mixed" in results.slices_of(model) and tables.error_metric(results.cells) == "mae":
            errors[model] = tables.error_by_source(results.compared(model, "mixed")).set_index("source")
    if not errors:
        return Section(Sources([], []), {})
    rows = []
    numbers: Numbers = {}
    hardest = next(iter(errors.values())).iloc[:HARDEST]
    for source, clips in hardest["clips"].items():
        maes = {model: by_source["mae"].get(source, float("nan")) for model, by_source in errors.items()}
        numbers |= {f"{model}.mixed.mae.source.{source}.mean": plain(mae) for model, mae in maes.items()}
        rows.append(SourceRow(str(source), int(clips), [number(mae, "mae") for mae in maes.values()]))
    return Section(Sources(list(errors), rows), numbers)


def notes(results: Results) -> list[str]:
    """What a reader must know before quoting a number."""
    lines = []
    not_rescaled: dict[str, list[str]] = {}
    for run in results.runs:
        for modality, block in (run.config.get("trust") or {}).items():
            if isinstance(block, dict) and block.get("rescaled") is False:
                not_rescaled.setdefault(f"{run.model}, {modality}", []).append(str(run.seed))
    for which, seeds in not_rescaled.items():
        lines.append(
            f"Trust is r itself, not rescaled ({which}, seed {', '.join(seeds)}): on validation the median r of "
            "fully degraded clips was not below that of clean ones."
        )
    for (model, name), (undefined, of) in _undefined(results.cells).items():
        lines.append(
            f"Corr is undefined, because every prediction is the same, and counted as 0: {model}, slice {name}, "
            f"{undefined} of {of} cells."
        )
    single = [m for m in results.models if sum(run.model == m for run in results.runs) == 1]
    if single:
        lines.append(f"One training seed, so no SD: {', '.join(single)}.")
    lacking = [m for m in tables.MODALITIES if not any(results.has(model, f"severity_{m}") for model in results.models)]
    if lacking:
        lines.append(f"This corpus has no {' and no '.join(lacking)}: such lines are empty.")
    return lines
