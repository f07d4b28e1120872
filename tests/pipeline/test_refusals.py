"""A stage refuses unusable input with one sentence and exit code 2, and writes nothing."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from qamoe.cli.app import app
from qamoe.config import params as parameters
from qamoe.errors import UserError
from qamoe.extractors import worker_pool

HEADER = "clip_id,source,path,start_s,end_s,text,label,split"
ROW = "a,anna,clip.mp4,,,hello,1.5,train"


@pytest.fixture
def extract(environment: Any, params_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run extract on a manifest of the given rows, or without a data folder if the only row is None."""
    monkeypatch.chdir(tmp_path)

    def run(*rows: str | None, **changes: Any) -> SimpleNamespace:
        if rows != (None,):
            (tmp_path / "data").mkdir()
            (tmp_path / "data/clip.mp4").write_bytes(b"")
            (tmp_path / "data/manifest.csv").write_text("\n".join((HEADER, *rows)) + "\n")  # type: ignore[arg-type]
        params = params_file({"extract.corpus": {"kind": "clips", "path": "data"}} | changes)
        done = CliRunner().invoke(app, ["run", "extract", "--params", str(params), "--out", "out"])
        return SimpleNamespace(code=done.exit_code, stderr=done.stderr, stdout=done.stdout, out=tmp_path / "out")

    return run


def assert_refused(done: Any, values: tuple[str, ...]) -> None:
    assert done.code == 2, done.stderr
    assert done.stderr.startswith("extract: ")
    assert done.stderr.count("\n") == 1
    assert [value for value in values if value not in done.stderr] == [], done.stderr
    assert done.stdout == ""
    assert not list(done.out.rglob("*")), "files were written"


@pytest.mark.parametrize(
    ("rows", "values"),
    [
        ((None,), ("data",)),
        ((), ("manifest.csv",)),
        ((ROW, "b,ben,gone.mp4,,,hello,1,train"), ("manifest.csv", "line 3", "'gone.mp4'")),
        ((ROW, ROW), ("manifest.csv", "'a'")),
        ((ROW, "b,anna,clip.mp4,,,hello,1,test"), ("manifest.csv", "line 3", "'anna'", "train", "test")),
        ((ROW.replace("1.5", "happy"),), ("manifest.csv", "line 2", "'happy'")),
    ],
)
def test_an_unusable_corpus_is_refused(extract: Any, rows: tuple[str, ...], values: tuple[str, ...]) -> None:
    assert_refused(extract(*rows), values)


@pytest.mark.parametrize(
    ("changes", "values"),
    [
        ({"train.common.warmup": 0.1}, ("train.common.warmup",)),
        ({"train.common.lr": -0.01}, ("train.common.lr", "-0.01", "greater than 0")),
    ],
)
def test_parameters_are_checked_before_the_data(extract: Any, changes: dict[str, Any], values: tuple[str, ...]) -> None:
    assert_refused(extract(None, **changes), ("params.yaml", *values))


def test_a_stage_whose_earlier_stage_has_not_run_is_refused(
    params_file: Any, tmp_path: Path, environment: dict[str, str]
) -> None:
    from qamoe.pipeline import evaluate, preprocess, report, train

    params = parameters.load(params_file())
    for module, before in (
        (preprocess, "extract"),
        (train, "preprocess"),
        (evaluate, "preprocess"),
        (report, "evaluate"),
    ):
        with pytest.raises(UserError, match=before) as refusal:
            module.run(params, tmp_path / "out")
        assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generate four clips; the video of the second is empty, and that of the third is cut off."""
    from qamoe.data.synthetic.corpus import generate

    folder = tmp_path_factory.mktemp("sample") / "data"
    generate(folder, clips=4, seed=3, task="regression")
    videos = sorted((folder / "media").iterdir())
    videos[1].write_bytes(b"")
    videos[2].write_bytes(videos[2].read_bytes()[:3000])
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_an_empty_video_is_a_problem_and_does_not_stop_the_stage(
    clips: Path, stage: Any, params_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas as pd

    from qamoe.data.arrow_store import Store
    from qamoe.pipeline import extract

    path = params_file({"extract.corpus.path": str(clips), "extract.max_problem_share": 0.4})
    few = stage("extract", "--params", path, "--out", "out")
    assert few.returncode == 2, few.stderr
    for value in ("2 of 4 clips", "extract.max_problem_share", "0.4"):
        assert value in few.stderr
    assert few.stderr.count(": zero bytes") == 2
    assert not (tmp_path / "out/extract/clips.parquet").exists()

    path = params_file({"extract.corpus.path": str(clips), "extract.max_problem_share": 0.5})
    parts = {p: p.stat().st_mtime_ns for p in (tmp_path / "out/extract/parts").rglob("*") if p.is_file()}
    assert len(parts) == 8
    done = stage("extract", "--params", path, "--out", "out")
    assert done.returncode == 0, done.stderr
    assert {p: p.stat().st_mtime_ns for p in parts} == parts, "features are not extracted again"
    out = tmp_path / "out/extract"
    ids = sorted(row["clip_id"] for row in table(clips / "manifest.csv"))
    problems = {(row["clip_id"], row["modality"]): row["reason"] for row in table(out / "problems.csv")}
    assert set(problems) == {(clip, m) for clip in ids[1:3] for m in ("audio", "vision")}
    assert problems[ids[1], "audio"] == problems[ids[1], "vision"] == "zero bytes"
    assert problems[ids[2], "vision"].startswith("cannot be decoded")
    for name in ("audio", "vision"):
        store = Store(out / f"{name}.arrow")
        assert store.clip_ids == ids
        assert [n > 0 for n in store.lengths("frames")] == [True, False, False, True]
        assert store.metadata["dimension"] == store.sequence("frames", 0).shape[1]
    text = Store(out / "text.arrow")
    assert (text.lengths("ids") > 2).all(), "a clip without media still has its text"
    assert pd.read_parquet(out / "clips.parquet")["clip_id"].tolist() == ids

    before = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}
    monkeypatch.setattr(worker_pool, "make_parts", lambda *_: pytest.fail("no part is missing"))
    monkeypatch.setattr(extract, "make_parts", lambda *_: pytest.fail("no part is missing"))
    extract.run(parameters.load(path), tmp_path / "out")
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == before
