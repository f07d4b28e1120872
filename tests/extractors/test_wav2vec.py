"""The wav2vec extractor, with a tiny encoder of random weights in a local folder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from qamoe.errors import UserError
from qamoe.extractors.wav2vec import SAMPLE_RATE, Wav2vec

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8, 8, 8),
        conv_kernel=(10, 8, 4),
        conv_stride=(10, 8, 4),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("encoder")
    Wav2Vec2Model(config).save_pretrained(path)
    return path


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 0.1, round(seconds * SAMPLE_RATE)).astype(np.float32)


def test_frames_have_the_requested_rate_and_are_means_of_the_encoder_states(folder: Path) -> None:
    coarse, fine = Wav2vec(10, str(folder)), Wav2vec(50, str(folder))
    frames, states = coarse.describe(noise(2.0)), fine.describe(noise(2.0))
    assert frames.shape[1] == len(coarse.columns) == 16
    assert abs(len(states) - 100) <= 1
    np.testing.assert_allclose(frames[3], states[15:20].mean(0), atol=1e-5)
    assert frames.std() > 0.01


def test_the_same_audio_gives_the_same_bytes_and_loudness_is_normalised(folder: Path) -> None:
    extractor = Wav2vec(20, str(folder))
    once = extractor.describe(noise(1.0))
    assert Wav2vec(20, str(folder)).describe(noise(1.0)).tobytes() == once.tobytes()
    np.testing.assert_allclose(extractor.describe(noise(1.0) * 0.3), once, atol=1e-3)


def test_a_folder_can_switch_normalisation_off_and_gets_other_parts(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False}))
    plain = Wav2vec(20, str(tmp_path))
    assert plain.made_with != Wav2vec(20, str(folder)).made_with
    assert np.abs(plain.describe(noise(1.0) * 0.3) - plain.describe(noise(1.0))).max() > 1e-3


def test_other_weights_give_other_parts(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    assert Wav2vec(20, str(tmp_path)).made_with != Wav2vec(20, str(folder)).made_with


def test_a_folder_without_an_encoder_is_rejected(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"extract\.audio\.model.*config\.json"):
        Wav2vec(20, str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json"):
        Wav2vec(20, str(tmp_path))
    with pytest.raises(UserError, match=r"rate is 60, .*50 Hz"):
        Wav2vec(60, str(folder))
