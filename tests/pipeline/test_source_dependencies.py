"""Which files a stage is made of: editing one makes its own stages stale and no other."""

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
    """A copy of the sources that may be edited."""
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


def test_a_remark_makes_nothing_stale(package: Path) -> None:
    before = digests()
    for path in source_dependencies.closure("qamoe.pipeline.train"):
        text = path.read_text()
        assert text.startswith('"""') or path.name == "__init__.py", path
        path.write_text("# a remark\n" + text.replace('"""', '"""Said otherwise. ', 1) + "\n\n# and another\n")
    assert digests() == before


def test_what_a_model_name_means_is_part_of_the_code(package: Path) -> None:
    """`specialist-missing-03` is trained at severity .3 by this line alone."""
    before = digests()
    path = package / "config/model_names.py"
    path.write_text(path.read_text().replace("/ 10)", "/ 20)"))
    assert {stage for stage, digest in digests().items() if digest != before[stage]} == {"train", "evaluate"}


def test_a_template_is_part_of_what_reads_it(package: Path) -> None:
    before = digests()
    path = package / "report/report.html"
    path.write_text(path.read_text() + "<!-- another page -->\n")
    assert {stage for stage, digest in digests().items() if digest != before[stage]} == {"report"}


def test_a_stage_writes_down_what_it_is_made_of(tmp_path: Path) -> None:
    code.run("report", tmp_path)
    written = json.loads((tmp_path / "code/report.json").read_text())
    assert set(written) == names("report")
    assert (
        written["pipeline/report.py"] == source_dependencies.file_digests("qamoe.pipeline.report")["pipeline/report.py"]
    )


def test_a_digest_is_the_same_wherever_the_package_lies(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = code_digest("qamoe.pipeline.train")
    monkeypatch.undo()
    assert code_digest("qamoe.pipeline.train") == here


def test_a_renamed_file_is_another_digest(package: Path) -> None:
    before = code_digest("qamoe.pipeline.train")
    (package / "models/moe.py").rename(package / "models/mixture.py")
    path = package / "models/qamoe.py"
    path.write_text(path.read_text().replace("qamoe.models.moe", "qamoe.models.mixture"))
    assert "models/mixture.py" in names("train")
    assert code_digest("qamoe.pipeline.train") != before


def test_imports_are_found_wherever_they_stand_and_nothing_is_run(package: Path) -> None:
    (package / "pipeline/odd.py").write_text(
        "raise SystemExit\ndef f():\n    from qamoe.data import arrow_store\n    import qamoe.models.calibration as m\n"
    )
    assert names("odd") == {"pipeline/odd.py", "data/arrow_store.py", "models/calibration.py"}


def test_a_package_that_holds_code_is_part_of_what_imports_from_it() -> None:
    assert "data/readers/__init__.py" in names("extract")
    assert "extractors/__init__.py" not in names("extract"), "an empty file changes nothing"


@pytest.mark.parametrize(
    "made_by", ["rng.py", "features.py", "swap_partners.py", "views.py", "text_encoder_frozen.py", "text_cache.py"]
)
def test_encoded_text_is_made_anew_when_what_makes_it_is_edited(
    made_by: str, preprocessed: Path, tiny_stats: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model would otherwise be trained anew on the text of the code before."""
    from qamoe.data.arrow_store import Store
    from qamoe.dataset import degraded_split, text_cache
    from qamoe.degradation.views import references_from_stats, uniform_view
    from qamoe.models import text_encoder_frozen as text

    def encoded(ids: Any, path: Path, device: str, encoder: str) -> None:
        path.parent.mkdir(exist_ok=True)
        np.save(path, np.zeros((1, text.WIDTH), np.float32))
        np.savez(path.with_suffix(".npz"), offsets=np.zeros(2, int), index=np.zeros((1, 6), int))

    def opened() -> set[str]:
        split = Store(preprocessed / "preprocess/valid.arrow")
        plan = [uniform_view("missing", 0.5, 7, 0)]
        degraded_split.open_views(
            split, plan, ("text",), references_from_stats(tiny_stats), tmp_path / "states", "data", "cpu"
        )
        return {path.name for path in (tmp_path / "states").iterdir()}

    monkeypatch.setattr(text_cache, "encode", encoded)
    before = opened()
    assert opened() == before

    read = degraded_split.normalised_source
    monkeypatch.setattr(
        degraded_split, "normalised_source", lambda path: read(path) + ("\nEDITED = 1" if path.name == made_by else "")
    )
    assert opened() != before


@pytest.mark.parametrize(
    ("added", "sentence"),
    [
        ("def late():\n    from . import quality\n", r"moe\.py, line \d+: a relative import"),
        ("def late(:\n", r"moe\.py, line \d+: invalid syntax"),
        ("x = '\x00'\n", r"moe\.py.*null bytes"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_its_place(package: Path, added: str, sentence: str) -> None:
    with (package / "models/moe.py").open("a") as file:
        file.write(added)
    with pytest.raises(UserError, match=sentence):
        code_digest("qamoe.pipeline.train")
