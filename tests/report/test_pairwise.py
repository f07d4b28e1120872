import io
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
    found = pairwise.between(many / "evaluate", "qamoe", "moe")
    assert list(found.rows) == ["clean", "missing", "noise", "mixed"]
    assert (found.metric, found.sources) == ("mae", 24)
    ours, theirs = (rows(many, model).query("slice == 'noise'") for model in ("qamoe", "moe"))
    assert found.rows["noise"][:3] == pytest.approx(paired_bootstrap(ours, theirs))


def test_one_slice_or_one_cell_of_it(many: Path) -> None:
    assert list(pairwise.between(many / "evaluate", "qamoe", "moe", "mixed").rows) == ["mixed"]
    found = pairwise.between(many / "evaluate", "qamoe", "moe", "noise-0.7", "corr")
    ours, theirs = (rows(many, model).query("cell == 'noise-0.7'") for model in ("qamoe", "moe"))
    assert found.rows["noise-0.7"][:3] == pytest.approx(paired_bootstrap(ours, theirs, "corr"))


def test_a_part_of_a_slice_is_weighed_as_within_it(many: Path, tmp_path: Path) -> None:
    """Of slice alone with two curves, one of them: its own trapezoid."""
    for model in ("qamoe", "moe"):
        place = tmp_path / model / "1"
        place.mkdir(parents=True)
        (place / "cells.parquet").write_bytes((many / "evaluate" / model / "1" / "cells.parquet").read_bytes())
        curve = rows(many, model).query("slice == 'noise'")
        named = [
            curve.assign(slice="alone", cell=curve["cell"].str.replace("noise-", f"alone-{m}-noise-"))
            for m in ("text", "audio")
        ]
        named[1]["prediction"] += 1.0
        pd.concat(named).to_parquet(place / "predictions.parquet")
    found = pairwise.between(tmp_path, "qamoe", "moe", "alone-text-noise").rows["alone-text-noise"]
    assert found[:3] == pytest.approx(pairwise.between(many / "evaluate", "qamoe", "moe", "noise").rows["noise"][:3])
    whole = pairwise.between(tmp_path, "qamoe", "moe", "alone").rows["alone"]
    other = pairwise.between(tmp_path, "qamoe", "moe", "alone-audio").rows["alone-audio"]
    assert whole.difference == pytest.approx((found.difference + other.difference) / 2)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (("qamoe", "bert"), r"No model 'bert' was evaluated in .*; there are mean, concat, moe, qamoe, oracle"),
        (("qamoe", "moe", "swap"), "qamoe was not evaluated on 'swap'; its slices are clean, missing, noise, mixed"),
        (("qamoe", "moe", None, "acc9"), "'acc9'; allowed are mae, mean_error"),
    ],
)
def test_what_is_not_there_is_refused_by_name(many: Path, chosen: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pairwise.between(many / "evaluate", *chosen)


def test_different_grids_are_refused(many: Path, tmp_path: Path) -> None:
    for model in ("qamoe", "moe"):
        place = tmp_path / model / "1"
        place.mkdir(parents=True)
        (place / "cells.parquet").write_bytes((many / "evaluate" / model / "1" / "cells.parquet").read_bytes())
        own = rows(many, model)
        own[own["draw"] < (2 if model == "moe" else 99)].to_parquet(place / "predictions.parquet")
    with pytest.raises(UserError, match="not measured on the same"):
        pairwise.between(tmp_path, "qamoe", "moe", "mixed")


def test_a_claim_needs_an_interval_without_0() -> None:
    def found(low: float, high: float) -> Comparison:
        return Comparison((low + high) / 2, low, high, 0.5, 1, 1, 1)

    assert pairwise.verdict(found(-2, -1), "mae") == "better"
    assert pairwise.verdict(found(1, 2), "mae") == "worse"
    assert pairwise.verdict(found(1, 2), "corr") == "better"
    assert pairwise.verdict(found(-1, 2), "mae") == ""
    assert pairwise.verdict(found(1, 2), "mean_error") == ""


def test_in_a_terminal_it_fits_80_characters(many: Path) -> None:
    screen = io.StringIO()
    pairwise.show(pairwise.between(many / "evaluate", "qamoe", "concat"), Console(file=screen, width=80))
    text = screen.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "better" in text
    assert "24 sources" in " ".join(text.split())


def test_a_long_name_is_folded_and_hides_no_number(many: Path) -> None:
    found = pairwise.between(many / "evaluate", "qamoe", "concat", "mixed")
    screen = io.StringIO()
    long = found._replace(rows={"signals-audio-dropouts-0.75": found.rows["mixed"]})
    pairwise.show(long, Console(file=screen, width=80))
    text = screen.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert all(part in text for part in pairwise.texts(found.rows["mixed"]))


def test_the_commands_print_and_refuse(many: Path, results: Path) -> None:
    def run(*arguments: str) -> str:
        done = CliRunner().invoke(app.app, [*arguments])
        if isinstance(done.exception, UserError):
            return f"refused: {done.exception}"
        assert done.exit_code == 0, done.output
        return done.stdout

    assert "mae of qamoe minus mae of concat" in run("compare", "qamoe", "concat", "--out", str(many))
    assert "refused: No model 'x'" in run("compare", "qamoe", "x", "--out", str(many))
    out = ("--out", str(results))
    assert "MAE, mixed" in run("table", *out)
    assert "| LNLN * |" in run("table", "--slice", "missing", "--peers", "mosi", "--format", "md", *out)
    assert run("table", "--format", "csv", *out).startswith("model,seeds,source,clean.mae.clean,")
    assert r"\toprule" in run("table", "--format", "latex", *out)
    assert "refused: The published rows are averages over slice missing: add" in run("table", "--peers", "mosi", *out)
