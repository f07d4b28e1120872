"""A store behind a login, as a team's server has one: used by environment variables alone, and said without them."""

import base64
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from qamoe.errors import UserError
from qamoe.tracking.mlflow_store import connect
from qamoe.tracking.runs import record_training

pytestmark = pytest.mark.slow
USER, PASSWORD = "ann", "planted-login"
ASKED = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
_OF_ONE_HOP = {"connection", "transfer-encoding", "content-length", "host"}


def gate(port: int) -> type[BaseHTTPRequestHandler]:
    """What stands before a team's MLflow server: without the login nothing passes."""

    class Gate(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.headers.get("authorization") != ASKED:
                self._answer(401, {}, b"You are not authenticated.")
                return
            behind = HTTPConnection("127.0.0.1", port, timeout=300)
            kept = {name: value for name, value in self.headers.items() if name.lower() not in _OF_ONE_HOP}
            behind.request(self.command, self.path, body, kept)
            answer = behind.getresponse()
            self._answer(answer.status, dict(answer.getheaders()), answer.read())

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass  # noqa: N815

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in _OF_ONE_HOP:
                    self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Gate


@pytest.fixture
def address(tmp_path: Path, mlflow_server: Callable[[Path], AbstractContextManager[int]]) -> Iterator[str]:
    """An MLflow server, with a login before it."""
    with mlflow_server(tmp_path) as port, ThreadingHTTPServer(("127.0.0.1", 0), gate(port)) as front:
        threading.Thread(target=front.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{front.server_port}"
        front.shutdown()


def test_a_store_behind_a_login_is_used_by_environment_variables_alone(
    address: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QAMOE_DEVICE", "cpu")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "300")  # a limit for what hangs, no measure
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    for user, password in (("", ""), (USER, "planted-other")):
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        with pytest.raises(UserError, match=r"cannot be used: .*401") as refusal:
            connect()
        assert "planted" not in str(refusal.value)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    folder = tiny_checkpoint(tmp_path / "checkpoint", model="mean")
    run = connect().get_run(record_training(connect(), folder, "qa-moe"))
    assert run.info.status == "FINISHED"
    model = mlflow.artifacts.download_artifacts(
        f"models:/{run.data.tags['qamoe.logged_model']}", dst_path=str(tmp_path / "fetched")
    )
    assert (Path(model) / "artifacts" / "model.json").read_bytes() == (folder / "model.json").read_bytes()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if b"planted" in path.read_bytes()] == []
