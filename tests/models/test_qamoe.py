"""QA-MoE as a whole, in both fusions: finite, deterministic, of each clip alone, and guided by quality."""

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
        made = QAMoE(FEATURES, sizes, block(fusion, **changes), Target(MEAN, DEVIATION))
        torch.nn.init.normal_(made.prior)
        for encoder in made.encode.encoders.values():
            torch.nn.init.normal_(encoder.absent)  # type: ignore[union-attr, arg-type]
        return made.eval()

    return make


both = pytest.mark.parametrize("fusion", FUSIONS)


def tensors(result: Prediction) -> dict[str, torch.Tensor]:
    named = {name: getattr(result, name) for name in ("value", "variance", "r", "fusion", "routing")}
    return named | {f"losses.{name}": value for name, value in result.losses.items()}


@both
@torch.no_grad()
def test_a_prediction_does_not_depend_on_batch_mates_or_padding(model: Any, batch_of: Any, fusion: str) -> None:
    made, absent = model(fusion), {3: ("audio",), 5: ("text", "vision"), 6: ("text", "audio", "vision")}
    alone = [made(batch_of([clip], absent)) for clip in range(8)]
    for clips, padding in ((range(8), 0), (range(8), 9), ([7, 2, 6, 0], 1), ([4, 5, 3, 1, 0], 0)):
        together = made(batch_of(clips, absent, padding))
        for i, clip in enumerate(clips):
            for name in ("value", "variance", "r", "fusion", "routing"):
                expected, found = getattr(alone[clip], name)[0], getattr(together, name)[i]
                assert torch.allclose(found, expected, atol=1e-5), (name, clip)
    values = torch.cat([result.value for result in alone])
    assert values.std() > 0.01, "clips differ, or the comparison says nothing"


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
    made, batch = model(fusion), batch_of(range(5))
    assert torch.equal(made(batch).value, made(batch).value)
    made.train()
    assert not torch.equal(made(batch).value, made(batch).value)


@both
@pytest.mark.parametrize("active", [1, 3])
def test_routing_weights_are_shares_of_the_active_experts(model: Any, batch_of: Any, fusion: str, active: int) -> None:
    routing = model(fusion, active=active)(batch_of(range(6))).routing
    assert routing.shape == (6, 4 if fusion == "tokens" else 1, 5)
    assert torch.allclose(routing.sum(-1), torch.ones(routing.shape[:2]))
    assert ((routing > 0).sum(-1) == active).all()


@both
@torch.no_grad()
def test_given_quality_takes_the_place_of_r_and_changes_the_prediction(model: Any, batch_of: Any, fusion: str) -> None:
    made, batch = model(fusion), batch_of(range(5))
    plain = made(batch)
    quality = torch.rand(5, 3, generator=torch.Generator().manual_seed(1))
    given = made(batch, quality)
    assert torch.equal(given.r, quality)
    assert ((given.value - plain.value).abs() > 1e-5).all()
    assert torch.allclose(made(batch, plain.r).value, plain.value, atol=1e-6)


@both
@torch.no_grad()
def test_a_modality_of_no_quality_has_no_say(model: Any, batch_of: Any, fusion: str) -> None:
    """At r = 0 only the prior is left of it, so another clip's frames in its place change next to nothing."""
    made, batch, other = model(fusion), batch_of(range(5)), batch_of(range(5, 10))
    swapped = batch.with_x(audio=other.x["audio"][:, :1].expand(5, batch.x["audio"].shape[1], 3))
    none, full = torch.tensor([1.0, 0.0, 1.0]).expand(5, 3), torch.ones(5, 3)
    assert torch.allclose(made(batch, none).value, made(swapped, none).value, atol=1e-5)
    assert not torch.allclose(made(batch, full).value, made(swapped, full).value, atol=1e-3)
    if fusion == "tokens":
        assert made(batch, none).fusion[:, 1].max() < 0.01


@both
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_quality_at_its_ends_gives_finite_numbers(model: Any, batch_of: Any, fusion: str, level: float) -> None:
    """Oracle quality is 0 where everything is lost."""
    result = model(fusion)(batch_of(range(3)), torch.full((3, 3), level))
    for name, tensor in tensors(result).items():
        assert torch.isfinite(tensor).all(), name
    assert torch.allclose(result.fusion.sum(1), torch.ones(3))


@both
def test_every_loss_is_finite_and_every_parameter_learns(model: Any, batch_of: Any, fusion: str) -> None:
    made = model(fusion, active=5).train()  # all of them, or one might have no clip by chance
    absent = {1: ("text",), 2: ("audio",), 3: ("vision",)}
    losses = made(batch_of(range(64), absent)).losses
    assert set(losses) == {"task", "variance", "probe", "balance", "router_z"}
    for name, loss in losses.items():
        assert loss.shape == ()
        assert torch.isfinite(loss), name
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, f"{name} is in vain"
        assert torch.isfinite(parameter.grad).all(), name
        if not name.endswith("score.bias"):  # a softmax does not feel what is added to all of its scores
            assert parameter.grad.abs().max() > 0, name
        if fusion == "tokens" and ".experts." in f".{name}":  # one route a clip may leave an expert out of a batch
            assert (parameter.grad.flatten(1).abs().max(1).values > 0).all(), "an expert learns nothing"


@both
def test_the_variance_teaches_no_value(model: Any, batch_of: Any, fusion: str) -> None:
    """Clips declared uncertain still teach the value: the likelihood has no gradient into it."""
    made = model(fusion)
    weight = made.head.out.weight
    loss = made(batch_of(range(8))).losses["variance"]
    (gradient,) = torch.autograd.grad(loss, weight)
    assert gradient[0].abs().max() == 0
    assert gradient[1].abs().max() > 0


def test_without_a_target_there_are_no_losses(model: Any, batch_of: Any) -> None:
    with_target, without = (model()(batch_of(range(3), target=target)) for target in (True, False))
    assert without.losses == {}
    assert torch.equal(with_target.value, without.value)


def test_predictions_leave_in_label_units(sizes: Any, block: Any, batch_of: Any) -> None:
    found = []
    for target in (Target(0.0, 1.0), Target(MEAN, DEVIATION)):
        torch.manual_seed(0)
        found.append(QAMoE(FEATURES, sizes, block(), target).eval()(batch_of(range(4))))
    standard, labelled = found
    assert torch.allclose(labelled.value, standard.value * DEVIATION + MEAN)
    assert torch.allclose(labelled.variance, standard.variance * DEVIATION**2)
    target = batch_of(range(4)).target
    expected = ((standard.value - (target - MEAN) / DEVIATION).abs()).mean()
    assert labelled.losses["task"].item() == pytest.approx(expected.item(), rel=1e-5)
