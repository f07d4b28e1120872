"""Use a store behind a login with environment variables only, and keep them out of messages and files."""

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
AUTHORIZATION = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "host"}


def login_proxy(port: int) -> type[BaseHTTPRequestHandler]:
    """Return the handler of a proxy that forwards requests with the right login to the server at a port."""

    class LoginProxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.headers.get("authorization") != AUTHORIZATION:
                self._answer(401, {}, b"You are not authenticated.")
                return
            upstream = HTTPConnection("127.0.0.1", port, timeout=300)
            forwarded = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
            upstream.request(self.command, self.path, body, forwarded)
            answer = upstream.getresponse()
            self._answer(answer.status, dict(answer.getheaders()), answer.read())

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward  # noqa: N815

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return LoginProxy


@pytest.fixture
def address(tmp_path: Path, mlflow_server: Callable[[Path], AbstractContextManager[int]]) -> Iterator[str]:
    """The address of an MLflow server behind a login."""
    with mlflow_server(tmp_path) as port, ThreadingHTTPServer(("127.0.0.1", 0), login_proxy(port)) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_port}"
        proxy.shutdown()


def test_a_store_behind_a_login_needs_environment_variables_only(
    address: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QAMOE_DEVICE", "cpu")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "300")  # generous; it only ends a request that hangs
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    for user, password in (("", ""), (USER, "planted-other")):
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        with pytest.raises(UserError, match=r"127\.0\.0\.1.*MLFLOW_TRACKING_URI.*401") as refusal:
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
