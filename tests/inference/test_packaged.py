"""The registered model outside this project: with only its own requirements, with paths, and in MLflow's server."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import venv
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from qamoe.inference.extraction_worker import extract_file
from qamoe.inference.predict import predict
from qamoe.models import checkpoint

ROWS = pd.DataFrame(
    {
        "text": ["a lovely movie", None],
        "audio": [None, np.ones((4, 3)).tolist()],
        "vision": [np.ones((2, 2)).tolist()] * 2,
    }
)


@pytest.fixture
def logged(records: Any, tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> tuple[str, Path]:
    """Return the address of a logged model, and the checkpoint that it was made of."""
    from qamoe.tracking.runs import record_training

    folder = tiny_checkpoint(tmp_path / "checkpoint")
    run = records.get_run(record_training(records, folder, "qa-moe"))
    return f"models:/{run.data.tags['qamoe.logged_model']}", folder


def needed(names: Iterator[str]) -> dict[str, Distribution]:
    """Return these distributions and, recursively, their requirements, as pip would install them."""
    distributions: dict[str, Distribution] = {}
    waiting = [Requirement(name) for name in names]
    while waiting:
        wanted = waiting.pop()
        key = canonicalize_name(wanted.name)
        extras = ("", *wanted.extras)
        current = distributions.get(key) or distribution(wanted.name)
        if key not in distributions:
            distributions[key] = current
        elif not wanted.extras:
            continue
        for line in current.requires or ():
            requirement = Requirement(line)
            if any(requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(requirement)
    return distributions


def new_environment(folder: Path, requirements: Path) -> Path:
    """Create a virtual environment with only the packages of a requirements.txt and return its Python.

    Files are linked from the current environment, so nothing is downloaded.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for package in needed(iter(requirements.read_text().split())).values():
        for file in package.files or ():
            link = packages / file
            if ".." not in file.parts and "__pycache__" not in file.parts and not link.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(Path(str(package.locate_file(file))).resolve())
    return folder / "bin" / "python"


def run(python: Path, code: str, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, cwd=folder, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_a_python_with_only_the_models_requirements_loads_it(logged, tmp_path):
    import mlflow

    address, folder = logged
    model = Path(mlflow.artifacts.download_artifacts(address, dst_path=str(tmp_path / "model")))
    python = new_environment(tmp_path / "features", model / "requirements.txt")
    rows = json.dumps(ROWS.to_dict("list"))
    code = (
        "import importlib.util, json, mlflow, pandas\n"
        "absent = [name for name in ('av', 'opensmile', 'mediapipe', 'cv2', 'optuna', 'dvc', 'prefect', 'qamoe')\n"
        "          if importlib.util.find_spec(name)]\n"
        "assert not absent, absent\n"
        f"model = mlflow.pyfunc.load_model({str(model)!r})\n"
        f"print(json.dumps(model.predict(pandas.DataFrame(json.loads({rows!r})))['score'].tolist()))\n"
    )
    expected = predict(checkpoint.load(folder), ROWS)["score"]
    np.testing.assert_allclose(json.loads(run(python, code, tmp_path)), expected, atol=1e-5)


@pytest.mark.slow
def test_a_python_with_the_media_requirements_reads_paths(logged, film, tmp_path):
    import mlflow

    address, _ = logged
    model = Path(mlflow.artifacts.download_artifacts(address, dst_path=str(tmp_path / "model")))
    python = new_environment(tmp_path / "media", model / "artifacts" / "requirements-media.txt")
    code = (
        "import json, mlflow, pandas\n"
        f"model = mlflow.pyfunc.load_model({str(model)!r}, model_config={{'paths': True}})\n"
        f"rows = pandas.DataFrame({{'path': [{str(film)!r}], 'text': ['a lovely movie']}})\n"
        "print(json.dumps(model.predict(rows)['score'].tolist()))\n"
    )
    loaded = mlflow.pyfunc.load_model(str(model), model_config={"paths": True})
    expected = loaded.predict(pd.DataFrame({"path": [str(film)], "text": ["a lovely movie"]}))["score"]
    np.testing.assert_allclose(json.loads(run(python, code, tmp_path)), expected, atol=1e-5)


@pytest.mark.integration
@pytest.mark.slow
def test_paths_are_read_if_the_model_is_loaded_with_paths(logged, film, tmp_path):
    import mlflow
    from mlflow.exceptions import MlflowException

    from qamoe.extractors.registry import extractors_of

    address, folder = logged
    trained = checkpoint.load(folder)
    model = mlflow.pyfunc.load_model(address, model_config={"paths": True})
    rows = pd.DataFrame({"path": [str(film), None, str(film)], "text": ["a movie"] * 3, "end_s": [None, None, 1.0]})
    predictions = model.predict(rows)
    for row, end_s in ((0, None), (2, 1.0)):
        clip = {"text": "a movie", **extract_file(film, extractors_of(trained.config), 0.0, end_s).frames}
        alone = predict(trained, pd.DataFrame({name: pd.Series([value], dtype=object) for name, value in clip.items()}))
        assert predictions["score"][row] == pytest.approx(alone["score"][0], abs=1e-5)
    assert predictions["score"].nunique() == 3
    assert predictions["trust_audio"][1] == 0
    (tmp_path / "notes.mp4").write_text("no video")
    for path in ("gone.mp4", "notes.mp4"):
        with pytest.raises(MlflowException, match=rf"Row 0: .*{path}: \w+"):
            model.predict(pd.DataFrame({"path": [str(tmp_path / path)]}))
    with pytest.raises(MlflowException, match=r"path.*model_config"):
        mlflow.pyfunc.load_model(address).predict(rows)


def served(address: str, tmp_path: Path, **environment: str) -> tuple[subprocess.Popen[str], int]:
    """Start `mlflow models serve`; return its process and port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", address, "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # MLflow finds uvicorn on the PATH, as in an active environment.
    environment |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
        env=os.environ | environment, start_new_session=True,
    ), port  # fmt: skip


def until(process: subprocess.Popen[str], pattern: str) -> str:
    """Return the output of a process up to a line that matches."""
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if re.search(pattern, line):
            return output
    raise AssertionError(f"the process ended without {pattern!r} in its output: {output}")


def end(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, 9)
    process.wait()


@pytest.mark.slow
def test_mlflows_server_predicts_as_the_model_and_does_not_open_paths(logged, film, tmp_path):
    address, folder = logged
    process, port = served(address, tmp_path)

    def request(rows: list[Any]) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", port, timeout=300)
        connection.request("POST", "/invocations", json.dumps({"dataframe_records": rows}),
                           {"Content-Type": "application/json"})  # fmt: skip
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    try:
        until(process, "Uvicorn running on")
        threading.Thread(target=process.stdout.read, daemon=True).start()  # type: ignore[union-attr]
        status, answer = request(ROWS.where(ROWS.notna(), None).to_dict("records"))
        assert status == 200
        expected = predict(checkpoint.load(folder), ROWS)
        np.testing.assert_allclose([row["score"] for row in answer["predictions"]], expected["score"], atol=1e-5)
        status, answer = request([{"path": str(film)}])
        assert status == 400
        assert "model_config" in answer["message"]
        assert request([{"audio": [[1.0]]}])[0] == 400
        assert request([{"text": "a movie"}])[0] == 200
    finally:
        end(process)


@pytest.mark.slow
def test_mlflows_server_refuses_to_open_paths(logged, tmp_path):
    process, _ = served(logged[0], tmp_path, SERVING_MODEL_CONFIG='{"paths": true}')
    try:
        until(process, "model_config paths")
    finally:
        end(process)
