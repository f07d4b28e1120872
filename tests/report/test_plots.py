import base64
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from qamoe.report import plots, tables
from qamoe.report.results import Results, read

pytestmark = pytest.mark.integration  # matplotlib starts fc-list when its cache of fonts is empty


@pytest.fixture(scope="module")
def evaluated(results: Path) -> Results:
    return read(results / "evaluate", results / "train")


def cells_by_model(evaluated: Results) -> dict[str, pd.DataFrame]:
    return {str(model): cells for model, cells in evaluated.cells.groupby("model")}


def test_spectrum_has_one_panel_per_slice_and_one_labelled_line_per_model(evaluated: Results) -> None:
    figure = plots.spectrum_curve(cells_by_model(evaluated))
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["missing", "noise"]
    assert figure.axes[0].get_ylabel() == "MAE (label units)"
    assert "η" in figure.axes[0].get_xlabel()
    legend = figure.axes[0].get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["mean", "concat", "qamoe"]


def test_spectrum_draws_the_mean_of_the_seeds_thick(evaluated: Results) -> None:
    (ax,) = plots.spectrum_curve(cells_by_model(evaluated), ["noise"]).axes
    thick = next(line for line in ax.lines if line.get_label() == "qamoe")
    expected = tables.curves(evaluated.cells).query("model == 'qamoe' and slice == 'noise'")["mae"]
    assert thick.get_ydata() == pytest.approx(expected.to_numpy())
    thin = [line for line in ax.lines if line.get_color() == thick.get_color() and line is not thick]
    assert len(thin) == 3
    assert all(line.get_linewidth() < thick.get_linewidth() for line in thin)


def test_spectrum_accepts_cells_parquet_of_one_run(results: Path) -> None:
    cells = pd.read_parquet(results / "evaluate" / "qamoe" / "1" / "cells.parquet")
    assert len(plots.spectrum_curve({"qamoe": cells}).axes) == 2


def test_at_a_glance_fills_the_marks_of_claimed_differences(evaluated: Results) -> None:
    pairs = pd.DataFrame(
        {
            "against": ["concat", "concat", "moe"],
            "slice": ["missing", "noise", "noise"],
            "ratio": [0.95, 0.99, 1.02],
            "low": [0.9, 0.97, 1.01],
            "high": [0.98, 1.01, 1.03],
            "claimed": [True, False, True],
        }
    )
    cells = evaluated.cells[evaluated.cells["slice"] == "missing"]
    r = tables.by_severity(evaluated.predictions("qamoe"), "missing", "text", "r").assign(
        slice="missing", modality="text"
    )
    figure = plots.at_a_glance(cells, r, pairs, "mae", "qamoe")
    assert len(figure.axes) == 3
    forest: Any = figure.axes[-1]
    marks = [line for line in forest.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert [float(line.get_xdata()[0]) for line in marks] == pytest.approx([-5, -1, 2])
    assert [line.get_markerfacecolor() == line.get_color() for line in marks] == [True, False, True]
    assert [tick.get_text() for tick in forest.get_yticklabels()] == ["missing", "noise"]
    assert len(plots.at_a_glance(cells, r.iloc[:0], pairs, "mae", "qamoe").axes) == 2


def test_a_model_has_one_colour_and_line_styles_are_unique() -> None:
    assert plots.line("qamoe") == plots.LINES["qamoe"]
    assert plots.line("ablation-no-gate") == plots.line("ablation-no-gate")
    assert plots.line("ablation-no-gate") not in plots.LINES.values()
    styles = [style for _, style in (*plots.LINES.values(), *plots.OTHERS)]
    assert len({str(style) for style in styles}) == len(styles)


def test_trust_draws_r_without_trust(evaluated: Results) -> None:
    r = tables.by_severity(evaluated.predictions("qamoe"), "missing", "text", "r")
    (ax,) = plots.trust_curve("text", "missing", None, r).axes
    assert [line.get_label() for line in ax.lines] == ["reliability r"]


def test_expert_usage_shows_the_share_of_every_expert(evaluated: Results) -> None:
    usage = tables.usage_by_severity(evaluated.predictions("qamoe"), "missing")
    figure = plots.expert_usage("missing", usage, seed=2)
    shares = figure.axes[1].collections[0].get_array()
    expected = usage[usage["seed"] == 2].filter(like="expert_").to_numpy().T
    assert np.asarray(shares) == pytest.approx(expected)


def test_an_embedded_figure_is_a_reproducible_svg_without_metadata(evaluated: Results) -> None:
    usage = tables.usage_by_severity(evaluated.predictions("qamoe"), "missing")
    uris = [plots.data_uri(plots.expert_usage("missing", usage, seed=1)) for _ in range(2)]
    assert uris[0] == uris[1]
    head, body = uris[0].split(",", 1)
    assert head == "data:image/svg+xml;base64"
    svg = base64.b64decode(body).decode()
    assert "<svg" in svg
    assert "<metadata>" not in svg


def test_plots_do_not_change_the_global_style(evaluated: Results) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.spectrum_curve(cells_by_model(evaluated))
    assert dict(matplotlib.rcParams) == before


def test_a_landscape_has_one_scale_for_each_metric() -> None:
    levels = [0.0, 0.3, 0.7]
    rising = pd.DataFrame([[1.0, 1.2, 1.4], [1.1, 1.3, 1.5], [1.3, 1.6, 2.0]], levels, levels)
    errors = {("qamoe", "mae"): rising, ("concat", "mae"): rising + 1}
    figure = plots.landscape(errors | {("qamoe", "acc7"): 0.5 / rising, ("concat", "acc7"): 0.4 / rising})
    panels = [ax for ax in figure.axes if ax.get_title(loc="left")]
    assert [ax.get_title(loc="left") for ax in panels] == ["qamoe, MAE", "concat, MAE", "qamoe, Acc-7", "concat, Acc-7"]
    limits = [ax.collections[0].get_clim() for ax in panels]
    assert limits[0] == limits[1]
    assert limits[2] == limits[3]
    assert limits[0][0] <= 1.0
    assert limits[0][1] >= 3.0
    assert panels[2].get_xlabel() == "noise, λ"
    assert panels[2].get_ylabel() == "lost modalities, η"
