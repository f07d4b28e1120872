"""Run Prefect's server and worker of a checkout, as `make server` and `make worker` do, on a free port."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIMEOUT_S = 900.0  # only ends a test that hangs
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def environment(checkout: Path, home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a user with only this checkout, without the settings of this machine."""
    foreign = ("QAMOE_", "MLFLOW_", "DVC_", "PREFECT_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    settings = {
        "PREFECT_HOME": str(home),
        "PYTHONPATH": f"{checkout}{os.pathsep}{checkout / 'src'}",
        "QAMOE_DEVICE": "cpu",
    }
    return {**kept, **settings, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}", **more}


class Services:
    """The services of one checkout. `home` is Prefect's folder; PREFECT_HOME marks all processes started here."""

    def __init__(self, checkout: Path, home: Path, **more: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.api = f"http://127.0.0.1:{self.port}/api"
        self.checkout, self.home = checkout, home
        self.environment = environment(checkout, home, PREFECT_API_URL=self.api, **more)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        home.mkdir(parents=True, exist_ok=True)

    def start(self, name: str) -> None:
        """Start server or worker; wait until a server answers."""
        command = [sys.executable, "scripts/services.py", name]
        if name == "server":
            command += ["--port", str(self.port)]
        with (self.home / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                command, cwd=self.checkout, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        if name == "server":
            self.until(lambda: self.request("health"))

    def kill(self, name: str) -> None:
        self.running[name].kill()
        self.running.pop(name).wait()

    def stop(self) -> None:
        """Stop all services as `make stop` does, and kill the remaining ones."""
        command = [sys.executable, "scripts/services.py", "stop"]
        done = subprocess.run(command, cwd=self.checkout, env=self.environment, capture_output=True, text=True)
        for name in list(self.running):
            self.kill(name)
        assert done.returncode == 0, done.stderr

    def deploy(self) -> None:
        """Do the same as `make deploy`."""
        self.prefect("work-pool", "create", "qamoe", "--type", "process")
        self.prefect("deploy", "--all")

    def prefect(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        done = subprocess.run(command, env=self.environment, cwd=self.checkout, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def request(self, path: str, content: dict[str, Any] | None = None, method: str | None = None) -> Any:
        """Return the JSON response of the server, or None if it does not respond or is too busy."""
        request = urllib.request.Request(
            f"{self.api}/{path}", headers={"Content-Type": "application/json"}, method=method
        )
        if content is not None:
            request.data = json.dumps(content).encode()
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise
        except OSError:
            pass
        return None

    def until(self, attempt: Callable[[], Any], within_s: float = TIMEOUT_S) -> Any:
        """Call `attempt` until its result is true, and return the result; no service may die in the meantime."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            if result := attempt():
                return result
            self.pause(0.5)
        raise AssertionError(f"no result within {within_s:g} s; see {self.home}")

    def pause(self, seconds: float) -> None:
        """Wait; no service may die in the meantime."""
        alive = {os.pidfd_open(process.pid): name for name, process in self.running.items()}
        try:
            dead = [alive[descriptor] for descriptor in select.select(list(alive), [], [], seconds)[0]]
        finally:
            for descriptor in alive:
                os.close(descriptor)
        assert not dead, f"{dead} ended; see {self.home}"

    def runs(self, deployment: str) -> list[dict[str, Any]]:
        """Return the runs of a deployment, newest first."""
        query = {"deployments": {"name": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_DESC"}
        return self.request("flow_runs/filter", query) or []

    def begin(self, deployment: str, within_s: float = TIMEOUT_S) -> str:
        """Start a run of `flow/deployment`, again while the slot is taken; return its id when it is running."""
        properties = self.until(lambda: self.request(f"deployments/name/{deployment}"))

        def start_run() -> str | None:
            run = self.until(lambda: self.request(f"deployments/{properties['id']}/create_flow_run", {}))
            state = self.until(lambda: (s := self.state(run["id"])) and s["type"] not in ("SCHEDULED", "PENDING") and s)
            taken = state["type"] == "CANCELLED" and "concurrency limit" in (state["message"] or "")
            return None if taken else run["id"]

        return self.until(start_run, within_s)

    def state(self, run: str) -> dict[str, Any] | None:
        response = self.request(f"flow_runs/{run}")
        return response and response["state"]

    def wait_for_end(self, run: str) -> dict[str, Any]:
        """Wait until a run has ended, and return its state."""
        return self.until(lambda: (s := self.state(run)) and s["type"] in ENDED and s)

    def processes(self, *words: str) -> list[int]:
        """Return the ids of the processes of these services whose command contains all words."""
        mark = f"PREFECT_HOME={self.home}".encode()
        pids = []
        for process in Path("/proc").iterdir():
            try:
                if process.name.isdecimal() and mark in (process / "environ").read_bytes().split(b"\0"):
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if all(word in command for word in words) and command:
                        pids.append(int(process.name))
            except (OSError, ValueError):  # the process has just ended
                continue
        return pids

    def clear(self) -> None:
        """Kill the processes that a failed test left running."""
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
