"""params.yaml as frozen values: an unknown key, a wrong type or a value out of range is an error that names it.

One section per stage, plus `models` (one block per model), `seeds` and `registry`. Every key can change a result, so a
change makes stages stale. No defaults are set here: params.yaml holds every value. Names of corpora, degradations,
slices and models are plain strings here; pipeline/known_names.py checks them against their registries. Device and
workers are in config/settings.py.
"""

import hashlib
import json
import re
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from qamoe.config.block import Block
from qamoe.config.extractor_settings import AudioSettings, TextSettings, VisionSettings
from qamoe.config.search_space import Seed, Tune
from qamoe.config.task import Task
from qamoe.errors import UserError

Share = Annotated[float, Field(ge=0, le=1)]
Severity = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
LearningRate = Annotated[float, Field(gt=0, lt=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


_MOST_VALUES = 100_000  # in a parameter file
_LONGEST = 120  # characters of a value in a message
# The forms of plain scalars in YAML 1.2. An integer that 64 bits do not hold stays text.
_SCALARS = {
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": "[-+]?(?:0|[1-9][0-9]{0,17})",
    "float": r"[-+]?(?:[0-9]*\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+\.?[eE][-+]?[0-9]+|[0-9]+\.|\.(?:inf|Inf|INF))"
    r"|\.(?:nan|NaN|NAN)",
    "null": "~|null|Null|NULL|",
    "merge": "<<",
}


def _ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("the lower bound must come first")
    return bounds


class Corpus(Block):
    kind: str  # of data/readers
    path: str  # a pickle (mmsa) or a folder (the others)


def _of_the_corpus(patterns: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in patterns:
        if not pattern or PurePath(pattern).is_absolute() or ".." in PurePath(pattern).parts:
            raise ValueError(f"{pattern!r} must name files in the corpus folder, such as noise/*.flac")
    return patterns


Recordings = Annotated[tuple[str, ...], AfterValidator(_of_the_corpus)]  # patterns of files in the corpus folder


class Signals(Block):
    """Degradations of the media of the test split, for slice `signals`, with a seed of their own."""

    seed: Seed
    severities: Annotated[dict[str, Annotated[tuple[Severity, ...], Field(min_length=1)]], Field(min_length=1)]
    recordings: Recordings = ()  # of kind recorded_noise

    @field_validator("severities")
    @classmethod
    def _kinds_are_known(cls, severities: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        from qamoe.media.degradations import MODALITY

        for kind, levels in severities.items():
            if kind not in MODALITY:
                raise ValueError(f"unknown kind {kind!r}; allowed are {', '.join(MODALITY)}")
            if len(set(levels)) != len(levels):
                raise ValueError(f"duplicate severity of {kind}")
        return severities


class Copies(Block):
    """Damaged copies of the media of the other splits, for training and selection, with a seed of their own.

    train, valid and gate: copies of each clip. sound, pictures, words: the kinds that they draw from; a modality whose
    list is empty has none.
    """

    seed: Seed
    train: Annotated[int, Field(ge=0)]
    valid: Annotated[int, Field(ge=0)]
    gate: Annotated[int, Field(ge=0)]
    sound: tuple[str, ...]
    pictures: tuple[str, ...]
    words: tuple[str, ...]
    recordings: Recordings = ()  # of kind recorded_noise

    def kinds(self) -> dict[str, tuple[str, ...]]:
        """Return the kinds by modality, without modalities that have none."""
        of = {"text": self.words, "audio": self.sound, "vision": self.pictures}
        return {modality: kinds for modality, kinds in of.items() if kinds}

    @field_validator("sound", "pictures", "words")
    @classmethod
    def _kinds_may_be_trained(cls, kinds: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        from qamoe.media.degradations import MODALITY, NEVER_TRAINED

        modality = {"sound": "audio", "pictures": "vision", "words": "text"}[str(info.field_name)]
        allowed = [kind for kind in MODALITY if MODALITY[kind] == modality and kind not in NEVER_TRAINED]
        for kind in kinds:
            if kind in NEVER_TRAINED:
                raise ValueError(f"{kind!r} is for the test split only; allowed are {', '.join(allowed)}")
            if kind not in allowed:
                raise ValueError(f"unknown kind {kind!r}; allowed are {', '.join(allowed)}")
            if kinds.count(kind) > 1:
                raise ValueError(f"{kind} may appear once")
        return kinds


class Extract(Block):
    corpus: Corpus
    task: Task
    text: TextSettings
    audio: AudioSettings
    vision: VisionSettings
    max_problem_share: Share
    seconds_per_clip: Positive  # time limit
    signals: Signals | None = None  # experiments/signals.yaml
    copies: Copies | None = None


class PerModality(Block):
    text: Count
    audio: Count
    vision: Count


class Preprocess(Block):
    max_frames: PerModality


LANDSCAPE = "landscape"  # slice, and key of train.common.selection.severities: all pairs of lambda and eta
Levels = Annotated[tuple[Share, Share], AfterValidator(_ascending)]


class PaperSpectrum(Block):
    """The ranges of the paper's lambda and eta, and which modalities are lost: degradation/spectrum.py."""

    noise: Levels
    missing: Levels
    dropped: Literal["each", "subset"]


class Degrade(Block):
    spectrum: Literal["clip", "paper"]  # each clip and modality draws by itself (ours), or as in the paper
    paper: PaperSpectrum
    kinds: Annotated[tuple[str, ...], Field(min_length=1)]  # from which clips draw
    clean_share: Share  # share of draws (per clip, view and modality) without damage
    shared_draw_share: Share  # share of clips whose modalities share one draw
    full_severity_share: Annotated[float, Field(ge=0, lt=1)]  # share of severities that are exactly 1
    mask_revealed_share: Share  # share of wholly missing modalities that are masked
    recognised_share: Share  # share of clips with word confidences as of a recogniser
    # Share of damaged draws that take the features of a damaged copy; checkpoints from before copies have no such key.
    signal_share: Share = 0.0
    swap: bool  # whether clips draw swaps too
    views: Count  # degraded views per clip, used in turn, one per epoch (frozen text encoder only)
    seed: Seed


class LossWeights(Block):
    variance: Annotated[float, Field(ge=0)]
    probe: Annotated[float, Field(ge=0)]
    severity: Annotated[float, Field(ge=0)]
    balance: Annotated[float, Field(ge=0)]
    router_z: Annotated[float, Field(ge=0)]


class Selection(Block):
    """The validation cells; the checkpoint with the best mean metric over them is kept.

    `severities` by kind; the levels of `landscape` are both lambda and eta, and each pair is a cell.
    """

    severities: Annotated[dict[str, Annotated[tuple[Share, ...], Field(min_length=1)]], Field(min_length=1)]
    draws: Count
    seed: Seed


class TrainCommon(Block):
    epochs: Count
    clips: Count | None = None  # of the training split; null: all
    batch_size: Count
    lr: LearningRate
    weight_decay: Annotated[float, Field(ge=0)]
    warmup_share: Share
    schedule: Literal["cosine", "linear", "plateau"]  # of the learning rate after warm-up
    clip_norm: Positive
    patience: Count
    precision: Literal["float32", "bfloat16"]
    degrade: Degrade
    loss: LossWeights
    selection: Selection


class Train(Block):
    common: TrainCommon


class TextEncoder(Block):
    """The text encoder: frozen and shared by all models, or fine-tuned within each.

    All keys after the encoder apply to fine-tuning only.
    """

    finetune: bool
    encoder: Annotated[str, Field(min_length=1)]  # minilm, or the folder of a Hugging Face encoder
    lr: LearningRate  # of the encoder; the rest of the model uses train.common.lr
    dropout: Dropout
    pooling: Literal["attention", "mean"]  # over the encoder's states, or over their mean
    frozen_epochs: Annotated[int, Field(ge=0)] = 0  # at a learning rate of 0; checkpoints from before the key lack it


class Encoders(Block):
    """Sizes that all models share, so that comparisons are between fusions."""

    width: Annotated[int, Field(ge=8)]
    layers: Annotated[int, Field(ge=0)]
    heads: Count
    dropout: Dropout
    pooling: Literal["attention", "statistics"] = "attention"  # the default is that of models before this choice
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
    """A hidden layer of this width before the head."""

    hidden: Count


class TensorFusion(Hidden):
    low: Annotated[int, Field(ge=1, le=16)]  # dimension of each modality in the outer product of (low + 1)^3 terms


class Experts(Block):
    experts: Count
    active: Count
    hidden: Count

    @model_validator(mode="after")
    def _active_are_experts(self) -> "Experts":
        if self.active > self.experts:
            raise ValueError(f"active ({self.active}) must not exceed experts ({self.experts})")
        return self


class MoE(Experts):
    fusion: Literal["tokens", "concat"]


class QAMoE(MoE):
    max_log_variance: Positive
    sampled: bool  # in training, the main path reads a sample of the Gaussian instead of its mean
    variance_context: Literal["own", "all"]  # a modality's variance depends on its own vector, or on all
    initial_log_variance: float  # of the Gaussian features

    @model_validator(mode="after")
    def _starts_within_its_limit(self) -> "QAMoE":
        if abs(self.initial_log_variance) > self.max_log_variance:
            limits = f"within plus and minus max_log_variance ({self.max_log_variance:g})"
            raise ValueError(f"initial_log_variance ({self.initial_log_variance:g}) must be {limits}")
        return self


class PaperLoss(Block):
    """Weights of the losses that `paper` and `paper-public` have in addition to the likelihood, whose weight is 1."""

    balance: Annotated[float, Field(ge=0)]
    gate_entropy: Annotated[float, Field(ge=0)]
    quality: Annotated[float, Field(ge=0)]


class Paper(Experts):
    experts_read: Literal["sample", "mu"]  # in training: a sample of the Gaussian, or its mean
    missing_flags: bool  # the model is told which modalities a clip does not have
    gate: bool = True  # false: r is 1 in y. Checkpoints from before the keys have neither, and both parts
    prior: bool = True  # false: y_prior stays 0
    loss: PaperLoss


class Models(BaseModel):
    """The shared encoders, and one block per model, which the model's class (models/factory.py) validates."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, dict[str, Any]]

    encoders: Encoders

    @property
    def blocks(self) -> dict[str, dict[str, Any]]:
        """The blocks by name of their model, in the order of the file."""
        return self.__pydantic_extra__


class Landscape(Block):
    """The grid of slice `landscape`: the paper's lambda and eta each take all levels."""

    levels: Annotated[tuple[Share, ...], Field(min_length=2)]
    draws: Count
    announced: bool  # whether the model is told which modalities are lost

    @field_validator("levels")
    @classmethod
    def _are_named_by_two_digits(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        if list(levels) != sorted(set(levels)) or any(level != round(level, 2) for level in levels):
            raise ValueError("levels must rise and have at most two digits after the point")
        return levels


class Evaluate(Block):
    seed: Seed  # of the degradations of the test split
    draws: Count
    mixed_draws: Count
    slices: Annotated[tuple[str, ...], Field(min_length=1)]
    landscape: Landscape
    quality_permutations: Annotated[int, Field(ge=0)]  # permutations of r between the clips of slice mixed; 0 for none

    @field_validator("slices")
    @classmethod
    def _each_once(cls, slices: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(slices)) != len(slices):
            raise ValueError("each slice may appear once")
        return slices


# MLflow addresses a model by its name, so it has none of the characters of an address, and no blank at an end.
_NOT_IN_NAMES = "/:.%?#@\\\"'"


def _addressable(name: str) -> str:
    controls = any(letter < " " or "\x7f" <= letter <= "\x9f" for letter in name)
    if not name or name != name.strip() or controls or set(name) & set(_NOT_IN_NAMES):
        raise ValueError(
            f"it needs at least one character, none of {' '.join(_NOT_IN_NAMES)} or control characters, and no blank at"
            " an end"
        )
    return name


RegistryName = Annotated[str, AfterValidator(_addressable)]


class Registry(Block):
    name: RegistryName
    draws: Count  # per cell that the promotion gate measures
    seed: Seed
    coverage_90: Annotated[tuple[Share, Share], AfterValidator(_ascending)]
    calibration_error: Share  # classification: the largest that passes the promotion gate
    tolerance: Share  # allowed relative increase of a slice's error (regression) or error rate (classification)


class Tracking(Block):
    """Which checkpoints MLflow gets in addition to the finished ones; changes no result.

    keep_checkpoints: those of an unfinished training, at most once in keep_every epochs. keep_trials: whether each
    complete trial of a search leaves its checkpoint.
    """

    keep_checkpoints: Literal["none", "best", "best_and_last"]
    keep_every: Count
    keep_trials: bool


class Params(Block):
    extract: Extract
    preprocess: Preprocess
    train: Train
    models: Models
    seeds: dict[str, tuple[int, ...]]
    evaluate: Evaluate
    tune: Tune
    registry: Registry
    tracking: Tracking

    @model_validator(mode="after")
    def _signals_are_extracted(self) -> "Params":
        made = set()
        if self.extract.signals:
            from qamoe.media.degradations import slice_of

            made = {slice_of(kind) for kind in self.extract.signals.severities}
        for name in ("signals", "harmless"):
            if name in self.evaluate.slices and name not in made:
                raise ValueError(
                    f"evaluate.slices has {name}, but extract.signals has none of its kinds; see"
                    " experiments/signals.yaml"
                )
        return self

    @field_validator("seeds")
    @classmethod
    def _each_has_its_seeds(cls, seeds: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        if not seeds:
            raise ValueError("has no model")
        for model, numbers in seeds.items():
            if any(number < 0 for number in numbers):
                raise ValueError(f"{model} has a negative seed in {list(numbers)}; seeds are 0 or above")
            if not numbers or len(set(numbers)) != len(numbers):
                raise ValueError(f"{model} needs at least one seed, each once, not {list(numbers)}")
        return seeds


def first_mistake(invalid: ValidationError, path: Path, *section: str) -> UserError:
    """Return the first mistake of a file, or of its section `section`, as one sentence."""
    # An unknown key is most often a misspelt one: report it before the missing key that it causes.
    errors = sorted(invalid.errors(), key=lambda e: e["type"] != "extra_forbidden")
    return UserError(_sentence(errors[0], path, section))


def _sentence(error: Any, path: Path, section: tuple[str, ...]) -> str:
    key = ".".join(str(part) for part in (*section, *error["loc"])) or "the file"
    if key == "the file" and error["input"] is None:
        return f"{path} is empty; it needs the keys of params.yaml."
    if error["type"] == "extra_forbidden":
        return f"{path}: unknown key {key}."
    if error["type"] == "missing":
        return f"{path}: key {key} is missing."
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    seen = error["input"]
    value = "" if isinstance(seen, dict) else f" is {shortened(list(seen) if isinstance(seen, tuple) else seen)}"
    return f"{path}: {key}{value}: {message}."


def shortened(value: Any) -> str:
    """Return a value as Python writes it, cut in the middle where it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 4 :]}"


def load(path: Path) -> Params:
    """Read params.yaml without checking its names. Raises UserError with key, value and range of the first mistake."""
    return validate(read(path), path)


def registry_name(path: Path) -> str:
    """Return registry.name of params.yaml and check nothing else, so that a mistake elsewhere blocks no prediction.

    Raises UserError where the file cannot be read or registry.name is not a valid name.
    """
    content = read(path)
    registry = content.get("registry") if isinstance(content, dict) else None
    name = registry.get("name") if isinstance(registry, dict) else None
    try:
        return TypeAdapter(RegistryName).validate_python(name)
    except ValidationError as error:
        raise first_mistake(error, path, "registry", "name") from None


def read(path: Path) -> Any:
    """Read a YAML 1.2 file without checking it. Raises UserError where it is missing, not YAML or has a duplicate key.

    Only the plain forms of YAML 1.2 are numbers and truth values, so DVC reads the same values. Others (010, 0x28,
    1:30, 4_0, yes) stay text, which the check of a key that needs a number refuses.
    """
    import yaml  # not needed where a registered model is loaded

    class Loader(yaml.SafeLoader):
        def get_single_node(self) -> Any:
            node = super().get_single_node()
            _refuse_expansion(node, path, {})
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if isinstance(key.value, str) and key.value in seen:
                    raise UserError(f"{path}, line {key.start_mark.line + 1}: duplicate key {key.value}.")
                seen.add(key.value if isinstance(key.value, str) else id(key))
            return super().construct_mapping(node, deep)

    Loader.yaml_implicit_resolvers = {}
    for kind, form in _SCALARS.items():
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"(?:{form})$"), None)
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader)
    except FileNotFoundError:
        raise UserError(
            f"The parameter file {path} does not exist; run qamoe in the root of the checkout, or give --params."
        ) from None
    except OSError as error:
        raise UserError(f"The parameter file {path} cannot be read: {error.strerror}.") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply; params.yaml itself has 6 levels.") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: not UTF-8, or a bad !!int or !!timestamp
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None


def _refuse_expansion(node: Any, path: Path, sizes: dict[int, int]) -> int:
    """Return the number of values below a node, those of an alias each time; refuse more than _MOST_VALUES."""
    if node is None or isinstance(node.value, str):
        return 1
    if id(node) not in sizes:
        sizes[id(node)] = _MOST_VALUES  # of a node that contains itself
        parts = (part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,)))
        sizes[id(node)] = 1 + sum(_refuse_expansion(part, path, sizes) for part in parts)
        if sizes[id(node)] > _MOST_VALUES:
            line = node.start_mark.line + 1
            raise UserError(
                f"{path}, line {line}: more than {_MOST_VALUES} values, those of aliases counted each time."
            )
    return sizes[id(node)]


def validate(content: Any, path: Path) -> Params:
    """Return content as Params; messages about mistakes name `path`."""
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise first_mistake(error, path) from None


def digest(*values: Any) -> str:
    """Return the SHA-256 of blocks, dicts, lists and scalars, the same in every process."""
    plain = [v.model_dump(mode="json") if isinstance(v, BaseModel) else v for v in values]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
