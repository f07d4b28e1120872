"""Words as token ids of any Hugging Face encoder in a local folder: tokenizer.json and tokenizer_config.json are read.

Which encoder then reads the ids is models.encoders.text.encoder. Nothing is fetched.
"""

from pathlib import Path

from qamoe.errors import UserError
from qamoe.extractors.minilm import model_folder
from qamoe.extractors.tokens import CHINESE, ENGLISH, FILE, Tokens, vocabulary_digest

NAME = "huggingface"
_CHINESE_TOKENS = 21_128  # of bert-base-chinese and those that share its vocabulary


class HuggingFace(Tokens):
    """Words as ids of the tokenizer in a folder. Raises UserError where there is none."""

    name = NAME

    def __init__(self, model: str, max_tokens: int) -> None:
        folder = Path(model)
        if not (folder / FILE).is_file():
            raise UserError(
                f"extract.text.model: there is no {folder / FILE}, which the folder of an encoder has where its "
                "tokenizer is a fast one."
            )
        super().__init__(folder, max_tokens, folder.resolve().name)
        if self.vocabulary_sha256 == vocabulary_digest(model_folder()):
            self.vocabulary = ENGLISH
        elif self.vocab_size == _CHINESE_TOKENS:
            self.vocabulary = CHINESE
