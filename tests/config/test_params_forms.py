"""Forms of YAML that mean something else to another reader, or that no parameter file needs, are refused by name."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from qamoe.config import params as parameters
from qamoe.errors import UserError

TEXT = (Path(__file__).parents[2] / "params.yaml").read_text()
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12)
)


def refusal(tmp_path: Path, before: str, after: str) -> str:
    path = tmp_path / "params.yaml"
    assert before in TEXT
    path.write_text(TEXT.replace(before, after, 1))
    with pytest.raises(UserError) as refused:
        parameters.load(path)
    message = str(refused.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 500
    return message


@pytest.mark.parametrize("form", ["true", "'40'", "1:30", "010", "0x28", "4_0", "40.0", "2001-99-99", "9" * 10_000])
def test_an_integer_in_another_form_is_refused_by_its_key(tmp_path: Path, form: str) -> None:
    message = refusal(tmp_path, "epochs: 40", f"epochs: {form}")
    assert "train.common.epochs" in message
    assert form.strip("'")[:9].lower() in message.lower()


@pytest.mark.parametrize(
    ("before", "after", "key"),
    [
        ("lr: 0.001", "lr: true", "train.common.lr"),
        ("lr: 0.001", "lr: '0.001'", "train.common.lr"),
        ("lr: 0.001", f"lr: {'9' * 10_000}", "train.common.lr"),
        ("clip_norm: 1.0", "clip_norm: .inf", "train.common.clip_norm"),
        ("clip_norm: 1.0", "clip_norm: .nan", "train.common.clip_norm"),
        ("swap: false", "swap: 1", "train.common.degrade.swap"),
        ("swap: false", "swap: no", "train.common.degrade.swap"),
        ("swap: false", "swap: 'false'", "train.common.degrade.swap"),
        ("path: data", "path: true", "extract.corpus.path"),
        ("  extractor: minilm", "  extractor: [minilm]", "extract.text"),
        ("seed: 2026", f"seed: {'9' * 30}", "train.common.degrade.seed"),
        ("  qamoe:\n  - 1", "  qamoe:\n  - true", "seeds.qamoe.0"),
    ],
)
def test_another_type_is_refused_by_its_key(tmp_path: Path, before: str, after: str, key: str) -> None:
    assert key in refusal(tmp_path, before, after)


@pytest.mark.parametrize(
    ("added", "named"),
    [
        ("deep: " + "[" * 10_000 + "]" * 10_000, "nested"),
        ("deep: " + "{a: " * 10_000 + "1" + "}" * 10_000, "nested"),
        (LAUGHS, "line 6"),
        ("a: &a {b: *a}", "line 1"),
        ("registry: {}", "duplicate key registry"),
        ("when: !!timestamp 2001-99-99", "not YAML"),
        ("many: !!int " + "9" * 10_000, "not YAML"),
    ],
)
def test_a_structure_that_no_parameters_need_is_refused(tmp_path: Path, added: str, named: str) -> None:
    message = refusal(tmp_path, "# Everything", f"{added}\n# Everything")
    assert named in message


@pytest.mark.parametrize("form", ["5e-5", "5.0e-5", "5E-05", ".00005", "0.00005"])
def test_numbers_are_those_that_dvc_reads(tmp_path: Path, form: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(TEXT.replace("lr: 0.001", f"lr: {form}"))
    assert parameters.load(path).train.common.lr == 5e-5
    assert parameters.read(path) == YAML(typ="safe").load(path)  # as DVC reads the file
