"""kill -9 within a promotion or a rollback, and two promotions at once, by real processes on a real store."""

import json
import os
import random
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
WITHIN_S = 300  # a limit for what hangs, no measure

forks = get_context("forkserver")
forks.set_forkserver_preload([__name__, "mlflow.pyfunc", "qamoe.models.checkpoint", "qamoe.evaluation.bootstrap"])


def _in_store(place: Path, work: Callable[..., Any], arguments: tuple[Any, ...], pipe: Any) -> None:
    """What a process does: `work` in the folder of a store, its answer through the pipe."""
    import torch

    from qamoe.models import text_encoder_frozen

    def encode(ids: torch.Tensor, mask: torch.Tensor, encoder: str) -> torch.Tensor:
        return (
            torch.sin(ids[..., None] * torch.arange(1, text_encoder_frozen.WIDTH + 1) / text_encoder_frozen.WIDTH)
            * mask[..., None]
        )

    text_encoder_frozen.encode = encode  # what is promoted here does not depend on what the words mean
    torch.set_num_threads(1)
    os.chdir(place)
    os.environ |= {"MLFLOW_TRACKING_URI": f"sqlite:///{place / 'mlflow.db'}", "QAMOE_DEVICE": "cpu"}
    os.environ.pop("QAMOE_TRACKING", None)
    pipe.send(work(*arguments))


class Process:
    """A process that works in the folder of a store."""

    def __init__(self, place: Path, work: Callable[..., Any], *arguments: Any) -> None:
        self._answer, theirs = forks.Pipe(duplex=False)
        self._process = forks.Process(target=_in_store, args=(place, work, arguments, theirs))
        self._process.start()
        theirs.close()

    def ended(self) -> tuple[int | None, Any]:
        """Its exit code, and its answer where it gave one."""
        self._process.join(WITHIN_S)
        try:
            return self._process.exitcode, self._answer.recv()
        except EOFError:
            return self._process.exitcode, None


def done(place: Path, work: Callable[..., Any], *arguments: Any) -> Any:
    code, answer = Process(place, work, *arguments).ended()
    assert code == 0
    return answer


def interrupted(work: Callable[..., Any], arguments: tuple[Any, ...], point: int | None) -> int:
    """Do the work and count the transactions of the store, each once before and once after it is committed; at
    `point` this process is gone."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine
    from sqlalchemy.orm import Session

    passed = 0

    def moment(*_: Any) -> None:
        nonlocal passed
        passed += 1
        if passed == point:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "commit", moment)
    event.listen(Session, "after_commit", moment)
    work(*arguments)
    return passed


def promotion(params: Any, out: str) -> str:
    decision = promote.decide(params, Path(out))
    print(out, decision.outcome, *decision.reasons, sep="\n", flush=True)  # shown where the test fails
    return decision.outcome


def rollback() -> str:
    return versions.rollback("qa-moe")


def state(model: bool = True) -> dict[str, Any]:
    """What the registry says: aliases, decision, record and tags by version, and what the champion answers."""
    import mlflow
    import pandas as pd

    from qamoe.tracking.mlflow_store import connect

    client = connect()
    found: dict[str, Any] = {"aliases": {}, "versions": {}, "score": None}
    found["aliases"] = {a: str(v) for a, v in client.get_registered_model("qa-moe").aliases.items()}
    for version in client.search_model_versions("name = 'qa-moe'"):
        files = [f.path for f in client.list_artifacts(version.run_id, "promote") if f.path.endswith(".json")]
        told = [json.loads(mlflow.artifacts.load_text(f"runs:/{version.run_id}/{path}"))["decision"] for path in files]
        tags = dict(version.tags)
        found["versions"][str(version.version)] = {"tags": tags, "told": told, "page": version.description or ""}
    if model:
        served = mlflow.pyfunc.load_model("models:/qa-moe@champion")
        found["score"] = float(served.predict(pd.DataFrame({"text": ["a film"]}))["score"][0])
    return found


class Stand:
    """A store whose champion is version 1, and checkpoints of better candidates in folders of their own."""

    def __init__(self, place: Path, params: Any, train: Callable[[str, float], None]) -> None:
        self.place, self.params, self.train = place, params, train

    def keep(self) -> None:
        """Remember everything as it is; MLflow's addresses are absolute, so it comes back to the same place."""
        shutil.copytree(self.place, self.place.with_name("kept"))

    def restore(self) -> None:
        shutil.rmtree(self.place)
        shutil.copytree(self.place.with_name("kept"), self.place)

    def promote(self, out: str = "artifacts") -> Any:
        return done(self.place, promotion, self.params, out)

    def kill(self, point: int | None, work: Callable[..., Any], *arguments: Any) -> Any:
        """The number of moments of an undisturbed run, or kill one there; returns what the registry then says."""
        code, answer = Process(self.place, interrupted, work, arguments, point).ended()
        assert code == (0 if point is None else -signal.SIGKILL)
        return answer if point is None else done(self.place, state)


@pytest.fixture
def stand(tmp_path: Path, empty_records: Path, tiny_params: Any, tiny_corpus: Any, tiny_checkpoint: Any) -> Stand:
    place = tmp_path / "store"
    place.mkdir()
    shutil.copy(empty_records, place / "mlflow.db")

    def train(out: str, answer: float) -> None:
        if not (place / out).exists():
            tiny_corpus(place / out)
        digests = {"params": "p" * 64, "data": data_digest(place / out), "code": "c" * 64}
        for seed, other in ((1, answer), (2, 9.0)):
            tiny_checkpoint(place / out / "train/qamoe" / str(seed), seed=seed, answer=other, digests=digests)

    made = Stand(place, tiny_params, train)
    train("artifacts", 0.6)
    assert made.promote() == "promoted"
    train("artifacts", 1.0)
    return made


def assert_settled(stand: Stand) -> None:
    found = done(stand.place, state)
    assert found["aliases"] == {"champion": "2", "previous": "1"}
    second = found["versions"]["2"]
    assert (second["tags"]["qamoe.decision"], second["told"]) == ("promoted", ["promoted"])
    assert second["page"].startswith("**qa-moe, version 2: promoted**")
    assert not {registry._PROMOTING, registry.ROLLED_BACK} & set(second["tags"])
    assert len(found["versions"]) == 2, "a checkpoint is registered once"
    assert found["score"] == pytest.approx(1.0, abs=0.2)


def test_a_promotion_that_is_killed_leaves_one_champion_and_a_record_that_is_true(stand):
    stand.keep()
    moments = stand.kill(None, promotion, stand.params, "artifacts")
    assert moments > POINTS
    seen = set()
    for point in sorted(random.Random(14).sample(range(1, moments + 1), POINTS)):
        stand.restore()
        found = stand.kill(point, promotion, stand.params, "artifacts")
        champion, second = found["aliases"]["champion"], found["versions"].get("2", {"tags": {}, "told": []})
        decided = second["tags"].get("qamoe.decision")
        seen.add((champion, decided))
        assert found["score"] == pytest.approx({"1": 0.6, "2": 1.0}[champion], abs=0.2)
        assert decided in {"1": (None, "promoting"), "2": ("promoting", "promoted")}[champion], point
        assert set(second["told"]) <= {"1": {"promoting"}, "2": {"promoting", "promoted"}}[champion], point
        assert stand.promote() in ("promoted", "unchanged")
        assert_settled(stand)
    assert {champion for champion, _ in seen} == {"1", "2"}, "on both sides of the moment that counts"


def test_a_rollback_that_is_killed_leaves_one_champion_and_is_ended_by_the_next_command(stand):
    assert stand.promote() == "promoted"
    stand.keep()
    moments = stand.kill(None, rollback)
    between = 0
    for point in range(1, moments + 1):
        stand.restore()
        found = stand.kill(point, rollback)
        champion, half = found["aliases"]["champion"], len(set(found["aliases"].values())) == 1
        assert champion in ("1", "2")
        assert found["score"] == pytest.approx({"1": 0.6, "2": 1.0}[champion], abs=0.2)
        between += half
        assert stand.promote() == "unchanged"
        aliases = {"champion": champion, "previous": {"1": "2", "2": "1"}[champion]}
        assert done(stand.place, state)["aliases"] == aliases
        if half:
            stand.restore()
            stand.kill(point, rollback)
            assert "version 1 of qa-moe, in place of version 2" in done(stand.place, rollback)
            found = done(stand.place, state)
            assert found["aliases"] == {"champion": "1", "previous": "2"}
            assert registry.ROLLED_BACK in found["versions"]["2"]["tags"]
    assert between >= 1


def waited_for(params: Any, out: str, barrier: Any) -> str:
    """A promotion that has measured its candidate before any other may register its own."""
    submit = registry.submit

    def together(*arguments: Any) -> Any:
        if not barrier.broken:
            registry.submit = submit
            barrier.wait(WITHIN_S)
        return submit(*arguments)

    registry.submit = together
    return promotion(params, out)


def test_two_promotions_at_once_leave_one_champion_and_it_is_the_better_one(stand):
    stand.train("other", 0.66)
    barrier = forks.Barrier(2)
    both = [Process(stand.place, waited_for, stand.params, out, barrier) for out in ("artifacts", "other")]
    (code, better), (other_code, other) = (process.ended() for process in both)
    assert (code, other_code, better) == (0, 0, "promoted")
    found = done(stand.place, state)
    assert found["score"] == pytest.approx(1.0, abs=0.1)
    aliases, decided = found["aliases"], {v: about["tags"]["qamoe.decision"] for v, about in found["versions"].items()}
    assert decided[aliases["champion"]] == "promoted"
    (third,) = set(decided) - {"1", aliases["champion"]}
    assert decided[third] == other
    assert aliases["previous"] == (third if other == "promoted" else "1"), "each was judged against the champion then"
