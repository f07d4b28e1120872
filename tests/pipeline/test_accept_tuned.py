"""Accepting the result of the search changes only the lines of its parameters in params.yaml."""

from pathlib import Path

import pytest
import yaml

from qamoe.config.params import load
from qamoe.errors import UserError
from qamoe.pipeline.accept_tuned import accept

ROOT = Path(__file__).parents[2]


@pytest.fixture
def params(tmp_path: Path) -> Path:
    """A copy of the project's params.yaml."""
    path = tmp_path / "params.yaml"
    path.write_bytes((ROOT / "params.yaml").read_bytes())
    return path


def test_only_the_lines_of_the_best_parameters_change(params: Path, tmp_path: Path) -> None:
    before = params.read_text().splitlines()
    tuned = tmp_path / "best_params.yaml"
    tuned.write_text("train: {common: {lr: 0.00217}}\nmodels: {encoders: {dropout: 0.37}}\n")
    changes = accept(tuned, params)
    after = params.read_text().splitlines()
    changed = [new.split() for old, new in zip(before, after, strict=True) if old != new]
    assert changed == [["lr:", "0.00217"], ["dropout:", "0.37"]]
    added = [line[1:].split() for line in changes.splitlines() if line.startswith("+") and not line.startswith("+++")]
    assert added == changed
    assert accept(tuned, params) == "", "idempotent"


def test_words_and_the_parameters_of_any_model_are_accepted(params: Path, tmp_path: Path) -> None:
    before = params.read_text().splitlines()
    tuned = tmp_path / "best_params.yaml"
    tuned.write_text("train: {common: {schedule: linear}}\nmodels: {concat: {hidden: 96}, qamoe: {sampled: true}}\n")
    accept(tuned, params)
    after = params.read_text().splitlines()
    changed = [(old.split("  #")[0], new.split("  #")[0]) for old, new in zip(before, after, strict=True) if old != new]
    assert changed == [
        ("    schedule: cosine", "    schedule: linear"),
        ("    hidden: 160", "    hidden: 96"),
        ("    sampled: false", "    sampled: true"),
    ]


def test_the_block_of_a_variant_gets_keys_that_it_did_not_have(params: Path, tmp_path: Path) -> None:
    """It holds only what differs from its base; such a key was once refused as one of another version."""
    params.write_text(params.read_text().replace("\nmodels:\n", "\nmodels:\n  concat--x: {}\n"))
    tuned = tmp_path / "best_params.yaml"
    tuned.write_text("models: {concat--x: {hidden: 96, nested: {deep: 1}}}\n")
    accept(tuned, params)
    assert load(params).models.blocks["concat--x"] == {"hidden": 96, "nested": {"deep": 1}}
    assert load(params).models.blocks["concat"]["hidden"] == 160


def test_the_written_parameters_of_an_experiment_are_refused_with_what_to_write_where(tmp_path: Path) -> None:
    """The next `qamoe experiment mine` would overwrite them."""
    out = tmp_path / "artifacts-mine"
    (out / "tune").mkdir(parents=True)
    (out / "dvc.yaml").touch()
    written = (ROOT / "params.yaml").read_bytes()
    (out / "params.yaml").write_bytes(written)
    best = out / "tune/best_params.yaml"
    with pytest.raises(UserError, match="qamoe experiment mine --search"):
        accept(best, out / "params.yaml")
    best.write_text("# validation error 0.5\ntrain:\n  common:\n    lr: 0.00217\n    schedule: linear\n")
    with pytest.raises(UserError) as refused:
        accept(best, out / "params.yaml")
    assert "experiments/mine.yaml" in str(refused.value)
    lines = yaml.safe_load(str(refused.value).partition(".yaml: ")[2])
    assert lines == {"train": {"common": {"lr": 0.00217, "schedule": "linear"}}}
    assert (out / "params.yaml").read_bytes() == written


def test_nothing_changes_where_the_search_has_not_run(params: Path, tmp_path: Path) -> None:
    before = params.read_bytes()
    with pytest.raises(UserError) as refused:
        accept(tmp_path / "best_params.yaml", params)
    assert "best_params.yaml" in str(refused.value)
    assert "dvc repro tune" in str(refused.value)
    assert params.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        ("train: {common: {learning_rate: 0.1}}", "train.common.learning_rate"),
        ("train: {common: {lr: -1.0}}", "train.common.lr"),
    ],
)
def test_a_wrong_key_or_value_changes_nothing(params: Path, tmp_path: Path, content: str, seen: str) -> None:
    before = params.read_bytes()
    (tmp_path / "best_params.yaml").write_text(content)
    with pytest.raises(UserError) as refused:
        accept(tmp_path / "best_params.yaml", params)
    assert seen in str(refused.value)
    assert params.read_bytes() == before
