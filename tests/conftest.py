"""Shared fixtures: a record store that is migrated once per session, and a tiny corpus and tiny checkpoints."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from tests.fixtures.no_copies import write_no_copies

# The same examples in every run, and no time limit: a property fails or passes on any machine.
settings.register_profile(
    "fixed", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fixed")
ROOT = Path(__file__).parents[1]
# Tests of stages, flows and commands; other integration tests have the marker.
INTEGRATION = ("cli", "end_to_end", "flows", "pipeline", "serving")
pytest_plugins = (
    "tests.fixtures.disks",
    "tests.fixtures.processes",
    "tests.fixtures.records",
    "tests.fixtures.served",
    "tests.fixtures.speech",
    "tests.fixtures.trained",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option of tests/endurance.py."""
    parser.addoption(
        "--full-counts", action="store_true", help="run all cases of the tests marked endurance, not a tenth"
    )


@pytest.fixture(scope="session")
def cases(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """Return how many cases of a full count a test runs: a tenth, rounded up, or all with --full-counts."""
    return lambda full: full if request.config.getoption("--full-counts") else -(-full // 10)


class _ByFile(LoadScopeScheduling):
    """Run the tests of a file, which share fixtures, in one process; all tests of flows, which share a server, too."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "flows" if Path(file).parent.name == "flows" else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Take the place of --dist loadgroup, which pytest-xdist 3.8 cannot do with pytest 9.2."""
    return _ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of whole folders as integration tests."""
    for item in items:
        if item.path.relative_to(ROOT / "tests").parts[0] in INTEGRATION:
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session")
def empty_records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs, shared by all processes because its first migration takes seconds."""
    from qamoe.files import exclusive_lock
    from qamoe.tracking.mlflow_store import connect

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    path = shared / "empty-records" / "mlflow.db"
    with exclusive_lock(shared), pytest.MonkeyPatch.context() as patch:
        if path.is_file():
            return path
        path.parent.mkdir()
        (path.parent / "mlflow.db.making").write_bytes(b"left by a kill during the migrations")
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
        connect()
    return path


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_records: Path) -> Any:
    """A client of an empty store for this test, with the test's folder as the working folder."""
    from qamoe.tracking.mlflow_store import connect

    shutil.copy(empty_records, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("QAMOE_DEVICE", "cpu")
    monkeypatch.delenv("QAMOE_TRACKING", raising=False)
    monkeypatch.chdir(tmp_path)
    return connect()


@pytest.fixture(scope="session")
def tiny_params() -> Any:
    """params.yaml with the smallest models."""
    import yaml

    from qamoe.config.params import Params

    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["models"]["encoders"] |= {"width": 8, "layers": 0, "heads": 1}
    content["models"]["qamoe"] |= {"experts": 3, "active": 2, "hidden": 8}
    content["registry"] |= {"name": "qa-moe", "draws": 2, "coverage_90": [0.75, 1.0]}
    content["seeds"]["qamoe"] = [1, 2]
    return Params.model_validate(content)


@pytest.fixture(scope="session")
def tiny_stats() -> Any:
    """stats.json of a corpus in which one of three audio columns was dropped because it is constant."""

    def columns(kept: list[int], mean: list[float], deviation: list[float]) -> dict[str, Any]:
        return {"kept": kept, "mean": mean, "deviation": deviation, "unfit": 0, "dimension": len(kept), "rate": 20.0}

    return {
        "task": {"kind": "regression", "low": -3.0, "high": 3.0, "classes": []},
        "modalities": ["text", "audio", "vision"],
        "generated": True,
        "about": {"corpus": "tiny", "seed": 1},
        "text": {"unk": 100, "special": [0, 101, 102], "vocabulary": 30522, "frequencies": [[2204, 3], [2919, 2]]},
        "audio": columns([0, 2], [5.0, -1.0], [2.0, 0.5]),
        "vision": columns([0, 1], [0.1, 0.2], [0.3, 0.4]),
        "target_mean": 0.0,
        "target_std": 1.0,
        "clips": {"train": 2, "valid": 12, "gate": 12, "test": 0},
        "seconds_max": 2.0,
    }


@pytest.fixture(scope="session")
def tiny_encoder() -> Callable[..., Path]:
    """Return a function that writes a Hugging Face encoder of one layer with MiniLM's ids: tiny_encoder(folder)."""

    def make(folder: Path, **changes: Any) -> Path:
        import torch
        from transformers import BertConfig, BertModel

        from qamoe.extractors.minilm import model_folder

        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        torch.manual_seed(3)
        BertModel(BertConfig(**sizes | {"max_position_embeddings": 64} | changes)).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
            shutil.copy(model_folder() / name, folder / name)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_params: Any, tiny_stats: Any) -> Callable[..., Path]:
    """Return a function that writes a checkpoint: tiny_checkpoint(folder, answer=1.0) predicts about `answer`.

    `encoder` is the folder of a fine-tuned text encoder.
    """

    def make(
        folder: Path,
        *,
        model: str = "qamoe",
        seed: int = 1,
        answer: float = 1.0,
        encoder: Path | None = None,
        **changed: Any,
    ) -> Path:
        import torch

        from qamoe.models import checkpoint

        inputs = {"text": 384, "audio": 2, "vision": 2}
        digests = {"params": "p" * 64, "data": "d" * 64, "code": "c" * 64}
        content = tiny_params.model_dump(mode="json")
        content["models"].setdefault(model, {})  # a variant without changes
        if encoder is not None:
            content["models"]["encoders"]["text"] |= {"finetune": True, "encoder": str(encoder)}
        config: Any = checkpoint.untrained_config(
            type(tiny_params).model_validate(content), model, seed, tiny_stats, inputs, digests
        )
        anchors = {m: {"clean": 0.8, "fully_degraded": 0.4, "rescaled": True} for m in inputs}
        config |= {
            "selection": 0.5 + 0.1 * seed,
            "best_epoch": 2,
            "calibration": {"sigmas": {"0.5": 0.7, "0.8": 1.3, "0.9": 1.7, "0.95": 2.0}},
            "trust": {} if model in ("mean", "text", "concat", "cross_attention", "tensor", "moe") else anchors,
        }
        config |= changed
        torch.manual_seed(seed)
        network: Any = checkpoint.make(model, config)
        if hasattr(network, "head"):
            with torch.no_grad():
                network.head.out.weight.mul_(0.05)
                network.head.out.bias.fill_(answer)[-1] = -2.0
        history = [
            {"epoch": e, "loss": 2.0 / e, "losses.task": 1.0 / e, "valid": 0.6, "seconds": 1.5} for e in (1, 2, 3)
        ]
        checkpoint.save(folder, network.state_dict(), config, history)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_multilabel(tiny_checkpoint: Callable[..., Path], tiny_stats: dict[str, Any]) -> Callable[[Path], Path]:
    """Return a function that writes a checkpoint of a model that gives every clip all three labels."""

    def make(folder: Path) -> Path:
        task = {"kind": "multilabel", "low": None, "high": None, "classes": ["happy", "sad", "fear"]}
        stats = {key: value for key, value in tiny_stats.items() if not key.startswith("target_")}
        stats |= {"task": task, "class_shares": [0.5, 0.3, 0.1]}
        changed = {"task": task, "class_shares": stats["class_shares"], "calibration": {"temperature": 2.0}}
        return tiny_checkpoint(folder, stats=stats, answer=3.0, **changed)

    return make


@pytest.fixture(scope="session")
def tiny_corpus(tiny_stats: dict[str, Any]) -> Callable[..., None]:
    """Return a function that writes the outputs of preprocess, with labels around 1 and four sources per split.

    `labels` are those of its clips, in turn.
    """

    def make(out: Path, *, gate: int = 12, stats: dict[str, Any] | None = None, labels: tuple[float, ...] = ()) -> None:
        import json

        import pyarrow as pa

        from qamoe.data import arrow_store

        schema = pa.schema(
            [
                ("clip_id", pa.string()),
                ("source", pa.string()),
                ("label", pa.float64()),
                ("text", pa.list_(pa.int32())),
                ("audio", arrow_store.frames_type(2)),
                ("vision", arrow_store.frames_type(2)),
            ]
        )
        folder = out / "preprocess"
        folder.mkdir(parents=True, exist_ok=True)
        for number, (split, count) in enumerate({"train": 2, "valid": 12, "gate": gate}.items()):
            draws = np.random.default_rng(number)
            rows = [
                {
                    "clip_id": f"{split}-{i}",
                    "source": f"{split}-source-{i % 4}",
                    "label": labels[i % len(labels)] if labels else 1.0 + 0.2 * draws.standard_normal(),
                    "text": np.array([101, *draws.integers(2000, 9000, i % 3 + 1), 102], np.int32),
                    "audio": draws.standard_normal((i % 5, 2)).astype(np.float32),
                    "vision": draws.standard_normal((4, 2)).astype(np.float32),
                }
                for i in range(count)
            ]
            arrow_store.write(folder / f"{split}.arrow", schema, rows, {"split": split})
        write_no_copies(folder)
        (folder / "stats.json").write_text(json.dumps(stats or tiny_stats))

    return make
