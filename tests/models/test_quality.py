"""Reliability: one minus how uncertain a modality's features are, taught by the target and by the damage injected."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from qamoe.config.params import QAMoE
from qamoe.models.heads import Classes, Target, Targets, gaussian_nll
from qamoe.models.quality import Quality
from qamoe.models.training_step import Step
from qamoe.rng import clip_key


def quality(
    limit: float = 4.0,
    target: Targets | None = None,
    start: float = 0.0,
    sampled: bool = True,
    variance_context: Literal["own", "all"] = "own",
) -> Quality:
    torch.manual_seed(0)
    block = QAMoE(
        experts=2,
        active=1,
        hidden=4,
        fusion="tokens",
        max_log_variance=limit,
        initial_log_variance=start,
        sampled=sampled,
        variance_context=variance_context,
    )
    return Quality(3, 8, block, target or Target(0.0, 1.0))


def step(severity: Tensor) -> Step:
    keys = torch.tensor([clip_key(f"clip-{place}") for place in range(len(severity))])
    return Step(1, 1, keys, lambda own: own, severity)


def test_r_is_one_over_one_plus_the_mean_variance() -> None:
    made = quality().eval()
    h = torch.randn(5, 3, 8)
    z, r, losses = made(h, None)
    variance = torch.einsum("bmd,mdo->bmo", h, made.log_variance.weight).exp()
    assert torch.allclose(r, 1 / (1 + variance.mean(-1)), atol=1e-6)
    assert torch.equal(z, made.mu(h)), "in evaluation z is the mean"
    assert losses == {}


def test_features_start_as_certain_as_asked_for() -> None:
    made = quality(start=-3.0).eval()
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
    z, r, losses = made(h, target)
    guess, variance = made.probe(z)[..., 0], 1 / r - 1
    expected = 0.5 * (variance.log() + (guess - target[:, None]) ** 2 / variance).mean()
    assert losses["probe"].item() == pytest.approx(expected.item(), rel=1e-4)


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
        loss = made(h, target)[2]["probe"]
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


def test_without_sampling_the_probe_alone_sees_a_sample() -> None:
    made, h, target = quality(sampled=False), torch.randn(4, 3, 8), torch.randn(4)
    z, _, losses = made(h, target)
    assert torch.equal(z, made.mu(h))
    assert not torch.equal(made(h, target)[2]["probe"], losses["probe"])


def test_the_damages_loss_is_the_cross_entropy_of_r_with_what_is_left() -> None:
    made, h, severity = quality(), torch.randn(6, 3, 8), torch.rand(6, 3)
    _, r, losses = made(h, None, step(severity))
    expected = -((1 - severity) * r.log() + severity * (1 - r).log()).mean()
    assert losses["severity"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("variance_context", "least", "most"), [("own", 0.4, 0.6), ("all", 0.9, 1.0)])
def test_who_sees_all_modalities_finds_the_one_that_contradicts_the_others(
    variance_context: Literal["own", "all"], least: float, most: float
) -> None:
    """Each modality alone looks the same whether it was swapped or not; only beside the others it does not."""
    made = quality(variance_context=variance_context)
    random = torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(made.parameters(), 0.01)

    def draw() -> tuple[Tensor, Tensor]:
        told = torch.randint(0, 2, (128, 1), generator=random) * 2.0 - 1
        swapped = (torch.rand(128, generator=random) < 0.5).float()
        h = told[:, None].expand(-1, 3, 8) + 0.1 * torch.randn(128, 3, 8, generator=random)
        h[:, 0] *= (1 - 2 * swapped)[:, None]
        return h, torch.stack([swapped, torch.zeros(128), torch.zeros(128)], 1)

    for _ in range(200):
        h, severity = draw()
        loss = made(h, None, step(severity))[2]["severity"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    h, severity = draw()
    r, clean = made(h, None)[1][:, 0], severity[:, 0] == 0
    found = (r[clean][:, None] > r[~clean]).float().mean().item()
    assert least <= found <= most
