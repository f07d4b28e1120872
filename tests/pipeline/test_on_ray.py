"""Extraction and evaluation on Ray with two local workers follow the rules and write the bytes of processes."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from qamoe import ray_worker_pool
from qamoe.config import params as parameters
from qamoe.config.extractor_settings import ExtractorSettings
from qamoe.errors import UserError
from qamoe.extractors import worker_pool
from qamoe.extractors.worker_pool import Job, make_parts_on_ray, read_part
from qamoe.pipeline import extract
from tests.extractors.test_worker_pool import make_scripted_part, values
from tests.media.test_decode import write_media
from tests.pipeline.test_extract_scale import CHANGES, corpus, finished

ray = pytest.importorskip("ray", reason="ray is not installed: pip install -c requirements.lock -e '.[ray]'")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _ray_stopped() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield
    ray.shutdown()


def test_a_worker_that_dies_or_hangs_costs_only_its_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "_make_part", make_scripted_part)
    orders = ["0", "exit", "2", "hang", "kill", "problem", "no stream", "error", "8"]
    jobs = []
    for i, order in enumerate(orders):
        (tmp_path / f"{i}.txt").write_text(order)
        jobs.append((Job(f"clip-{i}", "audio", tmp_path / f"{i}.txt", 0.0, None), tmp_path / "parts" / f"{i:064x}"))
    done: list[int] = []
    failures = make_parts_on_ray(jobs, {"audio": ExtractorSettings()}, 2, 20.0, lambda: done.append(1))
    assert sorted(failures) == [(f"clip-{number}", "audio") for number in (1, 3, 4, 7)]
    assert failures["clip-1", "audio"] == failures["clip-4", "audio"]
    assert "20 s" in failures["clip-3", "audio"]
    assert "IndexError: list index out of range" in failures["clip-7", "audio"]
    assert values([read_part(part) for _, part in jobs]) == [
        [0, 0],
        None,
        [2, 2],
        None,
        None,
        "no face",
        "",
        None,
        [8, 8],
    ]
    assert len(done) == len(orders)


def test_extract_writes_the_same_bytes_on_ray(
    params_file: Any,
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QAMOE_WORKERS", "2")
    corpus(tmp_path / "data", count=12, seconds=0.5)
    write_media(tmp_path / "data/0003.wav", seconds=0.5, streams="a")
    (tmp_path / "data/0004.wav").write_bytes(b"")
    params = parameters.load(params_file(CHANGES))
    written = {}
    for executor in ("processes", "ray"):
        monkeypatch.setenv("QAMOE_EXECUTOR", executor)
        extract.run(params, tmp_path / executor)
        out = tmp_path / executor / "extract"
        written[executor] = {path.relative_to(out): path.read_bytes() for path in finished(out)}
    assert len(written["ray"]) == 2 * 12 + 5
    assert written["ray"] == written["processes"]


def test_evaluate_writes_the_same_bytes_on_ray(
    preprocessed: Path, tiny_params: Any, tiny_checkpoint: Any, environment: dict[str, str], stage: Any, tmp_path: Path
) -> None:
    shutil.copy(preprocessed / "preprocess/valid.arrow", preprocessed / "preprocess/test.arrow")
    content = tiny_params.model_dump(mode="json")
    content["seeds"] = {"mean": [1], "qamoe": [1, 2]}
    slices = ["clean", "missing", "mixed", "subsets", "swap"]
    content["evaluate"] |= {"draws": 2, "mixed_draws": 2, "slices": slices, "quality_permutations": 2}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    for model, seeds in content["seeds"].items():
        for seed in seeds:
            tiny_checkpoint(preprocessed / "train" / model / str(seed), model=model, seed=seed)
    written = {}
    for executor in ("processes", "ray"):
        environment |= {"QAMOE_EXECUTOR": executor, "QAMOE_WORKERS": "2"}
        out = tmp_path / executor
        shutil.copytree(preprocessed, out)
        done = stage("evaluate", "--params", tmp_path / "params.yaml", "--out", executor)
        assert done.returncode == 0, done.stderr
        written[executor] = {p.relative_to(out): p.read_bytes() for p in (out / "evaluate").rglob("*") if p.is_file()}
    assert len(written["ray"]) == 2 * 4 + 3 + 2, "files of qamoe, of mean, and the encoded text"
    assert written["ray"] == written["processes"]


def test_results_come_in_order_when_workers_die(tmp_path: Path) -> None:
    def killed_once(number: int) -> int:
        marker = tmp_path / str(number)
        if number % 2 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    def refused(number: int) -> int:
        raise UserError(f"{number} is not allowed.")

    assert list(ray_worker_pool.map_in_order(killed_once, [(number,) for number in range(6)], 2)) == [0, 1, 2, 3, 4, 5]
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(UserError, match=r"^3 is not allowed\.$"):
        list(ray_worker_pool.map_in_order(refused, [(3,)], 2))
