"""The extractors that params.yaml can name, by modality. A new one is one file in this folder and one line here.

A class says what it is (`name`, `version`); its constructor takes its settings (config/extractor_settings.py) by name.
What media give follows Extractor; text gives token ids, and follows Tokens.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qamoe.config.block import Block
from qamoe.config.extractor_settings import extractor_settings
from qamoe.extractors.egemaps import Egemaps
from qamoe.extractors.huggingface import HuggingFace
from qamoe.extractors.landmarks import Landmarks
from qamoe.extractors.logmel import LogMel
from qamoe.extractors.minilm import MiniLM
from qamoe.extractors.openface import OpenFace
from qamoe.extractors.wav2vec import Wav2vec

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
        """A span (seconds) of a media file -> (T, D). Raises ClipError where there is nothing, NoStream where there is
        no such stream."""


def extractors_of(config: Mapping[str, Any]) -> dict[str, Block]:
    """The settings of each extractor that media can be given to; none where a corpus brought its features. `config` is
    a model.json."""
    streams = [m for m in config["modalities"] if m != "text" and config["stats"][m]["rate"]]
    return {m: extractor_settings(m, config["extract"][m]) for m in streams}


@cache
def extractor(chosen: Any) -> Any:
    """The extractor of these settings; made once a process, since some load a model. Raises UserError where it cannot
    be made."""
    made_by = next(of[chosen.extractor] for of in EXTRACTORS.values() if chosen.extractor in of)
    return made_by(**chosen.model_dump(exclude={"extractor"}))
