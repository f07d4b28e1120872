"""The model QA-MoE in both fusions: finite, deterministic, independent of other clips, and guided by quality."""

from typing import Any

import pytest
import torch

from qamoe.models.heads import Prediction, Target
from qamoe.models.qamoe import QAMoE

FEATURES = {"text": 6, "audio": 3, "vision": 2}
FUSIONS = ("tokens", "concat")
MEAN, DEVIATION = 0.5, 2.0


@pytest.fixture
def model(sizes: Any, block: Any) -> Any:
    def make(fusion: str = "tokens", **changes: Any) -> QAMoE:
        torch.manual_seed(0)
        network = QAMoE(FEATURES, sizes, block(fusion, **changes), Target(MEAN, DEVIATION))
        torch.nn.init.normal_(network.prior)
        for encoder in network.encode.encoders.values():
            torch.nn.init.normal_(encoder.absent)  # type: ignore[union-attr, arg-type]
        return network.eval()

    return make


both = pytest.mark.parametrize("fusion", FUSIONS)


def tensors(result: Prediction) -> dict[str, torch.Tensor]:
    named = {name: getattr(result, name) for name in ("value", "variance", "r", "fusion", "routing")}
    return named | {f"losses.{name}": value for name, value in result.losses.items()}


@both
@torch.no_grad()
def test_a_prediction_does_not_depend_on_other_clips_or_padding(model: Any, batch_of: Any, fusion: str) -> None:
    network, absent = model(fusion), {3: ("audio",), 5: ("text", "vision"), 6: ("text", "audio", "vision")}
    alone = [network(batch_of([clip], absent)) for clip in range(8)]
    for clips, padding in ((range(8), 0), (range(8), 9), ([7, 2, 6, 0], 1), ([4, 5, 3, 1, 0], 0)):
        together = network(batch_of(clips, absent, padding))
        for i, clip in enumerate(clips):
            for name in ("value", "variance", "r", "fusion", "routing"):
                expected, actual = getattr(alone[clip], name)[0], getattr(together, name)[i]
                assert torch.allclose(actual, expected, atol=1e-5), (name, clip)
    values = torch.cat([result.value for result in alone])
    assert values.std() > 0.01, "the comparison needs clips that differ"


@both
@torch.no_grad()
def test_absent_modalities_give_finite_numbers(model: Any, batch_of: Any, fusion: str) -> None:
    for absent in (("audio",), ("text", "vision"), ("text", "audio", "vision")):
        result = model(fusion)(batch_of(range(4), {1: absent}))
        for name, tensor in tensors(result).items():
            assert torch.isfinite(tensor).all(), name
        assert ((result.r > 0) & (result.r < 1)).all()


@both
def test_evaluation_is_deterministic_and_training_is_not(model: Any, batch_of: Any, fusion: str) -> None:
    network, batch = model(fusion), batch_of(range(5))
    assert torch.equal(network(batch).value, network(batch).value)
    network.train()
    assert not torch.equal(network(batch).value, network(batch).value)


@both
@pytest.mark.parametrize("active", [1, 3])
def test_routing_weights_are_shares_of_the_active_experts(model: Any, batch_of: Any, fusion: str, active: int) -> None:
    routing = model(fusion, active=active)(batch_of(range(6))).routing
    assert routing.shape == (6, 4 if fusion == "tokens" else 1, 5)
    assert torch.allclose(routing.sum(-1), torch.ones(routing.shape[:2]))
    assert ((routing > 0).sum(-1) == active).all()


@both
@torch.no_grad()
def test_a_given_quality_replaces_r_and_changes_the_prediction(model: Any, batch_of: Any, fusion: str) -> None:
    network, batch = model(fusion), batch_of(range(5))
    plain = network(batch)
    quality = torch.rand(5, 3, generator=torch.Generator().manual_seed(1))
    overridden = network(batch, quality)
    assert torch.equal(overridden.r, quality)
    assert ((overridden.value - plain.value).abs() > 1e-5).all()
    assert torch.allclose(network(batch, plain.r).value, plain.value, atol=1e-6)


@both
@torch.no_grad()
def test_a_modality_of_quality_0_hardly_changes_the_prediction(model: Any, batch_of: Any, fusion: str) -> None:
    """At r = 0 the prior replaces the modality, so another clip's frames change almost nothing."""
    network, batch, other = model(fusion), batch_of(range(5)), batch_of(range(5, 10))
    swapped = batch.with_x(audio=other.x["audio"][:, :1].expand(5, batch.x["audio"].shape[1], 3))
    none, full = torch.tensor([1.0, 0.0, 1.0]).expand(5, 3), torch.ones(5, 3)
    assert torch.allclose(network(batch, none).value, network(swapped, none).value, atol=1e-5)
    assert not torch.allclose(network(batch, full).value, network(swapped, full).value, atol=1e-3)
    if fusion == "tokens":
        assert network(batch, none).fusion[:, 1].max() < 0.01


@both
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_quality_0_and_1_give_finite_numbers(model: Any, batch_of: Any, fusion: str, level: float) -> None:
    """Oracle quality is 0 if everything is lost."""
    result = model(fusion)(batch_of(range(3)), torch.full((3, 3), level))
    for name, tensor in tensors(result).items():
        assert torch.isfinite(tensor).all(), name
    assert torch.allclose(result.fusion.sum(1), torch.ones(3))


@both
def test_every_loss_is_finite_and_every_parameter_learns(model: Any, batch_of: Any, fusion: str) -> None:
    network = model(fusion, active=5).train()  # all experts: with fewer, one might get no clip
    absent = {1: ("text",), 2: ("audio",), 3: ("vision",)}
    losses = network(batch_of(range(64), absent)).losses
    assert set(losses) == {"task", "variance", "probe", "balance", "router_z"}
    for name, loss in losses.items():
        assert loss.shape == ()
        assert torch.isfinite(loss), name
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, f"{name} gets no gradient"
        assert torch.isfinite(parameter.grad).all(), name
        if not name.endswith("score.bias"):  # a softmax is invariant to a constant added to all scores
            assert parameter.grad.abs().max() > 0, name
        if (
            fusion == "tokens" and ".experts." in f".{name}"
        ):  # with one token per clip, a batch may not use every expert
            assert (parameter.grad.flatten(1).abs().max(1).values > 0).all(), "an expert gets no gradient"


@both
def test_the_variance_loss_has_no_gradient_into_the_value(model: Any, batch_of: Any, fusion: str) -> None:
    """Clips with a large variance still teach the value."""
    network = model(fusion)
    weight = network.head.out.weight
    loss = network(batch_of(range(8))).losses["variance"]
    (gradient,) = torch.autograd.grad(loss, weight)
    assert gradient[0].abs().max() == 0
    assert gradient[1].abs().max() > 0


def test_without_a_target_there_are_no_losses(model: Any, batch_of: Any) -> None:
    with_target, without = (model()(batch_of(range(3), target=target)) for target in (True, False))
    assert without.losses == {}
    assert torch.equal(with_target.value, without.value)


def test_predictions_are_in_label_units(sizes: Any, block: Any, batch_of: Any) -> None:
    predictions = []
    for target in (Target(0.0, 1.0), Target(MEAN, DEVIATION)):
        torch.manual_seed(0)
        predictions.append(QAMoE(FEATURES, sizes, block(), target).eval()(batch_of(range(4))))
    standard, labelled = predictions
    assert torch.allclose(labelled.value, standard.value * DEVIATION + MEAN)
    assert torch.allclose(labelled.variance, standard.variance * DEVIATION**2)
    target = batch_of(range(4)).target
    expected = ((standard.value - (target - MEAN) / DEVIATION).abs()).mean()
    assert labelled.losses["task"].item() == pytest.approx(expected.item(), rel=1e-5)
