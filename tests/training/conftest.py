"""A split of a few clips under views, with made-up states in place of the text encoder's."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from qamoe.degradation.views import View, references
from qamoe.features.store import Store, frames_type, write
from qamoe.models.text import WIDTH
from qamoe.params import Params
from qamoe.training.selection import Cells, selection_cells
from qamoe.training.states import TextStates
from qamoe.training.views import Views, feature_sizes

MODALITIES = ("text", "audio", "vision")
SCHEMA = pa.schema(
    [("clip_id", pa.string()), ("source", pa.string()), ("label", pa.float64()), ("text", pa.list_(pa.int32()))]
    + [(m, frames_type(2)) for m in ("audio", "vision")]
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _split(path: Path, count: int, views: tuple[View, ...], found: dict[str, Any]) -> Views:
    """Clips whose sound tells the label; their text is encoded as noise."""
    draws = np.random.default_rng(count)
    rows = []
    for i in range(count):
        label = float(draws.uniform(-3, 3))
        rows.append(
            {
                "clip_id": f"{path.stem}-{i}",
                "source": f"{path.stem}-{i % 3}",
                "label": label,
                "text": np.array([101, *draws.integers(1000, 9000, i % 4), 102], np.int32),
                "audio": (label / 2 + 0.1 * draws.standard_normal((3 + i % 5, 2))).astype(np.float32),
                "vision": draws.standard_normal((i % 3, 2)).astype(np.float32),
            }
        )
    write(path, SCHEMA, rows, {})
    store = Store(path)
    offsets = np.concatenate([[0], np.cumsum(np.tile(store.lengths("text"), len(views)))])
    index = np.arange(len(views) * count).reshape(len(views), count)
    states = TextStates(draws.standard_normal((offsets[-1], WIDTH)).astype(np.float32), offsets, index)
    return Views(store, views, MODALITIES, found, states)


@pytest.fixture(scope="session")
def setting(tmp_path_factory: pytest.TempPathFactory, tiny_params: Any, tiny_stats: dict[str, Any]) -> Any:
    """Everything that `fit` asks for beside a folder: params, stats, inputs, train, valid, cells, digests."""
    content = tiny_params.model_dump(mode="json")
    common = content["train"]["common"]
    common |= {"epochs": 5, "batch_size": 8, "patience": 5, "lr": 0.01}
    common["degrade"] |= {"views": 3, "clean_share": 0.3}
    common["selection"] |= {"severities": {"missing": [0.0, 0.5], "noise": [0.5]}, "draws": 2}
    params = Params.model_validate(content)
    found = references(tiny_stats)
    folder = tmp_path_factory.mktemp("splits")
    cells: Cells = selection_cells(params.train.common.selection)
    training = tuple(View(2026, number, clean_share=0.3) for number in range(3))
    return SimpleNamespace(
        params=params,
        stats=tiny_stats,
        inputs=feature_sizes(tiny_stats),
        train=_split(folder / "train.arrow", 20, training, found),
        valid=_split(folder / "valid.arrow", 10, cells.views, found),
        cells=cells,
        digests={"params": "p", "data": "d", "code": "c"},
    )


@pytest.fixture(scope="session")
def train(setting: Any) -> Callable[..., None]:
    """Train into a folder: train(folder, model="qamoe", seed=1, on_epoch=..., digests=..., common={...}, ...)."""
    from qamoe.training.fit import fit
    from qamoe.training.parts import WHOLE

    def run(
        folder: Path, model: str = "qamoe", seed: int = 1, on_epoch: Any = lambda line: None, **changes: Any
    ) -> None:
        content = setting.params.model_dump(mode="json")
        content["train"]["common"] |= changes.get("common", {})
        content["models"]["encoders"] |= {"dropout": changes["dropout"]} if "dropout" in changes else {}
        folder.mkdir(parents=True, exist_ok=True)
        fit(
            model,
            seed,
            Params.model_validate(content),
            setting.stats,
            setting.inputs,
            setting.train,
            setting.valid,
            setting.cells,
            changes.get("digests", setting.digests),
            folder,
            "cpu",
            on_epoch,
            changes.get("parts", WHOLE),
        )

    return run


@pytest.fixture(scope="session")
def whole(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that seed 1 of qamoe was trained into without being stopped."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return folder
