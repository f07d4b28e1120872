"""Checkpoints: they rebuild the same model bit for bit, refuse what does not fit, and never run code."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qamoe.errors import UserError
from qamoe.models import checkpoint


def test_a_loaded_model_predicts_the_same_bits_as_the_saved_one(
    tiny_checkpoint: Any, setting: Any, tmp_path: Path
) -> None:
    batch = setting.valid.batch(1, range(6))
    folder = tiny_checkpoint(tmp_path / "1")
    trained: Any = checkpoint.load(folder)
    rebuilt: Any = checkpoint.make("qamoe", trained.config)
    rebuilt.load_state_dict(trained.model.state_dict())
    expected = rebuilt.eval()(batch)
    actual = trained.predict(batch)
    assert torch.equal(actual.value, expected.value)
    assert torch.equal(actual.r, expected.r)
    assert not actual.value.requires_grad
    assert not trained.model.training
    assert trained.folder == folder


def test_modalities_keep_their_order(tiny_checkpoint: Any, tmp_path: Path) -> None:
    """JSON sorts keys; a model with its modalities in another order would load and predict wrongly."""
    trained = checkpoint.load(tiny_checkpoint(tmp_path))
    assert list(trained.model.encode.encoders) == ["text", "audio", "vision"]  # type: ignore[union-attr, arg-type]


def test_quality_overrides_r(tiny_checkpoint: Any, setting: Any, tmp_path: Path) -> None:
    trained: Any = checkpoint.load(tiny_checkpoint(tmp_path))
    batch, quality = setting.valid.batch(0, range(3)), torch.full((3, 3), 0.25)
    assert torch.equal(trained.predict(batch, quality).r, quality)


def test_only_the_oracle_uses_the_state(tiny_checkpoint: Any, setting: Any, tmp_path: Path) -> None:
    oracle: Any = checkpoint.load(tiny_checkpoint(tmp_path / "oracle", model="oracle"))
    qamoe: Any = checkpoint.load(tiny_checkpoint(tmp_path / "qamoe", model="qamoe"))
    batch, _, state = setting.train.degraded(0, range(6))
    assert torch.equal(oracle.predict(batch, state=state).r, 1 - state.severity)
    quality = torch.full((6, 3), 0.25)
    assert torch.equal(oracle.predict(batch, quality, state).r, quality), "an explicit quality takes precedence"
    assert torch.equal(qamoe.predict(batch, state=state).r, qamoe.predict(batch).r)
    with pytest.raises(UserError, match="oracle"):
        oracle.predict(batch)


@pytest.mark.parametrize("name", ["specialist-missing-03", "specialist-clean"])
def test_a_specialist_is_a_qamoe_with_its_block(
    tiny_checkpoint: Any, tiny_params: Any, tmp_path: Path, name: str
) -> None:
    trained = checkpoint.load(tiny_checkpoint(tmp_path, model=name))
    assert type(trained.model).__name__ == "QAMoE"
    assert trained.config["model"] == name
    assert trained.config["models"] == tiny_params.models.model_dump(mode="json", include={"encoders", "qamoe"})


def test_a_checkpoint_loads_after_other_models_are_removed(tiny_checkpoint: Any, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, model="concat")
    config = json.loads((folder / "model.json").read_text())
    assert set(config["models"]) == {"encoders", "concat"}
    config["models"]["gone"] = {"size": 3}
    (folder / "model.json").write_text(json.dumps(config))
    checkpoint.load(folder)


def test_an_unfinished_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        checkpoint.load(tmp_path)
    assert str(tmp_path) in str(refusal.value)
    assert "model.json" in str(refusal.value)
    assert checkpoint.read_config(tmp_path) is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{", "JSON object"), ("[1]", "JSON object"), ("{}", "key model is missing")],
)
def test_a_damaged_config_is_refused(tiny_checkpoint: Any, tmp_path: Path, content: str, reason: str) -> None:
    folder = tiny_checkpoint(tmp_path / "1")
    (folder / "model.json").write_text(content)
    with pytest.raises(UserError, match=reason) as refusal:
        checkpoint.load(folder)
    assert str(folder / "model.json") in str(refusal.value)


def test_weights_that_do_not_fit_are_refused(tiny_checkpoint: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny_checkpoint(tmp_path / "1")
    weights = load_file(folder / "weights.safetensors")
    name = "mixture.router.semantic.weight"
    for broken in (
        {k: v for k, v in weights.items() if k != name},
        {**weights, "extra": torch.zeros(1)},
        {**weights, name: weights[name][:, :-1].contiguous()},
    ):
        save_file(broken, folder / "weights.safetensors")
        with pytest.raises(UserError, match=r"model\.json") as refusal:
            checkpoint.load(folder)
        assert str(folder / "weights.safetensors") in str(refusal.value)
        assert ("extra" if "extra" in broken else name) in str(refusal.value)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "pickle"])
def test_damaged_weights_are_refused(tiny_checkpoint: Any, tmp_path: Path, damage: str) -> None:
    folder = tiny_checkpoint(tmp_path / "1")
    path = folder / "weights.safetensors"
    content = {"cut": path.read_bytes()[:-100], "empty": b"", "gone": b"", "pickle": pickle.dumps({"a": 1})}
    path.write_bytes(content[damage])
    if damage == "gone":
        path.unlink()
    with pytest.raises(UserError) as refusal:
        checkpoint.load(folder)
    assert str(path) in str(refusal.value)


def test_the_digest_depends_on_weights_and_config_only(tiny_checkpoint: Any, tmp_path: Path) -> None:
    one, same, other = (tiny_checkpoint(tmp_path / str(i), answer=a) for i, a in enumerate((1.0, 1.0, 1.5)))
    assert checkpoint.digest(one) == checkpoint.digest(same) != checkpoint.digest(other)
    (same / "history.jsonl").write_text("{}\n")
    assert checkpoint.digest(one) == checkpoint.digest(same)
    (same / "model.json").write_text((same / "model.json").read_text() + " ")
    assert checkpoint.digest(one) != checkpoint.digest(same)


def test_an_interrupted_save_does_not_leave_a_finished_checkpoint(
    tiny_checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also over an older checkpoint: new weights do not belong to the old model.json."""
    folder = tiny_checkpoint(tmp_path / "1", answer=1.0)

    def killed(path: Path, text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        tiny_checkpoint(folder, answer=2.0)
    assert checkpoint.read_config(folder) is None
    assert not list(folder.glob(".*")), "no temporary file remains"


def test_a_saved_state_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "resume.pt"
    assert checkpoint.load_state(path) is None
    state = {
        "digests": {"data": "d"},
        "model": {"w": torch.randn(3)},
        "rng": torch.get_rng_state(),
        "history": [{"epoch": 1}],
    }
    checkpoint.save_state(path, state)
    loaded = checkpoint.load_state(path)
    assert loaded is not None
    assert torch.equal(loaded["model"]["w"], state["model"]["w"])  # type: ignore[index, call-overload]
    assert torch.equal(loaded["rng"], state["rng"])  # type: ignore[arg-type]
    assert (loaded["digests"], loaded["history"]) == (state["digests"], state["history"])
    assert [p.name for p in tmp_path.iterdir()] == ["resume.pt"]


class _Attack:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.victim}",)


def test_loading_a_state_does_not_run_its_code(tmp_path: Path) -> None:
    torch.save({"digests": {}, "model": _Attack(tmp_path / "victim")}, tmp_path / "resume.pt")
    with pytest.raises(Exception, match=r"weights_only|Unsupported|posix"):
        checkpoint.load_state(tmp_path / "resume.pt")
    assert not (tmp_path / "victim").exists()


def test_trust_is_r_between_its_anchors_and_zero_without_frames(tiny_checkpoint: Any, tmp_path: Path) -> None:
    anchors = {
        "text": {"clean": 0.8, "fully_degraded": 0.4, "rescaled": True},
        "audio": {"clean": 0.4, "fully_degraded": 0.5, "rescaled": False},
        "vision": {"clean": 0.6, "fully_degraded": 0.5, "rescaled": True},
    }
    trained = checkpoint.load(tiny_checkpoint(tmp_path, trust=anchors))
    r = torch.tensor([[0.7, 0.45, 0.55], [0.9, 0.3, 0.55], [0.1, 0.3, 0.55]])
    present = torch.tensor([[True, True, True], [True, True, False], [True, False, True]])
    expected = [[0.75, 0.45, 0.5], [1.0, 0.3, 0.0], [0.0, 0.0, 0.5]]
    assert torch.allclose(trained.trust(r, present), torch.tensor(expected), atol=1e-6)


def test_a_checkpoint_of_format_1_loads_with_current_key_names(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_checkpoint(tmp_path / "checkpoint")
    current = checkpoint.read_config(folder)
    assert current is not None
    text = (folder / "model.json").read_text()
    config = json.loads(text)
    del config["format"]
    text = json.dumps(config)
    for old, new in (
        ("sees", "variance_context"),
        ("worthless", "fully_degraded"),
        ("alike_share", "shared_draw_share"),
    ):
        assert f'"{new}"' in text
        text = text.replace(f'"{new}"', f'"{old}"')
    (folder / "model.json").write_text(text)
    restored: Any = checkpoint.read_config(folder)
    assert {**(restored or {}), "format": 2} == current
    checkpoint.load(folder)


def test_a_checkpoint_from_before_a_key_with_a_default_loads(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    for model in ("qamoe", "paper"):
        folder = tiny_checkpoint(tmp_path / model, model=model)
        config = json.loads((folder / "model.json").read_text())
        del config["models"]["encoders"]["text"]["frozen_epochs"], config["train"]["clips"]
        for key in ("gate", "prior"):
            config["models"][model].pop(key, None)
        (folder / "model.json").write_text(json.dumps(config))
        assert checkpoint.load(folder).config["model"] == model


def test_a_checkpoint_of_a_later_format_is_refused(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "checkpoint")
    config = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(config | {"format": 3}))
    with pytest.raises(UserError, match=r"\b3\b.*\b1\b.*\b2\b") as refusal:
        checkpoint.load(folder)
    assert str(folder / "model.json") in str(refusal.value)


def _changed(folder: Path, dotted: str, value: Any) -> None:
    """Set a value of model.json, or remove it if the value is Ellipsis."""
    config = json.loads((folder / "model.json").read_text())
    *parents, key = dotted.split(".")
    parent = config
    for name in parents:
        parent = parent[name]
    if value is ...:
        del parent[key]
    else:
        parent[key] = value
    (folder / "model.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("dotted", "value"),
    [
        ("format", True),
        ("format", [2]),
        ("model", ...),
        ("model", 3),
        ("stats", ...),
        ("stats.audio", ...),
        ("stats.audio.kept", [0, 0]),
        ("stats.audio.mean", [0.0] * 3),
        ("stats.audio.deviation", [0.0, 1.0]),
        ("stats.text.vocabulary", 10**12),
        ("stats.text.unk", 10**6),
        ("stats.text.special", "all"),
        ("modalities", ["text", "smell"]),
        ("modalities", ["text", "text", "audio"]),
        ("inputs.audio", -1),
        ("inputs.audio", 10**12),
        ("max_frames", {}),
        ("target_std", 0.0),
        ("target_mean", float("nan")),
        ("calibration", {}),
        ("calibration.sigmas", {"0.9": float("inf")}),
        ("trust", None),
        ("trust", {}),
        ("trust.text", ...),
        ("extract.text", {"extractor": {}}),
        ("extract.text", ...),
        ("extract.text", {"extractor": "minilm", "max_tokens": 10**9}),
        ("models.encoders", None),
        ("models.encoders.layers", 10**9),
        ("models.encoders.width", 10**9),
        ("models.encoders.width", 2**40),
        ("models.encoders.stride.audio", 10**12),
        ("models.qamoe.experts", 10**9),
        ("models.qamoe.hidden", 10**15),
    ],
)
def test_a_tampered_config_is_refused_before_anything_is_built(
    tiny_checkpoint: Any, tmp_path: Path, dotted: str, value: Any
) -> None:
    folder = tiny_checkpoint(tmp_path / "1")
    _changed(folder, dotted, value)
    with pytest.raises(UserError, match=r"model\.json") as refusal:
        checkpoint.load(folder)
    assert str(folder) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("dotted", ["class_shares", "calibration", "task"])
def test_a_missing_key_of_a_classifier_is_refused(tiny_checkpoint: Any, tmp_path: Path, dotted: str) -> None:
    folder = tiny_checkpoint(tmp_path / "1")
    config = json.loads((folder / "model.json").read_text())
    task = {"kind": "classification", "low": None, "high": None, "classes": ["a", "b"]}
    config |= {"task": task, "class_shares": [0.5, 0.5], "calibration": {"temperature": 1.0}}
    config["stats"]["task"] = task
    config.pop(dotted)
    (folder / "model.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=dotted):
        checkpoint.load(folder)


@pytest.mark.parametrize("damage", [float("nan"), float("inf"), torch.float16, torch.int64])
def test_weights_of_other_values_are_refused(tiny_checkpoint: Any, tmp_path: Path, damage: Any) -> None:
    from safetensors.torch import load_file, save_file

    folder, name = tiny_checkpoint(tmp_path / "1"), "mixture.router.semantic.weight"
    weights = load_file(folder / "weights.safetensors")
    if isinstance(damage, float):
        weights[name][0, 0] = damage
    else:
        weights[name] = weights[name].to(damage)
    save_file(weights, folder / "weights.safetensors")
    with pytest.raises(UserError, match=name) as refusal:
        checkpoint.load(folder)
    assert str(folder / "weights.safetensors") in str(refusal.value)
