"""Degraded audio, frames and transcripts: each severity has its measured amount; results repeat and nest."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from qamoe.media import degradations
from qamoe.media.degradations import AUDIO, MODALITY, TEXT, VISION
from qamoe.media.sound_degradations import room_response, snr_db, speech_power
from qamoe.media.word_confusion import Vocabulary, distance, key
from qamoe.signal_rng import SignalDraws

RATE = 16_000
LEVELS = (0.1, 0.25, 0.5, 0.75, 1.0)


def voice(seconds: float = 1.5, pitch: float = 140.0) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    buzz = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 40))
    return (0.1 * buzz * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * time))).astype(np.float32)


OTHERS = tuple(voice(s, p) for s, p in ((0.7, 90), (1.1, 120), (2.0, 200), (1.6, 240)))


def degraded_audio(kind: str, severity: float, clip: str = "clip") -> np.ndarray:
    return degradations.degrade_audio(kind, voice(), RATE, severity, SignalDraws(3, clip, kind), OTHERS)


def decibels(wave: np.ndarray, noise: np.ndarray) -> float:
    return 10 * np.log10((wave.astype(np.float64) ** 2).mean() / (noise.astype(np.float64) ** 2).mean())


@pytest.mark.parametrize("kind", ["noise", "coloured_noise", "babble", "recorded_noise", "tones"])
@pytest.mark.parametrize("severity", LEVELS)
def test_the_ratio_of_speech_to_noise_is_that_of_the_severity_with_any_pauses(kind: str, severity: float) -> None:
    assert (snr_db(0.5), snr_db(1.0)) == (10, -10)
    for pause in (0, RATE):
        clip = np.pad(voice(), pause)
        degraded = degradations.degrade_audio(kind, clip, RATE, severity, SignalDraws(3, "clip", kind), OTHERS)
        added = degraded.astype(np.float64) - clip
        ratio = 10 * np.log10(speech_power(voice(), RATE) / (added**2).mean())
        assert ratio == pytest.approx(snr_db(severity), abs=0.5)


def test_babble_is_made_of_the_other_voices_and_noise_is_white() -> None:
    def spectrum(wave: np.ndarray) -> np.ndarray:
        return np.abs(np.fft.rfft(wave.astype(np.float64))) ** 2

    hertz = np.fft.rfftfreq(len(voice()), 1 / RATE)
    low = hertz < 1000
    babble, noise = (spectrum(degraded_audio(kind, 1.0) - voice()) for kind in ("babble", "noise"))
    assert babble[low].sum() / babble.sum() > 0.9
    assert noise[low].sum() / noise.sum() == pytest.approx(1000 / 8000, abs=0.02)
    assert np.array_equal(
        degradations.degrade_audio("babble", voice(), RATE, 1.0, SignalDraws(3, "clip", "babble"), ()), voice()
    )


def above(hertz: float, wave: np.ndarray) -> float:
    """Return the share of the power above a frequency."""
    power = np.abs(np.fft.rfft(wave.astype(np.float64))) ** 2
    return float(power[np.fft.rfftfreq(len(wave), 1 / RATE) > hertz].sum() / power.sum())


def test_a_band_limit_cuts_everything_above_its_frequency() -> None:
    assert above(550, voice()) > 0.01
    for severity, hertz in ((0.001, 4000), (0.5, 1414), (1.0, 500)):
        assert above(1.05 * hertz, degraded_audio("band_limit", severity)) < 1e-3 * above(1.05 * hertz, voice())


def test_a_telephone_codec_stays_in_time_and_loses_more_the_lower_its_rate() -> None:
    def envelope(wave: np.ndarray) -> np.ndarray:
        return np.sqrt((wave[: len(wave) // 160 * 160].reshape(-1, 160) ** 2).mean(1))

    for severity in LEVELS:
        coded = degraded_audio("codec", severity)
        assert above(4100, coded) < 1e-3
        alike = [
            np.corrcoef(envelope(voice())[9:-9], envelope(coded)[9 + by : len(envelope(coded)) - 9 + by])[0, 1]
            for by in range(-4, 5)
        ]
        assert np.argmax(alike) in (3, 4, 5), "less than 20 ms late"
    spectra = [np.abs(np.fft.rfft(degraded_audio("codec", severity))) for severity in (0.1, 1.0)]
    little, much = (np.corrcoef(np.abs(np.fft.rfft(voice())), spectrum)[0, 1] for spectrum in spectra)
    assert little > much


def test_clipping_cuts_amplitudes_at_its_level() -> None:
    rms = np.sqrt(speech_power(voice(), RATE))
    for severity in LEVELS:
        clipped = degraded_audio("clipping", severity)
        highest = rms * 10 ** ((12 - 32 * severity) / 20)
        assert np.abs(clipped).max() == pytest.approx(min(highest, np.abs(voice()).max()), rel=1e-3)
        kept = np.abs(voice()) < highest
        assert np.array_equal(clipped[kept], voice()[kept])


@pytest.mark.parametrize("seconds", [0.2, 0.6, 1.4])
def test_a_room_echoes_as_long_as_it_should(seconds: float) -> None:
    room, mouth, microphone = (np.array(place, float) for place in ((5, 4, 3), (1, 1.5, 1.6), (3, 2, 1.2)))
    response = room_response(room, mouth, microphone, seconds, RATE, SignalDraws(3, "clip", "reverb"))
    direct = int(np.linalg.norm(microphone - mouth) / 343 * RATE)
    assert not response[:direct].any()
    assert response[direct] == pytest.approx(1, abs=0.05)
    remaining = 10 * np.log10(np.cumsum(response[::-1] ** 2)[::-1] / (response**2).sum() + 1e-12)  # Schroeder
    fall = np.flatnonzero(remaining < -5)[0], np.flatnonzero(remaining < -25)[0]
    assert 3 * (fall[1] - fall[0]) / RATE == pytest.approx(seconds, rel=0.35)


def test_tones_are_three_frequencies() -> None:
    added = degraded_audio("tones", 1.0).astype(np.float64) - voice()
    power = np.abs(np.fft.rfft(added * np.hanning(len(added)))) ** 2
    found, total = 0, power.sum()
    while power.max() > 0.01 * total:
        top = int(power.argmax())
        power[max(0, top - 6) : top + 7] = 0
        found += 1
    assert found == 3


def test_recorded_noise_is_the_recording_repeated() -> None:
    recording = np.random.default_rng(5).standard_normal(4000).astype(np.float32)
    draws = SignalDraws(3, "clip", "recorded_noise")
    degraded = degradations.degrade_audio("recorded_noise", voice(), RATE, 0.5, draws, [recording])
    added = degraded.astype(np.float64) - voice()
    np.testing.assert_allclose(added[:4000], added[4000:8000], atol=1e-6)
    start = int(draws.uniform(1)[0] * 4000)
    assert np.corrcoef(added[:4000], np.roll(recording, -start))[0, 1] > 0.999


def test_coloured_noise_differs_between_clips_in_spectrum_and_in_how_it_swells() -> None:
    long, shares, swells = np.ones(4 * RATE, np.float32), [], []
    for clip in range(24):
        draws = SignalDraws(3, str(clip), "coloured_noise")
        added = degradations.degrade_audio("coloured_noise", long, RATE, 1.0, draws).astype(np.float64) - 1
        shares.append(above(1000, added))
        loudness = 10 * np.log10((added.reshape(-1, 1600) ** 2).mean(1))
        swells.append(loudness.max() - loudness.min() > 12)
    assert max(shares) - min(shares) > 0.5
    assert 4 < sum(swells) < 20


@pytest.mark.parametrize("severity", LEVELS)
def test_harmless_sound_has_another_level_or_colour_and_nothing_else(severity: float) -> None:
    louder = degraded_audio("gain", severity)
    assert abs(20 * np.log10(np.abs(louder).max() / np.abs(voice()).max())) == pytest.approx(12 * severity, abs=0.01)
    np.testing.assert_allclose(louder / louder.std(), voice() / voice().std(), atol=1e-4)
    spectrum, changed = (np.abs(np.fft.rfft(wave)) for wave in (voice(), degraded_audio("equaliser", severity)))
    loud = spectrum > 0.01 * spectrum.max()
    assert np.abs(20 * np.log10(changed[loud] / spectrum[loud])).max() <= 6.5 * severity
    for clip in ("a", "b", "c", "d"):  # both codecs
        coded = degraded_audio("good_codec", severity, clip)
        assert decibels(voice(), coded - voice()) > 15


def test_the_share_of_lost_packets_is_the_severity_and_packets_are_lost_whole() -> None:
    wave = np.ones(RATE * 40, np.float32)
    for severity in LEVELS:
        degraded = degradations.degrade_audio("dropouts", wave, RATE, severity, SignalDraws(3, "clip", "dropouts"))
        packets = degraded.reshape(-1, round(0.02 * RATE))
        assert set(np.unique(packets.mean(1))) <= {0.0, 1.0}
        assert (degraded == 0).mean() == pytest.approx(severity, abs=0.03)


def test_losses_at_one_severity_are_lost_at_every_higher_one() -> None:
    silent = [degraded_audio("dropouts", s) == 0 for s in LEVELS]
    videos = [degraded_frames("lost_frames", s) for s in LEVELS]
    for less, more in pairwise(silent):
        assert (more | ~less).all()
    kept = [[bool((a == b).all()) for a, b in zip(video, frames(), strict=True)] for video in videos]
    for less_kept, more_kept in zip(kept[1:], kept, strict=False):
        assert all(more or not less for less, more in zip(less_kept, more_kept, strict=True))


def frames(count: int = 12, height: int = 48, width: int = 64) -> list[np.ndarray]:
    grid = np.random.default_rng(2).integers(60, 255, (count, height, width, 3))
    return list(grid.astype(np.uint8))


def degraded_frames(kind: str, severity: float, clip: str = "clip") -> list[np.ndarray]:
    return list(degradations.degrade_frames(kind, frames(), severity, SignalDraws(3, clip, kind)))


@pytest.mark.parametrize("severity", LEVELS)
def test_a_rectangle_hides_its_share_of_every_frame_at_one_position(severity: float) -> None:
    hidden = [
        (degraded != clean).any(2)
        for degraded, clean in zip(degraded_frames("occlusion", severity), frames(), strict=True)
    ]
    whole = np.logical_or.reduce(hidden)
    assert whole.mean() == pytest.approx(severity, abs=0.03)
    rows, columns = np.flatnonzero(whole.any(1)), np.flatnonzero(whole.any(0))
    assert whole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert (degraded_frames("occlusion", 0.5, "other")[0] != degraded_frames("occlusion", 0.5)[0]).any()


def test_a_blurred_edge_is_as_wide_as_the_severity_says() -> None:
    edge = np.zeros((120, 400, 3), np.uint8)
    edge[:, 200:] = 255
    for severity in LEVELS:
        (blurred,) = degradations.degrade_frames("blur", [edge], severity, SignalDraws(3, "clip", "blur"))
        slope = np.diff(blurred[60, :, 0].astype(float))
        column = np.arange(len(slope))
        centre = (slope * column).sum() / slope.sum()
        width = np.sqrt((slope * (column - centre) ** 2).sum() / slope.sum())
        assert width == pytest.approx(severity * 120 / 20, rel=0.15, abs=0.3)


def test_darkness_reduces_the_light_and_adds_grain() -> None:
    grey = [np.full((48, 64, 3), 200, np.uint8)] * 2
    for severity in (0.25, 0.5, 0.75):
        one, two = degradations.degrade_frames("darkness", grey, severity, SignalDraws(3, "clip", "darkness"))
        assert one.mean() == pytest.approx(200 * (1 - severity), abs=0.5)
        assert one.std() == pytest.approx(8 * severity, rel=0.1)
        assert (one != two).any(), "each frame has its own grain"


def test_a_lost_frame_repeats_the_one_before_and_the_share_is_the_severity() -> None:
    many = [np.full((2, 2, 3), k % 251 + 1, np.uint8) for k in range(600)]
    degraded = list(degradations.degrade_frames("lost_frames", many, 0.3, SignalDraws(3, "clip", "lost_frames")))
    lost = [k for k, (a, b) in enumerate(zip(degraded, many, strict=True)) if (a != b).any()]
    assert len(lost) / 600 == pytest.approx(0.3, abs=0.05)
    assert all((degraded[k] == (degraded[k - 1] if k else 0)).all() for k in lost)
    assert not np.stack(
        list(degradations.degrade_frames("lost_frames", many[:5], 1.0, SignalDraws(3, "clip", "lost_frames")))
    ).any()


def test_motion_blur_smears_along_one_line_of_its_length() -> None:
    dot = np.zeros((160, 160, 3), np.uint8)
    dot[80, 80] = 255
    for severity in (0.25, 0.5, 1.0):
        (smeared,) = degradations.degrade_frames("motion_blur", [dot], severity, SignalDraws(3, "clip", "motion_blur"))
        rows, columns = np.nonzero(smeared[..., 0])
        length = np.hypot(np.ptp(rows), np.ptp(columns))
        assert length == pytest.approx(severity * 160 / 4, abs=3)
        offsets = np.stack([rows - rows.mean(), columns - columns.mean()])
        assert np.linalg.svd(offsets @ offsets.T)[1][1] < 0.02 * (offsets**2).sum() + 2, "a line"


def test_sensor_noise_is_independent_in_pixels_colours_and_frames() -> None:
    grey = [np.full((64, 64, 3), 128, np.uint8)] * 2
    one, two = degradations.degrade_frames("sensor_noise", grey, 0.2, SignalDraws(3, "clip", "sensor_noise"))
    assert one.std() == pytest.approx(20, rel=0.05)
    grain = [one[..., 0], one[..., 1], two[..., 0], np.roll(one[..., 0], 1, 0)]
    alike = np.corrcoef([part.ravel().astype(float) for part in grain])
    assert np.abs(alike - np.eye(4)).max() < 0.06


@pytest.mark.parametrize("severity", LEVELS)
def test_a_small_face_is_the_whole_picture_at_its_size(severity: float) -> None:
    white = [np.full((120, 160, 3), 255, np.uint8)] * 2
    degraded = list(degradations.degrade_frames("small_face", white, severity, SignalDraws(3, "clip", "small_face")))
    assert np.array_equal(degraded[0], degraded[1])
    rows, columns = (np.flatnonzero((degraded[0][..., 0] == 255).any(axis)) for axis in (1, 0))
    share = 0.5 - 0.4 * severity
    assert (len(rows), len(columns)) == (round(share * 120), round(share * 160))
    assert set(np.unique(degraded[0])) == {128, 255}


@pytest.mark.parametrize("kind", ["low_resolution", "jpeg", "blur", "motion_blur", "sensor_noise"])
def test_pictures_lose_more_the_higher_the_severity(kind: str) -> None:
    smooth = [np.kron(frame[:6, :8], np.ones((20, 20, 1), np.uint8)) for frame in frames(2)]
    errors = []
    for severity in LEVELS:
        degraded = degradations.degrade_frames(kind, smooth, severity, SignalDraws(3, "clip", kind))
        errors.append(float(np.mean([np.abs(a - b.astype(float)) for a, b in zip(degraded, smooth, strict=True)])))
    assert errors[::2] == sorted(errors[::2])
    assert errors[0] < errors[-1] / 2


def test_harmless_pictures_are_brighter_darker_larger_or_smaller() -> None:
    grey = [np.full((100, 120, 3), 150, np.uint8)]
    light, shapes = set(), set()
    for clip in "abcdefgh":
        (other,) = degradations.degrade_frames("brightness", grey, 1.0, SignalDraws(3, clip, "brightness"))
        light.add(round(float(other.mean())))
        (resized,) = degradations.degrade_frames("size", grey, 1.0, SignalDraws(3, clip, "size"))
        shapes.add(resized.shape[:2])
    assert light == {120, 180}
    assert shapes == {(70, 84), (140, 168)}


TEXTS = ("I really liked this film, it was great fun", "the plot was weak and the acting grate", "a night at the opera")
WORDS = Vocabulary.from_texts(TEXTS)
LONG = " ".join(TEXTS * 40)


def degraded_text(severity: float, clip: str = "clip") -> str:
    return degradations.degrade_text("word_errors", LONG, severity, SignalDraws(3, clip, "word_errors"), WORDS)


@pytest.mark.parametrize("severity", LEVELS)
def test_the_word_error_rate_is_the_severity(severity: float) -> None:
    clean, degraded = LONG.split(), degraded_text(severity).split()
    letters = {word: chr(200 + number) for number, word in enumerate(sorted({*clean, *degraded}))}
    errors = distance("".join(letters[w] for w in clean), "".join(letters[w] for w in degraded))
    assert errors / len(clean) == pytest.approx(severity, rel=0.2, abs=0.07)


def test_wrong_words_come_from_the_vocabulary_and_sound_alike() -> None:
    assert key("night") == key("knight")
    assert key("great") == key("grate")
    assert key("film") != key("plot")
    assert WORDS.nearest("great")[0] == "grate"
    assert WORDS.nearest("grade")[0] in ("grate", "great")
    assert WORDS.confuse("(great),", 0.0) == "(grate),"
    assert WORDS.confuse("42", 0.5) == "42"
    plain = {word.strip(",").lower() for word in degraded_text(1.0).split()}
    assert plain <= set(WORDS.words)


@pytest.mark.parametrize("severity", LEVELS)
def test_the_share_of_dropped_and_of_mistyped_words_is_the_severity(severity: float) -> None:
    words = LONG.split()
    dropped = degradations.degrade_text("dropped_words", LONG, severity, SignalDraws(3, "clip", "dropped_words"), WORDS)
    assert 1 - len(dropped.split()) / len(words) == pytest.approx(severity, abs=0.04)
    remaining = iter(words)
    assert all(word in remaining for word in dropped.split())
    typed = degradations.degrade_text("typos", LONG, severity, SignalDraws(3, "clip", "typos"), WORDS).split()
    wrong = [(word, other) for word, other in zip(words, typed, strict=True) if word != other]
    assert len(wrong) / len(words) == pytest.approx(severity, abs=0.07)
    assert all(distance(word, other) <= 2 for word, other in wrong)


def test_another_way_of_writing_has_the_same_words() -> None:
    text = "I do not think it is good, but they have tried: it was not bad!"
    written = {
        degradations.degrade_text("writing", text, 1.0, SignalDraws(3, clip, "writing"), WORDS) for clip in "abcdef"
    }
    spoken = "i don't think it's good but they've tried it wasn't bad"
    assert written == {spoken, spoken.upper()}


def test_an_empty_text_and_an_empty_vocabulary_change_nothing() -> None:
    draws = SignalDraws(3, "clip", "word_errors")
    assert degradations.degrade_text("word_errors", "", 1.0, draws, WORDS) == ""
    assert degradations.degrade_text("word_errors", "one two", 1.0, draws, Vocabulary.from_texts(())) == "one two"


def text_bytes(kind: str, severity: float, clip: str) -> bytes:
    return degradations.degrade_text(kind, LONG, severity, SignalDraws(3, clip, kind), WORDS).encode()


def audio_bytes(kind: str, severity: float, clip: str) -> bytes:
    return degraded_audio(kind, severity, clip).tobytes()


def vision_bytes(kind: str, severity: float, clip: str) -> bytes:
    return np.stack(degraded_frames(kind, severity, clip)).tobytes()


def all_kinds() -> list[tuple[str, Callable[[float, str], bytes]]]:
    """Each kind with a function of severity and clip that returns the degraded signal as bytes."""
    kinds: list[tuple[str, Callable[[float, str], bytes]]] = [(kind, partial(text_bytes, kind)) for kind in TEXT]
    kinds += [(kind, partial(audio_bytes, kind)) for kind in AUDIO]
    kinds += [(kind, partial(vision_bytes, kind)) for kind in VISION]
    return kinds


@pytest.mark.parametrize(("kind", "make"), all_kinds(), ids=[kind for kind, _ in all_kinds()])
def test_severity_0_returns_the_input_and_results_repeat(kind: str, make: Callable[[float, str], bytes]) -> None:
    clean = {"text": LONG.encode(), "audio": voice().tobytes(), "vision": np.stack(frames()).tobytes()}[MODALITY[kind]]
    assert make(0.0, "clip") == clean
    assert make(0.9, "clip") == make(0.9, "clip") != clean
    if kind not in ("codec", "band_limit", "clipping", "blur", "low_resolution", "jpeg"):  # these draw no numbers
        assert len({make(0.9, clip) for clip in "abcdefgh"}) > 1


@pytest.mark.parametrize("kind", [*AUDIO, *VISION])
def test_the_input_is_not_changed(kind: str) -> None:
    wave, images = voice(), frames()
    if kind in AUDIO:
        degradations.degrade_audio(kind, wave, RATE, 0.7, SignalDraws(3, "clip", kind), OTHERS)
    else:
        list(degradations.degrade_frames(kind, images, 0.7, SignalDraws(3, "clip", kind)))
    assert wave.tobytes() == voice().tobytes()
    assert np.array_equal(np.stack(images), np.stack(frames()))
    assert not np.isnan(degraded_audio(kind, 0.7)).any() if kind in AUDIO else True


def test_silence_stays_silent_under_every_kind() -> None:
    silence = np.zeros(1000, np.float32)
    for kind in AUDIO:
        assert not degradations.degrade_audio(kind, silence, RATE, 0.5, SignalDraws(3, "clip", kind), OTHERS).any()
