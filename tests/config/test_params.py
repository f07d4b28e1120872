"""params.yaml: every file that is shipped loads, and a mistake is one sentence that names key, value and range."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from qamoe.config.model_names import family, specialist_cell
from qamoe.config.overlay import experiment_content
from qamoe.config.params import Params, digest, load
from qamoe.errors import UserError
from qamoe.models.factory import MODELS, block_of
from qamoe.pipeline.known_names import check_names, load_params

ROOT = Path(__file__).parents[2]
SHIPPED = yaml.safe_load((ROOT / "params.yaml").read_text())
OVERLAYS = sorted((ROOT / "experiments").glob("*.yaml"))


def of_experiment(path: Path) -> Params:
    content = experiment_content(path.stem, ROOT / "params.yaml", path.parent)
    return check_names(Params.model_validate(content), path)


def changed(key: str, value: Any) -> dict[str, Any]:
    """The shipped parameters with one value changed, added, or (value ...) removed, by its dotted key."""
    content = copy.deepcopy(SHIPPED)
    *path, last = key.split(".")
    place = content
    for part in path:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return content


def refusal(tmp_path: Path, content: Any) -> str:
    path = tmp_path / "params.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    with pytest.raises(UserError) as refused:
        load_params(path)
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert str(path) in sentence
    return sentence.removeprefix(f"{path}").removeprefix(": ")


def test_the_shipped_parameters_load() -> None:
    params = load_params(ROOT / "params.yaml")
    assert params.extract.corpus.kind == "sample"
    assert params.train.common.lr == SHIPPED["train"]["common"]["lr"]
    assert list(params.seeds) == ["mean", "concat", "qamoe"], "the demo is short"


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_every_shipped_experiment_loads_over_them(path: Path) -> None:
    overlay = yaml.safe_load(path.read_text())
    params = of_experiment(path)
    assert params != load(ROOT / "params.yaml")
    controls_differ_from_qamoe_in_quality_alone(params)
    if "registry" in overlay:
        assert params.registry.name == overlay["registry"]["name"]


def controls_differ_from_qamoe_in_quality_alone(params: Params) -> None:
    qamoe, oracle, moe = (block_of(params.models, name).model_dump() for name in ("qamoe", "oracle", "moe"))
    assert oracle == qamoe
    assert moe == {key: qamoe[key] for key in moe}


def test_the_shipped_controls_are_qamoe_but_for_quality() -> None:
    controls_differ_from_qamoe_in_quality_alone(load(ROOT / "params.yaml"))


def test_every_model_name_is_a_class_and_a_specialist_is_a_qamoe() -> None:
    assert list(load(ROOT / "params.yaml").models.blocks) == list(MODELS)
    assert not any("." in name for name in MODELS), "DVC's paths to parameters break on a dot"
    assert {family(name) for name in MODELS} == set(MODELS)
    assert family("specialist-noise-05") == family("specialist-clean") == "qamoe"


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("specialist-clean", ("clean", 0.0)),
        ("specialist-missing-03", ("missing", 0.3)),
        ("specialist-noise-10", ("noise", 1.0)),
        ("specialist-missing-00", None),
        ("specialist-missing-3", None),
        ("specialist-clean-03", None),
        ("specialist-missing_features-03", ("missing_features", 0.3)),
        ("qamoe", None),
    ],
)
def test_a_specialist_is_named_by_its_cell(name: str, cell: tuple[str, float] | None) -> None:
    assert specialist_cell(name) == cell


def test_the_experiments_train_every_control_and_the_specialists_of_the_protocol() -> None:
    seeds = {path.stem: of_experiment(path).seeds for path in OVERLAYS}
    assert set(seeds["controls"]) == set(MODELS)
    assert {len(numbers) for name, numbers in seeds["controls"].items() if name != "mean"} == {5}
    own = {name: numbers for name, numbers in seeds["specialists"].items() if specialist_cell(name)}
    graded = {(kind, severity) for kind in ("missing", "noise") for severity in (0.3, 0.5, 0.7, 0.9)}
    assert {specialist_cell(name) for name in own} == {("clean", 0.0), *graded}
    assert {len(numbers) for numbers in [*own.values(), seeds["specialists"]["qamoe"]]} == {3}


def test_parameters_are_frozen() -> None:
    params = load(ROOT / "params.yaml")
    with pytest.raises(ValidationError, match="frozen"):
        params.train.common.lr = 1.0
    with pytest.raises(ValidationError, match="frozen"):
        params.registry = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("train.common.learning_rate", 0.1, "unknown key train.common.learning_rate."),
        ("trian", {}, "unknown key trian."),
        ("models.encoders.widht", 64, "unknown key models.encoders.widht."),
        ("models.tensors", {}, "unknown key models.tensors; the models are mean, text, concat, cross_attention, "),
        ("models.concat", ..., "key models.concat is missing."),
        ("models.concat.hiden", 3, "unknown key models.concat.hiden."),
        ("models.concat", 160, "models.concat is 160: input should be a valid dictionary."),
        ("train.common.epochs", ..., "key train.common.epochs is missing."),
        ("registry", ..., "key registry is missing."),
        ("train.common.lr", -0.001, "train.common.lr is -0.001: input should be greater than 0."),
        ("train.common.lr", 1, "train.common.lr is 1: input should be less than 1."),
        ("train.common.lr", "fast", "train.common.lr is 'fast': input should be a valid number"),
        ("train.common.lr", float("nan"), "train.common.lr is nan"),
        ("train.common.epochs", 2.5, "train.common.epochs is 2.5: input should be a valid integer"),
        ("train.common.epochs", 0, "train.common.epochs is 0: input should be greater than or equal to 1."),
        (
            "train.common.precision",
            "half",
            "train.common.precision is 'half': input should be 'float32' or 'bfloat16'.",
        ),
        ("extract.max_problem_share", 5, "extract.max_problem_share is 5: input should be less than or equal to 1."),
        (
            "extract.corpus.kind",
            "web",
            "extract.corpus.kind is 'web': input should be 'sample', 'clips', 'mmsa', 'mintrec', 'iemocap' or 'meld'.",
        ),
        ("extract.text.max_tokens", 2, "extract.text.max_tokens is 2: input should be greater than or equal to 3."),
        ("models.encoders.heads", 5, "models.encoders: heads (5) must divide width (64)."),
        ("models.qamoe.active", 9, "models.qamoe: active (9) must not exceed experts (8)."),
        (
            "models.qamoe.initial_log_variance",
            -9.0,
            "models.qamoe: initial_log_variance (-9) must lie within plus and minus max_log_variance (4).",
        ),
        ("extract.task", {"kind": "regression", "low": 3, "high": -3}, "extract.task: low (3.0) must be below high"),
        ("extract.task", {"kind": "classification", "classes": ["a"]}, "extract.task: a classification task names"),
        (
            "seeds",
            {"qamo": [1]},
            "seeds: unknown key qamo; the models are mean, text, concat, cross_attention, ",
        ),
        ("seeds", {"specialist-missing-11": [1]}, "seeds: unknown key specialist-missing-11; the models are mean"),
        (
            "seeds",
            {"specialist-fog-03": [1]},
            "qamoe, specialist-clean, specialist-<kind>-<tenths> and "
            "ablation-<severity|others|probe|fallback|gate|fusion>.",
        ),
        ("models.moe.active", 9, "models.moe: active (9) must not exceed experts (8)."),
        ("models.tensor.low", 17, "models.tensor.low is 17: input should be less than or equal to 16."),
        ("seeds", {}, "seeds: names no model."),
        ("seeds.qamoe", [], "seeds: qamoe needs at least one seed, each once, not []."),
        ("seeds.qamoe", [1, 2, 1], "seeds: qamoe needs at least one seed, each once, not [1, 2, 1]."),
        ("evaluate.slices", ["clean", "burts"], "evaluate.slices.1 is 'burts': input should be 'clean',"),
        ("train.common.selection.severities", {"missing": [1.2]}, "severities.missing.0 is 1.2"),
        (
            "train.common.selection.severities",
            {"fog": [0.2]},
            "a key of train.common.selection.severities is 'fog': input should be 'missing', 'noise', 'burst' or "
            "'missing_features'.",
        ),
        ("train.common.degrade.kinds", ["noise", "swap"], "train.common.degrade.kinds.1 is 'swap': input should be"),
        ("registry.name", "qa/moe", "registry.name is 'qa/moe'"),
    ],
)
def test_a_mistake_is_named_with_its_key_and_value(tmp_path: Path, key: str, value: Any, sentence: str) -> None:
    assert sentence in refusal(tmp_path, changed(key, value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("preprocess.max_frames.vision", ...),
        ("models.encoders.stride.audio", ...),
        ("seeds.qamoe", [-1]),
        ("train.common.selection.severities", {}),
        ("train.common.selection.severities.noise", []),
        ("evaluate.slices", []),
        ("evaluate.slices", ["clean", "mixed", "clean"]),
        ("evaluate.quality_permutations", -1),
        ("train.common.degrade.mask_revealed_share", 1.5),
        ("train.common.degrade.swap", ...),
        ("train.common.selection.severities", {"desync": [0.5]}),
        ("tune.lr", [0.003, 0.0003]),
        ("tune.lr", [0.1, 2.0]),
        ("tune.dropout", [0.5, 1.0]),
        ("registry.coverage_90", [1.0, 0.75]),
    ],
)
def test_what_would_only_fail_hours_later_is_refused_at_once(tmp_path: Path, key: str, value: Any) -> None:
    last = key.rsplit(".", 1)[-1]
    assert (last if value is ... else key.removesuffix(f".{last}")) in refusal(tmp_path, changed(key, value))


def test_a_misspelt_key_is_named_before_the_missing_one_that_it_causes(tmp_path: Path) -> None:
    content = changed("train.common.lr", ...)
    content["train"]["common"]["lrr"] = 0.001
    assert refusal(tmp_path, content) == "unknown key train.common.lrr."


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("train: [", "is not YAML"),
        ("", "the file is None: input should be a valid dictionary"),
        ("- 1\n", "the file is [1]: input should be a valid dictionary"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: str, sentence: str) -> None:
    assert sentence in refusal(tmp_path, content)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    """YAML lets the last one win, and a training would delete the seeds of the first."""
    text = (ROOT / "params.yaml").read_text().replace("  mean: [1]\n", "  mean: [1]\n  mean: [2]\n")
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=r"params\.yaml, line \d+: duplicate key mean\.") as refused:
        load_params(tmp_path / "params.yaml")
    assert text.splitlines()[int(str(refused.value).split("line ")[1].split(":")[0]) - 1] == "  mean: [2]"


def test_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no parameter file .*nowhere\.yaml\."):
        load(tmp_path / "nowhere.yaml")


def test_what_is_no_text_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"The parameter file {tmp_path} cannot be read: Is a directory"):
        load(tmp_path)
    (tmp_path / "params.yaml").write_bytes(b"extract: \xff\xfe")
    with pytest.raises(UserError, match=r"params\.yaml is not YAML: .*utf-8"):
        load(tmp_path / "params.yaml")


def test_a_digest_follows_values_and_nothing_else() -> None:
    params = Params.model_validate(SHIPPED)
    again = Params.model_validate(dict(reversed(copy.deepcopy(SHIPPED).items())))
    assert digest(params) == digest(again)
    other = Params.model_validate(changed("train.common.lr", 0.002))
    assert digest(params) != digest(other)
    assert digest(params.models) == digest(other.models)
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1}) != digest({"a": 1, "b": [2, 1]})
