"""What is served is what was evaluated: alone or in a batch, from memory or from the registered files."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from qamoe.errors import UserError
from qamoe.inference import predict as serving
from qamoe.inference.predict import REGRESSION_COLUMNS, output_columns, predict, raw_frames
from qamoe.models import checkpoint

DRAWS = np.random.default_rng(3)
AUDIO = [DRAWS.normal([5.0, 9.0, -1.0], [2.0, 1.0, 0.5], (length, 3)) for length in (7, 3, 90)]
VISION = [DRAWS.normal(0.1, 0.3, (length, 2)) for length in (2, 11, 5)]
CLIPS = pd.DataFrame(
    {
        "text": ["a lovely film", None, "I could not stay awake, and I tried"],
        "audio": [AUDIO[0], AUDIO[1], None],
        "vision": [VISION[0], None, VISION[2]],
    },
    index=["x", "y", "z"],
)


@pytest.fixture(scope="module")
def trained(tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return checkpoint.load(tiny_checkpoint(tmp_path_factory.mktemp("trained")))


def numbers(frame: pd.DataFrame) -> np.ndarray:
    routing = np.array([np.nan if r is None else r for r in frame["routing"]], float).reshape(len(frame), -1)
    return np.concatenate([frame[list(REGRESSION_COLUMNS)].to_numpy(float), routing], axis=1)


def test_a_batch_equals_its_rows(trained):
    whole = predict(trained, CLIPS)
    assert list(whole.columns) == output_columns({"kind": "regression"})
    assert list(whole.index) == ["x", "y", "z"]
    alone = pd.concat([predict(trained, CLIPS.loc[[name]]) for name in CLIPS.index])
    np.testing.assert_allclose(numbers(whole), numbers(alone), atol=1e-5)
    assert whole["score"].nunique() == 3  # and they are not all the same
    backwards = predict(trained, CLIPS.iloc[::-1]).iloc[::-1]
    np.testing.assert_allclose(numbers(whole), numbers(backwards), atol=1e-5)


def test_more_clips_than_a_batch_keep_their_order(trained, monkeypatch):
    monkeypatch.setattr(serving, "_BATCH", 2)
    split = predict(trained, CLIPS)
    monkeypatch.undo()
    np.testing.assert_allclose(numbers(split), numbers(predict(trained, CLIPS)), atol=1e-5)


def test_the_interval_is_the_conformal_one_and_a_missing_modality_is_not_trusted(trained):
    found = predict(trained, CLIPS)
    reach = trained.config["calibration"]["sigmas"]["0.9"] * np.sqrt(found["variance"])
    np.testing.assert_allclose(found["high_90"] - found["score"], reach)
    np.testing.assert_allclose(found["score"] - found["low_90"], reach)
    assert found.loc["y", "trust_text"] == found.loc["y", "trust_vision"] == found.loc["z", "trust_audio"] == 0
    assert found[[f"r_{m}" for m in ("text", "audio", "vision")]].notna().all(axis=None)
    assert all(sum(share) == pytest.approx(1) and sum(s > 0 for s in share) >= 2 for share in found["routing"])


def test_every_way_of_giving_a_clip_means_the_same(trained):
    from qamoe.extractors.minilm import MiniLM

    expected = numbers(predict(trained, CLIPS))
    lists = CLIPS.map(lambda value: value.tolist() if isinstance(value, np.ndarray) else value)
    np.testing.assert_allclose(numbers(predict(trained, lists)), expected, atol=1e-6)
    through_json = pd.DataFrame(json.loads(json.dumps(lists.to_dict("records"))))
    np.testing.assert_allclose(numbers(predict(trained, through_json)), expected, atol=1e-6)
    nested = CLIPS.map(lambda value: np.array([*value, None], object)[:-1] if isinstance(value, np.ndarray) else value)
    np.testing.assert_allclose(numbers(predict(trained, nested)), expected, atol=1e-6)  # as parquet gives it back
    tokens = [None if text is None else MiniLM(50).extract(text)[0] for text in CLIPS["text"].replace({np.nan: None})]
    given = CLIPS.assign(tokens=tokens, text=["something else", None, "other"])
    np.testing.assert_allclose(numbers(predict(trained, given)), expected, atol=1e-6)


@pytest.mark.parametrize("nothing", [None, float("nan"), "", "  "])
def test_all_kinds_of_nothing_are_a_missing_text(trained, nothing):
    found = predict(trained, pd.DataFrame({"text": [nothing, "word"], "audio": [AUDIO[0], None]}))
    np.testing.assert_allclose(numbers(found)[:1], numbers(predict(trained, CLIPS.loc[["x"], ["audio"]])), atol=1e-5)


def test_nothing_at_all_and_no_rows_are_answered(trained):
    found = predict(trained, pd.DataFrame({"text": [None]}))
    assert np.isfinite(found["score"]).all()
    assert found[["trust_text", "trust_audio", "trust_vision"]].eq(0).all(axis=None)
    assert predict(trained, pd.DataFrame({"text": []})).shape == (0, len(REGRESSION_COLUMNS) + 1)


def test_frames_are_cleaned_as_in_training(trained):
    """NaN and infinities count as the training mean; a dropped column and frames behind the limit count for nothing."""
    one = AUDIO[0].copy()
    one[:, 1] = 1e9  # constant in training, so dropped
    one[2, 0] = np.inf
    two = one.copy()
    two[:, 1] = np.nan
    two[2, 0] = trained.config["stats"]["audio"]["mean"][0]
    long = np.concatenate([np.tile(two, (60, 1)), np.full((10, 3), 99.0)])
    given = pd.DataFrame({"audio": [one, two, long, long[: trained.config["max_frames"]["audio"]]]})
    found = numbers(predict(trained, given))
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    np.testing.assert_allclose(found[2], found[3], atol=1e-6)
    assert np.abs(found[1] - found[2])[0] > 1e-6


def test_raw_frames_undo_the_standardising(tiny_stats):
    from qamoe.data.normalise import Columns, clean

    columns = Columns.from_json(tiny_stats["audio"])
    standard = clean(AUDIO[2], columns)
    raw = raw_frames(standard, tiny_stats["audio"])
    np.testing.assert_allclose(raw[:, [0, 2]], AUDIO[2][:, [0, 2]], atol=1e-5)
    np.testing.assert_array_equal(clean(raw, columns), standard)


def test_a_model_without_quality_leaves_trust_and_routing_empty(tiny_checkpoint, tmp_path):
    found = predict(checkpoint.load(tiny_checkpoint(tmp_path, model="concat")), CLIPS)
    assert found["score"].notna().all()
    assert found.drop(columns=["score", "low_90", "high_90", "variance"]).isna().all(axis=None)


@pytest.mark.parametrize(
    ("column", "value", "sentence"),
    [
        ("audio", [[1.0, 2.0]], "Row 1: audio has frames of 2 columns; this model reads 3"),
        ("audio", [1.0, 2.0, 3.0], "Row 1: audio has 1 dimensions"),
        ("audio", [[1.0, 2.0, 3.0], [1.0]], "Row 1: audio is no table of numbers"),
        ("vision", [["a", "b"]], "Row 1: vision is no table of numbers"),
        ("vision", 5, "Row 1: vision is no table of numbers"),
        ("text", 5, "Row 1: text is int"),
        ("tokens", [101, 99999], "Row 1: tokens must be"),
        ("tokens", [1.5], "Row 1: tokens must be"),
        ("tokens", "word", "Row 1: tokens must be"),
    ],
)
def test_input_of_another_kind_is_refused_in_a_sentence(trained, column, value, sentence):
    with pytest.raises(UserError, match=sentence):
        predict(trained, pd.DataFrame({column: pd.Series([None, value], dtype=object)}))


def test_the_logged_model_predicts_as_its_checkpoint_and_refuses_as_a_client_error(records, tiny_checkpoint, tmp_path):
    import mlflow
    from mlflow.exceptions import MlflowException

    from qamoe.tracking.runs import record_training

    folder = tiny_checkpoint(tmp_path / "checkpoint")
    run = records.get_run(record_training(records, folder, "qa-moe"))
    model = mlflow.pyfunc.load_model(f"models:/{run.data.tags['qamoe.logged_model']}")
    for clips in (CLIPS, CLIPS[["text"]]):
        expected = predict(checkpoint.load(folder), clips)
        np.testing.assert_array_equal(numbers(model.predict(clips)), numbers(expected))
    with pytest.raises(MlflowException, match="Row 0: audio has frames of 1 columns") as refusal:
        model.predict(pd.DataFrame({"audio": [[[1.0]]]}))
    assert refusal.value.get_http_status_code() == 400
    given = ["text", "tokens", "audio", "vision", "path", "start_s", "end_s"]
    assert model.metadata.get_input_schema().input_names() == given


@pytest.mark.slow
def test_the_model_loads_by_its_own_copy_of_the_code(records, tiny_checkpoint, tmp_path):
    """In a Python whose path has no qamoe: what a serving container is."""
    from qamoe.tracking.runs import record_training

    run = records.get_run(record_training(records, tiny_checkpoint(tmp_path / "checkpoint"), "qa-moe"))
    code = (
        "import sys\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f)]\n"
        "sys.path[:] = [p for p in sys.path if not p.endswith('src') and p]\n"
        "try:\n    import qamoe\n    raise SystemExit('qamoe is on the path')\nexcept ImportError:\n    pass\n"
        "import mlflow, pandas\n"
        f"model = mlflow.pyfunc.load_model('models:/{run.data.tags['qamoe.logged_model']}')\n"
        "print(model.predict(pandas.DataFrame({'text': ['a lovely film']}))['score'][0])\n"
        "import qamoe\nassert 'mlartifacts' in qamoe.__file__, qamoe.__file__\n"
        "assert not {'optuna', 'matplotlib', 'av'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert np.isfinite(float(done.stdout))
