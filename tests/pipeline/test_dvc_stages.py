"""dvc.yaml's matrix of models, followed by DVC itself in a small repository whose stages only touch their outputs."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from qamoe.errors import UserError
from qamoe.pipeline.known_names import load_params

ROOT = Path(__file__).parents[2]


def dvc(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stage train of dvc.yaml without its files, and the shipped parameters with an ablation and a specialist."""
    monkeypatch.chdir(tmp_path)
    stage: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["train"]
    stage |= {"deps": [], "cmd": "mkdir -p artifacts/train/${item.model}", "outs": ["artifacts/train/${item.model}"]}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": stage}}))
    text = (ROOT / "params.yaml").read_text()
    text = text.replace("  qamoe:\n", "  qamoe: &qamoe\n", 1)
    text = text.replace("\n# A model a stage", "  ablation-gate: *qamoe\n  specialist-missing-03: *qamoe\n# A model", 1)
    text = text.replace("  mean: [1]\n", "  mean: [1]\n  ablation-gate: [1]\n  specialist-missing-03: [1]\n", 1)
    (tmp_path / "params.yaml").write_text(text)
    assert dvc("init", "--quiet", "--no-scm").returncode == 0
    return tmp_path


def test_a_specialist_and_an_ablation_are_stages_that_follow_the_block_of_qamoe(repository: Path) -> None:
    load_params(Path("params.yaml"))
    planned = dvc("repro", "--dry")
    assert planned.returncode == 0, planned.stderr
    for name in ("mean", "qamoe", "ablation-gate", "specialist-missing-03"):
        assert f"artifacts/train/{name}" in planned.stdout

    assert dvc("repro", "--quiet").returncode == 0
    path = repository / "params.yaml"
    head, qamoe, rest = path.read_text().partition("  qamoe: &qamoe\n")
    path.write_text(head + qamoe + rest.replace("hidden: 64", "hidden: 32", 1))
    load_params(path)
    status = dvc("status").stdout
    stale = [line.rstrip(":") for line in status.splitlines() if line.startswith("train@")]
    assert sorted(stale) == ["train@ablation-gate", "train@qamoe", "train@specialist-missing-03"]


def test_dvc_misses_a_block_and_another_one_is_refused(repository: Path) -> None:
    path = repository / "params.yaml"
    written = path.read_text()
    path.write_text(written.replace("  ablation-gate: *qamoe\n", ""))
    load_params(path)
    assert "models.ablation-gate" in dvc("repro", "--dry").stderr

    path.write_text(
        written.replace("  ablation-gate: *qamoe\n", "  ablation-gate: *other\n")
        .replace("  oracle:\n", "  oracle: &other\n")
        .replace("variance_context: all", "variance_context: own", 1)
    )
    with pytest.raises(UserError, match=r"models\.ablation-gate is .*; name that `qamoe: &qamoe` and write `ablation"):
        load_params(path)
