"""The extractors that params.yaml can name, by modality. A new one is one file in this folder and one line here.

A class says what it is (`name`, `version`) and which settings it takes (`Settings`, a frozen block whose field
`extractor` is its name); its constructor takes those settings by name. What media give follows Extractor; text gives
token ids, and follows Tokens.
"""

from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydantic_core import PydanticCustomError

from qamoe.features.egemaps import Egemaps
from qamoe.features.huggingface import HuggingFace
from qamoe.features.landmarks import Landmarks
from qamoe.features.logmel import LogMel
from qamoe.features.minilm import MiniLM
from qamoe.features.openface import OpenFace
from qamoe.features.wav2vec import Wav2vec
from qamoe.params import Block

EXTRACTORS: dict[str, dict[str, type[Any]]] = {
    "text": {"minilm": MiniLM, "huggingface": HuggingFace},
    "audio": {"egemaps": Egemaps, "logmel": LogMel, "wav2vec": Wav2vec},
    "vision": {"landmarks": Landmarks, "openface": OpenFace},
}


class Extractor(Protocol):
    """What turns a span of a media file into frames (T, D) float32 at `rate` Hz; D is the number of `columns`.

    `made_with` is what the frames depend on beside the file, the span, `name`, `version` and `rate`; other frames from
    the same file need another version or another `made_with`, since parts are found again by them.
    """

    name: str
    version: str
    columns: tuple[str, ...]
    rate: float
    made_with: str

    def reads(self, media: Path) -> Path:
        """The file whose content makes the frames of a clip: its media, or what lies beside it."""

    def warm_up(self) -> None:
        """Load what takes time, so that the first clip does not wait for it."""

    def extract(self, path: Path, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
        """A span (seconds) of a media file -> (T, D). Raises Problem where there is nothing, NoStream where there is
        no such stream."""


def settings(modality: str, value: Any) -> Block:
    """A block of params.yaml (extract.text, .audio, .vision) as the settings of the extractor that it names.

    Raises the errors of pydantic: an unknown name with those that there are, a key that this extractor does not have.
    """
    if isinstance(value, Block):
        return value
    name = value.get("extractor") if isinstance(value, dict) else None
    known = EXTRACTORS[modality]
    if name not in known:
        message = "extractor {name} is none of {known}"
        raise PydanticCustomError("unknown_extractor", message, {"name": repr(name), "known": ", ".join(known)})
    return known[str(name)].Settings.model_validate(value)


@cache
def extractor(chosen: Any) -> Any:
    """The extractor of these settings; made once a process, since some load a model. Raises Refused where it cannot be
    made."""
    made_by = next(of[chosen.extractor] for of in EXTRACTORS.values() if chosen.extractor in of)
    return made_by(**chosen.model_dump(exclude={"extractor"}))
