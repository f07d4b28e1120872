"""Multilabel: the same models with a logit for each label, and the perturbed binary cross-entropy."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from qamoe.config.params import Hidden, Mean, MoE, TensorFusion
from qamoe.models.factory import MODELS, build
from qamoe.models.heads import Labels, perturbed_binary_cross_entropy, target_of

FEATURES = {"text": 6, "audio": 3, "vision": 2}
SHARES = [0.5, 0.3, 0.2]


@pytest.fixture
def model(sizes: Any, block: Any, paper_block: Any) -> Callable[..., Any]:
    def make(name: str) -> Any:
        qamoe = block()
        moe = MoE.model_validate(qamoe.model_dump(include=set(MoE.model_fields)))
        blocks = {"mean": Mean(), "tensor": TensorFusion(hidden=6, low=2), "moe": moe, "oracle": qamoe, "qamoe": qamoe}
        blocks |= {"paper": paper_block(), "paper-public": paper_block(missing_flags=True, loss={"balance": 0.01})}
        torch.manual_seed(0)
        return build(name, FEATURES, sizes, blocks.get(name, Hidden(hidden=6)), Labels(SHARES))

    return make


@pytest.mark.parametrize("name", MODELS)
def test_it_trains(model: Any, batch_of: Any, name: str) -> None:
    clips = batch_of(range(40), {1: ("audio",), 2: tuple(FEATURES)})
    batch = replace(clips, target=torch.arange(40).remainder(8).float())
    network = model(name).train()
    quality = torch.rand(40, 3) if name == "oracle" else None
    result = network(batch, quality)
    assert result.value is None
    assert result.probabilities is None
    assert result.presence.shape == (40, 3)
    assert all(torch.isfinite(loss) for loss in result.losses.values())
    if name == "mean":
        assert torch.allclose(result.presence, torch.tensor(SHARES).expand(40, 3)), "the training shares"
        return
    sum(result.losses.values()).backward()
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_a_number_stands_for_its_labels() -> None:
    has = Labels(SHARES).standard(torch.tensor([0.0, 1.0, 6.0]))
    assert has.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 1]]


def test_without_noise_the_loss_is_the_binary_cross_entropy() -> None:
    logits, target = torch.randn(7, 3), torch.randint(0, 2, (7, 3)).float()
    loss = perturbed_binary_cross_entropy(logits, torch.full((7,), -torch.inf), target)
    assert loss == pytest.approx(float(F.binary_cross_entropy_with_logits(logits, target)), abs=1e-6)


def test_the_probability_is_near_the_expectation_over_the_noise() -> None:
    target = Labels(SHARES)
    guess, log_variance = torch.randn(5, 3), torch.tensor([-3.0, 0.0, 1.0, 2.0, -1.0])
    noise = torch.randn(200_000, 5, 3, generator=torch.Generator().manual_seed(1))
    noisy = guess + target.log_odds + (log_variance / 2).exp()[:, None] * noise
    predicted = target.prediction(guess, log_variance, None).presence
    assert predicted is not None
    assert torch.allclose(predicted, noisy.sigmoid().mean(0), atol=0.02)


def test_it_is_built_from_a_description() -> None:
    config: Any = {"task": {"kind": "multilabel", "classes": ["a", "b", "c"]}, "class_shares": SHARES}
    target = target_of(config)
    assert isinstance(target, Labels)
    assert target.outputs == 3
