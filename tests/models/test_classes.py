"""Classification: the same models with logits instead of a value, and the perturbed cross-entropy."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from qamoe.config.params import Hidden, Mean, MoE, TensorFusion
from qamoe.models.factory import MODELS, build
from qamoe.models.heads import Classes, Target, perturbed_cross_entropy, target_of

FEATURES = {"text": 6, "audio": 3, "vision": 2}
SHARES = [0.5, 0.3, 0.2]

every = pytest.mark.parametrize("name", MODELS)


@pytest.fixture
def model(sizes: Any, block: Any, paper_block: Any) -> Callable[..., Any]:
    def make(name: str) -> Any:
        qamoe = block()
        moe = MoE.model_validate(qamoe.model_dump(include=set(MoE.model_fields)))
        blocks = {"mean": Mean(), "tensor": TensorFusion(hidden=6, low=2), "moe": moe, "oracle": qamoe, "qamoe": qamoe}
        blocks |= {"paper": paper_block(), "paper-public": paper_block(missing_flags=True, loss={"balance": 0.01})}
        torch.manual_seed(0)
        return build(name, FEATURES, sizes, blocks.get(name, Hidden(hidden=6)), Classes(SHARES))

    return make


@pytest.fixture
def batch(batch_of: Any) -> Any:
    from dataclasses import replace

    clips = batch_of(range(40), {1: ("audio",), 2: tuple(FEATURES)})
    return replace(clips, target=torch.arange(40).remainder(3).float())


def predict(network: Any, batch: Any) -> Any:
    quality = torch.rand(len(batch), 3, generator=torch.Generator().manual_seed(2))
    return network(batch, quality if isinstance(network, MODELS["oracle"]) else None)


@every
def test_it_trains(model: Any, batch: Any, name: str) -> None:
    network = model(name).train()
    result = predict(network, batch)
    assert result.value is None
    assert result.variance is None
    assert result.probabilities.shape == (40, 3)
    assert torch.allclose(result.probabilities.sum(1), torch.ones(40))
    assert "task" in result.losses
    assert "variance" not in result.losses, "one likelihood teaches logits and variance"
    assert all(torch.isfinite(loss) for loss in result.losses.values())
    if name == "mean":
        assert torch.allclose(result.probabilities, torch.tensor(SHARES).expand(40, 3)), "the training frequencies"
        return
    torch.stack(list(result.losses.values())).sum().backward()
    for part, parameter in network.named_parameters():
        assert parameter.grad is not None, f"{part} gets no gradient"
        assert torch.isfinite(parameter.grad).all(), part


@every
@torch.no_grad()
def test_evaluation_is_deterministic(model: Any, batch: Any, name: str) -> None:
    network = model(name).eval()
    assert torch.equal(predict(network, batch).probabilities, predict(network, batch).probabilities)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["concat", "tensor", "precision", "moe", "paper", "qamoe"])
def test_it_learns_a_class_from_audio(model: Any, batch: Any, name: str) -> None:
    network = model(name).train()
    batch.x["audio"] += 3 * F.one_hot(batch.target.long(), 3)[:, None]
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(120):
        loss = torch.stack(list(network(batch).losses.values())).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    hits = network.eval()(batch).probabilities.argmax(1) == batch.target
    assert hits.float().mean() > 0.8


def test_without_noise_the_loss_is_the_cross_entropy() -> None:
    logits, target = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    certain = perturbed_cross_entropy(logits, torch.full((6,), -math.inf), target)
    assert certain.item() == pytest.approx(F.cross_entropy(logits, target).item(), rel=1e-5)


def test_noise_lowers_the_loss_of_wrong_logits_and_raises_that_of_right_ones() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([4.0, 0.0, 0.0]).expand(4000, 3)
    losses = {
        (label, v): perturbed_cross_entropy(logits, torch.full((4000,), v), torch.full((4000,), label)).item()
        for label in (0, 1)
        for v in (-3.0, 2.0)
    }
    assert losses[1, 2.0] < losses[1, -3.0]
    assert losses[0, 2.0] > losses[0, -3.0]


@pytest.mark.parametrize("log_variance", [-2.0, 0.0, 1.5])
def test_probabilities_are_the_mean_over_perturbed_logits(log_variance: float) -> None:
    torch.manual_seed(0)
    target = Classes([0.5, 0.5])
    guess = torch.tensor([[1.5, -0.5]])
    perturbed = guess + math.exp(log_variance / 2) * torch.randn(200_000, 2)
    probabilities = target.prediction(guess, torch.tensor([log_variance]), None).probabilities
    assert probabilities is not None
    assert torch.allclose(probabilities[0], perturbed.softmax(-1).mean(0), atol=0.01)


@torch.no_grad()
def test_the_product_of_experts_follows_the_more_precise_one(model: Any, batch: Any) -> None:
    """The product of Gaussians over logits has their precision-weighted mean."""
    network = model("precision").eval()
    alone = torch.tensor([1.0, 0.0, 0.0]).expand(len(batch), 3)
    h = network.encode(batch)
    guess = network.experts[0](h[:, 0])[0] + network.target.log_shares
    assert torch.equal(network(batch, alone).probabilities.argmax(1), guess.argmax(1))


def test_the_task_determines_the_target() -> None:
    regression: Any = {"task": {"kind": "regression"}, "target_mean": 0.0, "target_std": 1.0}
    assert isinstance(target_of(regression), Target)
    classification: Any = {"task": {"kind": "classification"}, "class_shares": [1.0, 0.0]}
    target = target_of(classification)
    assert isinstance(target, Classes)
    assert torch.isfinite(target.log_shares).all(), "a class that training lacks is unlikely, not impossible"
