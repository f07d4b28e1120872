"""Text as token ids of all-MiniLM-L6-v2.

Its vocabulary is that of bert-base-uncased, which the field's corpora use too.
"""

from pathlib import Path

from qamoe.extractors.tokens import ENGLISH, FILES, Tokens
from qamoe.weights.store import folder

NAME = "minilm"


def model_folder() -> Path:
    """Return the folder of its tokenizer. Raises UserError if it is missing."""
    return folder(NAME, *FILES)


class MiniLM(Tokens):
    """Turn text into ids of bert-base-uncased's vocabulary."""

    name = NAME

    def __init__(self, max_tokens: int) -> None:
        super().__init__(folder(NAME, *FILES), max_tokens, ENGLISH)
