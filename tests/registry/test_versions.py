"""The table of registered versions shows the text of tags as text."""

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
    versions.show("qa-moe")
    shown = capsys.readouterr().out
    assert not set("\x1b\x07\r") & set(shown)
    assert "red[/]" in shown
