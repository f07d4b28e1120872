"""Accepting the result of the search changes only the lines of its parameters in params.yaml."""

from pathlib import Path

import pytest

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
    changed = [(old, new) for old, new in zip(before, params.read_text().splitlines(), strict=True) if old != new]
    assert changed == [
        ("    schedule: cosine", "    schedule: linear"),
        ("    hidden: 160", "    hidden: 96"),
        ("    sampled: false", "    sampled: true"),
    ]


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
