"""The matrix of models in dvc.yaml, run by DVC in a small repository whose stages only create their outputs."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qamoe.errors import UserError
from qamoe.pipeline import code
from qamoe.pipeline.known_names import load_params
from qamoe.pipeline.source_dependencies import STAGES

ROOT = Path(__file__).parents[2]
PARAMS = Path("params.yaml")


def dvc(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False)


def edit_models(edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change the section models of params.yaml in place; blocks that are one object stay YAML aliases of one block."""
    content = yaml.safe_load(PARAMS.read_text())
    edit(content["models"])
    PARAMS.write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.fixture
def _repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write stage train of dvc.yaml without its files, and params.yaml with a model of each kind of name."""
    monkeypatch.chdir(tmp_path)
    stage: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["train"]
    stage |= {"deps": [], "cmd": "mkdir -p artifacts/train/${item.model}", "outs": ["artifacts/train/${item.model}"]}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": stage}}))
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    for name in ("ablation-gate", "specialist-missing-03"):
        content["models"][name] = content["models"]["qamoe"]
        content["seeds"][name] = [1]
    content["models"]["qamoe--wide-2"] = content["models"]["qamoe"] | {"hidden": 96}
    content["seeds"]["qamoe--wide-2"] = [1]
    PARAMS.write_text(yaml.safe_dump(content, sort_keys=False))
    assert dvc("init", "--quiet", "--no-scm").returncode == 0


@pytest.mark.slow
@pytest.mark.usefixtures("_repository")
def test_stages_of_a_specialist_and_an_ablation_depend_on_the_block_of_qamoe() -> None:
    load_params(PARAMS)
    planned = dvc("repro", "--dry")
    assert planned.returncode == 0, planned.stderr
    for name in ("mean", "qamoe", "ablation-gate", "specialist-missing-03", "qamoe--wide-2"):
        assert f"artifacts/train/{name}" in planned.stdout

    assert dvc("repro", "--quiet").returncode == 0
    edit_models(lambda models: models["qamoe"].update(hidden=32))
    load_params(PARAMS)
    status = dvc("status").stdout
    stale = [line.rstrip(":") for line in status.splitlines() if line.startswith("train@")]
    assert sorted(stale) == ["train@ablation-gate", "train@qamoe", "train@specialist-missing-03"]
    edit_models(lambda models: models["qamoe--wide-2"].update(train={"lr": 0.5}))
    load_params(PARAMS)
    assert "train@qamoe--wide-2:" in dvc("status").stdout


@pytest.mark.usefixtures("_repository")
def test_a_missing_block_fails_in_dvc_and_a_different_one_is_refused() -> None:
    edit_models(lambda models: models.pop("ablation-gate"))
    load_params(PARAMS)
    assert "models.ablation-gate" in dvc("repro", "--dry").stderr

    edit_models(lambda models: models.update({"ablation-gate": models["qamoe"] | {"variance_context": "own"}}))
    with pytest.raises(UserError) as refused:
        load_params(PARAMS)
    for value in ("params.yaml", "models.ablation-gate", "'own'", "`qamoe: &qamoe`", "`ablation-gate: *qamoe`"):
        assert value in str(refused.value)


@pytest.mark.slow
def test_dvc_lock_is_that_of_the_committed_code_and_parameters(tmp_path: Path) -> None:
    """Otherwise `dvc checkout` after an experiment removes the models of a demo; `make demo` writes a new one."""
    lock = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]
    for stage in STAGES:
        code.run(stage, tmp_path)
        (out,) = lock[f"code-{stage}"]["outs"]
        written = (tmp_path / "code" / f"{stage}.json").read_bytes()
        assert out["md5"] == hashlib.md5(written, usedforsecurity=False).hexdigest(), stage
