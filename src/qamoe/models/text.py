"""The frozen text encoder: token ids -> contextual states, by the weights that the package carries."""

import itertools
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
    """Encode many sequences of ids (T_i,), equal ones once.

    Batches hold one length each, in an order that depends on nothing but the sequences.
    """
    from qamoe.features.batch import pad

    keys = [np.asarray(s, np.int64).tobytes() for s in sequences]
    different = sorted(set(keys), key=lambda key: (len(key), key))
    states: dict[bytes, np.ndarray] = {b"": np.zeros((0, WIDTH), np.float32)}
    for _, alike in itertools.groupby(filter(None, different), key=len):
        same_length = list(alike)
        for start in range(0, len(same_length), _BATCH):
            chunk = same_length[start : start + _BATCH]
            ids, mask = pad([np.frombuffer(key, np.int64) for key in chunk])
            states |= zip(chunk, encode(ids.to(device), mask.to(device)).cpu().numpy(), strict=True)
    return [states[key] for key in keys]
