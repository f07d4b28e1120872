"""Properties of degraded audio, frames and transcripts, for any clip, draws and severities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qamoe.media import degradations
from qamoe.media.degradations import AUDIO, TEXT, VISION
from qamoe.media.sound_degradations import speech_power
from qamoe.media.word_confusion import Vocabulary
from qamoe.signal_rng import SignalDraws

pytestmark = pytest.mark.integration

RATE = 8000.0
PACKET = 160  # samples that are lost together: 20 ms
LOSING = ("occlusion", "lost_frames")  # kinds that replace pixels
VOCABULARY = Vocabulary.from_texts(("the plot was weak and the acting grate", "a great night at the opera, a knight"))

severities = st.just(1.0) | st.floats(0.001, 1)
partial = st.floats(0.05, 0.95)
seeds = st.integers(0, 2**32 - 1)
clip_ids = st.text("ab/é", max_size=8)  # an alphabet of all of Unicode takes seconds to prepare


@st.composite
def waves(draw: st.DrawFn, longest: int = 900) -> np.ndarray:
    """Audio of any length, with silence in it, or all silent."""
    wave = np.random.default_rng(draw(seeds)).standard_normal(draw(st.integers(0, longest))).astype(np.float32)
    wave *= np.float32(draw(st.sampled_from([0.0, 1e-3, 0.1, 1.0])))
    wave[: draw(st.integers(0, 300))] = 0.0
    return wave


@st.composite
def videos(draw: st.DrawFn, fewest: int = 0, smallest: int = 1) -> list[np.ndarray]:
    """Up to five frames of one size without a black or a grey pixel."""
    count, sizes = draw(st.integers(fewest, 5)), st.integers(smallest, 24)
    height, width = draw(sizes), draw(sizes)
    pixels = np.random.default_rng(draw(seeds)).integers(129, 256, (count, height, width, 3))
    return list(pixels.astype(np.uint8))


texts = st.lists(st.sampled_from(["the", "Plot,", "42", "night", "héros", "…", "grate."]), max_size=12).map(" ".join)
audio_kinds, vision_kinds, text_kinds = (st.sampled_from(list(kinds)) for kinds in (AUDIO, VISION, TEXT))


def heard(kind: str, wave: np.ndarray, severity: float, seed: int, clip: str = "a") -> np.ndarray:
    others = [np.sin(np.arange(n) / 5).astype(np.float32) for n in (300, 0, 70, 400)]
    return degradations.degrade_audio(kind, wave, RATE, severity, SignalDraws(seed, clip, kind), others)


def seen(kind: str, video: list[np.ndarray], severity: float, seed: int, clip: str = "a") -> list[np.ndarray]:
    return list(degradations.degrade_frames(kind, video, severity, SignalDraws(seed, clip, kind)))


@given(kind=audio_kinds, wave=waves(), severity=severities, seed=seeds)
def test_degraded_audio_has_the_length_and_dtype_of_the_clip(
    kind: str, wave: np.ndarray, severity: float, seed: int
) -> None:
    before = wave.copy()
    degraded = heard(kind, wave, severity, seed)
    assert (degraded.shape, degraded.dtype) == (wave.shape, np.float32)
    assert np.isfinite(degraded).all()
    assert wave.tobytes() == before.tobytes()
    assert wave.any() or not degraded.any(), "silence stays silent"


@given(kind=vision_kinds.filter(lambda kind: kind != "size"), video=videos(), severity=severities, seed=seeds)
def test_degraded_frames_have_the_number_shape_and_dtype_of_the_clip(
    kind: str, video: list[np.ndarray], severity: float, seed: int
) -> None:
    before = [frame.copy() for frame in video]
    degraded = seen(kind, video, severity, seed)
    assert [(frame.shape, frame.dtype) for frame in degraded] == [(frame.shape, np.uint8) for frame in video]
    assert all(np.array_equal(a, b) for a, b in zip(video, before, strict=True))


@given(
    audio=audio_kinds,
    vision=vision_kinds,
    words=text_kinds,
    wave=waves(),
    video=videos(),
    text=texts | st.text("a é\t\n", max_size=20),
    seed=seeds,
)
def test_severity_0_changes_nothing(
    audio: str, vision: str, words: str, wave: np.ndarray, video: list[np.ndarray], text: str, seed: int
) -> None:
    assert heard(audio, wave, 0.0, seed).tobytes() == wave.tobytes()
    kept = seen(vision, video, 0.0, seed)
    assert all(np.array_equal(a, b) for a, b in zip(kept, video, strict=True))
    assert degradations.degrade_text(words, text, 0.0, SignalDraws(seed, "a", words), VOCABULARY) == text


@given(wave=waves(8000), video=videos(), seed=seeds)
def test_severity_1_of_a_kind_that_loses_leaves_nothing(wave: np.ndarray, video: list[np.ndarray], seed: int) -> None:
    assert not heard("dropouts", wave, 1.0, seed).any()
    assert all((frame == 128).all() for frame in seen("occlusion", video, 1.0, seed))
    assert not any(frame.any() for frame in seen("lost_frames", video, 1.0, seed))


@given(wave=waves(), kind=st.sampled_from(LOSING), video=videos(1, 8), low=partial, high=partial, seed=seeds)
def test_what_is_lost_stays_lost_as_the_severity_rises(
    wave: np.ndarray, kind: str, video: list[np.ndarray], low: float, high: float, seed: int
) -> None:
    low, high = sorted([low, high])
    less, more = heard("dropouts", wave, low, seed), heard("dropouts", wave, high, seed)
    assert np.array_equal(less[more != 0], wave[more != 0])
    for frame, some, most in zip(video, seen(kind, video, low, seed), seen(kind, video, high, seed), strict=True):
        assert np.array_equal(some[most == frame], frame[most == frame])


@given(length=st.integers(0, 2000), severity=severities, seed=seeds)
def test_a_packet_is_lost_or_kept_as_a_whole(length: int, severity: float, seed: int) -> None:
    kept = heard("dropouts", np.ones(length, np.float32), severity, seed)
    assert all(len(set(kept[start : start + PACKET].tolist())) == 1 for start in range(0, length, PACKET))


@given(
    kind=st.sampled_from(["noise", "coloured_noise", "babble", "recorded_noise", "tones"]),
    wave=waves(2000),
    severity=severities,
    seed=seeds,
)
def test_noise_has_the_power_of_its_severity_below_that_of_the_speech(
    kind: str, wave: np.ndarray, severity: float, seed: int
) -> None:
    """In double precision: near 30 dB the noise of a loud clip has few bits of a float32."""
    signal = wave.astype(np.float64)
    added = heard(kind, wave, severity, seed).astype(np.float64) - signal
    if wave.any():
        ratio = 10 * np.log10(speech_power(wave, RATE) / (added**2).mean())
        assert abs(ratio - (30 - 40 * severity)) < 0.01


@given(severity=severities, video=videos(), seed=seeds)
def test_a_rectangle_hides_its_share_up_to_whole_rows_and_columns(
    severity: float, video: list[np.ndarray], seed: int
) -> None:
    for frame, shown in zip(video, seen("occlusion", video, severity, seed), strict=True):
        hidden = (shown == 128).all(-1)
        height, width = hidden.shape
        rows, columns = int(hidden.any(1).sum()), int(hidden.any(0).sum())
        assert hidden.sum() == rows * columns, "one rectangle"
        assert np.array_equal(shown[~hidden], frame[~hidden])
        if hidden.any():
            assert abs(rows - height * severity**0.5) <= 0.5
            assert abs(columns - width * severity**0.5) <= 0.5


def degraded_clip(kind: str, clip: str, severity: float, seed: int) -> bytes:
    """A constant clip under any kind; it differs from another only by its draws."""
    if kind in AUDIO:
        return heard(kind, np.ones(500, np.float32), severity, seed, clip).tobytes()
    if kind in VISION:
        video = [np.full((6, 6, 3), 200, np.uint8)] * 3
        return b"".join(frame.tobytes() for frame in seen(kind, video, severity, seed, clip))
    draws = SignalDraws(seed, clip, kind)
    return degradations.degrade_text(kind, "the plot was weak", severity, draws, VOCABULARY).encode()


@given(
    kind=st.sampled_from([*AUDIO, *VISION, *TEXT]),
    clips=st.lists(clip_ids, min_size=1, max_size=4, unique=True),
    severity=severities,
    seed=seeds,
)
def test_a_clip_is_degraded_alike_in_any_order(kind: str, clips: list[str], severity: float, seed: int) -> None:
    forwards = {clip: degraded_clip(kind, clip, severity, seed) for clip in clips}
    backwards = {clip: degraded_clip(kind, clip, severity, seed) for clip in reversed(clips)}
    assert forwards == backwards


@given(text=texts, severity=severities, seed=seeds)
def test_words_that_are_not_hit_stay_in_their_order(text: str, severity: float, seed: int) -> None:
    """A word is replaced, left out or followed by one of the vocabulary: never by a word of another kind."""
    words = text.split()
    draws = SignalDraws(seed, "a", "word_errors")
    heard_words = degradations.degrade_text("word_errors", text, severity, draws, VOCABULARY).split()
    plain = {word.strip(",.…").lower() for word in heard_words if word not in words}
    assert plain <= set(VOCABULARY.words)
    drawn = draws.uniform(4 * max(1, len(words))).reshape(-1, 4)[: len(words), 0]
    remaining = iter(heard_words)
    assert all(word in remaining for word, kept in zip(words, (drawn >= severity).tolist(), strict=True) if kept)


@given(text=texts, severity=severities, seed=seeds)
def test_without_a_vocabulary_no_word_changes(text: str, severity: float, seed: int) -> None:
    draws = SignalDraws(seed, "a", "word_errors")
    assert degradations.degrade_text("word_errors", text, severity, draws, Vocabulary.from_texts(())) == " ".join(
        text.split()
    )
