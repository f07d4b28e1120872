"""The confidence of recognised words reaches the model, and a wrong list of it is refused with its row."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.io import wavfile

from qamoe.config.extractor_settings import WhisperSettings
from qamoe.errors import UserError
from qamoe.inference.extraction_worker import extract_file
from qamoe.inference.predict import predict
from qamoe.models import checkpoint

TOKENS = [101, 2023, 2001, 2204, 102]


def rows(confidence: Any) -> pd.DataFrame:
    return pd.DataFrame(
        {"tokens": pd.Series([TOKENS], dtype=object), "confidence": pd.Series([confidence], dtype=object)}
    )


def test_doubtful_words_change_the_prediction_and_typed_ones_do_not(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    trained = checkpoint.load(tiny_checkpoint(tmp_path / "model"))
    typed = predict(trained, rows(None))["r_text"][0]
    assert predict(trained, rows([1.0] * 5))["r_text"][0] == typed
    assert predict(trained, rows([1.0, 0.1, 0.1, 0.1, 1.0]))["r_text"][0] != typed


def test_a_model_that_was_trained_without_confidences_ignores_them(
    tiny_checkpoint: Callable[..., Path], tiny_params: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(tiny_params.train.common.degrade), "recognised_share", 0.0, raising=False)
    common = tiny_params.train.common
    without = common.model_copy(update={"degrade": common.degrade.model_copy(update={"recognised_share": 0.0})})
    folder = tiny_checkpoint(tmp_path / "model", train=without.model_dump(mode="json"))
    trained = checkpoint.load(folder)
    assert not trained.model.encode.reads_confidence
    assert predict(trained, rows([0.5] * 5))["r_text"][0] == predict(trained, rows(None))["r_text"][0]


@pytest.mark.parametrize("wrong", [[0.5] * 4, [1.5] * 5, [float("nan")] * 5, "high", [[1.0] * 5]])
def test_a_confidence_that_does_not_fit_its_tokens_is_refused(
    wrong: Any, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    trained = checkpoint.load(tiny_checkpoint(tmp_path / "model"))
    with pytest.raises(UserError, match=r"Row 0: confidence .* 5 numbers from 0 to 1"):
        predict(trained, rows(wrong))


def test_absent_weights_are_not_taken_for_a_file_that_cannot_be_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wavfile.write(tmp_path / "voice.wav", 16_000, np.random.default_rng(1).normal(0, 0.1, 16_000).astype(np.float32))
    monkeypatch.setenv("QAMOE_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match="qamoe weights fetch whisper-base"):
        extract_file(
            tmp_path / "voice.wav",
            {"audio": WhisperSettings(extractor="whisper", rate=10.0, model="whisper-base", layer=2)},
        )
