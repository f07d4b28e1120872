"""Test the pipeline flow on a small repository: stale stages run, then the promotion gate; a failure stops it."""

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from prefect import State
from prefect.states import Completed

from flows import _dvc, _workspace, pipeline

ROOT = Path(pipeline.__file__).parent.parent


@pytest.fixture
def promotions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the promotion by a function that only counts its calls in this list."""
    calls: list[str] = []

    def run_promotion(experiment: str | None) -> State[str]:
        calls.append("called")
        return Completed(data="promoted: qa-moe 1")

    monkeypatch.setattr(_dvc, "STAGES", ("extract", "train", "report"))
    monkeypatch.setattr(pipeline, "run_promotion", run_promotion)
    return calls


def ran(repository: Path) -> list[str]:
    path = repository / "ran.txt"
    names = path.read_text().split() if path.exists() else []
    path.write_text("")
    return names


@pytest.mark.usefixtures("server")
@pytest.mark.slow
def test_stale_stages_run_and_the_promotion_always_runs(
    repository: Path, promotions: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    _dvc.start(pipeline.pipeline)
    assert ran(repository) == ["extract", "train-mean", "train-qamoe", "report"]
    printed = capsys.readouterr().out
    assert printed.index("report says hello") < printed.index("promoted: qa-moe 1") < printed.index("index.html")

    _dvc.start(pipeline.pipeline)
    assert ran(repository) == []
    assert promotions == ["called"] * 2

    (repository / "corpus.txt").write_text("better")
    _dvc.start(pipeline.pipeline)
    assert ran(repository) == ["extract", "train-mean", "train-qamoe", "report"]

    source = (repository / "stage.py").read_text()
    (repository / "stage.py").write_text(f"# a comment\n{source}")
    capsys.readouterr()
    state = pipeline.pipeline(return_state=True)
    assert (ran(repository), state.message) == ([], "nothing was stale")
    (repository / "stage.py").write_text(f"{source}\nprint('more')\n")
    _dvc.start(pipeline.pipeline)
    assert ran(repository) == ["extract", "train-mean", "train-qamoe", "report"]


@pytest.mark.usefixtures("server")
@pytest.mark.slow
def test_a_failed_stage_stops_the_pipeline_before_the_promotion(repository: Path, promotions: list[str]) -> None:
    (repository / "corpus.txt").write_text("bad")
    state = pipeline.pipeline(return_state=True)
    assert (state.is_failed(), state.message) == (True, "extract: corpus.txt is bad; any other content is allowed")
    assert promotions == []


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_absent_data_is_pulled_first(repository: Path, promotions: list[str]) -> None:
    """data/ is tracked by data.dvc and stored in a remote, as in a fresh clone."""

    def dvc(*arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "dvc", *arguments], check=True, capture_output=True)

    dvc("remote", "add", "sample", str(repository / "remote"))
    (repository / "data").mkdir()
    (repository / "data/clip.txt").write_text("clip")
    dvc("add", "data", "--quiet")
    dvc("push", "--remote", "sample", "data.dvc")
    entry = (repository / "data.dvc").read_text()
    (repository / "data.dvc").write_text(entry.replace("  path: data", "  path: data\n  remote: sample"))
    for folder in ("data", ".dvc/cache"):
        subprocess.run(["rm", "-r", folder], check=True)
    state = pipeline.pipeline(return_state=True)
    assert state.is_completed(), state.message
    assert (repository / "data/clip.txt").read_text() == "clip"

    # A killed pull leaves some files missing, and the next run pulls them. Files that a user deleted stay deleted.
    (repository / "data/clip.txt").unlink()
    assert pipeline.pipeline(return_state=True).is_completed()
    assert not (repository / "data/clip.txt").exists()
    pipeline._BEGUN.touch()
    assert pipeline.pipeline(return_state=True).is_completed()
    assert (repository / "data/clip.txt").read_text() == "clip"
    assert not pipeline._BEGUN.exists()


@pytest.mark.usefixtures("server")
def test_a_scheduled_run_refuses_uncommitted_changes(repository: Path, promotions: list[str]) -> None:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=someone", "-c", "user.email=someone@example.org")
        subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)

    git("init", "--quiet")
    plan = (repository / "dvc.yaml").read_text()
    (repository / "dvc.yaml").write_text(plan.replace("outs: [report.txt]", "metrics: [{report.txt: {cache: false}}]"))
    for output in ("dvc.lock", "report.txt", "extract.txt"):
        (repository / output).write_text("schema: '2.0'\n")
    git("add", "dvc.yaml", "dvc.lock", "stage.py", "report.txt", "extract.txt")
    git("commit", "--quiet", "--message", "all")
    (repository / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    (repository / "report.txt").write_text("of another run")
    assert _workspace.changed_files() == []
    (repository / "extract.txt").write_text("of DVC's cache")
    assert _workspace.changed_files() == ["extract.txt"]
    with (repository / "stage.py").open("a") as file:
        file.write("# changed\n")
    state = pipeline.pipeline(scheduled=True, return_state=True)
    assert state.is_failed()
    assert "stage.py" in (state.message or "")
    (repository / ".git/index").write_bytes(b"damaged")
    state = pipeline.pipeline(scheduled=True, return_state=True)
    assert state.is_failed(), "a guard that cannot look refuses"
    assert "index" in (state.message or "")
    assert ran(repository) == promotions == []


@pytest.mark.slow
def test_a_terminated_flow_ends_its_stage(repository: Path, server: str) -> None:
    """A worker cancels a run with SIGTERM to the process of the flow, here started by `python -m flows.extract`."""
    os.mkfifo(repository / "pipe")
    pipe = os.open(repository / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    waiting_stage = "import os, signal\nos.write(os.open('pipe', os.O_WRONLY), b'here')\nsignal.pause()\n"
    (repository / "stage.py").write_text(waiting_stage)
    environment = {**os.environ, "PREFECT_API_URL": server, "PYTHONPATH": str(ROOT)}
    flow = subprocess.Popen([sys.executable, "-m", "flows.extract"], env=environment)
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    try:
        assert poll.poll(120_000), "the stage did not start"
        assert os.read(pipe, 4) == b"here"
        flow.send_signal(signal.SIGTERM)
        assert poll.poll(60_000), "the stage did not end"
        assert os.read(pipe, 4) == b""
        assert flow.wait(timeout=60) != 0
    finally:
        flow.kill()
        os.close(pipe)


def test_deployments_contain_no_path_and_pass_known_parameters() -> None:
    import importlib

    import yaml

    content = (ROOT / "prefect.yaml").read_text()
    assert str(ROOT) not in content
    names = []
    for plan in yaml.safe_load(content)["deployments"]:
        assert plan["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
        path, _, name = plan["entrypoint"].partition(":")
        flow = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
        known = json.loads(flow.parameters.model_dump_json())["properties"]
        assert set(plan.get("parameters", {})) <= set(known)
        assert bool(plan["schedules"]) == plan.get("parameters", {}).get("scheduled", False), (
            "scheduled runs check for changes"
        )
        names.append(f"{flow.name}/{plan['name']}")
    assert names == [
        "pipeline/nightly",
        "evaluate-champion/weekly",
        "score/every-15-minutes",
        "tune/by-hand",
        "promote/by-hand",
    ]


def test_one_process_serves_the_same_deployments(monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml

    from flows import schedule

    monkeypatch.chdir(ROOT)
    deployments = {f"{d.flow_name}/{d.name}": d for d in schedule.deployments()}
    assert len(deployments) == 5
    for plan in yaml.safe_load(Path("prefect.yaml").read_text())["deployments"]:
        (served,) = (
            deployment
            for key, deployment in deployments.items()
            if key.endswith(f"/{plan['name']}") and plan["entrypoint"] in deployment.entrypoint
        )
        assert served.parameters == plan.get("parameters", {})
        assert [s.schedule.cron for s in served.schedules or []] == [s["cron"] for s in plan["schedules"]]
        assert (served.concurrency_limit, served.concurrency_options.collision_strategy) == (1, "CANCEL_NEW")


@pytest.mark.parametrize("stage", _dvc.STAGES)
def test_prefect_finds_the_flow_of_a_stage_by_path_and_by_module(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.flows import load_flow_from_entrypoint

    monkeypatch.chdir(ROOT)
    by_path = load_flow_from_entrypoint(f"flows/{stage}.py:{stage}")
    by_module = load_flow_from_entrypoint(f"flows.{stage}:{stage}")
    assert by_path.name == by_module.name == stage
    assert by_path.description == by_module.description
    assert "if it is stale" in str(by_path.description)
    assert by_module.to_deployment(name="by-hand").entrypoint == f"flows/{stage}.py:{stage}"


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_new_clips_are_ingested_before_the_stages(repository: Path, promotions: list[str]) -> None:
    """DVC tracks data/, and a folder has a manifest; a folder without one is skipped."""
    (repository / "data/media").mkdir(parents=True)
    header = "clip_id,source,path,start_s,end_s,text,label,split\n"
    (repository / "data/media/a.mp4").write_bytes(b"a video")
    (repository / "data/manifest.csv").write_text(f"{header}a,one,media/a.mp4,,,a video,1,train\n")
    subprocess.run([sys.executable, "-m", "dvc", "add", "data", "--quiet"], check=True)
    before = _workspace.provenance()["data_digest"]
    (repository / "params.yaml").write_text((ROOT / "params.yaml").read_text())

    assert pipeline.pipeline(ingest_from="new", return_state=True).is_completed()
    assert _workspace.provenance()["data_digest"] == before

    (repository / "new").mkdir()
    (repository / "new/b.mp4").write_bytes(b"another video")
    (repository / "new/manifest.csv").write_text(f"{header}b,two,b.mp4,,,a dull video,-1,\n")
    for _ in range(2):
        state = pipeline.pipeline(ingest_from="new", return_state=True)
        assert state.is_completed(), state.message
    rows = (repository / "data/manifest.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["clip_id", "a", "b"]
    after = _workspace.provenance()["data_digest"]
    assert after != before

    (repository / "new/manifest.csv").write_text(f"{header}b,two,b.mp4,,,other words,-1,\n")
    state = pipeline.pipeline(ingest_from="new", return_state=True)
    assert state.is_failed()
    assert "'b'" in (state.message or "")
    assert "data" in (state.message or "")
