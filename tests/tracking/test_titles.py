"""The title of a training names what differs from the committed params.yaml, a variant's from its base."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from qamoe.config import params as parameters
from qamoe.config.model_params import for_model
from qamoe.models import checkpoint
from qamoe.tracking.titles import title

ROOT = Path(__file__).parents[2]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("paper", {}, "paper"),
        ("paper", {"train.common.lr": 0.002}, "paper lr=0.002"),
        ("paper--top-1", {"models.paper--top-1": {"active": 1}}, "paper--top-1 active=1"),
        ("paper--slow", {"models.paper--slow": {"train": {"lr": 0.0001}}}, "paper--slow lr=0.0001"),
        ("paper--same", {"models.paper--same": {}}, "paper--same"),
    ],
)
def test_a_title_names_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, changes: dict[str, object], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    content = yaml.safe_load((tmp_path / "params.yaml").read_text())
    for key, value in changes.items():
        *parents, last = key.split(".")
        section = content
        for part in parents:
            section = section[part]
        section[last] = value
    params = parameters.validate(content, tmp_path / "params.yaml")
    assert title(checkpoint.parameters_config(for_model(params, name), name, 1, {})) == expected
