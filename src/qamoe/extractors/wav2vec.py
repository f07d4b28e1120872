"""Audio features: the last hidden states of a wav2vec-type encoder (Baevski et al., 2020, arXiv 2006.11477).

The encoder is a local folder of Wav2Vec2, HuBERT, WavLM or a similar model, as Hugging Face's transformers saves it:
config.json, model.safetensors and optionally preprocessor_config.json. Pickled weights are rejected. Nothing is
downloaded.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from qamoe.errors import UserError
from qamoe.extractors.frame_averaging import average_hops
from qamoe.extractors.level import levelled
from qamoe.files import file_digest
from qamoe.media.decode import read_audio

NAME = "wav2vec"
VERSION = "2"
SAMPLE_RATE = 16_000  # Hz, the same for all these encoders
_FILES = ("config.json", "model.safetensors")


class Wav2vec:
    """Extract frames of the encoder's hidden size at `rate` Hz, as means over its states. Weights are not trained."""

    name = NAME
    version = VERSION

    def __init__(self, rate: float, model: str) -> None:
        folder = Path(model)
        for name in _FILES:
            if not (folder / name).is_file():
                raise UserError(
                    f"extract.audio.model: {folder / name} does not exist; the folder must hold {' and '.join(_FILES)}."
                )
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            self._hop_rate = SAMPLE_RATE / int(np.prod(config["conv_stride"]))
            columns = int(config["hidden_size"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{folder / 'config.json'} is not that of a wav2vec-type encoder.") from None
        if rate > self._hop_rate:
            raise UserError(
                f"extract.audio.rate is {rate:g}, must be at most {self._hop_rate:g} Hz for the encoder in {folder}."
            )
        self.rate = rate
        self.columns = tuple(f"state_{number:04d}" for number in range(columns))
        self._normalised = _normalised(folder)
        self._folder = folder
        self.made_with = _digest(folder) + ("" if self._normalised else " as it is")
        self._loaded: Any = None

    def reads(self, media: Path) -> Path:
        return media

    def warm_up(self) -> None:
        self.describe(np.full(SAMPLE_RATE, 0.1, np.float32))

    def extract(self, path: Path, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
        """Read a span of a file -> (T, hidden size) float32. Raises ClipError for a span without speech."""
        return self.describe(levelled(read_audio(path, SAMPLE_RATE, start_s, end_s), SAMPLE_RATE))

    def describe(self, wave: np.ndarray) -> np.ndarray:
        """Describe audio (N,) at 16 kHz -> (T, hidden size) float32."""
        import torch

        if self._normalised:
            wave = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
        if self._loaded is None:
            self._loaded = _load(self._folder)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # keeps the order of sums fixed
        try:
            with torch.inference_mode():
                states = self._loaded(torch.from_numpy(wave)[None]).last_hidden_state[0].float().numpy()
        finally:
            torch.set_num_threads(threads)
        return average_hops(states.astype(np.float64), self._hop_rate, self.rate)


def _normalised(folder: Path) -> bool:
    """Return whether the encoder expects audio of mean 0 and variance 1; true unless its folder says otherwise."""
    try:
        return bool(json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))["do_normalize"])
    except (OSError, ValueError, KeyError, TypeError):
        return True


def _digest(folder: Path) -> str:
    """Return the SHA-256 over the files that determine the encoder's output."""
    whole = hashlib.sha256()
    for name in _FILES:
        whole.update(bytes.fromhex(file_digest(folder / name)))
    return whole.hexdigest()


def _load(folder: Path) -> Any:
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, trust_remote_code=False)
    return model.eval().requires_grad_(False)
