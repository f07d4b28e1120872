"""Fine-tuning a text encoder with its model: a tiny encoder, built from its config, with the vocabulary of the ids."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from qamoe.config.params import Params, TextEncoder
from qamoe.dataset.degraded_split import DegradedSplit, rows_in_batches
from qamoe.errors import UserError
from qamoe.evaluation import protocol
from qamoe.extractors.minilm import model_folder
from qamoe.extractors.tokens import vocabulary_digest
from qamoe.inference.predict import predict, raw_frames
from qamoe.models import checkpoint, text_encoder_finetuned
from qamoe.pipeline import train as stage
from qamoe.training.trainer import Trainer, TrainingJob, learning_rate

pytestmark = pytest.mark.integration  # trains encoders

ENGLISH = vocabulary_digest(model_folder())


class Stopped(Exception):
    """Stands in for a kill."""


@pytest.fixture(scope="module")
def folder(tiny_encoder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def finetuned_setting(setting: Any, folder: Path) -> Any:
    """The `setting` with text as ids; finetuned_setting.train(folder, model, **text) trains two epochs."""

    def ids(views: DegradedSplit) -> DegradedSplit:
        return DegradedSplit(views.store, views.views, views.modalities, views.references, None)

    valid = ids(setting.valid)

    def params(common: dict[str, Any] | None = None, **text: Any) -> Params:
        content = setting.params.model_dump(mode="json")
        content["train"]["common"] |= {"epochs": 2, "schedule": "linear"} | (common or {})
        content["models"]["encoders"]["text"] |= {"finetune": True, "encoder": str(folder), "lr": 0.002} | text
        return Params.model_validate(content)

    def train(checkpoint_folder: Path, model: str = "qamoe", on_epoch: Any = lambda line: None, **changes: Any) -> Path:
        checkpoint_folder.mkdir(parents=True, exist_ok=True)
        data = (setting.stats, ids(setting.train), valid, setting.cells, setting.digests)
        Trainer(TrainingJob(model, 1, params(**changes), *data, checkpoint_folder, "cpu"), on_epoch).run()
        return checkpoint_folder

    return SimpleNamespace(train=train, params=params, valid=valid, stats=setting.stats)


@pytest.fixture(scope="module")
def whole(finetuned_setting: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finetuned_setting.train(tmp_path_factory.mktemp("whole"))


def encoder_weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    weights = load_file(folder / "weights.safetensors")
    prefix = "encode.reader.encoder."
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def test_training_changes_the_encoder_at_its_own_learning_rate(
    finetuned_setting: Any, folder: Path, whole: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    start = load_file(folder / "model.safetensors")
    word = "embeddings.word_embeddings.weight"
    unchanged = encoder_weights(finetuned_setting.train(tmp_path, lr=1e-12))
    changed = encoder_weights(whole)
    assert set(changed) == {name for name in start if not name.startswith("pooler.")}
    assert all(torch.allclose(unchanged[name], start[name], atol=1e-7) for name in unchanged)
    assert (changed[word] - start[word]).abs().max() > 1e-4


def test_a_frozen_checkpoint_does_not_contain_an_encoder(train: Any, tmp_path: Path) -> None:
    train(tmp_path, common={"epochs": 1})
    assert encoder_weights(tmp_path) == {}
    config = checkpoint.read_config(tmp_path)
    assert config is not None
    assert "text_encoder" not in config
    assert checkpoint.load(tmp_path).frozen_encoder


def test_a_frozen_encoder_keeps_its_weights_and_learns_afterwards(
    finetuned_setting: Any, folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    first = load_file(folder / "model.safetensors")
    moved = {}
    for frozen, epochs in ((0, 1), (1, 1), (1, 8)):
        done = finetuned_setting.train(
            tmp_path / f"{frozen}-{epochs}", common={"epochs": epochs, "patience": 9}, frozen_epochs=frozen
        )
        weights = encoder_weights(done)
        assert set(weights) <= set(first)
        moved[frozen, epochs] = any(not torch.equal(value, first[name]) for name, value in weights.items())
        assert checkpoint.load(done).config["best_epoch"] >= min(epochs, 2)
    assert moved == {(0, 1): True, (1, 1): False, (1, 8): True}


@pytest.mark.parametrize("stop", [1, 2])
def test_a_resumed_training_gives_the_same_bits(finetuned_setting: Any, whole: Path, tmp_path: Path, stop: int) -> None:
    def killed(line: dict[str, Any]) -> None:
        if line["epoch"] == stop:
            raise Stopped

    with pytest.raises(Stopped):
        finetuned_setting.train(tmp_path, on_epoch=killed)
    finetuned_setting.train(tmp_path)
    for name in ("weights.safetensors", "model.json"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("model", ["mean", "text", "concat", "oracle", "moe"])
def test_every_model_fine_tunes_in_both_precisions(finetuned_setting: Any, tmp_path: Path, model: str) -> None:
    for precision in ("float32", "bfloat16"):
        checkpoint_folder = finetuned_setting.train(
            tmp_path / precision, model, common={"epochs": 1, "precision": precision}, pooling="mean"
        )
        assert bool(encoder_weights(checkpoint_folder)) == (model != "mean")
        assert np.isfinite(checkpoint.load(checkpoint_folder).config["selection"])


def test_a_checkpoint_loads_without_the_encoders_folder(
    finetuned_setting: Any, tiny_encoder: Any, tmp_path: Path
) -> None:
    encoder_folder = tiny_encoder(tmp_path / "encoder")
    checkpoint_folder = finetuned_setting.train(tmp_path / "1", common={"epochs": 1}, encoder=str(encoder_folder))
    shutil.rmtree(encoder_folder)
    trained = checkpoint.load(checkpoint_folder)
    assert trained.frozen_encoder is None
    config = (checkpoint_folder / "model.json").read_text()
    assert json.loads(config)["text_encoder"]["hidden_size"] == 8
    assert str(encoder_folder) not in json.dumps(json.loads(config)["text_encoder"])
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint_folder / "weights.safetensors")
    weights.pop("encode.reader.encoder.embeddings.LayerNorm.weight")
    save_file(weights, checkpoint_folder / "weights.safetensors")
    with pytest.raises(UserError, match=r"LayerNorm\.weight") as caught:
        checkpoint.load(checkpoint_folder)
    assert str(checkpoint_folder / "weights.safetensors") in str(caught.value)


def test_evaluation_has_no_dropout_and_does_not_depend_on_other_clips(finetuned_setting: Any, whole: Path) -> None:
    trained: Any = checkpoint.load(whole)
    together = trained.predict(finetuned_setting.valid.batch(1, range(10)))
    assert torch.equal(together.value, trained.predict(finetuned_setting.valid.batch(1, range(10))).value)
    for row in range(10):
        alone = trained.predict(finetuned_setting.valid.batch(1, [row]))
        assert torch.allclose(alone.value, together.value[row], atol=1e-5)
    trained.model.train()
    assert not torch.equal(trained.predict(finetuned_setting.valid.batch(1, range(10))).value, together.value)


def test_evaluation_and_serving_agree(finetuned_setting: Any, whole: Path) -> None:
    trained, store = checkpoint.load(whole), finetuned_setting.valid.store
    cell = protocol.Cell("clean", "clean", "clean", 0.0, (finetuned_setting.valid.views[0],), ())
    (rows,) = protocol.measure([trained], finetuned_setting.valid, [cell], "cpu")
    columns: dict[str, Any] = {"tokens": [store.sequence("text", row).tolist() for row in range(len(store))]}
    for m in ("audio", "vision"):
        columns[m] = [raw_frames(store.sequence(m, row), finetuned_setting.stats[m]) for row in range(len(store))]
    served = predict(trained, pd.DataFrame(columns, index=store.clip_ids)).loc[rows["clip_id"]]
    np.testing.assert_allclose(rows["prediction"], served["score"], atol=1e-5)
    np.testing.assert_allclose(rows["trust_text"], served["trust_text"], atol=1e-5)
    assert rows["prediction"].nunique() > 1


def test_a_frozen_model_reads_ids_too(
    finetuned_setting: Any, setting: Any, tiny_checkpoint: Any, tmp_path: Path
) -> None:
    """Evaluation can then measure it on the same views as a fine-tuned model."""
    from qamoe.models import text_encoder_frozen as text

    trained: Any = checkpoint.load(tiny_checkpoint(tmp_path))
    batch = finetuned_setting.valid.batch(2, range(4))
    states = batch.with_x(text=text.encode(batch.x["text"], batch.mask["text"]))
    assert torch.equal(trained.predict(batch).value, trained.predict(states).value)


def finetuned(folder: Path, pooling: str = "attention") -> TextEncoder:
    content = {"finetune": True, "encoder": str(folder), "lr": 5e-5, "dropout": 0.1, "pooling": pooling}
    return TextEncoder.model_validate(content)


@pytest.mark.parametrize("pooling", ["attention", "mean"])
def test_padding_and_absent_text_do_not_change_states(folder: Path, pooling: str) -> None:
    sizes = finetuned(folder, pooling)
    encoder = text_encoder_finetuned.FinetunedEncoder(text_encoder_finetuned.architecture(sizes, 50, ENGLISH), sizes)
    encoder.load_pretrained(sizes)
    encoder.eval()
    ids = torch.tensor([[101, 2204, 102], [101, 102, 0], [0, 0, 0]])
    states, mask = encoder(ids, ids > 0)
    wider, wider_mask = encoder(
        torch.nn.functional.pad(ids, (0, 4), value=77), torch.nn.functional.pad(ids > 0, (0, 4))
    )
    length = 1 if pooling == "mean" else 3
    assert states.shape == (3, length, 8)
    assert torch.allclose(wider[:, :length], states, atol=1e-6)
    assert torch.equal(mask.any(1), torch.tensor([True, True, False]))
    assert torch.equal(wider_mask.sum(1), mask.sum(1))
    assert not states[2].any()


def test_batches_hold_texts_of_similar_length() -> None:
    lengths = np.array([9, 2, 5, 2, 9, 5, 2, 5, 9, 1])
    by_seed = [
        [rows.tolist() for rows in rows_in_batches(10, 3, np.random.default_rng(seed), lengths)] for seed in (1, 2)
    ]
    for batches in by_seed:
        assert sorted(row for rows in batches for row in rows) == list(range(10))
        assert sorted(sorted(lengths[rows].tolist()) for rows in batches) == [[1, 2, 2], [2, 5, 5], [5, 9, 9], [9]]
    assert by_seed[0] != by_seed[1]
    assert [rows.tolist() for rows in rows_in_batches(3, 2, None, np.array([3, 1, 2]))] == [[1, 2], [0]]


def test_the_linear_schedule_falls_to_zero(finetuned_setting: Any) -> None:
    common = finetuned_setting.params({"warmup_share": 0.1}).train.common
    rates = [learning_rate(step, 100, common, 0.1) for step in range(100)]
    assert rates[9] == rates[10] == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.05)
    assert rates[99] == pytest.approx(0.1 / 90)


def test_each_epoch_has_its_own_view_and_text_is_not_encoded_in_advance(
    finetuned_setting: Any, tiny_corpus: Any, tiny_stats: Any, tmp_path: Path
) -> None:
    tiny_corpus(tmp_path)
    params = finetuned_setting.params({"epochs": 7})
    assert params.train.common.degrade.views == 3
    for name in ("qamoe", "specialist-missing-03"):
        train, valid, _ = stage.open_splits(params, tiny_stats, tmp_path, name)
        assert [view.number for view in train.views] == list(range(7))
        assert (train.states, valid.states) == (None, None)
        assert train.batch(0, [0, 1]).x["text"].dtype == torch.int64
    assert not (tmp_path / "train").exists()


def test_other_encoder_weights_change_the_training_digest(
    finetuned_setting: Any, tiny_encoder: Any, tmp_path: Path
) -> None:
    params = finetuned_setting.params(encoder=str(tiny_encoder(tmp_path / "encoder")))
    before = stage.training_digests(params, "qamoe", "data")
    assert stage.training_digests(params, "qamoe", "data") == before
    tiny_encoder(tmp_path / "encoder", initializer_range=0.5)
    assert stage.training_digests(params, "qamoe", "data")["params"] != before["params"]


def refusal(encoder: Any, tokens: int = 50) -> str:
    sizes = finetuned(encoder)
    with pytest.raises(UserError) as caught:
        text_encoder_finetuned.FinetunedEncoder(
            text_encoder_finetuned.architecture(sizes, tokens, ENGLISH), sizes
        ).load_pretrained(sizes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_encoder_that_does_not_fit_the_stored_ids_is_refused(
    folder: Path, tiny_encoder: Any, tmp_path: Path
) -> None:
    message = refusal("bert-base-uncased")
    assert "models.encoders.text.encoder" in message
    assert "'bert-base-uncased'" in message
    assert "minilm" in message
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refusal(tmp_path / "empty")
    message = refusal(folder, 65)
    assert str(folder) in message
    assert "64" in message
    assert "preprocess.max_frames.text is 65" in message
    message = refusal(tiny_encoder(tmp_path / "decoder", is_decoder=True))
    assert str(tmp_path / "decoder") in message
    assert "decoder" in message.replace(str(tmp_path / "decoder"), "")

    other = tiny_encoder(tmp_path / "other")
    content = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(content.replace('"movie"', '"moive"'))
    (other / "vocab.txt").unlink()
    message = refusal(other)
    assert str(other) in message
    assert "vocabulary" in message
    assert "extract.text" in message

    bare = tiny_encoder(tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    assert str(bare) in refusal(bare)
    (bare / "model.safetensors").write_bytes(b"no weights")
    assert str(bare) in refusal(bare)

    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop("embeddings.word_embeddings.weight")
    save_file(weights, bare / "model.safetensors", {"format": "pt"})
    message = refusal(bare)
    assert str(bare) in message
    assert "1" in message.replace(str(bare), "")
    assert "embeddings.word_embeddings.weight" in message
