"""kill -9 during a promotion or a rollback, and two promotions at once, with real processes on a real store."""

import json
import os
import random
import re
import shutil
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from qamoe.pipeline import promote
from qamoe.pipeline.shared import data_digest
from qamoe.registry import registry, versions

pytestmark = pytest.mark.slow
POINTS = 20
TIMEOUT_S = 300  # only ends a test that hangs

forks = get_context("forkserver")
forks.set_forkserver_preload([__name__, "mlflow.pyfunc", "qamoe.models.checkpoint", "qamoe.evaluation.bootstrap"])


def _run_in_store(folder: Path, work: Callable[..., Any], arguments: tuple[Any, ...], pipe: Any) -> None:
    """Run `work` in the folder of a store and send its result through the pipe."""
    import torch

    from qamoe.models import text_encoder_frozen

    def encode(ids: torch.Tensor, mask: torch.Tensor, encoder: str = "") -> torch.Tensor:
        return (
            torch.sin(ids[..., None] * torch.arange(1, text_encoder_frozen.WIDTH + 1) / text_encoder_frozen.WIDTH)
            * mask[..., None]
        )

    setattr(text_encoder_frozen, "encode", encode)  # noqa: B010  # promotion does not depend on the meaning of words
    torch.set_num_threads(1)
    os.chdir(folder)
    os.environ |= {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}", "QAMOE_DEVICE": "cpu"}
    os.environ.pop("QAMOE_TRACKING", None)
    pipe.send(work(*arguments))


class Process:
    """A process that works in the folder of a store."""

    def __init__(self, folder: Path, work: Callable[..., Any], *arguments: Any) -> None:
        self._receiver, sender = forks.Pipe(duplex=False)
        self._process = forks.Process(target=_run_in_store, args=(folder, work, arguments, sender))
        self._process.start()
        sender.close()

    def wait(self) -> tuple[int | None, Any]:
        """Wait for the process; return its exit code and its result, None if it sent none."""
        self._process.join(TIMEOUT_S)
        try:
            return self._process.exitcode, self._receiver.recv()
        except EOFError:
            return self._process.exitcode, None


def run_process(folder: Path, work: Callable[..., Any], *arguments: Any) -> Any:
    code, result = Process(folder, work, *arguments).wait()
    assert code == 0
    return result


def interrupted(work: Callable[..., Any], arguments: tuple[Any, ...], point: int | None) -> int:
    """Count the store's transactions during `work`, before and after each commit; kill the process at `point`."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine
    from sqlalchemy.orm import Session

    count = 0

    def count_and_kill(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == point:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "commit", count_and_kill)
    event.listen(Session, "after_commit", count_and_kill)
    work(*arguments)
    return count


def promotion(params: Any, out: str) -> str:
    decision = promote.decide(params, Path(out))
    print(out, decision.outcome, *decision.reasons, sep="\n", flush=True)  # shown if the test fails
    return decision.outcome


def rollback() -> str:
    return versions.rollback("qa-moe")


def state(model: bool = True) -> dict[str, Any]:
    """Read the registry: aliases; tags, recorded decisions and page by version; and the champion's prediction."""
    import mlflow
    import pandas as pd

    from qamoe.tracking.mlflow_store import connect

    client = connect()
    content: dict[str, Any] = {"aliases": {}, "versions": {}, "score": None}
    content["aliases"] = {a: str(v) for a, v in client.get_registered_model("qa-moe").aliases.items()}
    for version in client.search_model_versions("name = 'qa-moe'"):
        files = [f.path for f in client.list_artifacts(version.run_id, "promote") if f.path.endswith(".json")]
        records = [json.loads(mlflow.artifacts.load_text(f"runs:/{version.run_id}/{path}")) for path in files]
        content["versions"][str(version.version)] = {
            "tags": dict(version.tags),
            "decisions": [record["decision"] for record in records],
            "page": version.description or "",
        }
    if model:
        served = mlflow.pyfunc.load_model("models:/qa-moe@champion")
        content["score"] = float(served.predict(pd.DataFrame({"text": ["a film"]}))["score"][0])
    return content


class Store:
    """A store whose champion is version 1, and folders with checkpoints of better candidates."""

    def __init__(self, folder: Path, params: Any, train: Callable[[str, float], None]) -> None:
        self.folder, self.params, self.train = folder, params, train

    def save(self) -> None:
        """Copy the folder; `restore` copies it back to the same path, because MLflow stores absolute paths."""
        shutil.copytree(self.folder, self.folder.with_name("saved"))

    def restore(self) -> None:
        shutil.rmtree(self.folder)
        shutil.copytree(self.folder.with_name("saved"), self.folder)

    def promote(self, out: str = "artifacts") -> Any:
        return run_process(self.folder, promotion, self.params, out)

    def kill(self, point: int | None, work: Callable[..., Any], *arguments: Any) -> Any:
        """Kill the work at `point` and return the state of the registry; without it, count the points of a full run."""
        code, points = Process(self.folder, interrupted, work, arguments, point).wait()
        assert code == (0 if point is None else -signal.SIGKILL)
        return points if point is None else run_process(self.folder, state)


@pytest.fixture
def store(tmp_path: Path, empty_records: Path, tiny_params: Any, tiny_corpus: Any, tiny_checkpoint: Any) -> Store:
    folder = tmp_path / "store"
    folder.mkdir()
    shutil.copy(empty_records, folder / "mlflow.db")

    def train(out: str, answer: float) -> None:
        if not (folder / out).exists():
            tiny_corpus(folder / out)
        digests = {"params": "p" * 64, "data": data_digest(folder / out), "code": "c" * 64}
        for seed, other in ((1, answer), (2, 9.0)):
            tiny_checkpoint(folder / out / "train/qamoe" / str(seed), seed=seed, answer=other, digests=digests)

    store = Store(folder, tiny_params, train)
    train("artifacts", 0.6)
    assert store.promote() == "promoted"
    train("artifacts", 1.0)
    return store


def assert_settled(store: Store) -> None:
    registered = run_process(store.folder, state)
    assert registered["aliases"] == {"champion": "2", "previous": "1"}
    second = registered["versions"]["2"]
    assert (second["tags"]["qamoe.decision"], second["decisions"]) == ("promoted", ["promoted"])
    assert second["page"].startswith("**qa-moe, version 2: promoted**")
    assert not {registry._PROMOTING, registry.ROLLED_BACK} & set(second["tags"])
    assert len(registered["versions"]) == 2, "a checkpoint is registered once"
    assert registered["score"] == pytest.approx(1.0, abs=0.2)


def test_a_killed_promotion_leaves_one_champion_and_a_true_record(store):
    store.save()
    points = store.kill(None, promotion, store.params, "artifacts")
    assert points > POINTS
    seen = set()
    for point in sorted(random.Random(14).sample(range(1, points + 1), POINTS)):
        store.restore()
        registered = store.kill(point, promotion, store.params, "artifacts")
        champion = registered["aliases"]["champion"]
        second = registered["versions"].get("2", {"tags": {}, "decisions": []})
        decided = second["tags"].get("qamoe.decision")
        seen.add((champion, decided))
        assert registered["score"] == pytest.approx({"1": 0.6, "2": 1.0}[champion], abs=0.2)
        assert decided in {"1": (None, "promoting"), "2": ("promoting", "promoted")}[champion], point
        assert set(second["decisions"]) <= {"1": {"promoting"}, "2": {"promoting", "promoted"}}[champion], point
        assert store.promote() in ("promoted", "unchanged")
        assert_settled(store)
    assert {champion for champion, _ in seen} == {"1", "2"}, "kills before and after the champion changed"


def test_a_killed_rollback_leaves_one_champion_and_the_next_command_completes_it(store):
    assert store.promote() == "promoted"
    store.save()
    points = store.kill(None, rollback)
    between = 0
    for point in range(1, points + 1):
        store.restore()
        registered = store.kill(point, rollback)
        champion, half = registered["aliases"]["champion"], len(set(registered["aliases"].values())) == 1
        assert champion in ("1", "2")
        assert registered["score"] == pytest.approx({"1": 0.6, "2": 1.0}[champion], abs=0.2)
        between += half
        assert store.promote() == "unchanged"
        aliases = {"champion": champion, "previous": {"1": "2", "2": "1"}[champion]}
        assert run_process(store.folder, state)["aliases"] == aliases
        if half:
            store.restore()
            store.kill(point, rollback)
            assert re.search("version 1 of qa-moe.*version 2", run_process(store.folder, rollback))
            registered = run_process(store.folder, state)
            assert registered["aliases"] == {"champion": "1", "previous": "2"}
            assert registry.ROLLED_BACK in registered["versions"]["2"]["tags"]
    assert between >= 1


def promotion_after_barrier(params: Any, out: str, barrier: Any) -> str:
    """Promote, but register the candidate only after the other process has measured its own."""
    submit = registry.submit

    def submit_after_barrier(*arguments: Any, **named: Any) -> Any:
        if not barrier.broken:
            registry.submit = submit
            barrier.wait(TIMEOUT_S)
        return submit(*arguments, **named)

    setattr(registry, "submit", submit_after_barrier)  # noqa: B010
    return promotion(params, out)


def test_two_promotions_at_once_leave_the_better_one_as_the_only_champion(store):
    store.train("other", 0.66)
    barrier = forks.Barrier(2)
    both = [
        Process(store.folder, promotion_after_barrier, store.params, out, barrier) for out in ("artifacts", "other")
    ]
    (code, better), (other_code, other) = (process.wait() for process in both)
    assert (code, other_code, better) == (0, 0, "promoted")
    registered = run_process(store.folder, state)
    assert registered["score"] == pytest.approx(1.0, abs=0.1)
    aliases = registered["aliases"]
    decided = {v: content["tags"]["qamoe.decision"] for v, content in registered["versions"].items()}
    assert decided[aliases["champion"]] == "promoted"
    (third,) = set(decided) - {"1", aliases["champion"]}
    assert decided[third] == other
    assert aliases["previous"] == (third if other == "promoted" else "1"), (
        "each was compared with the champion of its time"
    )
