"""Turn text into token ids with the tokenizer in a Hugging Face encoder's folder.

Stores ids and not vectors, because degradations change the ids before they reach the encoder.
"""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from qamoe.errors import UserError

FILE = "tokenizer.json"
FILES = (FILE, "tokenizer_config.json")
ENGLISH, CHINESE = "bert-base-uncased", "bert-base-chinese"  # the vocabularies of corpora with ready token ids
_ROLES = (("pad_token",), ("cls_token", "bos_token"), ("sep_token", "eos_token"), ("unk_token",))


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
        """Return ids (T,) int32 of a transcript and, for each id, the word that it came from ('' for CLS and SEP).

        A text that is too long is truncated before its SEP. A text without a token has no ids at all.
        """
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        pieces = encoding.ids[: self.max_tokens - 2]
        if not pieces:
            return np.zeros(0, np.int32), []
        _, cls, sep = self.special_ids
        words = ["" if i is None else text[slice(*encoding.word_to_chars(i))] for i in encoding.word_ids[: len(pieces)]]
        return np.array([cls, *pieces, sep], np.int32), ["", *words, ""]

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
