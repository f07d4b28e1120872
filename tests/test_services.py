"""Test that make stop ends only the services that make server, worker and schedule started, in order."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SERVICES = Path(__file__).parents[1] / "scripts/services.py"
WAITS = "import signal; print('ready', flush=True); signal.pause()"


def started(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]


@pytest.mark.integration
def test_stop_ends_the_worker_before_the_server_and_spares_a_process_with_a_reused_id(tmp_path: Path) -> None:
    (tmp_path / ".run").mkdir()
    processes = {}
    for name in ("server", "worker", "schedule"):
        process = subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        since = started(process.pid) if name != "schedule" else "1"  # as if the id belonged to another process before
        (tmp_path / f".run/{name}.json").write_text(json.dumps({"pid": process.pid, "started": since}))
        processes[name] = process
    try:
        command = [sys.executable, str(SERVICES), "stop"]
        stop = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert [line.split(":")[0] for line in stop.stdout.splitlines()] == ["worker", "server"]
        assert processes["worker"].wait() == processes["server"].wait() == -signal.SIGTERM
        assert processes["schedule"].poll() is None
        assert subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout == ""
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


@pytest.mark.integration
def test_a_running_service_is_not_started_again(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE) as process:
        (tmp_path / ".run").mkdir()
        recorded = {"pid": process.pid, "started": started(process.pid)}
        (tmp_path / ".run/server.json").write_text(json.dumps(recorded))
        command = [sys.executable, str(SERVICES), "server"]
        server = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        process.kill()
    assert server.returncode == 1
    (line,) = server.stderr.splitlines()
    assert line.startswith("server: ")
    assert str(process.pid) in line


@pytest.mark.integration
def test_help_and_an_unknown_service(tmp_path: Path) -> None:
    for argument, code in (("--help", 0), ("unknown", 2)):
        command = [sys.executable, str(SERVICES), argument]
        process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert process.returncode == code
        assert "server" in process.stdout + process.stderr
        assert "Traceback" not in process.stderr


@pytest.mark.integration
def test_a_service_sends_no_telemetry_and_stores_its_leases(tmp_path: Path) -> None:
    """A module replaces Prefect and prints its arguments and its environment."""
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect/__init__.py").touch()  # otherwise the installed package takes precedence
    (tmp_path / "prefect/__main__.py").write_text(
        "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"
    )
    removed = ("PREFECT_", "DO_NOT_TRACK")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(removed)}
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    process = subprocess.run(
        [sys.executable, str(SERVICES), "server", "--port", "4201"],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    arguments, passed = json.loads(process.stdout)
    assert arguments == ["--no-prompt", "server", "start", "--host", "127.0.0.1", "--port", "4201"]
    assert passed["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert passed["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"].endswith(".filesystem")
