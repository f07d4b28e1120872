"""Figures of the report: one message each, the same colour and line for the same model everywhere.

Every function returns a matplotlib Figure that belongs to no window and no global state. Colours are those of
Okabe and Ito, told apart by the colour-blind; line styles tell models apart in grey.
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

Line = tuple[str, Any]  # colour, line style
LINES: dict[str, Line] = {
    "qamoe": ("#0072B2", "-"),
    "concat": ("#D55E00", (0, (5, 2))),
    "mean": ("#666666", (0, (1, 1.5))),
    "moe": ("#009E73", (0, (5, 1.5, 1, 1.5))),
    "oracle": ("#CC79A7", (0, (8, 2))),
}
MODALITIES = {"text": "#332288", "audio": "#CC6677", "vision": "#117733"}
OTHERS: tuple[Line, ...] = (
    ("#882255", (0, (1, 1))),
    ("#A97B00", (0, (3, 1.5, 1, 1.5, 1, 1.5))),
    ("#56B4E9", (0, (2, 2))),
)
AXES = {
    "missing": "share of frames missing, η",
    "noise": "noise level, λ",
    "missing_features": "share of feature frames missing, η",
    "burst": "share of frames lost in one burst, s",
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
    "svg.hashsalt": "qamoe",  # the same figure is the same bytes
}
PANEL = (4.5, 3.5)  # inches
SMALL = (4.2, 3.1)
TALL = (5.2, 4.7)


def line(model: str) -> Line:
    """Colour and line style of a model; one without its own gets one by its name, the same in every figure."""
    return LINES.get(model) or OTHERS[zlib.crc32(model.encode()) % len(OTHERS)]


def severity_axis(name: str) -> str:
    return AXES.get(name, f"severity of {name}")


@contextmanager
def _styled() -> Iterator[None]:
    """The style of the house for what is made inside; nothing global changes."""
    import matplotlib

    with matplotlib.rc_context(cast(Any, STYLE)):
        yield


def _figure(size: tuple[float, float], columns: int = 1, **options: Any) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] * columns, size[1]), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, **options)[0]
    return figure, list(axes)


def _curves(ax: "Axes", model: str, points: pd.DataFrame, value: str) -> None:
    """Seeds as thin lines, their mean thick. points: seed, severity, value, and bin where severities differ."""
    colour, style = line(model)
    seeds = points["seed"].unique()
    if len(seeds) > 1:
        for seed in seeds:
            of_seed = points[points["seed"] == seed]
            ax.plot(of_seed["severity"], of_seed[value], color=colour, linestyle=style, linewidth=0.8, alpha=0.45)
    key = "bin" if "bin" in points else "severity"
    mean = points.groupby(key)[["severity", value]].mean() if key == "bin" else points.groupby(key)[[value]].mean()
    x = mean["severity"] if key == "bin" else mean.index
    ax.plot(x, mean[value], color=colour, linestyle=style, linewidth=2.4, label=model)


def spectrum_curve(
    cells_by_model: dict[str, pd.DataFrame],
    slices: Sequence[str] | None = None,
    metric: str | None = None,
    title: str | None = None,
    kind: str | None = None,
) -> "Figure":
    """How each model's error grows along the spectrum, a panel a slice.

    cells_by_model: rows of cells.parquet by model, with a column `seed` where they hold several training
    seeds. slices: by default every graded slice there is. metric: by default mae, or accuracy. title and kind: where
    they are not the slice's name.
    """
    together = pd.concat(
        [cells.assign(model=model, seed=cells.get("seed", 0)) for model, cells in cells_by_model.items()],
        ignore_index=True,
    )
    metric = metric or tables.error_metric(together) or str(together["metric"].iloc[0])
    slices = list(slices or tables.graded_slices(together))
    with _styled():
        figure, panels = _figure(PANEL, columns=max(1, len(slices)), sharey=True)
        for ax, name in zip(panels, slices, strict=False):
            _errors(ax, together[(together["slice"] == name) & (together["metric"] == metric)])
            ax.set(title=title or name, xlabel=severity_axis(kind or name), xlim=(0, 1))
        panels[0].set_ylabel(METRIC_AXES.get(metric, metric))
        panels[0].legend(loc="best")
    return figure


def _errors(ax: "Axes", cells: pd.DataFrame) -> None:
    """A curve a model. cells: rows of one slice and metric, with columns model and seed."""
    for model in sorted(cells["model"].unique(), key=tables.model_order):
        points = cells[cells["model"] == model].groupby(["seed", "severity"])["value"].mean().reset_index()
        _curves(ax, model, points, "value")


def at_a_glance(cells: pd.DataFrame, r: pd.DataFrame, pairs: pd.DataFrame, metric: str, first: str) -> "Figure":
    """What the report shows first: errors along a slice, r along two, and `first` against others on every slice.

    cells: rows of cells.parquet of one slice, with columns model and seed. r: slice, modality, severity, median;
    empty where no model has any. pairs: against, slice, ratio, low, high, claimed; a mark is full where claimed.
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
    """Medians of r: a colour a modality, a line style a slice."""
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
    """Ratios less 1 in per cent with their intervals: a row a slice, a colour a model."""
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
    ax.set_ylim(len(slices) + 0.9, -0.6)  # the first slice on top; room for the legend under the last
    ax.locator_params(axis="x", nbins=5)
    ax.legend(loc="lower center", ncols=2)


def mixed_curve(errors_by_model: dict[str, pd.DataFrame]) -> "Figure":
    """Error on slice mixed against mean severity. errors_by_model: tables.error_by_mean_severity by model."""
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
    """How trust in one modality falls with severity: median and 10-90 % band over clips, and raw r beside it.

    trust, r: tables.by_severity along slice `name`; None where the model has none.
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


def _level(ax: Any, value: float, name: str, on_the_right: bool) -> None:
    """A dotted line at a value, with its name above one of its ends."""
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
    """Share of targets inside the interval of `level` along slice `name`, with its 95 % interval over sources.

    points: severity, value, low, high.
    """
    from matplotlib.ticker import PercentFormatter

    with _styled():
        figure, (ax,) = _figure(SMALL)
        _level(ax, level, "promised", on_the_right=True)
        ax.fill_between(points["severity"], points["low"], points["high"], color="#0072B2", alpha=0.18, linewidth=0)
        ax.plot(points["severity"], points["value"], color="#0072B2", linewidth=2.2)
        ax.set(title=name, xlabel=severity_axis(name), ylabel="targets inside", xlim=(0, 1))
        ax.set_ylim(min(0.5, points["low"].min()), 1.005)
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def expert_usage(name: str, usage: pd.DataFrame, seed: int | str) -> "Figure":
    """Which experts work along slice `name`, for one training seed, under the entropy of every seed's usage.

    Experts of two seeds have nothing in common but their number, so shares are never averaged over seeds.
    usage: tables.usage_by_severity.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    experts = tables.experts_of(usage)
    of_seed = usage[usage["seed"] == seed].sort_values("severity")
    with _styled():
        figure = Figure(figsize=TALL, layout="constrained")
        top, below = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2.2])
        for each, points in sorted(usage.groupby("seed"), key=lambda pair: pair[0] == seed):
            chosen = each == seed
            top.plot(
                points["severity"],
                points["entropy"],
                color="#0072B2" if chosen else "#888888",
                linewidth=2.2 if chosen else 0.9,
                label=f"seed {seed}" if chosen else None,
            )
        most = np.log2(len(experts))
        top.set(title=name, ylabel="entropy (bits)", ylim=(0, most * 1.35))
        _level(top, most, "all experts alike", on_the_right=False)
        edges = _edges(of_seed["severity"].to_numpy())
        mesh = below.pcolormesh(
            edges,
            np.arange(len(experts) + 1) + 0.5,
            of_seed[experts].to_numpy().T,
            cmap="Blues",
            vmin=0,
            edgecolors="white",
            linewidth=0.6,
        )
        below.grid(False)
        below.set(xlabel=severity_axis(name), ylabel=f"expert (seed {seed})", yticks=range(1, len(experts) + 1))
        below.invert_yaxis()
        figure.colorbar(mesh, ax=below, label="share of the routing", format=PercentFormatter(1, decimals=0))
    return figure


def _edges(centres: np.ndarray) -> np.ndarray:
    """Borders of the cells of a heat map around its columns."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[centres[0]], middle, [centres[-1]]])


def data_uri(figure: "Figure") -> str:
    """The figure as an SVG inside a data: address, for an <img> that needs no file beside the page."""
    drawn = io.BytesIO()
    with _styled():
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(drawn, format="svg", metadata=nothing)
    return svg_uri(drawn.getvalue())


def svg_uri(drawn: bytes) -> str:
    """An SVG as a data: address."""
    return "data:image/svg+xml;base64," + base64.b64encode(drawn).decode()
