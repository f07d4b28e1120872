"""Settings of the extractors in params.yaml: one frozen block per extractor, chosen by its field `extractor`."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from qamoe.config.block import Block

WHISPER_LAYERS = {"whisper-tiny.en": 4, "whisper-base": 6}
HOP_RATE = 100  # Hz; audio descriptors are computed every 10 ms
Recogniser = Literal["whisper-tiny.en", "whisper-base"]


class ExtractorSettings(Block):
    @property
    def weights(self) -> tuple[str, ...]:
        """The names of the pretrained weights that it needs (weights/table.py)."""
        return ()


class TranscribeSettings(ExtractorSettings):
    """Speech recognition; params.yaml has it as `transcribe` of its text extractor."""

    extractor: Literal["transcribe"] = "transcribe"
    model: Recogniser

    @property
    def weights(self) -> tuple[str, ...]:
        return (self.model,)


class ReaderSettings(ExtractorSettings):
    transcribe: Recogniser | None = None  # gives a text to clips without a transcript

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Models of corpora without it have no such key in their model.json, and are compared with it.
        return {name: value for name, value in dump(self).items() if name != "transcribe" or value is not None}

    @property
    def recogniser(self) -> TranscribeSettings | None:
        """The speech recognition of clips without a transcript; None: they have no text."""
        return TranscribeSettings(model=self.transcribe) if self.transcribe else None

    @property
    def weights(self) -> tuple[str, ...]:
        return (self.transcribe,) if self.transcribe else ()


class MiniLMSettings(ReaderSettings):
    extractor: Literal["minilm"]
    max_tokens: Annotated[int, Field(ge=3, le=512)]

    @property
    def weights(self) -> tuple[str, ...]:
        return ("minilm", *super().weights)


class BgeSmallSettings(ReaderSettings):
    extractor: Literal["bge-small"]
    max_tokens: Annotated[int, Field(ge=3, le=512)]

    @property
    def weights(self) -> tuple[str, ...]:
        return ("bge-small", *super().weights)


class HuggingFaceSettings(ReaderSettings):
    extractor: Literal["huggingface"]
    model: Annotated[str, Field(min_length=1)]  # a folder
    max_tokens: Annotated[int, Field(ge=3, le=4096)]


class EgemapsSettings(ExtractorSettings):
    extractor: Literal["egemaps"]
    rate: Annotated[float, Field(gt=0, le=HOP_RATE)]  # Hz


class LogMelSettings(ExtractorSettings):
    extractor: Literal["logmel"]
    rate: Annotated[float, Field(gt=0, le=HOP_RATE)]  # Hz
    bands: Annotated[int, Field(ge=8, le=80)] = 40  # narrower bands would contain no point of the spectrum


class Wav2vecSettings(ExtractorSettings):
    extractor: Literal["wav2vec"]
    rate: Annotated[float, Field(gt=0, le=100)]  # Hz, at most the encoder's own (mostly 50)
    model: Annotated[str, Field(min_length=1)]  # a folder


class WhisperSettings(ExtractorSettings):
    extractor: Literal["whisper"]
    rate: Annotated[float, Field(gt=0, le=50)]  # Hz
    model: Literal["whisper-tiny.en", "whisper-base"]
    layer: Annotated[int, Field(ge=1)]  # the last one that is computed

    @model_validator(mode="after")
    def _has_layer(self) -> "WhisperSettings":
        layers = WHISPER_LAYERS[self.model]
        if self.layer > layers:
            message = "layer is {layer}; {model} has layers 1 to {layers}"
            values = {"layer": self.layer, "model": self.model, "layers": layers}
            raise PydanticCustomError("unknown_layer", message, values)
        return self

    @property
    def weights(self) -> tuple[str, ...]:
        return (self.model,)


class LandmarksSettings(ExtractorSettings):
    extractor: Literal["landmarks"]
    rate: Annotated[float, Field(gt=0, le=60)]  # Hz

    @property
    def weights(self) -> tuple[str, ...]:
        return ("face_landmarker",)


class OpenFaceSettings(ExtractorSettings):
    extractor: Literal["openface"]
    rate: Annotated[float, Field(gt=0, le=60)]  # Hz


SETTINGS: dict[str, dict[str, type[ExtractorSettings]]] = {
    "text": {"minilm": MiniLMSettings, "bge-small": BgeSmallSettings, "huggingface": HuggingFaceSettings},
    "audio": {
        "egemaps": EgemapsSettings,
        "logmel": LogMelSettings,
        "wav2vec": Wav2vecSettings,
        "whisper": WhisperSettings,
    },
    "vision": {"landmarks": LandmarksSettings, "openface": OpenFaceSettings},
}


def extractor_settings(modality: str, value: Any) -> ExtractorSettings:
    """Return a block of params.yaml (extract.text, .audio, .vision) as settings of the extractor that it names.

    Raises pydantic errors for an unknown extractor and for a key that the extractor does not have.
    """
    if isinstance(value, ExtractorSettings):
        return value
    name = value.get("extractor") if isinstance(value, dict) else None
    known = SETTINGS[modality]
    if not isinstance(name, str) or name not in known:
        message = "unknown extractor {name}; allowed are {known}"
        raise PydanticCustomError("unknown_extractor", message, {"name": repr(name), "known": ", ".join(known)})
    return known[name].model_validate(value)


def _of(modality: str) -> BeforeValidator:
    choose: Callable[[Any], Block] = lambda value: extractor_settings(modality, value)  # noqa: E731
    return BeforeValidator(choose)


# Pydantic's own discriminated unions would put the extractor's name into the path of a wrong key.
TextSettings = Annotated[MiniLMSettings | BgeSmallSettings | HuggingFaceSettings, _of("text")]
AudioSettings = Annotated[EgemapsSettings | LogMelSettings | Wav2vecSettings | WhisperSettings, _of("audio")]
VisionSettings = Annotated[LandmarksSettings | OpenFaceSettings, _of("vision")]
