"""The frozen text encoder: token ids -> contextual states, with pinned weights or those of a local folder."""

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qamoe.errors import UserError
from qamoe.extractors.minilm import NAME
from qamoe.models import text_encoder_bert
from qamoe.weights import store
from qamoe.weights.table import WEIGHTS

KEY = "models.encoders.text.encoder"
NAMES = (NAME, "bge-small", "bge-small-fp32")  # of weights/table.py; any other value is a folder
WIDTH = 384  # of their states
_BATCH = 64


def folder_of(encoder: str) -> Path:
    """Return the folder of an encoder that params.yaml names. Raises UserError if there is none."""
    if encoder in NAMES:
        return store.folder(encoder)
    folder = Path(encoder)
    if not folder.is_dir():  # transformers would read it as a name on the hub
        raise UserError(
            f"{KEY} is {encoder!r}; allowed are {', '.join(NAMES)} and the folder of a Hugging Face encoder."
        )
    return folder


def width(encoder: str) -> int:
    """Return the width W of an encoder's states."""
    if encoder in NAMES:
        return WIDTH
    return int(json.loads((folder_of(encoder) / "config.json").read_text(encoding="utf-8"))["hidden_size"])


def digest(encoder: str) -> str:
    """Return the SHA-256 of the files that determine the encoder's states; of a name, the SHA-256 of its pins."""
    if encoder in NAMES:
        return hashlib.sha256(repr(sorted((f.name, f.sha256) for f in WEIGHTS[encoder].files)).encode()).hexdigest()
    result = hashlib.sha256()
    for path in sorted(folder_of(encoder).iterdir()):
        if path.suffix in (".json", ".safetensors", ".bin", ".txt"):
            result.update(path.name.encode() + b"\0" + path.read_bytes())
    return result.hexdigest()


def without_pooler(encoder: Any) -> Any:
    """Remove an encoder's pooler, in place: it is never used, and must not count as trainable."""
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    return encoder


def module(encoder: str, device: str) -> Any:
    """Load the frozen encoder as a module of transformers."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it warns about the removed pooler
    model = AutoModel.from_pretrained(
        folder_of(encoder), local_files_only=True, trust_remote_code=False, dtype=torch.float32
    )
    return without_pooler(model).eval().requires_grad_(False).to(device)


@cache
def _encoder(encoder: str, device: str) -> Callable[[Tensor, Tensor], Tensor]:
    plain = text_encoder_bert.load(folder_of(encoder), device)
    if plain is not None:
        return plain
    model = module(encoder, device)
    return lambda ids, mask: model(input_ids=ids, attention_mask=mask.long()).last_hidden_state


@torch.no_grad()
def encode(ids: Tensor, mask: Tensor, encoder: str = NAME) -> Tensor:
    """Return states (B, T, W) float32 of ids (B, T) int64 and mask (B, T); rows without tokens give zeros."""
    if not mask.any():  # avoid loading the encoder, which is slow
        return torch.zeros(*mask.shape, width(encoder), device=ids.device)
    attended = mask.clone()
    attended[:, 0] |= ~mask.any(1)  # attention over nothing is NaN
    states = _encoder(encoder, str(ids.device))(ids, attended)
    return states.float() * mask[..., None]


def encode_all(sequences: Sequence[np.ndarray], device: str, encoder: str = NAME) -> list[np.ndarray]:
    """Encode many sequences of ids (T_i,), each distinct sequence once.

    Each batch holds sequences of one length; their order depends only on the sequences.
    """
    from qamoe.data.batch import pad

    keys = [np.asarray(s, np.int64).tobytes() for s in sequences]
    distinct = sorted(set(keys), key=lambda key: (len(key), key))
    states: dict[bytes, np.ndarray] = {b"": np.zeros((0, width(encoder)), np.float32)}
    for _, of_length in itertools.groupby(filter(None, distinct), key=len):
        same_length = list(of_length)
        for start in range(0, len(same_length), _BATCH):
            chunk = same_length[start : start + _BATCH]
            ids, mask = pad([np.frombuffer(key, np.int64) for key in chunk])
            encoded = encode(ids.to(device), mask.to(device), encoder).cpu().numpy()
            states |= zip(chunk, encoded, strict=True)
    return [states[key] for key in keys]
