"""Test that no client exhausts the server, reaches it under another name, or gets an error that is not JSON."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qamoe.errors import UserError
from qamoe.inference.extraction_worker import Limits
from qamoe.models import checkpoint
from qamoe.serving import connections
from qamoe.serving.api import Service, names_of
from qamoe.serving.middleware import HEADERS
from qamoe.serving.model_loader import open_model
from qamoe.serving.upload_folder import upload_folder
from tests.fixtures.serve_process import serving
from tests.fixtures.served import Server, running
from tests.serving.test_api import packed, tone

SHORT = Limits(media_bytes=1 << 20, json_bytes=1 << 20, head_s=0.3, body_s=0.6)
DEADLINE_S = 60  # against a hang


@pytest.fixture(scope="module")
def hurried(checkpoint_folder: Path) -> Iterator[Server]:
    """A server with short time limits."""
    with running(lambda: open_model("", checkpoint_folder), None, SHORT) as running_server:
        yield running_server


def connected(port: int, sent: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
    connection.sendall(sent)
    return connection


def received(connection: socket.socket) -> bytes:
    """Return what the server sends until it ends the connection."""
    with connection:
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def refusal(answer: bytes) -> tuple[int, str]:
    """Return the status and the sentence of an error; assert its form and its headers."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().lower().splitlines()
    headers = dict(line.split(": ", 1) for line in lines[1:])
    assert headers["content-type"] == "application/json", answer
    assert headers.items() >= {name: value.lower() for name, value in HEADERS.items()}.items()
    content = json.loads(body)
    assert set(content) == {"error"}
    return int(lines[0].split()[1]), content["error"]


def head(method: str, path: str, *fields: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *fields, "", ""]).encode()


@pytest.mark.parametrize(
    ("clip", "reason"),
    [
        ('{"audio": {"shape": [1000000000, 0], "float32": ""}}', r"\b1 column"),
        (json.dumps({"audio": {"shape": [10**400, 3], "float32": ""}}), r"shape\.0.*2147483647"),
        (json.dumps({"tokens": [10**400]}), r"tokens\.0.*2147483647"),
        ('{"tokens": [1e999]}', r"tokens\.0"),
        ('{"tokens": [NaN]}', "NaN"),
        ('{"text": "a", "text": "b"}', "twice"),
        (json.dumps(dict.fromkeys(range(17))), r"\b17\b.*\b16\b"),
        (json.dumps({"audio": packed(np.ones((3, 4)))}), r"clips\.0\.audio.*\b4\b.*\b3\b"),
        (json.dumps({"audio": packed(np.ones((401, 3)))}), r"clips\.0\.audio.*\b401\b.*\b400\b"),
    ],
)
def test_sizes_in_a_request_are_checked_before_anything_is_built(server: Server, clip: str, reason: str) -> None:
    status, answer = server.ask("POST", "/predict", b'{"clips": [%s]}' % clip.encode())
    assert status == 422, answer
    assert re.search(reason, answer["error"]), answer


def test_a_body_of_many_values_is_refused_before_it_is_read(server: Server) -> None:
    status, answer = server.ask("POST", "/predict", b"[" * 704_001)
    assert (status, "704000" in answer["error"]) == (413, True), answer


def test_a_form_is_refused_with_the_path_for_files(server: Server) -> None:
    for kind in ("multipart/form-data; boundary=x", "application/x-www-form-urlencoded"):
        status, answer = server.ask("POST", "/predict", b"--x\r\n", **{"Content-Type": kind})
        assert (status, "POST /clips" in answer["error"]) == (415, True), answer


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", 408),
        (head("POST", "/predict", "Content-Type: application/json", "Content-Length: 9") + b"{", 408),
        (head("POST", "/clips", "Content-Length: 9") + b"a", 408),
        pytest.param(head("POST", "/absent", "Content-Length: 9") + b"a", 404, marks=pytest.mark.slow),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Large: " + b"a" * (1 << 17), 400),
        (b"\x16\x03\x01" + b"\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (head("POST", "/clips", "Transfer-Encoding: chunked") + b"zz\r\n", 400),
    ],
    ids=["slow head", "slow json", "slow file", "slow body of no page", "large head", "tls", "no host", "bad chunk"],
)
def test_a_request_that_never_ends_or_is_not_http_is_refused(hurried: Server, sent: bytes, status: int) -> None:
    answered, sentence = refusal(received(connected(hurried.port, sent)))
    assert answered == status, sentence
    if status == 408:
        assert f"{SHORT.body_s if b'Content-Length' in sent else SHORT.head_s:g} s" in sentence


def test_connections_without_requests_and_without_readers_are_ended(hurried: Server) -> None:
    assert received(connected(hurried.port, b"")) == b""
    deaf = connected(hurried.port, b"")
    with pytest.raises(OSError, match=r"reset|pipe"):
        deaf.sendall(head("GET", "/openapi.json") * 300_000)
    deaf.close()
    assert hurried.ask("GET", "/healthz")[0] == 200


def test_bytes_after_the_last_request_do_not_cost_its_answer(server: Server) -> None:
    for _ in range(20):
        connection = connected(server.port, head("GET", "/openapi.json", "Connection: close") + b"a" * (1 << 19))
        assert received(connection).startswith(b"HTTP/1.1 200 ")


def test_a_client_that_ends_its_side_gets_its_answer(server: Server) -> None:
    connection = connected(server.port, head("GET", "/healthz"))
    connection.shutdown(socket.SHUT_WR)
    assert received(connection).startswith(b"HTTP/1.1 200 ")


def test_a_connection_beyond_the_limit_waits(checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_MOST", 2)
    with running(lambda: open_model("", checkpoint_folder)) as full:
        idle = [connected(full.port, b"") for _ in range(2)]
        third = connected(full.port, head("GET", "/healthz", "Connection: close"))
        third.settimeout(0.2)
        with pytest.raises(TimeoutError):
            third.recv(1)
        idle[0].close()
        third.settimeout(DEADLINE_S)
        assert received(third).startswith(b"HTTP/1.1 200 ")
        idle[1].close()


def test_the_limit_of_connections_leaves_descriptors_to_the_process() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        assert connections.most_connections() == 64
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
        assert connections.most_connections() == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert 1 <= connections.most_connections() <= 512


@pytest.mark.parametrize(
    "host", ["example.org", "localhost.example.org", "127.0.0.2", "[::1]", "user@localhost", "a:b:c"]
)
def test_a_foreign_host_is_refused_on_every_path(server: Server, host: str) -> None:
    for method, path in (
        ("GET", "/"),
        ("GET", "/healthz"),
        ("POST", "/predict"),
        ("GET", "/samples/0/media"),
        ("PUT", "/x"),
    ):
        status, answer = server.ask(method, path, None, Host=host)
        assert (status, set(answer)) == (403, {"error"}), (method, path)
        assert host not in answer["error"]
    assert server.raw("HEAD", "/healthz", None, Host=host) == (403, b"")


def test_a_server_has_its_address_and_the_allowed_names(checkpoint_folder: Path) -> None:
    hosts = names_of("127.0.0.1", ["Qamoe.example.org"])
    with running(lambda: open_model("", checkpoint_folder), hosts=hosts) as named:
        for host in ("127.0.0.1", "localhost:99", "LOCALHOST", "qamoe.example.org", "qamoe.example.org:443"):
            assert named.ask("GET", "/healthz", None, Host=host)[0] == 200, host
        assert named.ask("GET", "/healthz", None, Host="example.org")[0] == 403
        origin = {"Host": "qamoe.example.org", "Origin": "https://qamoe.example.org"}
        assert named.ask("POST", "/predict", {"clips": [{}]}, **origin)[0] == 200
    assert names_of("0.0.0.0", []) == {"0.0.0.0", "localhost"}
    assert names_of("192.0.2.1", ["a"]) == {"192.0.2.1", "a"}
    with pytest.raises(UserError, match="https://a"):
        names_of("127.0.0.1", ["https://a"])


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (("GET", "/absent"), 404),
        (("GET", "/predict/"), 404),
        (("GET", "/healthz/?q=secret"), 404),
        (("DELETE", "/predict"), 405),
        (("GET", "/samples/0/media", "Range: bytes=a-b"), 400),
        (("GET", "/samples/0/media", "Range: bytes=9999999-"), 416),
        (("GET", "/", "Connection: Upgrade", "Upgrade: websocket"), 200),
    ],
)
def test_every_error_is_json_with_the_same_headers(server: Server, request_line: Any, status: int) -> None:
    answer = received(connected(server.port, head(*request_line, "Connection: close")))
    assert int(answer.split()[1]) == status
    assert b"secret" not in answer
    if status >= 400:
        assert refusal(answer)[0] == status


def test_a_failure_is_json_with_the_same_headers(
    checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with running(lambda: open_model("", checkpoint_folder)) as failing:
        monkeypatch.setattr(failing.service, "samples", None)
        answer = received(connected(failing.port, head("GET", "/samples", "Connection: close")))
        assert refusal(answer)[0] == 500
    assert "TypeError" in capfd.readouterr().err, "the log says why"


def test_head_answers_as_get_without_a_body(server: Server) -> None:
    for path in ("/healthz", "/", "/model", "/samples", "/samples/1/media", "/openapi.json"):
        answer = received(connected(server.port, head("HEAD", path, "Connection: close")))
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"\r\n\r\n"), path
    assert server.raw("HEAD", "/absent") == (404, b"")


def test_an_early_refusal_of_a_large_body_is_read_by_its_sender(server: Server) -> None:
    body = bytes(8 << 20)
    for path, status in (("/absent", 404), ("/healthz", 405), ("/clips", 413), ("/predict", 413)):
        sent = head("POST", path, "Connection: close", f"Content-Length: {len(body)}") + body
        assert refusal(received(connected(server.port, sent)))[0] == status
    sent = head("POST", "/clips", "Connection: close", f"Content-Length: {len(body)}").replace(b"localhost", b"a.org")
    assert refusal(received(connected(server.port, sent + body)))[0] == 403


def test_large_bodies_together_are_limited(checkpoint_folder: Path) -> None:
    size = 16 << 20
    with running(lambda: open_model("", checkpoint_folder), None, Limits(json_bytes=size)) as server:
        sent = head(
            "POST", "/predict", "Content-Type: application/json", f"Content-Length: {size}", "Connection: close"
        )
        # The kernel holds a few MiB of what is sent on a connection, so when all of these 256 MiB are sent, the server
        # has read more than the 64 MiB that it may hold, and no body is complete.
        held = [connected(server.port, sent + bytes(size - 1)) for _ in range(16)]
        for connection in held:
            connection.sendall(b"\0")
        answers = [received(connection) for connection in held]
        statuses = Counter(refusal(answer)[0] for answer in answers)
        assert set(statuses) == {422, 503}
        assert statuses[422] >= 4
        assert all(b"retry-after: " in answer.lower() for answer in answers if refusal(answer)[0] == 503)
        # What was refused or answered is not counted any more.
        assert refusal(received(connected(server.port, sent + bytes(size))))[0] == 422


@pytest.mark.parametrize("damage", ["cut", "nan", "absent", "not json", "another model"])
def test_a_broken_model_is_not_loaded_and_the_old_one_answers(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path, damage: str
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny_checkpoint(tmp_path / "qamoe" / "1")
    with running(lambda: open_model("", folder)) as server:
        before = server.ask("POST", "/predict", {"clips": [{"text": "a film"}]})
        weights, config = folder / checkpoint.WEIGHTS, folder / checkpoint.CONFIG
        if damage == "cut":
            weights.write_bytes(weights.read_bytes()[:1000])
        elif damage == "nan":
            content = load_file(weights)
            name = next(name for name in sorted(content) if content[name].is_floating_point())
            content[name].view(-1)[0] = float("nan")
            save_file(content, weights)
        elif damage == "absent":
            config.unlink()
        elif damage == "not json":
            config.write_text("{")
        else:
            config.write_text(json.dumps(dict.fromkeys(json.loads(config.read_text()))))
        status, answer = server.ask("POST", "/reload")
        assert (status, str(tmp_path) in answer["error"]) == (503, False)
        assert server.ask("POST", "/predict", {"clips": [{"text": "a film"}]}) == before
        with pytest.raises(Exception, match=r"."):
            Service(lambda: open_model("", folder), None, Limits())


def test_an_upload_that_finds_no_space_is_refused(
    server: Server, tmp_path: Path, voice: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(tempfile.TemporaryDirectory[str]):
        """A folder in which the file to write is a full device."""

        def __enter__(self) -> str:
            Path(self.name, "clip").symlink_to("/dev/full")
            return self.name

    media = tone(tmp_path / "tone.wav", 1.0, voice)
    with monkeypatch.context() as patch:
        patch.setattr("qamoe.serving.api.tempfile.TemporaryDirectory", Full)
        sent = head("POST", "/clips", "Connection: close", f"Content-Length: {1 << 19}") + bytes(1 << 19)
        for body in (media, bytes(100)):  # found while it is written, and when it is closed
            assert server.ask("POST", "/clips", body)[0] == 507
        assert refusal(received(connected(server.port, sent)))[0] == 507
    assert server.ask("POST", "/clips", media)[0] == 201


def test_an_upload_without_a_descriptor_is_to_be_sent_again() -> None:
    from starlette.exceptions import HTTPException

    from qamoe.serving.api import _no_room

    with pytest.raises(HTTPException) as refused:
        _no_room(OSError(errno.EMFILE, "Too many open files"))
    assert (refused.value.status_code, refused.value.headers) == (503, {"Retry-After": "10"})
    with pytest.raises(PermissionError):
        _no_room(PermissionError(errno.EACCES, "Permission denied"))


def test_folders_of_killed_servers_are_removed_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = (
        "import os, signal\nfrom qamoe.serving.upload_folder import upload_folder\n"
        "with upload_folder() as folder:\n"
        "    (folder / 'half').mkdir()\n    (folder / 'half' / 'clip').write_bytes(bytes(99))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    tempfile.mkdtemp(prefix="qamoe-uploads-")  # of a server that was killed before it locked its folder
    (tmp_path / "another").mkdir()
    with upload_folder() as running_servers:
        with upload_folder() as own:
            left = {path.name for path in tmp_path.iterdir()}
            assert left == {running_servers.name, own.name, "another"}
        assert running_servers.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["another"]


def test_a_stop_ends_unfinished_requests_and_leaves_nothing(checkpoint_folder: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(temporary))
        with serving(checkpoint_folder, tmp_path / "log") as server:
            unfinished = [
                connected(server.port, sent)
                for sent in (
                    b"",
                    b"GET / HTTP/1.1\r\nHost:",
                    head("POST", "/clips", "Content-Length: 9") + b"a",
                    head("POST", "/predict", "Content-Type: application/json", "Content-Length: 9") + b"{",
                    head("POST", "/absent", "Content-Length: 9") + b"a",
                )
            ]
            assert received(connected(server.port, head("GET", "/healthz", "Connection: close"))).endswith(b"}")
        for connection in unfinished:
            assert received(connection) == b""
    assert list(temporary.iterdir()) == []
    assert (tmp_path / "log").read_text() == ""


def test_temporary_files_of_a_worker_go_with_the_folder_of_uploads(tmp_path: Path) -> None:
    program = (
        "import sys, tempfile\nfrom pathlib import Path\nfrom qamoe.inference.extraction_worker import _prepare\n"
        "tempfile.gettempdir()\n"
        "assert _prepare({}, False, Path(sys.argv[1])) is None\n"
        "print(tempfile.mkdtemp(), flush=True)\n"
        "import subprocess\nsubprocess.run(['mktemp'], check=True)\n"
    )
    made = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.splitlines()
    assert len(made) == 2
    assert {Path(path).parent for path in made} == {tmp_path}


@pytest.mark.slow
def test_a_stop_answers_requests_that_wait(checkpoint_folder: Path, tmp_path: Path) -> None:
    clips = [{"text": "a lovely film, " * 600, "audio": packed(np.ones((400, 3)))}] * 64
    body = json.dumps({"clips": clips}).encode()
    sent = head("POST", "/predict", "Content-Type: application/json", f"Content-Length: {len(body)}") + body
    with serving(checkpoint_folder, tmp_path / "log") as server:
        waiting = [connected(server.port, sent) for _ in range(40)]
        assert received(connected(server.port, head("GET", "/healthz", "Connection: close"))).endswith(b"}")
    refused = []
    for connection in waiting:
        with suppress(ConnectionResetError):  # its body had not been read
            answer = received(connection)
            refused += [answer] if answer and not answer.startswith(b"HTTP/1.1 200 ") else []
    assert {refusal(answer)[0] for answer in refused} == {503}
    assert "Traceback" not in (tmp_path / "log").read_text()
