"""Define the JSON of requests and answers. Unknown keys are refused, and no field is a path or an address."""

import base64
import binascii
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from qamoe.inference.extraction_worker import MOST_CHARACTERS
from qamoe.inference.predict import json_answers
from qamoe.rng import MODALITIES

MOST_CLIPS = 64  # per request
WORDS = ("text", "tokens", "confidence")
_LARGEST = (1 << 31) - 1  # of any integer; what the model reads is checked with the model


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Frames(_Strict):
    """Raw features of one modality. float32: shape[0] frames of shape[1] columns, little-endian, as base64."""

    shape: Annotated[list[Annotated[int, Field(ge=0, le=_LARGEST)]], Field(min_length=2, max_length=2)]
    float32: str
    _array: np.ndarray = PrivateAttr()

    @model_validator(mode="after")
    def _decoded(self) -> "Frames":
        try:
            raw = base64.b64decode(self.float32, validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("float32 is not valid base64") from None
        frames, columns = self.shape
        if not columns:  # any number of empty frames would fit into no bytes
            raise ValueError("shape must have at least 1 column")
        if len(raw) != 4 * frames * columns:
            raise ValueError("float32 must hold 4 bytes for each number of shape")
        self._array = np.frombuffer(raw, "<f4").reshape(frames, columns)
        if not np.isfinite(self._array).all():
            raise ValueError("float32 holds a value that is not finite")
        return self

    @property
    def array(self) -> np.ndarray:
        return self._array


class Words(_Strict):
    """The text of a clip, as words or as token ids; token ids are used if both are given.

    confidence: that of a speech recogniser in each token; left out, the words were typed.
    """

    text: Annotated[str, Field(max_length=MOST_CHARACTERS)] | None = None
    tokens: Annotated[list[Annotated[int, Field(ge=0, le=_LARGEST)]], Field(max_length=512)] | None = None
    confidence: (
        Annotated[list[Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]], Field(max_length=512)] | None
    ) = None


class Clip(Words):
    """A clip; a modality that is left out counts as missing."""

    audio: Frames | None = None
    vision: Frames | None = None


class PredictRequest(_Strict):
    """Clips to predict; the answer for a clip does not depend on the other clips."""

    clips: Annotated[list[Clip], Field(min_length=1, max_length=MOST_CLIPS)]

    def rows(self) -> pd.DataFrame:
        """Return the clips as input of qamoe.inference.predict."""
        columns: dict[str, Any] = {name: [getattr(clip, name) for clip in self.clips] for name in WORDS}
        for name in ("audio", "vision"):
            frames_by_clip = [getattr(clip, name) for clip in self.clips]
            columns[name] = [None if frames is None else frames.array for frames in frames_by_clip]
        return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})


class Degradation(_Strict):
    """The degradation of a modality before prediction. docs/how/evaluation.md describes the kinds."""

    kind: Literal["missing", "noise"]
    severity: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Degradations(_Strict):
    """The degradation of each modality; a modality that is left out stays clean."""

    text: Degradation | None = None
    audio: Degradation | None = None
    vision: Degradation | None = None

    def by_modality(self) -> dict[str, tuple[str, float]]:
        degradations = {m: getattr(self, m) for m in MODALITIES}
        return {m: (each.kind, each.severity) for m, each in degradations.items() if each is not None}


class ClipRequest(Words):
    """The text of an uploaded clip, and the degradations to apply.

    Without text and tokens, the words count of its subtitles, or those that were recognised in its voice; an empty text
    leaves them out.
    """

    degrade: Degradations = Degradations()


class _Trusted(BaseModel):
    text: str | None = None
    reasons: dict[str, str] = {}
    trust: dict[str, float | None]
    r: dict[str, float | None]
    routing: list[float] | None

    def explain(self, text: str | None, reason: str) -> None:
        """Add the text of the clip, and why none of it, or not all of it, is read ("": it is)."""
        self.text = text
        self.reasons = {"text": reason} if reason else {}


class Answer(_Trusted):
    """A score in label units with its 90 % interval; trust in [0, 1] and r by modality; the routing weights.

    text has the words that were sent or recognised; null if there were none, or only token ids. reasons say why none of
    a text, or not all of it, is read.
    trust, r and routing are null for a model without them.
    """

    score: float
    low_90: float
    high_90: float
    variance: float


class ClassAnswer(_Trusted):
    """The answer of a classification model: the most probable class and the calibrated probability of each class."""

    label: str
    probabilities: dict[str, float]


class LabelsAnswer(_Trusted):
    """The answer of a multilabel model: the labels with a calibrated probability of at least 1/2, and that of each."""

    labels: list[str]
    probabilities: dict[str, float]


Either = Answer | ClassAnswer | LabelsAnswer


class Answers(BaseModel):
    """One answer per clip, in the order of the request."""

    clips: list[Either]


class HeardWord(BaseModel):
    """A word that was recognised in a clip's voice, its probability, and its times in seconds from the clip's start."""

    word: str
    confidence: float
    start_s: float
    end_s: float


class Upload(BaseModel):
    """A cached clip: its id, length in seconds, frames by modality, and the reason if a modality has none.

    text has the words of a subtitle track inside it, and words those that were recognised in its voice; null if it has
    none.
    """

    id: str
    seconds: float
    frames: dict[str, int]
    problems: dict[str, str]
    text: str | None
    words: list[HeardWord] | None


class Sample(BaseModel):
    """A sample clip; it spans start_s to end_s of /samples/<number>/media."""

    number: int
    text: str
    label: float | str | list[str]
    start_s: float
    end_s: float | None


class About(BaseModel):
    """The model and its inputs. columns, frames: number of columns and most frames of raw features by modality.

    low, high: bounds of a score, null for a model of classes. classes: empty for a regression model. multilabel: a clip
    has any number of the classes.
    """

    name: str
    digest: str
    modalities: list[str]
    columns: dict[str, int]
    frames: dict[str, int]
    low: float | None
    high: float | None
    classes: list[str]
    multilabel: bool
    experts: int | None
    trust_rescaled: dict[str, bool]
    generated: bool
    media: list[str]
    limits: dict[str, float]


class Error(BaseModel):
    """The reason why a request was refused, in one sentence."""

    error: str


def answers(predictions: pd.DataFrame) -> list[Either]:
    """Convert the output of qamoe.inference.predict to answers."""
    kinds = {"label": ClassAnswer, "labels": LabelsAnswer}
    return [kinds.get(next(iter(row)), Answer)(**row) for row in json_answers(predictions)]
