"""The frozen text encoder: token ids -> contextual states, by the weights that the package carries."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qamoe.features.minilm import model_folder

WIDTH = 384
_BATCH = 64


@cache
def _encoder(device: str) -> Any:
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it reports the pooler that is left out on purpose
    model = AutoModel.from_pretrained(model_folder(), local_files_only=True, add_pooling_layer=False)
    return model.eval().requires_grad_(False).to(device)


@torch.no_grad()
def encode(ids: Tensor, mask: Tensor) -> Tensor:
    """ids (B, T) int64, mask (B, T) -> states (B, T, 384) float32; rows without a token give zeros."""
    attended = mask.clone()
    attended[:, 0] |= ~mask.any(1)  # attention over nothing is NaN
    states = _encoder(str(ids.device))(input_ids=ids, attention_mask=attended.long()).last_hidden_state
    return states.float() * mask[..., None]


def encode_all(sequences: Sequence[np.ndarray], device: str) -> list[np.ndarray]:
    """Encode many sequences of ids (T_i,), in batches of similar length that depend on nothing but the sequences."""
    from qamoe.features.batch import pad

    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i]), i))
    states: list[np.ndarray] = [np.zeros((0, WIDTH), np.float32)] * len(sequences)
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        ids, mask = pad([np.asarray(sequences[i], np.int64) for i in rows])
        encoded = encode(ids.to(device), mask.to(device)).cpu().numpy()
        for i, state in zip(rows, encoded, strict=True):
            states[i] = state[: len(sequences[i])]
    return states
