"""Text as token ids of any Hugging Face encoder in a local folder (tokenizer.json and tokenizer_config.json).

models.encoders.text.encoder names the encoder that reads the ids. Nothing is downloaded.
"""

from pathlib import Path

from qamoe.errors import UserError
from qamoe.extractors.minilm import model_folder
from qamoe.extractors.tokens import CHINESE, ENGLISH, FILE, Tokens, vocabulary_digest

NAME = "huggingface"
_CHINESE_TOKENS = 21_128  # vocabulary size of bert-base-chinese and of encoders that share its vocabulary


class HuggingFace(Tokens):
    """Turn text into ids of the tokenizer in a folder. Raises UserError if the folder has no tokenizer."""

    name = NAME

    def __init__(self, model: str, max_tokens: int) -> None:
        folder = Path(model)
        if not (folder / FILE).is_file():
            raise UserError(
                f"extract.text.model: {folder / FILE} does not exist; the folder must hold an encoder with a fast "
                "tokenizer, which has this file."
            )
        super().__init__(folder, max_tokens, folder.resolve().name)
        if self.vocabulary_sha256 == vocabulary_digest(model_folder()):
            self.vocabulary = ENGLISH
        elif self.vocab_size == _CHINESE_TOKENS:
            self.vocabulary = CHINESE
