"""Small batches and models, and one torch thread: these tests compute little."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from qamoe.config.params import Encoders, Paper, QAMoE
from qamoe.data.batch import Batch
from qamoe.rng import clip_key

TEXT: Any = {"finetune": False, "encoder": "minilm", "lr": 5e-5, "dropout": 0.1, "pooling": "attention"}
FEATURES = {"text": 6, "audio": 3, "vision": 2}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def sizes() -> Encoders:
    stride: Any = {"text": 1, "audio": 2, "vision": 3}
    return Encoders(width=8, layers=1, heads=2, dropout=0.2, stride=stride, text=TEXT)


@pytest.fixture
def block() -> Callable[..., QAMoE]:
    def make(
        fusion: str = "tokens", experts: int = 5, active: int = 2, sampled: bool = False, variance_context: str = "all"
    ) -> QAMoE:
        return QAMoE.model_validate(
            {
                "experts": experts,
                "active": active,
                "hidden": 7,
                "fusion": fusion,
                "max_log_variance": 4.0,
                "initial_log_variance": 0.0,
                "sampled": sampled,
                "variance_context": variance_context,
            }
        )

    return make


@pytest.fixture
def paper_block() -> Callable[..., Paper]:
    def make(**changes: Any) -> Paper:
        loss = {"balance": 0.0, "gate_entropy": 0.0, "quality": 0.0} | changes.pop("loss", {})
        block = {"experts": 5, "active": 2, "hidden": 7, "experts_read": "sample", "missing_flags": False}
        block |= {"gate": True, "prior": True, "loss": loss}
        return Paper.model_validate(block | changes)

    return make


@pytest.fixture
def batch_of() -> Callable[..., Batch]:
    """Make clips by number, each with its own frames: batch_of([0, 1], absent={0: ("audio",)}, padding=3)."""

    def make(
        clips: Any, absent: dict[int, tuple[str, ...]] | None = None, padding: int = 0, target: bool = True
    ) -> Batch:
        clips = list(clips)
        x, mask = {}, {}
        for index, (modality, size) in enumerate(FEATURES.items()):
            rows = []
            for clip in clips:
                random = torch.Generator().manual_seed(100 * clip + index)
                length = 0 if modality in (absent or {}).get(clip, ()) else 1 + (3 * clip + 5 * index) % 11
                rows.append(torch.randn(length, size, generator=random))
            longest = max(1, *(len(row) for row in rows)) + padding
            x[modality] = torch.zeros(len(clips), longest, size)
            mask[modality] = torch.zeros(len(clips), longest, dtype=torch.bool)
            for i, row in enumerate(rows):
                x[modality][i, : len(row)] = row
                mask[modality][i, : len(row)] = True
        keys = torch.tensor([clip_key(str(clip)) for clip in clips])
        targets = torch.tensor([float(clip % 7) - 3 for clip in clips]) if target else None
        return Batch(keys, x, mask, targets)

    return make
