"""Turn text into token ids with the tokenizer in a Hugging Face encoder's folder.

Stores ids and not vectors, because degradations change the ids before they reach the encoder.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qamoe.errors import UserError

FILE = "tokenizer.json"
FILES = (FILE, "tokenizer_config.json")
ENGLISH, CHINESE = "bert-base-uncased", "bert-base-chinese"  # the vocabularies of corpora with ready token ids
# Above this share of unread words, most of the sentence is lost, and the rest may say the opposite of the whole.
UNREAD_SHARE = 0.5
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u9fff"  # Chinese and Japanese have no blanks: each character counts as a word
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W{_IDEOGRAPHS}]+(?:['\u2019-][^\W{_IDEOGRAPHS}]+)*")
_SCRIPTS = {"CJK": "Chinese", "HANGUL": "Korean", "HIRAGANA": "Japanese", "KATAKANA": "Japanese"}
_ROLES = (("pad_token",), ("cls_token", "bos_token"), ("sep_token", "eos_token"), ("unk_token",))


class Reading(NamedTuple):
    """What an encoder reads of a text: ids (T,) int32 and, for each id, the word it came from ('' for CLS and SEP).

    `reason` says why it reads none of it, or not all of it; "" if it reads all. `words_in_text` is their number in the
    text. `script` is the one that most letters of its words in other scripts than Latin have.
    """

    ids: np.ndarray
    words: list[str]
    reason: str
    words_in_text: int
    script: str


class Tokens:
    """Turns a transcript into at most `max_tokens` ids, including CLS and SEP.

    `unk_id` replaces a lost token; degradations never change `special_ids` (PAD, CLS, SEP). `vocabulary` is a name:
    ENGLISH, CHINESE or that of the folder. `vocabulary_sha256` covers every token.
    """

    name: str
    version = "1"

    def __init__(self, folder: Path, max_tokens: int, vocabulary: str) -> None:
        self.max_tokens = max_tokens
        self._tokenizer = _tokenizer(folder)
        self.special_ids, self.unk_id = _special(folder, self._tokenizer)
        self.vocab_size: int = self._tokenizer.get_vocab_size()
        self.vocabulary = vocabulary
        self.vocabulary_sha256 = vocabulary_digest(folder)

    def extract(self, text: str) -> tuple[np.ndarray, list[str]]:
        """Return ids and words of a transcript as `read` does."""
        reading = self.read(text)
        return reading.ids, reading.words

    def read(self, text: str, most: int | None = None) -> Reading:
        """Read a transcript; a text that is too long is truncated before its SEP.

        A text has no ids if it has no token, or if more than UNREAD_SHARE of its words are unknown tokens or, with the
        English vocabulary, in another script than Latin: that vocabulary has their letters, but the encoder did not
        learn their words. `most`: the number of ids that the model keeps, for `reason`.
        """
        text = text.encode(errors="replace").decode()  # half a pair of surrogates is no character
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        pieces = encoding.ids[: self.max_tokens - 2]
        numbers = encoding.word_ids[: len(pieces)]
        words = ["" if i is None else text[slice(*encoding.word_to_chars(i))] for i in numbers]
        unknown = {number for number, piece in zip(numbers, pieces, strict=True) if piece == self.unk_id}
        distinct = dict(zip(numbers, words, strict=True))
        letters = {number: [c for c in word if c.isalpha()] for number, word in distinct.items()}
        scripts = {n: [unicodedata.name(c, "UNKNOWN").split()[0] for c in found] for n, found in letters.items()}
        # Words have letters; without any, what is left of a text is its symbols and numbers.
        counted = [n for n in distinct if letters[n]] or [
            n for n, word in distinct.items() if n in unknown or any(map(str.isalnum, word))
        ]
        foreign = [n for n in counted if letters[n] and "LATIN" not in scripts[n] and self.vocabulary == ENGLISH]
        unread = unknown.intersection(counted).union(foreign)
        (script, _), *_ = Counter(s for n in foreign for s in scripts[n]).most_common(1) or [("", 0)]
        script = _SCRIPTS.get(script, script.capitalize())
        count, reason = len(_WORD.findall(text)), ""
        if not pieces:
            reason = "it has no words" if text else ""
        elif len(unread) > UNREAD_SHARE * len(counted):
            pieces = []
            reason = f"the encoder does not know {len(unread)} of {len(counted)} words"
            if not any(letters.values()):
                reason = "it has only symbols that the encoder does not know"
            elif foreign:
                reason = f"{len(foreign)} of {len(counted)} words are in {script} script, unknown to the encoder"
        elif len(kept := encoding.offsets[: min(len(pieces), (most or self.max_tokens) - 1)]) < len(encoding.ids):
            whole = sum(word.end() <= kept[-1][1] for word in _WORD.finditer(text)) if kept else 0
            reason = f"read the first {whole} of {count} words" if whole < count else ""
        if not pieces:
            return Reading(np.zeros(0, np.int32), [], reason, count, script)
        _, cls, sep = self.special_ids
        return Reading(np.array([cls, *pieces, sep], np.int32), ["", *words, ""], reason, count, script)

    def extract_spoken(self, spoken: np.ndarray) -> tuple[np.ndarray, list[str], np.ndarray]:
        """Return ids and words of recognised words (W,), and the number in `spoken` of each id's word, -1 for none."""
        text = " ".join(spoken)
        ids, words = self.extract(text)
        if not len(ids):
            return ids, words, np.zeros(0, np.int64)
        pieces = self._tokenizer.encode(text, add_special_tokens=False).offsets[: len(ids) - 2]
        last_characters = [end - 1 for _, end in pieces]
        after_words = np.cumsum([len(word) + 1 for word in spoken])
        return ids, words, np.array([-1, *np.searchsorted(after_words, last_characters, side="right"), -1])

    def words(self, ids: np.ndarray) -> list[str]:
        """Return the word of each id, its pieces joined ('' for special ids); for ids that came without a text.

        Pieces are recognised by BERT's prefix (##); in a vocabulary without it, each id is a word.
        """
        tokens = ["" if i in self.special_ids else self._tokenizer.id_to_token(int(i)) or "" for i in ids]
        words = [""] * len(tokens)
        start = 0
        for end in range(1, len(tokens) + 1):
            if end == len(tokens) or not tokens[end].startswith("##"):
                whole = tokens[start] + "".join(t.removeprefix("##") for t in tokens[start + 1 : end])
                words[start:end] = [whole] * (end - start)
                start = end
        return words


@cache
def _tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / FILE))
    except Exception as error:  # the library raises nothing more specific
        reason = " ".join(str(error).split())[:120].rstrip(".")
        raise UserError(f"{folder / FILE} is not a valid tokenizer: {reason}.") from None
    # The file may enable padding and truncation to the length of a sentence model.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _special(folder: Path, tokenizer: Any) -> tuple[tuple[int, ...], int]:
    """Return the ids of PAD, CLS and SEP (or of the first and last token), and that of UNK."""
    path = folder / FILES[1]
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise UserError(f"{path} is missing or not valid JSON; it must name the special tokens.")
    ids = []
    for names in _ROLES:
        values = [config[name] for name in names if config.get(name)]
        token = values[0].get("content") if values and isinstance(values[0], dict) else values[0] if values else None
        token_id = tokenizer.token_to_id(token) if isinstance(token, str) else None
        if token_id is None:
            raise UserError(
                f"{path}: {' or '.join(names)} is {token!r}, must be a token of the tokenizer; degradations need it."
            )
        ids.append(token_id)
    return tuple(ids[:3]), ids[3]


@cache
def vocabulary_digest(folder: Path) -> str:
    """Return the SHA-256 of a tokenizer's tokens and ids; encoders with the same vocabulary share it."""
    tokens = sorted(_tokenizer(folder).get_vocab().items(), key=lambda pair: pair[1])
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()
