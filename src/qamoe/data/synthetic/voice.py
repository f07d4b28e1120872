"""Generate voices of the sample corpus: espeak-ng speaks a sentence, with settings that follow the feeling.

espeak-ng is GPL and only a tool of the generator: it comes with the extra `sample` and is loaded only to speak a
sentence, never by the pipeline.
"""

import _ctypes
import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from qamoe.errors import UserError

RATE = 22_050  # Hz, espeak-ng's own
# Variants that differ clearly and are intelligible.
VARIANTS = tuple(f"en-us+{v}" for v in ("m1", "m2", "m3", "m4", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5"))
_FEMALE = "+f"
_SYNCHRONOUS = 2
_NO_EXIT = 0x8000  # an error is returned instead of ending the process
_UTF8 = 1
_SPEED, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_LOUDEST = 130  # above this espeak-ng clips
_QUIET_PEAK = 0.01  # of the sentence's peak: what counts as silence before and after it
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Voice:
    """How an invented person speaks without emotion, in espeak-ng's units."""

    variant: str
    pitch: float  # 0 to 99
    range: float  # 0 to 99
    speed: float  # words per minute
    volume: float
    hiss: float  # the room's noise, share of full scale


def invent(random: np.random.Generator, deep: bool = False) -> Voice:
    """Draw a voice; `deep` leaves out the female ones."""
    variants = [v for v in VARIANTS if not (deep and _FEMALE in v)]
    variant = variants[random.integers(len(variants))]
    low, high = (44, 58) if _FEMALE in variant else (34, 48)
    return Voice(
        variant=variant,
        pitch=random.uniform(low, high),
        range=random.uniform(42, 58),
        speed=random.uniform(195, 225),
        volume=random.uniform(70, 84),
        hiss=10 ** random.uniform(-3.2, -2.9),
    )


def library_folder() -> tuple[str, str]:
    """Return the paths of espeak-ng's library and its data. Raises UserError without the extra `sample`."""
    try:
        import espeakng_loader
    except ImportError:
        raise UserError(
            "The sample corpus needs espeak-ng (espeakng_loader), which is not installed;"
            " pip install '.[sample]' in the checkout installs it."
        ) from None
    return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()


def say(text: str, voice: Voice, feeling: float, arousal: float, random: np.random.Generator) -> np.ndarray:
    """Speak a sentence -> audio (N,) float32 at 22.05 kHz, without silence before and after.

    `feeling` (about -3 to 3) raises pitch, range, speed and volume; `arousal` (about -1.5 to 1.5) range, speed and
    volume.
    """
    wave = _spoken(
        text,
        voice.variant,
        pitch=voice.pitch + 7.0 * feeling + 2.0 * arousal,
        range_=voice.range + 10.0 * feeling + 8.0 * arousal,
        speed=voice.speed * (1 + 0.04 * feeling + 0.05 * arousal),
        volume=voice.volume * (1 + 0.14 * feeling + 0.18 * arousal),
        seed=int(random.integers(1, 2**31)),
    )
    loud = np.flatnonzero(np.abs(wave) > _QUIET_PEAK * np.abs(wave).max())
    wave = wave[loud[0] : loud[-1] + 1]
    noise = random.standard_normal(len(wave)).astype(np.float32)
    return np.clip(wave + np.float32(voice.hiss) * noise, -1, 1)


def _spoken(text: str, variant: str, pitch: float, range_: float, speed: float, volume: float, seed: int) -> np.ndarray:
    library_path, data_path = library_folder()
    # The library keeps state between sentences, so load it again for each sentence. The bytes then do not depend on
    # earlier sentences or on the process.
    library = ctypes.CDLL(library_path)
    try:
        return _synthesise(library, data_path, text, variant, (pitch, range_, speed, volume), seed)
    finally:
        library.espeak_Terminate()
        _ctypes.dlclose(library._handle)


def _synthesise(
    library: Any,
    data_path: str,
    text: str,
    variant: str,
    prosody: tuple[float, float, float, float],
    seed: int,
) -> np.ndarray:
    chunks: list[np.ndarray] = []

    def receive(samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    callback = _CALLBACK(receive)
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, data_path.encode(), _NO_EXIT)
    if rate != RATE:
        raise RuntimeError(f"espeak-ng reported a rate of {rate} at its start, expected {RATE} Hz")
    library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(variant.encode()):
        raise RuntimeError(f"espeak-ng has no voice {variant}")
    pitch, range_, speed, volume = prosody
    for parameter, value, low, high in (
        (_PITCH, pitch, 0, 99),
        (_RANGE, range_, 0, 99),
        (_SPEED, speed, 120, 320),
        (_VOLUME, volume, 25, _LOUDEST),
    ):
        library.espeak_SetParameter(parameter, round(min(max(value, low), high)), 0)
    encoded = text.encode() + b"\0"
    library.espeak_Synth(
        encoded, ctypes.c_size_t(len(encoded)), 0, 0, 0, _UTF8, ctypes.c_void_p(None), ctypes.c_void_p(None)
    )
    library.espeak_Synchronize()
    if not chunks:
        raise RuntimeError(f"espeak-ng produced no audio for {text!r}")
    return np.concatenate(chunks).astype(np.float32) / 32768
