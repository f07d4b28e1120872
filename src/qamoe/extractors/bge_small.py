"""Text as token ids of bge-small-en-v1.5, in the vocabulary of bert-base-uncased: the ids of MiniLM's extractor."""

from qamoe.extractors.tokens import ENGLISH, FILES, Tokens
from qamoe.weights.store import folder

NAME = "bge-small"


class BgeSmall(Tokens):
    """Turn text into ids of bert-base-uncased's vocabulary. Raises UserError if the tokenizer is missing."""

    name = NAME

    def __init__(self, max_tokens: int) -> None:
        super().__init__(folder(NAME, *FILES), max_tokens, ENGLISH)
