"""model.json of a checkpoint: its keys, and a reader that does not import torch."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from qamoe.config.extractor_settings import extractor_settings
from qamoe.config.params import first_mistake
from qamoe.config.task import TaskDescription, TaskKind, has_classes
from qamoe.data.stats import Stats
from qamoe.errors import UserError

CONFIG = "model.json"
FORMAT = 2  # of model.json; one without the key is of format 1
# Keys of format 1 -> their names in format 2.
_RENAMED = {
    "sees": "variance_context",
    "worthless": "fully_degraded",
    "whole_share": "full_severity_share",
    "alike_share": "shared_draw_share",
    "announced_share": "mask_revealed_share",
}


class Calibration(TypedDict, total=False):
    """Regression: the half-width of the interval of each level in sigmas. Classification: the logit temperature."""

    sigmas: dict[str, float]
    temperature: float


class TrustAnchors(TypedDict):
    """Median r of a modality over clean and fully degraded validation clips.

    Trust is r rescaled between the two medians, or r itself if `rescaled` is false.
    """

    clean: float
    fully_degraded: float
    rescaled: bool


class ParametersConfig(TypedDict):
    """The keys of a model.json that follow from its parameters."""

    format: NotRequired[int]
    model: str
    seed: int
    models: dict[str, Any]
    train: dict[str, Any]
    extract: dict[str, Any]
    max_frames: dict[str, int]
    digests: dict[str, str]


class UntrainedConfig(ParametersConfig):
    """The keys of a model.json that are known before training and suffice to build a model with fresh weights."""

    stats: Stats
    task: TaskDescription
    modalities: list[str]
    inputs: dict[str, int]
    trained_on_generated: bool
    target_mean: NotRequired[float]
    target_std: NotRequired[float]
    class_shares: NotRequired[list[float]]
    text_encoder: NotRequired[dict[str, Any]]  # architecture of an encoder that the model fine-tunes
    text_states: NotRequired[int]  # width of another frozen encoder's states


class CheckpointConfig(UntrainedConfig):
    """model.json of a finished checkpoint."""

    selection: float
    best_epoch: int
    calibration: Calibration
    trust: dict[str, TrustAnchors]
    finished: NotRequired[bool]  # false: of an unfinished training, with empty calibration and trust


_LARGEST_FILE = 64 << 20  # bytes; the largest part is a line for each word of a vocabulary
Width = Annotated[int, Field(ge=1, le=65_536)]
Id = Annotated[int, Field(ge=0, lt=10_000_000)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
AboveZero = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Modality = Literal["text", "audio", "vision"]


class _Checked(BaseModel):
    """A part of model.json whose keys are checked; it may have others, which other versions wrote."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _Task(_Checked):
    kind: TaskKind
    low: Finite | None
    high: Finite | None
    classes: Annotated[list[str], Field(max_length=1000)]


class _Columns(_Checked):
    kept: Annotated[list[Id], Field(max_length=65_536)]
    mean: list[Finite]
    deviation: list[AboveZero]
    dimension: Annotated[int, Field(ge=0, le=65_536)]
    unfit: Annotated[int, Field(ge=0)]
    rate: AboveZero | None = None


class _Text(_Checked):
    vocabulary: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    frequencies: list[Annotated[list[Annotated[int, Field(ge=0, lt=2**53)]], Field(min_length=2, max_length=2)]] = []
    special: Annotated[list[Id], Field(max_length=1000)] = []
    unk: Id = 0


class _Stats(_Checked):
    task: _Task
    modalities: list[Modality]
    text: dict[str, Any]
    audio: _Columns | None = None
    vision: _Columns | None = None
    seconds_max: AboveZero | None = None


class _Anchors(_Checked):
    clean: Finite
    fully_degraded: Finite
    rescaled: bool


class _Calibration(_Checked):
    sigmas: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}
    temperature: AboveZero = 1.0


class _Description(_Checked):
    """model.json: types, ranges, and sizes that a model of this project can have."""

    model: Annotated[str, Field(max_length=100)]
    seed: Annotated[int, Field(ge=0)]
    models: dict[str, dict[str, Any]]
    extract: dict[str, Any]
    max_frames: dict[str, Width]
    stats: _Stats
    task: _Task
    modalities: Annotated[list[Modality], Field(min_length=1, max_length=3)]
    inputs: dict[str, Width]
    trained_on_generated: bool
    target_mean: Finite = 0.0
    target_std: AboveZero = 1.0
    class_shares: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(max_length=1000)] = []
    text_states: Width = 1
    text_encoder: dict[str, Any] = {}
    selection: Finite
    best_epoch: Annotated[int, Field(ge=0)] = 0
    finished: bool = True
    calibration: _Calibration
    trust: dict[str, _Anchors]


def _disagreement(config: Any) -> str:
    """Return the first two parts of a model.json, whose types are right, that contradict each other; "" for none."""
    stats, task, modalities = config["stats"], config["task"], config["modalities"]
    text, classifies = stats["text"], has_classes(task)
    vocabulary = text.get("vocabulary")
    problems = {
        "modalities": len(set(modalities)) < len(modalities) or not set(modalities) <= set(config["inputs"]),
        "max_frames": not set(modalities) <= set(config["max_frames"]),
        "stats": not set(modalities) <= set(stats),
        "models": "encoders" not in config["models"],
        "task": stats["task"] != task
        or (len(task["classes"]) < 2 if classifies else task["low"] is None or task["high"] is None),
        "class_shares": classifies and len(config.get("class_shares", ())) != len(task["classes"]),
        "target_mean": not classifies and not {"target_mean", "target_std"} <= set(config),
        "calibration": config.get("finished", True)
        and ("temperature" if classifies else "0.9")
        not in (config["calibration"] if classifies else config["calibration"].get("sigmas", ())),
        "trust": (bool(config["trust"]) and not set(modalities) <= set(config["trust"]))
        or any(a["rescaled"] and a["clean"] == a["fully_degraded"] for a in config["trust"].values()),
        "stats.text": vocabulary is not None
        and any(i >= vocabulary for i in [text["unk"], *text["special"], *(pair[0] for pair in text["frequencies"])]),
    }
    for modality in modalities:
        if modality != "text" or vocabulary is None:
            columns = stats.get(modality) or {}
            sizes = {len(columns.get(key, ())) for key in ("kept", "mean", "deviation")}
            kept = columns.get("kept", [])
            problems[f"stats.{modality}"] = sizes != {config["inputs"].get(modality)} or kept != sorted(set(kept))
    return next((key for key, wrong in problems.items() if wrong), "")


def _upgraded(value: Any) -> Any:
    """Return a part of a format 1 file with the key names of format 2."""
    if not isinstance(value, dict):
        return value
    return {_RENAMED.get(key, key): _upgraded(content) for key, content in value.items()}


def read_config(folder: Path) -> CheckpointConfig | None:
    """Read model.json of a finished checkpoint; None if there is none. Raises UserError if it is damaged."""
    path = folder / CONFIG
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise UserError(f"{path} has {path.stat().st_size} bytes; a {CONFIG} has at most {_LARGEST_FILE}.")
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        config = None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} is damaged: it is not a JSON object; train this model again.")
    number = config.get("format", 1)
    if isinstance(number, bool) or number not in (1, FORMAT):
        raise UserError(f"{path} has format {number!r:.40}; this version reads formats 1 and {FORMAT}.")
    if number == 1:
        config |= {part: _upgraded(config[part]) for part in ("models", "train", "trust") if part in config}
    return cast(CheckpointConfig, config)


def check(config: CheckpointConfig, path: Path, unfinished: bool = False) -> None:
    """Raise UserError for a model.json, read from `path`, whose values are not those of a model of this project.

    unfinished: accept one of an unfinished training.
    """
    try:
        _Description.model_validate(config)
        if "vocabulary" in config["stats"]["text"]:
            _Text.model_validate(config["stats"]["text"])
        elif config["stats"]["text"]:
            _Columns.model_validate(config["stats"]["text"])
        if "vocabulary" in config["stats"]["text"]:
            extractor_settings("text", config["extract"].get("text"))
        wrong = _disagreement(config)
        if not unfinished and not config.get("finished", True):
            raise UserError(
                f"{path} is of an unfinished training (epoch {config['best_epoch']}), so it has no calibration and no"
                " trust; let the training finish."
            )
    except ValidationError as error:
        raise first_mistake(error, path) from None
    except PydanticCustomError as error:
        raise UserError(f"{path}: extract.text: {error.message()}.") from None
    except KeyError as error:
        raise UserError(f"{path}: key stats.text.{error.args[0]} is missing.") from None
    if wrong:
        raise UserError(f"{path}: {wrong} contradicts the rest of the file.")
