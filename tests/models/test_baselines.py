"""All models by name, on one to three modalities; then each baseline against its definition."""

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qamoe.config.params import Hidden, Mean, MoE, TensorFusion, load
from qamoe.data.batch import Batch
from qamoe.degradation.features import fixed_state
from qamoe.errors import UserError
from qamoe.models.factory import MODELS, block_of, build, oracle_quality
from qamoe.models.heads import Prediction, Target, gaussian_nll

ROOT = Path(__file__).parents[2]
SHIPPED = {"text": 385, "audio": 25, "vision": 72}
FEATURES = {"text": 6, "audio": 3, "vision": 2}
CORPORA = (("text", "audio", "vision"), ("text", "audio"), ("text",), ("vision",))
MEAN, DEVIATION = 0.5, 2.0
WITH_R = ("precision", "oracle", "qamoe", "paper", "paper-public")
GUIDED = ("precision", "oracle", "qamoe", "moe")  # models that report their modality weights


@pytest.fixture
def model(sizes: Any, block: Any, paper_block: Any) -> Callable[..., Any]:
    """Make a model by name for some modalities, with distinct absent vectors: model("moe", ("text",))."""

    def make(name: str, modalities: tuple[str, ...] = CORPORA[0], fusion: str = "tokens") -> Any:
        qamoe = block(fusion)
        default = Hidden(hidden=6)
        moe = MoE.model_validate(qamoe.model_dump(include=set(MoE.model_fields)))
        blocks = {"mean": Mean(), "tensor": TensorFusion(hidden=6, low=2), "moe": moe, "oracle": qamoe, "qamoe": qamoe}
        blocks |= {"paper": paper_block(), "paper-public": paper_block(missing_flags=True, loss={"balance": 0.01})}
        torch.manual_seed(0)
        features = {m: FEATURES[m] for m in modalities}
        network = build(name, features, sizes, blocks.get(name, default), Target(MEAN, DEVIATION))
        for part, parameter in network.named_parameters():
            if part.endswith("absent"):
                nn.init.normal_(parameter)
        return network.eval()

    return make


def only(batch: Batch, modalities: tuple[str, ...]) -> Batch:
    """Return the batch of a corpus that has only these modalities."""
    return replace(batch, x={m: batch.x[m] for m in modalities}, mask={m: batch.mask[m] for m in modalities})


def predict(network: Any, batch: Batch) -> Any:
    """Predict; the oracle gets a different quality for each clip."""
    keys = batch.keys[:, :1] % 97
    quality = (keys + torch.arange(len(batch.x)) * 31) % 97 / 97
    return network(batch, quality.float() if isinstance(network, MODELS["oracle"]) else None)


def tensors(result: Prediction) -> dict[str, torch.Tensor]:
    named = {name: getattr(result, name) for name in ("value", "variance", "r", "fusion", "routing")}
    return {k: v for k, v in named.items() if v is not None} | {f"losses.{k}": v for k, v in result.losses.items()}


every = pytest.mark.parametrize("name", MODELS)
corpus = pytest.mark.parametrize("modalities", [m for m in CORPORA if m != ("vision",)], ids="+".join)


@every
@corpus
def test_it_trains_on_any_modalities(model: Any, batch_of: Any, name: str, modalities: tuple[str, ...]) -> None:
    network = model(name, modalities).train()
    absent = {1: ("text",), 2: ("audio",), 3: ("vision",), 4: FEATURES}
    result = predict(network, only(batch_of(range(64), absent), modalities))
    assert result.value.shape == result.variance.shape == (64,)
    for part, tensor in tensors(result).items():
        assert torch.isfinite(tensor).all(), part
    assert (result.variance > 0).all()
    assert ({"task"} if name.startswith("paper") else {"task", "variance"}) <= set(result.losses)
    if name == "mean":
        assert (result.value == MEAN).all()
        assert (result.variance == DEVIATION**2).all()
        return
    torch.stack(list(result.losses.values())).sum().backward()
    for part, parameter in network.named_parameters():
        assert parameter.grad is not None, f"{part} gets no gradient"
        assert torch.isfinite(parameter.grad).all(), part
        one_weight = len(modalities) == 1 and part.startswith("mixture.score")  # a single modality has weight 1
        # A softmax is invariant to a constant added to all scores.
        if not (one_weight or part.endswith("score.bias") or (part == "place" and len(modalities) == 1)):
            assert parameter.grad.abs().max() > 0, part


@every
@corpus
@torch.no_grad()
def test_evaluation_does_not_depend_on_the_other_clips(
    model: Any, batch_of: Any, name: str, modalities: tuple[str, ...]
) -> None:
    network, absent = model(name, modalities), {3: ("audio",), 5: ("text", "vision"), 6: FEATURES}
    alone = [predict(network, only(batch_of([clip], absent), modalities)) for clip in range(8)]
    for clips, padding in ((range(8), 0), ([7, 2, 6, 0], 4)):
        batch = only(batch_of(clips, absent, padding), modalities)
        together = predict(network, batch)
        assert torch.equal(together.value, predict(network, batch).value), "evaluation is deterministic"
        for i, clip in enumerate(clips):
            for part, tensor in tensors(replace(together, losses={})).items():
                assert torch.allclose(tensor[i], getattr(alone[clip], part)[0], atol=1e-5), (part, clip)
    if name != "mean":
        assert torch.cat([torch.as_tensor(result.value) for result in alone]).std() > 0.001, (
            "the comparison needs clips that differ"
        )


@every
@torch.no_grad()
def test_absent_modalities_give_finite_numbers(model: Any, batch_of: Any, name: str) -> None:
    for absent in (("audio",), ("text", "vision"), tuple(FEATURES)):
        for part, tensor in tensors(predict(model(name), batch_of(range(4), {1: absent}))).items():
            assert torch.isfinite(tensor).all(), part


@every
@torch.no_grad()
def test_every_modality_that_a_model_reads_changes_its_prediction(model: Any, batch_of: Any, name: str) -> None:
    network, batch = model(name), batch_of(range(6))
    plain = predict(network, batch).value
    for modality in FEATURES:
        changed = predict(network, batch.with_x(**{modality: batch.x[modality] + 1})).value
        read = name != "mean" and (name != "text" or modality == "text")
        assert torch.equal(changed, plain) is not read, modality


@every
def test_only_models_that_estimate_reliability_return_it(model: Any, batch_of: Any, name: str) -> None:
    result = predict(model(name), batch_of(range(3)))
    assert (result.r is not None) == (name in WITH_R)
    assert (result.fusion is not None) == (name in GUIDED)
    assert (result.routing is not None) == (name in ("moe", "oracle", "qamoe", "paper", "paper-public"))
    assert MODELS[name].estimates_reliability == (name in WITH_R)
    if result.fusion is not None:
        assert torch.allclose(result.fusion.sum(1), torch.ones(3))


@pytest.mark.integration
@every
def test_without_a_target_there_are_no_losses(model: Any, batch_of: Any, name: str) -> None:
    with_target, without = (predict(model(name), batch_of(range(3), target=target)) for target in (True, False))
    assert without.losses == {}
    assert torch.equal(with_target.value, without.value)


def test_all_models_have_the_same_encoders(model: Any) -> None:
    """Comparisons are between fusions: encoders have the same sizes and, with one seed, the same initial weights."""

    def encoders(name: str) -> dict[str, torch.Tensor]:
        weights = model(name).encode.state_dict()
        return {part: value for part, value in weights.items() if not part.endswith("absent")}

    expected = encoders("qamoe")
    for name in set(MODELS) - {"mean", "text"}:
        actual = encoders(name)
        assert list(actual) == list(expected)
        assert all(torch.equal(actual[key], expected[key]) for key in actual), name
    assert set(encoders("text")) == {key for key in expected if ".text." in key}


def test_text_is_refused_on_a_corpus_without_text(model: Any) -> None:
    with pytest.raises(UserError) as refusal:
        model("text", ("audio", "vision"))
    assert "audio and vision" in str(refusal.value)


@torch.no_grad()
def test_tensor_fusion_takes_every_product_of_up_to_three_modalities(model: Any, batch_of: Any) -> None:
    network, batch = model("tensor"), batch_of(range(4))
    seen: list[torch.Tensor] = []
    network.mix.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    network(batch)
    low = torch.tanh(network.lower(network.encode(batch)))
    ones = F.pad(low, (1, 0), value=1.0)  # (B, 3, 1 + 2)
    expected = [ones[:, 0, i] * ones[:, 1, j] * ones[:, 2, k] for i, j, k in itertools.product(range(3), repeat=3)]
    assert torch.allclose(seen[0], torch.stack(expected, 1), atol=1e-6)


@torch.no_grad()
def test_modality_vectors_attend_to_each_other(model: Any, batch_of: Any) -> None:
    network, batch = model("cross_attention"), batch_of(range(4))
    seen: list[torch.Tensor] = []
    network.mix.register_forward_pre_hook(lambda _, args: seen.append(args[0].unflatten(1, (3, 8))))
    network(batch)
    network(batch.with_x(audio=batch.x["audio"] + 1))
    assert ((seen[0] - seen[1]).abs().amax(2) > 1e-5).all(), "other audio changes the vectors of text and vision"


@torch.no_grad()
def test_precision_multiplies_the_gaussians_of_the_modalities(model: Any, batch_of: Any) -> None:
    network, batch = model("precision"), batch_of(range(5), {2: ("audio",)})
    result, h = network(batch), network.encode(batch)
    outputs = [expert(h[:, index]) for index, expert in enumerate(network.experts)]
    value, variance = torch.stack([v for v, _ in outputs], 1), torch.stack([s.exp() for _, s in outputs], 1)
    weights = (1 / variance) / (1 / variance).sum(1, keepdim=True)
    assert torch.allclose(result.fusion, weights, atol=1e-6)
    assert torch.allclose(result.value, (weights * value).sum(1) * DEVIATION + MEAN, atol=1e-5)
    assert torch.allclose(result.variance, DEVIATION**2 / (1 / variance).sum(1), rtol=1e-5)
    assert torch.allclose(result.r, 1 / (1 + variance), atol=1e-6)
    y = ((batch.target - MEAN) / DEVIATION)[:, None].expand(-1, 3)
    assert torch.allclose(result.losses["probe"], gaussian_nll(value, variance.log(), y), atol=1e-6)


@torch.no_grad()
def test_a_given_quality_takes_the_place_of_predicted_precision(model: Any, batch_of: Any) -> None:
    network, batch = model("precision"), batch_of(range(5))
    plain = network(batch)
    assert torch.allclose(network(batch, plain.r).value, plain.value, atol=1e-5)
    text_alone = network(batch, torch.tensor([1.0, 0.0, 0.0]).expand(5, 3))
    assert text_alone.fusion[:, 0].min() > 0.999
    assert torch.isfinite(text_alone.variance).all()


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["tokens", "concat"])
def test_moe_is_qamoe_at_full_reliability(model: Any, batch_of: Any, fusion: str) -> None:
    """At r = 1, with a zero quality gate and the same weights, QA-MoE gives the predictions of moe."""
    moe, qamoe = model("moe", fusion=fusion), model("qamoe", fusion=fusion)
    assert not any("quality" in part or "prior" in part for part in moe.state_dict())
    weights = moe.state_dict()
    weights |= {f"quality.mu.{part}": weights.pop(f"mu.{part}") for part in ("weight", "bias")}
    missing, unexpected = qamoe.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) == {
        "prior",
        "mixture.router.quality.weight",
        *(part for part in qamoe.state_dict() if re.match(r"quality\.(log_variance|probe|others)\.", part)),
    }
    nn.init.zeros_(qamoe.mixture.router.quality.weight)
    batch = batch_of(range(6), {2: ("audio",)})
    actual, expected = moe(batch), qamoe(batch, torch.ones(6, 3))
    assert torch.allclose(actual.value, expected.value, atol=1e-6)
    assert torch.allclose(actual.routing, expected.routing, atol=1e-6)
    assert torch.equal(moe(batch, torch.rand(6, 3)).value, actual.value), "moe ignores quality"


def test_the_oracle_uses_the_quality_that_it_is_given(model: Any, batch_of: Any) -> None:
    network, batch = model("oracle"), batch_of(range(4))
    quality = torch.rand(4, 3, generator=torch.Generator().manual_seed(1))
    result = network(batch, quality)
    assert torch.equal(result.r, quality)
    assert ((result.value - network(batch, 1 - quality).value).abs() > 1e-5).all()
    qamoe = model("qamoe")
    assert torch.equal(qamoe(batch, quality).value, result.value), "otherwise it is QA-MoE"
    with pytest.raises(UserError, match="oracle"):
        network(batch)


def test_true_quality_is_one_minus_severity_of_the_models_modalities(model: Any) -> None:
    state = fixed_state(("missing", "clean", "noise"), (0.3, 0.0, 1.0), 2)
    expected = torch.tensor([0.7, 1.0, 0.0]).expand(2, 3)
    whole: Any = oracle_quality(model("oracle"), state)
    part: Any = oracle_quality(model("oracle", ("text", "vision")), state)
    assert torch.allclose(whole, expected)
    assert torch.allclose(part, expected[:, [0, 2]])
    assert all(oracle_quality(model(name), state) is None for name in set(MODELS) - {"oracle"})


def test_the_documented_sizes_are_those_of_the_parameters() -> None:
    """docs/how/method.md has a table of parameter counts, for the frame dimensions of the default extractors."""
    models = load(ROOT / "params.yaml").models
    rows = re.findall(
        r"^\| `([\w-]+)` \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$",
        (ROOT / "docs/how/method.md").read_text(),
        re.MULTILINE,
    )
    documented = {name: [int(number.replace(",", "")) for number in numbers] for name, *numbers in rows}
    assert list(documented) == list(MODELS)
    for name, (encoders, rest, total) in documented.items():
        network = build(name, SHIPPED, models.encoders, block_of(models, name), Target(0.0, 1.0))
        count = sum(p.numel() for p in network.parameters())
        in_encoders = sum(p.numel() for part, p in network.named_parameters() if part.startswith("encode."))
        assert (encoders, rest, total) == (in_encoders, count - in_encoders, count), name
    assert all(0.7 < documented[name][2] / documented["qamoe"][2] <= 1 for name in set(MODELS) - {"mean", "text"})
