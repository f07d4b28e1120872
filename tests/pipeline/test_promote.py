"""Promotion from checkpoints and a gate split to aliases and records, in an MLflow store of the test."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from qamoe.cli.app import app
from qamoe.errors import UserError
from qamoe.inference import model_package
from qamoe.models import checkpoint
from qamoe.pipeline import promote
from qamoe.pipeline.shared import data_digest
from qamoe.registry import registry, versions
from qamoe.tracking.runs import MODEL_ID, record_training


@pytest.fixture(autouse=True)
def _plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the text encoder by a function of single token ids; promotion does not depend on meaning."""
    import torch

    from qamoe.models import text_encoder_frozen

    def encode(ids: torch.Tensor, mask: torch.Tensor, encoder: str) -> torch.Tensor:
        return (
            torch.sin(ids[..., None] * torch.arange(1, text_encoder_frozen.WIDTH + 1) / text_encoder_frozen.WIDTH)
            * mask[..., None]
        )

    monkeypatch.setattr(text_encoder_frozen, "encode", encode)


@pytest.fixture
def corpus(records, tmp_path, tiny_params, tiny_corpus, tiny_checkpoint) -> Any:
    """Write checkpoints of seeds 1 and 2 with given predictions, and promote them; no test split exists."""
    tiny_corpus(Path("artifacts"))

    class Corpus:
        client = records
        params = tiny_params
        out = Path("artifacts")

        def train(self, answer: float, **changed: Any) -> None:
            digests = {"params": "p" * 64, "data": data_digest(self.out), "code": "c" * 64}
            for seed, other in ((1, answer), (2, 9.0)):
                folder = self.out / "train" / "qamoe" / str(seed)
                tiny_checkpoint(folder, seed=seed, answer=other, **{"digests": digests, **changed})

        def train_other(self, model: str, answer: float, seed: int = 1) -> Path:
            digests = {"params": "p" * 64, "data": data_digest(self.out), "code": "c" * 64}
            folder = self.out / "train" / model / str(seed)
            return tiny_checkpoint(folder, model=model, seed=seed, answer=answer, digests=digests)

        def promote(self, **chosen: Any) -> registry.Decision:
            return promote.decide(self.params, self.out, chosen=promote.Chosen(**chosen))

        def aliases(self) -> dict[str, str]:
            aliases = self.client.get_registered_model("qa-moe").aliases
            return {alias: str(version) for alias, version in aliases.items()}

        def champion_runs(self) -> list[str]:
            """The versions whose runs have the tag of the champion."""
            experiment = self.client.get_experiment_by_name("qa-moe").experiment_id
            marked = {run.info.run_id for run in self.client.search_runs([experiment], "tags.champion = 'qa-moe'")}
            versions = self.client.search_model_versions("name = 'qa-moe'")
            return [str(version.version) for version in versions if version.run_id in marked]

    return Corpus()


def test_the_life_of_a_champion(corpus, capsys):

    corpus.train(answer=0.6)
    first = corpus.promote()
    assert (first.outcome, first.version) == ("promoted", "1")
    assert corpus.aliases() == {"champion": "1"}

    assert corpus.promote().outcome == "unchanged"

    corpus.train(answer=0.5)  # further from the labels than the champion
    refused = corpus.promote()
    assert (refused.outcome, refused.version) == ("refused", "2")
    assert [v.rule for v in refused.verdicts if not v.passed] == ["beats_the_champion", "keeps_every_slice"]
    assert corpus.aliases() == {"champion": "1", "challenger": "2"}

    again = corpus.promote()
    assert again.outcome == "unchanged"
    assert any("failed beats_the_champion" in reason for reason in again.reasons)

    corpus.train(answer=1.0)
    promote.run(corpus.params, corpus.out)
    assert capsys.readouterr().out.splitlines()[-1] == "decision: promoted"
    assert corpus.aliases() == {"champion": "3", "previous": "1"}
    assert corpus.champion_runs() == ["3"]

    served = mlflow.pyfunc.load_model("models:/qa-moe@champion").predict(pd.DataFrame({"text": ["a film"]}))
    assert served["score"][0] == pytest.approx(1.0, abs=0.2)

    corpus.train(answer=0.5)  # refused before, but against another champion
    assert corpus.promote().outcome == "refused"
    assert len(corpus.client.search_model_versions("name = 'qa-moe'")) == 3  # a checkpoint is registered once

    version = corpus.client.get_model_version("qa-moe", "2")
    assert version.tags["qamoe.decision"] == "refused"
    assert version.tags["qamoe.protocol"] == "1"
    assert version.tags["qamoe.split"] == "gate"
    assert version.tags["qamoe.artifact_digest"] == checkpoint.digest(corpus.out / "train" / "qamoe" / "1")
    assert "`beats_the_champion`" in version.description
    files = [file.path for file in corpus.client.list_artifacts(version.run_id, "promote")]
    assert len(files) == 4 + 1  # two decisions, each as JSON and as a page, and the drift reference
    assert "promote/reference.parquet" in files
    (page, *_) = (mlflow.artifacts.load_text(f"runs:/{version.run_id}/{path}") for path in files if "html" in path)
    assert "version 2: refused" in page
    assert page.count('class="failed"') == 2
    for path in (path for path in files if path.endswith(".json")):
        content = json.loads(mlflow.artifacts.load_text(f"runs:/{version.run_id}/{path}"))
        assert content["decision"] == "refused"
        assert content["candidate"]["seed"] == 1
        assert {rule["rule"] for rule in content["rules"]} == {
            "predicts_the_same",
            "beats_the_champion",
            "keeps_every_slice",
            "covers_90",
            "trust_follows_damage",
            "harmless_is_harmless",
        }


def test_a_dry_run_prints_the_decision_and_records_nothing(corpus, capsys):
    corpus.train(answer=0.6)
    promote.run(corpus.params, corpus.out, dry=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "decision: would be promoted (dry run)"
    assert lines[2].startswith("dry run: ")
    assert not any("predicts_the_same" in line for line in lines)
    assert corpus.client.search_registered_models() == []
    assert corpus.promote().outcome == "promoted"

    corpus.train(answer=0.5)
    promote.run(corpus.params, corpus.out, dry=True)
    assert capsys.readouterr().out.splitlines()[-1] == "decision: would be refused (dry run)"
    assert corpus.aliases() == {"champion": "1"}


@pytest.mark.slow
def test_a_rollback_swaps_champion_and_previous_and_lasts_until_it_is_undone(corpus):
    with pytest.raises(UserError, match="qa-moe"):
        versions.rollback("qa-moe")
    with pytest.raises(UserError, match="qa-moe"):
        versions.show("qa-moe")
    corpus.train(answer=0.6)
    corpus.promote()
    with pytest.raises(UserError, match="version 1"):
        versions.rollback("qa-moe")
    corpus.train(answer=1.0)
    corpus.promote()
    assert corpus.aliases() == {"champion": "2", "previous": "1"}

    assert re.search(r"version 1 of qa-moe.*version 2", versions.rollback("qa-moe"))
    assert corpus.aliases() == {"champion": "1", "previous": "2"}
    assert corpus.champion_runs() == ["1"]
    unchanged = corpus.promote()  # the checkpoints are still those of version 2
    assert (unchanged.outcome, unchanged.version) == ("unchanged", "2")
    assert "version 2 was rolled back" in unchanged.reasons[0]
    assert [(row.version, row.aliases, row.decision) for row in versions.listed(corpus.client, "qa-moe")] == [
        ("2", "previous", "rolled back"),
        ("1", "champion", "promoted"),
    ]

    versions.rollback("qa-moe")
    assert corpus.aliases() == {"champion": "2", "previous": "1"}
    (reason,) = corpus.promote().reasons
    assert "version 2" in reason
    assert [row.decision for row in versions.listed(corpus.client, "qa-moe")] == ["promoted", "rolled back"]


@pytest.mark.slow
def test_an_interrupted_rollback_keeps_the_champion_and_can_be_repeated(corpus, monkeypatch):
    corpus.train(answer=0.6)
    corpus.promote()
    corpus.train(answer=1.0)
    corpus.promote()
    set_alias = type(corpus.client).set_registered_model_alias

    def interrupt(self: Any, name: str, alias: str, version: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(corpus.client), "set_registered_model_alias", interrupt)
    with pytest.raises(KeyboardInterrupt):
        versions.rollback("qa-moe")
    assert corpus.aliases() == {"champion": "2", "previous": "1"}
    monkeypatch.setattr(type(corpus.client), "set_registered_model_alias", set_alias)
    versions.rollback("qa-moe")
    assert corpus.aliases() == {"champion": "1", "previous": "2"}


def refused_for(decision: registry.Decision) -> list[str]:
    assert decision.outcome == "refused"
    return [verdict.rule for verdict in decision.verdicts if not verdict.passed]


def test_a_candidate_whose_intervals_are_too_narrow_is_refused(corpus):
    narrow = {"sigmas": {"0.5": 0.007, "0.8": 0.013, "0.9": 0.017, "0.95": 0.02}}
    corpus.train(answer=1.0, calibration=narrow)
    assert refused_for(corpus.promote()) == ["covers_90"]
    assert corpus.aliases() == {"challenger": "1"}


def test_a_candidate_that_is_worse_on_one_slice_is_refused(corpus, monkeypatch):
    corpus.train(answer=0.6)
    corpus.promote()
    corpus.train(answer=1.0)
    measure = promote._measure

    def worse_on_noise(*arguments: Any) -> list[pd.DataFrame]:
        """Add one label unit to the candidate's predictions on noisy clips."""
        candidate, champion = measure(*arguments)
        error = (candidate["slice"] == "noise").astype(float)
        return [candidate.assign(prediction=candidate["prediction"] + error), champion]

    monkeypatch.setattr(promote, "_measure", worse_on_noise)
    decision = corpus.promote()
    assert refused_for(decision) == ["keeps_every_slice"]
    (verdict,) = (verdict for verdict in decision.verdicts if not verdict.passed)
    assert verdict.numbers["noise"] > 1.05 * verdict.numbers["champion_noise"]
    assert verdict.numbers["clean"] < verdict.numbers["champion_clean"]
    assert corpus.aliases() == {"champion": "1", "challenger": "2"}


def test_a_checkpoint_of_unknown_or_other_data_is_refused_before_anything_is_recorded(corpus):
    for digests, place in (({"params": "p", "code": "c"}, "model.json"), ({"data": "d"}, "artifacts/preprocess")):
        corpus.train(answer=1.0, digests=digests)
        with pytest.raises(UserError, match=rf"qamoe/1\b.*{place}|{place}.*qamoe/1\b") as refused:
            corpus.promote()
        assert "stage train" in str(refused.value)
    assert corpus.client.search_registered_models() == []


@pytest.mark.slow
def test_another_protocol_or_other_clips_measure_the_champion_again(corpus, monkeypatch, tiny_corpus):
    from qamoe.evaluation import protocol

    corpus.train(answer=0.6)
    corpus.promote()
    corpus.train(answer=0.5)
    measure, calls = promote._measure, []

    def count_models(params: Any, stats: Any, models: Any, *rest: Any) -> list[pd.DataFrame]:
        calls.append(len(models))
        return measure(params, stats, models, *rest)

    monkeypatch.setattr(promote, "_measure", count_models)
    first = corpus.promote()
    assert first.outcome == "refused"
    assert corpus.promote().outcome == "unchanged"
    assert len(calls) == 1, "nothing has changed"

    monkeypatch.setattr(protocol, "PROTOCOL", protocol.PROTOCOL + 1)
    again = corpus.promote()
    assert (again.outcome, len(calls), calls[-1]) == ("refused", 2, 2), "candidate and champion"
    assert corpus.client.get_model_version("qa-moe", "2").tags["qamoe.protocol"] == str(protocol.PROTOCOL)

    tiny_corpus(corpus.out, gate=11)  # the same corpus with another gate split
    corpus.train(answer=0.5)
    other = corpus.promote()
    assert (other.outcome, len(calls), calls[-1]) == ("refused", 3, 2)
    assert other.verdicts[1].numbers["champion_mae"] != again.verdicts[1].numbers["champion_mae"]


@pytest.mark.slow
def test_no_promotion_reads_the_test_split(corpus):
    """Opening the invalid file would fail, and its content changes no decision and no number."""
    test = corpus.out / "preprocess" / "test.arrow"
    evaluated = corpus.out / "evaluate" / "qamoe" / "1" / "cells.parquet"
    evaluated.parent.mkdir(parents=True)
    corpus.train(answer=0.6)
    for path in (test, evaluated):
        path.write_bytes(b"not a table")
    assert corpus.promote().outcome == "promoted"
    corpus.train(answer=0.5)
    refused = corpus.promote()
    assert refused.outcome == "refused"
    for path in (test, evaluated):
        path.write_bytes(b"something else")
    assert corpus.promote().outcome == "unchanged", "the promotion gate has the same evidence"
    assert (test.read_bytes(), evaluated.read_bytes()) == (b"something else", b"something else")


def test_a_first_candidate_that_is_no_better_than_the_mean_is_refused(corpus):
    corpus.train(answer=-1.0)
    decision = corpus.promote()
    assert decision.outcome == "refused"
    assert {v.rule for v in decision.verdicts if not v.passed} >= {"beats_the_mean"}
    assert corpus.aliases() == {"challenger": "1"}
    assert corpus.promote().outcome == "unchanged"


@pytest.mark.slow
def test_a_fine_tuned_candidate_is_compared_with_a_frozen_champion(corpus, tiny_encoder, tmp_path):
    corpus.train(answer=0.6)
    assert corpus.promote().outcome == "promoted"
    corpus.train(answer=1.0, encoder=tiny_encoder(tmp_path / "encoder"))
    decision = corpus.promote()
    assert (decision.outcome, decision.version) == ("promoted", "2"), decision.reasons


def test_without_a_gate_split_the_validation_split_is_used_and_recorded(corpus, tiny_corpus):
    tiny_corpus(corpus.out, gate=0)
    corpus.train(answer=1.0)
    assert corpus.promote().outcome == "promoted"
    version = corpus.client.get_model_version_by_alias("qa-moe", "champion")
    assert version.tags["qamoe.split"] == "valid"
    assert "gate split" in version.description


def test_a_registered_model_with_other_predictions_is_refused(corpus, tiny_checkpoint, monkeypatch, tmp_path):
    corpus.train(answer=1.0)
    log_model = model_package.log_model
    other = tiny_checkpoint(tmp_path / "other", answer=1.2)
    monkeypatch.setattr(model_package, "log_model", lambda folder, *rest: log_model(other, *rest))
    decision = corpus.promote()
    assert [v.rule for v in decision.verdicts if not v.passed] == ["predicts_the_same"]
    assert corpus.aliases() == {"challenger": "1"}


@pytest.mark.parametrize("of", ["candidate", "champion"])
def test_lost_files_are_an_error_and_no_decision(corpus, of):
    """A failed download once counted as a refusal, which no later promotion measured again."""
    corpus.train(answer=1.0)
    corpus.promote()
    if of == "candidate":
        corpus.client.delete_registered_model("qa-moe")
    else:
        corpus.train(answer=1.5)
    files = Path("mlartifacts/qa-moe/models")
    files.rename("away")
    with pytest.raises(UserError, match="version 1 of qa-moe"):
        corpus.promote()
    Path("away").rename(files)
    tags = corpus.client.get_model_version("qa-moe", "1").tags
    assert tags.get("qamoe.decision") == (None if of == "candidate" else "promoted")
    assert corpus.promote().outcome == ("promoted" if of == "candidate" else "refused")


@pytest.mark.parametrize("champion", [False, True])
def test_a_version_registered_by_hand_is_never_run(corpus, tmp_path, champion):
    """It has the tag of the candidate's digest, and a loader of its own; promote loaded it to compare predictions."""
    corpus.train(answer=1.0)
    foreign, victim = tmp_path / "foreign", tmp_path / "victim"
    digest = checkpoint.digest(corpus.out / "train" / "qamoe" / "1")
    shutil.copytree(corpus.out / "train" / "qamoe" / ("2" if champion else "1"), foreign / "artifacts")
    (foreign / "code").mkdir()
    (foreign / "code" / "foreign_loader.py").write_text(f"open({str(victim)!r}, 'w')\n")
    flavour = {"loader_module": "foreign_loader", "code": "code", "env": {}}
    (foreign / "MLmodel").write_text(json.dumps({"flavors": {"python_function": flavour}}))
    corpus.client.create_registered_model("qa-moe")
    tags = {registry.ARTIFACT: "f" * 64 if champion else digest}
    corpus.client.create_model_version("qa-moe", foreign.as_uri(), tags=tags)
    if champion:
        corpus.client.set_registered_model_alias("qa-moe", "champion", "1")
        with pytest.raises(UserError, match=r"version 1 of qa-moe .*digest .*ffffffffffff"):
            corpus.promote()
    else:
        assert corpus.promote().version == "2"
        assert corpus.aliases() == {"champion": "2"}
    assert not victim.exists()


def refusal(*arguments: str) -> str:
    """What `qamoe promote` says of arguments that it cannot take."""
    done = CliRunner().invoke(app, ["promote", *arguments], env={"COLUMNS": "300"})
    assert done.exit_code != 0
    return done.stderr or str(done.exception)


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        (("--run", "r", "--model", "concat"), ("--model and --run",)),
        (("--run", "r", "--seed", "1"), ("--seed and --run",)),
        (("--version", "1", "--run", "r", "--model", "a"), ("--model and --run and --version",)),
        (("--version", "100000000000000000000"), ("--version", "2147483647")),
    ],
)
def test_options_that_name_no_one_checkpoint_are_refused(
    arguments: tuple[str, ...], seen: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite reported the overflow of a large number."""
    monkeypatch.chdir(tmp_path)
    said = refusal(*arguments)
    assert [value for value in seen if value not in said] == [], said


@pytest.mark.slow
def test_another_model_is_promoted_replaced_and_rolled_back_to(corpus, capsys):
    corpus.params = corpus.params.model_copy(update={"seeds": {**corpus.params.seeds, "concat": [1, 2]}})
    corpus.train_other("concat", 0.5)
    corpus.train_other("concat", 0.6, seed=2)
    promote.run(corpus.params, corpus.out, chosen=promote.Chosen("concat", seed=2))
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("candidate: concat seed 2")
    assert printed[-1] == "decision: promoted"
    assert corpus.aliases() == {"champion": "1"}
    assert corpus.client.get_model_version("qa-moe", "1").tags["qamoe.model"] == "concat"
    assert corpus.promote(model="concat").outcome == "refused"  # seed 1 has the better selection value
    corpus.train(answer=1.0)
    assert corpus.promote().outcome == "promoted"
    assert corpus.aliases() == {"champion": "3", "previous": "1"}
    versions.rollback("qa-moe")
    assert corpus.aliases() == {"champion": "1", "previous": "3"}


def test_a_version_aliased_by_hand_is_adopted_and_a_run_is_promoted_in_its_place(corpus):
    digests, runs = [], []
    for seed, answer in ((1, 0.6), (2, 1.0)):
        folder = corpus.train_other("qamoe", answer, seed)
        digests.append(checkpoint.digest(folder))
        runs.append(corpus.client.get_run(record_training(corpus.client, folder, "qa-moe")))
    by_hand = mlflow.register_model(f"models:/{runs[0].data.tags[MODEL_ID]}", "qa-moe")
    assert registry.ARTIFACT not in by_hand.tags
    corpus.client.set_registered_model_alias("qa-moe", "champion", by_hand.version)
    promote.decide(corpus.params, corpus.out, dry=True, chosen=promote.Chosen(version=1))
    assert corpus.client.get_model_version("qa-moe", "1").tags == {}
    assert corpus.promote(version=1).outcome == "unchanged"
    assert corpus.client.get_model_version("qa-moe", "1").tags[registry.ARTIFACT] == digests[0]
    decision = corpus.promote(run=runs[1].info.run_id)
    assert (decision.outcome, decision.run) == ("promoted", runs[1].info.run_id)
    assert corpus.aliases() == {"champion": "2", "previous": "1"}


def test_a_version_aliased_by_hand_that_no_training_made_is_refused(corpus):
    corpus.train(answer=1.0)
    corpus.client.create_registered_model("qa-moe")
    corpus.client.create_model_version("qa-moe", "file:///absent")
    corpus.client.set_registered_model_alias("qa-moe", "champion", "1")
    with pytest.raises(UserError, match=r"version 1 of qa-moe .*qamoe promote --run"):
        corpus.promote()
    assert corpus.aliases() == {"champion": "1"}


@pytest.mark.parametrize(
    ("chosen", "named"),
    [
        ({"model": "conct"}, "'conct'.*qamoe"),
        ({"seed": 7}, "7.*qamoe: 1, 2"),
        ({"run": "f" * 32}, "f{32}"),
        ({"version": 9}, "no version 9"),
        ({"model": "oracle"}, "oracle"),
        ({"model": "oracle--small"}, "oracle--small"),
    ],
)
def test_a_candidate_that_does_not_exist_or_cannot_be_used_is_refused(corpus, chosen, named):
    corpus.params = corpus.params.model_copy(update={"seeds": {"qamoe": [1, 2], "oracle": [1], "oracle--small": [1]}})
    corpus.train(answer=1.0)
    corpus.train_other("oracle", 1.0)
    corpus.train_other("oracle--small", 1.0)
    with pytest.raises(UserError, match=named):
        corpus.promote(**chosen)
    assert corpus.client.search_registered_models() == []


def test_a_champion_of_another_corpus_is_refused(corpus, tiny_corpus, tiny_stats):
    corpus.train(answer=0.6)
    corpus.promote()
    other = tiny_stats | {"about": {"corpus": "other"}}
    tiny_corpus(corpus.out, stats=other)
    corpus.train(answer=1.0, stats=other)
    with pytest.raises(UserError, match=r"version 1\b.*'other'.*registry\.name"):
        corpus.promote()
    assert corpus.aliases() == {"champion": "1"}


def test_a_champion_of_older_data_reads_frames_standardised_by_its_own_statistics(corpus, tiny_stats, tmp_path):
    """An ingest changes mean and deviation; the champion must still read frames on its own scale."""
    from qamoe.data.arrow_store import Store
    from qamoe.data.normalise import Columns, clean
    from qamoe.inference.predict import raw_frames

    corpus.train(answer=0.6)
    old = checkpoint.load(corpus.out / "train" / "qamoe" / "1")
    new = json.loads(json.dumps(tiny_stats))
    new["audio"] |= {"mean": [4.0, -2.0], "deviation": [3.0, 1.5]}
    store = Store(corpus.out / "preprocess" / "gate.arrow")
    rows = promote._measure(corpus.params, tiny_stats, [old], store, tmp_path)[0]
    shifted = promote.restandardise(store, tiny_stats, new, tmp_path / "new.arrow")  # the same clips after the ingest
    assert np.abs(shifted.sequence("audio", 3) - store.sequence("audio", 3)).max() > 0.1
    raw = raw_frames(np.array([[1, 2], [0, 0]], np.float32), tiny_stats["audio"])
    audio: Any = new["audio"]
    assert clean(raw, Columns.from_json(audio))[1].tolist() == [0, 0], "a missing frame stays one"
    candidate = checkpoint.Trained(old.model, old.config | {"stats": new}, old.folder)
    again = promote._measure(corpus.params, new, [candidate, old], shifted, tmp_path)[1]
    again = again[again["slice"].isin(rows["slice"].unique())]
    np.testing.assert_allclose(again["prediction"], rows["prediction"], atol=1e-5)


def test_a_missing_or_stale_checkpoint_is_named(corpus, tiny_corpus, tiny_stats):
    with pytest.raises(UserError, match=r"train/qamoe/1\b.*stage train"):
        corpus.promote()
    with pytest.raises(UserError, match=r"qamoe.*seeds .*\bmean\b"):
        promote.decide(corpus.params.model_copy(update={"seeds": {"mean": (1,)}}), corpus.out)
    corpus.train(answer=1.0)
    tiny_corpus(
        corpus.out, gate=0, stats={**json.loads((corpus.out / "preprocess" / "stats.json").read_text()), "clips": {}}
    )
    with pytest.raises(UserError, match=r"train/qamoe/1\b.*artifacts/preprocess"):
        corpus.promote()
