"""Test that runs are complete or marked unfinished, are continued rather than duplicated, and never stop a training."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from threading import Barrier
from typing import Any

import pandas as pd
import pytest

from qamoe.config.model_params import for_model
from qamoe.errors import UserError
from qamoe.evaluation.summary import summarise
from qamoe.models import checkpoint
from qamoe.tracking import runs as tracking
from qamoe.tracking.mlflow_store import masked
from qamoe.tracking.provenance import main_checkout

pytestmark = pytest.mark.integration

DIGESTS = {"params": "p" * 64, "data": "d" * 64, "code": "c" * 64}


def line(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "loss": 1.0 / epoch, "losses.task": 0.5, "valid": 0.6, "seconds": 1.5}


def runs(client: Any, query: str = "tags.`qamoe.seed` LIKE '%'") -> list[Any]:
    matches = client.search_runs([client.get_experiment_by_name("qa-moe").experiment_id], query)
    return sorted(matches, key=lambda run: run.info.start_time)


def git(*arguments: str, where: Path) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=where, check=True, capture_output=True)


def test_every_copy_of_a_checkout_uses_the_store_of_the_main_checkout(tmp_path, monkeypatch):
    main = tmp_path.resolve() / "main"
    subfolder = main / "src"
    subfolder.mkdir(parents=True)
    git("init", ".", where=main)
    git("commit", "--allow-empty", "-m", "first", where=main)
    git("worktree", "add", "../tree", where=main)
    copy = main / ".dvc" / "tmp" / "exps" / "tmpabc"  # dvc exp run --temp creates a repository in such a folder
    copy.mkdir(parents=True)
    git("init", ".", where=copy)
    for folder in (main, subfolder, tmp_path / "tree", copy):
        assert main_checkout(folder) == main
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path / "tree")
    assert tracking.uri() == f"sqlite:///{main}/mlflow.db"


def test_without_git_the_store_is_in_the_working_folder_unless_the_environment_sets_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main_checkout(tmp_path) == tmp_path.resolve()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somewhere:5000")
    assert tracking.uri() == "http://somewhere:5000"


@pytest.mark.parametrize(
    ("text", "masked_text"),
    [
        ("no http://ann:se%40cret@host:5000/a, sqlite:////x/a.db", "no http://***@host:5000/a, sqlite:////x/a.db"),
        ("postgresql://ann:p@ss@host/db", "postgresql://***@host/db"),
        ("postgresql://ann:p/ss@host:5/db", "postgresql://***@host:5/db"),
        ("postgresql://host/db?user=ann&password=secret&a=b", "postgresql://host/db?user=ann&password=***&a=b"),
        ("http://host/path@v1 models:/qa-moe@champion", "http://***@v1 models:/qa-moe@champion"),
    ],
)
def test_credentials_are_masked(text, masked_text):
    assert masked(text) == masked_text


def test_a_database_is_complete_or_absent(empty_records, tmp_path, monkeypatch, tiny_params, tiny_stats):
    assert [path.name for path in empty_records.parent.iterdir()] == ["mlflow.db"]  # no unfinished file is left
    broken = tmp_path / "mlflow.db"
    broken.write_bytes(b"not a database, and not ours to replace")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{broken}")
    with (
        pytest.raises(UserError, match=f"{broken}.*MLFLOW_TRACKING_URI"),
        tracking.training_run(tiny_params, "qamoe", 1, DIGESTS, tiny_stats),
    ):
        pytest.fail("training began")


def test_a_specialist_is_recorded_under_its_own_name_with_the_sizes_of_qamoe(
    records, tiny_params, tiny_stats, tiny_checkpoint, tmp_path
):
    name = "specialist-missing-03"
    with tracking.training_run(tiny_params, name, 1, DIGESTS, tiny_stats) as record:
        record.finish(tiny_checkpoint(tmp_path / "checkpoint", model=name))
    (run,) = runs(records)
    assert (run.info.status, run.info.run_name, run.data.tags["qamoe.model"]) == ("FINISHED", f"{name} seed1", name)
    assert run.data.params["models.qamoe.experts"] == "3"
    assert run.data.params["model"] == name


def test_a_variant_is_recorded_with_the_parameters_that_it_is_trained_with(records, tiny_params, tiny_stats):
    name = "qamoe--top-1"
    content = tiny_params.model_dump(mode="json")
    content["models"][name] = {"active": 1, "train": {"lr": 0.25}}
    params = for_model(type(tiny_params).model_validate(content), name)
    with tracking.training_run(params, name, 1, DIGESTS, tiny_stats):
        pass
    (run,) = runs(records)
    assert (run.info.run_name, run.data.tags["qamoe.model"]) == (f"{name} seed1", name)
    named = ("model", "models.qamoe.experts", "models.qamoe.active", "train.common.lr")
    assert [run.data.params[key] for key in named] == [name, "3", "1", "0.25"]


def test_a_training_run_holds_its_parameters_tags_and_model(
    records, tiny_params, tiny_stats, tiny_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setenv("MY_SECRET", "hush-hush")
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\n")
    with tracking.training_run(tiny_params, "qamoe", 1, DIGESTS, tiny_stats) as record:
        for epoch in (1, 2, 3):
            record.epoch(line(epoch))
        folder = tiny_checkpoint(tmp_path / "checkpoint")
        record.finish(folder)
    (run,) = runs(records)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "qamoe seed1")
    assert run.data.params["seed"] == "1"
    assert run.data.params["train.common.lr"] == "0.001"
    assert run.data.params["models.qamoe.experts"] == "3"
    assert not any(name.startswith("models.concat") for name in run.data.params)
    assert [(m.step, m.value) for m in records.get_metric_history(run.info.run_id, "train/loss")] == [
        (1, 1),
        (2, 0.5),
        (3, 1 / 3),
    ]
    assert (run.data.metrics["valid/best_epoch"], run.data.metrics["valid/selection"]) == (2, 0.6)
    tags = run.data.tags
    assert tags["qamoe.artifact_digest"] == checkpoint.digest(folder)
    assert tags["qamoe.data_digest"] == DIGESTS["data"]
    assert len(tags["qamoe.dvc_lock_digest"]) == 64
    assert "version.torch" in tags
    assert "on corpus tiny (seed 1)." in tags["mlflow.note.content"].splitlines()[0]
    assert "hush-hush" not in repr((run.data.tags, run.data.params))
    assert str(tmp_path) not in repr((run.data.tags, run.data.params))
    model = records.get_logged_model(tags["qamoe.logged_model"])
    assert {m.key: m.value for m in model.metrics}["train/loss"] == 0.5  # the best epoch, not the last
    assert model.tags["qamoe.artifact_digest"] == checkpoint.digest(folder)


@pytest.mark.parametrize(
    ("about", "text"),
    [
        (
            {"generator": "qamoe-sample", "version": 1, "seed": 7, "clips": 240, "task": {}, "corpus": "sample"},
            "240 clips of corpus sample (generator qamoe-sample, version 1, seed 7)",
        ),
        ({"corpus": "clips"}, "corpus clips"),
        ({}, "a corpus without a name"),
    ],
)
def test_the_corpus_of_a_run_is_described_in_words(about: dict[str, object], text: str) -> None:
    """The page said `on clips 240, corpus sample, generator ...`."""
    assert tracking._corpus(about) == text


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "KILLED"), (ValueError, "FAILED"), (None, "FAILED")])
def test_a_stopped_training_continues_in_its_own_run(
    records, tiny_params, tiny_stats, tiny_checkpoint, tmp_path, error, status
):
    def stopped_training() -> None:
        with tracking.training_run(tiny_params, "qamoe", 1, DIGESTS, tiny_stats) as record:
            record.epoch(line(1))
            record.epoch(line(2))
            if error is not None:
                raise error

    if error is None:
        stopped_training()
    else:
        with pytest.raises(error):
            stopped_training()
    assert [run.info.status for run in runs(records)] == [status]
    with tracking.training_run(tiny_params, "qamoe", 1, DIGESTS, tiny_stats) as record:
        record.epoch(line(2))  # logged before the kill, but not in the saved training state
        record.epoch(line(3))
        record.finish(tiny_checkpoint(tmp_path / "checkpoint"))
    (run,) = runs(records)
    assert run.info.status == "FINISHED"
    assert [m.step for m in records.get_metric_history(run.info.run_id, "valid/error")] == [1, 2, 3]


KILLED = """
import os, signal, sys, yaml
from pathlib import Path
from qamoe.config.params import load
from qamoe.process_lifetime import end_on_sigterm
from qamoe.tracking.runs import runs_end_with_their_processes, training_run
end_on_sigterm()
with runs_end_with_their_processes(), training_run(
    load(Path(sys.argv[1])), "qamoe", 1, {"data": "d"}, {"about": {}, "clips": {}}
):
    print("recording", flush=True)
    signal.pause()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "at_once"), [("SIGTERM", "KILLED"), ("SIGKILL", "RUNNING"), ("SIGINT", "KILLED")])
def test_a_killed_training_is_killed_in_the_records(records, tiny_checkpoint, tmp_path, number, at_once):
    """A kill -9 is recorded by the next training of any kind; a process that runs is left alone."""
    params = Path(__file__).parents[2] / "params.yaml"
    processes = [
        subprocess.Popen([sys.executable, "-c", KILLED, str(params)], stdout=subprocess.PIPE, cwd=folder, text=True)
        for folder in (tmp_path, params.parent)  # other folders have other runs
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "recording\n"
    killed, running = processes
    killed.send_signal(getattr(signal, number))
    killed.wait()
    assert sorted(run.info.status for run in runs(records)) == sorted(["RUNNING", at_once])
    tracking.record_training(records, tiny_checkpoint(tmp_path / "checkpoint"), "qa-moe")
    assert sorted(run.info.status for run in runs(records)) == ["FINISHED", "KILLED", "RUNNING"]
    running.kill()
    running.wait()


def test_only_the_same_training_continues_a_run_that_a_kill_left_running(records, tiny_params, tiny_stats):
    with pytest.raises(KeyboardInterrupt), tracking.training_run(tiny_params, "qamoe", 1, DIGESTS, tiny_stats):
        raise KeyboardInterrupt
    records.update_run(runs(records)[0].info.run_id, status="RUNNING")  # the status after kill -9
    for seed, digests in ((2, DIGESTS), (1, DIGESTS | {"params": "other"}), (1, DIGESTS)):
        with (
            pytest.raises(ValueError, match="end"),
            tracking.training_run(tiny_params, "qamoe", seed, digests, tiny_stats),
        ):
            raise ValueError("end")
    assert len(runs(records)) == 3


def test_only_seeds_of_the_same_training_are_children_of_one_run(
    records, tiny_params, tiny_stats, tiny_checkpoint, tmp_path
):
    other = {"params": "o" * 64}
    for name, seed, changed in (("qamoe", 1, {}), ("qamoe", 2, {}), ("qamoe", 3, other), ("mean", 1, {})):
        folder = tmp_path / name / str(seed)
        tracking.record_training(
            records, tiny_checkpoint(folder, model=name, seed=seed, digests=DIGESTS | changed), "qa-moe"
        )
    by_id = {run.info.run_id: run for run in runs(records, "tags.`qamoe.role` = 'model'")}
    parents = [run.data.tags["mlflow.parentRunId"] for run in runs(records)]
    assert len(set(parents)) == len(by_id) == 3
    assert parents[0] == parents[1], "seeds 1 and 2"
    assert [by_id[parent].info.run_name for parent in parents] == ["qamoe", "qamoe", "qamoe", "mean"]
    assert {run.info.status for run in by_id.values()} == {"FINISHED"}
    of_qamoe, of_one = (by_id[parents[number]].data for number in (0, 3))
    assert (of_qamoe.metrics["valid/selection"], of_qamoe.metrics["seeds"]) == (pytest.approx(0.65), 2)
    assert (of_one.metrics["valid/selection"], of_one.metrics["seeds"]) == (pytest.approx(0.6), 1)
    assert of_qamoe.params["train.common.lr"] == "0.001"
    assert "seed" not in of_qamoe.params
    assert not any(name.startswith(("train/", "valid/error")) for name in of_qamoe.metrics), "curves are of one seed"
    groups = [run.data.tags["training"] for run in runs(records)]
    assert [groups.index(group) for group in groups] == [0, 0, 2, 3], "the saved view averages one training"


def test_runs_are_named_by_what_differs_from_the_committed_parameters(
    records, tiny_params, tiny_stats, tmp_path, monkeypatch
):
    import yaml

    content = tiny_params.model_dump(mode="json")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    git("init", ".", where=tmp_path)
    git("add", "params.yaml", where=tmp_path)
    git("commit", "-m", "first", where=tmp_path)
    monkeypatch.setenv("DVC_EXP_NAME", "brisk-otter")
    changes = {"lr": 0.002, "epochs": 3, "patience": 4, "clip_norm": 2.0}
    for number in (0, 1, len(changes)):
        content["train"]["common"] |= dict(list(changes.items())[:number])
        params = type(tiny_params).model_validate(content)
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))  # not committed, as by dvc exp run -S
        digests = DIGESTS | {"params": str(number)}
        with pytest.raises(ValueError, match="end"), tracking.training_run(params, "qamoe", 2, digests, tiny_stats):
            raise ValueError("end")
    usual, faster, most = runs(records)
    assert usual.info.run_name == "qamoe seed2"
    assert faster.info.run_name == "qamoe seed2 lr=0.002"
    assert most.info.run_name == "qamoe seed2 epochs=3 lr=0.002 clip_norm=2.0 +1"
    assert records.get_run(faster.data.tags["mlflow.parentRunId"]).info.run_name == "qamoe lr=0.002"
    assert faster.data.tags["training"].endswith(" qamoe lr=0.002")
    tags = faster.data.tags
    assert (tags["model"], tags["corpus"], tags["dvc_experiment"]) == ("qamoe", "tiny", "brisk-otter")
    assert tags["mlflow.source.git.commit"].startswith(tags["commit"])
    assert tags["mlflow.user"]
    (data,) = faster.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("tiny", DIGESTS["data"][:36])


def test_a_store_that_fails_does_not_stop_a_training(
    records, tiny_params, tiny_stats, tiny_checkpoint, tmp_path, caplog
):
    with tracking.training_run(tiny_params, "qamoe", 1, DIGESTS, tiny_stats) as record:
        assert record.record is not None
        record.epoch(line(1))
        working = record.record.client

        class Away:
            def __getattr__(self, name: str) -> Any:
                raise OSError("http://ann:secret@host is away")

        record.record.client = Away()
        record.epoch(line(2))
        record.record.client = working
        record.epoch(line(3))
        record.record.client = Away()
        folder = tiny_checkpoint(tmp_path / "checkpoint")
        record.finish(folder)
    assert "secret" not in caplog.text
    assert f"qamoe record {folder}" in caplog.text
    (run,) = runs(records)
    assert run.info.status == "FAILED"
    assert [m.step for m in records.get_metric_history(run.info.run_id, "valid/error")] == [1, 2, 3]
    assert tracking.record_training(records, folder, "qa-moe") == run.info.run_id  # not a second run
    assert runs(records)[0].info.status == "FINISHED"


@pytest.mark.parametrize(
    ("rule", "best", "last"),
    [("none", [], []), ("best", [1, 3], []), ("best_and_last", [1, 3], [2, 4, 5])],
)
def test_checkpoints_of_an_unfinished_training_are_kept_at_a_rule(
    records, tiny_params, tiny_stats, tiny_checkpoint, tmp_path, rule, best, last
):
    """Best epochs are 1, 1, 3, 3, 3; every second epoch and the last one may log checkpoints."""
    import mlflow

    params = tiny_params.model_copy(
        update={"tracking": tiny_params.tracking.model_copy(update={"keep_checkpoints": rule, "keep_every": 2})}
    )
    saved: list[tuple[str, int]] = []
    with tracking.training_run(params, "qamoe", 1, DIGESTS, tiny_stats) as record:
        for epoch, best_so_far in enumerate((1, 1, 3, 3, 3), 1):

            def save(folder: Path, which: str, epoch: int = epoch, best_so_far: int = best_so_far) -> None:
                number = best_so_far if which == "best" else epoch
                saved.append((which, number))
                unfinished = {"best_epoch": number, "calibration": {}, "trust": {}, "finished": False}
                tiny_checkpoint(folder, **unfinished)

            record.keep(epoch, best_so_far, epoch == 5, save)
    assert [number for which, number in saved if which == "best"] == best
    assert [number for which, number in saved if which == "last"] == last
    (run,) = runs(records)
    for which, numbers in (("best", best), ("last", last)):
        address = run.data.tags.get(f"checkpoint_{which}")
        assert (address is not None) == bool(numbers)
        if address is not None:
            folder = Path(mlflow.artifacts.download_artifacts(address, dst_path=str(tmp_path / which)))
            assert checkpoint.load(folder, unfinished=True).config["best_epoch"] == numbers[-1]


def test_a_half_written_checkpoint_leaves_the_one_before(
    records, tiny_params, tiny_stats, tiny_checkpoint, tmp_path, monkeypatch, caplog
):
    import mlflow

    def save(folder: Path, which: str) -> None:
        tiny_checkpoint(folder, calibration={}, trust={}, finished=False)

    with tracking.training_run(tiny_params, "qamoe", 1, DIGESTS, tiny_stats) as record:
        assert record.record is not None
        every = tiny_params.tracking.keep_every
        record.keep(every, 1, False, save)
        (run,) = runs(records)
        client = record.record.client
        log_artifacts = client.log_artifacts

        def half(run_id: str, folder: str, place: str) -> None:
            weights = Path(folder) / "weights.safetensors"
            weights.write_bytes(weights.read_bytes()[:100])
            log_artifacts(run_id, folder, place)
            raise OSError("killed")

        for number in (2, 3):
            with monkeypatch.context() as patch:
                patch.setattr(client, "log_artifacts", half)
                record.keep(number * every, number, False, save)
            address = runs(records)[0].data.tags["checkpoint_best"]
            folder = mlflow.artifacts.download_artifacts(address, dst_path=str(tmp_path / str(number)))
            checkpoint.load(Path(folder), unfinished=True)
        assert "training continues" in caplog.text
        record.keep(4 * every, 4, False, save)
        assert runs(records)[0].data.tags["checkpoint_best"] != address
        finished = tiny_checkpoint(tmp_path / "checkpoint")
        record.finish(finished)
    (run,) = runs(records)
    assert records.list_artifacts(run.info.run_id, "checkpoints/best") == [], "the finished one replaces it"
    model = Path(mlflow.artifacts.download_artifacts(run.data.tags["checkpoint_best"], dst_path=str(tmp_path / "m")))
    assert checkpoint.digest(model / "artifacts") == checkpoint.digest(finished)


def test_a_store_that_cannot_be_used_is_refused_before_training(tmp_path, monkeypatch, tiny_params, tiny_stats):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlruns"))  # MLflow 3 refuses a file store
    with (
        pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI.*QAMOE_TRACKING=off"),
        tracking.training_run(tiny_params, "qamoe", 1, DIGESTS, tiny_stats),
    ):
        pytest.fail("training began")


def test_untracked_training_never_imports_mlflow(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom qamoe.tracking.runs import record_evaluation, training_run\n"
        "with training_run(None, 'qamoe', 1, {}, {}) as record:\n    record.epoch({'epoch': 1})\n"
        "    record.finish(Path('nowhere'))\n"
        "record_evaluation(Path('nowhere'), Path('nowhere'))\nassert 'mlflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=os.environ | {"QAMOE_TRACKING": "off"})
    assert not list(tmp_path.iterdir())


def test_a_folder_is_recorded_once(records, tiny_checkpoint, tmp_path):
    folder = tiny_checkpoint(tmp_path / "checkpoint", model="mean")
    first = tracking.record_training(records, folder, "qa-moe")
    assert tracking.record_training(records, folder, "elsewhere") == first
    (run,) = runs(records)
    assert run.info.status == "FINISHED"
    assert run.data.tags["qamoe.recorded"].startswith("later")
    assert "mlflow.source.git.commit" not in run.data.tags  # the files do not say which commit made them
    history = records.get_metric_history(run.info.run_id, "train/loss")
    assert [m.step for m in history] == [1, 2, 3]
    with pytest.raises(UserError, match=r"model\.json"):
        tracking.record_training(records, tmp_path, "qa-moe")


def test_two_checkpoints_recorded_at_the_same_time_have_one_run_each(records, tiny_checkpoint, tmp_path, monkeypatch):
    """Both have the same digests, and logging the second starts before the first is finished."""
    first, second = (tiny_checkpoint(tmp_path / str(answer), answer=answer) for answer in (0.5, 0.7))
    finish, second_runs = tracking.Record.finish, []

    def finish_after_second(record: tracking.Record, folder: Path) -> None:
        if folder == first:
            second_runs.append(tracking.record_training(records, second, "qa-moe"))
        finish(record, folder)

    monkeypatch.setattr(tracking.Record, "finish", finish_after_second)
    first_run = tracking.record_training(records, first, "qa-moe")
    assert second_runs != [first_run]
    for folder, run in ((first, first_run), (second, *second_runs)):
        assert records.get_run(run).data.tags[tracking.ARTIFACT] == checkpoint.digest(folder)


LEVELS = (0.0, 0.1, 0.7)


def cells(offset: float = 0.0) -> pd.DataFrame:
    rows = []
    for name, severities in (("clean", [0.0]), ("missing", [0.0, 0.3, 1.0]), ("mixed", [float("nan")])):
        for severity in severities:
            for draw in (0, 1):
                shared = {"slice": name, "cell": f"{name}-{severity}", "kind": name, "severity": severity, "draw": draw}
                mae = 0.5 + (0.0 if severity != severity else severity) + 0.1 * draw + offset
                rows += [{**shared, "metric": "mae", "value": mae}, {**shared, "metric": "corr", "value": 0.2}]
    for noise, missing in product(LEVELS, LEVELS):
        shared = {"slice": "landscape", "cell": f"landscape-{noise:.2f}-{missing:.2f}", "kind": "paper_noise+missing"}
        shared |= {"severity": float("nan"), "severity_noise": noise, "severity_missing": missing, "draw": 0}
        rows.append({**shared, "metric": "mae", "value": 1 + noise + 2 * missing + offset})
    return pd.DataFrame(rows)


def evaluate(folder: Path, digest: str, offset: float = 0.0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    cells(offset).to_parquet(folder / "cells.parquet")
    (folder / "digest").write_text(digest)
    return folder


def test_an_evaluation_is_recorded_once_with_its_curves(records, tiny_checkpoint, tmp_path):
    folder = tiny_checkpoint(tmp_path / "train" / "qamoe" / "1")
    evaluated = evaluate(tmp_path / "evaluate" / "qamoe" / "1", "first")
    tracking.record_evaluation(folder, evaluated)
    tracking.record_evaluation(folder, evaluated)
    (run,) = runs(records)
    curve = records.get_metric_history(run.info.run_id, "missing/mae")
    assert [(m.step, round(m.value, 6)) for m in curve] == [(0, 0.55), (30, 0.85), (100, 1.55)]
    metrics = run.data.metrics
    assert metrics["clean/mae"] == pytest.approx(0.55)
    assert metrics["mixed/mae"] == pytest.approx(0.55)
    area = summarise(cells()).set_index(["slice", "metric"])["area"]["missing", "mae"]
    assert metrics["missing/mae.area"] == pytest.approx(area)
    assert not any("nan" in name for name in metrics)
    names = {file.path for file in records.list_artifacts(run.info.run_id, "evaluate")}
    pictures = {"evaluate/spectrum.png", "evaluate/landscape.png"}
    assert names == {"evaluate/cells.parquet", "evaluate/summary.csv", *pictures}
    volume = 1 + 3 * 0.35  # of a plane: its value in the middle, whatever the levels between
    assert metrics["landscape/mae"] == pytest.approx(volume)
    model = records.get_logged_model(run.data.tags["qamoe.logged_model"])
    assert "missing/mae.area" in {metric.key for metric in model.metrics}
    tracking.record_evaluation(folder, evaluate(evaluated, "second", offset=1.0))
    assert runs(records)[0].data.metrics["clean/mae"] == pytest.approx(1.55)


def test_a_report_is_among_the_files_of_the_runs_that_it_is_about(records, tiny_checkpoint, tmp_path, caplog):
    import mlflow

    folders = [tiny_checkpoint(tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    other = tracking.record_training(records, tiny_checkpoint(tmp_path / "other", model="mean"), "qa-moe")
    shown = [tracking.record_training(records, folder, "qa-moe") for folder in folders]
    (tmp_path / "index.html").write_text("<p>the report</p>")
    unrecorded = tiny_checkpoint(tmp_path / "unrecorded", seed=9)
    tracking.record_report(tmp_path / "index.html", [*folders, unrecorded])
    assert not caplog.text
    parent = records.get_run(shown[0]).data.tags["mlflow.parentRunId"]
    for run in (*shown, parent):
        assert mlflow.artifacts.load_text(f"runs:/{run}/report/index.html") == "<p>the report</p>"
    assert records.list_artifacts(other, "report") == []
    tracking.record_report(tmp_path / "nowhere.html", folders)
    assert "nowhere.html was not recorded" in caplog.text


def test_an_evaluation_is_not_lost_if_the_store_does_not_answer(tmp_path, monkeypatch, caplog, tiny_checkpoint):
    folder = tiny_checkpoint(tmp_path / "train" / "qamoe" / "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlruns"))
    tracking.record_evaluation(folder, evaluate(tmp_path / "evaluate" / "qamoe" / "1", "first"))
    assert f"qamoe record {folder}" in caplog.text


def test_record_takes_training_folders_with_their_evaluations(records, tiny_checkpoint, tmp_path, capsys):
    from qamoe.pipeline import record

    folder = tiny_checkpoint(tmp_path / "artifacts" / "train" / "qamoe" / "1")
    evaluate(tmp_path / "artifacts" / "evaluate" / "qamoe" / "1", "first")
    with pytest.raises(UserError, match=r"nowhere.*model\.json"):
        record.run([folder, Path("nowhere")], "qa-moe")
    assert records.get_experiment_by_name("qa-moe") is None  # nothing is recorded
    record.run([folder], "qa-moe")
    record.run([folder.relative_to(tmp_path)], "qa-moe")
    (run,) = runs(records)
    assert "clean/mae" in run.data.metrics
    assert capsys.readouterr().out.count(f"run {run.info.run_id}, evaluated") == 2


@pytest.mark.slow
def test_a_server_that_is_down_is_refused_in_seconds_without_its_password(monkeypatch, tiny_params, tiny_stats):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:secret@127.0.0.1:{port}")
    with pytest.raises(UserError) as refusal, tracking.training_run(tiny_params, "qamoe", 1, DIGESTS, tiny_stats):
        pytest.fail("training began")
    assert "secret" not in str(refusal.value)


def test_trainings_that_begin_together_describe_the_same_data(records, tiny_params, tiny_stats):
    """MLflow inserts a dataset that it did not find, and the second of two such inserts fails."""
    from qamoe.models.checkpoint import parameters_config

    config = parameters_config(tiny_params, "qamoe", 1, DIGESTS)
    for turn in range(4):
        experiment = records.create_experiment(f"turn {turn}")
        new = [records.create_run(experiment).info.run_id for _ in range(8)]
        together = Barrier(len(new))

        def describe(run: str, together: Barrier = together) -> None:
            together.wait()
            tracking._describe(records, run, config, tiny_stats)

        with ThreadPoolExecutor(len(new)) as pool:
            list(pool.map(describe, new))
        described = [records.get_run(run).inputs.dataset_inputs[0].dataset.digest for run in new]
        assert len(set(described)) == 1
