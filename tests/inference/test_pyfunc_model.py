"""Predictions are the same for one clip or a batch, from memory or from the registered files."""

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
        "text": ["a lovely movie", None, "I could not stay awake, and I tried"],
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
    task: Any = {"kind": "regression"}
    assert list(whole.columns) == output_columns(task)
    assert list(whole.index) == ["x", "y", "z"]
    alone = pd.concat([predict(trained, CLIPS.loc[[name]]) for name in CLIPS.index])
    np.testing.assert_allclose(numbers(whole), numbers(alone), atol=1e-5)
    assert whole["score"].nunique() == 3  # clips differ
    backwards = predict(trained, CLIPS.iloc[::-1]).iloc[::-1]
    np.testing.assert_allclose(numbers(whole), numbers(backwards), atol=1e-5)


def test_more_clips_than_a_batch_keep_their_order(trained, monkeypatch):
    monkeypatch.setattr(serving, "_BATCH", 2)
    split = predict(trained, CLIPS)
    monkeypatch.undo()
    np.testing.assert_allclose(numbers(split), numbers(predict(trained, CLIPS)), atol=1e-5)


def test_the_interval_is_conformal_and_a_missing_modality_has_trust_0(trained):
    predictions: Any = predict(trained, CLIPS)
    half_width = trained.config["calibration"]["sigmas"]["0.9"] * np.sqrt(predictions["variance"])
    np.testing.assert_allclose(predictions["high_90"] - predictions["score"], half_width)
    np.testing.assert_allclose(predictions["score"] - predictions["low_90"], half_width)
    assert (
        predictions.loc["y", "trust_text"]
        == predictions.loc["y", "trust_vision"]
        == predictions.loc["z", "trust_audio"]
        == 0
    )
    assert predictions[[f"r_{m}" for m in ("text", "audio", "vision")]].notna().all(axis=None)
    assert all(sum(share) == pytest.approx(1) and sum(s > 0 for s in share) >= 2 for share in predictions["routing"])


def test_every_input_format_gives_the_same_predictions(trained):
    from qamoe.extractors.minilm import MiniLM

    expected = numbers(predict(trained, CLIPS))
    lists = CLIPS.map(lambda value: value.tolist() if isinstance(value, np.ndarray) else value)
    np.testing.assert_allclose(numbers(predict(trained, lists)), expected, atol=1e-6)
    through_json = pd.DataFrame(json.loads(json.dumps(lists.to_dict("records"))))
    np.testing.assert_allclose(numbers(predict(trained, through_json)), expected, atol=1e-6)
    object_arrays = CLIPS.map(
        lambda value: np.array([*value, None], object)[:-1] if isinstance(value, np.ndarray) else value
    )
    np.testing.assert_allclose(numbers(predict(trained, object_arrays)), expected, atol=1e-6)  # as read from parquet
    tokens: Any = [
        None if text is None else MiniLM(50).extract(text)[0] for text in CLIPS["text"].replace({np.nan: None})
    ]
    other_text: Any = ["something else", None, "other"]
    with_tokens = CLIPS.assign(tokens=tokens, text=other_text)
    np.testing.assert_allclose(numbers(predict(trained, with_tokens)), expected, atol=1e-6)


@pytest.mark.parametrize("empty", [None, float("nan"), "", "  "])
def test_all_kinds_of_empty_text_are_a_missing_text(trained, empty):
    predictions = predict(trained, pd.DataFrame({"text": [empty, "word"], "audio": [AUDIO[0], None]}))
    np.testing.assert_allclose(
        numbers(predictions)[:1], numbers(predict(trained, CLIPS.loc[["x"], ["audio"]])), atol=1e-5
    )


def test_an_empty_clip_and_an_empty_table_are_predicted(trained):
    predictions = predict(trained, pd.DataFrame({"text": [None]}))
    assert np.isfinite(predictions["score"]).all()
    assert predictions[["trust_text", "trust_audio", "trust_vision"]].eq(0).all(axis=None)
    assert predict(trained, pd.DataFrame({"text": []})).shape == (0, len(REGRESSION_COLUMNS) + 1)


def test_frames_are_cleaned_as_in_training(trained):
    """NaN and infinities become the training mean; dropped columns and frames beyond the limit are ignored."""
    one = AUDIO[0].copy()
    one[:, 1] = 1e9  # constant in training, so dropped
    one[2, 0] = np.inf
    two = one.copy()
    two[:, 1] = np.nan
    two[2, 0] = trained.config["stats"]["audio"]["mean"][0]
    long = np.concatenate([np.tile(two, (60, 1)), np.full((10, 3), 99.0)])
    clips = pd.DataFrame({"audio": [one, two, long, long[: trained.config["max_frames"]["audio"]]]})
    predictions = numbers(predict(trained, clips))
    np.testing.assert_allclose(predictions[0], predictions[1], atol=1e-6)
    np.testing.assert_allclose(predictions[2], predictions[3], atol=1e-6)
    assert np.abs(predictions[1] - predictions[2])[0] > 1e-6


def test_raw_frames_invert_standardisation(tiny_stats):
    from qamoe.data.normalise import Columns, clean

    columns = Columns.from_json(tiny_stats["audio"])
    standard = clean(AUDIO[2], columns)
    raw = raw_frames(standard, tiny_stats["audio"])
    np.testing.assert_allclose(raw[:, [0, 2]], AUDIO[2][:, [0, 2]], atol=1e-5)
    np.testing.assert_array_equal(clean(raw, columns), standard)


def test_a_model_without_quality_leaves_trust_and_routing_empty(tiny_checkpoint, tmp_path):
    predictions = predict(checkpoint.load(tiny_checkpoint(tmp_path, model="concat")), CLIPS)
    assert predictions["score"].notna().all()
    assert predictions.drop(columns=["score", "low_90", "high_90", "variance"]).isna().all(axis=None)


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("audio", [[1.0, 2.0]], r"\b2\b.*\b3\b"),
        ("audio", [1.0, 2.0, 3.0], r"\b1 dimensions"),
        ("audio", [[1.0, 2.0, 3.0], [1.0]], "numbers"),
        ("vision", [["a", "b"]], "numbers"),
        ("vision", 5, "numbers"),
        ("text", 5, r"\bint\b"),
        ("tokens", [101, 99999], r"\b0\b.*\d"),
        ("tokens", [1.5], r"\b0\b.*\d"),
        ("tokens", "word", r"\b0\b.*\d"),
    ],
)
def test_input_of_another_type_or_shape_is_refused(trained, column, value, reason):
    with pytest.raises(UserError, match=f"Row 1: {column}.*{reason}"):
        predict(trained, pd.DataFrame({column: pd.Series([None, value], dtype=object)}))


@pytest.mark.integration
def test_the_logged_model_predicts_as_its_checkpoint_and_raises_client_errors(records, tiny_checkpoint, tmp_path):
    import mlflow
    from mlflow.exceptions import MlflowException

    from qamoe.tracking.runs import record_training

    folder = tiny_checkpoint(tmp_path / "checkpoint")
    run = records.get_run(record_training(records, folder, "qa-moe"))
    model = mlflow.pyfunc.load_model(f"models:/{run.data.tags['qamoe.logged_model']}")
    for clips in (CLIPS, CLIPS[["text"]]):
        expected = predict(checkpoint.load(folder), clips)
        np.testing.assert_array_equal(numbers(model.predict(clips)), numbers(expected))
    with pytest.raises(MlflowException, match=r"Row 0: audio.*\b1\b") as refusal:
        model.predict(pd.DataFrame({"audio": [[[1.0]]]}))
    assert refusal.value.get_http_status_code() == 400
    texts = ["a lovely movie", "a dull one"]
    scores = numbers(predict(checkpoint.load(folder), pd.DataFrame({"text": texts})))
    records_of_texts = [{"text": np.array(text)} for text in texts]  # as MLflow's server reads them
    given: Any
    for given in (texts, np.array(texts), pd.Series(texts), {"text": texts}, records_of_texts):
        np.testing.assert_allclose(numbers(model.predict(given)), scores, atol=1e-5)
    for one in (texts[0], {"text": texts[0]}, {"text": np.array(texts[0]), "audio": None}):
        np.testing.assert_allclose(numbers(model.predict(one)), scores[:1], atol=1e-5)
    assert model.predict([]).shape == (0, len(REGRESSION_COLUMNS) + 1)
    for wrong, reason in (
        (pd.DataFrame({"words": texts}), "'words'.*text.*vision"),
        (pd.DataFrame(texts), "0.*text"),
        ([{"text": "a", "sound": [[1.0]]}], "'sound'"),
        ({"text": texts, "tokens": [[101]]}, "rows"),
        ([1.0, 2.0], "list"),
        ([["a"]], "list"),
        (np.ones((2, 3)), "ndarray"),
        (5, "int"),
        (None, "NoneType"),
    ):
        with pytest.raises(MlflowException, match=reason) as refusal:
            model.predict(wrong)
        assert refusal.value.get_http_status_code() == 400


@pytest.mark.integration
def test_the_logged_multilabel_model_answers_with_labels(records, tiny_multilabel, tmp_path):
    import mlflow

    from qamoe.tracking.runs import record_training

    folder = tiny_multilabel(tmp_path / "checkpoint")
    run = records.get_run(record_training(records, folder, "qa-moe"))
    model = mlflow.pyfunc.load_model(f"models:/{run.data.tags['qamoe.logged_model']}")
    answers, expected = model.predict(CLIPS), predict(checkpoint.load(folder), CLIPS)
    assert list(answers) == list(expected) == model.metadata.signature.outputs.input_names()
    assert list(answers["labels"]) == ["happy;sad;fear"] * len(CLIPS)
    columns = ["has_happy", "has_sad", "has_fear"]
    np.testing.assert_array_equal(answers[columns].to_numpy(), expected[columns].to_numpy())


@pytest.mark.slow
def test_the_model_loads_with_its_own_copy_of_the_code(records, tiny_checkpoint, tmp_path):
    """In a Python without qamoe on its path, like a serving container."""
    from qamoe.tracking.runs import record_training

    run = records.get_run(record_training(records, tiny_checkpoint(tmp_path / "checkpoint"), "qa-moe"))
    code = (
        "import sys\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f)]\n"
        "sys.path[:] = [p for p in sys.path if not p.endswith('src') and p]\n"
        "try:\n    import qamoe\n    raise SystemExit('qamoe is on the path')\nexcept ImportError:\n    pass\n"
        "import mlflow, pandas\n"
        f"model = mlflow.pyfunc.load_model('models:/{run.data.tags['qamoe.logged_model']}')\n"
        "print(model.predict(pandas.DataFrame({'text': ['a lovely movie']}))['score'][0])\n"
        "import qamoe\nassert 'mlartifacts' in qamoe.__file__, qamoe.__file__\n"
        "assert not {'optuna', 'matplotlib', 'av'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert np.isfinite(float(done.stdout))
