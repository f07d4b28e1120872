"""Which files a stage is made of: editing one makes its own stages stale and no other."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qamoe.stages import closure
from qamoe.stages.closure import code_digest

STAGES = ("extract", "preprocess", "train", "evaluate", "report")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources that may be edited."""
    copy = tmp_path / "qamoe"
    shutil.copytree(closure.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(closure, "PACKAGE", copy)
    return copy


def names(stage: str) -> set[str]:
    return {str(path.relative_to(closure.PACKAGE)) for path in closure.closure(f"qamoe.stages.{stage}")}


@pytest.mark.parametrize(
    ("edited", "stale"),
    [
        ("evaluation/metrics.py", {"evaluate", "report"}),
        ("evaluation/calibration.py", {"train", "evaluate", "report"}),
        ("evaluation/compare.py", {"report"}),
        ("models/moe.py", {"train", "evaluate"}),
        ("degradation/frames.py", {"train", "evaluate"}),
        ("training/fit.py", {"train"}),
        ("features/media.py", {"extract"}),
        ("features/clean.py", {"preprocess"}),
        ("features/store.py", {"extract", "preprocess", "train", "evaluate"}),
        ("corpora/unpickle.py", {"extract"}),
        ("corpora/sample.py", set()),
        ("reporting/tables.py", {"report"}),
        ("stages/train.py", {"train"}),
        ("records/tracking.py", set()),
        ("stages/entry.py", set()),
        ("settings.py", set()),
        ("params.py", set()),
    ],
)
def test_editing_a_file_makes_its_own_stages_stale(package: Path, edited: str, stale: set[str]) -> None:
    before = {stage: code_digest(f"qamoe.stages.{stage}") for stage in STAGES}
    path = package / edited
    path.write_text(path.read_text() + "\n# edited\n")
    assert {stage for stage in STAGES if code_digest(f"qamoe.stages.{stage}") != before[stage]} == stale


def test_a_digest_is_the_same_wherever_the_package_lies(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = code_digest("qamoe.stages.train")
    monkeypatch.undo()
    assert code_digest("qamoe.stages.train") == here


def test_a_renamed_file_is_another_digest(package: Path) -> None:
    before = code_digest("qamoe.stages.train")
    (package / "models/moe.py").rename(package / "models/mixture.py")
    path = package / "models/qamoe.py"
    path.write_text(path.read_text().replace("qamoe.models.moe", "qamoe.models.mixture"))
    assert "models/mixture.py" in names("train")
    assert code_digest("qamoe.stages.train") != before


def test_imports_are_found_wherever_they_stand_and_nothing_is_run(package: Path) -> None:
    (package / "stages/odd.py").write_text(
        "raise SystemExit\ndef f():\n    from qamoe.features import store\n"
        "    import qamoe.evaluation.calibration as m\n"
    )
    assert names("odd") == {"stages/odd.py", "features/store.py", "evaluation/calibration.py"}


def test_a_package_that_holds_code_is_part_of_what_imports_from_it() -> None:
    assert "models/__init__.py" in names("train")
    assert "features/__init__.py" not in names("train"), "an empty file changes nothing"


@pytest.mark.parametrize("made_by", ["draws.py", "frames.py", "partners.py", "views.py", "text.py", "states.py"])
def test_encoded_text_is_made_anew_when_what_makes_it_is_edited(
    made_by: str, preprocessed: Path, tiny_stats: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model would otherwise be trained anew on the text of the code before."""
    from qamoe.degradation.views import alike, references
    from qamoe.features.store import Store
    from qamoe.models import text
    from qamoe.training import states, views

    def encoded(ids: Any, path: Path, device: str, encoder: str) -> None:
        path.parent.mkdir(exist_ok=True)
        np.save(path, np.zeros((1, text.WIDTH), np.float32))
        np.savez(path.with_suffix(".npz"), offsets=np.zeros(2, int), index=np.zeros((1, 6), int))

    def opened() -> set[str]:
        split = Store(preprocessed / "preprocess/valid.arrow")
        plan = [alike("missing", 0.5, 7, 0)]
        views.open_views(split, plan, ("text",), references(tiny_stats), tmp_path / "states", "data", "cpu")
        return {path.name for path in (tmp_path / "states").iterdir()}

    monkeypatch.setattr(states, "encode", encoded)
    before = opened()
    assert opened() == before

    def edited(read: Callable[..., Any], mark: Any) -> Callable[..., Any]:
        return lambda self, *a, **k: read(self, *a, **k) + (mark if self.name == made_by else mark[:0])

    monkeypatch.setattr(Path, "read_text", edited(Path.read_text, "# edited"))
    monkeypatch.setattr(Path, "read_bytes", edited(Path.read_bytes, b"# edited"))
    assert opened() != before
