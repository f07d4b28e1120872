"""Reliability: one minus how uncertain a modality's features are, taught by the target alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from qamoe.models.prediction import Classes, Target, Targets, gaussian_nll
from qamoe.models.quality import Quality


def quality(limit: float = 4.0, target: Targets | None = None) -> Quality:
    torch.manual_seed(0)
    return Quality(3, 8, limit, 0.0, target or Target(0.0, 1.0))


def test_r_is_one_over_one_plus_the_mean_variance() -> None:
    made = quality().eval()
    h = torch.randn(5, 3, 8)
    z, r, loss = made(h, None)
    variance = torch.einsum("bmd,mdo->bmo", h, made.log_variance.weight).exp()
    assert torch.allclose(r, 1 / (1 + variance.mean(-1)), atol=1e-6)
    assert torch.equal(z, made.mu(h)), "in evaluation z is the mean"
    assert loss is None


def test_features_start_as_certain_as_asked_for() -> None:
    made = Quality(3, 8, 4.0, -3.0, Target(0.0, 1.0)).eval()
    _, r, _ = made(torch.zeros(2, 3, 8), None)
    assert torch.allclose(r, 1 / (1 + torch.tensor(-3.0).exp()))


def test_modalities_have_maps_of_their_own() -> None:
    made = quality().eval()
    h = torch.randn(5, 1, 8).expand(5, 3, 8)
    z, r, _ = made(h, None)
    assert not torch.allclose(z[:, 0], z[:, 1])
    assert not torch.allclose(r[:, 0], r[:, 1])


@pytest.mark.parametrize(
    ("bias", "r"), [(100.0, 1 / (1 + torch.tensor(2.0).exp())), (-100.0, 1 / (1 + torch.tensor(-2.0).exp()))]
)
def test_the_log_variance_is_clamped(bias: float, r: torch.Tensor) -> None:
    made = quality(limit=2.0).eval()
    torch.nn.init.constant_(made.log_variance.bias, bias)
    assert torch.allclose(made(torch.randn(4, 3, 8), None)[1], r)


def test_training_samples_and_evaluation_does_not() -> None:
    made, h = quality(), torch.randn(4, 3, 8)
    one, two = made(h, None)[0], made(h, None)[0]
    assert not torch.equal(one, two)
    made.eval()
    assert torch.equal(made(h, None)[0], made(h, None)[0])


def test_samples_have_the_spread_that_the_variance_says() -> None:
    made, h = quality(), torch.randn(1, 3, 8)
    samples = torch.cat([made(h, None)[0] for _ in range(4000)]).detach()
    deviation = (made.log_variance(h) / 2).exp()[0]
    assert torch.allclose(samples.std(0), deviation, rtol=0.1)
    assert torch.allclose(samples.mean(0), made.mu(h)[0], atol=0.1 * float(deviation.max().detach()))


def test_the_probes_loss_is_the_heteroscedastic_likelihood() -> None:
    made, h = quality().eval(), torch.randn(6, 3, 8)
    target = torch.randn(6)
    z, r, loss = made(h, target)
    guess, variance = made.probe(z)[..., 0], 1 / r - 1
    expected = 0.5 * (variance.log() + (guess - target[:, None]) ** 2 / variance).mean()
    assert loss is not None
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_likelihood_is_smallest_at_the_true_variance() -> None:
    residual = torch.randn(20_000) * 3
    losses = {
        v: gaussian_nll(residual, torch.full_like(residual, v).log(), torch.zeros(1)).item() for v in (4.0, 9.0, 16.0)
    }
    assert losses[9.0] == min(losses.values())


def learned_r(made: Any, draw: Callable[[], tuple[Tensor, Tensor]], steps: int) -> Tensor:
    """Mean r (3,) on the last of so many batches, each of which taught it."""
    optimiser = torch.optim.Adam(made.parameters(), 0.02)
    for _ in range(steps):
        h, target = draw()
        loss = made(h, target)[2]
        assert loss is not None
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return made.eval()(h, None)[1].mean(0)


def test_a_modality_that_tells_nothing_of_the_target_loses_trust() -> None:
    """The self-supervision: without a label of quality, r falls where features are noise and rises where they tell."""
    random = torch.Generator().manual_seed(1)

    def draw() -> tuple[Tensor, Tensor]:
        target = torch.randn(64, generator=random)
        h = torch.randn(64, 3, 8, generator=random)
        h[:, 0] = target[:, None] + 0.05 * h[:, 0]
        return h, target

    r = learned_r(quality(), draw, 300)
    assert r[0] > 0.7
    assert r[1:].max() < 0.6


def test_a_modality_that_tells_nothing_of_the_class_loses_trust() -> None:
    """The same for classes: logits that could shrink would hide it, so the probe's have one spread."""
    random = torch.Generator().manual_seed(1)
    of_class = torch.randn(4, 8, generator=random)

    def draw() -> tuple[Tensor, Tensor]:
        target = torch.randint(0, 4, (64,), generator=random)
        h = torch.randn(64, 3, 8, generator=random)
        h[:, 0] = of_class[target] + 0.2 * h[:, 0]
        return h, target

    r = learned_r(quality(target=Classes([0.25] * 4)), draw, 400)
    assert r[0] > 0.8
    assert r[1:].max() < 0.5
