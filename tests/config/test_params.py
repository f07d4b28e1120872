"""params.yaml and its overlays: every shipped file loads, and an error names key, value and allowed values."""

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


def load_experiment(path: Path) -> Params:
    content = experiment_content(path.stem, ROOT / "params.yaml", path.parent)
    return check_names(Params.model_validate(content), path)


def changed(key: str, value: Any) -> dict[str, Any]:
    """Return the shipped parameters with one value set by its dotted key, or removed if the value is `...`."""
    content = copy.deepcopy(SHIPPED)
    *path, last = key.split(".")
    section = content
    for part in path:
        section = section[part]
    if value is ...:
        del section[last]
    else:
        section[last] = value
    return content


def error_message(tmp_path: Path, content: Any) -> str:
    """Load the content as params.yaml, which must fail; return the message without the path of the file."""
    path = tmp_path / "params.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    with pytest.raises(UserError) as refused:
        load_params(path)
    message = str(refused.value)
    assert "\n" not in message
    assert str(path) in message
    return message.removeprefix(f"{path}").removeprefix(": ")


def test_the_shipped_parameters_load() -> None:
    params = load_params(ROOT / "params.yaml")
    assert params.extract.corpus.kind == "sample"
    assert params.train.common.lr == SHIPPED["train"]["common"]["lr"]
    assert list(params.seeds) == ["mean", "concat", "qamoe"], "the demo trains few models"


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_every_shipped_experiment_loads(path: Path) -> None:
    overlay = yaml.safe_load(path.read_text())
    params = load_experiment(path)
    assert params != load(ROOT / "params.yaml")
    assert_controls_differ_from_qamoe_only_in_quality(params)
    if "registry" in overlay:
        assert params.registry.name == overlay["registry"]["name"]


def assert_controls_differ_from_qamoe_only_in_quality(params: Params) -> None:
    qamoe, oracle, moe = (block_of(params.models, name).model_dump() for name in ("qamoe", "oracle", "moe"))
    assert oracle == qamoe
    assert moe == {key: qamoe[key] for key in moe}


def test_the_shipped_controls_differ_from_qamoe_only_in_quality() -> None:
    assert_controls_differ_from_qamoe_only_in_quality(load(ROOT / "params.yaml"))


def test_every_model_name_has_a_class_and_a_specialist_is_a_qamoe() -> None:
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
    seeds = {path.stem: load_experiment(path).seeds for path in OVERLAYS}
    assert set(seeds["controls"]) == {name for name in MODELS if not name.startswith("paper")}
    assert {len(numbers) for name, numbers in seeds["controls"].items() if name != "mean"} == {5}
    specialists = {name: numbers for name, numbers in seeds["specialists"].items() if specialist_cell(name)}
    graded = {(kind, severity) for kind in ("missing", "noise") for severity in (0.3, 0.5, 0.7, 0.9)}
    assert {specialist_cell(name) for name in specialists} == {("clean", 0.0), *graded}
    assert {len(numbers) for numbers in [*specialists.values(), seeds["specialists"]["qamoe"]]} == {3}


def test_parameters_are_frozen() -> None:
    params = load(ROOT / "params.yaml")
    with pytest.raises(ValidationError, match="frozen"):
        params.train.common.lr = 1.0
    with pytest.raises(ValidationError, match="frozen"):
        params.registry = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("train.common.learning_rate", 0.1, "train.common.learning_rate"),
        ("trian", {}, "unknown key trian"),
        ("models.encoders.widht", 64, "unknown key models.encoders.widht"),
        ("models.tensors", {}, "models.tensors|mean, text, concat, cross_attention, "),
        ("models.concat", ..., "models.concat|missing"),
        ("models.concat.hiden", 3, "unknown key models.concat.hiden"),
        ("models.concat", 160, "models.concat is 160"),
        ("train.common.epochs", ..., "train.common.epochs|missing"),
        ("registry", ..., "registry|missing"),
        ("train.common.lr", -0.001, "train.common.lr is -0.001|greater than 0"),
        ("train.common.lr", 1, "train.common.lr is 1|less than 1"),
        ("train.common.lr", "fast", "train.common.lr is 'fast'|number"),
        ("train.common.lr", float("nan"), "train.common.lr is nan"),
        ("train.common.epochs", 2.5, "train.common.epochs is 2.5|integer"),
        ("train.common.epochs", 0, "train.common.epochs is 0|greater than or equal to 1"),
        ("train.common.precision", "half", "train.common.precision is 'half'|'float32'|'bfloat16'"),
        ("extract.max_problem_share", 5, "extract.max_problem_share is 5|less than or equal to 1"),
        (
            "extract.corpus.kind",
            "web",
            "extract.corpus.kind is 'web'|'sample', 'clips', 'mmsa', 'mintrec', 'iemocap' or 'meld'",
        ),
        ("extract.text.max_tokens", 2, "extract.text.max_tokens is 2|greater than or equal to 3"),
        ("models.encoders.heads", 5, "models.encoders|heads (5)|width (64)"),
        ("models.qamoe.active", 9, "models.qamoe|active (9)|experts (8)"),
        ("models.qamoe.initial_log_variance", -9.0, "models.qamoe|initial_log_variance (-9)|max_log_variance (4)"),
        ("extract.task", {"kind": "regression", "low": 3, "high": -3}, "extract.task|low (3.0)|high"),
        ("extract.task", {"kind": "classification", "classes": ["a"]}, "extract.task|class"),
        ("seeds", {"qamo": [1]}, "seeds|qamo|mean, text, concat, cross_attention, "),
        ("seeds", {"specialist-missing-11": [1]}, "seeds|specialist-missing-11|mean"),
        (
            "seeds",
            {"specialist-fog-03": [1]},
            "specialist-fog-03|specialist-clean, specialist-<kind>-<tenths>"
            "|ablation-<severity|others|probe|fallback|gate|fusion>",
        ),
        ("models.moe.active", 9, "models.moe|active (9)|experts (8)"),
        ("models.tensor.low", 17, "models.tensor.low is 17|less than or equal to 16"),
        ("seeds", {}, "seeds"),
        ("seeds.qamoe", [], "seeds|qamoe|[]"),
        ("seeds.qamoe", [1, 2, 1], "seeds|qamoe|[1, 2, 1]"),
        ("evaluate.slices", ["clean", "burts"], "evaluate.slices.1 is 'burts'|'clean',"),
        ("train.common.selection.severities", {"missing": [1.2]}, "severities.missing.0 is 1.2"),
        (
            "train.common.selection.severities",
            {"fog": [0.2]},
            "train.common.selection.severities|'fog'|'missing', 'noise', 'burst', 'missing_features'|or 'landscape'",
        ),
        ("train.common.degrade.kinds", ["noise", "swap"], "train.common.degrade.kinds.1 is 'swap'|'noise'"),
        ("registry.name", "qa/moe", "registry.name is 'qa/moe'"),
        ("registry.name", "qa@moe", "registry.name is 'qa@moe'"),
        ("registry.name", "qa#moe", "registry.name is 'qa#moe'"),
        ("registry.name", " qa moe", "registry.name is ' qa moe'"),
        ("registry.name", "", "registry.name is ''"),
        ("tune.model", "qamo", "tune.model is 'qamo'|mean, text, concat"),
        ("tune.sampler", "grid", "tune.sampler is 'grid'|'tpe' or 'random'"),
        ("tune.objectives", ["error", "speed"], "tune.objectives.1 is 'speed'|'clean'"),
        ("tune.objectives", ["error", "error"], "tune|['error', 'error']"),
        ("tune.objectives", ["error", "clean"], "tune|median|['error', 'clean']|pruner: none"),
        ("tune.space", {}, "tune.space"),
        ("tune.space", {"train.common.lr": {"low": 0.003, "high": 0.0003}}, "train.common.lr|(0.003)|(0.0003)"),
        ("tune.space", {"train.common.lr": {"low": 0.001, "high": 0.001}}, "train.common.lr|low (0.001)|high (0.001)"),
        ("tune.space", {"train.common.weight_decay": {"low": 0, "high": 1.0, "log": True}}, "weight_decay|low (0)|log"),
        ("tune.space", {"train.common.lr": {"low": 0.1}}, "tune.space.train.common.lr|low and high"),
        ("tune.space", {"train.common.lr": {"low": 0.1, "high": 2.0}}, "tune.space.train.common.lr|2.0|less than 1"),
        ("tune.space", {"train.common.lr": {"choices": [0.1, 0.1]}}, "tune.space.train.common.lr|[0.1, 0.1]"),
        ("tune.space", {"train.common.lr": {"choices": [0.1], "low": 0.1}}, "tune.space.train.common.lr|choices"),
        ("tune.space", {"train.common.lr": {"choices": [0.1, None]}}, "train.common.lr.choices|None|number|word|truth"),
        ("tune.space", {"train.common.lr": {"choices": [[0.1]]}}, "train.common.lr.choices|0.1|number|word|truth"),
        ("tune.space", {"train.common.schedule": {"choices": ["cosine", "flat"]}}, "schedule|'flat'|'linear'"),
        ("tune.space", {"train.common.batch_size": {"low": 8, "high": 64, "step": 5}}, "batch_size|step (5)|(56)"),
        ("tune.space", {"train.common.lr": {"low": 0.1, "high": 0.4, "step": 0.2}}, "lr|step (0.2)|(0.3)"),
        (
            "tune.space",
            {"train.common.batch_size": {"low": 8, "high": 64, "step": 0.5}},
            "batch_size|step (0.5)|integer",
        ),
        ("tune.space", {"train.common.batch_size": {"low": 8, "high": 64, "step": 80}}, "batch_size|step (80)|56"),
        ("tune.space", {"train.common.batch_size": {"low": 8.5, "high": 64.5}}, "batch_size|8.5|integer"),
        (
            "tune.space",
            {"train.common.lrr": {"choices": [1]}},
            "tune.space.train.common.lrr|train.common|lr, weight_decay",
        ),
        ("tune.space", {"train.common.degrade": {"choices": [1]}}, "tune.space.train.common.degrade|numbers"),
        ("tune.space", {"train.common.epochs": {"choices": [1]}}, "tune.space.train.common.epochs|tune.epochs"),
        ("tune.space", {"models.concat.hidden": {"choices": [8]}}, "models.concat.hidden|qamoe|models.qamoe"),
        ("tune.space", {"extract.audio.rate": {"choices": [8]}}, "extract.audio.rate|train.common, models.encoders"),
        ("tune.space", {"models.qamoe.active": {"low": 1, "high": 9}}, "models.qamoe.active|9|experts (8)"),
    ],
)
def test_a_mistake_is_named_with_its_key_and_value(tmp_path: Path, key: str, value: Any, parts: str) -> None:
    message = error_message(tmp_path, changed(key, value))
    assert [part for part in parts.split("|") if part not in message] == [], message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("preprocess.max_frames.vision", ...),
        ("models.encoders.stride.audio", ...),
        ("seeds.qamoe", [-1]),
        ("tune.seed", -1),
        ("evaluate.seed", -1),
        ("registry.seed", -1),
        ("train.common.degrade.seed", -1),
        ("train.common.selection.seed", -1),
        ("tune.space", {"train.common.degrade.seed": {"low": -1, "high": 1}}),
        ("train.common.selection.severities", {}),
        ("train.common.selection.severities.noise", []),
        ("evaluate.slices", []),
        ("evaluate.slices", ["clean", "mixed", "clean"]),
        ("evaluate.quality_permutations", -1),
        ("train.common.degrade.mask_revealed_share", 1.5),
        ("train.common.degrade.swap", ...),
        ("train.common.selection.severities", {"desync": [0.5]}),
        ("tune.space", {"models.encoders.dropout": {"low": 0.5, "high": 1.0}}),
        ("registry.coverage_90", [1.0, 0.75]),
    ],
)
def test_a_value_that_would_fail_only_during_training_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    last = key.rsplit(".", 1)[-1]
    assert (last if value is ... else key.removesuffix(f".{last}")) in error_message(tmp_path, changed(key, value))


def test_a_misspelt_key_is_named_before_the_missing_one_that_it_causes(tmp_path: Path) -> None:
    content = changed("train.common.lr", ...)
    content["train"]["common"]["lrr"] = 0.001
    assert "train.common.lrr" in error_message(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "value"),
    [("train: [", "YAML"), ("", "empty"), ("- 1\n", "[1]")],
)
def test_a_file_that_is_not_a_mapping_is_refused(tmp_path: Path, content: str, value: str) -> None:
    assert value in error_message(tmp_path, content)


def test_a_duplicate_key_is_refused(tmp_path: Path) -> None:
    """YAML would keep the last one, and a training would delete the seeds of the first."""
    text = (ROOT / "params.yaml").read_text().replace("\nseeds:\n", "\nseeds:\n  mean: [2]\n")
    (tmp_path / "params.yaml").write_text(text)
    line = max(number for number, line in enumerate(text.splitlines(), 1) if line == "  mean:")
    with pytest.raises(UserError, match=rf"params\.yaml, line {line}: .*\bmean\b"):
        load_params(tmp_path / "params.yaml")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml"):
        load(tmp_path / "nowhere.yaml")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path}.*Is a directory"):
        load(tmp_path)
    (tmp_path / "params.yaml").write_bytes(b"extract: \xff\xfe")
    with pytest.raises(UserError, match=r"params\.yaml.*utf-8"):
        load(tmp_path / "params.yaml")


def test_a_digest_depends_only_on_values() -> None:
    params = Params.model_validate(SHIPPED)
    again = Params.model_validate(dict(reversed(copy.deepcopy(SHIPPED).items())))
    assert digest(params) == digest(again)
    other = Params.model_validate(changed("train.common.lr", 0.002))
    assert digest(params) != digest(other)
    assert digest(params.models) == digest(other.models)
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1}) != digest({"a": 1, "b": [2, 1]})


@pytest.mark.parametrize(
    ("model", "objectives", "severities", "parts"),
    [
        ("concat", ["error", "trust"], {"noise": [0.0, 1.0]}, "trust|concat|precision, oracle, qamoe"),
        ("qamoe", ["error", "trust"], {"noise": [0.0, 0.3]}, "trust|0.5 or above|0, 0.3"),
        ("qamoe", ["error", "clean"], {"noise": [0.3]}, "clean|severity 0,|0.3"),
        ("qamoe", ["error", "degraded"], {"noise": [0.0]}, "degraded|above 0"),
        ("specialist-missing-03", ["error", "clean"], {"noise": [0.0, 1.0]}, "specialist-missing-03|[error]"),
    ],
)
def test_an_objective_needs_a_model_and_cells_that_have_it(
    tmp_path: Path, model: str, objectives: list[str], severities: dict[str, list[float]], parts: str
) -> None:
    content = changed("tune.objectives", objectives)
    content["tune"] |= {"model": model, "pruner": "none"}
    content["train"]["common"]["selection"]["severities"] = severities
    message = error_message(tmp_path, content)
    assert [part for part in ("tune.objectives", *parts.split("|")) if part not in message] == [], message


def test_parameters_that_limit_each_other_may_be_searched_together(tmp_path: Path) -> None:
    space = {"models.qamoe.active": {"low": 1, "high": 9}, "models.qamoe.experts": {"low": 2, "high": 9}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(changed("tune.space", space)))
    assert set(load_params(tmp_path / "params.yaml").tune.space) == set(space)
