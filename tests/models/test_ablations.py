"""Ablations of QA-MoE: the removed part has no effect, and the other parts keep theirs."""

from typing import Any

import pytest
import torch

from qamoe.config.model_names import ABLATIONS, ablated, family
from qamoe.models.factory import build
from qamoe.models.heads import Target
from qamoe.models.qamoe import QAMoE
from qamoe.models.training_step import Step

FEATURES = {"text": 6, "audio": 3, "vision": 2}
QUALITY = torch.tensor([[1.0, 0.0, 1.0], [0.2, 0.9, 0.5], [0.7, 0.7, 0.1]])


@pytest.fixture
def model(sizes: Any, block: Any) -> Any:
    def make(name: str = "qamoe") -> QAMoE:
        torch.manual_seed(0)
        network: Any = build(name, FEATURES, sizes, block(), Target(0.5, 2.0))
        with torch.no_grad():
            torch.manual_seed(1)
            network.prior.normal_()
        for module in network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        return network.eval()

    return make


def test_the_name_of_an_ablation_gives_the_removed_part() -> None:
    assert [ablated(f"ablation-{part}") for part in ABLATIONS] == list(ABLATIONS)
    assert {family(f"ablation-{part}") for part in ABLATIONS} == {"qamoe"}
    assert [ablated(name) for name in ("qamoe", "gate", "ablation-", "ablation-head")] == [None] * 4
    assert family("ablation-head") == "ablation-head", "params.yaml refuses this name"


def test_without_the_quality_gate_the_router_does_not_read_quality(model: Any, batch_of: Any) -> None:
    batch = batch_of(range(3))
    whole, less = model(), model("ablation-gate")
    assert not any(name.startswith("mixture.router.quality") for name, _ in less.named_parameters())
    less.without = whole.without = "fallback"  # the tokens must not depend on quality either
    one, other = less(batch, QUALITY).routing, less(batch, QUALITY.flip(0)).routing
    assert torch.equal(one, other)
    assert not torch.equal(whole(batch, QUALITY).routing, whole(batch, QUALITY.flip(0)).routing)


def test_without_fallback_the_prior_is_unused(model: Any, batch_of: Any) -> None:
    for name, used in (("qamoe", True), ("ablation-fallback", False)):
        network = model(name)
        before = network(batch_of(range(3)), QUALITY).value
        torch.nn.init.normal_(network.prior)
        assert torch.equal(network(batch_of(range(3)), QUALITY).value, before) != used


def test_without_fusion_a_modality_of_quality_0_keeps_its_weight(model: Any, batch_of: Any) -> None:
    weights = {name: model(name)(batch_of(range(3)), QUALITY).fusion for name in ("qamoe", "ablation-fusion")}
    assert weights["qamoe"][0, 1] < 0.01
    assert weights["ablation-fusion"][0, 1] > 0.05


def test_without_the_probe_there_is_no_probe_loss(model: Any, batch_of: Any) -> None:
    losses = {name: model(name)(batch_of(range(3))).losses for name in ("qamoe", "ablation-probe")}
    assert list(losses["qamoe"]) == ["task", "variance", "probe", "balance", "router_z"]
    assert list(losses["ablation-probe"]) == ["task", "variance", "balance", "router_z"]
    for name, kept in losses["ablation-probe"].items():
        assert torch.equal(kept, losses["qamoe"][name])


def test_without_severity_there_is_no_severity_loss(model: Any, batch_of: Any) -> None:
    batch = batch_of(range(3))
    step = Step(1, 1, batch.keys, lambda own: own, torch.rand(3, 3))
    losses = {name: model(name)(batch, None, step).losses for name in ("qamoe", "ablation-severity")}
    assert set(losses["qamoe"]) - set(losses["ablation-severity"]) == {"severity"}
    assert set(losses["ablation-severity"]) < set(losses["qamoe"])


def test_without_others_quality_depends_on_its_own_modality_only(model: Any, batch_of: Any) -> None:
    batch, other = batch_of(range(3)), batch_of(range(3, 6))
    mixed = batch.with_x(audio=other.x["audio"]).with_mask(audio=other.mask["audio"])
    for name, depends in (("qamoe", True), ("ablation-others", False)):
        network = model(name)
        assert torch.equal(network(batch).r[:, 0], network(mixed).r[:, 0]) != depends


@pytest.mark.integration
@pytest.mark.parametrize("part", ABLATIONS)
def test_every_ablation_has_finite_losses_and_learns(model: Any, batch_of: Any, part: str) -> None:
    network = model(f"ablation-{part}").train()
    losses = network(batch_of(range(16), {1: ("text",), 2: ("audio", "vision")})).losses
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    idle = {name.split(".")[0] for name, gradient in gradients.items() if gradient is None}
    assert idle == {"fallback": {"prior"}, "probe": {"quality"}}.get(part, set())
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values() if gradient is not None)
