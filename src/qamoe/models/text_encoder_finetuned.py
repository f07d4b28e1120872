"""A text encoder that is fine-tuned with its model: token ids -> contextual states, by any Hugging Face encoder.

The checkpoint has its architecture (model.json) and its weights, so a trained model no longer needs the encoder's
folder. Nothing is downloaded, and no code of the folder is run.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qamoe.config.params import TextEncoder
from qamoe.data.stats import Stats
from qamoe.errors import UserError
from qamoe.extractors.minilm import model_folder
from qamoe.extractors.tokens import vocabulary_digest
from qamoe.models.text_encoder_frozen import KEY, folder_of, without_pooler

_FILE_KEYS = ("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version")


def architecture(sizes: TextEncoder, tokens: int, vocabulary: str) -> dict[str, Any]:
    """Return what rebuilds the encoder without its folder: its config.json, without the keys about the file.

    Raises UserError for a folder without an encoder, or with one that cannot read `tokens` ids of the stored
    `vocabulary` (its digest).
    """
    from transformers import AutoConfig

    folder = folder_of(sizes.encoder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        same_vocabulary = vocabulary_digest(folder) == vocabulary
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _encoder_error(folder, error) from None
    if config.is_encoder_decoder or config.is_decoder:
        raise UserError(f"{KEY}: {folder} holds a {config.model_type} with a decoder; it must be an encoder only.")
    if not same_vocabulary:
        raise UserError(
            f"{KEY}: the vocabulary of the encoder in {folder} differs from that of the stored ids (see extract.text)."
        )
    longest = getattr(config, "max_position_embeddings", tokens)
    if longest < tokens:
        raise UserError(
            f"{KEY}: the encoder in {folder} reads at most {longest} tokens; preprocess.max_frames.text is {tokens}."
        )
    return {key: value for key, value in config.to_diff_dict().items() if key not in _FILE_KEYS}


def vocabulary(stats: Stats) -> str:
    """Return the digest of the vocabulary of a corpus's stored ids (stats.json)."""
    # Older files without the key have ids of MiniLM's vocabulary.
    return stats["text"].get("vocabulary_sha256") or vocabulary_digest(model_folder())


class FinetunedEncoder(nn.Module):
    """ids (B, T) and their mask -> states and their mask: (B, T, W), or (B, 1, W) with pooling `mean`.

    A clip without tokens gets an empty mask, for which the modality's encoder returns its learned vector.
    """

    def __init__(self, architecture: dict[str, Any], sizes: TextEncoder) -> None:
        from transformers import AutoConfig, AutoModel

        super().__init__()
        self.mean = sizes.pooling == "mean"
        config = AutoConfig.for_model(**architecture)
        self.width: int = config.hidden_size  # W
        self.encoder = without_pooler(AutoModel.from_config(config, trust_remote_code=False))
        for module in self.encoder.modules():
            if isinstance(module, nn.Dropout):
                module.p = sizes.dropout

    def load_pretrained(self, sizes: TextEncoder) -> None:
        """Load the weights in the encoder's folder. Raises UserError if they are missing or incomplete."""
        from safetensors import SafetensorError
        from transformers import AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        folder = folder_of(sizes.encoder)
        try:
            pretrained, loading_info = AutoModel.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise _encoder_error(folder, error) from None
        missing = sorted(key for key in loading_info["missing_keys"] if not key.startswith("pooler."))
        if missing:
            raise UserError(
                f"{KEY}: the weights in {folder} lack {len(missing)} of its tensors, for example {missing[0]}."
            )
        self.encoder.load_state_dict(without_pooler(pretrained).state_dict(), strict=True)

    def forward(self, ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        attended = mask_BT.clone()
        attended[:, 0] |= ~mask_BT.any(1)  # attention over nothing is NaN
        states = self.encoder(input_ids=ids_BT, attention_mask=attended.long()).last_hidden_state
        states = states * mask_BT[..., None]
        if not self.mean:
            return states, mask_BT
        return states.sum(1, keepdim=True) / mask_BT.sum(1).clamp(min=1)[:, None, None], mask_BT.any(1, keepdim=True)


def _encoder_error(folder: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:120].rstrip(".")
    return UserError(f"{KEY}: {folder} does not hold a Hugging Face encoder: {reason}.")
