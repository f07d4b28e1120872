"""`paper` and `paper-public`: each equation on numbers computed by hand, and what no source has is not there."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qamoe.config.params import Encoders, load
from qamoe.data.batch import Batch
from qamoe.errors import UserError
from qamoe.models import checkpoint
from qamoe.models.factory import block_of
from qamoe.models.heads import Classes, Target
from qamoe.models.paper import Paper, gate_entropy
from qamoe.models.training_step import Step

ROOT = Path(__file__).parents[2]
FEATURES = {"text": 6, "audio": 3, "vision": 2}
PAIR = {"text": 6, "audio": 3}
NAMES = ("paper", "paper-public")
MEAN, DEVIATION = 0.5, 2.0
# Facts about the paper with their sources: D a digest of its PDF, R how others drive the authors' code.
FACTS = {
    "experts": (8, 8),  # D, R
    "active": (3, 3),  # D, R
    "experts_read": ("sample", "sample"),  # D
    "missing_flags": (False, True),  # R; D has none
    "gate": (True, True),  # D
    "prior": (True, True),  # D
    "loss.balance": (0.0, 0.01),  # R; D has none
    "loss.gate_entropy": (0.0, 0.0),  # R; D has none
    "loss.quality": (0.0, 0.0),  # 0.5 in R, in a form that is not known
}
OURS = {"hidden": (64, 64)}


@pytest.fixture
def model(sizes: Encoders, paper_block: Any) -> Callable[..., Paper]:
    """Make a model in evaluation with random absent vectors and prior: model(missing_flags=True)."""

    def make(target: Any = None, **changes: Any) -> Paper:
        torch.manual_seed(0)
        network = Paper(FEATURES, sizes, paper_block(**changes), target or Target(MEAN, DEVIATION))
        nn.init.normal_(network.prior)
        for encoder in network.encode.encoders.values():
            nn.init.normal_(encoder.absent)  # type: ignore[union-attr, arg-type]
        return network.eval()

    return make


def step(batch: Batch, severity: float = 0.25) -> Step:
    return Step(1, 1, batch.keys, lambda count: count, torch.full((len(batch), 3), severity))


@pytest.fixture
def by_hand(sizes: Encoders, paper_block: Any) -> Paper:
    """A model of two modalities whose weights use the first two of the eight dimensions only, in evaluation.

    mu = (2 h0, h1 + 1); the pre-activation of sigma^2 is ln(e^2 - 1) = softplus^-1(2) in text and 0 in audio, in all
    eight dimensions. Expert k reads mu0 as value and mu1 as the argument of SiLU, and gives k + 1 times their product
    in dimension 0. Router logits are (mu0, mu1, 0).
    """
    network = Paper(PAIR, sizes, paper_block(experts=3, active=2, hidden=1), Target(1.0, 2.0)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.mu.weight[:, 0, 0] = 2.0
        network.mu.weight[:, 1, 1] = 1.0
        network.mu.bias[:, 1] = 1.0
        network.variance.bias[0] = math.log(math.e**2 - 1)
        network.router.semantic.weight[0, 0] = network.router.semantic.weight[1, 1] = 1.0
        network.experts.up[:, 0, 0] = network.experts.up[:, 1, 1] = 1.0
        network.experts.down[:, 0, 0] = torch.tensor([1.0, 2.0, 3.0])
        network.prior[0] = 10.0
        mix: Any = network.fusion[0]
        mix.weight[0, 0] = 1.0  # text's y, dimension 0
        mix.weight[1, 8] = 1.0  # audio's
        network.value.weight[0, :2] = torch.tensor([0.5, 0.25])
        network.value.bias[:] = 0.125
        network.log_variance.weight[0, :2] = torch.tensor([0.1, -0.2])
        network.log_variance.bias[:] = 0.3
    return network


def h_of(text: tuple[float, float], audio: tuple[float, float]) -> torch.Tensor:
    h = torch.zeros(1, 2, 8)
    h[0, :, :2] = torch.tensor([text, audio])
    return h


SILU_2 = 2 / (1 + math.exp(-2))
SILU_3 = 3 / (1 + math.exp(-3))
# text, h = (0.5, 2): mu (1, 3); of the logits (1, 3, 0) the first two are active, with weights in the ratio e : e^3.
TEXT_WEIGHTS = (1 / (1 + math.exp(2)), 1 / (1 + math.exp(-2)), 0.0)
TEXT_EXPERTS = 1 * SILU_3 * (1 * TEXT_WEIGHTS[0] + 2 * TEXT_WEIGHTS[1])
# audio, h = (-1, 1): mu (-2, 2); of the logits (-2, 2, 0) the last two are active.
AUDIO_WEIGHTS = (0.0, 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2)))
AUDIO_EXPERTS = -2 * SILU_2 * (2 * AUDIO_WEIGHTS[1] + 3 * AUDIO_WEIGHTS[2])
R = (1 / (1 + 2), 1 / (1 + math.log(2)))  # softplus(0) = ln 2
Y = (R[0] * TEXT_EXPERTS + (1 - R[0]) * 10, R[1] * AUDIO_EXPERTS + (1 - R[1]) * 10)
FUSED = tuple(y * 0.5 * (1 + math.erf(y / math.sqrt(2))) for y in Y)  # GELU
VALUE = 0.5 * FUSED[0] + 0.25 * FUSED[1] + 0.125
LOG_VARIANCE = 0.1 * FUSED[0] - 0.2 * FUSED[1] + 0.3


@torch.no_grad()
def test_every_equation_gives_the_numbers_computed_by_hand(by_hand: Paper) -> None:
    seen: dict[str, torch.Tensor] = {}
    by_hand.fusion.register_forward_pre_hook(lambda _, args: seen.update(y=args[0]))
    by_hand.experts.register_forward_hook(lambda module, args, out: seen.update(x=args[0], mixed=out))
    h = h_of((0.5, 2.0), (-1.0, 1.0))
    result: Any = by_hand.fuse(h)
    assert seen["x"][0, :, :2].tolist() == [[1.0, 3.0], [-2.0, 2.0]], "mu"
    assert result.routing[0].tolist() == [pytest.approx(TEXT_WEIGHTS), pytest.approx(AUDIO_WEIGHTS)]
    assert seen["mixed"][0, :, 0].tolist() == pytest.approx([TEXT_EXPERTS, AUDIO_EXPERTS], rel=1e-5)
    assert result.r[0].tolist() == pytest.approx(R)
    assert seen["y"][0, [0, 8]].tolist() == pytest.approx(Y, rel=1e-5)
    assert result.value.item() == pytest.approx(VALUE * 2 + 1, rel=1e-5)
    assert result.variance.item() == pytest.approx(math.exp(LOG_VARIANCE) * 4, rel=1e-5)


@torch.no_grad()
def test_the_only_loss_is_the_likelihood_of_value_and_variance(by_hand: Paper) -> None:
    result = by_hand.fuse(h_of((0.5, 2.0), (-1.0, 1.0)), torch.tensor([-2.0]))
    standard = (-2.0 - 1.0) / 2
    expected = 0.5 * (LOG_VARIANCE + (VALUE - standard) ** 2 / math.exp(LOG_VARIANCE))
    assert list(result.losses) == ["task"]
    assert result.losses["task"].item() == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_r_averages_the_variance_over_its_dimensions(by_hand: Paper) -> None:
    by_hand.variance.bias[0] = torch.tensor([math.log(math.e**2 - 1)] * 2 + [-1e4] * 6)  # 2 in two of eight
    result: Any = by_hand.fuse(torch.zeros(1, 2, 8))
    assert result.r[0, 0].item() == pytest.approx(1 / (1 + 2 * 2 / 8))


@torch.no_grad()
def test_the_variance_has_no_limit(by_hand: Paper) -> None:
    by_hand.variance.bias[0] = 1e6
    result: Any = by_hand.fuse(torch.zeros(1, 2, 8))
    assert result.r[0, 0].item() == pytest.approx(1e-6, rel=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(("r", "y"), [(0.0, 10.0), (1.0, TEXT_EXPERTS), (0.25, 0.25 * TEXT_EXPERTS + 7.5)])
def test_a_given_quality_replaces_r_on_the_output_of_the_experts(by_hand: Paper, r: float, y: float) -> None:
    seen: list[torch.Tensor] = []
    by_hand.fusion.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    result: Any = by_hand.fuse(h_of((0.5, 2.0), (-1.0, 1.0)), None, torch.tensor([[r, 0.5]]))
    assert seen[0][0, 0].item() == pytest.approx(y, rel=1e-5)
    assert result.r.tolist() == [[r, 0.5]]


@torch.no_grad()
@pytest.mark.parametrize("quality", [None, torch.tensor([[0.25, 0.5]])])
def test_without_the_gate_y_is_the_output_of_the_experts_and_r_is_still_reported(by_hand: Paper, quality: Any) -> None:
    by_hand.block = by_hand.block.model_copy(update={"gate": False})
    seen: list[torch.Tensor] = []
    by_hand.fusion.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    result: Any = by_hand.fuse(h_of((0.5, 2.0), (-1.0, 1.0)), None, quality)
    assert seen[0][0, [0, 8]].tolist() == pytest.approx([TEXT_EXPERTS, AUDIO_EXPERTS], rel=1e-5)
    assert result.r[0].tolist() == pytest.approx(R if quality is None else [0.25, 0.5])


@torch.no_grad()
def test_without_the_prior_y_is_r_times_the_output_of_the_experts(by_hand: Paper) -> None:
    by_hand.prior[0] = 0.0
    seen: list[torch.Tensor] = []
    by_hand.fusion.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    by_hand.fuse(h_of((0.5, 2.0), (-1.0, 1.0)))
    assert seen[0][0, [0, 8]].tolist() == pytest.approx([R[0] * TEXT_EXPERTS, R[1] * AUDIO_EXPERTS], rel=1e-5)


@pytest.mark.parametrize(("gate", "prior"), [(True, True), (True, False), (False, True), (False, False)])
def test_the_prior_is_learned_only_if_it_has_an_effect(
    sizes: Encoders, paper_block: Any, batch_of: Any, gate: bool, prior: bool
) -> None:
    network = Paper(FEATURES, sizes, paper_block(gate=gate, prior=prior), Target(MEAN, DEVIATION)).train()
    batch = batch_of(range(8))
    optimiser = torch.optim.SGD(network.parameters(), 0.1)
    result = network(batch, step=step(batch))
    result.losses["task"].backward()
    optimiser.step()
    assert bool(network.prior.any()) == (gate and prior)
    assert network.prior.shape == network.state_dict()["prior"].shape == (8,)
    assert ((result.r > 0) & (result.r < 1)).all(), "r is reported either way"
    assert network.variance.bias.grad is not None, "the sample teaches the variance"


@torch.no_grad()
def test_the_heads_are_linear_in_what_they_read(model: Any) -> None:
    network = model()
    a, b = torch.randn(2, 4, 8).unbind(0)
    for head in (network.value, network.log_variance):
        assert torch.allclose(head(a + b) + head.bias, head(a) + head(b), atol=1e-6)
    assert not hasattr(network, "head"), "the head of the other models has a hidden layer and a limit"


@pytest.mark.parametrize("experts_read", ["sample", "mu"])
def test_the_experts_read_a_sample_in_training_or_the_mean(model: Any, batch_of: Any, experts_read: str) -> None:
    network, batch = model(experts_read=experts_read), batch_of(range(400))
    seen: list[torch.Tensor] = []
    network.experts.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    h = network.encode(batch).detach()
    routing = [network.fuse(h, step=step(batch)).routing]
    routing.append(network.train().fuse(h, step=step(batch)).routing)
    mean, read = seen
    assert torch.equal(mean, network.mu(h))
    assert torch.equal(*routing), "the router reads the mean"
    if experts_read == "mu":
        assert torch.equal(read, mean)
        return
    standard = (read - mean) / nn.functional.softplus(network.variance(h)).sqrt()
    assert abs(standard.mean()) < 0.05
    assert standard.std().item() == pytest.approx(1.0, abs=0.05)


@torch.no_grad()
def test_the_router_does_not_read_reliability(model: Any, batch_of: Any) -> None:
    network, batch = model(), batch_of(range(6))
    plain = network(batch)
    assert torch.equal(network(batch, torch.rand(6, 3)).routing, plain.routing)
    network.variance.bias += torch.randn_like(network.variance.bias)
    changed = network(batch)
    assert not torch.allclose(changed.r, plain.r, atol=0.01)
    assert torch.equal(changed.routing, plain.routing)


@torch.no_grad()
@pytest.mark.parametrize("missing_flags", [False, True])
def test_r_of_a_modality_depends_on_this_modality_alone(model: Any, batch_of: Any, missing_flags: bool) -> None:
    network, batch = model(missing_flags=missing_flags), batch_of(range(6))
    plain = network(batch)
    changed = network(batch.with_x(audio=batch.x["audio"] + 1))
    assert torch.equal(changed.r[:, [0, 2]], plain.r[:, [0, 2]])
    assert ((changed.r[:, 1] - plain.r[:, 1]).abs() > 1e-6).all()
    assert torch.equal(changed.routing[:, [0, 2]], plain.routing[:, [0, 2]])


@pytest.mark.parametrize("experts_read", ["sample", "mu"])
@pytest.mark.parametrize("target", [Target(MEAN, DEVIATION), Classes([0.5, 0.3, 0.2])], ids=["value", "classes"])
def test_the_task_loss_alone_teaches_the_variance(model: Any, batch_of: Any, target: Any, experts_read: str) -> None:
    network, batch = model(target, experts_read=experts_read).train(), batch_of(range(32))
    batch = replace(batch, target=torch.arange(32).remainder(3).float())
    losses = network(batch, step=step(batch)).losses
    assert list(losses) == ["task"]
    losses["task"].backward()
    for index, modality in enumerate(FEATURES):
        assert network.variance.weight.grad[index].abs().max() > 0, modality
        assert network.variance.bias.grad[index].abs().max() > 0, modality


def test_if_the_experts_read_the_mean_the_variance_learns_through_r_alone(model: Any, batch_of: Any) -> None:
    network, batch = model(experts_read="mu").train(), batch_of(range(32))
    network(batch, torch.full((32, 3), 0.5), step(batch)).losses["task"].backward()
    assert network.variance.weight.grad is None


@torch.no_grad()
def test_a_flagged_modality_gives_way_to_the_prior(model: Any, batch_of: Any) -> None:
    """The flag is that of an empty mask. Frames of zeros, lost without a notice, are not flagged."""
    told, untold = model(missing_flags=True), model()
    absent = batch_of(range(4), {1: ("audio",), 2: tuple(FEATURES)})
    zeroed = absent.with_x(vision=torch.zeros_like(absent.x["vision"]))
    flagged = torch.zeros(4, 3, dtype=torch.bool)
    flagged[1, 1] = flagged[2] = True
    seen: list[torch.Tensor] = []
    told.fusion.register_forward_pre_hook(lambda _, args: seen.append(args[0].unflatten(1, (3, 8))))
    for batch in (absent, zeroed):
        assert torch.equal(told(batch).r == 0, flagged)
        assert torch.equal((seen.pop() == told.prior).all(-1), flagged)
        assert (untold(batch).r > 0).all()
    quality = torch.full((4, 3), 0.5)
    assert torch.equal(told(absent, quality).r, quality), "a given quality comes first"
    whole = batch_of(range(4))
    assert torch.equal(told(whole).value, untold(whole).value), "no flag changes nothing"


def test_each_weight_of_a_block_adds_its_loss(model: Any, batch_of: Any) -> None:
    batch = batch_of(range(8))
    for name in ("balance", "gate_entropy", "quality"):
        network = model(loss={name: 0.3})
        assert list(network(batch, step=step(batch)).losses) == ["task", name]
        assert network.loss_weights[name] == 0.3
        assert list(network(batch, step=None).losses) == (["task"] if name == "quality" else ["task", name])


def test_the_quality_term_is_the_cross_entropy_of_r_with_what_is_left(by_hand: Paper, batch_of: Any) -> None:
    loss = by_hand.block.loss.model_copy(update={"quality": 0.5})
    by_hand.block = by_hand.block.model_copy(update={"loss": loss})
    severity = torch.tensor([[0.25, 1.0]])
    training = Step(1, 1, batch_of([0]).keys, lambda count: count, severity)
    losses = by_hand.fuse(torch.zeros(1, 2, 8), torch.tensor([0.0]), step=training).losses
    text = -0.75 * math.log(R[0]) - 0.25 * math.log(1 - R[0])
    audio = -math.log(1 - R[1])
    assert losses["quality"].item() == pytest.approx((text + audio) / 2, rel=1e-5)


def test_the_gate_entropy_is_that_of_all_experts() -> None:
    logits = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [0.0, math.log(3), -1e4, -1e4]]])
    second = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    assert gate_entropy(logits).item() == pytest.approx((math.log(4) + second) / 2, rel=1e-5)


def flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


@pytest.mark.parametrize(("name", "column"), zip(NAMES, (0, 1), strict=True))
def test_the_parameters_are_the_known_facts(name: str, column: int) -> None:
    params = load(ROOT / "params.yaml")
    expected = {key: values[column] for key, values in (FACTS | OURS).items()}
    assert flat(block_of(params.models, name).model_dump()) == expected
    assert name not in params.seeds, "the demo trains few models"


def test_more_active_experts_than_experts_are_refused(paper_block: Any) -> None:
    with pytest.raises(ValueError, match=r"\b4\b.*\b3\b"):
        paper_block(experts=3, active=4)


@pytest.mark.integration
@pytest.mark.parametrize("name", NAMES)
def test_it_is_trained_saved_and_loaded(train: Any, setting: Any, tmp_path: Path, name: str) -> None:
    train(tmp_path, name, common={"epochs": 2})
    trained: Any = checkpoint.load(tmp_path)
    assert type(trained.model) is Paper
    assert set(trained.config["models"]) == {"encoders", name}
    assert set(trained.config["trust"]) == set(FEATURES)
    assert trained.model.variance.bias.abs().min() > 0, "the map of sigma has learned"
    batch, _, _ = setting.valid.degraded(0, range(6))
    result: Any = trained.predict(batch)
    assert torch.isfinite(result.value).all()
    loaded_again: Any = checkpoint.load(tmp_path)
    assert torch.equal(result.value, loaded_again.predict(batch).value)
    quality = torch.full((6, 3), 0.25)
    assert torch.equal(trained.predict(batch, quality).r, quality)
    vectors = trained.vectors(batch)
    assert torch.equal(trained.fuse(vectors, 6).value, result.value)


@pytest.mark.integration
def test_a_checkpoint_of_one_does_not_load_as_the_other(train: Any, tmp_path: Path) -> None:
    train(tmp_path, "paper", common={"epochs": 1})
    text = (tmp_path / "model.json").read_text()
    (tmp_path / "model.json").write_text(text.replace('"model": "paper"', '"model": "paper-public"'))
    with pytest.raises(UserError, match=r"model\.json"):
        checkpoint.load(tmp_path)
