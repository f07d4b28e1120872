"""The address of the record store: what cannot be one is refused at once."""

from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from qamoe.errors import UserError
from qamoe.tracking import dashboard, mlflow_store
from scripts import ui

pytestmark = pytest.mark.integration
NOTE = "mlflow.note.content"


def test_a_checkout_with_a_question_mark_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database of another name was made in the folder above."""
    checkout = tmp_path / "a?b"
    checkout.mkdir()
    monkeypatch.chdir(checkout)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=r"a\?b"):
        mlflow_store.connect()
    assert [*tmp_path.iterdir(), *checkout.iterdir()] == [checkout]


def test_a_database_that_cannot_be_opened_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow tries ten times, for two minutes, and sleeps between."""
    (tmp_path / "mlflow.db").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setattr("mlflow.store.db.utils.time.sleep", lambda seconds: pytest.fail("tried again"))
    with pytest.raises(UserError, match=r"mlflow\.db"):
        mlflow_store.connect()


@pytest.mark.parametrize(
    "address",
    ["./mlruns", "file:///tmp/mlruns", "databricks", "http://", "sqlite://", "sqlite:///", "sqlite:///:memory:"],
)
def test_a_folder_or_a_store_in_memory_is_refused_with_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str
) -> None:
    """What is written to a database in memory is gone at the end of the process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI") as refusal:
        mlflow_store.connect("; advice")
    assert [
        part for part in (repr(address), "http://", "sqlite:///FILE", "advice") if part not in str(refusal.value)
    ] == []
    assert [*tmp_path.iterdir()] == []


EARLIER = (
    "[Curves](#/experiments/1/runs?viewStateShareKey=qamoe&compareRunsMode=CHART) and"
    " [table](#/experiments/1/runs?viewStateShareKey=qamoe) of the models, means over seeds."
    " `missing.mae` and its like: step is severity x 100. `.area` is the mean over severities."
)


def test_a_description_is_renewed_unless_a_person_wrote_it(records):
    """One of an earlier version once stayed for ever, as if a person had written it."""
    number = mlflow_store.experiment_id(records, "qa-moe")
    written = records.get_experiment(number).tags[NOTE]
    assert "valid/selection" in written
    *_, marker = written.splitlines()
    for note, kept in (
        (EARLIER, False),
        (f"Of another version.\n\n{marker}", False),
        (f"{EARLIER} Ours!", True),
        (written.removesuffix(marker), True),
    ):
        records.set_experiment_tag(number, NOTE, note)
        mlflow_store.experiment_id(records, "qa-moe")
        assert records.get_experiment(number).tags[NOTE] == (note if kept else written)


def test_the_page_of_a_name_without_runs_is_that_of_its_champions_run(records, tmp_path, monkeypatch, capsys):
    """It was empty, although the name had a champion, which was trained under another name."""
    (tmp_path / "params.yaml").write_text("registry: {name: another}\n")
    monkeypatch.chdir(tmp_path)
    own = mlflow_store.experiment_id(records, "another")

    def shown() -> tuple[str, str]:
        page = ui.runs_page("http://a").removeprefix("http://a/#/experiments/").partition("/")[0]
        return page, capsys.readouterr().out

    number, printed = shown()
    assert number == own
    assert "another" in printed
    trained = [mlflow_store.experiment_id(records, name) for name in ("first", "second")]
    runs = [records.create_run(number, tags={"qamoe.seed": "1"}).info.run_id for number in trained]
    records.set_tag(runs[0], "champion", "another")
    number, printed = shown()
    assert number == trained[0]
    assert "first" in printed
    records.create_run(own, tags={"qamoe.seed": "1"})
    assert shown() == (own, "")


def test_two_first_processes_may_arrange_an_experiment_at_once(records, monkeypatch):
    """The database refuses the second of two equal tags; another failure of the store is reported."""
    set_tag = type(records).set_experiment_tag
    lost: list[str] = []

    def second(self: Any, experiment: str, key: str, value: str) -> None:
        if key not in lost:
            set_tag(self, experiment, key, value)
        raise MlflowException("UNIQUE constraint failed")

    monkeypatch.setattr(type(records), "set_experiment_tag", second)
    number = mlflow_store.experiment_id(records, "qa-moe")
    written = records.get_experiment(number).tags
    assert {key: written[key] for key in dashboard.tags(number)} == dashboard.tags(number)
    lost.extend(written)
    with pytest.raises(MlflowException):
        mlflow_store.experiment_id(records, "another")
