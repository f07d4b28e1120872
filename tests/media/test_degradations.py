"""Degraded sound, pictures and words: the amounts that a severity stands for, measured; the same again; nested."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from qamoe.media import degradations
from qamoe.media.degradations import MODALITY, PICTURES, SOUND, drawn, snr_db
from qamoe.media.word_confusion import Vocabulary, distance, key

RATE = 16_000
LEVELS = (0.1, 0.25, 0.5, 0.75, 1.0)


def voice(seconds: float = 1.5, pitch: float = 140.0) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    buzz = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 40))
    return (0.1 * buzz * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * time))).astype(np.float32)


OTHERS = tuple(voice(s, p) for s, p in ((0.7, 90), (1.1, 120), (2.0, 200), (1.6, 240)))


def heard(kind: str, severity: float, clip: str = "clip") -> np.ndarray:
    return degradations.sound(kind, voice(), RATE, severity, drawn(3, clip, kind), OTHERS)


def decibels(wave: np.ndarray, noise: np.ndarray) -> float:
    return 10 * np.log10((wave.astype(np.float64) ** 2).mean() / (noise.astype(np.float64) ** 2).mean())


@pytest.mark.parametrize("kind", ["noise", "babble"])
@pytest.mark.parametrize("severity", LEVELS)
def test_the_measured_ratio_of_signal_to_noise_is_the_severitys(kind: str, severity: float) -> None:
    made = heard(kind, severity)
    assert decibels(voice(), made.astype(np.float64) - voice()) == pytest.approx(snr_db(severity), abs=0.5)
    assert (snr_db(0.5), snr_db(1.0)) == (10, -10)


def test_babble_is_made_of_the_other_voices_and_noise_of_none() -> None:
    def spectrum(wave: np.ndarray) -> np.ndarray:
        return np.abs(np.fft.rfft(wave.astype(np.float64))) ** 2

    hertz = np.fft.rfftfreq(len(voice()), 1 / RATE)
    low = hertz < 1000
    babble, noise = (spectrum(heard(kind, 1.0) - voice()) for kind in ("babble", "noise"))
    assert babble[low].sum() / babble.sum() > 0.9
    assert noise[low].sum() / noise.sum() == pytest.approx(1000 / 8000, abs=0.02)
    assert np.array_equal(degradations.sound("babble", voice(), RATE, 1.0, drawn(3, "clip", "babble"), ()), voice())


def test_a_bad_telephone_narrows_the_band_and_gets_coarser() -> None:
    hertz = np.fft.rfftfreq(len(voice()), 1 / RATE)
    power = np.abs(np.fft.rfft(heard("codec", 1.0).astype(np.float64))) ** 2
    whole = np.abs(np.fft.rfft(voice().astype(np.float64))) ** 2
    assert whole[hertz > 1600].sum() > 0.01 * whole.sum()
    assert power[hertz > 1600].sum() < 1e-6 * power.sum()
    errors = [decibels(voice(), heard("codec", s) - voice()) for s in LEVELS]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 20
    assert errors[-1] < 15


def test_the_share_of_lost_packets_is_the_severity_and_they_are_whole() -> None:
    wave = np.ones(RATE * 40, np.float32)
    for severity in LEVELS:
        made = degradations.sound("dropouts", wave, RATE, severity, drawn(3, "clip", "dropouts"))
        packets = made.reshape(-1, round(0.02 * RATE))
        assert set(np.unique(packets.mean(1))) <= {0.0, 1.0}
        assert (made == 0).mean() == pytest.approx(severity, abs=0.03)


def test_what_is_lost_at_one_severity_is_lost_at_every_higher_one() -> None:
    silent = [heard("dropouts", s) == 0 for s in LEVELS]
    black = [shown("lost_frames", s) for s in LEVELS]
    for less, more in pairwise(silent):
        assert (more | ~less).all()
    kept = [[bool((a == b).all()) for a, b in zip(made, film(), strict=True)] for made in black]
    for less_kept, more_kept in zip(kept[1:], kept, strict=False):
        assert all(more or not less for less, more in zip(less_kept, more_kept, strict=True))


def film(count: int = 12, height: int = 48, width: int = 64) -> list[np.ndarray]:
    grid = np.random.default_rng(2).integers(60, 255, (count, height, width, 3))
    return list(grid.astype(np.uint8))


def shown(kind: str, severity: float, clip: str = "clip") -> list[np.ndarray]:
    return list(degradations.pictures(kind, film(), severity, drawn(3, clip, kind)))


@pytest.mark.parametrize("severity", LEVELS)
def test_a_rectangle_hides_its_share_of_every_picture_at_one_place(severity: float) -> None:
    hidden = [(made != given).any(2) for made, given in zip(shown("occlusion", severity), film(), strict=True)]
    whole = np.logical_or.reduce(hidden)
    assert whole.mean() == pytest.approx(severity, abs=0.03)
    rows, columns = np.flatnonzero(whole.any(1)), np.flatnonzero(whole.any(0))
    assert whole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert (shown("occlusion", 0.5, "other")[0] != shown("occlusion", 0.5)[0]).any()


def test_a_blurred_edge_is_as_wide_as_the_severity_says() -> None:
    edge = np.zeros((120, 400, 3), np.uint8)
    edge[:, 200:] = 255
    for severity in LEVELS:
        (made,) = degradations.pictures("blur", [edge], severity, drawn(3, "clip", "blur"))
        slope = np.diff(made[60, :, 0].astype(float))
        place = np.arange(len(slope))
        centre = (slope * place).sum() / slope.sum()
        width = np.sqrt((slope * (place - centre) ** 2).sum() / slope.sum())
        assert width == pytest.approx(severity * 120 / 20, rel=0.15, abs=0.3)


def test_darkness_takes_the_light_and_leaves_the_grain() -> None:
    grey = [np.full((48, 64, 3), 200, np.uint8)] * 2
    for severity in (0.25, 0.5, 0.75):
        one, two = degradations.pictures("darkness", grey, severity, drawn(3, "clip", "darkness"))
        assert one.mean() == pytest.approx(200 * (1 - severity), abs=0.5)
        assert one.std() == pytest.approx(8 * severity, rel=0.1)
        assert (one != two).any(), "each picture has grain of its own"


def test_a_lost_picture_is_the_one_before_and_the_share_is_the_severity() -> None:
    many = [np.full((2, 2, 3), k % 251 + 1, np.uint8) for k in range(600)]
    made = list(degradations.pictures("lost_frames", many, 0.3, drawn(3, "clip", "lost_frames")))
    lost = [k for k, (a, b) in enumerate(zip(made, many, strict=True)) if (a != b).any()]
    assert len(lost) / 600 == pytest.approx(0.3, abs=0.05)
    assert all((made[k] == (made[k - 1] if k else 0)).all() for k in lost)
    assert not np.stack(
        list(degradations.pictures("lost_frames", many[:5], 1.0, drawn(3, "clip", "lost_frames")))
    ).any()


TEXTS = ("I really liked this film, it was great fun", "the plot was weak and the acting grate", "a night at the opera")
WORDS = Vocabulary.of(TEXTS)
LONG = " ".join(TEXTS * 40)


def misheard(severity: float, clip: str = "clip") -> str:
    return degradations.word_errors(LONG, severity, drawn(3, clip, "word_errors"), WORDS)


@pytest.mark.parametrize("severity", LEVELS)
def test_the_word_error_rate_is_the_severity(severity: float) -> None:
    given, made = LONG.split(), misheard(severity).split()
    letters = {word: chr(200 + place) for place, word in enumerate(sorted({*given, *made}))}
    errors = distance("".join(letters[w] for w in given), "".join(letters[w] for w in made))
    assert errors / len(given) == pytest.approx(severity, rel=0.2, abs=0.07)


def test_wrong_words_come_from_the_vocabulary_and_sound_alike() -> None:
    assert key("night") == key("knight")
    assert key("great") == key("grate")
    assert key("film") != key("plot")
    assert WORDS.nearest("great")[0] == "grate"
    assert WORDS.nearest("grade")[0] in ("grate", "great")
    assert WORDS.mistaken("(great),", 0.0) == "(grate),"
    assert WORDS.mistaken("42", 0.5) == "42"
    plain = {word.strip(",").lower() for word in misheard(1.0).split()}
    assert plain <= set(WORDS.words)


def test_texts_without_words_and_a_vocabulary_without_any() -> None:
    draws = drawn(3, "clip", "word_errors")
    assert degradations.word_errors("", 1.0, draws, WORDS) == ""
    assert degradations.word_errors("one two", 1.0, draws, Vocabulary.of(())) == "one two"


def every() -> list[tuple[str, Callable[[float, str], bytes]]]:
    found: list[tuple[str, Callable[[float, str], bytes]]] = [
        ("word_errors", lambda s, clip: misheard(s, clip).encode())
    ]
    found += [(kind, lambda s, clip, kind=kind: heard(kind, s, clip).tobytes()) for kind in SOUND]
    found += [(kind, lambda s, clip, kind=kind: np.stack(shown(kind, s, clip)).tobytes()) for kind in PICTURES]
    return found


@pytest.mark.parametrize(("kind", "make"), every(), ids=[kind for kind, _ in every()])
def test_severity_0_gives_the_input_back_and_the_same_comes_again(
    kind: str, make: Callable[[float, str], bytes]
) -> None:
    given = {"text": LONG.encode(), "audio": voice().tobytes(), "vision": np.stack(film()).tobytes()}[MODALITY[kind]]
    assert make(0.0, "clip") == given
    assert make(0.5, "clip") == make(0.5, "clip") != given
    if kind not in ("codec", "blur"):  # which draw nothing
        assert make(0.5, "clip") != make(0.5, "another")


@pytest.mark.parametrize("kind", [*SOUND, *PICTURES])
def test_the_input_is_not_changed(kind: str) -> None:
    wave, pictures = voice(), film()
    if kind in SOUND:
        degradations.sound(kind, wave, RATE, 0.7, drawn(3, "clip", kind), OTHERS)
    else:
        list(degradations.pictures(kind, pictures, 0.7, drawn(3, "clip", kind)))
    assert wave.tobytes() == voice().tobytes()
    assert np.array_equal(np.stack(pictures), np.stack(film()))
    assert not np.isnan(heard(kind, 0.7)).any() if kind in SOUND else True


def test_silence_stays_silent_whatever_is_added() -> None:
    nothing = np.zeros(1000, np.float32)
    for kind in SOUND:
        assert not degradations.sound(kind, nothing, RATE, 0.5, drawn(3, "clip", kind), OTHERS).any()
