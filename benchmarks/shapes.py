"""Make batches of CMU-MOSEI's shape (50 tokens, 500 x 74 and 500 x 35 frames per clip) and models as in params.yaml."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qamoe.config.block import Block
from qamoe.config.params import Encoders, Hidden, LossWeights, PerModality, QAMoE, TextEncoder
from qamoe.data.batch import Batch
from qamoe.degradation.features import Reference
from qamoe.degradation.views import View
from qamoe.models.factory import build
from qamoe.models.heads import Target
from qamoe.models.model import Model
from qamoe.models.text_encoder_frozen import WIDTH
from qamoe.models.training_step import Step
from qamoe.rng import clip_key

CLIPS = 22_856
FRAMES = {"text": 50, "audio": 500, "vision": 500}
COLUMNS = {"audio": 74, "vision": 35}
FEATURES = {"text": WIDTH, **COLUMNS}
VOCABULARY = 30_522

# The sizes of params.yaml, copied because a GPU machine has no YAML parser; benchmarks/model.py compares them.
TEXT = TextEncoder(finetune=False, encoder="minilm", lr=5e-5, dropout=0.1, pooling="attention")
ENCODERS = Encoders(width=64, layers=1, heads=4, dropout=0.2, stride=PerModality(text=1, audio=2, vision=1), text=TEXT)
CONCAT = Hidden(hidden=160)
QAMOE = QAMoE(
    experts=8,
    active=3,
    hidden=64,
    fusion="tokens",
    max_log_variance=4.0,
    initial_log_variance=-3.0,
    sampled=False,
    variance_context="all",
)
LOSS = LossWeights(variance=0.5, probe=0.3, severity=1.0, balance=0.01, router_z=0.001)
TRAINING = View(2026, 0, clean_share=0.3, shared_draw_share=0.5, full_severity_share=0.25, mask_revealed_share=0.5)
CLIP_NORM, LR = 1.0, 0.001


def frames(clips: int, device: str = "cpu") -> Batch:
    """Return clips of full length as in a store: text as token ids."""
    draws = torch.Generator().manual_seed(clips)
    x = {m: torch.randn(clips, FRAMES[m], size, generator=draws) for m, size in COLUMNS.items()}
    ids = torch.randint(1000, VOCABULARY, (clips, FRAMES["text"]), generator=draws)
    mask = {m: torch.ones(clips, length, dtype=torch.bool) for m, length in FRAMES.items()}
    keys = torch.tensor([clip_key(f"clip-{number}") for number in range(clips)])
    return Batch(keys, {"text": ids, **x}, mask, torch.randn(clips, generator=draws)).to(device)


def encoded(clips: int, device: str = "cpu") -> Batch:
    """Return the same clips with the states of a frozen text encoder instead of token ids."""
    states = torch.randn(clips, FRAMES["text"], WIDTH, generator=torch.Generator().manual_seed(clips))
    return frames(clips, device).with_x(text=states.to(device))


def references(device: str = "cpu") -> dict[str, Reference]:
    """Return the references of degradations: standardised frames, and a vocabulary of equal frequencies."""
    shares = torch.arange(1, VOCABULARY + 1, dtype=torch.float32) / VOCABULARY
    by_modality = {"text": Reference(frequencies=shares.to(device), unk=100, special=(0, 101, 102))}
    for modality, size in COLUMNS.items():
        zero, one = torch.zeros(size, device=device), torch.ones(size, device=device)
        by_modality[modality] = Reference(mean=zero, deviation=one, rate=20.0)
    return by_modality


def model(name: str, block: Block, device: str = "cpu", encoders: Encoders = ENCODERS) -> Model:
    """Return a new model by name."""
    torch.manual_seed(1)
    return build(name, FEATURES, encoders, block, Target(0.0, 1.0)).to(device).train()


def losses(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Return the losses of a training step: draws depend on the clip, and the injected severity is a target."""
    step = Step(1, 1, batch.keys, lambda own: own, torch.zeros(len(batch), len(FEATURES), device=batch.keys.device))
    return network(batch, None, step).losses


def objective(losses: dict[str, Tensor]) -> Tensor:
    """Return the weighted sum of the losses, as in training."""
    weights = {"task": 1.0, **LOSS.model_dump()}
    return torch.stack([weights[name] * value for name, value in losses.items()]).sum()


def stepping(
    network: nn.Module, loss: Callable[[], Tensor], device: str = "cpu", *, bfloat16: bool = False
) -> Callable[[], None]:
    """Return a function that makes one training step as training/trainer.py: forward, backward, clipping, AdamW."""
    trainable = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trainable, LR, weight_decay=0.01)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            value = loss()
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(trainable, CLIP_NORM)
        optimiser.step()

    return step
