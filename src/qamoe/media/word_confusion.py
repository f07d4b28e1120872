"""Which words sound alike, so that a wrong word is one that a recogniser might have heard.

A word's sound is a rough key of its spelling: English rules in the manner of Soundex and Metaphone (Philips, 1990),
far from a pronouncing dictionary, but the same on every machine and without data of its own. Our decision.
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
    """The sound of a word as letters; words with one key sound alike."""
    sound = "".join(_LETTERS.findall(word.lower())).replace("'", "")
    for pattern, replaced in _RULES:
        sound = pattern.sub(replaced, sound)
    return sound


def distance(one: str, other: str) -> int:
    """Levenshtein's: the fewest letters to put in, take out or change."""
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, against in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (letter != against))
    return row[-1]


@dataclass(frozen=True)
class Vocabulary:
    """Words in small letters, in alphabetical order, with how often each was said."""

    words: tuple[str, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Vocabulary":
        """The words of the training split's transcripts."""
        counted = Counter(word for text in texts for word in _LETTERS.findall(text.lower()))
        ordered = sorted(counted)
        return cls(tuple(ordered), tuple(counted[word] for word in ordered))

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
        """The three words that sound most like it, itself left out: by sound, then by spelling, then by alphabet."""
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

    def mistaken(self, word: str, which: float) -> str:
        """Another word in its place, by a draw in [0, 1); what stands around it (a comma, a quote) stays."""
        letters = _LETTERS.search(word)
        others = self.nearest(letters[0]) if letters else ()
        if letters is None or not others:
            return word
        return word[: letters.start()] + others[int(which * len(others))] + word[letters.end() :]

    def frequent(self, which: float) -> str:
        """A word by its frequency, by a draw in [0, 1)."""
        return self.words[min(int(np.searchsorted(self._shares, which, side="right")), len(self.words) - 1)]
