"""A real server on a free port, and small media to send it."""

import csv
import http.client
import json
import threading
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn

from qamoe.corpora.clips import COLUMNS
from qamoe.serving.server import Service, _listening, application
from qamoe.serving.source import Served, open_model
from qamoe.serving.uploads import Limits

WORDS = "a lovely <b>film</b> & <img src=x onerror=alert(1)>"


@dataclass(frozen=True)
class Server:
    """A server that runs; `ask` gives status and what the JSON of the answer says."""

    port: int
    service: Service

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        status, content = self.raw(method, path, body, **headers)
        return status, json.loads(content)

    def raw(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
        if body is not None and not isinstance(body, bytes | Iterator):
            body = json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} | headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def written(path: Path, sound: np.ndarray) -> Path:
    """Write a sound (N,) at 22.05 kHz as a wav file."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 22_050, 0, "NONE", ""))
        file.writeframes((sound * 32_767).astype("<i2").tobytes())
    return path


@contextmanager
def running(load: Callable[[], Served], clips: Path | None = None, limits: Limits | None = None) -> Iterator[Server]:
    """A server in a thread of this process; it listens before it is ready, so that nobody has to try again."""
    service = Service(load, clips, limits or Limits())
    opened = _listening("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(application(service), log_level="critical", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
    thread.start()
    try:
        yield Server(opened.getsockname()[1], service)
    finally:
        server.should_exit = True
        thread.join()
        opened.close()


@pytest.fixture(scope="session")
def checkpoint_folder(tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("served") / "qamoe" / "1")


@pytest.fixture(scope="session")
def voice() -> np.ndarray:
    """1.5 s of something like a vowel, at 22.05 kHz."""
    time = np.arange(33_075) / 22_050
    overtones = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 12))
    return (0.15 * overtones * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * time))).astype(np.float32)


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory, voice: np.ndarray) -> Path:
    """A drawn face that hums."""
    from qamoe.corpora import sample_face, sample_film

    random = np.random.default_rng(5)
    wave = sample_film.fitted(voice)
    portrait = sample_face.Portrait(sample_face.invent(random))
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    sample_film.write(path, wave, map(portrait.picture, sample_film.expressions(wave, 2.0, 0.5, random)))
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, film: Path) -> Path:
    """A folder of raw clips: four sources, one in test, with words that hold markup."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "film.mp4").write_bytes(film.read_bytes())
    rows = [
        ("a", "one", "film.mp4", "", "", WORDS, "1.5", "test"),
        ("b", "two", "film.mp4", "0.2", "1.4", "a dull film", "-2", "test"),
        ("c", "three", "film.mp4", "", "", "a film", "0", "train"),
    ]
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return folder


@pytest.fixture(scope="session")
def server(checkpoint_folder: Path, corpus: Path) -> Iterator[Server]:
    """A server of the tiny checkpoint, with samples and small limits."""
    limits = Limits(media_bytes=1 << 20, json_bytes=1 << 20, seconds=4.0, pixels=640 * 480)
    with running(lambda: open_model("", checkpoint_folder), corpus, limits) as found:
        yield found
