"""The Whisper extractor: its front end and encoder against other implementations, its windows, and its frames."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qamoe.config.extractor_settings import WHISPER_LAYERS, WhisperSettings, extractor_settings
from qamoe.errors import UserError
from qamoe.extractors import whisper
from qamoe.extractors.whisper import LONGEST, SAMPLE_RATE, Whisper, encode, filters, load, log_mel
from qamoe.files import file_digest
from qamoe.weights import store
from qamoe.weights.table import WEIGHTS
from tests.extractors.test_ctranslate2_file import model, variable
from tests.extractors.test_level import hiss, save, spoken

WIDTH = 16
NAME = "whisper-tiny.en"
REAL = store.place(NAME, "model.bin")


def half(name: str, value: Any) -> bytes:
    value = torch.as_tensor(value)
    return variable(f"encoder/{name}", list(value.shape), 4, value.half().numpy().tobytes())


def variables(layers: int, positions: int = LONGEST // 2) -> list[bytes]:
    """Return the variables of an encoder of WIDTH columns with random weights."""
    random = torch.Generator().manual_seed(7)

    def draw(name: str, *shape: int) -> bytes:
        return half(name, 0.3 * torch.randn(*shape, generator=random))

    def linear(name: str, outputs: int, inputs: int) -> list[bytes]:
        return [draw(f"{name}/weight", outputs, inputs), draw(f"{name}/bias", outputs)]

    def norm(name: str) -> list[bytes]:
        return [draw(f"{name}/gamma", WIDTH), draw(f"{name}/beta", WIDTH)]

    found = [variable("encoder/num_heads", [], 2, b"\2\0"), *norm("layer_norm")]
    found += [draw("conv1/weight", WIDTH, 80, 3), draw("conv1/bias", WIDTH)]
    found += [draw("conv2/weight", WIDTH, WIDTH, 3), draw("conv2/bias", WIDTH)]
    found += [draw("position_encodings/encodings", positions, WIDTH)]
    for layer in range(layers):
        attention, ffn = f"layer_{layer}/self_attention", f"layer_{layer}/ffn"
        found += norm(f"{attention}/layer_norm") + norm(f"{ffn}/layer_norm")
        found += linear(f"{attention}/linear_0", 3 * WIDTH, WIDTH) + linear(f"{attention}/linear_1", WIDTH, WIDTH)
        found += linear(f"{ffn}/linear_0", 4 * WIDTH, WIDTH) + linear(f"{ffn}/linear_1", WIDTH, 4 * WIDTH)
    return found


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of weights that has a small encoder under the name of whisper-tiny.en."""
    path = tmp_path / NAME / "model.bin"
    path.parent.mkdir()
    path.write_bytes(model(*variables(WHISPER_LAYERS[NAME])))
    files = tuple(
        replace(file, sha256=file_digest(path)) if file.name == "model.bin" else file for file in WEIGHTS[NAME].files
    )
    monkeypatch.setitem(WEIGHTS, NAME, replace(WEIGHTS[NAME], files=files))
    monkeypatch.setitem(whisper.WIDTHS, NAME, WIDTH)
    monkeypatch.setenv("QAMOE_WEIGHTS", str(tmp_path))
    return path


def test_the_filters_and_the_spectrum_are_those_of_transformers() -> None:
    from transformers import WhisperFeatureExtractor
    from transformers.audio_utils import mel_filter_bank

    other = mel_filter_bank(201, 80, 0, 8000, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(filters(), other, atol=1e-12)
    audio = spoken(2.0) + hiss(2.0)
    there = WhisperFeatureExtractor(chunk_length=2)(audio, sampling_rate=SAMPLE_RATE)["input_features"][0]
    here = log_mel(torch.from_numpy(audio)).numpy()
    assert here.shape == there.shape == (80, 200)
    np.testing.assert_allclose(here, there - there.max() + 1, atol=1e-3)


def test_the_encoder_is_that_of_transformers(tmp_path: Path) -> None:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    (tmp_path / "model.bin").write_bytes(model(*variables(2, positions=50)))
    ours = load(tmp_path / "model.bin")
    config = WhisperConfig(
        d_model=WIDTH, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=4 * WIDTH, max_source_positions=50
    )
    other = WhisperEncoder(config).eval()
    state = {"embed_positions.weight": ours["position_encodings/encodings"]}
    for name in ("conv1", "conv2"):
        state |= {f"{name}.{part}": ours[f"{name}/{part}"] for part in ("weight", "bias")}
    norms = {"layer_norm": "layer_norm"}
    for layer in range(2):
        here, there = f"layer_{layer}", f"layers.{layer}"
        norms |= {f"{there}.self_attn_layer_norm": f"{here}/self_attention/layer_norm"}
        norms |= {f"{there}.final_layer_norm": f"{here}/ffn/layer_norm"}
        linears = {"fc1": f"{here}/ffn/linear_0", "fc2": f"{here}/ffn/linear_1"}
        linears |= {"self_attn.out_proj": f"{here}/self_attention/linear_1"}
        for theirs, name in linears.items():
            state |= {f"{there}.{theirs}.{part}": ours[f"{name}/{part}"] for part in ("weight", "bias")}
        for part in ("weight", "bias"):
            projections = ours[f"{here}/self_attention/linear_0/{part}"].chunk(3)
            for theirs, value in zip("qkv", projections, strict=True):
                state[f"{there}.self_attn.{theirs}_proj.{part}"] = value
        # Whisper's keys have no bias; adding one to all keys of a query changes nothing.
        del state[f"{there}.self_attn.k_proj.bias"]
    for theirs, name in norms.items():
        state |= {f"{theirs}.weight": ours[f"{name}/gamma"], f"{theirs}.bias": ours[f"{name}/beta"]}
    other.load_state_dict(state)
    mel = torch.randn(80, 100, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        np.testing.assert_allclose(encode(ours, mel, 2), other(mel[None]).last_hidden_state[0], atol=1e-4)


def test_frames_are_means_of_the_states_and_one_layer_less_is_another_result(weights: Path) -> None:
    audio = spoken(2.0) + hiss(2.0)
    coarse, fine = Whisper(10, NAME, 4), Whisper(50, NAME, 4)
    frames, states = coarse.describe(audio), fine.describe(audio)
    assert (frames.shape, states.shape, len(coarse.columns)) == ((20, WIDTH), (100, WIDTH), WIDTH)
    np.testing.assert_allclose(frames[3], states[15:20].mean(0), atol=1e-6)
    lower = Whisper(50, NAME, 3)
    assert lower.made_with != fine.made_with
    assert np.abs(lower.describe(audio) - states).max() > 0.1


def test_a_clip_beyond_30_s_is_read_in_windows_of_equal_length(weights: Path) -> None:
    audio = np.tile(spoken(1.0), 61)[: 60 * SAMPLE_RATE + 1600]
    extractor = Whisper(50, NAME, 4)
    states = extractor.describe(audio)
    assert len(states) == 3005 or len(states) == 3006
    mel = log_mel(torch.from_numpy(audio))
    alone = [encode(load(weights), window, 4).numpy() for window in mel.tensor_split(3, dim=1)]
    np.testing.assert_allclose(states, np.concatenate(alone), atol=1e-5)
    exact = extractor.describe(audio[: 30 * SAMPLE_RATE])
    assert len(exact) == LONGEST // 2


@pytest.mark.parametrize("decibels", [-30, -12, 12])
def test_frames_do_not_depend_on_the_gain_and_repeat(weights: Path, tmp_path: Path, decibels: float) -> None:
    audio = spoken(2.0) + hiss(2.0)
    plain = Whisper(20, NAME, 4).extract(save(tmp_path / "plain.wav", audio))
    changed = save(tmp_path / "changed.wav", audio * np.float32(10 ** (decibels / 20)))
    frames = Whisper(20, NAME, 4).extract(changed)
    assert np.abs(frames - plain).mean() < 1e-3 * plain.std(0).mean()
    assert Whisper(20, NAME, 4).extract(changed).tobytes() == frames.tobytes()
    # Without the level, the front end alone removes a gain too.
    louder = log_mel(torch.from_numpy(audio * np.float32(10 ** (decibels / 20))))
    np.testing.assert_allclose(louder, log_mel(torch.from_numpy(audio)), atol=1e-3)


def test_the_shortest_audio_gives_frames(weights: Path) -> None:
    frames = Whisper(20, NAME, 1).describe(spoken(0.1))
    assert frames.shape == (2, WIDTH)
    assert np.isfinite(frames).all()


def test_other_weights_are_refused(weights: Path) -> None:
    changed = bytearray(weights.read_bytes())
    changed[-9] ^= 1
    weights.write_bytes(changed)
    store._digest.cache_clear()
    with pytest.raises(UserError, match=r"model\.bin"):
        Whisper(20, NAME, 4)
    store._digest.cache_clear()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"layer": 5}, r"layer is 5.*whisper-tiny\.en.*1 to 4"),
        ({"layer": 0}, "greater than or equal to 1"),
        ({"rate": 60.0}, "less than or equal to 50"),
        ({"model": "whisper-large"}, "whisper-tiny.en.*whisper-base"),
    ],
)
def test_settings_out_of_range_are_refused(changed: dict[str, Any], named: str) -> None:
    block = {"extractor": "whisper", "rate": 10.0, "model": NAME, "layer": 4}
    chosen = extractor_settings("audio", block)
    assert isinstance(chosen, WhisperSettings)
    assert chosen.weights == (NAME,)
    with pytest.raises(ValueError, match=named):
        extractor_settings("audio", block | changed)


@pytest.mark.slow
@pytest.mark.skipif(REAL is None, reason=f"the weights {NAME} are not in the cache")
def test_the_real_encoder_gives_the_states_of_ctranslate2() -> None:
    assert REAL is not None
    ctranslate2 = pytest.importorskip("ctranslate2")
    audio = np.zeros(30 * SAMPLE_RATE, np.float32)
    audio[: 2 * SAMPLE_RATE] = spoken(2.0) + hiss(2.0)
    mel = log_mel(torch.from_numpy(audio))
    other = ctranslate2.models.Whisper(str(REAL), device="cpu", compute_type="float32")
    features = ctranslate2.StorageView.from_array(np.ascontiguousarray(mel.numpy()[None]))
    states = np.asarray(other.encode(features, to_cpu=True))[0]
    assert np.abs(encode(load(REAL / "model.bin"), mel, 4).numpy() - states).max() < 1e-3
