"""The source files that a stage depends on: editing one makes only the stages stale that use it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qamoe.errors import UserError
from qamoe.pipeline import code, source_dependencies
from qamoe.pipeline.source_dependencies import code_digest

STAGES = ("extract", "preprocess", "train", "evaluate", "report")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the sources, so that a test can edit them."""
    copy = tmp_path / "qamoe"
    shutil.copytree(source_dependencies.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(source_dependencies, "PACKAGE", copy)
    return copy


def digests() -> dict[str, str]:
    return {stage: code_digest(f"qamoe.pipeline.{stage}") for stage in STAGES}


def names(stage: str) -> set[str]:
    return {
        str(path.relative_to(source_dependencies.PACKAGE))
        for path in source_dependencies.closure(f"qamoe.pipeline.{stage}")
    }


@pytest.mark.parametrize(
    ("edited", "stale"),
    [
        ("evaluation/metrics.py", {"evaluate", "report"}),
        ("models/calibration.py", {"train", "evaluate", "report"}),
        ("evaluation/bootstrap.py", {"report"}),
        ("models/moe.py", {"train", "evaluate"}),
        ("degradation/features.py", {"train", "evaluate"}),
        ("training/trainer.py", {"train"}),
        ("media/decode.py", {"extract"}),
        ("data/normalise.py", {"preprocess", "train", "evaluate"}),
        ("data/arrow_store.py", {"extract", "preprocess", "train", "evaluate"}),
        ("data/safe_pickle.py", {"extract"}),
        ("data/synthetic/corpus.py", set()),
        ("report/tables.py", {"report"}),
        ("pipeline/train.py", {"train"}),
        ("tracking/runs.py", set()),
        ("pipeline/runner.py", set()),
        ("config/settings.py", set()),
        ("config/params.py", set()),
        ("config/model_names.py", {"train", "evaluate"}),
        ("source_code.py", set()),
    ],
)
def test_editing_a_file_makes_its_own_stages_stale(package: Path, edited: str, stale: set[str]) -> None:
    before = digests()
    path = package / edited
    path.write_text(path.read_text() + "\nEDITED = 1\n")
    assert {stage for stage, digest in digests().items() if digest != before[stage]} == stale


def test_comments_and_docstrings_make_nothing_stale(package: Path) -> None:
    before = digests()
    for path in source_dependencies.closure("qamoe.pipeline.train"):
        text = path.read_text()
        assert text.startswith('"""') or path.name == "__init__.py", path
        path.write_text("# a comment\n" + text.replace('"""', '"""Another wording. ', 1) + "\n\n# another comment\n")
    assert digests() == before


def test_the_meaning_of_a_model_name_is_part_of_the_code(package: Path) -> None:
    """Only this line makes `specialist-missing-03` train at severity 0.3."""
    before = digests()
    path = package / "config/model_names.py"
    path.write_text(path.read_text().replace("/ 10)", "/ 20)"))
    assert {stage for stage, digest in digests().items() if digest != before[stage]} == {"train", "evaluate"}


def test_a_template_is_part_of_the_stage_that_reads_it(package: Path) -> None:
    before = digests()
    path = package / "report/report.html"
    path.write_text(path.read_text() + "<!-- another page -->\n")
    assert {stage for stage, digest in digests().items() if digest != before[stage]} == {"report"}


def test_code_writes_the_digests_of_a_stage(tmp_path: Path) -> None:
    code.run("report", tmp_path)
    written = json.loads((tmp_path / "code/report.json").read_text())
    assert set(written) == names("report")
    assert (
        written["pipeline/report.py"] == source_dependencies.file_digests("qamoe.pipeline.report")["pipeline/report.py"]
    )


def test_a_digest_does_not_depend_on_the_folder_of_the_package(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = code_digest("qamoe.pipeline.train")
    monkeypatch.undo()
    assert code_digest("qamoe.pipeline.train") == here


def test_renaming_a_file_changes_the_digest(package: Path) -> None:
    before = code_digest("qamoe.pipeline.train")
    (package / "models/moe.py").rename(package / "models/mixture.py")
    path = package / "models/qamoe.py"
    path.write_text(path.read_text().replace("qamoe.models.moe", "qamoe.models.mixture"))
    assert "models/mixture.py" in names("train")
    assert code_digest("qamoe.pipeline.train") != before


def test_nested_imports_are_found_and_no_code_runs(package: Path) -> None:
    (package / "pipeline/odd.py").write_text(
        "raise SystemExit\ndef f():\n    from qamoe.data import arrow_store\n    import qamoe.models.calibration as m\n"
    )
    assert names("odd") == {"pipeline/odd.py", "data/arrow_store.py", "models/calibration.py"}


def test_a_package_with_code_is_part_of_the_modules_that_import_from_it() -> None:
    assert "data/readers/__init__.py" in names("extract")
    assert "extractors/__init__.py" not in names("extract"), "an empty file changes nothing"


@pytest.mark.parametrize(
    "edited", ["rng.py", "features.py", "swap_partners.py", "views.py", "text_encoder_frozen.py", "text_cache.py"]
)
def test_text_is_encoded_again_when_its_code_is_edited(
    edited: str, preprocessed: Path, tiny_stats: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a model would be trained again on text encoded by the old code."""
    from qamoe.data.arrow_store import Store
    from qamoe.dataset import degraded_split, text_cache
    from qamoe.degradation.views import references_from_stats, uniform_view
    from qamoe.models import text_encoder_frozen as text

    def encoded(ids: Any, path: Path, device: str, encoder: str) -> None:
        path.parent.mkdir(exist_ok=True)
        np.save(path, np.zeros((1, text.WIDTH), np.float32))
        np.savez(path.with_suffix(".npz"), offsets=np.zeros(2, int), index=np.zeros((1, 6), int))

    def encode_views() -> set[str]:
        split = Store(preprocessed / "preprocess/valid.arrow")
        plan = [uniform_view("missing", 0.5, 7, 0)]
        degraded_split.open_views(
            split, plan, ("text",), references_from_stats(tiny_stats), tmp_path / "states", "data", "cpu"
        )
        return {path.name for path in (tmp_path / "states").iterdir()}

    monkeypatch.setattr(text_cache, "encode", encoded)
    before = encode_views()
    assert encode_views() == before

    normalised_source = degraded_split.normalised_source
    monkeypatch.setattr(
        degraded_split,
        "normalised_source",
        lambda path: normalised_source(path) + ("\nEDITED = 1" if path.name == edited else ""),
    )
    assert encode_views() != before


@pytest.mark.parametrize(
    ("added", "values"),
    [
        ("def late():\n    from . import quality\n", r"moe\.py, line {line}: .*relative import"),
        ("\ndef late(:\n", r"moe\.py, line {line}: invalid syntax"),
        ("x = '\x00'\n", r"moe\.py.*null bytes"),
    ],
)
def test_an_import_that_cannot_be_followed_is_refused_with_file_and_line(
    package: Path, added: str, values: str
) -> None:
    path = package / "models/moe.py"
    line = path.read_text().count("\n") + 2
    with path.open("a") as file:
        file.write(added)
    with pytest.raises(UserError, match=values.format(line=line)):
        code_digest("qamoe.pipeline.train")
