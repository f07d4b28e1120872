import io
import re
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from qamoe.cli import app
from qamoe.errors import UserError
from qamoe.evaluation.bootstrap import Comparison, paired_bootstrap
from qamoe.report import pairwise


def rows(root: Path, model: str) -> pd.DataFrame:
    return pd.read_parquet(root / "evaluate" / model / "1" / "predictions.parquet").assign(seed=1)


def test_a_pair_is_compared_on_every_slice_that_both_have(many: Path) -> None:
    pair = pairwise.between(many / "evaluate", "qamoe", "moe")
    assert list(pair.rows) == ["clean", "missing", "noise", "mixed"]
    assert (pair.metric, pair.sources) == ("mae", 24)
    rows_a, rows_b = (rows(many, model).query("slice == 'noise'") for model in ("qamoe", "moe"))
    assert pair.rows["noise"][:3] == pytest.approx(paired_bootstrap(rows_a, rows_b))


def test_a_pair_is_compared_on_one_slice_or_one_cell(many: Path) -> None:
    assert list(pairwise.between(many / "evaluate", "qamoe", "moe", "mixed").rows) == ["mixed"]
    pair = pairwise.between(many / "evaluate", "qamoe", "moe", "noise-0.7", "corr")
    rows_a, rows_b = (rows(many, model).query("cell == 'noise-0.7'") for model in ("qamoe", "moe"))
    assert pair.rows["noise-0.7"][:3] == pytest.approx(paired_bootstrap(rows_a, rows_b, "corr"))


@pytest.mark.integration
def test_a_part_of_a_slice_is_weighted_as_in_the_slice(many: Path, tmp_path: Path) -> None:
    """Slice alone has two curves; a part with one of them is weighted by its own trapezoids."""
    for model in ("qamoe", "moe"):
        folder = tmp_path / model / "1"
        folder.mkdir(parents=True)
        (folder / "cells.parquet").write_bytes((many / "evaluate" / model / "1" / "cells.parquet").read_bytes())
        curve = rows(many, model).query("slice == 'noise'")
        named = [
            curve.assign(slice="alone", cell=curve["cell"].str.replace("noise-", f"alone-{m}-noise-"))
            for m in ("text", "audio")
        ]
        named[1]["prediction"] += 1.0
        pd.concat(named).to_parquet(folder / "predictions.parquet")
    part = pairwise.between(tmp_path, "qamoe", "moe", "alone-text-noise").rows["alone-text-noise"]
    assert part[:3] == pytest.approx(pairwise.between(many / "evaluate", "qamoe", "moe", "noise").rows["noise"][:3])
    whole = pairwise.between(tmp_path, "qamoe", "moe", "alone").rows["alone"]
    other = pairwise.between(tmp_path, "qamoe", "moe", "alone-audio").rows["alone-audio"]
    assert whole.difference == pytest.approx((part.difference + other.difference) / 2)


@pytest.mark.parametrize(
    ("chosen", "values"),
    [
        (("qamoe", "bert"), ("'bert'", "/evaluate", "mean, concat, moe, qamoe, oracle")),
        (("qamoe", "moe", "swap"), ("qamoe", "'swap'", "clean, missing, noise, mixed")),
        (("qamoe", "moe", None, "acc9"), ("'acc9'", "mae, mean_error")),
    ],
)
def test_unknown_models_slices_and_metrics_are_refused(many: Path, chosen: tuple, values: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as refused:
        pairwise.between(many / "evaluate", *chosen)
    assert [value for value in values if value not in str(refused.value)] == []


def test_different_grids_are_refused(many: Path, tmp_path: Path) -> None:
    for model in ("qamoe", "moe"):
        folder = tmp_path / model / "1"
        folder.mkdir(parents=True)
        (folder / "cells.parquet").write_bytes((many / "evaluate" / model / "1" / "cells.parquet").read_bytes())
        predictions = rows(many, model)
        predictions[predictions["draw"] < (2 if model == "moe" else 99)].to_parquet(folder / "predictions.parquet")
    with pytest.raises(UserError, match="mixed"):
        pairwise.between(tmp_path, "qamoe", "moe", "mixed")


def comparison(low: float, high: float) -> Comparison:
    return Comparison((low + high) / 2, low, high, 0.5, 1, 1, 1)


def test_better_or_worse_needs_an_interval_without_0() -> None:
    assert pairwise.verdict(comparison(-2, -1), "mae") == "better"
    assert pairwise.verdict(comparison(1, 2), "mae") == "worse"
    assert pairwise.verdict(comparison(1, 2), "corr") == "better"
    assert pairwise.verdict(comparison(-1, 2), "mae") == ""
    assert pairwise.verdict(comparison(1, 2), "mean_error") == ""


def printed(pair: pairwise.Pair) -> str:
    screen = io.StringIO()
    pairwise.show(pair, Console(file=screen, width=80))
    return screen.getvalue()


def test_a_column_that_is_empty_in_every_row_is_not_printed() -> None:
    rows = {"missing": comparison(-1, 2), "noise": comparison(-2, 1)}
    assert "model-a" not in printed(pairwise.Pair("model-a", "b", "mae", rows, 3)).replace("mae of model-a", "")
    rows["noise"] = comparison(-2, -1)
    text = printed(pairwise.Pair("model-a", "b", "mae", rows, 3))
    assert "model-a" in text.replace("mae of model-a", "")
    assert "better" in next(line for line in text.splitlines() if "noise" in line)


def test_the_comparison_fits_80_characters(many: Path) -> None:
    screen = io.StringIO()
    pairwise.show(pairwise.between(many / "evaluate", "qamoe", "concat"), Console(file=screen, width=80))
    text = screen.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "better" in text
    assert "24 sources" in " ".join(text.split())


def test_a_long_name_is_folded_and_hides_no_number(many: Path) -> None:
    pair = pairwise.between(many / "evaluate", "qamoe", "concat", "mixed")
    text = printed(pair._replace(rows={"signals-audio-dropouts-0.75": pair.rows["mixed"]}))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert all(part in text for part in pairwise.format_comparison(pair.rows["mixed"]))


@pytest.mark.integration
def test_the_commands_print_and_refuse(many: Path, results: Path) -> None:
    def run(*arguments: str) -> str:
        command = CliRunner().invoke(app.app, [*arguments])
        if isinstance(command.exception, UserError):
            return f"refused: {command.exception}"
        assert command.exit_code == 0, command.output
        return command.stdout

    assert "mae of qamoe minus mae of concat" in run("compare", "qamoe", "concat", "--out", str(many))
    assert re.match("refused: .*'x'", run("compare", "qamoe", "x", "--out", str(many)))
    out = ("--out", str(results))
    assert "MAE, mixed" in run("table", *out)
    assert "| LNLN * |" in run("table", "--slice", "missing", "--peers", "mosi", "--format", "md", *out)
    assert run("table", "--format", "csv", *out).startswith("model,seeds,source,clean.mae.clean,")
    assert r"\toprule" in run("table", "--format", "latex", *out)
    assert re.match("refused: .*--slice missing", run("table", "--peers", "mosi", *out))
