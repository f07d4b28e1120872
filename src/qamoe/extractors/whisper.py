"""Audio features: hidden states of Whisper's encoder (Radford et al., 2022, arXiv 2212.04356), computed with torch.

Audio is brought to one level and resampled to 16 kHz. Every 10 ms, a Hann window of 25 ms gives a power spectrum of 400
points, and 80 triangular filters on Slaney's mel scale sum it up: Whisper's own front end, except that the clip's
maximum is subtracted from the logarithms. The encoder reads windows of the clip's own length, at most 30 s, instead of
30 s padded with zeros: its position codes are cut to that length. It makes a state every 20 ms.
"""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qamoe.extractors.ctranslate2_file import read_variables
from qamoe.extractors.frame_averaging import average_hops
from qamoe.extractors.level import levelled
from qamoe.files import file_digest
from qamoe.media.decode import read_audio
from qamoe.weights import store

if TYPE_CHECKING:
    from torch import Tensor

NAME = "whisper"
VERSION = "1"
SAMPLE_RATE = 16_000  # Hz
STATE_RATE = 50  # Hz
WINDOW, HOP = 400, 160  # samples: 25 and 10 ms
BANDS = 80
LONGEST = 3000  # log-mel frames: 30 s, which the encoder has position codes for
WEIGHTS = "model.bin"
WIDTHS = {"whisper-tiny.en": 384, "whisper-base": 512}
_DEPTH = 8.0  # powers of ten below the maximum, where Whisper cuts off


class Whisper:
    """Extract the states after `layer` layers of the encoder `model` at `rate` Hz, as means; weights are not trained.

    The encoder's last normalisation follows whichever layer is the last.
    """

    name = NAME
    version = VERSION

    def __init__(self, rate: float, model: str, layer: int) -> None:
        """`model` is a name of weights/table.py. Raises UserError if its weights are missing or differ."""
        self._path = store.folder(model, WEIGHTS) / WEIGHTS
        self.rate = rate
        self.columns = tuple(f"state_{number:04d}" for number in range(WIDTHS[model]))
        self.made_with = f"{file_digest(self._path)} layer {layer}"
        self._layer = layer
        self._weights: dict[str, Tensor] = {}

    def reads(self, media: Path) -> Path:
        return media

    def warm_up(self) -> None:
        self.describe(np.full(SAMPLE_RATE, 0.1, np.float32))

    def extract(self, path: Path, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
        """Read a span of a file -> (T, width) float32. Raises ClipError for a span without speech."""
        return self.describe(levelled(read_audio(path, SAMPLE_RATE, start_s, end_s), SAMPLE_RATE))

    def describe(self, wave: np.ndarray) -> np.ndarray:
        """Describe audio (N,) at 16 kHz -> (T, width) float32."""
        import torch

        if not self._weights:
            self._weights = load(self._path)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # keeps the order of sums fixed
        try:
            with torch.inference_mode():
                mel = log_mel(torch.from_numpy(wave))
                windows = mel.tensor_split(-(-mel.shape[1] // LONGEST), dim=1)
                states = torch.cat([encode(self._weights, window, self._layer) for window in windows]).numpy()
        finally:
            torch.set_num_threads(threads)
        return average_hops(states.astype(np.float64), STATE_RATE, self.rate)


@cache
def filters() -> np.ndarray:
    """Return triangular filters (WINDOW / 2 + 1, BANDS) float64 of area 1 on Slaney's mel scale, from 0 to 8 kHz.

    The scale is linear up to 1 kHz (15 mel) and logarithmic above (27 mel for a factor of 6.4).
    """
    mels = np.linspace(0, 15 + 27 * np.log(8) / np.log(6.4), BANDS + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))
    frequencies = np.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])


def log_mel(wave: "Tensor") -> "Tensor":
    """Return log-mel frames (BANDS, N / HOP) of audio (N,) at 16 kHz, from -1 to 1; the maximum of the clip is 1."""
    import torch

    spectrum = torch.stft(wave, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True)
    power = torch.from_numpy(filters().astype(np.float32)).T @ spectrum[:, :-1].abs() ** 2
    logarithm = power.clamp(min=1e-30).log10()
    return ((logarithm - logarithm.max()).clamp(min=-_DEPTH) + 4) / 4


def encode(weights: "dict[str, Tensor]", mel: "Tensor", layers: int) -> "Tensor":
    """Return the states (ceil(T / 2), width) after `layers` layers of the encoder for log-mel frames (BANDS, T)."""
    import torch.nn.functional as F

    def normalised(name: str) -> Any:
        return F.layer_norm(state, state.shape[-1:], weights[f"{name}/gamma"], weights[f"{name}/beta"])

    def linear(name: str, value: Any) -> Any:
        return F.linear(value, weights[f"{name}/weight"], weights[f"{name}/bias"])

    state = F.gelu(F.conv1d(mel[None], weights["conv1/weight"], weights["conv1/bias"], padding=1))
    state = F.gelu(F.conv1d(state, weights["conv2/weight"], weights["conv2/bias"], stride=2, padding=1))[0].T
    state = state + weights["position_encodings/encodings"][: len(state)]
    for layer in range(layers):
        attention = f"layer_{layer}/self_attention"
        projected = linear(f"{attention}/linear_0", normalised(f"{attention}/layer_norm"))
        heads = projected.view(len(state), 3, int(weights["num_heads"]), -1).permute(1, 2, 0, 3)
        attended = F.scaled_dot_product_attention(*heads[None].unbind(1))[0].transpose(0, 1).flatten(1)
        state = state + linear(f"{attention}/linear_1", attended)
        ffn = f"layer_{layer}/ffn"
        state = state + linear(f"{ffn}/linear_1", F.gelu(linear(f"{ffn}/linear_0", normalised(f"{ffn}/layer_norm"))))
    return normalised("layer_norm")


def load(path: Path) -> "dict[str, Tensor]":
    """Read the weights of an encoder as float32, without `encoder/` in their names. Raises UserError as its reader."""
    prefix = "encoder/"
    return {name.removeprefix(prefix): v.float() for name, v in read_variables(path, "WhisperSpec", prefix).items()}
