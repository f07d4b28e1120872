"""The table of registered versions shows the text of tags as text."""

from typing import Any

import pytest

from qamoe.registry import versions

pytestmark = pytest.mark.integration  # MLflow starts a process when it is imported


def test_escapes_and_markup_of_tags_are_shown_as_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tag = "\x1b]0;title\x07\x1b[31mred[/]\r\n"
    row = versions.VersionRow("1", "2026", tag, tag, tag, tag, "", "", "", "")
    monkeypatch.setattr(versions, "connect", lambda: None)
    monkeypatch.setattr(versions, "listed", lambda client, name: [row])
    versions.show("qa-moe [red]")
    shown = capsys.readouterr().out
    assert not set("\x1b\x07\r") & set(shown)
    assert "red[/]" in shown
    assert "qa-moe [red];" in shown


@pytest.mark.parametrize("separator", [".", "/"], ids=["earlier versions", "now"])
def test_the_numbers_of_a_run_are_shown_under_both_names(records: Any, separator: str) -> None:
    run = records.create_run("0").info.run_id
    for metric, value in {"clean{}mae": 0.5, "missing{}mae.area": 0.6, "mixed{}accuracy": 0.7}.items():
        records.log_metric(run, metric.format(separator), value)
    records.create_registered_model("qa-moe")
    records.create_model_version("qa-moe", f"runs:/{run}/model", run)
    (row,) = versions.listed(records, "qa-moe")
    assert (row.clean, row.missing, row.noise, row.mixed) == ("0.500", "0.600", "", "0.700")
