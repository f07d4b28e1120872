"""The landscape of the spectrum: error over the paper's lambda (noise) and eta (lost modalities), for one checkpoint.

The paper's own figure 3 (second-hand: a digest of it) is Acc-7 over the same two axes with contour lines.
"""

from typing import TYPE_CHECKING, Any

import pandas as pd

from qamoe.config.params import LANDSCAPE
from qamoe.report import plots, tables
from qamoe.report.results import Results
from qamoe.report.section import Figures, Image, Numbers, Section
from qamoe.report.tables import number, plain, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = ("mae", "acc7", "accuracy")
SHOWN = ("paper", "qamoe", "concat")  # models in the figure


def grids(cells: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """Return (model, metric) -> means over draws and seeds, a row for each lambda and a column for each eta."""
    of_slice = cells[(cells["slice"] == LANDSCAPE) & cells["metric"].isin(METRICS)]
    return {
        (str(model), str(metric)): rows.pivot_table("value", "severity_noise", "severity_missing")
        for (model, metric), rows in of_slice.groupby(["model", "metric"], sort=False)
    }


def content(cells: pd.DataFrame) -> dict[str, Any] | None:
    """Return the key `landscape` of summary.json: levels, and by model and metric the grid and the volume under it.

    `grid[i][j]` is the mean over draws and seeds at the i-th lambda and the j-th eta. `volume` is the mean over the
    square of the levels by the trapezoid rule, in the unit of the metric. None without the slice.
    """
    of_slice = cells[cells["slice"] == LANDSCAPE]
    if of_slice.empty:
        return None
    volumes = tables.summaries(of_slice).groupby(["model", "metric"])["area"].mean()
    by_model: dict[str, Any] = {}
    for (model, metric), grid in grids(cells).items():
        by_model.setdefault(model, {})[metric] = {
            "grid": grid.to_numpy().tolist(),
            "volume": plain(volumes[model, metric]),
        }
    levels = {axis: sorted(of_slice[f"severity_{axis}"].unique().tolist()) for axis in ("noise", "missing")}
    return {**levels, "models": by_model}


def figure(results: Results) -> "Figure | None":
    """Draw the grids of the models in SHOWN, or of all if there is none, on one scale; None without the slice."""
    by_name = grids(results.cells)
    models = list(dict.fromkeys(model for model, _ in by_name))
    models = [model for model in SHOWN if model in models] or models
    metrics = [metric for metric in METRICS if any((model, metric) in by_name for model in models)]
    if not by_name:
        return None
    return plots.landscape({key: by_name[key] for key in ((model, m) for m in metrics for model in models)})


def section(results: Results) -> Section[Figures]:
    """Draw the landscape, and list the volume under it for every model."""
    drawn = figure(results)
    if drawn is None:
        return Section(Figures("Landscape", "", [], small=False), {})
    volumes = tables.summaries(results.cells[results.cells["slice"] == LANDSCAPE])
    metrics = [metric for metric in METRICS if metric in set(volumes["metric"])]
    rows = []
    numbers: Numbers = {}
    for model, of_model in volumes.groupby("model", sort=False):
        by_metric = of_model[of_model["metric"].isin(metrics)].groupby("metric")["area"]
        mean, sd = by_metric.mean(), by_metric.std()
        rows.append([str(model), *(f"{number(mean[m], m)} {spread(sd[m], m)}".strip() for m in metrics)])
    text = (
        "Every modality has the paper's noise of strength λ (words become id 0 with probability λ), and each modality "
        "of a clip is lost as a whole with probability η. The volume is the mean over the square by the trapezoid "
        "rule, with its SD over training seeds."
    )
    image = Image(
        plots.data_uri(drawn),
        f"Error over noise and lost modalities, for {', '.join(SHOWN)}",
        "Mean over training seeds; lines of equal error. Panels of a row have one scale. From cells.parquet.",
    )
    columns = ["Model", *(f"{tables.METRIC_NAMES.get(m, m)}, volume" for m in metrics)]
    return Section(Figures("Landscape", text, [image], small=False, columns=columns, rows=rows), numbers)
