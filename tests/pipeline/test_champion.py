"""A champion after its promotion: it is evaluated on the current test split, and it scores clips."""

import json
import math
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from qamoe.config.params import Params
from qamoe.data.arrow_store import Store
from qamoe.errors import UserError
from qamoe.models import checkpoint
from qamoe.pipeline import evaluate_champion, promote, score
from qamoe.registry import registry
from qamoe.tracking.runs import record_training
from tests.fixtures.served import two_tracks, written

NO_REFERENCE = "drift: this model has no reference to compare with\n"


@pytest.fixture
def params(tiny_params: Any) -> Params:
    content = tiny_params.model_dump(mode="json")
    content["evaluate"] |= {"draws": 1, "mixed_draws": 1, "slices": ["clean", "mixed"]}
    return Params.model_validate(content)


@pytest.fixture
def champion(records: Any, tmp_path: Path, tiny_corpus: Any, tiny_checkpoint: Any) -> Any:
    """Register version 1 of qa-moe, which predicts about 1 for any clip, and a test split; return the client."""
    out = Path("artifacts")
    tiny_corpus(out)
    shutil.copy(out / "preprocess/gate.arrow", out / "preprocess/test.arrow")
    folder = tiny_checkpoint(out / "train/qamoe/1", answer=1.0)
    run = records.get_run(record_training(records, folder, "qa-moe"))
    version = registry._register(records, "qa-moe", run)
    records.set_registered_model_alias("qa-moe", registry.CHAMPION, version)
    return records


def children(client: Any) -> list[Any]:
    (experiment,) = (e for e in client.search_experiments() if e.name == "qa-moe")
    runs = client.search_runs([experiment.experiment_id])
    return [run for run in runs if "mlflow.parentRunId" in run.data.tags and "qamoe.seed" not in run.data.tags]


def test_the_champion_is_measured_once_per_test_split_and_recorded_on_the_model(
    champion: Any, params: Params, capsys: pytest.CaptureFixture[str], tiny_stats: dict[str, Any]
) -> None:
    out = Path("artifacts")
    evaluate_champion.run(params, out)
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "version 1 of qa-moe on 12 test clips"
    (run,) = children(champion)
    assert rest[-1] == f"run: {run.info.run_id}"
    assert run.info.status == "FINISHED"
    version = champion.get_model_version("qa-moe", "1")
    assert run.data.tags["mlflow.parentRunId"] == version.run_id
    assert run.data.metrics["clean/mae"] == pytest.approx(float(version.tags["qamoe.today.clean.mae"]), rel=1e-4)
    assert run.data.metrics["clean/mae"] < 0.4, "all labels are close to 1"
    assert version.tags["qamoe.today.run"] == run.info.run_id
    assert {f.path for f in champion.list_artifacts(run.info.run_id, "evaluate")} >= {"evaluate/cells.parquet"}

    evaluate_champion.run(params, out)
    assert "measured before" in capsys.readouterr().out
    assert len(children(champion)) == 1

    # The next day, the test split has other clips and another standardisation. The model is the same.
    new = json.loads(json.dumps(tiny_stats))
    new["audio"] |= {"mean": [4.0, -2.0], "deviation": [3.0, 1.5]}
    (out / "preprocess/stats.json").write_text(json.dumps(new))
    shutil.copy(out / "preprocess/valid.arrow", out / "preprocess/test.arrow")
    evaluate_champion.run(params, out)
    assert len(children(champion)) == 2
    assert champion.get_model_version("qa-moe", "1").tags["qamoe.today.run"] != run.info.run_id


def test_a_champion_whose_run_was_purged_is_evaluated_in_a_run_without_a_parent(
    champion: Any, params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect("mlflow.db")) as store:
        store.execute("DELETE FROM runs WHERE run_uuid = ?", (champion.get_model_version("qa-moe", "1").run_id,))
        store.commit()
    evaluate_champion.run(params, Path("artifacts"))
    run = champion.get_run(capsys.readouterr().out.splitlines()[-1].removeprefix("run: "))
    assert "mlflow.parentRunId" not in run.data.tags
    assert champion.get_model_version("qa-moe", "1").tags["qamoe.today.run"] == run.info.run_id


def test_a_missing_champion_or_one_of_another_corpus_is_refused(
    champion: Any, params: Params, tiny_stats: dict[str, Any]
) -> None:
    out = Path("artifacts")
    (out / "preprocess/stats.json").write_text(json.dumps(tiny_stats | {"about": {"corpus": "other"}}))
    with pytest.raises(UserError, match=r"stats\.about .*'other'"):
        evaluate_champion.run(params, out)
    champion.delete_registered_model_alias("qa-moe", registry.CHAMPION)
    with pytest.raises(UserError, match="qa-moe"):
        evaluate_champion.run(params, out)
    assert children(champion) == []


def test_a_folder_is_scored_by_content(champion: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "waiting"
    source.mkdir()
    (source / "broken.mp4").write_bytes(b"not a video")
    (source / "other.mp4").write_bytes(b"not a video either")
    header = "path,clip_id,text"

    def scored(*rows: str) -> Any:
        (source / "manifest.csv").write_text("\n".join([header, *rows]))
        score.run(source, tmp_path / "scores", "models:/qa-moe@champion")
        return pd.read_parquet(tmp_path / "scores/scores.parquet").set_index("clip_id")

    first = scored("broken.mp4,a,a lovely film", "other.mp4,b,", "gone.mp4,c,words")
    assert capsys.readouterr().out.endswith(
        f"scored 2 new clips of {source}, 0 kept, 1 rows that cannot be used\n{NO_REFERENCE}"
    )
    assert first.loc["a", "score"] == pytest.approx(1.0, abs=0.3)
    assert first.loc["a", "low_90"] < first.loc["a", "score"] < first.loc["a", "high_90"]
    assert "audio: " in first.loc["a", "problem"]
    assert math.isnan(first.loc["b", "score"]), "no modality can be used"

    # A renamed file has the same content; another text makes another clip; one file is gone.
    (source / "other.mp4").unlink()
    (source / "broken.mp4").rename(source / "new.mp4")
    again = scored("new.mp4,z,a lovely film", "new.mp4,y,a dull film")
    assert capsys.readouterr().out.endswith(f"scored 1 new clips of {source}, 1 kept\n{NO_REFERENCE}")
    assert list(again.index) == ["y", "z"]
    assert again.loc["z", "score"] == first.loc["a", "score"]
    assert again.loc["z", "path"] == "new.mp4"
    kept = {path.suffix for path in (tmp_path / "scores/parts").rglob("*") if path.is_file()}
    assert kept == {".problem"}
    assert len(list((tmp_path / "scores/parts").rglob("*.problem"))) == 2, "audio and vision of one file"


def test_scored_clips_are_compared_with_the_training_clips_of_the_champion(
    champion: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = promote.drift_reference(checkpoint.load(Path("artifacts/train/qamoe/1")), Path("artifacts"))
    assert {"source", "text.rarity", "audio.level", "vision.r"} <= set(reference)
    assert len(reference) == len(Store(Path("artifacts/preprocess/train.arrow"))) + 12
    run = champion.get_model_version_by_alias("qa-moe", registry.CHAMPION).run_id
    registry.keep_reference(champion, run, pd.concat([reference] * 3, ignore_index=True))
    (tmp_path / "clip.mp4").write_bytes(b"not a video")
    rows = [f"{i},clip.mp4,the film number {i}" for i in range(30)]
    (tmp_path / "manifest.csv").write_text("\n".join(["clip_id,path,text", *rows]))
    score.run(tmp_path / "manifest.csv", tmp_path / "scores", "models:/qa-moe@champion")
    assert "drift: ALARM by 30 clips" in capsys.readouterr().out, "no audio, no vision"
    drift: Any = pd.read_csv(tmp_path / "scores/drift.csv").set_index("feature")
    assert drift.loc["audio.absent", "p"] < 0.01
    assert (drift.loc["audio.absent", "now"], drift.loc["text.r", "now"] > 0) == (1, True)


def test_transcripts_next_to_clips_are_read_and_what_was_left_out_is_told(
    champion: Any, tmp_path: Path, voice: np.ndarray
) -> None:
    source = tmp_path / "waiting"
    source.mkdir()
    two_tracks(source / "film.mkv", voice)
    written(source / "long.wav", voice)
    written(source / "wrong.wav", voice)
    (source / "film.en.srt").write_text("1\n00:00:00,100 --> 00:00:01,000\na lovely <i>film</i>\n")
    (source / "long.txt").write_text("word " * 60)
    (source / "wrong.srt").write_bytes(b"\xff\xfe\x00\xd8")
    score.run(source, tmp_path / "scores", "models:/qa-moe@champion", transcribe=False)
    rows: Any = pd.read_parquet(tmp_path / "scores/scores.parquet").set_index("clip_id")
    assert rows["text"].to_dict() == {"film.mkv": "a lovely film", "long.wav": "word " * 59 + "word", "wrong.wav": ""}
    assert "audio: silence; audio track 1 of 2 was read" in rows.loc["film.mkv", "problem"]
    assert "of 60 words" in rows.loc["long.wav", "problem"]
    assert re.search(r"text: .*wrong\.srt", rows.loc["wrong.wav", "problem"])
    assert rows["score"].notna().all()


def test_a_multilabel_champion_is_measured_on_the_test_split(
    records: Any, params: Params, tiny_multilabel: Any, tiny_corpus: Any
) -> None:
    out = Path("artifacts")
    folder = tiny_multilabel(out / "train/qamoe/1")
    config = json.loads((folder / "model.json").read_text())
    tiny_corpus(out, stats=config["stats"], labels=(0, 1, 2, 3))
    shutil.copy(out / "preprocess/gate.arrow", out / "preprocess/test.arrow")
    run = records.get_run(record_training(records, folder, "qa-moe"))
    version = registry._register(records, "qa-moe", run)
    records.set_registered_model_alias("qa-moe", registry.CHAMPION, version)
    evaluate_champion.run(params, out)
    (run,) = children(records)
    # It gives every clip all labels; of twelve clips, half are happy, half are sad and none is afraid.
    assert run.data.metrics["clean/f1_happy"] == pytest.approx(2 / 3)
    assert run.data.metrics["clean/f1_sad"] == pytest.approx(2 / 3)
    assert run.data.metrics["clean/f1_fear"] == 0
