"""Draw the figures of the report; a model has the same colour and line style in every figure.

Every function returns a matplotlib Figure without a window or global state. Colours are those of Okabe and Ito,
which colour-blind readers can distinguish; line styles distinguish models in grey.
"""

import base64
import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from qamoe.report import tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LineStyle = tuple[str, Any]  # colour, line style
LINES: dict[str, LineStyle] = {
    "qamoe": ("#0072B2", "-"),
    "concat": ("#D55E00", (0, (5, 2))),
    "mean": ("#666666", (0, (1, 1.5))),
    "moe": ("#009E73", (0, (5, 1.5, 1, 1.5))),
    "oracle": ("#CC79A7", (0, (8, 2))),
}
MODALITIES = {"text": "#332288", "audio": "#CC6677", "vision": "#117733"}
OTHERS: tuple[LineStyle, ...] = (
    ("#882255", (0, (1, 1))),
    ("#A97B00", (0, (3, 1.5, 1, 1.5, 1, 1.5))),
    ("#56B4E9", (0, (2, 2))),
)
AXES = {
    "missing": "share of missing frames, η",
    "noise": "noise level, λ",
    "missing_features": "share of missing feature frames, η",
    "burst": "share of frames lost in one burst, s",
    "paper_noise": "noise, λ deviations",
    "additive": "added noise, share of 2 SD",
    "desync": "shift (s)",
}
METRIC_AXES = {"mae": "MAE (label units)", "accuracy": "accuracy", "corr": "Corr"}
STYLE: dict[str, Any] = {
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "svg.hashsalt": "qamoe",  # a fixed salt makes the SVG reproducible
}
PANEL = (4.5, 3.5)  # inches
SMALL = (4.2, 3.1)
TALL = (5.2, 4.7)


def line(model: str) -> LineStyle:
    """Return colour and line style of a model; models outside LINES get one of OTHERS by a hash of their name."""
    return LINES.get(model) or OTHERS[zlib.crc32(model.encode()) % len(OTHERS)]


def severity_axis(name: str) -> str:
    return AXES.get(name, f"severity of {name}")


@contextmanager
def _styled() -> Iterator[None]:
    """Apply STYLE within a with block, without a global change."""
    import matplotlib

    with matplotlib.rc_context(cast(Any, STYLE)):
        yield


def _figure(size: tuple[float, float], columns: int = 1, **options: Any) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] * columns, size[1]), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, **options)[0]
    return figure, list(axes)


def training_curves(epochs: pd.DataFrame) -> "Figure":
    """Draw the error on the selection cells after each epoch. epochs: model, seed, epoch, error."""
    with _styled():
        figure, (ax,) = _figure((7.0, 3.8))
        for model in sorted(epochs["model"].unique(), key=tables.model_order):
            points = epochs[epochs["model"] == model]
            if points["epoch"].nunique() > 1:  # the mean label is not trained
                _curves(ax, model, points, "error", "epoch")
        ax.set(title="Error during training", xlabel="epoch", ylabel="validation error")
        ax.legend(loc="best")
    return figure


def reliability_curves(r: pd.DataFrame) -> "Figure":
    """Draw the medians of r along the spectrum. r: slice, modality, severity, median."""
    with _styled():
        figure, (ax,) = _figure(PANEL)
        _reliability(ax, r)
    return figure


def _curves(ax: "Axes", model: str, points: pd.DataFrame, value: str, along: str = "severity") -> None:
    """Draw seeds as thin lines and their mean, where all of them have a point, as a thick one.

    points: seed, `along`, `value`, and bin if the severities of the seeds differ.
    """
    colour, style = line(model)
    seeds = points["seed"].unique()
    if len(seeds) > 1:
        for seed in seeds:
            curve = points[points["seed"] == seed]
            ax.plot(curve[along], curve[value], color=colour, linestyle=style, linewidth=0.8, alpha=0.45)
    key = "bin" if "bin" in points else along
    groups = points.groupby(key)
    mean = groups[[along, value]].mean()
    if key == along:
        mean = mean[groups["seed"].nunique() == len(seeds)]
    ax.plot(mean[along], mean[value], color=colour, linestyle=style, linewidth=2.4, label=model)


def spectrum_curve(
    cells_by_model: dict[str, pd.DataFrame],
    slices: Sequence[str] | None = None,
    metric: str | None = None,
    title: str | None = None,
    kind: str | None = None,
) -> "Figure":
    """Draw the error of each model against severity, one panel per slice.

    cells_by_model: rows of cells.parquet by model, with a column `seed` if they hold several training seeds.
    slices: every graded slice by default. metric: mae by default, accuracy for classes. title, kind: the name of the
    slice by default.
    """
    cells = pd.concat(
        [cells.assign(model=model, seed=cells.get("seed", 0)) for model, cells in cells_by_model.items()],
        ignore_index=True,
    )
    metric = metric or tables.error_metric(cells) or str(cells["metric"].iloc[0])
    slices = list(slices or tables.graded_slices(cells))
    with _styled():
        figure, panels = _figure(PANEL, columns=max(1, len(slices)), sharey=True)
        for ax, name in zip(panels, slices, strict=False):
            _errors(ax, cells[(cells["slice"] == name) & (cells["metric"] == metric)])
            ax.set(title=title or name, xlabel=severity_axis(kind or name), xlim=(0, 1))
        panels[0].set_ylabel(METRIC_AXES.get(metric, metric))
        panels[0].legend(loc="best")
    return figure


def _errors(ax: "Axes", cells: pd.DataFrame) -> None:
    """Draw one curve per model. cells: rows of one slice and metric, with columns model and seed."""
    for model in sorted(cells["model"].unique(), key=tables.model_order):
        points = cells[cells["model"] == model].groupby(["seed", "severity"])["value"].mean().reset_index()
        _curves(ax, model, points, "value")


def at_a_glance(cells: pd.DataFrame, r: pd.DataFrame, pairs: pd.DataFrame, metric: str, first: str) -> "Figure":
    """Draw the first figure of the report: errors on one slice, r on two, and `first` against other models.

    cells: rows of cells.parquet of one slice, with columns model and seed. r: slice, modality, severity, median; may
    be empty. pairs: against, slice, ratio, low, high, claimed; claimed marks are filled.
    """
    name = str(cells["slice"].iloc[0])
    with _styled():
        figure, panels = _figure(PANEL, columns=2 if r.empty else 3)
        _errors(panels[0], cells[cells["metric"] == metric])
        panels[0].set(title=f"Error, {name}", xlabel=severity_axis(name), xlim=(0, 1))
        panels[0].set_ylabel(METRIC_AXES.get(metric, metric))
        panels[0].legend(loc="best")
        if not r.empty:
            _reliability(panels[1], r)
        _forest(panels[-1], pairs)
        error = METRIC_AXES.get(metric, metric).split(" (")[0]
        panels[-1].set(title=f"{first} against others", xlabel=f"difference in {error} (%)")
    return figure


def _reliability(ax: "Axes", r: pd.DataFrame) -> None:
    """Draw the medians of r: one colour per modality, one line style per slice."""
    styles = dict(zip(r["slice"].unique(), ("-", (0, (4, 2))), strict=False))
    for (name, modality), medians in r.groupby(["slice", "modality"], sort=False):
        style = cast(Any, styles[name])
        ax.plot(medians["severity"], medians["median"], color=MODALITIES[str(modality)], linestyle=style, linewidth=2.0)
    for modality in r["modality"].unique():
        ax.plot([], [], color=MODALITIES[str(modality)], linewidth=2.0, label=str(modality))
    for name, style in styles.items():
        ax.plot([], [], color="#555555", linestyle=cast(Any, style), linewidth=2.0, label=str(name))
    ax.set(title="Reliability r, median over clips", xlabel="severity", xlim=(0, 1), ylim=(0, 1.02))
    ax.legend(loc="best")


def _forest(ax: "Axes", pairs: pd.DataFrame) -> None:
    """Draw ratios minus 1 in per cent with their intervals: one row per slice, one colour per model."""
    slices = list(pairs["slice"].unique())
    models = list(pairs["against"].unique())
    for number, model in enumerate(models):
        ratios = pairs[pairs["against"] == model]
        y = np.array([slices.index(name) for name in ratios["slice"]]) + 0.3 * (number - (len(models) - 1) / 2)
        colour = line(model)[0]
        low, middle, high = (100 * (ratios[column].to_numpy(float) - 1) for column in ("low", "ratio", "high"))
        ax.hlines(y, low, high, color=colour, linewidth=1.6)
        for x, at, claimed in zip(middle, y, ratios["claimed"], strict=True):
            ax.plot(x, at, "o", color=colour, markerfacecolor=colour if claimed else "white", markersize=5.5)
        ax.plot([], [], "o", color=colour, label=f"against {model}")
    ax.axvline(0, color="#555555", linewidth=1.0)
    ax.set_yticks(range(len(slices)), slices)
    ax.set_ylim(len(slices) + 0.9, -0.6)  # the first slice on top; space for the legend below the last
    ax.locator_params(axis="x", nbins=5)
    ax.legend(loc="lower center", ncols=2)


def mixed_curve(errors_by_model: dict[str, pd.DataFrame]) -> "Figure":
    """Draw the error on slice mixed against mean severity. errors_by_model: tables.error_by_mean_severity by model."""
    with _styled():
        figure, (ax,) = _figure(PANEL)
        for model in sorted(errors_by_model, key=tables.model_order):
            _curves(ax, model, errors_by_model[model], "mae")
        ax.set(
            title="mixed",
            xlabel="mean severity over the clip's modalities",
            ylabel=METRIC_AXES["mae"],
            xlim=(0, 1),
        )
        ax.legend(loc="best")
    return figure


def trust_curve(modality: str, name: str, trust: pd.DataFrame | None, r: pd.DataFrame | None) -> "Figure":
    """Draw trust in one modality and r against severity: median and 10-90 % band over clips.

    trust, r: tables.by_severity of slice `name`; None for a model without it.
    """
    lines = (("trust", trust, "#0072B2", "-", 0.20), ("reliability r", r, "#8A5A00", (0, (4, 2)), 0.13))
    with _styled():
        figure, (ax,) = _figure(SMALL)
        for label, points, colour, style, alpha in lines:
            if points is None or points.empty:
                continue
            ax.fill_between(points["severity"], points["low"], points["high"], color=colour, alpha=alpha, linewidth=0)
            ax.plot(
                points["severity"],
                points["median"],
                color=colour,
                linestyle=style,
                linewidth=2.2,
                label=label,
            )
        ax.set(
            title=f"{modality}, {name}",
            xlabel=severity_axis(name),
            ylabel="0 = none, 1 = full",
            xlim=(0, 1),
            ylim=(0, 1.02),
        )
        ax.legend(loc="best")
    return figure


def landscape(grids: dict[tuple[str, str], pd.DataFrame]) -> "Figure":
    """Draw each grid with contour lines, a row of panels for each metric and a column for each model.

    grids: (model, metric) -> values, a row for each lambda and a column for each eta. The panels of a row have one
    scale; dark is bad.
    """
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    # Up to a shade on which black numbers can be read.
    shades = ListedColormap(colormaps["Blues"](np.linspace(0.02, 0.62, 256)))
    models = list(dict.fromkeys(model for model, _ in grids))
    metrics = list(dict.fromkeys(metric for _, metric in grids))
    with _styled():
        figure = Figure(figsize=(3.3 * len(models) + 1.0, 2.9 * len(metrics) + 0.4), layout="constrained")
        panels = figure.subplots(len(metrics), len(models), squeeze=False, sharex=True, sharey=True)
        for row, metric in zip(panels, metrics, strict=True):
            of_metric = [grids[model, metric] for model in models]
            low, high = (limit([limit(grid.to_numpy()) for grid in of_metric]) for limit in (np.min, np.max))
            levels = MaxNLocator(9).tick_values(low, high if high > low else low + 1e-6)
            share = tables.is_share(metric)
            for ax, model, grid in zip(row, models, of_metric, strict=True):
                axes_and_values = (grid.index, grid.columns, grid.to_numpy().T)
                filled = ax.contourf(*axes_and_values, levels, cmap=shades.reversed() if share else shades)
                lines = ax.contour(*axes_and_values, levels, colors="#333333", linewidths=0.7)
                ax.clabel(lines, fontsize=7.5, fmt="{:.0%}".format if share else "{:.3g}".format)
                ax.set_title(f"{model}, {tables.METRIC_NAMES.get(metric, metric)}")
                ax.grid(False)
            figure.colorbar(filled, ax=list(row), format=PercentFormatter(1, decimals=0) if share else None)
        for ax in panels[-1]:
            ax.set_xlabel("noise, λ")
        for ax in panels[:, 0]:
            ax.set_ylabel("lost modalities, η")
    return figure


def _reference_line(ax: Any, value: float, name: str, on_the_right: bool) -> None:
    """Draw a dotted horizontal line with its name above one end."""
    ax.axhline(value, color="#555555", linewidth=1.0, linestyle=(0, (1, 1.5)))
    ax.annotate(
        name,
        (0.99 if on_the_right else 0.01, value),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right" if on_the_right else "left",
        fontsize=8.5,
        color="#444444",
    )


def coverage_curve(name: str, points: pd.DataFrame, level: float) -> "Figure":
    """Draw the coverage of the interval of `level` against severity on slice `name`.

    points: severity, value, low, high; low to high is the 95 % interval over sources.
    """
    from matplotlib.ticker import PercentFormatter

    with _styled():
        figure, (ax,) = _figure(SMALL)
        _reference_line(ax, level, "nominal", on_the_right=True)
        ax.fill_between(points["severity"], points["low"], points["high"], color="#0072B2", alpha=0.18, linewidth=0)
        ax.plot(points["severity"], points["value"], color="#0072B2", linewidth=2.2)
        ax.set(title=name, xlabel=severity_axis(name), ylabel="targets inside", xlim=(0, 1))
        ax.set_ylim(min(0.5, points["low"].min()), 1.005)
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def expert_usage(name: str, usage: pd.DataFrame, seed: int | str) -> "Figure":
    """Draw expert usage against severity on slice `name` for one training seed, and the entropy of every seed.

    Expert numbers of two seeds are not comparable, so shares are never averaged over seeds.
    usage: tables.usage_by_severity.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    experts = tables.experts_of(usage)
    seed_usage = usage[usage["seed"] == seed].sort_values("severity")
    with _styled():
        figure = Figure(figsize=TALL, layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2.2])
        for other_seed, points in sorted(usage.groupby("seed"), key=lambda pair: pair[0] == seed):
            chosen = other_seed == seed
            top.plot(
                points["severity"],
                points["entropy"],
                color="#0072B2" if chosen else "#888888",
                linewidth=2.2 if chosen else 0.9,
                label=f"seed {seed}" if chosen else None,
            )
        highest = np.log2(len(experts))
        top.set(title=name, ylabel="entropy (bits)", ylim=(0, highest * 1.35))
        _reference_line(top, highest, "uniform usage", on_the_right=False)
        edges = _edges(seed_usage["severity"].to_numpy())
        mesh = bottom.pcolormesh(
            edges,
            np.arange(len(experts) + 1) + 0.5,
            seed_usage[experts].to_numpy().T,
            cmap="Blues",
            vmin=0,
            edgecolors="white",
            linewidth=0.6,
        )
        bottom.grid(False)
        bottom.set(xlabel=severity_axis(name), ylabel=f"expert (seed {seed})", yticks=range(1, len(experts) + 1))
        bottom.invert_yaxis()
        figure.colorbar(mesh, ax=bottom, label="routing weight", format=PercentFormatter(1, decimals=0))
    return figure


def _edges(centres: np.ndarray) -> np.ndarray:
    """Return the edges of a heat map's columns from their centres."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[centres[0]], middle, [centres[-1]]])


def svg(figure: "Figure") -> bytes:
    """Return the figure as an SVG; the same figure gives the same bytes."""
    content = io.BytesIO()
    with _styled():
        figure.savefig(content, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return content.getvalue()


def data_uri(figure: "Figure") -> str:
    """Return the figure as an SVG in a data: URI, to embed in the page."""
    return svg_uri(svg(figure))


def svg_uri(content: bytes) -> str:
    """Return an SVG as a data: URI."""
    return "data:image/svg+xml;base64," + base64.b64encode(content).decode()
