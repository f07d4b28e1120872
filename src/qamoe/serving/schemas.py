"""What the server is sent and what it answers, as JSON: unknown keys are refused, no field names a path or address."""

import base64
import binascii
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from qamoe.inference.predict import json_answers
from qamoe.rng import MODALITIES

MOST_CLIPS = 64  # of one request


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Frames(_Strict):
    """Raw features of one modality: `float32` holds shape[0] frames of shape[1] columns, little-endian, in base64."""

    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]
    float32: str
    _array: np.ndarray = PrivateAttr()

    @model_validator(mode="after")
    def _decoded(self) -> "Frames":
        try:
            raw = base64.b64decode(self.float32, validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("float32 is no base64") from None
        frames, columns = self.shape
        if len(raw) != 4 * frames * columns:
            raise ValueError("float32 does not hold the 4 bytes for each number that shape promises")
        self._array = np.frombuffer(raw, "<f4").reshape(frames, columns)
        if not np.isfinite(self._array).all():
            raise ValueError("float32 holds a value that is not finite")
        return self

    @property
    def array(self) -> np.ndarray:
        return self._array


class Words(_Strict):
    """What was said, as text or as ready token ids, which win."""

    text: Annotated[str, Field(max_length=10_000)] | None = None
    tokens: Annotated[list[int], Field(max_length=512)] | None = None


class Clip(Words):
    """A clip; a modality that is left out counts as missing."""

    audio: Frames | None = None
    vision: Frames | None = None


class PredictRequest(_Strict):
    """Clips to predict together; each is answered as if it had come alone."""

    clips: Annotated[list[Clip], Field(min_length=1, max_length=MOST_CLIPS)]

    def rows(self) -> pd.DataFrame:
        """The clips as qamoe.inference.predict takes them."""
        columns: dict[str, Any] = {name: [getattr(clip, name) for clip in self.clips] for name in ("text", "tokens")}
        for name in ("audio", "vision"):
            frames_by_clip = [getattr(clip, name) for clip in self.clips]
            columns[name] = [None if frames is None else frames.array for frames in frames_by_clip]
        return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})


class Damage(_Strict):
    """How a modality is degraded before it is predicted: docs/evaluation.md says what the kinds do."""

    kind: Literal["missing", "noise"]
    severity: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Damages(_Strict):
    """A damage for each modality that is to have one."""

    text: Damage | None = None
    audio: Damage | None = None
    vision: Damage | None = None

    def by_modality(self) -> dict[str, tuple[str, float]]:
        damages = {m: getattr(self, m) for m in MODALITIES}
        return {m: (damage.kind, damage.severity) for m, damage in damages.items() if damage is not None}


class ClipRequest(Words):
    """Words to go with an uploaded clip, and damages to show their effect."""

    degrade: Damages = Damages()


class _Trusted(BaseModel):
    trust: dict[str, float | None]
    r: dict[str, float | None]
    routing: list[float] | None


class Answer(_Trusted):
    """A score in label units with its 90 % interval; trust in [0, 1] and r by modality; the share of each expert.

    trust, r and routing are empty where the model has none.
    """

    score: float
    low_90: float
    high_90: float
    variance: float


class ClassAnswer(_Trusted):
    """What a model of classes answers: the most probable class and the calibrated probability of each."""

    label: str
    probabilities: dict[str, float]


Either = Answer | ClassAnswer


class Answers(BaseModel):
    """One answer a clip, in their order."""

    clips: list[Either]


class Upload(BaseModel):
    """A clip that the server keeps for a while: its id, seconds, frames by modality, and why one has none."""

    id: str
    seconds: float
    frames: dict[str, int]
    problems: dict[str, str]


class Sample(BaseModel):
    """A clip that the server offers; `start_s` and `end_s` bound it within /samples/<number>/media."""

    number: int
    text: str
    label: float | str
    start_s: float
    end_s: float | None


class About(BaseModel):
    """What is served, and what it takes. `columns` is the least number of columns of raw features.

    `low` and `high` bound a score; of a model of classes they are empty, and `classes` are theirs.
    """

    name: str
    digest: str
    modalities: list[str]
    columns: dict[str, int]
    low: float | None
    high: float | None
    classes: list[str]
    experts: int | None
    trust_rescaled: dict[str, bool]
    generated: bool
    media: list[str]
    limits: dict[str, float]


class Error(BaseModel):
    """Why a request was refused, in one sentence."""

    error: str


def answers(predictions: pd.DataFrame) -> list[Either]:
    """The rows that qamoe.inference.predict gives, as JSON can hold them."""
    return [ClassAnswer(**row) if "label" in row else Answer(**row) for row in json_answers(predictions)]
