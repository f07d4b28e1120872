"""All models by name, on three modalities and on one; then what each control is by its definition."""

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
SHIPPED = {"text": 384, "audio": 25, "vision": 72}
FEATURES = {"text": 6, "audio": 3, "vision": 2}
CORPORA = (("text", "audio", "vision"), ("text", "audio"), ("text",), ("vision",))
MEAN, DEVIATION = 0.5, 2.0
WITH_R = ("precision", "oracle", "qamoe")
GUIDED = (*WITH_R, "moe")  # those that show how they weigh modalities


@pytest.fixture
def model(sizes: Any, block: Any) -> Callable[..., Any]:
    """A model by name for a corpus with some modalities, its absent vectors told apart: model("moe", ("text",))."""

    def make(name: str, modalities: tuple[str, ...] = CORPORA[0], fusion: str = "tokens") -> Any:
        qamoe = block(fusion)
        hidden = Hidden(hidden=6)
        moe = MoE.model_validate(qamoe.model_dump(include=set(MoE.model_fields)))
        own = {"mean": Mean(), "tensor": TensorFusion(hidden=6, low=2), "moe": moe, "oracle": qamoe, "qamoe": qamoe}
        torch.manual_seed(0)
        features = {m: FEATURES[m] for m in modalities}
        made = build(name, features, sizes, own.get(name, hidden), Target(MEAN, DEVIATION))
        for part, parameter in made.named_parameters():
            if part.endswith("absent"):
                nn.init.normal_(parameter)
        return made.eval()

    return make


def some(batch: Batch, modalities: tuple[str, ...]) -> Batch:
    """The batch of a corpus that has these modalities alone."""
    return replace(batch, x={m: batch.x[m] for m in modalities}, mask={m: batch.mask[m] for m in modalities})


def ask(made: Any, batch: Batch) -> Prediction:
    """A prediction, the oracle being told a quality of each clip's own."""
    keys = batch.keys[:, :1] % 97
    quality = (keys + torch.arange(len(batch.x)) * 31) % 97 / 97
    return made(batch, quality.float() if isinstance(made, MODELS["oracle"]) else None)


def tensors(result: Prediction) -> dict[str, torch.Tensor]:
    named = {name: getattr(result, name) for name in ("value", "variance", "r", "fusion", "routing")}
    return {k: v for k, v in named.items() if v is not None} | {f"losses.{k}": v for k, v in result.losses.items()}


every = pytest.mark.parametrize("name", MODELS)
corpus = pytest.mark.parametrize("modalities", [m for m in CORPORA if m != ("vision",)], ids="+".join)


@every
@corpus
def test_it_trains_on_any_modalities(model: Any, batch_of: Any, name: str, modalities: tuple[str, ...]) -> None:
    made = model(name, modalities).train()
    absent = {1: ("text",), 2: ("audio",), 3: ("vision",), 4: FEATURES}
    result = ask(made, some(batch_of(range(64), absent), modalities))
    assert result.value.shape == result.variance.shape == (64,)
    for part, tensor in tensors(result).items():
        assert torch.isfinite(tensor).all(), part
    assert (result.variance > 0).all()
    assert {"task", "variance"} <= set(result.losses)
    if name == "mean":
        assert (result.value == MEAN).all()
        assert (result.variance == DEVIATION**2).all()
        return
    torch.stack(list(result.losses.values())).sum().backward()
    for part, parameter in made.named_parameters():
        assert parameter.grad is not None, f"{part} is in vain"
        assert torch.isfinite(parameter.grad).all(), part
        one_weight = len(modalities) == 1 and part.startswith("mixture.score")  # of one modality it is always 1
        # A softmax does not feel what is added to all of its scores.
        if not (one_weight or part.endswith("score.bias") or (part == "place" and len(modalities) == 1)):
            assert parameter.grad.abs().max() > 0, part


@every
@corpus
@torch.no_grad()
def test_evaluation_is_of_each_clip_alone(model: Any, batch_of: Any, name: str, modalities: tuple[str, ...]) -> None:
    made, absent = model(name, modalities), {3: ("audio",), 5: ("text", "vision"), 6: FEATURES}
    alone = [ask(made, some(batch_of([clip], absent), modalities)) for clip in range(8)]
    for clips, padding in ((range(8), 0), ([7, 2, 6, 0], 4)):
        batch = some(batch_of(clips, absent, padding), modalities)
        together = ask(made, batch)
        assert torch.equal(together.value, ask(made, batch).value), "evaluation is deterministic"
        for i, clip in enumerate(clips):
            for part, tensor in tensors(replace(together, losses={})).items():
                assert torch.allclose(tensor[i], getattr(alone[clip], part)[0], atol=1e-5), (part, clip)
    if name != "mean":
        assert torch.cat([result.value for result in alone]).std() > 0.01, "clips differ, or this says nothing"


@every
@torch.no_grad()
def test_what_is_absent_gives_finite_numbers(model: Any, batch_of: Any, name: str) -> None:
    for absent in (("audio",), ("text", "vision"), tuple(FEATURES)):
        for part, tensor in tensors(ask(model(name), batch_of(range(4), {1: absent}))).items():
            assert torch.isfinite(tensor).all(), part


@every
@torch.no_grad()
def test_every_modality_has_a_say(model: Any, batch_of: Any, name: str) -> None:
    made, batch = model(name), batch_of(range(6))
    plain = ask(made, batch).value
    for modality in FEATURES:
        changed = ask(made, batch.with_x(**{modality: batch.x[modality] + 1})).value
        heard = name != "mean" and (name != "text" or modality == "text")
        assert torch.equal(changed, plain) is not heard, modality


@every
def test_reliability_is_where_there_is_an_estimate_of_it(model: Any, batch_of: Any, name: str) -> None:
    result = ask(model(name), batch_of(range(3)))
    assert (result.r is not None) == (name in WITH_R)
    assert (result.fusion is not None) == (name in GUIDED)
    assert (result.routing is not None) == (name in ("moe", "oracle", "qamoe"))
    if result.fusion is not None:
        assert torch.allclose(result.fusion.sum(1), torch.ones(3))


@every
def test_without_a_target_there_are_no_losses(model: Any, batch_of: Any, name: str) -> None:
    with_target, without = (ask(model(name), batch_of(range(3), target=target)) for target in (True, False))
    assert without.losses == {}
    assert torch.equal(with_target.value, without.value)


def test_all_models_have_the_same_encoders(model: Any) -> None:
    """A comparison is between fusions: sizes are shared, and with one seed the first weights are, too."""

    def encoders(name: str) -> dict[str, torch.Tensor]:
        weights = model(name).encode.state_dict()
        return {part: value for part, value in weights.items() if not part.endswith("absent")}

    expected = encoders("qamoe")
    for name in set(MODELS) - {"mean", "text"}:
        found = encoders(name)
        assert list(found) == list(expected)
        assert all(torch.equal(found[key], expected[key]) for key in found), name
    assert set(encoders("text")) == {key for key in expected if ".text." in key}


def test_text_is_refused_on_a_corpus_without_text(model: Any) -> None:
    with pytest.raises(UserError, match="The model text reads text alone; this corpus has audio and vision"):
        model("text", ("audio", "vision"))


@torch.no_grad()
def test_tensor_fusion_takes_every_product_of_up_to_three_modalities(model: Any, batch_of: Any) -> None:
    made, batch = model("tensor"), batch_of(range(4))
    seen: list[torch.Tensor] = []
    made.mix.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    made(batch)
    low = torch.tanh(made.lower(made.encode(batch)))
    ones = F.pad(low, (1, 0), value=1.0)  # (B, 3, 1 + 2)
    expected = [ones[:, 0, i] * ones[:, 1, j] * ones[:, 2, k] for i, j, k in itertools.product(range(3), repeat=3)]
    assert torch.allclose(seen[0], torch.stack(expected, 1), atol=1e-6)


@torch.no_grad()
def test_modality_vectors_attend_to_each_other(model: Any, batch_of: Any) -> None:
    made, batch = model("cross_attention"), batch_of(range(4))
    seen: list[torch.Tensor] = []
    made.mix.register_forward_pre_hook(lambda _, given: seen.append(given[0].unflatten(1, (3, 8))))
    made(batch)
    made(batch.with_x(audio=batch.x["audio"] + 1))
    assert ((seen[0] - seen[1]).abs().amax(2) > 1e-5).all(), "another sound changes the vectors of text and picture"


@torch.no_grad()
def test_precision_multiplies_the_gaussians_of_the_modalities(model: Any, batch_of: Any) -> None:
    made, batch = model("precision"), batch_of(range(5), {2: ("audio",)})
    result, h = made(batch), made.encode(batch)
    own = [expert(h[:, place]) for place, expert in enumerate(made.experts)]
    value, variance = torch.stack([v for v, _ in own], 1), torch.stack([s.exp() for _, s in own], 1)
    weights = (1 / variance) / (1 / variance).sum(1, keepdim=True)
    assert torch.allclose(result.fusion, weights, atol=1e-6)
    assert torch.allclose(result.value, (weights * value).sum(1) * DEVIATION + MEAN, atol=1e-5)
    assert torch.allclose(result.variance, DEVIATION**2 / (1 / variance).sum(1), rtol=1e-5)
    assert torch.allclose(result.r, 1 / (1 + variance), atol=1e-6)
    y = ((batch.target - MEAN) / DEVIATION)[:, None].expand(-1, 3)
    assert torch.allclose(result.losses["probe"], gaussian_nll(value, variance.log(), y), atol=1e-6)


@torch.no_grad()
def test_a_given_quality_takes_the_place_of_predicted_precision(model: Any, batch_of: Any) -> None:
    made, batch = model("precision"), batch_of(range(5))
    plain = made(batch)
    assert torch.allclose(made(batch, plain.r).value, plain.value, atol=1e-5)
    text_alone = made(batch, torch.tensor([1.0, 0.0, 0.0]).expand(5, 3))
    assert text_alone.fusion[:, 0].min() > 0.999
    assert torch.isfinite(text_alone.variance).all()


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["tokens", "concat"])
def test_moe_is_qamoe_that_trusts_everything(model: Any, batch_of: Any, fusion: str) -> None:
    """At r = 1 and with the quality gate shut, QA-MoE of the same weights answers alike: quality is the difference."""
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
    found, expected = moe(batch), qamoe(batch, torch.ones(6, 3))
    assert torch.allclose(found.value, expected.value, atol=1e-6)
    assert torch.allclose(found.routing, expected.routing, atol=1e-6)
    assert torch.equal(moe(batch, torch.rand(6, 3)).value, found.value), "it has no use for quality"


def test_the_oracle_uses_the_quality_that_it_is_given(model: Any, batch_of: Any) -> None:
    made, batch = model("oracle"), batch_of(range(4))
    quality = torch.rand(4, 3, generator=torch.Generator().manual_seed(1))
    result = made(batch, quality)
    assert torch.equal(result.r, quality)
    assert ((result.value - made(batch, 1 - quality).value).abs() > 1e-5).all()
    qamoe = model("qamoe")
    assert torch.equal(qamoe(batch, quality).value, result.value), "but for that it is QA-MoE"
    with pytest.raises(UserError, match="predicts under a known view alone"):
        made(batch)


def test_the_truth_is_one_minus_severity_of_the_modalities_that_there_are(model: Any) -> None:
    state = fixed_state(("missing", "clean", "noise"), (0.3, 0.0, 1.0), 2)
    expected = torch.tensor([0.7, 1.0, 0.0]).expand(2, 3)
    assert torch.allclose(oracle_quality(model("oracle"), state), expected)
    assert torch.allclose(oracle_quality(model("oracle", ("text", "vision")), state), expected[:, [0, 2]])
    assert all(oracle_quality(model(name), state) is None for name in set(MODELS) - {"oracle"})


def test_the_documented_sizes_are_those_of_the_parameters() -> None:
    """docs/method.md has a table of them; columns of frames as the shipped extractors give them."""
    models = load(ROOT / "params.yaml").models
    rows = re.findall(
        r"^\| `(\w+)` \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", (ROOT / "docs/method.md").read_text(), re.MULTILINE
    )
    documented = {name: [int(number.replace(",", "")) for number in numbers] for name, *numbers in rows}
    assert list(documented) == list(MODELS)
    for name, (encoders, rest, both) in documented.items():
        made = build(name, SHIPPED, models.encoders, block_of(models, name), Target(0.0, 1.0))
        count = sum(p.numel() for p in made.parameters())
        inside = sum(p.numel() for part, p in made.named_parameters() if part.startswith("encode."))
        assert (encoders, rest, both) == (inside, count - inside, count), name
    assert all(0.7 < documented[name][2] / documented["qamoe"][2] <= 1 for name in set(MODELS) - {"mean", "text"})
