"""make stop ends what make server, worker and schedule started, in order, and nothing else."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

SERVICES = Path(__file__).parents[1] / "scripts/services.py"
WAITS = "import signal; print('ready', flush=True); signal.pause()"


def started(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]


def test_stop_ends_the_worker_before_the_server_and_nobody_with_an_old_number(tmp_path: Path) -> None:
    (tmp_path / ".run").mkdir()
    processes = {}
    for name in ("server", "worker", "schedule"):
        process = subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        since = started(process.pid) if name != "schedule" else "1"  # that number was another process's once
        (tmp_path / f".run/{name}.json").write_text(json.dumps({"pid": process.pid, "started": since}))
        processes[name] = process
    try:
        command = [sys.executable, str(SERVICES), "stop"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["worker", "server"]
        assert processes["worker"].wait() == processes["server"].wait() == -signal.SIGTERM
        assert processes["schedule"].poll() is None
        assert subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout == ""
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def test_a_service_that_runs_is_not_started_twice(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE) as process:
        (tmp_path / ".run").mkdir()
        noted = {"pid": process.pid, "started": started(process.pid)}
        (tmp_path / ".run/server.json").write_text(json.dumps(noted))
        command = [sys.executable, str(SERVICES), "server"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        process.kill()
    assert done.returncode == 1
    assert done.stderr == f"server: runs already as process {process.pid}; make stop ends it.\n"


def test_a_service_is_quiet_and_its_leases_outlive_it(tmp_path: Path) -> None:
    """In the place of Prefect a module that tells what it was started with."""
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect/__init__.py").touch()  # without it the installed package goes first
    (tmp_path / "prefect/__main__.py").write_text(
        "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"
    )
    foreign = ("PREFECT_", "DO_NOT_TRACK")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [sys.executable, str(SERVICES), "server", "--port", "4201"],
        cwd=tmp_path,
        env={**kept, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    arguments, environment = json.loads(done.stdout)
    assert arguments == ["--no-prompt", "server", "start", "--host", "127.0.0.1", "--port", "4201"]
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert environment["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"].endswith(".filesystem")
