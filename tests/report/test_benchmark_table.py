import csv
import io
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from qamoe.errors import UserError
from qamoe.evaluation.summary import summarise
from qamoe.report import benchmark_table, table_formats
from qamoe.report.results import evaluations, read_cells

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def cells(results: Path) -> pd.DataFrame:
    return read_cells(evaluations(results / "evaluate"))


def test_a_graded_slice_is_averaged_over_severities_below_1_then_over_seeds(cells: pd.DataFrame, results: Path) -> None:
    table = benchmark_table.of_slice(cells, "missing")
    qamoe = next(row for row in table.rows if row.model == "qamoe")
    by_name = dict(zip([m.name for m in table.measures], qamoe.values, strict=True))
    per_seed = []
    for seed in (1, 2, 3):
        f1 = pd.read_parquet(results / "evaluate" / "qamoe" / str(seed) / "cells.parquet")
        f1 = f1[(f1["slice"] == "missing") & (f1["metric"] == "f1_has0") & (f1["severity"] < 0.95)]
        assert f1["cell"].nunique() == 10
        per_seed.append(f1.groupby("cell")["value"].mean().mean())
    assert by_name["f1_has0"] == pytest.approx((pd.Series(per_seed).mean(), pd.Series(per_seed).std()))
    assert qamoe.seeds == 3
    labels = [m.label for m in table.measures]
    assert labels[:6] == ["Acc-7", "Acc-5", "Acc-2 Non0", "F1 Non0", "Acc-2 Has0", "F1 Has0"]
    assert not any("/" in label for label in labels)


def test_a_slice_without_a_curve_is_averaged_over_its_cells(cells: pd.DataFrame) -> None:
    table = benchmark_table.of_slice(cells, "mixed")
    mean_cells = cells.query("model == 'mean' and slice == 'mixed'").drop(columns=["model", "seed"])
    area = summarise(mean_cells).set_index("metric").loc["mae", "area"]
    index = [m.name for m in table.measures].index("mae")
    assert next(row for row in table.rows if row.model == "mean").values[index][0] == pytest.approx(area)
    assert "cells" in table.title
    assert "0.9" not in table.title


def test_published_rows_are_marked_and_name_their_source(cells: pd.DataFrame) -> None:
    table = benchmark_table.of_slice(cells, "missing", "mosi")
    published = [row for row in table.rows if row.source]
    assert [row.model for row in table.rows][-1] == "TCMR"
    assert len(published) == 11
    lnln = next(row for row in published if row.model == "LNLN")
    values = dict(zip([m.name for m in table.measures], [mean for mean, _ in lnln.values], strict=True))
    assert (values["acc7"], values["mae"], values["corr"]) == pytest.approx((0.3136, 1.145, 0.481))
    assert (values["acc2_non0"], values["acc2_has0"]) == pytest.approx((0.70, 0.6951))
    assert pd.isna(values["mean_error"])
    text = table_formats.markdown(table)
    assert "| LNLN * | 3 | 31.36 | 34.43 | 70.00 | 69.99 | 69.51 | 69.41 | 1.145 | 0.481 |  |" in text
    assert "arXiv 2609.10950" in text
    assert "not measured here" in text


def test_every_published_row_is_complete_and_in_per_cent() -> None:
    with Path(benchmark_table.__file__).with_name("peers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [sum(row["corpus"] == corpus for row in rows) for corpus in benchmark_table.CORPORA] == [11, 11]
    for row in rows:
        numbers = {name: float(value) for name, value in row.items() if name not in ("corpus", "model")}
        assert all(20 < numbers[name] < 90 for name in numbers if name.startswith(("acc", "f1"))), row
        assert 0.4 < numbers["corr"] < 0.6 < numbers["mae"] < 1.2, row


@pytest.mark.parametrize(
    ("name", "peers", "values"),
    [
        ("brust", None, ("'brust'", "clean, missing, noise, mixed")),
        ("noise", "mosi", ("missing", "noise", "--peers")),
        ("missing", "sims", ("'sims'", "mosi, mosei")),
    ],
)
def test_unknown_slices_and_peers_are_refused(
    cells: pd.DataFrame, name: str, peers: str | None, values: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as refused:
        benchmark_table.of_slice(cells, name, peers)
    assert [value for value in values if value not in str(refused.value)] == []


def test_published_regression_rows_are_refused_for_classes(cells: pd.DataFrame) -> None:
    classes = cells[cells["metric"] == "acc7"].assign(metric="accuracy")
    assert [m.name for m in benchmark_table.of_slice(classes, "missing").measures] == ["accuracy"]
    with pytest.raises(UserError, match=r"mosi.*-3 to 3"):
        benchmark_table.of_slice(classes, "missing", "mosi")


def small() -> table_formats.ResultTable:
    nan = float("nan")
    measures = [table_formats.Measure("acc7", "acc7", "Acc-7"), table_formats.Measure("e", "mean_error", "Mean error")]
    rows = [
        table_formats.TableRow("a_b", 2, [(0.4, 0.012), (-0.25, 0.1)]),
        table_formats.TableRow("c|d", 1, [(0.5, nan), (0.1, nan)]),
        table_formats.TableRow("Peer", 3, [(0.3, nan), (nan, nan)], "arXiv 1"),
    ]
    return table_formats.ResultTable("A title", measures, rows, ["* theirs"])


def test_markdown() -> None:
    assert table_formats.markdown(small()) == (
        "A title\n\n| Model | Seeds | Acc-7 (%) | Mean error |\n| --- | ---: | ---: | ---: |\n"
        "| a_b | 2 | 40.00 ± 1.20 | -0.250 ± 0.100 |\n| c\\|d | 1 | 50.00 | +0.100 |\n"
        "| Peer * | 3 | 30.00 |  |\n\n* theirs\n"
    )


def test_latex_escapes_names_and_separates_published_rows() -> None:
    text = table_formats.latex(small())
    assert r"a\_b & 2 & 40.00 $\pm$ 1.20 & $-$0.250 $\pm$ 0.100 \\" in text
    assert r"Acc-7 (\%)" in text
    assert "\\midrule\nPeer * & 3 & 30.00 &  \\\\\n\\bottomrule" in text
    assert text.startswith("% A title\n% * theirs\n")


def test_csv_holds_plain_numbers_and_the_source() -> None:
    rows = list(csv.DictReader(io.StringIO(table_formats.comma_separated(small()))))
    assert rows[0] == {
        "model": "a_b", "seeds": "2", "source": "measured here", "acc7": "0.4", "acc7.sd": "0.012", "e": "-0.25",
        "e.sd": "0.1",
    }  # fmt: skip
    assert rows[2]["source"] == "arXiv 1"
    assert rows[2]["e"] == ""


def test_the_table_in_a_terminal_fits_80_characters_and_cuts_nothing(cells: pd.DataFrame) -> None:
    screen = io.StringIO()
    table_formats.terminal(benchmark_table.of_slice(cells, "missing", "mosei"), Console(file=screen, width=80))
    text = screen.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "TF-Mamba *" in text
    assert "2609.10950" in text


def test_the_table_in_a_pipe_is_as_wide_as_its_content(cells: pd.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    table = benchmark_table.of_slice(cells, "missing", "mosi")
    name = "ablation-with-a-name-of-more-than-eighty-characters-" + 40 * "x"
    table_formats.terminal(table._replace(rows=[table.rows[0]._replace(model=name), *table.rows[1:]]))
    text = capsys.readouterr().out
    assert name in text
    assert "…" not in text
    assert all(measure.heading in text for measure in table.measures), "a heading is wrapped"


def test_every_format_can_write_the_headline(cells: pd.DataFrame) -> None:
    table = benchmark_table.headline(cells)
    assert [row.model for row in table.rows] == ["mean", "concat", "qamoe"]
    for write in table_formats.FORMATS.values():
        assert "qamoe" in write(table)
