"""The extractors that params.yaml can name, by modality. To add one, write one file in this folder and one line here.

A class has `name` and `version`; its constructor takes its settings (config/extractor_settings.py) as keywords.
Extractors of media follow Extractor; those of text return token ids and follow Tokens. `words` are those that are
recognised in a clip's voice, where it has no transcript.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qamoe.config.extractor_settings import ExtractorSettings, Recogniser, TranscribeSettings, extractor_settings
from qamoe.errors import UserError
from qamoe.extractors.bge_small import BgeSmall
from qamoe.extractors.egemaps import Egemaps
from qamoe.extractors.huggingface import HuggingFace
from qamoe.extractors.landmarks import Landmarks
from qamoe.extractors.logmel import LogMel
from qamoe.extractors.minilm import MiniLM
from qamoe.extractors.openface import OpenFace
from qamoe.extractors.transcribe import Transcribe, missing
from qamoe.extractors.wav2vec import Wav2vec
from qamoe.extractors.whisper import Whisper

EXTRACTORS: dict[str, dict[str, type[Any]]] = {
    "text": {"minilm": MiniLM, "bge-small": BgeSmall, "huggingface": HuggingFace},
    "audio": {"egemaps": Egemaps, "logmel": LogMel, "wav2vec": Wav2vec, "whisper": Whisper},
    "vision": {"landmarks": Landmarks, "openface": OpenFace},
    "words": {"transcribe": Transcribe},
}
_RECOGNISER: Recogniser = "whisper-tiny.en"


class Extractor(Protocol):
    """Turns a span of a media file into frames (T, D) float32 at `rate` Hz; D is the number of `columns`.

    `made_with` describes whatever the frames depend on in addition to file, span, `name`, `version` and `rate`. Change
    `version` or `made_with` whenever the frames of the same file change: parts are cached under these values.
    """

    name: str
    version: str
    columns: tuple[str, ...]
    rate: float
    made_with: str

    def reads(self, media: Path) -> Path:
        """Return the file that the frames of a clip come from: its media file, or a file next to it."""

    def warm_up(self) -> None:
        """Load models, so that the first clip does not have to wait for them."""

    def extract(self, path: Path, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
        """Extract a span (seconds) of a media file -> (T, D).

        Raises ClipError if the span gives no frames, NoStream if the file has no stream of this modality.
        """


def extractors_of(config: Mapping[str, Any]) -> dict[str, ExtractorSettings]:
    """Return the extractor settings of each modality that a model extracts from media.

    The result is empty if the corpus came with ready features. `config` is the content of a model.json. Raises
    UserError if it does not describe an extractor that this version has.
    """
    streams = [m for m in config["modalities"] if m != "text" and config["stats"][m].get("rate")]
    chosen: dict[str, ExtractorSettings] = {}
    for modality in streams:
        try:
            chosen[modality] = extractor_settings(modality, config["extract"].get(modality))
        except ValueError as error:  # of pydantic
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"model.json: extract.{modality} is of no extractor of this version: {reason}.") from None
    return chosen


def recogniser_of(config: Mapping[str, Any]) -> TranscribeSettings | str:
    """Return the speech recognition for clips that come to a model without words, or else why there is none.

    It is the one that gave the model's corpus its text, or whisper-tiny.en. A model that reads no words has none, and
    neither has an encoder of a vocabulary of its own, whose language is not known. `config` is the content of a
    model.json.
    """
    text = config["extract"].get("text") or {}
    model = text.get("transcribe") or (None if text.get("extractor") == "huggingface" else _RECOGNISER)
    if model is None or "vocabulary" not in config["stats"].get("text", {}):
        return ""
    return missing(model) or TranscribeSettings(model=model)


@cache
def extractor(chosen: Any) -> Any:
    """Return the extractor of these settings, created once per process because some load a model.

    Raises UserError if it cannot be created.
    """
    extractor_class = next(by_name[chosen.extractor] for by_name in EXTRACTORS.values() if chosen.extractor in by_name)
    return extractor_class(**chosen.model_dump(exclude={"extractor", "transcribe"}))
