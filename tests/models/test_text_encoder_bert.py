"""The torch implementation of BERT gives the states of transformers; other encoders are left to transformers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qamoe.extractors.minilm import model_folder
from qamoe.models import text_encoder_bert, text_encoder_frozen

pytestmark = pytest.mark.integration  # loads the encoder


def expected(folder: Path, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask.long()).last_hidden_state


def some_ids(lengths: list[int], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(1000, 30_000, (len(lengths), length), generator=torch.Generator().manual_seed(4))
    return ids, torch.arange(length) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("lengths", [[9, 9], [1, 9, 4]])
def test_minilm_gives_the_states_of_transformers(lengths: list[int]) -> None:
    ids, mask = some_ids(lengths, 9)
    encoder = text_encoder_bert.load(model_folder(), "cpu")
    assert encoder is not None
    states = encoder(ids, mask)
    torch.testing.assert_close(states[mask], expected(model_folder(), ids, mask)[mask], atol=2e-6, rtol=0)
    assert not torch.allclose(states[0, 0], states[1, 0], atol=1e-3)


def test_masked_tokens_do_not_change_the_states() -> None:
    ids, mask = some_ids([4], 9)
    encoder = text_encoder_bert.load(model_folder(), "cpu")
    assert encoder is not None
    short = encoder(ids[:, :4], mask[:, :4])
    torch.testing.assert_close(encoder(ids, mask)[:, :4], short, atol=1e-5, rtol=0)


@pytest.mark.parametrize("change", [{"hidden_act": "relu"}, {"layer_norm_eps": None}, {"model_type": "roberta"}, {}])
def test_only_a_plain_bert_is_read(tiny_encoder: Callable[..., Path], tmp_path: Path, change: dict[str, Any]) -> None:
    folder = tiny_encoder(tmp_path)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps({key: v for key, v in config.items() if v is not None}))
    assert (text_encoder_bert.load(folder, "cpu") is None) == bool(change)


def test_weights_with_other_names_are_left_to_transformers(tiny_encoder: Callable[..., Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny_encoder(tmp_path / "unchanged")
    other = tmp_path / "with-prefix"
    shutil.copytree(folder, other)
    weights = load_file(folder / "model.safetensors")
    save_file({f"bert.{name}": w for name, w in weights.items()}, other / "model.safetensors", {"format": "pt"})
    assert text_encoder_bert.load(other, "cpu") is None
    ids, mask = some_ids([5, 2], 5)
    torch.testing.assert_close(
        text_encoder_frozen.encode(ids, mask, str(other)), text_encoder_frozen.encode(ids, mask, str(folder))
    )


def test_another_encoder_is_run_by_transformers(tiny_encoder: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path, hidden_act="relu")
    ids, mask = some_ids([5, 2], 5)
    states = text_encoder_frozen.encode(ids, mask, str(folder))
    torch.testing.assert_close(states[mask], expected(folder, ids, mask)[mask], atol=2e-6, rtol=0)
