"""Find words that sound alike, to imitate the mistakes of a speech recogniser.

The sound of a word is a rough key of its spelling, by English rules in the style of Soundex and Metaphone (Philips,
1990). It is less exact than a pronouncing dictionary, but needs no data and is the same on every machine. Our decision.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

_LETTERS = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
_RULES = tuple(
    (re.compile(pattern), key)
    for pattern, key in (
        (r"^(kn|gn|pn)", "n"),
        (r"^wr", "r"),
        (r"^wh", "w"),
        (r"mb$", "m"),
        (r"tch|ch|sh|tio|sio|cia|tia", "X"),
        (r"th", "T"),
        (r"ph", "f"),
        (r"gh(?=t|$)", ""),
        (r"gh", "g"),
        (r"ck|q|x", "k"),
        (r"c(?=[eiy])", "s"),
        (r"c", "k"),
        (r"dge?|g(?=[eiy])|j", "J"),
        (r"z", "s"),
        (r"v", "f"),
        (r"d", "t"),
        (r"b", "p"),
        (r"e$", ""),
        (r"[aeiouy]+", "a"),
        (r"(.)\1+", r"\1"),
    )
)


def key(word: str) -> str:
    """Return the sound of a word as letters; words with the same key sound alike."""
    sound = "".join(_LETTERS.findall(word.lower())).replace("'", "")
    for pattern, replacement in _RULES:
        sound = pattern.sub(replacement, sound)
    return sound


def distance(one: str, other: str) -> int:
    """Return the Levenshtein distance: the fewest letters to insert, delete or change."""
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, other_letter in enumerate(other, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (letter != other_letter))
    return row[-1]


@dataclass(frozen=True)
class Vocabulary:
    """Lower-case words in alphabetical order, and how often each occurs."""

    words: tuple[str, ...]
    counts: tuple[int, ...]

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> "Vocabulary":
        """Count the words of transcripts, which should be those of the training split."""
        counts = Counter(word for text in texts for word in _LETTERS.findall(text.lower()))
        ordered = sorted(counts)
        return cls(tuple(ordered), tuple(counts[word] for word in ordered))

    @cached_property
    def _keys(self) -> tuple[str, ...]:
        return tuple(key(word) for word in self.words)

    @cached_property
    def _shares(self) -> np.ndarray:
        return np.cumsum(self.counts) / sum(self.counts)

    @cached_property
    def _nearest(self) -> dict[str, tuple[str, ...]]:
        return {}

    def nearest(self, word: str) -> tuple[str, ...]:
        """Return the three other words that sound most like it, ordered by sound, then spelling, then alphabet."""
        plain = word.lower()
        if plain not in self._nearest:
            sound = key(plain)
            close = sorted(
                (distance(sound, other_key), other)
                for other, other_key in zip(self.words, self._keys, strict=True)
                if other != plain
            )[:20]
            ordered = sorted(close, key=lambda pair: (pair[0], distance(plain, pair[1]), pair[1]))
            self._nearest[plain] = tuple(other for _, other in ordered[:3])
        return self._nearest[plain]

    def confuse(self, word: str, which: float) -> str:
        """Replace a word by a similar one, chosen by a draw in [0, 1); keep the punctuation around it."""
        letters = _LETTERS.search(word)
        others = self.nearest(letters[0]) if letters else ()
        if letters is None or not others:
            return word
        return word[: letters.start()] + others[int(which * len(others))] + word[letters.end() :]

    def draw_by_frequency(self, which: float) -> str:
        """Choose a word in proportion to its frequency, by a draw in [0, 1)."""
        return self.words[min(int(np.searchsorted(self._shares, which, side="right")), len(self.words) - 1)]
