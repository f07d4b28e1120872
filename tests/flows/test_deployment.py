"""prefect.yaml on a real server: its cron makes scheduled runs, and a worker runs one from any folder."""

import json
import os
import select
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
WITHIN_S = 180.0

pytestmark = pytest.mark.slow


@contextmanager
def running(command: list[str], environment: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process for the time of the block."""
    process = subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until(found: Callable[[], Any], process: subprocess.Popen[bytes]) -> Any:
    """Ask until there is an answer; between two questions wait for the process to die, which it must not."""
    end = time.monotonic() + WITHIN_S
    with os.fdopen(os.pidfd_open(process.pid)) as alive:
        while time.monotonic() < end:
            if answer := found():
                return answer
            assert not select.select([alive], [], [], 0.5)[0], f"{process.args} ended with {process.wait()}"
    raise AssertionError("no answer in time")


def ask(url: str, content: dict[str, Any] | None = None) -> Any:
    """The JSON answer of the server, or None while it does not answer."""
    request = urllib.request.Request(url, headers={"Content-Type": "application/json"})
    if content is not None:
        request.data = json.dumps(content).encode()
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)
    except OSError:
        return None


@pytest.fixture
def checkout(repository: Path) -> Path:
    """A checkout with these flows and a pipeline of small stages, committed."""
    shutil.copytree(ROOT / "flows", repository / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "prefect.yaml", repository)
    who = ("-c", "user.name=someone", "-c", "user.email=someone@example.org")
    for arguments in (("init", "--quiet"), ("add", "."), (*who, "commit", "--quiet", "--message", "all")):
        subprocess.run(["git", *arguments], check=True, capture_output=True)
    return repository


def test_the_nightly_deployment_is_scheduled_and_runs(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    environment = {
        **os.environ,
        "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect")),
        "PREFECT_API_URL": api,
    }
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]

    def call(*arguments: str) -> str:
        done = subprocess.run(
            [*prefect, *arguments], env=environment, cwd=checkout, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    with ExitStack() as stack:
        serve = [*prefect, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        server = stack.enter_context(running(serve, environment, elsewhere))
        until(lambda: ask(f"{api}/health"), server)
        call("work-pool", "create", "qamoe", "--type", "process")
        call("deploy", "--all")

        planned = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
        nightly = {"deployments": {"name": {"any_": ["nightly"]}}}
        runs = until(lambda: ask(f"{api}/flow_runs/filter", planned | nightly), server)
        assert all("T03:00:00" in run["expected_start_time"] for run in runs)

        crons = {run["name"]: run for run in ask(f"{api}/deployments/filter", {})}
        assert set(crons) == {"nightly", "weekly", "every-15-minutes", "by-hand"}
        # Run names say what a run does, so this one is told by its tag.
        call("deployment", "run", "pipeline/nightly", "--tag", "now")
        work = [*prefect, "worker", "start", "--pool", "qamoe", "--type", "process"]
        stack.enter_context(running(work, environment, elsewhere))
        named = {
            "flow_runs": {"tags": {"all_": ["now"]}, "state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}}
        }
        (run,) = until(lambda: ask(f"{api}/flow_runs/filter", named), server)
    # The stages ran from the checkout, though the worker stands elsewhere; this pipeline lacks one of the real one's.
    assert (checkout / "ran.txt").read_text() == "extract\n"
    assert "Stage 'preprocess' not found inside 'dvc.yaml'" in run["state"]["message"]
