"""What the page says in words and tables, section by section.

Each function takes the results, returns what the template prints, and puts every number that it shows into the
flat summary, rounded nowhere.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from qamoe.report import plots, tables
from qamoe.report.comparisons import COMPARED, Summary
from qamoe.report.results import Results
from qamoe.report.tables import number, plain, spread

FORMS = {
    "alone": "Mean of the areas over severity",
    "held_out": "Mean of the areas over severity",
    "signals": "Mean of the areas over severity",
    "joint": "Mean over cells",
    "swap": "Mean over cells",
    "subsets": "Mean over the announced cells",
}
CURVES = ("mae", "corr", "acc7", "acc2_non0", "accuracy")  # whose values at each severity go into the summary
HARDEST = 10  # sources that the page lists

# Second-hand and unverified: name, what, slice, severity, metric, the paper's figure, the paper's best other.
REFERENCES = (
    ("acc7", "Acc-7, clean", "clean", 0.0, "acc7", 0.536, 0.469),
    ("noise.acc2.s07", "Acc-2, noise λ = 0.7", "noise", 0.7, "acc2_non0", 0.877, 0.873),
    ("missing.acc7.s07", "Acc-7, 70 % missing", "missing", 0.7, "acc7", 0.305, 0.264),
)
WITHOUT_QUALITY_GATE = 0.359  # MAE added by leaving the quality gate out, likewise second-hand


def about(results: Results, summary: Summary) -> dict[str, Any]:
    model = results.models[0]
    first = results.predictions(model, results.slices_of(model)[0])
    summary["test.clips"] = int(first["clip_id"].nunique())
    summary["test.sources"] = int(first["source"].nunique())
    config = results.runs[-1]["config"]
    models = []
    for model in results.models:
        seeds = sum(run["model"] == model for run in results.runs)
        if not model.startswith("specialist-"):
            models.append(f"{model} × {seeds}")
        summary[f"{model}.seeds"] = seeds
    specialists = sum(model.startswith("specialist-") for model in results.models)
    if specialists:
        models.append("one specialist" if specialists == 1 else f"{specialists} specialists")
    task = config.get("task") or {}
    target = f"a class ({', '.join(task.get('classes') or ())})"
    if task.get("kind") == "regression":
        target = f"a number from {task['low']:g} to {task['high']:g}".replace("-", "−")
    return {
        "clips": summary["test.clips"],
        "sources": summary["test.sources"],
        "models": ", ".join(models),
        "target": target,
        "modalities": ", ".join(config.get("modalities") or tables.modalities_of(first, "severity")),
        "generated": bool(config.get("trained_on_generated")),
        "data": str((config.get("digests") or {}).get("data", ""))[:12],
    }


def headline(headline: pd.DataFrame, cells: pd.DataFrame) -> dict[str, Any]:
    columns = tables.columns_of(cells)
    undefined = set(_undefined(cells))
    rows = []
    for _, row in headline.iterrows():
        values = [
            {
                "label": column.label,
                "mean": number(row[column.name], column.metric),
                "sd": spread(row[f"{column.name}.sd"], column.metric),
                "undefined": column.metric == "corr" and (row["model"], column.slice) in undefined,
            }
            for column in columns
        ]
        rows.append({"model": row["model"], "seeds": row["seeds"], "values": values})
    shown = any(value["undefined"] for row in rows for value in row["values"])
    return {"columns": [column.label for column in columns], "rows": rows, "undefined": shown}


def _undefined(cells: pd.DataFrame) -> dict[tuple[str, str], tuple[int, int]]:
    """(model, slice) -> how many of its cells had a constant prediction in any seed or draw, of how many."""
    flags = cells[cells["metric"] == "corr_undefined"]
    worst = flags.groupby(["model", "slice", "cell"], sort=False)["value"].max() > 0
    count = worst.groupby(["model", "slice"], sort=False).agg(["sum", "size"])
    return {key: (int(row["sum"]), int(row["size"])) for key, row in count.iterrows() if row["sum"]}  # type: ignore[misc]


def slices(cells: pd.DataFrame, runs: pd.DataFrame, summary: Summary) -> list[dict[str, Any]]:
    """Every slice's summary: into the summary file, and as tables of a row a metric, a column a model."""
    for row in runs.itertuples(index=False):
        for statistic in tables.STATISTICS:
            summary[f"{row.model}.{row.slice}.{row.metric}.{statistic}.seed{row.seed}"] = plain(getattr(row, statistic))
    for statistic in tables.STATISTICS:
        for row in tables.over_seeds(runs, ["model", "slice", "metric"], statistic).itertuples(index=False):
            name = f"{row.model}.{row.slice}.{row.metric}.{statistic}"
            summary |= {f"{name}.mean": plain(row.mean), f"{name}.sd": plain(row.sd)}
    error, graded = tables.error_metric(cells), tables.graded_slices(cells)
    for name in graded:
        own = cells[(cells["slice"] == name) & cells["metric"].isin(CURVES)]
        per_seed = own.groupby(["model", "seed", "severity", "metric"], sort=False)["value"].mean().reset_index()
        for row in tables.over_seeds(per_seed, ["model", "severity", "metric"], "value").itertuples(index=False):
            at = tables.severity_key(row.severity)  # type: ignore[arg-type]
            summary[f"{row.model}.{name}.{row.metric}.{at}.mean"] = plain(row.mean)
    models = list(runs["model"].unique())
    made = []
    for name in runs["slice"].unique():
        of_slice = [m for m in runs.loc[runs["slice"] == name, "metric"].unique() if m != "corr_undefined"]
        rows = [_slice_row(summary, models, name, m, "area", m) for m in of_slice]
        if name in graded and error:
            rows[1:1] = [
                _slice_row(summary, models, name, error, "area09", f"{error}, mean over severities 0 to 0.9"),
                _slice_row(summary, models, name, error, "worst", f"{error}, worst cell"),
            ]
        form = "Area over severity" if name in graded else FORMS.get(name, "Over all rows")
        made.append({"name": name, "form": form, "models": models, "rows": rows})
    return made


def _slice_row(
    summary: Summary, models: list[str], name: str, metric: str, statistic: str, label: str
) -> dict[str, Any]:
    values = []
    for model in models:
        mean, sd = (summary.get(f"{model}.{name}.{metric}.{statistic}.{end}") for end in ("mean", "sd"))
        values.append({"mean": number(_nan(mean), metric), "sd": spread(_nan(sd), metric)})
    return {"label": label, "values": values}


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value


def training(results: Results, summary: Summary) -> list[dict[str, Any]]:
    """Per run: the epoch that was chosen, of how many, and the validation value that chose it."""
    rows = []
    for run in results.runs:
        config, epochs = run["config"], run["epochs"]
        selection, best = config.get("selection"), config.get("best_epoch")
        values = {"selection": selection, "best_epoch": best, "epochs": len(epochs)}
        summary |= {f"{run['model']}.training.{name}.seed{run['seed']}": value for name, value in values.items()}
        rows.append(
            {
                "model": run["model"],
                "seed": run["seed"],
                "selection": number(_nan(selection), "mae"),
                "best": "" if best is None else best,
                "epochs": len(epochs) or "",
            }
        )
    return rows


SEARCHED = {  # plots of a study
    "history": "Each trial's validation error, and the best so far",
    "importances": "How much of the difference between good and other trials each parameter explains (PED-ANOVA)",
    "slice": "Each trial's validation error against what it tried; dark trials are late ones",
}


def search(tuned: Path | None, summary: Summary) -> dict[str, Any]:
    """Optuna's plots of the search whose results lie in artifacts/tune; no figure where there was none."""
    about: dict[str, Any] = {"title": "Search", "text": "", "figures": [], "small": False}
    if tuned is None or not (tuned / "trials.csv").is_file():
        return about
    trials = pd.read_csv(tuned / "trials.csv")
    ended = trials["state"].value_counts()
    summary["tune.trials.complete"], summary["tune.trials.pruned"] = (
        int(ended.get(state, 0)) for state in ("COMPLETE", "PRUNED")
    )
    summary["tune.selection.best"] = plain(trials.loc[trials["state"] == "COMPLETE", "value"].min())
    about["text"] = (
        f"{summary['tune.trials.complete']} trials ran to their end and {summary['tune.trials.pruned']} were pruned; "
        f"the best has a validation error of {number(_nan(summary['tune.selection.best']), 'mae')}. "
        "What it tried is in best_params.yaml, which nothing above was trained with until somebody accepts it."
    )
    drawn = {name: tuned / "plots" / f"{name}.svg" for name in SEARCHED}
    about["figures"] = [
        {"uri": plots.svg_uri(path.read_bytes()), "alt": SEARCHED[name], "caption": f"{SEARCHED[name]}."}
        for name, path in drawn.items()
        if path.is_file()
    ]
    return about


def references(cells: pd.DataFrame, summary: Summary) -> list[dict[str, str]]:
    """The paper's second-hand figures, and ours on this corpus where we measured the same cell."""
    rows = []
    for name, what, slice_, severity, metric, paper, best_other in REFERENCES:
        summary |= {f"reference.paper.mosi.{name}": paper, f"reference.paper.mosi.{name}.best_other": best_other}
        if slice_ == "clean":
            ours = summary.get(f"{COMPARED[0]}.clean.{metric}.clean.mean")
        else:
            ours = summary.get(f"{COMPARED[0]}.{slice_}.{metric}.{tables.severity_key(severity)}.mean")
        rows.append(
            {
                "what": what,
                "paper": number(paper, metric),
                "best_other": number(best_other, metric),
                "ours": number(_nan(ours), metric),
            }
        )
    summary["reference.paper.mosi.without_quality_gate.mae"] = WITHOUT_QUALITY_GATE
    return rows


def sources(results: Results, summary: Summary) -> dict[str, Any]:
    """The sources on which the first of COMPARED errs most in slice mixed, the second beside it."""
    shown = [m for m in COMPARED if m in results.models] or results.models[-1:]
    errors = {}
    for model in shown:
        if "mixed" in results.slices_of(model) and tables.error_metric(results.cells) == "mae":
            errors[model] = tables.error_by_source(results.compared(model, "mixed")).set_index("source")
    rows = []
    for source in list(next(iter(errors.values())).index[:HARDEST]) if errors else []:
        values = []
        for model, found in errors.items():
            mae = found["mae"].get(source, float("nan"))
            summary[f"{model}.mixed.mae.source.{source}.mean"] = plain(mae)
            values.append(number(mae, "mae"))
        rows.append(
            {"source": source, "clips": int(next(iter(errors.values())).loc[source, "clips"]), "values": values}
        )
    return {"models": list(errors), "rows": rows}


def notes(results: Results) -> list[str]:
    """What a reader must know before quoting a number."""
    said = []
    fallen: dict[str, list[str]] = {}
    for run in results.runs:
        for modality, block in (run["config"].get("trust") or {}).items():
            if isinstance(block, dict) and block.get("rescaled") is False:
                fallen.setdefault(f"{run['model']}, {modality}", []).append(str(run["seed"]))
    for which, seeds in fallen.items():
        said.append(
            f"Trust is r itself, not rescaled ({which}, seed {', '.join(seeds)}): on validation the median r of "
            "fully degraded clips was not below that of clean ones."
        )
    for (model, name), (some, of) in _undefined(results.cells).items():
        said.append(
            f"Corr is undefined, because every prediction is the same, and counted as 0: {model}, slice {name}, "
            f"{some} of {of} cells."
        )
    single = [m for m in results.models if sum(run["model"] == m for run in results.runs) == 1]
    if single:
        said.append(f"One training seed, so no SD: {', '.join(single)}.")
    lacking = [m for m in tables.MODALITIES if not any(results.has(model, f"severity_{m}") for model in results.models)]
    if lacking:
        said.append(f"This corpus has no {' and no '.join(lacking)}: such lines are empty.")
    return said
