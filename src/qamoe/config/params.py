"""params.yaml as frozen values: an unknown key, a wrong type or a value out of range is an error that names it.

One section a stage, plus `models` (a block a model), `seeds` and `registry`. What is here can change a result
and makes stages stale, and no value stands here: every key that decides something is in the file. Names of corpora,
degradations, slices and models are any strings here; pipeline/known_names.py holds them against their registries.
Where and how fast things run is in config/settings.py.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from qamoe.config.block import Block
from qamoe.config.extractor_settings import AudioSettings, TextSettings, VisionSettings
from qamoe.config.task import Task
from qamoe.errors import UserError

Share = Annotated[float, Field(ge=0, le=1)]
Severity = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
LearningRate = Annotated[float, Field(gt=0, lt=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


def _ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("the lower bound comes first")
    return bounds


class Corpus(Block):
    kind: str  # of data/readers
    path: str  # a pickle (mmsa) or a folder (the others)


class Signals(Block):
    """Degradations of the signals of the test split, for slice `signals`; the draws have a seed of their own."""

    seed: int
    severities: Annotated[dict[str, Annotated[tuple[Severity, ...], Field(min_length=1)]], Field(min_length=1)]

    @field_validator("severities")
    @classmethod
    def _kinds_are_known(cls, severities: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        from qamoe.media.degradations import MODALITY

        for kind, levels in severities.items():
            if kind not in MODALITY:
                raise ValueError(f"{kind!r} is none of the kinds {', '.join(MODALITY)}")
            if len(set(levels)) != len(levels):
                raise ValueError(f"{kind} names a severity twice")
        return severities


class Extract(Block):
    corpus: Corpus
    task: Task
    text: TextSettings
    audio: AudioSettings
    vision: VisionSettings
    max_problem_share: Share
    seconds_per_clip: Positive  # time limit
    signals: Signals | None = None  # experiments/signals.yaml


class PerModality(Block):
    text: Count
    audio: Count
    vision: Count


class Preprocess(Block):
    max_frames: PerModality


class Degrade(Block):
    kinds: Annotated[tuple[str, ...], Field(min_length=1)]  # that clips draw from
    clean_share: Share  # of the draws of a clip, view and modality
    shared_draw_share: Share  # of the clips whose modalities share one draw
    full_severity_share: Annotated[float, Field(ge=0, lt=1)]  # of the severities that are exactly 1
    mask_revealed_share: Share  # of the modalities that are wholly missing, those that the model is told of
    swap: bool  # whether clips draw swaps too
    views: Count  # distinct degraded views of a clip, one an epoch in turn. Of a frozen text encoder alone
    seed: int


class LossWeights(Block):
    variance: Annotated[float, Field(ge=0)]
    probe: Annotated[float, Field(ge=0)]
    severity: Annotated[float, Field(ge=0)]
    balance: Annotated[float, Field(ge=0)]
    router_z: Annotated[float, Field(ge=0)]


class Selection(Block):
    """The validation cells whose mean metric chooses the checkpoint."""

    severities: Annotated[dict[str, Annotated[tuple[Share, ...], Field(min_length=1)]], Field(min_length=1)]
    draws: Count
    seed: int


class TrainCommon(Block):
    epochs: Count
    batch_size: Count
    lr: LearningRate
    weight_decay: Annotated[float, Field(ge=0)]
    warmup_share: Share
    schedule: Literal["cosine", "linear"]  # of the learning rate after warm-up
    clip_norm: Positive
    patience: Count
    precision: Literal["float32", "bfloat16"]
    degrade: Degrade
    loss: LossWeights
    selection: Selection


class Train(Block):
    common: TrainCommon


class TextEncoder(Block):
    """Frozen, its states made once for all models; or fine-tuned as a part of each: the last three are of that."""

    finetune: bool
    encoder: Annotated[str, Field(min_length=1)]  # minilm, or the folder of a Hugging Face encoder
    lr: LearningRate  # its own; that of all else is train.common.lr
    dropout: Dropout
    pooling: Literal["attention", "mean"]  # over its states, or over one that is their mean


class Encoders(Block):
    """Sizes that every model shares, so that a comparison is between fusions."""

    width: Annotated[int, Field(ge=8)]
    layers: Annotated[int, Field(ge=0)]
    heads: Count
    dropout: Dropout
    stride: PerModality
    text: TextEncoder

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "Encoders":
        if self.width % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide width ({self.width})")
        return self


class Mean(Block):
    pass


class Hidden(Block):
    """One hidden layer of this width before the head."""

    hidden: Count


class TensorFusion(Hidden):
    low: Annotated[int, Field(ge=1, le=16)]  # dimension of a modality in the outer product: (low + 1)^3 products


class MoE(Block):
    experts: Count
    active: Count
    hidden: Count
    fusion: Literal["tokens", "concat"]

    @model_validator(mode="after")
    def _active_are_experts(self) -> "MoE":
        if self.active > self.experts:
            raise ValueError(f"active ({self.active}) must not exceed experts ({self.experts})")
        return self


class QAMoE(MoE):
    max_log_variance: Positive
    sampled: bool  # whether the main path reads a sample of the Gaussian in training; else its mean
    variance_context: Literal[
        "own", "all"
    ]  # what a modality's variance is estimated from: its own vector, or those of all
    initial_log_variance: float  # of the Gaussian features

    @model_validator(mode="after")
    def _starts_within_its_limit(self) -> "QAMoE":
        if abs(self.initial_log_variance) > self.max_log_variance:
            limits = f"within plus and minus max_log_variance ({self.max_log_variance:g})"
            raise ValueError(f"initial_log_variance ({self.initial_log_variance:g}) must lie {limits}")
        return self


class Models(BaseModel):
    """What all models share, and the content of a block for each model, which its class (models/factory.py) checks."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, dict[str, Any]]

    encoders: Encoders

    @property
    def blocks(self) -> dict[str, dict[str, Any]]:
        """The content of the blocks by the name of their model, in the order of the file."""
        return self.__pydantic_extra__


class Evaluate(Block):
    seed: int  # the protocol seed of the test side
    draws: Count
    mixed_draws: Count
    slices: Annotated[tuple[str, ...], Field(min_length=1)]
    quality_permutations: Annotated[int, Field(ge=0)]  # of r between the clips of slice mixed; 0 leaves them out

    @field_validator("slices")
    @classmethod
    def _each_once(cls, slices: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(slices)) != len(slices):
            raise ValueError("each slice may be named once")
        return slices


class Tune(Block):
    trials: Count
    epochs: Count
    seed: int  # of what is tried, and of each trial's training
    lr: Annotated[tuple[LearningRate, LearningRate], AfterValidator(_ascending)]
    weight_decay: Annotated[tuple[Positive, Positive], AfterValidator(_ascending)]
    dropout: Annotated[tuple[Dropout, Dropout], AfterValidator(_ascending)]


RegistryName = Annotated[str, Field(min_length=1, pattern=r"^[^/:.%\"']+$")]


class Registry(Block):
    name: RegistryName
    draws: Count  # of the cells that the gate measures
    seed: int
    coverage_90: Annotated[tuple[Share, Share], AfterValidator(_ascending)]
    calibration_error: Share  # of classes; the most that the gate lets pass
    tolerance: Share  # how much worse than the champion's the error of a slice may be; of classes, in misses


class Params(Block):
    extract: Extract
    preprocess: Preprocess
    train: Train
    models: Models
    seeds: dict[str, tuple[int, ...]]
    evaluate: Evaluate
    tune: Tune
    registry: Registry

    @model_validator(mode="after")
    def _signals_are_extracted(self) -> "Params":
        if "signals" in self.evaluate.slices and self.extract.signals is None:
            raise ValueError(
                "evaluate.slices names signals, and extract.signals names none; see experiments/signals.yaml"
            )
        return self

    @field_validator("seeds")
    @classmethod
    def _each_has_its_seeds(cls, seeds: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        if not seeds:
            raise ValueError("names no model")
        for model, numbers in seeds.items():
            if any(number < 0 for number in numbers):
                raise ValueError(f"{model} has a negative seed in {list(numbers)}; seeds are 0 or above")
            if not numbers or len(set(numbers)) != len(numbers):
                raise ValueError(f"{model} needs at least one seed, each once, not {list(numbers)}")
        return seeds


def first_mistake(invalid: ValidationError, path: Path, *section: str) -> UserError:
    """The first mistake of a file, or of the section that lies at `section` in it, as one sentence."""
    # An unknown key is most often a misspelt one: say that before the missing key which it causes.
    errors = sorted(invalid.errors(), key=lambda e: e["type"] != "extra_forbidden")
    return UserError(_sentence(errors[0], path, section))


def _sentence(error: Any, path: Path, section: tuple[str, ...]) -> str:
    key = ".".join(str(part) for part in (*section, *error["loc"])) or "the file"
    if error["type"] == "extra_forbidden":
        return f"{path}: unknown key {key}."
    if error["type"] == "missing":
        return f"{path}: key {key} is missing."
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    value = "" if isinstance(error["input"], dict) else f" is {error['input']!r}"
    return f"{path}: {key}{value}: {message}."


def load(path: Path) -> Params:
    """Read params.yaml, its names unchecked. Raises UserError with key, value and range of the first mistake."""
    return validate(read(path), path)


def registry_name(path: Path) -> str:
    """Return registry.name of params.yaml; a mistake elsewhere in the file does not keep anyone from the champion.

    Raises UserError where the file cannot be read or its registry.name is not a name.
    """
    content = read(path)
    registry = content.get("registry") if isinstance(content, dict) else None
    name = registry.get("name") if isinstance(registry, dict) else None
    try:
        return TypeAdapter(RegistryName).validate_python(name)
    except ValidationError as error:
        raise first_mistake(error, path, "registry", "name") from None


def read(path: Path) -> Any:
    """The content of a YAML file, unchecked. Raises UserError where there is none, or a mapping has a key twice."""
    import yaml  # a model needs its blocks and no file of them

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value]
            for place, key in enumerate(keys):
                if key in keys[:place]:
                    raise UserError(f"{path}, line {node.value[place][0].start_mark.line + 1}: duplicate key {key}.")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(path.read_text(), Loader)
    except FileNotFoundError:
        raise UserError(f"There is no parameter file {path}.") from None
    except OSError as error:
        raise UserError(f"The parameter file {path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None


def validate(content: Any, path: Path) -> Params:
    """Content as Params; `path` is where a mistake is said to be."""
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise first_mistake(error, path) from None


def digest(*values: Any) -> str:
    """SHA-256 of values made of blocks, dicts, lists and scalars, the same in every process."""
    plain = [v.model_dump(mode="json") if isinstance(v, BaseModel) else v for v in values]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
