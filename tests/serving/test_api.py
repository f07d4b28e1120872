"""Test that the server answers as the registered model does, and refuses invalid requests in one sentence."""

import base64
import gzip
import multiprocessing
import os
import random
import re
import signal
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from qamoe.inference.extraction_worker import Extraction, Limits
from qamoe.inference.predict import predict
from qamoe.media.decode import FORMATS, SUFFIXES
from qamoe.models import checkpoint
from qamoe.serving.api import PAGE, Service
from qamoe.serving.model_loader import open_model
from tests.data.test_subtitles import with_track
from tests.fixtures.served import WORDS, Server, running

DRAWS = np.random.default_rng(3)
CLIPS: list[dict[str, Any]] = [
    {"text": "a lovely video", "audio": DRAWS.normal(5, 2, (7, 3)), "vision": DRAWS.normal(0.1, 0.3, (2, 2))},
    {"audio": DRAWS.normal(5, 2, (90, 3))},
    {"tokens": [101, 2204, 102], "vision": DRAWS.normal(0.1, 0.3, (5, 2))},
    {},
]
UNKNOWN = "A" * 24


def packed(frames: np.ndarray) -> dict[str, Any]:
    return {"shape": list(frames.shape), "float32": base64.b64encode(frames.astype("<f4").tobytes()).decode()}


def sent(clip: dict[str, Any]) -> dict[str, Any]:
    return {name: packed(value) if isinstance(value, np.ndarray) else value for name, value in clip.items()}


def rows(clips: list[dict[str, Any]]) -> pd.DataFrame:
    """Return the same clips as input of the pyfunc, in float32 as in the request."""
    columns = {name: [clip.get(name) for clip in clips] for name in ("text", "tokens", "audio", "vision")}
    for name in ("audio", "vision"):
        columns[name] = [None if frames is None else frames.astype(np.float32) for frames in columns[name]]
    return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})


@pytest.mark.parametrize(("model", "experts"), [("concat", None), ("moe", 8)])
def test_the_server_reports_the_experts_of_its_model(
    tiny_checkpoint: Any, tmp_path: Path, model: str, experts: Any
) -> None:
    served = open_model("", tiny_checkpoint(tmp_path / model / "1", model=model))
    assert Service(lambda: served, None, Limits()).about().experts == experts


def assert_equal(answers: list[dict[str, Any]], expected: pd.DataFrame) -> None:
    assert len(answers) == len(expected)
    for answer, (_, row) in zip(answers, expected.iterrows(), strict=True):
        for name in ("score", "low_90", "high_90", "variance"):
            assert answer[name] == pytest.approx(row[name], abs=1e-5)
        for m in ("text", "audio", "vision"):
            assert answer["trust"][m] == pytest.approx(row[f"trust_{m}"], abs=1e-5)
            assert answer["r"][m] == pytest.approx(row[f"r_{m}"], abs=1e-5)
        assert answer["routing"] == pytest.approx(row["routing"], abs=1e-5)


def tone(path: Path, seconds: float, samples: np.ndarray) -> bytes:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 22_050, 0, "NONE", ""))
        file.writeframes((np.resize(samples, int(seconds * 22_050)) * 20_000).astype("<i2").tobytes())
    return path.read_bytes()


def black_video(path: Path, width: int, height: int) -> bytes:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8))))
        container.mux(stream.encode(None))
    return path.read_bytes()


def test_a_batch_over_http_equals_its_rows_and_the_prediction_code(server, checkpoint_folder):
    status, answer = server.ask("POST", "/predict", {"clips": [sent(clip) for clip in CLIPS]})
    assert status == 200
    assert_equal(answer["clips"], predict(checkpoint.load(checkpoint_folder), rows(CLIPS)))
    alone = [server.ask("POST", "/predict", {"clips": [sent(clip)]})[1]["clips"][0] for clip in CLIPS]
    assert_equal(alone, predict(checkpoint.load(checkpoint_folder), rows(CLIPS)))
    assert answer["clips"][3]["trust"] == {"text": 0, "audio": 0, "vision": 0}


def test_the_champion_is_served_and_reload_follows_a_rollback(records, tiny_checkpoint, tmp_path):
    import mlflow

    from qamoe.registry import registry, versions
    from qamoe.tracking.runs import record_training

    for seed, answer in ((1, 1.0), (2, -1.0)):
        folder = tiny_checkpoint(tmp_path / str(seed), seed=seed, answer=answer)
        run = records.get_run(record_training(records, folder, "qa-moe"))
        records.set_registered_model_alias("qa-moe", "champion", registry._register(records, "qa-moe", run))
    clips = {"clips": [sent(clip) for clip in CLIPS]}
    with running(lambda: open_model("models:/qa-moe@champion", None)) as server:
        records.set_registered_model_alias("qa-moe", "previous", "1")
        for version in ("2", "1"):
            assert server.ask("POST", "/reload")[1]["name"] == f"qa-moe version {version} (champion)"
            pyfunc = mlflow.pyfunc.load_model(f"models:/qa-moe/{version}")
            assert_equal(server.ask("POST", "/predict", clips)[1]["clips"], pyfunc.predict(rows(CLIPS)))
            if version == "2":
                versions.rollback("qa-moe")
                assert server.ask("GET", "/healthz")[1]["model"] == "qa-moe version 2 (champion)", "before a reload"
        records.delete_registered_model_alias("qa-moe", "champion")
        assert server.ask("POST", "/reload")[0] == 503
        assert server.ask("GET", "/healthz")[1]["model"] == "qa-moe version 1 (champion)"


def test_a_video_is_extracted_once_and_then_predicted_with_any_text_and_degradation(server, film, checkpoint_folder):
    from qamoe.inference.extraction_worker import extract_file

    status, clip = server.ask("POST", "/clips", film.read_bytes())
    assert status == 201
    assert clip["frames"] == {"audio": 29, "vision": 8}
    assert clip["seconds"] == pytest.approx(1.5, abs=0.1)
    path = f"/clips/{clip['id']}/predict"
    _, clean = server.ask("POST", path, {"text": "a lovely video"})
    served = open_model("", checkpoint_folder)
    frames = extract_file(film, served.extractors).frames
    columns = {"text": "a lovely video", **frames}
    one = pd.DataFrame({name: pd.Series([value], dtype=object) for name, value in columns.items()})
    assert_equal([clean], served.predict(one))

    def degraded(**degradations: Any) -> dict[str, Any]:
        return server.ask("POST", path, {"text": "a lovely video", "degrade": degradations})[1]

    assert degraded(audio={"kind": "noise", "severity": 0}) == clean
    assert degraded() == clean
    scores = {clean["score"]}
    for modality in ("text", "audio", "vision"):
        for kind in ("missing", "noise"):
            answer = degraded(**{modality: {"kind": kind, "severity": 1}})
            assert answer["score"] not in scores
            scores.add(answer["score"])
    # A second upload of the same video has another id and the same draws.
    half = degraded(audio={"kind": "noise", "severity": 0.5})
    second_id = server.ask("POST", "/clips", film.read_bytes())[1]["id"]
    assert second_id != clip["id"]
    body = {"text": "a lovely video", "degrade": {"audio": {"kind": "noise", "severity": 0.5}}}
    assert server.ask("POST", f"/clips/{second_id}/predict", body)[1] == half
    assert half["score"] != clean["score"]


def test_the_subtitles_of_an_upload_are_its_text(server, film, tmp_path):
    path = with_track(film, tmp_path / "film.mkv", [(200, 900, "a &quot;lovely&quot;"), (1000, 1400, "video")])
    status, clip = server.ask("POST", "/clips", path.read_bytes())
    assert (status, clip["text"], clip["words"]) == (201, 'a "lovely" video', None)
    predict = f"/clips/{clip['id']}/predict"
    _, read = server.ask("POST", predict, {})
    assert read["text"] == 'a "lovely" video'
    assert read == server.ask("POST", predict, {"text": 'a "lovely" video'})[1]
    _, silent = server.ask("POST", predict, {"text": ""})
    assert (silent["text"], silent["trust"]["text"]) == (None, 0)


def test_an_audio_file_is_a_clip_without_vision(server, tmp_path, voice):
    status, clip = server.ask("POST", "/clips", tone(tmp_path / "tone.wav", 1.0, voice))
    assert (status, clip["frames"]) == (201, {"audio": 19, "vision": 0})
    assert set(clip["problems"]) - {"text"} == {"vision"}
    status, answer = server.ask("POST", f"/clips/{clip['id']}/predict", {})
    assert status == 200
    assert answer["trust"]["vision"] == 0
    assert (answer["trust"]["text"] > 0) == (answer["text"] is not None)  # a recogniser may hear words in this buzz


def test_samples_come_from_the_test_split_by_label_and_are_extracted_once(server):
    _, samples = server.ask("GET", "/samples")
    assert [(s["text"], s["label"]) for s in samples] == [("a dull film", -2.0), (WORDS, 1.5)]
    first, second = (server.ask("POST", "/samples/0", {})[1] for _ in range(2))
    assert first == second
    assert first["seconds"] == pytest.approx(1.2)
    status, media = server.raw("GET", "/samples/1/media", Range="bytes=0-9")
    assert (status, len(media)) == (206, 10)
    status, answer = server.ask("POST", "/samples/2", {})
    assert status == 404
    assert re.search(r"\b2\b.*from 0", answer["error"])


def test_the_page_and_the_api_description_contain_no_external_address(server):
    for path, name in (("/", "index.html"), ("/docs", "docs.html")):
        status, page = server.raw("GET", path)
        assert (status, page.decode()) == (200, (PAGE / name).read_text())
        assert re.findall(rb"(?:https?:)?//[a-z0-9.-]+\.[a-z]+", page) == []
    status, api = server.ask("GET", "/openapi.json")
    assert status == 200
    assert set(api["paths"]) == {
        "/healthz", "/model", "/reload", "/predict", "/clips", "/clips/{clip_id}/predict",
        "/samples", "/samples/{number}", "/samples/{number}/media",
    }  # fmt: skip
    fields = {name for schema in api["components"]["schemas"].values() for name in schema.get("properties", {})}
    assert "severity" in fields
    assert not fields & {"path", "url", "uri", "file", "folder", "address"}


SECRET = "s3cr3t-of-the-sender"


def bad_requests(film: bytes) -> dict[str, tuple[int, str, str, Any]]:
    """Return name -> expected status, method, path, body."""
    frames = packed(np.ones((2, 3), np.float32))
    clip = f"/clips/{UNKNOWN}/predict"

    def one(**clip: Any) -> tuple[str, str, Any]:
        return "POST", "/predict", {"clips": [clip]}

    return {
        "not json": (422, "POST", "/predict", SECRET.encode()),
        "half of a json": (422, "POST", "/predict", b'{"clips": ['),
        "not utf-8": (400, "POST", "/predict", b'{"clips": "\xff\xfe"}'),
        "deep": (400, "POST", "/predict", b"[" * 200_000),
        "zipped": (400, "POST", "/predict", gzip.compress(b'{"clips": [{"text": "' + b"a" * (50 << 20) + b'"}]}')),
        "a zipped file": (422, "POST", "/clips", gzip.compress(bytes(50 << 20))),
        "an array": (422, "POST", "/predict", []),
        "nothing": (422, "POST", "/predict", None),
        "no clips": (422, "POST", "/predict", {"clips": []}),
        "too many clips": (422, "POST", "/predict", {"clips": [{}] * 65}),
        "another key": (422, *one(**{SECRET: 1})),
        "a path": (422, *one(path=f"/etc/{SECRET}")),
        "a url": (422, *one(media=f"http://example.org/{SECRET}")),
        "a path for features": (422, *one(audio=f"file:///{SECRET}")),
        "text that is a number": (422, *one(text=5)),
        "half a character": (422, "POST", "/predict", b'{"clips": [{"text": "\\ud800"}]}'),
        "long text": (422, *one(text=SECRET * 1000)),
        "tokens that are words": (422, *one(tokens=[SECRET])),
        "tokens unknown": (422, *one(tokens=[101, 99_999_999])),
        "tokens negative": (422, *one(tokens=[-1])),
        "not base64": (422, *one(audio={"shape": [1, 3], "float32": "?" * 16})),
        "fewer bytes": (422, *one(audio=frames | {"shape": [3, 3]})),
        "a shape of one": (422, *one(audio=frames | {"shape": [6]})),
        "a negative shape": (422, *one(audio=frames | {"shape": [-2, -3]})),
        "few columns": (422, *one(audio=packed(np.ones((3, 2), np.float32)))),
        "nan": (422, *one(audio=packed(np.full((2, 3), np.nan)))),
        "infinity": (422, *one(vision=packed(np.full((2, 2), np.inf)))),
        "an unknown id": (404, "POST", clip, {}),
        "a path as id": (404, "POST", "/clips/..%2F..%2Fetc%2Fpasswd/predict", {}),
        "a long id": (422, "POST", f"/clips/{'a' * 500}/predict", {}),
        "another kind": (422, "POST", clip, {"degrade": {"audio": {"kind": SECRET, "severity": 1}}}),
        "a severity above 1": (422, "POST", clip, {"degrade": {"audio": {"kind": "noise", "severity": 1.5}}}),
        "a severity of nan": (422, "POST", clip, b'{"degrade": {"audio": {"kind": "noise", "severity": NaN}}}'),
        "no sample": (404, "GET", "/samples/9/media", None),
        "a sample by name": (422, "GET", "/samples/..%2e/media", None),
        "no page": (404, "GET", f"/{SECRET}", None),
        "another method": (405, "DELETE", "/predict", None),
        "an empty file": (400, "POST", "/clips", b""),
        "not media": (422, "POST", "/clips", SECRET.encode() * 50),
        "a playlist": (422, "POST", "/clips", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"),
        "a list of files": (422, "POST", "/clips", b"ffconcat version 1.0\nfile /etc/passwd\n"),
        "half a video": (422, "POST", "/clips", film[: len(film) // 3]),
        "a large file": (413, "POST", "/clips", bytes(2 << 20)),
        "a large json": (413, "POST", "/predict", b'{"clips": [{"text": "' + b"a" * (2 << 20) + b'"}]}'),
    }  # fmt: skip


def assert_refused(server: Server, status: int, method: str, path: str, body: Any, name: str = "") -> None:
    got, content = server.raw(method, path, body)
    text = content.decode()
    assert got == status, (name, got, text)
    assert re.fullmatch(r'\{"error":"[^"\n]{10,300}\."\}', text.replace('\\"', "'")), (name, text)
    assert SECRET not in text, name
    assert "Traceback" not in text


def test_invalid_requests_are_refused_in_one_sentence(server, film):
    for name, request in bad_requests(film.read_bytes()).items():
        assert_refused(server, *request, name=name)
    assert server.ask("GET", "/healthz")[0] == 200


def test_two_hundred_seeded_malformed_requests_leave_the_server_up(server, film):
    """Each request is a valid clip in which one value is replaced by an invalid one."""
    chance = random.Random(14)
    audio = packed(np.ones((4, 3), np.float32))
    good = {"text": "a video", "tokens": [101, 102], "audio": audio, "vision": packed(np.ones((2, 2)))}
    invalid = [5, -1, True, {}, [[1]], [None], {"shape": [1]}, 1e308, float("nan"), 10**400]
    invalid_by_field = {
        "text": [*invalid, "\ud800" * 3, "x" * 20_000],
        "tokens": [*invalid, "file:///etc/passwd", [1.5], [10**30], [30_522], [0] * 600],
        "audio": [
            *invalid,
            "file:///etc/passwd",
            [],
            packed(np.full((1, 3), np.nan)),
            audio | {"url": "http://passwd"},
        ],
        "vision": [
            *invalid,
            "../passwd",
            packed(np.ones((3, 1), np.float32)),
            packed(np.ones((2, 2))) | {"shape": [2]},
        ],
        "shape": [*invalid, "4,3", [4], [4, 3, 1], [3, 3], [-4, -3], [4.5, 3], [2**40, 2**40]],
        "float32": [*invalid, "", "?", "A", "AAAA", "/etc/passwd"],
    }
    requests = bad_requests(film.read_bytes())
    for name in chance.choices(sorted(set(requests) - {"a large file", "a large json"}), k=60):
        assert_refused(server, *requests[name], name=name)
    for _ in range(200):
        field = chance.choice(list(invalid_by_field))
        value = chance.choice(invalid_by_field[field])
        clip = good | ({field: value} if field in good else {"audio": audio | {field: value}})
        status, content = server.raw("POST", "/predict", {"clips": [clip]})
        text = content.decode()
        assert status in (400, 422), (field, value, text)
        assert text.startswith('{"error":"')
        assert text.endswith('."}')
        assert not any(word in text for word in ("Traceback", "passwd", "1e308", "xxxx"))
    media = film.read_bytes()
    for _ in range(5):  # some damaged videos can still be read
        damaged = bytearray(media)
        for _ in range(200):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        assert server.raw("POST", "/clips", bytes(damaged))[0] in (201, 422)
    assert server.ask("POST", "/predict", {"clips": [sent(CLIPS[0])]})[0] == 200


def test_clips_that_are_too_long_or_too_large_are_refused_before_decoding(server, tmp_path, voice):
    long = tone(tmp_path / "long.wav", 6.0, voice)
    status, answer = server.ask("POST", "/clips", long)
    assert status == 422
    assert re.search(r"\b4 s\b", answer["error"])
    status, answer = server.ask("POST", "/clips", black_video(tmp_path / "large.mp4", 1280, 720))
    assert status == 422
    assert re.search(r"1280 x 720.*307200", answer["error"])
    status, answer = server.ask("POST", "/clips", black_video(tmp_path / "dark.mp4", 64, 64))
    assert status == 422
    assert re.search("audio: .*vision: .*face", answer["error"])
    status, answer = server.ask("POST", "/clips", b"--x\r\n", **{"Content-Type": "multipart/form-data; boundary=x"})
    assert status == 415
    assert "form" in answer["error"]


def test_a_body_without_a_length_is_limited_too(server):
    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield bytes(1 << 16)

    status, answer = server.ask("POST", "/clips", chunks())
    assert status == 413
    assert "1 MiB" in answer["error"]


def test_requests_from_pages_of_other_sites_are_refused(server):
    body: dict[str, Any] = {"clips": [{}]}
    assert server.ask("POST", "/predict", body, Origin="http://example.org")[0] == 403
    assert server.ask("POST", "/predict", body, Origin="null")[0] == 403
    assert server.ask("POST", "/predict", body, Origin=f"http://127.0.0.1:{server.port}")[0] == 200


def test_the_page_offers_the_media_that_every_command_reads():
    accepted = re.search(r'accept="([^"]*)"', (PAGE / "index.html").read_text())
    assert accepted is not None
    assert set(accepted[1].split(",")) == SUFFIXES | {"video/*", "audio/*"}


def test_playlists_are_not_among_the_formats():
    assert not {"hls", "concat", "dash"} & set(FORMATS.split(","))


@pytest.mark.slow
def test_a_file_that_takes_too_long_does_not_affect_the_next_one(film):
    from qamoe.config.extractor_settings import EgemapsSettings
    from qamoe.errors import UserError

    extractors: Any = {"audio": EgemapsSettings(extractor="egemaps", rate=20)}
    extraction = Extraction(Limits(work_s=0.001), extractors)
    try:
        with pytest.raises(UserError, match=r"0\.001 s"):
            extraction.extract(film, extractors)
        extraction.limits = Limits()
        frames = extraction.extract(film, extractors).frames["audio"]
    finally:
        extraction.close()
    unlimited = Extraction(Limits(), extractors)
    try:
        np.testing.assert_array_equal(frames, unlimited.extract(film, extractors).frames["audio"])
    finally:
        unlimited.close()


@pytest.mark.slow
def test_a_worker_that_died_idle_is_replaced_before_the_next_file(film):
    from qamoe.config.extractor_settings import EgemapsSettings

    extractors: Any = {"audio": EgemapsSettings(extractor="egemaps", rate=20)}
    before = set(multiprocessing.active_children())
    extraction = Extraction(Limits(), extractors)
    try:
        first = extraction.extract(film, extractors)
        (worker,) = set(multiprocessing.active_children()) - before
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        assert np.array_equal(extraction.extract(film, extractors).frames["audio"], first.frames["audio"])
    finally:
        extraction.close()
    assert set(multiprocessing.active_children()) == before


@pytest.mark.slow
def test_a_thousand_requests_of_eight_clients_get_the_same_answers_as_a_batch(server, checkpoint_folder):
    expected = predict(checkpoint.load(checkpoint_folder), rows(CLIPS))

    def client(number: int) -> int:
        for i in range(125):
            index = (number + i) % len(CLIPS)
            status, answer = server.ask("POST", "/predict", {"clips": [sent(CLIPS[index])]})
            assert status == 200
            assert_equal(answer["clips"], expected.iloc[[index]])
        return 125

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(client, range(8))) == 1000
