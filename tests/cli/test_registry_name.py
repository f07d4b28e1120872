"""`registry.name` in params.yaml decides which champion a command uses."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import qamoe
from qamoe.cli.app import app
from qamoe.errors import UserError
from qamoe.registry import registry
from qamoe.serving import model_loader
from qamoe.tracking.mlflow_store import connect
from qamoe.tracking.runs import record_training

ROOT = Path(__file__).parents[2]
NAMES = ("qa-moe", "qa-moe-team")


@pytest.fixture(scope="module")
def registered(
    empty_records: Path, tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a record store of two registered champions."""
    folder = tmp_path_factory.mktemp("champions")
    shutil.copy(empty_records, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.chdir(folder)
        client = connect()
        for seed, name in enumerate(NAMES, 1):
            run = client.get_run(record_training(client, tiny_checkpoint(folder / name, seed=seed), name))
            client.set_registered_model_alias(name, "champion", registry._register(client, name, run))
    return folder


@pytest.fixture
def champions(registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Two registered champions; champions("qa-moe-team") gives a params.yaml with that registry.name."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{registered / 'mlflow.db'}")
    monkeypatch.setenv("QAMOE_DEVICE", "cpu")

    def params(name: str) -> Path:
        content = yaml.safe_load((ROOT / "params.yaml").read_text())
        content["registry"]["name"] = name
        path = tmp_path / f"params-{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return params


@pytest.mark.parametrize("name", NAMES)
def test_predict_answers_with_the_champion_of_the_parameter_file(champions: Any, name: str) -> None:
    done = CliRunner().invoke(app, ["predict", "--text", "fine", "--json", "--params", str(champions(name))])
    assert done.exit_code == 0, done.output
    assert f'"model": "{name} version 1 (champion)"' in done.output


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("arguments", [["score", "clips"], ["serve"], ["export", "model.pt2"]])
def test_score_serve_and_export_open_that_champion(
    champions: Any, name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened: list[str] = []

    class Opened(Exception):
        pass

    def registered(model: str, temporary: Path) -> Any:
        opened.append(model)
        raise Opened

    monkeypatch.setattr(model_loader, "_registered", registered)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    done = CliRunner().invoke(app, [*arguments, "--params", str(champions(name))])
    assert isinstance(done.exception, Opened), done.output
    assert opened == [f"models:/{name}@champion"]


@pytest.mark.parametrize("name", NAMES)
def test_versions_lists_that_model(champions: Any, name: str) -> None:
    done = CliRunner().invoke(app, ["versions", "--params", str(champions(name))])
    assert done.exit_code == 0, done.output
    assert set(re.findall(r"qa-moe[\w-]*", done.output)) == {name}


def test_a_model_that_is_named_wins_over_the_parameter_file(champions: Any) -> None:
    arguments = ["predict", "--text", "fine", "--json", "--params", str(champions("qa-moe"))]
    done = CliRunner().invoke(app, [*arguments, "--model", "models:/qa-moe-team/1"])
    assert '"model": "qa-moe-team version 1"' in done.output


def test_a_mistake_elsewhere_in_the_file_does_not_block_predictions(champions: Any) -> None:
    path = champions("qa-moe-team")
    path.write_text(path.read_text().replace("lr: 0.001", "lr: fast"))
    done = CliRunner().invoke(app, ["predict", "--text", "fine", "--json", "--params", str(path)])
    assert '"model": "qa-moe-team version 1 (champion)"' in done.output


@pytest.mark.parametrize(
    ("content", "seen"),
    [("{}", "registry.name"), ("registry: {name: a/b}", "a/b"), ("- 1", "registry.name"), (None, "params.yaml")],
)
def test_a_file_without_a_valid_name_is_refused(tmp_path: Path, content: str | None, seen: str) -> None:
    path = tmp_path / "params.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as refused:
        qamoe.load_champion(path)
    assert seen in str(refused.value)
    assert str(path) in str(refused.value)


def test_python_loads_that_champion_and_predicts(champions: Any) -> None:
    model = qamoe.load_champion(champions("qa-moe-team"))
    assert model.name == "qa-moe-team version 1 (champion)"
    answers = model.predict([{"text": "a fine video"}, {"text": None}])
    assert list(answers.index) == [0, 1]
    assert answers["score"].notna().all()
    assert answers["trust_text"].tolist()[1] == 0.0


def test_python_refuses_an_unknown_key_of_a_clip(champions: Any) -> None:
    model = qamoe.load_champion(champions("qa-moe"))
    with pytest.raises(UserError) as refused:
        model.predict([{"text": "fine"}, {"pth": "clip.mp4"}])
    assert all(part in str(refused.value) for part in ("1", "'pth'", "path"))


@pytest.mark.parametrize(
    "before",
    [
        "",
        pytest.param("import mlflow, torch, transformers", marks=pytest.mark.slow),
        pytest.param("import qamoe.serving.api, qamoe.config.params", marks=pytest.mark.slow),
    ],
)
def test_the_champion_loads_in_any_order_of_imports(champions: Any, before: str) -> None:
    code = f"{before}\nimport qamoe\nprint(qamoe.load_champion({str(champions('qa-moe-team'))!r}).name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "qa-moe-team version 1 (champion)"
