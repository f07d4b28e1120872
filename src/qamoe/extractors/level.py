"""Bring audio to one level before features, so that the gain of a microphone does not matter, and reject non-speech.

The level is that of the speech: powers of windows of 100 ms between 200 Hz and 4 kHz, averaged over those above a tenth
of the mean, which leaves out pauses (the relative gate of ITU-R BS.1770). Sound without speech is never made louder: in
speech, at least one of seven bands rises and falls by more than noise of a constant level does.
"""

import numpy as np

from qamoe.media.decode import ClipError

SILENCE = 1e-4  # peak amplitude, -80 dB of full scale
LEVEL = 0.05  # RMS, -26 dB of full scale: the nominal level of active speech in ITU-T P.56
STEADY_DB = 8.0  # noise of a constant level stays below, speech at a signal-to-noise ratio of 0 dB above
_WINDOW_S, _HOP_S = 0.1, 0.05  # every extractor reads 0.1 s or more
_EDGES = (200, 400, 600, 900, 1300, 1900, 2700, 4000)  # Hz, of the bands
_FLOOR = 1e-7  # of the loudest window: a band below holds leakage of the transform and rounding
_BATCH = 1000  # windows that are transformed together


def levelled(wave: np.ndarray, rate: int) -> np.ndarray:
    """Return audio (N,) at `rate` Hz with its speech at LEVEL, float32, without NaN and infinity.

    Raises ClipError for silence, for sound without speech and for less than 0.1 s.
    """
    wave = audible(wave)
    if len(wave) < _WINDOW_S * rate:
        raise ClipError(f"only {len(wave) / rate:.2f} s of audio, at least {_WINDOW_S:g} s needed")
    powers = _band_powers(wave, rate)
    if swing_db(powers) < STEADY_DB:
        raise ClipError("no speech, only steady sound")
    speech = powers[:, 1:].sum(1)
    level = np.sqrt(speech[speech >= speech.mean() / 10].mean())
    return (wave * (LEVEL / level)).astype(np.float32)


def audible(wave: np.ndarray) -> np.ndarray:
    """Return audio (N,) without NaN and infinity. Raises ClipError for silence."""
    wave = np.nan_to_num(wave, nan=0.0, posinf=1.0, neginf=-1.0)
    if np.abs(wave).max(initial=0.0) < SILENCE:
        raise ClipError("silence")
    return wave


def swing_db(powers: np.ndarray) -> float:
    """Return how far the loudest windows of a band are above its quiet ones, in the band where that is most."""
    floored = np.sort(10 * np.log10(powers[:, 1:] + _FLOOR * powers[:, :1].max()), axis=0)
    # The fifth loudest: a clip of one word in a long pause holds speech, one with a single click does not.
    loud = floored[-1 - min(4, len(floored) // 20)]
    return float((loud - np.percentile(floored, 10, axis=0)).max())


def _band_powers(wave: np.ndarray, rate: int) -> np.ndarray:
    """Return the mean power of each window (T, 8): of the whole spectrum, then of each band."""
    size, hop = int(_WINDOW_S * rate), int(_HOP_S * rate)
    windows = np.lib.stride_tricks.sliding_window_view(wave, size)[::hop]
    shape = np.hanning(size)
    first = np.searchsorted(np.fft.rfftfreq(size, 1 / rate), (0, *_EDGES))
    batches = []
    for begin in range(0, len(windows), _BATCH):
        spectrum = np.fft.rfft(windows[begin : begin + _BATCH] * shape)
        power = 2 * np.abs(spectrum) ** 2 / (size * (shape**2).sum())
        bands = np.add.reduceat(power, first, axis=1)[:, 1:-1]
        batches.append(np.column_stack([power.sum(1), bands]))
    return np.concatenate(batches)
