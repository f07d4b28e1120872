"""The mixture: routing weights, expert mixing against a loop over experts, and the two auxiliary losses."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from qamoe.models.moe import Experts, Router, balance_loss, router_z_loss, top_k_weights


@pytest.mark.parametrize("active", [1, 3, 8])
def test_exactly_the_active_experts_share_a_weight_of_one(active: int) -> None:
    logits = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(0))
    weights = top_k_weights(logits, active)
    assert torch.allclose(weights.sum(-1), torch.ones(5, 3))
    assert ((weights > 0).sum(-1) == active).all()
    best = logits.topk(active, -1).indices
    assert torch.allclose(weights.gather(-1, best), logits.gather(-1, best).softmax(-1))


def test_equal_logits_still_choose_exactly_the_active_number() -> None:
    weights = top_k_weights(torch.zeros(2, 1, 6), 2)
    assert ((weights > 0).sum(-1) == 2).all()
    assert (weights[weights > 0] == 0.5).all()


def test_the_router_adds_semantic_and_quality_logits() -> None:
    torch.manual_seed(0)
    router: Any = Router(8, 3, 5)
    z, r = torch.randn(2, 3, 8), torch.rand(2, 3)
    expected = F.linear(z, router.semantic.weight, router.semantic.bias) + (r @ router.quality.weight.T)[:, None]
    assert torch.allclose(router(z, r), expected, atol=1e-6)
    assert not torch.allclose(router(z, r), router(z, 1 - r))


def test_experts_are_glu_and_mixed_by_weight() -> None:
    torch.manual_seed(0)
    experts = Experts(4, 3, 5)
    x, weights = torch.randn(2, 3, 4), top_k_weights(torch.randn(2, 3, 5), 2)
    expected = torch.zeros(2, 3, 4)
    for e in range(5):
        value, glu_gate = (x @ experts.up[e]).chunk(2, dim=-1)
        expected += weights[..., e : e + 1] * ((value * F.silu(glu_gate)) @ experts.down[e])
    assert torch.allclose(experts(x, weights, 2), expected, atol=1e-6)


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_routed_and_dense_forward_agree(width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    experts: Any = Experts(width, 7, 6)
    logits = torch.randn(9, 3, 6)
    results = []
    for method in ("routed_forward", "dense_forward"):
        x = torch.randn(9, 3, width, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
        weights = top_k_weights(logits.clone().requires_grad_(), 2)
        experts.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = (
                experts.routed_forward(x, weights, 2)
                if method == "routed_forward"
                else experts.dense_forward(x, weights)
            )
        y.float().square().sum().backward()
        results.append([y.float(), x.grad, experts.up.grad.clone(), experts.down.grad.clone()])
    limit = 1e-5 if dtype == torch.float32 else 0.05
    for routed, dense in zip(*results, strict=True):
        assert torch.allclose(routed, dense, atol=limit * float(dense.detach().abs().max()))


def test_memory_for_the_gradient_grows_with_the_active_experts_only() -> None:
    x = torch.randn(16, 3, 8)

    def saved_numbers(experts: int, active: int) -> int:
        mixture, weights = Experts(8, 64, experts), top_k_weights(torch.randn(16, 3, experts), active)
        parameter_pointers, sizes = {p.data_ptr() for p in mixture.parameters()}, []

        def record(saved: torch.Tensor) -> torch.Tensor:
            if saved.data_ptr() not in parameter_pointers and saved.is_floating_point():
                sizes.append(saved.numel())
            return saved

        with torch.autograd.graph.saved_tensors_hooks(record, lambda saved: saved):
            mixture(x.clone().requires_grad_(), weights, active)
        return sum(sizes)

    assert saved_numbers(64, 2) < 1.1 * saved_numbers(8, 2)
    assert saved_numbers(8, 4) > 1.8 * saved_numbers(8, 2)


def test_an_expert_without_weight_does_nothing() -> None:
    torch.manual_seed(0)
    experts, x = Experts(4, 3, 5), torch.randn(2, 1, 4)
    weights = torch.zeros(2, 1, 5)
    weights[..., 0] = 1
    before = experts(x, weights, 2)
    with torch.no_grad():
        experts.down[1:] *= 100
    assert torch.equal(experts(x, weights, 2), before)


@pytest.mark.parametrize("active", [1, 2, 3])
def test_the_balance_loss_is_one_at_balance(active: int) -> None:
    circle = torch.eye(4) + 0.5 * torch.eye(4).roll(1, 1) + 0.25 * torch.eye(4).roll(2, 1)
    logits = circle.view(1, 4, 4) * 1e-6  # each token slightly prefers other experts
    weights = top_k_weights(logits, active)
    assert ((weights > 0).sum((0, 1)) == active).all()
    assert balance_loss(logits, weights).item() == pytest.approx(1.0, abs=1e-5)


def test_the_balance_loss_is_the_number_of_experts_if_one_takes_all() -> None:
    logits = torch.zeros(2, 3, 4)
    logits[..., 2] = 50
    assert balance_loss(logits, top_k_weights(logits, 1)).item() == pytest.approx(4.0, abs=1e-5)


def test_the_balance_loss_of_an_example() -> None:
    """Two tokens, three experts, one active: shares (1/2, 1/2, 0)."""
    logits = torch.tensor([[[0.0, -1.0, -1.0], [0.0, 1.0, 0.0]]])
    a, b = 1 / (1 + 2 * math.exp(-1)), math.e / (2 + math.e)
    probability = [(a + (1 - b) / 2) / 2, ((1 - a) / 2 + b) / 2]
    expected = 3 * (0.5 * probability[0] + 0.5 * probability[1])
    assert balance_loss(logits, top_k_weights(logits, 1)).item() == pytest.approx(expected, abs=1e-6)


def test_the_balance_loss_pulls_towards_balance() -> None:
    logits = torch.randn(64, 1, 4, generator=torch.Generator().manual_seed(0))
    logits[..., 0] += 2
    logits.requires_grad_()
    balance_loss(logits, top_k_weights(logits, 2)).backward()
    assert logits.grad is not None
    assert logits.grad.sum((0, 1))[0] > 0, "a gradient step lowers the most used expert"


def test_the_z_loss_of_an_example() -> None:
    logits = torch.tensor([[[0.0, 0.0]], [[2.0, 2.0]]])
    expected = (math.log(2) ** 2 + (2 + math.log(2)) ** 2) / 2
    assert router_z_loss(logits).item() == pytest.approx(expected, abs=1e-6)
