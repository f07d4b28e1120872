"""Damage a transcript: each kind is one function of text, severity, draws and vocabulary.

The amounts are our decisions. What is lost or wrong at one severity is so at every higher one.
"""

import re
from collections.abc import Callable

from qamoe.media.word_confusion import Vocabulary
from qamoe.signal_rng import SignalDraws

TextDegradation = Callable[[str, float, SignalDraws, Vocabulary], str]

_NEIGHBOURS = {
    letter: neighbour
    for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    for letter, neighbour in zip(row, row[1:] + row[-2], strict=True)
}
_CONTRACTIONS = (
    (re.compile(r"\b(do|does|did|is|are|was|were|would|could|should|have|has|had) not\b", re.I), r"\1n't"),
    (re.compile(r"\b(it|that|he|she|there|what) is\b", re.I), r"\1's"),
    (re.compile(r"\bI am\b"), "I'm"),
    (re.compile(r"\b(I|you|we|they) have\b", re.I), r"\1've"),
    (re.compile(r"\b(I|you|we|they|he|she|it) will\b", re.I), r"\1'll"),
)
_MARKS = re.compile(r"[,.;:!?]")


def word_errors(text: str, severity: float, draws: SignalDraws, vocabulary: Vocabulary) -> str:
    """Return the transcript of a speech recogniser with a word error rate of about `severity`.

    Each word is wrong with probability `severity`. Of the wrong words, 60 % become one of the three words of the
    vocabulary that sound most alike, 25 % are deleted, and 15 % are followed by an inserted word, drawn by its
    frequency (the shares are our decision). The measured rate, by the best alignment, is lower where nearly every word
    is wrong: .8 at severity 1.
    """
    words = text.split()
    numbers = draws.uniform(4 * max(1, len(words))).reshape(-1, 4).tolist()
    recognised: list[str] = []
    for word, (hit, how, which, extra) in zip(words, numbers, strict=False):
        if hit >= severity or not vocabulary.words:
            recognised.append(word)
        elif how < 0.6:
            recognised.append(vocabulary.confuse(word, which))
        elif how >= 0.85:
            recognised += [word, vocabulary.draw_by_frequency(extra)]
    return " ".join(recognised)


def dropped_words(text: str, severity: float, draws: SignalDraws, vocabulary: Vocabulary) -> str:
    """Leave out each word with probability `severity`."""
    words = text.split()
    numbers = draws.uniform(max(1, len(words))).tolist()
    return " ".join(word for word, drawn in zip(words, numbers, strict=False) if drawn >= severity)


def typos(text: str, severity: float, draws: SignalDraws, vocabulary: Vocabulary) -> str:
    """Mistype each word with probability `severity`.

    Two letters are swapped, one is left out, doubled, or replaced by a neighbour on the keyboard, all equally likely. A
    word of one letter is only doubled or replaced.
    """
    words = text.split()
    numbers = draws.uniform(3 * max(1, len(words))).reshape(-1, 3).tolist()
    typed = []
    for word, (hit, how, where) in zip(words, numbers, strict=False):
        letters = [place for place, letter in enumerate(word) if letter.isalpha()]
        if hit >= severity or not letters:
            typed.append(word)
            continue
        place = letters[int(where * len(letters))]
        before, letter, after = word[:place], word[place], word[place + 1 :]
        if how < 0.25 and len(letters) > 1:
            other = letters[1] if place == letters[0] else place
            typed.append(word[: other - 1] + word[other] + word[other - 1] + word[other + 1 :])
        elif 0.25 <= how < 0.5 and len(letters) > 1:
            typed.append(before + after)
        elif how < 0.75:
            typed.append(before + 2 * letter + after)
        else:
            typed.append(before + _NEIGHBOURS.get(letter.lower(), "e") + after)
    return " ".join(typed)


def writing(text: str, severity: float, draws: SignalDraws, vocabulary: Vocabulary) -> str:
    """Harmless: write the same words in another way.

    Each of three changes is made with probability `severity`: capitals or small letters alone, punctuation left out,
    and "do not", "it is" and the like contracted.
    """
    case, capitals, marks, contracted = draws.uniform(4).tolist()
    if contracted < severity:
        for pattern, short in _CONTRACTIONS:
            text = pattern.sub(short, text)
    if marks < severity:
        text = _MARKS.sub("", text)
    if case < severity:
        text = text.upper() if capitals < 0.5 else text.lower()
    return text


KINDS: dict[str, TextDegradation] = {
    function.__name__: function for function in (word_errors, dropped_words, typos, writing)
}
HARMLESS = ("writing",)
