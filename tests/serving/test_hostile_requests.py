"""Send generated requests to the application, and mutated requests and slow clients to a real server."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qamoe.inference.extraction_worker import Limits
from qamoe.serving.model_loader import open_model
from tests.fixtures import load, request_mutations
from tests.fixtures.served import Server, running

SMALL = Limits(media_bytes=1 << 16, json_bytes=1 << 16)
INTEGERS = st.integers() | st.sampled_from([2**31, 2**63, 10**30, 10**400, -1])
FLOATS = st.floats() | st.sampled_from([1e308, 1e-320])
VALUES = st.recursive(
    st.none() | st.booleans() | INTEGERS | FLOATS | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=10,
)
FRAMES = VALUES | st.fixed_dictionaries(
    {
        "shape": VALUES | st.lists(st.integers(0, 4) | INTEGERS, min_size=2, max_size=2),
        "float32": VALUES | st.binary(max_size=64).map(lambda raw: base64.b64encode(raw).decode()),
    }
)
CLIPS = st.fixed_dictionaries(
    {},
    optional={
        "text": VALUES | st.text(),
        "tokens": VALUES | st.lists(st.integers(0, 40_000), max_size=60),
        "audio": FRAMES,
        "vision": FRAMES,
        "path": VALUES,
    },
)
BODIES = VALUES | st.fixed_dictionaries({"clips": VALUES | st.lists(VALUES | CLIPS, max_size=4)})
DEGRADED = VALUES | st.fixed_dictionaries(
    {"degrade": VALUES | st.fixed_dictionaries({"audio": st.fixed_dictionaries({"kind": VALUES, "severity": VALUES})})}
)
PATHS = st.sampled_from(["/", "/clips", "/clips/a/predict", "/healthz", "/samples", "/reload/", "/model", "/docs"])
TARGETS = PATHS | st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=40).map(
    lambda tail: f"/{tail}"
)


@pytest.fixture(scope="module")
def small(checkpoint_folder: Path) -> Iterator[Server]:
    with running(lambda: open_model("", checkpoint_folder), None, SMALL) as server:
        yield server


def assert_answered(server: Server, method: str, path: str, body: Any = None, **headers: str) -> int:
    """Assert that an answer is JSON with finite numbers, and an error if its status says so; return the status."""
    connection_status, content = server.raw(method, path, body, **headers)
    assert connection_status != 500, content
    if connection_status >= 400 and method != "HEAD":
        answer = json.loads(content)
        assert set(answer) == {"error"}
        assert answer["error"].endswith(".")
    return connection_status


@given(body=BODIES)
@settings(max_examples=60)
def test_any_json_for_predict_is_answered_or_refused(small: Server, body: Any) -> None:
    status = assert_answered(small, "POST", "/predict", json.dumps(body).encode())
    assert status in (200, 413, 415, 422)


@given(body=DEGRADED)
@settings(max_examples=50)
def test_any_json_for_a_clip_is_refused_or_not_found(small: Server, body: Any) -> None:
    assert assert_answered(small, "POST", "/clips/a/predict", json.dumps(body).encode()) in (404, 422)


@given(body=st.binary(max_size=2000))
@settings(max_examples=50)
def test_any_bytes_are_refused_as_json_and_as_media(small: Server, body: bytes) -> None:
    assert assert_answered(small, "POST", "/predict", body) in (400, 422)
    assert assert_answered(small, "POST", "/clips", body) in (400, 409, 422)


@given(method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"]), target=TARGETS)
@settings(max_examples=100)
def test_any_path_is_answered(small: Server, method: str, target: str) -> None:
    assert assert_answered(small, method, target) < 500


@given(host=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=30))
@settings(max_examples=100)
def test_any_other_host_is_refused(small: Server, host: str) -> None:
    own = host.lower().partition(":")[0] in ("localhost", "127.0.0.1")
    assert own or assert_answered(small, "GET", "/healthz", None, Host=host) in (400, 403)


@pytest.mark.slow
@pytest.mark.endurance
def test_mutated_requests_leave_a_real_server_up(
    checkpoint_folder: Path, corpus: Path, cases: Callable[[int], int], tmp_path: Path
) -> None:
    statuses = request_mutations.run(cases(2000), 14, checkpoint_folder, tmp_path / "log", "--clips", str(corpus))
    assert sum(statuses.values()) == cases(2000)
    assert statuses.keys() >= {200, 400, 422}, "the mutations reach the application"


def test_the_mutations_of_a_seed_are_the_same() -> None:
    assert list(request_mutations.mutations(50, 3)) == list(request_mutations.mutations(50, 3))
    assert list(request_mutations.mutations(50, 3)) != list(request_mutations.mutations(50, 4))


@pytest.mark.slow
@pytest.mark.endurance
def test_slow_clients_take_nothing_from_quick_ones(
    checkpoint_folder: Path, cases: Callable[[int], int], tmp_path: Path
) -> None:
    requests, slow = cases(1000), cases(200)
    outcome = load.run(requests, slow, min(32, slow), checkpoint_folder, tmp_path / "log")
    load.check(outcome, requests, slow)
