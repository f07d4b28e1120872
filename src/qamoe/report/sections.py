"""Build the sections of the page that consist of text and tables."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from qamoe.config.task import is_classification, is_multilabel
from qamoe.report import plots, tables
from qamoe.report.comparisons import COMPARED
from qamoe.report.results import Results, Seed
from qamoe.report.section import Figures, Image, Numbers, Section
from qamoe.report.tables import number, plain, spread

FORMS = {
    "alone": "Mean of the areas over severity",
    "held_out": "Mean of the areas over severity",
    "signals": "Mean of the areas over severity",
    "harmless": "Mean of the areas over severity",
    "joint": "Mean over cells",
    "landscape": "Volume over λ and η",
    "swap": "Mean over cells",
    "subsets": "Mean over the announced cells",
}
CURVES = ("mae", "corr", "acc7", "acc2_non0", "accuracy")  # metrics whose value per severity is in summary.json
HARDEST = 10  # number of sources that the page lists

# Second-hand and unverified: name, label, slice, severity, metric, value of the paper, best other value in the paper.
REFERENCES = (
    ("acc7", "Acc-7, clean", "clean", 0.0, "acc7", 0.536, 0.469),
    ("noise.acc2.s07", "Acc-2, noise λ = 0.7", "noise", 0.7, "acc2_non0", 0.877, 0.873),
    ("missing.acc7.s07", "Acc-7, 70 % missing", "missing", 0.7, "acc7", 0.305, 0.264),
)
WITHOUT_QUALITY_GATE = 0.359  # MAE added by removing the quality gate; second-hand as well


@dataclass(frozen=True)
class About:
    """The head of the page: test split, models and task. data: the first characters of the data digest."""

    clips: int
    sources: int
    models: str
    target: str
    modalities: str
    generated: bool
    data: str


def about(results: Results) -> Section[About]:
    """Describe the test split, the models and the task."""
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
    if is_multilabel(task):
        target = f"any number of the labels {', '.join(task['classes'])}"
    elif not is_classification(task):
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
    """A value of the headline: mean and SD over seeds, formatted for the page."""

    label: str
    mean: str
    sd: str
    undefined: bool  # a correlation of constant predictions


@dataclass(frozen=True)
class HeadlineRow:
    model: str
    values: list[Measured]


@dataclass(frozen=True)
class Headline:
    columns: list[str]
    rows: list[HeadlineRow]
    undefined: bool  # whether any value is undefined


def headline(headline: pd.DataFrame, cells: pd.DataFrame) -> Headline:
    """Format tables.headline for the page; `slices` gives its numbers to summary.json."""
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
    """Return (model, slice) -> number of cells with constant predictions in any seed or draw, and number of cells."""
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
    """A metric of a slice, one value per model."""

    label: str
    values: list[MeanAndSd]


@dataclass(frozen=True)
class SliceTable:
    """The metrics of a slice; `form` says how its values are averaged."""

    name: str
    form: str
    models: list[str]
    rows: list[MetricRow]


def slices(cells: pd.DataFrame, runs: pd.DataFrame) -> Section[list[SliceTable]]:
    """Return one table per slice: one row per metric, one column per model. runs: tables.summaries(cells)."""
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
    """Return every statistic per run and over seeds, and the metrics CURVES of graded slices at each severity."""
    numbers: Numbers = {}
    for row in runs.itertuples(index=False):
        for statistic in tables.STATISTICS:
            numbers[f"{row.model}.{row.slice}.{row.metric}.{statistic}.seed{row.seed}"] = plain(getattr(row, statistic))
    for statistic in tables.STATISTICS:
        for row in tables.over_seeds(runs, ["model", "slice", "metric"], statistic).itertuples(index=False):
            name = f"{row.model}.{row.slice}.{row.metric}.{statistic}"
            numbers |= {f"{name}.mean": plain(row.mean), f"{name}.sd": plain(row.sd)}
    for name in graded:
        slice_cells = cells[(cells["slice"] == name) & cells["metric"].isin(CURVES)]
        per_seed = (
            slice_cells.groupby(["model", "seed", "severity", "metric"], sort=False)["value"].mean().reset_index()
        )
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
    """A run: its validation value, the selected epoch and the number of epochs; empty if not known."""

    model: str
    seed: Seed
    selection: str
    best: int | str
    epochs: int | str


def training(results: Results) -> Section[list[TrainingRow]]:
    """Return per run the selected epoch, the number of epochs, and the validation value of the selected epoch."""
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


SEARCH_PLOTS = {  # name of the plot -> caption
    "history": "Validation error of each trial, and the best so far",
    "importances": "Importance of each parameter for reaching a good validation error (PED-ANOVA)",
    "slice": "Validation error of each trial against each parameter; darker trials are later",
    "front": "Complete trials by their objectives; filled and numbered: the Pareto front",
}


def search(tuned: Path | None) -> Section[Figures]:
    """Return plots of the search in artifacts/tune, and its Pareto front if it had several objectives.

    Without a search there is no figure.
    """
    if tuned is None or not (tuned / "trials.csv").is_file():
        return Section(Figures("Search", "", [], small=False), {})
    trials = pd.read_csv(tuned / "trials.csv")
    ended = trials["state"].value_counts()
    complete, pruned = (int(ended.get(state, 0)) for state in ("COMPLETE", "PRUNED"))
    best = plain(trials.loc[trials["state"] == "COMPLETE", "value"].min())
    text = (
        f"Completed trials: {complete}; pruned trials: {pruned}; lowest validation error: {number(_nan(best), 'mae')}. "
        "best_params.yaml holds the parameters of the best trial. Training uses them after qamoe accept-tuned."
    )
    plot_files = {name: tuned / "plots" / f"{name}.svg" for name in SEARCH_PLOTS}
    images = [
        Image(plots.svg_uri(path.read_bytes()), SEARCH_PLOTS[name], f"{SEARCH_PLOTS[name]}.")
        for name, path in plot_files.items()
        if path.is_file()
    ]
    numbers: Numbers = {
        "tune.trials.complete": complete,
        "tune.trials.pruned": pruned,
        "tune.selection.best": best,
    }
    columns: list[str] = []
    rows: list[list[str]] = []
    if "front" in trials:
        front = trials[trials["front"]].sort_values("value", ignore_index=True)
        shown = front.drop(columns=["state", "front"]).rename(columns={"number": "trial", "value": "error"})
        columns = [str(name) for name in shown.columns]
        rows = [[_cell(value) for value in row] for row in shown.itertuples(index=False)]
        numbers["tune.trials.front"] = len(front)
        text += f" Pareto front: {len(front)} trials that no other trial beats in every objective; the table has them."
    return Section(Figures("Search", text, images, small=False, columns=columns, rows=rows), numbers)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Reference:
    """A second-hand number of the paper, and our number for the same cell."""

    what: str
    paper: str
    best_other: str
    ours: str


def references(measured: Numbers) -> Section[list[Reference]]:
    """Return the second-hand numbers of the paper, and ours on this corpus if the same cell was evaluated.

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
    """A source of the test split with its error, one value per model."""

    source: str
    clips: int
    values: list[str]


@dataclass(frozen=True)
class Sources:
    models: list[str]
    rows: list[SourceRow]


def sources(results: Results) -> Section[Sources]:
    """Return the sources with the highest MAE of COMPARED[0] on slice mixed, with the MAE of COMPARED[1] next to it."""
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
    """Return the caveats that apply to the numbers of the page."""
    lines = []
    not_rescaled: dict[str, list[str]] = {}
    for run in results.runs:
        for modality, block in (run.config.get("trust") or {}).items():
            if isinstance(block, dict) and block.get("rescaled") is False:
                not_rescaled.setdefault(f"{run.model}, {modality}", []).append(str(run.seed))
    for model_and_modality, seeds in not_rescaled.items():
        lines.append(
            f"Trust equals r, without rescaling ({model_and_modality}, seed {', '.join(seeds)}): on validation, the "
            "median r of fully degraded clips was not below that of clean clips."
        )
    for (model, name), (undefined, total) in _undefined(results.cells).items():
        lines.append(
            f"Corr of constant predictions is undefined and counted as 0: {model}, slice {name}, "
            f"{undefined} of {total} cells."
        )
    single = [m for m in results.models if sum(run.model == m for run in results.runs) == 1]
    if single:
        lines.append(f"No SD, because of a single training seed: {', '.join(single)}.")
    absent = [m for m in tables.MODALITIES if not any(results.has(model, f"severity_{m}") for model in results.models)]
    if absent:
        lines.append(f"Modalities that this corpus does not have: {', '.join(absent)}. Their rows are empty.")
    return lines
