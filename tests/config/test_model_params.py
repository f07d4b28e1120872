"""A model may change train.common, and a variant the block of its base, for itself alone; mistakes are named."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qamoe.config.model_names import ABLATIONS, family, variant_base
from qamoe.config.model_params import for_model, has_own_views, lacks_of_base
from qamoe.config.overlay import experiment_content
from qamoe.config.params import Params, validate
from qamoe.errors import UserError
from qamoe.models.factory import MODELS, block_of
from qamoe.pipeline.known_names import check_names
from qamoe.pipeline.tune_parameters import fixed
from qamoe.training.search import with_trial_values

ROOT = Path(__file__).parents[2]
SHIPPED = yaml.safe_load((ROOT / "params.yaml").read_text())
FILE = Path("params.yaml")


def params_with(models: dict[str, Any], **sections: dict[str, Any]) -> Params:
    """params.yaml with blocks added or replaced, and keys of other sections."""
    content = copy.deepcopy(SHIPPED)
    content["models"] |= models
    for section, changes in sections.items():
        content[section] |= changes
    return check_names(validate(content, FILE), FILE)


@pytest.fixture
def experiment(tmp_path: Path) -> Callable[..., Params]:
    """params.yaml under overlays that extend each other, the last one on top: experiment("models: {...}")."""

    def make(*overlays: str) -> Params:
        for number, text in enumerate(overlays):
            extends = f"extends: o{number - 1}\n" if number else ""
            (tmp_path / f"o{number}.yaml").write_text(extends + text)
        return check_names(validate(experiment_content(f"o{len(overlays) - 1}", ROOT / FILE, tmp_path), FILE), FILE)

    return make


def test_a_variant_is_a_plain_model_with_a_label() -> None:
    assert {variant_base(f"{name}--top-1") for name in MODELS} == set(MODELS)
    assert variant_base(f"paper--{'a' * 40}") == "paper"
    assert variant_base(f"paper--{'a' * 41}") is None, "it could not name a folder"
    assert family("paper-public--no-gate") == "paper-public"
    assert family("cross_attention--2") == "cross_attention"
    others = [
        "paper",
        "paper-public",
        "paper--",
        "paper--Top",
        "paper--a_b",
        "paper---a",
        "paper--a-",
        "--a",
        "paper-a",
    ]
    others += ["specialist-clean--a", "specialist-missing-03--a", *(f"ablation-{part}--a" for part in ABLATIONS)]
    assert [name for name in others if family(name) in MODELS and name not in MODELS] == []


def test_a_variant_has_what_differs_from_its_base() -> None:
    block = {"active": 1, "loss": {"balance": 0.5}, "train": {"lr": 0.5, "degrade": {"kinds": ["missing"]}}}
    params = params_with({"paper--top-1": block})
    base, own = (block_of(params.models, name).model_dump() for name in ("paper", "paper--top-1"))
    assert own == base | {"active": 1, "loss": base["loss"] | {"balance": 0.5}}
    common, changed = (for_model(params, name).train.common for name in ("paper", "paper--top-1"))
    assert common == params.train.common
    degrade = common.degrade.model_copy(update={"kinds": ("missing",)})
    assert changed == common.model_copy(update={"lr": 0.5, "degrade": degrade})


def test_train_of_a_base_holds_for_its_variants_too_and_theirs_comes_first() -> None:
    paper = SHIPPED["models"]["paper"] | {"train": {"lr": 0.5, "patience": 3}}
    params = params_with({"paper": paper, "paper--a": {"train": {"lr": 0.25}}})
    rates = {name: for_model(params, name).train.common for name in ("paper", "paper--a", "concat")}
    assert {name: (common.lr, common.patience) for name, common in rates.items()} == {
        "paper": (0.5, 3),
        "paper--a": (0.25, 3),
        "concat": (params.train.common.lr, params.train.common.patience),
    }
    twice = for_model(for_model(params, "paper--a"), "paper--a")
    assert twice.train == for_model(params, "paper--a").train


def test_train_of_qamoe_holds_for_its_specialists_and_ablations() -> None:
    params = params_with({"qamoe": SHIPPED["models"]["qamoe"] | {"train": {"patience": 3}}})
    assert {for_model(params, name).train.common.patience for name in ("specialist-clean", "ablation-gate")} == {3}


def test_only_what_changes_the_views_gives_a_model_encoded_text_of_its_own() -> None:
    changes = {"a": {"lr": 0.5, "batch_size": 8}, "b": {"degrade": {"swap": True}}, "c": {"selection": {"draws": 1}}}
    params = params_with({f"concat--{label}": {"train": train} for label, train in changes.items()})
    assert [has_own_views(params, f"concat--{label}") for label in "abc"] == [False, True, True]


def test_in_the_papers_spectrum_the_size_of_batches_changes_the_views() -> None:
    params = params_with({f"concat--{size}": {"train": {"batch_size": size}} for size in (8, 16)})
    degrade = params.train.common.degrade.model_copy(update={"spectrum": "paper"})
    common = params.train.common.model_copy(update={"degrade": degrade})
    paper = params.model_copy(update={"train": params.train.model_copy(update={"common": common})})
    assert has_own_views(paper, "concat--8")
    assert not has_own_views(params, "concat--8")
    assert not has_own_views(paper, "concat")


@pytest.mark.parametrize(
    ("models", "key"),
    [
        ({"paper--a": {"train": {"lrr": 1}}}, r"models\.paper--a\.train\.lrr\b"),
        ({"paper--a": {"train": {"lr": -1}}}, r"models\.paper--a\.train\.lr is -1\b"),
        ({"paper--a": {"train": {"degrade": {"kind": []}}}}, r"models\.paper--a\.train\.degrade\.kind\b"),
        (
            {"paper--a": {"train": {"degrade": {"kinds": ["fog"]}}}},
            r"models\.paper--a\.train\.degrade\.kinds\.0.*'fog'",
        ),
        ({"paper--a": {"train": {"epochs": None}}}, r"models\.paper--a\.train\.epochs\b"),
        ({"paper--a": {"train": 5}}, r"models\.paper--a\.train is 5\b"),
        ({"paper--a": {"activ": 1}}, r"models\.paper--a\.activ\b"),
        ({"paper--a": {"active": 9}}, r"models\.paper--a\b.*\b9\b.*\b8\b"),
        ({"paper--A": {}}, r"models\.paper--A\b"),
        ({"specialist-clean--a": {}}, r"models\.specialist-clean--a\b"),
        ({"concat": {"hidden": 8, "train": {"lrr": 1}}}, r"models\.concat\.train\.lrr\b"),
    ],
)
def test_a_mistake_in_a_variant_or_in_train_is_named_with_its_whole_key(models: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        params_with(models)


def test_a_variant_without_its_block_is_refused() -> None:
    with pytest.raises(UserError, match=r"models\.paper--a\b"):
        params_with({}, seeds={"paper--a": [1]})
    params_with({"paper--a": {}}, seeds={"paper--a": [1]})


def test_an_experiment_may_remove_a_key_of_train_common_for_one_model(experiment: Callable[..., Params]) -> None:
    selection = "{selection: {severities: {noise: null}}}"
    params = experiment(
        f"models: {{paper--a: {{train: {selection}}}, concat: {{train: {selection}}}}}",
        "models: {paper--a: {train: {lr: 0.5}}}",
    )
    severities = {
        name: set(for_model(params, name).train.common.selection.severities) for name in ("paper--a", "concat", "qamoe")
    }
    assert severities == {"paper--a": {"missing"}, "concat": {"missing"}, "qamoe": {"missing", "noise"}}
    assert for_model(params, "paper--a").train.common.lr == 0.5
    removed = experiment(
        "models: {paper--a: {}, concat: {train: {lr: 0.5}}}", "models: {paper--a: null, concat: {train: null}}"
    )
    assert "paper--a" not in removed.models.blocks
    assert for_model(removed, "concat") is removed


def test_in_an_experiment_the_block_of_a_variant_has_all_keys_of_its_base(experiment: Callable[..., Params]) -> None:
    """DVC's stage of a variant depends on its block alone."""
    params = experiment("models: {paper: {hidden: 8}, paper--a: {loss: {balance: 0.5}}}")
    loss = SHIPPED["models"]["paper"]["loss"] | {"balance": 0.5}
    assert params.models.blocks["paper--a"] == params.models.blocks["paper"] | {"loss": loss}
    assert lacks_of_base(params.models, "paper--a") is None
    assert lacks_of_base(params_with({"paper--a": {}}).models, "paper--a") == "experts"
    short = {"paper--a": SHIPPED["models"]["paper"] | {"loss": {"balance": 0.5, "quality": 0.0}}}
    assert lacks_of_base(params_with(short).models, "paper--a") == "loss.gate_entropy"


def search_of(space: dict[str, Any], model: str = "paper--a") -> Params:
    block = {"active": 1, "train": {"lr": 0.5, "epochs": 9}}
    return params_with({"paper--a": block}, tune={"model": model, "space": space})


def test_a_search_of_a_variant_varies_its_own_block_and_train() -> None:
    space: dict[str, Any] = {
        "models.paper--a.hidden": {"low": 8, "high": 16},
        "models.paper--a.train.lr": {"low": 0.1, "high": 0.9},
        "train.common.batch_size": {"low": 8, "high": 16},
    }
    params = search_of(space)
    trial = with_trial_values(params, {name: dimension["low"] for name, dimension in space.items()})
    assert (trial.train.common.lr, trial.train.common.batch_size) == (0.1, 8)
    assert trial.train.common.epochs == params.tune.epochs, "not those of the block"
    hidden = {name: block_of(trial.models, name).model_dump()["hidden"] for name in ("paper--a", "paper")}
    assert hidden == {"paper--a": 8, "paper": 64}
    kept = fixed(params)
    assert set(kept["models"]) == {"encoders", "paper", "paper--a"}
    assert kept["models"]["paper--a"] == {"active": 1, "train": {}}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("train.common.lr", r"train\.common\.lr .*models\.paper--a\.train\.lr\b"),
        ("models.paper--a.train.epochs", r"models\.paper--a\.train\.epochs .*tune\.epochs"),
        ("models.paper--a.train.selection.draws", r"models\.paper--a\.train\.selection\.draws .*selection"),
        ("models.paper.hidden", r"models\.paper\.hidden.*models\.paper--a\b"),
        ("models.paper--a.activ", r"models\.paper--a\.activ\b.*active"),
        ("models.paper--a.active", r"models\.paper--a\.active has 9\b.*8"),
    ],
)
def test_what_a_search_of_a_variant_cannot_vary_is_named(name: str, parts: str) -> None:
    with pytest.raises(UserError, match=rf"tune\.space\.{parts}"):
        search_of({name: {"choices": [9]}})


def test_a_search_of_a_variant_without_block_is_refused() -> None:
    with pytest.raises(UserError, match=r"tune\.model is 'paper--b'.*models\.paper--b\b"):
        search_of({"train.common.lr": {"choices": [0.1]}}, "paper--b")
