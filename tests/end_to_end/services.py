"""Prefect's server and worker of a checkout, as `make server` and `make worker` start them, on a free port."""

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

WITHIN_S = 900.0  # a limit for what hangs, no measure
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def environment(checkout: Path, home: Path, **more: str) -> dict[str, str]:
    """The environment of a user who has nothing but this checkout: no settings of the machine's own."""
    foreign = ("QAMOE_", "MLFLOW_", "DVC_", "PREFECT_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    own = {"PREFECT_HOME": str(home), "PYTHONPATH": f"{checkout}{os.pathsep}{checkout / 'src'}", "QAMOE_DEVICE": "cpu"}
    return {**kept, **own, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}", **more}


class Services:
    """What runs for one checkout. `home` is Prefect's folder, and marks all processes that were started here."""

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
        """Start server or worker; of a server, wait until it answers."""
        command = [sys.executable, "scripts/services.py", name]
        if name == "server":
            command += ["--port", str(self.port)]
        with (self.home / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                command, cwd=self.checkout, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        if name == "server":
            self.until(lambda: self.ask("health"))

    def kill(self, name: str) -> None:
        self.running[name].kill()
        self.running.pop(name).wait()

    def stop(self) -> None:
        """End all as `make stop` does; what is left after it is killed, since the machine is not the test's own."""
        command = [sys.executable, "scripts/services.py", "stop"]
        done = subprocess.run(command, cwd=self.checkout, env=self.environment, capture_output=True, text=True)
        for name in list(self.running):
            self.kill(name)
        assert done.returncode == 0, done.stderr

    def deploy(self) -> None:
        """What `make deploy` does."""
        self.prefect("work-pool", "create", "qamoe", "--type", "process")
        self.prefect("deploy", "--all")

    def prefect(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        done = subprocess.run(command, env=self.environment, cwd=self.checkout, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ask(self, path: str, content: dict[str, Any] | None = None, method: str | None = None) -> Any:
        """The JSON answer of the server, or None while it does not answer, or says that it is too busy."""
        request = urllib.request.Request(
            f"{self.api}/{path}", headers={"Content-Type": "application/json"}, method=method
        )
        if content is not None:
            request.data = json.dumps(content).encode()
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise
        except OSError:
            pass
        return None

    def until(self, found: Callable[[], Any], within_s: float = WITHIN_S) -> Any:
        """Ask until there is an answer; between two questions wait for a service to die, which none must."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            if answer := found():
                return answer
            self.pause(0.5)
        raise AssertionError(f"no answer within {within_s:g} s; see {self.home}")

    def pause(self, seconds: float) -> None:
        """Let time pass in which no service may die."""
        alive = {os.pidfd_open(process.pid): name for name, process in self.running.items()}
        try:
            dead = [alive[descriptor] for descriptor in select.select(list(alive), [], [], seconds)[0]]
        finally:
            for descriptor in alive:
                os.close(descriptor)
        assert not dead, f"{dead} ended; see {self.home}"

    def runs(self, deployment: str) -> list[dict[str, Any]]:
        """The runs of a deployment, the newest first."""
        asked = {"deployments": {"name": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_DESC"}
        return self.ask("flow_runs/filter", asked) or []

    def begin(self, deployment: str, within_s: float = WITHIN_S) -> str:
        """Start a run of `flow/deployment`, anew while another's slot is taken; returns its id once it runs."""
        found = self.until(lambda: self.ask(f"deployments/name/{deployment}"))

        def running() -> str | None:
            run = self.until(lambda: self.ask(f"deployments/{found['id']}/create_flow_run", {}))
            state = self.until(lambda: (s := self.state(run["id"])) and s["type"] not in ("SCHEDULED", "PENDING") and s)
            taken = state["type"] == "CANCELLED" and "concurrency limit" in (state["message"] or "")
            return None if taken else run["id"]

        return self.until(running, within_s)

    def state(self, run: str) -> dict[str, Any] | None:
        answer = self.ask(f"flow_runs/{run}")
        return answer and answer["state"]

    def ended(self, run: str) -> dict[str, Any]:
        """The state of a run that has ended; waits for it."""
        return self.until(lambda: (s := self.state(run)) and s["type"] in ENDED and s)

    def processes(self, *words: str) -> list[int]:
        """The processes that stem from these services and have all of the words in their command."""
        mark = f"PREFECT_HOME={self.home}".encode()
        found = []
        for place in Path("/proc").iterdir():
            try:
                if place.name.isdecimal() and mark in (place / "environ").read_bytes().split(b"\0"):
                    command = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if all(word in command for word in words) and command:
                        found.append(int(place.name))
            except (OSError, ValueError):  # it has just ended
                continue
        return found

    def clear(self) -> None:
        """Kill what a failed test left."""
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
