"""Damage a recording's sound: each kind is one function of audio, rate, severity, draws and other recordings.

The amounts are our decisions. A kind never changes its input, returns float32 of the same length, and leaves silence
silent.
"""

from collections.abc import Callable, Sequence
from io import BytesIO
from math import ceil, sqrt
from typing import Any

import numpy as np

from qamoe.errors import UserError
from qamoe.signal_rng import SignalDraws

Wave = np.ndarray  # (N,) float32
AudioDegradation = Callable[[Wave, float, float, SignalDraws, Sequence[Wave]], Wave]

PACKET_S = 0.02  # length of an audio packet in kind dropouts
_SPEECH_WINDOW_S = 0.1
_LOWEST_HZ, _HIGHEST_HZ = 500.0, 4_000.0  # of kind band_limit, at severities 1 and just above 0
_AMR_RATE = 8_000
_AMR_BITS = (7_950, 6_700, 5_900, 5_150, 4_750)  # bit/s of AMR narrowband
_AMR_FRAME = 160  # samples
_SOUND = 343.0  # m/s
_IMAGES_S = 0.1  # echoes until then come from image sources, later ones are noise that decays
_EQUALISER_DB = 6.0
_GAIN_DB = 12.0


def snr_db(severity: float) -> float:
    """Return the signal-to-noise ratio of a severity: 30 dB just above severity 0, 10 at .5, -10 at 1."""
    return 30 - 40 * severity


def speech_power(wave: Wave, rate: float) -> float:
    """Return the mean power of the part with speech: of windows of 100 ms with at least a tenth of the mean power.

    This is the relative gate of ITU-R BS.1770, so pauses do not make a recording count as quiet.
    """
    if not len(wave):
        return 0.0
    starts = np.arange(0, len(wave), max(1, round(_SPEECH_WINDOW_S * rate)))
    sums = np.add.reduceat(wave.astype(np.float64) ** 2, starts)
    counts = np.diff([*starts, len(wave)])
    speech = sums / counts >= sums.sum() / len(wave) / 10
    return float(sums[speech].sum() / counts[speech].sum())


def _mix(wave: Wave, rate: float, noise: np.ndarray, severity: float) -> Wave:
    """Return wave + noise at the severity's ratio of the power of the part with speech to that of the noise."""
    power, other = speech_power(wave, rate), float((noise.astype(np.float64) ** 2).mean())
    if not power or not other:
        return wave
    gain = sqrt(power / other / 10 ** (snr_db(severity) / 10))
    return (wave + gain * noise.astype(np.float64)).astype(np.float32)


def noise(wave: Wave, rate: float, severity: float, draws: SignalDraws, others: Sequence[Wave]) -> Wave:
    """Add white Gaussian noise at `snr_db(severity)`."""
    return _mix(wave, rate, draws.normal(len(wave)), severity)


def coloured_noise(wave: Wave, rate: float, severity: float, draws: SignalDraws, others: Sequence[Wave]) -> Wave:
    """Add noise at `snr_db(severity)` whose spectrum falls or rises, with a resonance; half of it swells and fades.

    Drawn a clip: -9 to +3 dB an octave, a peak or dip of up to 12 dB one octave wide between 200 and 6,400 Hz, and
    whether the level rises and falls by up to 12 dB, 0.3 to 2 times a second.
    """
    slope, centre, height, swells, speed, phase = draws.numbered(draws.number + 1).uniform(6)

    def amplitudes(hertz: np.ndarray) -> np.ndarray:
        octaves = np.log2(np.maximum(hertz, 50) / 1000)
        peak_db = (24 * height - 12) * np.exp(-((octaves - (5 * centre - 2.32)) ** 2))
        return np.asarray(10 ** (((12 * slope - 9) * octaves + peak_db) / 20))

    added = _filtered(draws.normal(len(wave)), rate, amplitudes)
    if swells < 0.5:
        time = np.arange(len(wave)) / rate
        added *= 10 ** (12 * np.sin(2 * np.pi * ((0.3 + 1.7 * speed) * time + phase)) / 20)
    return _mix(wave, rate, added, severity)


def babble(wave: Wave, rate: float, severity: float, draws: SignalDraws, others: Sequence[Wave]) -> Wave:
    """Add the speech of other people, equally loud and repeated as needed, at `snr_db(severity)`."""
    crowd = np.zeros(len(wave))
    for other, start in zip(others, draws.uniform(max(1, len(others))), strict=False):
        power = speech_power(other, rate)
        if power:
            crowd += _looped(other, len(wave), start) / sqrt(power)
    return _mix(wave, rate, crowd, severity)


def recorded_noise(wave: Wave, rate: float, severity: float, draws: SignalDraws, others: Sequence[Wave]) -> Wave:
    """Add a recording of noise, the first of `others`, from a drawn place and repeated, at `snr_db(severity)`."""
    if not others or not len(others[0]):
        return wave
    return _mix(wave, rate, _looped(others[0], len(wave), draws.uniform(1)[0]), severity)


def _looped(other: Wave, length: int, start: float) -> np.ndarray:
    return other.astype(np.float64)[(int(start * len(other)) + np.arange(length)) % len(other)]


def tones(wave: Wave, rate: float, severity: float, draws: SignalDraws, others: Sequence[Wave]) -> Wave:
    """Add three steady tones between 100 and 3,200 Hz, as of hum and feedback, at `snr_db(severity)`."""
    pitch, loudness, phase = draws.uniform(9).reshape(3, 3)
    time = np.arange(len(wave)) / rate
    hertz = 100 * 2 ** (5 * pitch)
    waves = (0.3 + loudness)[:, None] * np.sin(2 * np.pi * (hertz[:, None] * time + phase[:, None]))
    return _mix(wave, rate, waves.sum(0), severity)


def dropouts(wave: Wave, rate: float, severity: float, draws: SignalDraws, others: Sequence[Wave]) -> Wave:
    """Lose packets of 20 ms (set them to zero), each with probability `severity`."""
    size = round(PACKET_S * rate)
    lost = draws.uniform(ceil(len(wave) / size)) < severity
    return np.where(np.repeat(lost, size)[: len(wave)], np.float32(0), wave)


def band_limit(wave: Wave, rate: float, severity: float, draws: SignalDraws, others: Sequence[Wave]) -> Wave:
    """Lose everything above 4 kHz just above severity 0, 1.4 kHz at .5 and 500 Hz at 1."""
    highest = _HIGHEST_HZ * (_LOWEST_HZ / _HIGHEST_HZ) ** severity
    return _filtered(wave, rate, lambda hertz: hertz <= highest).astype(np.float32)


def _filtered(wave: np.ndarray, rate: float, amplitudes: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return audio (N,) whose frequencies have another amplitude, a function of Hz, float64."""
    from scipy.fft import next_fast_len

    length = next_fast_len(len(wave), real=True)  # a prime length takes ten times as long
    spectrum = np.fft.rfft(wave.astype(np.float64), length)
    return np.fft.irfft(spectrum * amplitudes(np.fft.rfftfreq(length, 1 / rate)), length)[: len(wave)]


def clipping(wave: Wave, rate: float, severity: float, draws: SignalDraws, others: Sequence[Wave]) -> Wave:
    """Cut off amplitudes above 12 dB over the speech's RMS just above severity 0, 4 dB below it at .5, 20 dB at 1."""
    highest = sqrt(speech_power(wave, rate)) * 10 ** ((12 - 32 * severity) / 20)
    return wave.clip(-highest, highest).astype(np.float32)


def codec(wave: Wave, rate: float, severity: float, draws: SignalDraws, others: Sequence[Wave]) -> Wave:
    """Send the sound through mobile telephones: AMR narrowband at 7.95 down to 4.75 kbit/s, one to five times over."""
    bits = _AMR_BITS[min(int(severity * len(_AMR_BITS)), len(_AMR_BITS) - 1)]
    peak = float(np.abs(wave).max(initial=0.0))
    if not peak:
        return wave
    narrow = _resampled(wave / peak, rate, _AMR_RATE)
    for _ in range(1 + int(4 * severity)):
        narrow = _coded(narrow, _AMR_RATE, "libopencore_amrnb", "amr", bits, _AMR_FRAME)
    return (peak * _fitted(_resampled(narrow, _AMR_RATE, rate), len(wave))).astype(np.float32)


def _coded(wave: np.ndarray, rate: int, name: str, container: str, bits: int, frame: int) -> np.ndarray:
    """Return audio (N,) at `rate` Hz after a codec, without its delay, float64.

    Raises UserError if this build of PyAV lacks the codec.
    """
    import av

    file = BytesIO()
    samples = (np.pad(wave, (0, 4 * frame)) * 32_767).clip(-32_768, 32_767).astype(np.int16)
    try:
        with av.open(file, "w", format=container) as out:
            stream: Any = out.add_stream(name, rate=rate, layout="mono", options={"b": str(bits)})
            encoder_format = stream.codec_context.codec.audio_formats[0].name
            resampler = av.AudioResampler(encoder_format, "mono", rate, frame_size=frame)
            whole = av.AudioFrame.from_ndarray(samples[None], "s16", "mono")
            whole.sample_rate, whole.pts = rate, 0
            for part in (*resampler.resample(whole), *resampler.resample(None)):
                out.mux(stream.encode(part))
            out.mux(stream.encode(None))
        file.seek(0)
        with av.open(file, "r") as read:
            resampler = av.AudioResampler("flt", "mono", rate)
            frames = [part for heard in read.decode(audio=0) for part in resampler.resample(heard)]
            decoded = np.concatenate([part.to_ndarray()[0] for part in (*frames, *resampler.resample(None))])
    except (av.FFmpegError, ValueError) as error:  # ValueError: a codec that is not built in
        raise UserError(f"The codec {name} of this build of PyAV cannot be used ({error}).") from None
    return _fitted(decoded.astype(np.float64)[_delay(samples / 32_768, decoded, 4 * frame) :], len(wave))


def _delay(before: np.ndarray, after: np.ndarray, most: int) -> int:
    """Return by how many samples (0 to `most`) `after` is later: where the two are most alike."""
    from scipy.signal import correlate

    size = min(len(before), len(after)) - most
    if size <= 0:
        return 0
    likeness = correlate(after[: size + most].astype(np.float64), before[:size].astype(np.float64), "valid", "fft")
    return int(np.argmax(likeness))


def _fitted(wave: np.ndarray, length: int) -> np.ndarray:
    return np.pad(wave[:length], (0, max(0, length - len(wave))))


def _resampled(wave: np.ndarray, rate: float, wanted: float) -> np.ndarray:
    from fractions import Fraction

    from scipy.signal import resample_poly

    ratio = Fraction(int(wanted), int(rate))
    return np.asarray(resample_poly(wave.astype(np.float64), ratio.numerator, ratio.denominator))


def reverb(wave: Wave, rate: float, severity: float, draws: SignalDraws, others: Sequence[Wave]) -> Wave:
    """Put the speaker into a room that echoes for 0.2 s (to -60 dB) just above severity 0, 0.8 s at .5, 1.4 s at 1.

    The room has 4 x 3 x 2.5 to 8 x 6 x 4 m. The distance to the microphone grows with the severity, from 1 m to 3 m
    where the room allows it.
    """
    from scipy.signal import fftconvolve

    room = np.array([4, 3, 2.5]) + draws.uniform(3) * [4, 3, 1.5]
    direction = draws.numbered(draws.number + 1).normal(3).astype(np.float64)
    direction /= np.linalg.norm(direction) + 1e-9
    mouth = 0.5 + draws.numbered(draws.number + 2).uniform(3) * (room - 1)
    microphone = (mouth + direction * (1 + 2 * severity)).clip(0.3, room - 0.3)
    seconds = 0.2 + 1.2 * severity
    response = room_response(room, mouth, microphone, seconds, rate, draws.numbered(draws.number + 3))
    direct = int(np.linalg.norm(microphone - mouth) / _SOUND * rate)
    echoed = fftconvolve(wave.astype(np.float64), response)[direct : direct + len(wave)]
    return echoed.astype(np.float32)


def room_response(
    room: np.ndarray, mouth: np.ndarray, microphone: np.ndarray, seconds: float, rate: float, draws: SignalDraws
) -> np.ndarray:
    """Return the impulse response of a box-shaped room (m) whose echo falls by 60 dB in `seconds`, float64.

    Early echoes are image sources (Allen and Berkley, 1979), with the reflection of all walls by Eyring's formula;
    later ones are noise that decays. The direct sound has amplitude 1.
    """
    volume = float(room.prod())
    surface = 2 * float(room[0] * room[1] + room[0] * room[2] + room[1] * room[2])
    reflection = np.exp(-0.161 * volume / (surface * seconds) / 2)
    axes = []
    for length, source, ear in zip(room, mouth, microphone, strict=True):
        reach = ceil(_IMAGES_S * _SOUND / (2 * length))
        turns = np.arange(-reach, reach + 1)
        offsets = np.concatenate([2 * turns * length + source - ear, 2 * turns * length - source - ear])
        bounces = np.concatenate([2 * np.abs(turns), np.abs(turns - 1) + np.abs(turns)])
        axes.append((offsets**2, bounces))
    squares = np.add.outer(np.add.outer(axes[0][0], axes[1][0]), axes[2][0]).ravel()
    bounced = np.add.outer(np.add.outer(axes[0][1], axes[1][1]), axes[2][1]).ravel()
    distance = np.sqrt(squares)
    early = distance < _IMAGES_S * _SOUND
    samples = (distance[early] / _SOUND * rate).astype(np.int64)
    amplitude = distance.min() * reflection ** bounced[early] / np.maximum(distance[early], 0.1)
    length = max(int(seconds * rate), samples.max(initial=0) + 1)
    response = np.bincount(samples, amplitude, length)
    first, last = int(0.6 * _IMAGES_S * rate), int(_IMAGES_S * rate)
    if length > last:
        decay = 10 ** (-3 * np.arange(length) / (seconds * rate))
        tail = draws.normal(length) * decay
        loudness = np.sqrt((response[first:last] ** 2).sum() / ((tail[first:last] ** 2).sum() + 1e-30))
        response[last:] = loudness * tail[last:]
    return response


def gain(wave: Wave, rate: float, severity: float, draws: SignalDraws, others: Sequence[Wave]) -> Wave:
    """Harmless: make everything louder or quieter, by up to 12 dB at severity 1."""
    sign = 1 if draws.uniform(1)[0] < 0.5 else -1
    return (wave * 10 ** (sign * _GAIN_DB * severity / 20)).astype(np.float32)


def equaliser(wave: Wave, rate: float, severity: float, draws: SignalDraws, others: Sequence[Wave]) -> Wave:
    """Harmless: raise and lower eight octave bands by up to 6 dB at severity 1, as another microphone does."""
    levels = _EQUALISER_DB * severity * (2 * draws.uniform(8) - 1)

    def amplitudes(hertz: np.ndarray) -> np.ndarray:
        return np.asarray(10 ** (np.interp(np.log2(np.maximum(hertz, 1) / 62.5), np.arange(8), levels) / 20))

    return _filtered(wave, rate, amplitudes).astype(np.float32)


def good_codec(wave: Wave, rate: float, severity: float, draws: SignalDraws, others: Sequence[Wave]) -> Wave:
    """Harmless: AAC or Opus, from 160 kbit/s just above severity 0 to 96 at 1."""
    peak = float(np.abs(wave).max(initial=0.0))
    if not peak:
        return wave
    name, container, coded_rate, frame = (
        ("aac", "adts", int(rate), 1024) if draws.uniform(1)[0] < 0.5 else ("libopus", "ogg", 48_000, 960)
    )
    bits = int(160_000 - 64_000 * severity)
    coded = _coded(_resampled(wave / (2 * peak), rate, coded_rate), coded_rate, name, container, bits, frame)
    return (2 * peak * _fitted(_resampled(coded, coded_rate, rate), len(wave))).astype(np.float32)


KINDS: dict[str, AudioDegradation] = {
    function.__name__: function
    for function in (
        *(noise, coloured_noise, babble, dropouts, band_limit, recorded_noise, codec, reverb, clipping, tones),
        *(gain, equaliser, good_codec),
    )
}
HARMLESS = ("gain", "equaliser", "good_codec")
