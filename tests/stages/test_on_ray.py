"""Extraction on a Ray of two processes on this machine: the rules and the bytes of extraction in processes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qamoe import params as parameters
from qamoe.features import executor
from qamoe.features.executor import Job, make_parts_on_ray, read_part
from qamoe.params import Block
from qamoe.stages import extract
from tests.features.test_executor import make_part_obediently, values
from tests.features.test_media import film
from tests.stages.test_extract_scale import CHANGES, corpus, finished

ray = pytest.importorskip("ray", reason="ray is not installed: pip install -c requirements.lock -e '.[ray]'")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _left() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield
    ray.shutdown()


def test_a_worker_that_dies_or_hangs_costs_its_clip_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_make_part", make_part_obediently)
    orders = ["0", "exit", "2", "hang", "kill", "problem", "no stream", "error", "8"]
    jobs = []
    for i, order in enumerate(orders):
        (tmp_path / f"{i}.txt").write_text(order)
        jobs.append((Job(f"clip-{i}", "audio", tmp_path / f"{i}.txt", 0.0, None), tmp_path / "parts" / f"{i:064x}"))
    done: list[int] = []
    lost = make_parts_on_ray(jobs, {"audio": Block()}, 2, 20.0, lambda: done.append(1))
    assert lost == {
        ("clip-1", "audio"): "the extractor died",
        ("clip-3", "audio"): "took longer than 20 s",
        ("clip-4", "audio"): "the extractor died",
        ("clip-7", "audio"): "the extractor failed: IndexError: list index out of range",
    }
    found = values([read_part(part) for _, part in jobs])
    assert found == [[0, 0], None, [2, 2], None, None, "no face", "", None, [8, 8]]
    assert len(done) == len(orders)


def test_the_stage_gives_the_same_bytes_on_ray(
    params_file: Any,
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QAMOE_WORKERS", "2")
    corpus(tmp_path / "data", count=12, seconds=0.5)
    film(tmp_path / "data/0003.wav", seconds=0.5, streams="a")
    (tmp_path / "data/0004.wav").write_bytes(b"")
    params = parameters.load(params_file(CHANGES))
    made = {}
    for how in ("processes", "ray"):
        monkeypatch.setenv("QAMOE_EXECUTOR", how)
        extract.run(params, tmp_path / how)
        out = tmp_path / how / "extract"
        made[how] = {path.relative_to(out): path.read_bytes() for path in finished(out)}
    assert len(made["ray"]) == 2 * 12 + 5
    assert made["ray"] == made["processes"]
