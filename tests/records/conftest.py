"""A real MLflow server."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def mlflow_server(empty_records: Path) -> Callable[..., AbstractContextManager[int]]:
    """Start one with an empty store in a folder, as a context: mlflow_server(folder) gives its port.

    `files` is where artifacts go, a folder beside the store by default.
    """

    @contextmanager
    def started(place: Path, files: str = "") -> Iterator[int]:
        (place / "mlflow.db").write_bytes(empty_records.read_bytes())
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{place / 'mlflow.db'}"]
        command += ["--artifacts-destination", files or str(place / "files")]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=place, start_new_session=True
        )
        try:
            assert process.stdout is not None
            assert any("Application startup complete" in line for line in process.stdout), "the server ended"
            threading.Thread(target=process.stdout.read, daemon=True).start()  # a full pipe would stop it
            yield port
        finally:
            os.killpg(process.pid, 9)
            process.wait()

    return started
