"""Degraded audio, frames and transcripts: each severity has its measured amount; results repeat and nest."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from qamoe.media import degradations
from qamoe.media.degradations import AUDIO, MODALITY, VISION, draws_for, snr_db
from qamoe.media.word_confusion import Vocabulary, distance, key

RATE = 16_000
LEVELS = (0.1, 0.25, 0.5, 0.75, 1.0)


def voice(seconds: float = 1.5, pitch: float = 140.0) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    buzz = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 40))
    return (0.1 * buzz * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * time))).astype(np.float32)


OTHERS = tuple(voice(s, p) for s, p in ((0.7, 90), (1.1, 120), (2.0, 200), (1.6, 240)))


def degraded_audio(kind: str, severity: float, clip: str = "clip") -> np.ndarray:
    return degradations.degrade_audio(kind, voice(), RATE, severity, draws_for(3, clip, kind), OTHERS)


def decibels(wave: np.ndarray, noise: np.ndarray) -> float:
    return 10 * np.log10((wave.astype(np.float64) ** 2).mean() / (noise.astype(np.float64) ** 2).mean())


@pytest.mark.parametrize("kind", ["noise", "babble"])
@pytest.mark.parametrize("severity", LEVELS)
def test_the_measured_signal_to_noise_ratio_matches_the_severity(kind: str, severity: float) -> None:
    degraded = degraded_audio(kind, severity)
    assert decibels(voice(), degraded.astype(np.float64) - voice()) == pytest.approx(snr_db(severity), abs=0.5)
    assert (snr_db(0.5), snr_db(1.0)) == (10, -10)


def test_babble_is_made_of_the_other_voices_and_noise_is_white() -> None:
    def spectrum(wave: np.ndarray) -> np.ndarray:
        return np.abs(np.fft.rfft(wave.astype(np.float64))) ** 2

    hertz = np.fft.rfftfreq(len(voice()), 1 / RATE)
    low = hertz < 1000
    babble, noise = (spectrum(degraded_audio(kind, 1.0) - voice()) for kind in ("babble", "noise"))
    assert babble[low].sum() / babble.sum() > 0.9
    assert noise[low].sum() / noise.sum() == pytest.approx(1000 / 8000, abs=0.02)
    assert np.array_equal(
        degradations.degrade_audio("babble", voice(), RATE, 1.0, draws_for(3, "clip", "babble"), ()), voice()
    )


def test_a_bad_telephone_narrows_the_band_and_lowers_the_resolution() -> None:
    hertz = np.fft.rfftfreq(len(voice()), 1 / RATE)
    power = np.abs(np.fft.rfft(degraded_audio("codec", 1.0).astype(np.float64))) ** 2
    whole = np.abs(np.fft.rfft(voice().astype(np.float64))) ** 2
    assert whole[hertz > 1600].sum() > 0.01 * whole.sum()
    assert power[hertz > 1600].sum() < 1e-6 * power.sum()
    errors = [decibels(voice(), degraded_audio("codec", s) - voice()) for s in LEVELS]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 20
    assert errors[-1] < 15


def test_the_share_of_lost_packets_is_the_severity_and_packets_are_lost_whole() -> None:
    wave = np.ones(RATE * 40, np.float32)
    for severity in LEVELS:
        degraded = degradations.degrade_audio("dropouts", wave, RATE, severity, draws_for(3, "clip", "dropouts"))
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
    return list(degradations.degrade_frames(kind, frames(), severity, draws_for(3, clip, kind)))


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
        (blurred,) = degradations.degrade_frames("blur", [edge], severity, draws_for(3, "clip", "blur"))
        slope = np.diff(blurred[60, :, 0].astype(float))
        column = np.arange(len(slope))
        centre = (slope * column).sum() / slope.sum()
        width = np.sqrt((slope * (column - centre) ** 2).sum() / slope.sum())
        assert width == pytest.approx(severity * 120 / 20, rel=0.15, abs=0.3)


def test_darkness_reduces_the_light_and_adds_grain() -> None:
    grey = [np.full((48, 64, 3), 200, np.uint8)] * 2
    for severity in (0.25, 0.5, 0.75):
        one, two = degradations.degrade_frames("darkness", grey, severity, draws_for(3, "clip", "darkness"))
        assert one.mean() == pytest.approx(200 * (1 - severity), abs=0.5)
        assert one.std() == pytest.approx(8 * severity, rel=0.1)
        assert (one != two).any(), "each frame has its own grain"


def test_a_lost_frame_repeats_the_one_before_and_the_share_is_the_severity() -> None:
    many = [np.full((2, 2, 3), k % 251 + 1, np.uint8) for k in range(600)]
    degraded = list(degradations.degrade_frames("lost_frames", many, 0.3, draws_for(3, "clip", "lost_frames")))
    lost = [k for k, (a, b) in enumerate(zip(degraded, many, strict=True)) if (a != b).any()]
    assert len(lost) / 600 == pytest.approx(0.3, abs=0.05)
    assert all((degraded[k] == (degraded[k - 1] if k else 0)).all() for k in lost)
    assert not np.stack(
        list(degradations.degrade_frames("lost_frames", many[:5], 1.0, draws_for(3, "clip", "lost_frames")))
    ).any()


TEXTS = ("I really liked this film, it was great fun", "the plot was weak and the acting grate", "a night at the opera")
WORDS = Vocabulary.from_texts(TEXTS)
LONG = " ".join(TEXTS * 40)


def degraded_text(severity: float, clip: str = "clip") -> str:
    return degradations.word_errors(LONG, severity, draws_for(3, clip, "word_errors"), WORDS)


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


def test_an_empty_text_and_an_empty_vocabulary_change_nothing() -> None:
    draws = draws_for(3, "clip", "word_errors")
    assert degradations.word_errors("", 1.0, draws, WORDS) == ""
    assert degradations.word_errors("one two", 1.0, draws, Vocabulary.from_texts(())) == "one two"


def audio_bytes(kind: str, severity: float, clip: str) -> bytes:
    return degraded_audio(kind, severity, clip).tobytes()


def vision_bytes(kind: str, severity: float, clip: str) -> bytes:
    return np.stack(degraded_frames(kind, severity, clip)).tobytes()


def all_kinds() -> list[tuple[str, Callable[[float, str], bytes]]]:
    """Each kind with a function of severity and clip that returns the degraded signal as bytes."""
    kinds: list[tuple[str, Callable[[float, str], bytes]]] = [
        ("word_errors", lambda s, clip: degraded_text(s, clip).encode())
    ]
    kinds += [(kind, partial(audio_bytes, kind)) for kind in AUDIO]
    kinds += [(kind, partial(vision_bytes, kind)) for kind in VISION]
    return kinds


@pytest.mark.parametrize(("kind", "make"), all_kinds(), ids=[kind for kind, _ in all_kinds()])
def test_severity_0_returns_the_input_and_results_repeat(kind: str, make: Callable[[float, str], bytes]) -> None:
    clean = {"text": LONG.encode(), "audio": voice().tobytes(), "vision": np.stack(frames()).tobytes()}[MODALITY[kind]]
    assert make(0.0, "clip") == clean
    assert make(0.5, "clip") == make(0.5, "clip") != clean
    if kind not in ("codec", "blur"):  # these two draw no random numbers
        assert make(0.5, "clip") != make(0.5, "another")


@pytest.mark.parametrize("kind", [*AUDIO, *VISION])
def test_the_input_is_not_changed(kind: str) -> None:
    wave, images = voice(), frames()
    if kind in AUDIO:
        degradations.degrade_audio(kind, wave, RATE, 0.7, draws_for(3, "clip", kind), OTHERS)
    else:
        list(degradations.degrade_frames(kind, images, 0.7, draws_for(3, "clip", kind)))
    assert wave.tobytes() == voice().tobytes()
    assert np.array_equal(np.stack(images), np.stack(frames()))
    assert not np.isnan(degraded_audio(kind, 0.7)).any() if kind in AUDIO else True


def test_silence_stays_silent_under_every_kind() -> None:
    silence = np.zeros(1000, np.float32)
    for kind in AUDIO:
        assert not degradations.degrade_audio(kind, silence, RATE, 0.5, draws_for(3, "clip", kind), OTHERS).any()
