"""Degrade the raw signals (audio, video frames and transcript) before features are extracted.

A severity in [0, 1] stands for a physical amount, documented at each kind (our decisions). Severity 0 returns the input
itself; the input is never changed. The draws do not depend on the severity, so whatever is lost at one severity is lost
at every higher one. Harmless kinds change a recording without damage: their severity says how much, and the severity
of their damage is 0. To add a kind, write one function in the module of its modality.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from qamoe.media import picture_degradations, sound_degradations, word_degradations
from qamoe.media.picture_degradations import Frame
from qamoe.media.sound_degradations import Wave
from qamoe.media.word_confusion import Vocabulary
from qamoe.signal_rng import SignalDraws

VERSION = 2  # 2: numpy's Philox; the ratio to noise is that of the part with speech; real codecs
VOICES = 4  # in kind babble

AUDIO, VISION, TEXT = sound_degradations.KINDS, picture_degradations.KINDS, word_degradations.KINDS
HARMLESS = (*sound_degradations.HARMLESS, *picture_degradations.HARMLESS, *word_degradations.HARMLESS)
# Kinds that only the test split may have (our decision), so that a claim about damage never trained can be made.
NEVER_TRAINED = (
    *("codec", "reverb", "clipping", "tones", "equaliser", "good_codec"),
    *("motion_blur", "sensor_noise", "low_resolution", "jpeg", "lost_frames", "size"),
    *("typos", "dropped_words"),
)
MODALITY = {**dict.fromkeys(TEXT, "text"), **dict.fromkeys(AUDIO, "audio"), **dict.fromkeys(VISION, "vision")}


def slice_of(kind: str) -> str:
    """Return the slice of the evaluation that has the cells of a kind."""
    return "harmless" if kind in HARMLESS else "signals"


def cells(severities: Mapping[str, Sequence[float]]) -> Iterator[tuple[str, str, float]]:
    """Yield name, kind and severity of each cell of degraded media; severities ascend, and 0 is not among them."""
    for kind, levels in severities.items():
        for severity in sorted(levels):
            yield f"{slice_of(kind)}-{MODALITY[kind]}-{kind}-{severity:g}", kind, severity


def degrade_audio(
    kind: str, wave: Wave, rate: float, severity: float, draws: SignalDraws, others: Sequence[Wave] = ()
) -> Wave:
    """Degrade audio (N,) at `rate` Hz by a kind of AUDIO.

    `others`, each (N',) at `rate`, are the voices of kind babble or the recording of kind recorded_noise.
    """
    return AUDIO[kind](wave, rate, severity, draws, others) if severity > 0 and len(wave) else wave


def degrade_frames(kind: str, seen: Iterable[Frame], severity: float, draws: SignalDraws) -> Iterator[Frame]:
    """Degrade video frames (H, W, 3) uint8 by a kind of VISION, one after the other."""
    return VISION[kind](seen, severity, draws) if severity > 0 else iter(seen)


def degrade_text(kind: str, text: str, severity: float, draws: SignalDraws, vocabulary: Vocabulary) -> str:
    """Degrade a transcript by a kind of TEXT; `vocabulary` has the words that a recogniser may confuse them with."""
    return TEXT[kind](text, severity, draws, vocabulary) if severity > 0 else text
