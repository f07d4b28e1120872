"""Reliability: its form, its losses, and what it learns from the target and from the injected severity."""

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
    keys = torch.tensor([clip_key(f"clip-{i}") for i in range(len(severity))])
    return Step(1, 1, keys, lambda count: count, severity)


def test_r_is_one_over_one_plus_the_mean_variance() -> None:
    module = quality().eval()
    h = torch.randn(5, 3, 8)
    z, r, losses = module(h, None)
    variance = torch.einsum("bmd,mdo->bmo", h, module.log_variance.weight).exp()
    assert torch.allclose(r, 1 / (1 + variance.mean(-1)), atol=1e-6)
    assert torch.equal(z, module.mu(h)), "in evaluation z is the mean"
    assert losses == {}


def test_r_starts_at_the_initial_log_variance() -> None:
    module = quality(start=-3.0).eval()
    _, r, _ = module(torch.zeros(2, 3, 8), None)
    assert torch.allclose(r, 1 / (1 + torch.tensor(-3.0).exp()))


def test_each_modality_has_its_own_map() -> None:
    module = quality().eval()
    h = torch.randn(5, 1, 8).expand(5, 3, 8)
    z, r, _ = module(h, None)
    assert not torch.allclose(z[:, 0], z[:, 1])
    assert not torch.allclose(r[:, 0], r[:, 1])


@pytest.mark.parametrize(
    ("bias", "r"), [(100.0, 1 / (1 + torch.tensor(2.0).exp())), (-100.0, 1 / (1 + torch.tensor(-2.0).exp()))]
)
def test_the_log_variance_is_clamped(bias: float, r: torch.Tensor) -> None:
    module = quality(limit=2.0).eval()
    torch.nn.init.constant_(module.log_variance.bias, bias)
    assert torch.allclose(module(torch.randn(4, 3, 8), None)[1], r)


def test_training_samples_and_evaluation_does_not() -> None:
    module, h = quality(), torch.randn(4, 3, 8)
    one, two = module(h, None)[0], module(h, None)[0]
    assert not torch.equal(one, two)
    module.eval()
    assert torch.equal(module(h, None)[0], module(h, None)[0])


@pytest.mark.integration
def test_samples_have_the_predicted_variance() -> None:
    module, h = quality(), torch.randn(1, 3, 8)
    samples = torch.cat([module(h, None)[0] for _ in range(4000)]).detach()
    deviation = (module.log_variance(h) / 2).exp()[0]
    assert torch.allclose(samples.std(0), deviation, rtol=0.1)
    assert torch.allclose(samples.mean(0), module.mu(h)[0], atol=0.1 * float(deviation.max().detach()))


def test_the_probes_loss_is_the_heteroscedastic_likelihood() -> None:
    module, h = quality().eval(), torch.randn(6, 3, 8)
    target = torch.randn(6)
    z, r, losses = module(h, target)
    guess, variance = module.probe(z)[..., 0], 1 / r - 1
    expected = 0.5 * (variance.log() + (guess - target[:, None]) ** 2 / variance).mean()
    assert losses["probe"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_likelihood_is_smallest_at_the_true_variance() -> None:
    residual = torch.randn(20_000) * 3
    losses = {
        v: gaussian_nll(residual, torch.full_like(residual, v).log(), torch.zeros(1)).item() for v in (4.0, 9.0, 16.0)
    }
    assert losses[9.0] == min(losses.values())


def learned_r(module: Any, draw: Callable[[], tuple[Tensor, Tensor]], steps: int) -> Tensor:
    """Train for `steps` batches and return the mean r (3,) on the last one."""
    optimiser = torch.optim.Adam(module.parameters(), 0.02)
    for _ in range(steps):
        h, target = draw()
        loss = module(h, target)[2]["probe"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return module.eval()(h, None)[1].mean(0)


@pytest.mark.integration
def test_r_falls_for_a_modality_without_information_on_the_target() -> None:
    """Self-supervision: without quality labels, r falls for noise and rises for informative features."""
    random = torch.Generator().manual_seed(1)

    def draw() -> tuple[Tensor, Tensor]:
        target = torch.randn(64, generator=random)
        h = torch.randn(64, 3, 8, generator=random)
        h[:, 0] = target[:, None] + 0.05 * h[:, 0]
        return h, target

    r = learned_r(quality(), draw, 300)
    assert r[0] > 0.7
    assert r[1:].max() < 0.6


@pytest.mark.integration
def test_r_falls_for_a_modality_without_information_on_the_class() -> None:
    """The same for classes: small logits would hide uncertainty, so the probe's logits have a fixed spread."""
    random = torch.Generator().manual_seed(1)
    class_means = torch.randn(4, 8, generator=random)

    def draw() -> tuple[Tensor, Tensor]:
        target = torch.randint(0, 4, (64,), generator=random)
        h = torch.randn(64, 3, 8, generator=random)
        h[:, 0] = class_means[target] + 0.2 * h[:, 0]
        return h, target

    r = learned_r(quality(target=Classes([0.25] * 4)), draw, 400)
    assert r[0] > 0.8
    assert r[1:].max() < 0.5


def test_without_sampling_only_the_probe_reads_a_sample() -> None:
    module, h, target = quality(sampled=False), torch.randn(4, 3, 8), torch.randn(4)
    z, _, losses = module(h, target)
    assert torch.equal(z, module.mu(h))
    assert not torch.equal(module(h, target)[2]["probe"], losses["probe"])


def test_the_severity_loss_is_the_cross_entropy_of_r_with_one_minus_severity() -> None:
    module, h, severity = quality(), torch.randn(6, 3, 8), torch.rand(6, 3)
    _, r, losses = module(h, None, step(severity))
    expected = -((1 - severity) * r.log() + severity * (1 - r).log()).mean()
    assert losses["severity"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.integration
@pytest.mark.parametrize(("variance_context", "least", "most"), [("own", 0.4, 0.6), ("all", 0.9, 1.0)])
def test_the_context_of_all_modalities_detects_a_swapped_one(
    variance_context: Literal["own", "all"], least: float, most: float
) -> None:
    """A swapped modality looks normal by itself; only comparison with the others detects it."""
    module = quality(variance_context=variance_context)
    random = torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(module.parameters(), 0.01)

    def draw() -> tuple[Tensor, Tensor]:
        sign = torch.randint(0, 2, (128, 1), generator=random) * 2.0 - 1
        swapped = (torch.rand(128, generator=random) < 0.5).float()
        h = sign[:, None].expand(-1, 3, 8) + 0.1 * torch.randn(128, 3, 8, generator=random)
        h[:, 0] *= (1 - 2 * swapped)[:, None]
        return h, torch.stack([swapped, torch.zeros(128), torch.zeros(128)], 1)

    for _ in range(200):
        h, severity = draw()
        loss = module(h, None, step(severity))[2]["severity"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    h, severity = draw()
    r, clean = module(h, None)[1][:, 0], severity[:, 0] == 0
    detection_rate = (r[clean][:, None] > r[~clean]).float().mean().item()
    assert least <= detection_rate <= most
