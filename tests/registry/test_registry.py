"""Test which champions a candidate can be compared with, and the gate_key; see also tests/pipeline/test_promote.py."""

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qamoe.cli.app import app
from qamoe.errors import UserError
from qamoe.registry import registry, versions
from qamoe.registry.registry import Champion
from qamoe.tracking.runs import record_training

ROOT = Path(__file__).parents[2]


def test_a_champion_of_another_corpus_is_refused():
    config = {
        "stats": {"about": {"corpus": "a"}},
        "task": {"kind": "regression"},
        "inputs": {"text": 384},
        "extract": {},
    }
    registry.same_corpus(config, config, "qa-moe", "1")
    for key, changed in (
        ("stats.about", {"stats": {"about": {"corpus": "b"}}}),
        ("inputs", {"inputs": {"text": 384, "audio": 2}}),
        ("task", {"task": {"kind": "other"}}),
    ):
        with pytest.raises(UserError, match=rf"qa-moe \(version 1\).*\({key} .*registry\.name"):
            registry.same_corpus(config, config | changed, "qa-moe", "1")


@pytest.mark.integration
def test_listed_versions_have_a_date_and_their_aliases(records, tiny_checkpoint, tmp_path):
    run = records.get_run(record_training(records, tiny_checkpoint(tmp_path / "1"), "qa-moe"))
    registry._register(records, "qa-moe", run)
    records.set_registered_model_alias("qa-moe", "champion", "1")
    (row,) = versions.listed(records, "qa-moe")
    assert (row.version, row.aliases, row.model, row.seed) == ("1", "champion", "qamoe", "1")
    registered = datetime.strptime(row.registered, "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
    assert abs(datetime.now(UTC) - registered) < timedelta(minutes=10)


@pytest.mark.integration
def test_the_table_of_versions_is_not_cut_in_a_pipe(records, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    run = records.get_run(record_training(records, tiny_checkpoint(tmp_path / "1"), "qa-moe"))
    registry._register(records, "qa-moe", run)
    monkeypatch.setattr(versions, "connect", lambda: records)
    for number in range(40):
        records.set_registered_model_alias("qa-moe", f"alias-{number}", "1")
    versions.show("qa-moe")
    text = capsys.readouterr().out
    assert "qa-moe" in text.splitlines()[0]
    assert "test split" in text.splitlines()[0]
    assert all(column in text for column in versions.VersionRow._fields)
    assert "…" not in text
    assert ", ".join(sorted(f"alias-{number}" for number in range(40))) in text


def test_the_gate_key_depends_on_clips_protocol_parameters_and_champion(tiny_params):
    block = tiny_params.registry
    first = registry.gate_key("clips", 1, block, None)
    assert first == registry.gate_key("clips", 1, block, None)
    others = {
        registry.gate_key("other", 1, block, None),
        registry.gate_key("clips", 2, block, None),
        registry.gate_key("clips", 1, block.model_copy(update={"coverage_90": (0.5, 1.0)}), None),
        registry.gate_key("clips", 1, block, Champion("1", "a")),
        registry.gate_key("clips", 1, block, Champion("2", "b")),
    }
    assert len(others - {first}) == 5
    assert registry.gate_key("clips", 1, block, Champion("1", "a")) == registry.gate_key(
        "clips", 1, block, Champion("7", "a")
    )


@pytest.mark.integration
def test_a_rollback_is_the_last_one_although_the_clock_jumped_back(records, monkeypatch):
    records.create_registered_model("qa-moe")
    for _ in range(3):
        records.create_model_version("qa-moe", "file:///absent", tags={registry.ARTIFACT: "f" * 64})
    records.set_model_version_tag("qa-moe", "3", registry.ROLLED_BACK, "2999-01-01T00:00:00Z")
    records.set_registered_model_alias("qa-moe", "champion", "2")
    records.set_registered_model_alias("qa-moe", "previous", "1")
    set_alias = type(records).set_registered_model_alias

    def interrupted(self: Any, name: str, alias: str, version: str) -> None:
        if alias == "previous":
            raise KeyboardInterrupt
        set_alias(self, name, alias, version)

    with monkeypatch.context() as patch:
        patch.setattr(type(records), "set_registered_model_alias", interrupted)
        with pytest.raises(KeyboardInterrupt):
            versions.rollback("qa-moe")
    versions.rollback("qa-moe")
    assert records.get_registered_model("qa-moe").aliases == {"champion": 1, "previous": 2}


HOLDER = """
from pathlib import Path
from qamoe.pipeline.runner import single_instance
with single_instance(Path("artifacts/.promote.lock")):
    print("promoting", flush=True)
    input()
"""


@pytest.mark.integration
def test_a_rollback_leaves_a_promotion_that_runs_alone(records, tmp_path):
    records.create_registered_model("qa-moe")
    for number in ("1", "2"):
        records.create_model_version("qa-moe", "file:///absent", tags={registry.ARTIFACT: "f" * 64})
        records.set_registered_model_alias("qa-moe", {"1": "previous", "2": "champion"}[number], number)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    promotion = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(promotion, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "promoting\n"
        assert CliRunner().invoke(app, ["rollback"]).exit_code == 0
        assert process.poll() is None
        process.communicate("\n")
    assert process.returncode == 0
    assert records.get_registered_model("qa-moe").aliases == {"champion": 1, "previous": 2}


@pytest.mark.integration
def test_a_version_without_a_run_is_listed_without_numbers(records):
    records.create_registered_model("qa-moe")
    records.create_model_version("qa-moe", "file:///absent")
    (row,) = versions.listed(records, "qa-moe")
    assert (row.version, row.decision, row.model) == ("1", "", "")
    assert {getattr(row, column) for column in versions.NUMBERS} == {""}


@pytest.mark.integration
@pytest.mark.parametrize("purged", [False, True], ids=["deleted", "purged"])
def test_a_champion_whose_run_was_deleted_is_listed_and_rolled_back_to(records, purged):
    records.create_registered_model("qa-moe")
    runs = []
    for alias in ("previous", "champion"):
        runs.append(records.create_run("0").info.run_id)
        source, tags = f"runs:/{runs[-1]}/model", {registry.ARTIFACT: "f" * 64}
        version = records.create_model_version("qa-moe", source, runs[-1], tags=tags).version
        records.set_registered_model_alias("qa-moe", alias, version)
    records.delete_run(runs[0])
    if purged:
        with closing(sqlite3.connect("mlflow.db")) as store:
            store.execute("DELETE FROM runs WHERE run_uuid = ?", (runs[0],))
            store.commit()
    for champion, marked in (("1", []), ("2", [runs[1]])):
        versions.rollback("qa-moe")
        aliased = [row.version for row in versions.listed(records, "qa-moe") if "champion" in row.aliases]
        assert aliased == [champion]
        assert [run.info.run_id for run in records.search_runs(["0"], "tags.champion = 'qa-moe'")] == marked


@pytest.mark.integration
@pytest.mark.parametrize("tag", ["yesterday", "2026-01-01", ""])
def test_a_time_of_a_rollback_that_a_person_wrote_does_not_matter(records, tag):
    records.create_registered_model("qa-moe")
    for alias in ("previous", "champion", "challenger"):
        tags = {registry.ARTIFACT: "f" * 64}
        version = records.create_model_version("qa-moe", "file:///absent", tags=tags).version
        records.set_registered_model_alias("qa-moe", alias, version)
    records.set_model_version_tag("qa-moe", "3", registry.ROLLED_BACK, tag)
    versions.rollback("qa-moe")
    assert records.get_registered_model("qa-moe").aliases == {"challenger": 3, "champion": 1, "previous": 2}


@pytest.mark.integration
def test_an_interrupted_rollback_is_completed_with_the_version_that_a_rollback_tagged(records):
    """A hand-written tag was later as text, and made its version the previous one."""
    records.create_registered_model("qa-moe")
    for tag in ("", "2026-11-30T18:00:00Z", "yesterday", "2026-11-30T17:00:00Z"):
        tags = {registry.ARTIFACT: "f" * 64} | ({registry.ROLLED_BACK: tag} if tag else {})
        records.create_model_version("qa-moe", "file:///absent", tags=tags)
    for alias in ("champion", "previous"):  # the rollback was killed between its two aliases
        records.set_registered_model_alias("qa-moe", alias, "1")
    assert registry.finish(records, "qa-moe") == "2"
    assert records.get_registered_model("qa-moe").aliases == {"champion": 1, "previous": 2}


@pytest.mark.integration
def test_a_rollback_to_a_version_that_no_training_made_is_refused(records):
    records.create_registered_model("qa-moe")
    records.create_model_version("qa-moe", "file:///absent")
    records.create_model_version("qa-moe", "file:///absent", tags={registry.ARTIFACT: "f" * 64})
    for number, alias in ((1, "previous"), (2, "champion")):
        records.set_registered_model_alias("qa-moe", alias, number)
    with pytest.raises(UserError, match="version 1 of qa-moe"):
        versions.rollback("qa-moe")
    assert records.get_registered_model("qa-moe").aliases == {"champion": 2, "previous": 1}
    assert registry.ROLLED_BACK not in records.get_model_version("qa-moe", 2).tags


@pytest.mark.integration
def test_an_interrupted_promotion_without_its_record_names_the_tag(records):
    records.create_registered_model("qa-moe")
    tags = {registry.ARTIFACT: "f" * 64, "qamoe.promoting": "nonsense"}
    records.create_model_version("qa-moe", "file:///absent", records.create_run("0").info.run_id, tags=tags)
    records.set_registered_model_alias("qa-moe", "champion", 1)
    with pytest.raises(UserError, match=r"version 1 of qa-moe .*qamoe\.promoting.*nonsense\.json"):
        registry.finish(records, "qa-moe")
