"""Fixtures: a checkout of the project with a small corpus and small models, whose whole pipeline takes a minute."""

import copy
import csv
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.end_to_end.services import Services, environment

ROOT = Path(__file__).parents[2]
MODELS = ("mean", "qamoe")
CLIPS = {"train": 12, "valid": 4, "gate": 4, "test": 4}  # of the sample corpus, real media
LEFT_OUT = ("tests", "docs", "benchmarks", "experiments")


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder, which must succeed, and return its output."""
    who = ("-c", "user.name=someone", "-c", "user.email=someone@example.org")
    done = subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def dvc(folder: Path, *arguments: str) -> None:
    """Run a dvc command, which must succeed."""
    command = [sys.executable, "-m", "dvc", *arguments, "--quiet"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def small_params() -> dict[str, Any]:
    """Return params.yaml with small models, few epochs and few cells."""
    content = copy.deepcopy(yaml.safe_load((ROOT / "params.yaml").read_text()))
    content["extract"]["vision"]["rate"] = 2
    common = content["train"]["common"]
    common |= {"epochs": 32, "batch_size": 4, "lr": 0.01, "patience": 32}
    common["degrade"]["views"] = 2
    common["selection"] |= {"severities": {"missing": [0.0, 0.5], "noise": [0.5]}, "draws": 1}
    content["models"]["encoders"] |= {"width": 8, "heads": 2}
    content["models"]["qamoe"] |= {"experts": 3, "active": 2, "hidden": 8}
    content["seeds"] = {name: [1] for name in MODELS}
    content["evaluate"] |= {"draws": 1, "mixed_draws": 1, "slices": ["clean", "missing", "noise", "burst", "mixed"]}
    content["evaluate"]["quality_permutations"] = 1
    content["tune"] |= {"trials": 1, "epochs": 2}
    content["registry"] |= {"draws": 2, "coverage_90": [0.0, 1.0]}
    return content


def reduce_corpus(data: Path) -> None:
    """Keep a few clips of each split, and their media."""
    with (data / "manifest.csv").open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        rows, columns = list(reader), reader.fieldnames
    assert columns is not None
    kept = []
    for split, count in CLIPS.items():
        clips = sorted((row for row in rows if row["split"] == split), key=lambda row: row["clip_id"])
        kept += clips[:: len(clips) // count][:count]  # from several sources
    with (data / "manifest.csv.new").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
    (data / "manifest.csv.new").replace(data / "manifest.csv")
    for media in (data / "media").iterdir():
        if f"media/{media.name}" not in {row["path"] for row in kept}:
            media.unlink()


@pytest.fixture(scope="session")
def untouched(tmp_path_factory: pytest.TempPathFactory, empty_records: Path) -> Path:
    """Make a checkout in which nothing has run: everything committed, with data/ and an empty MLflow store."""
    folder = tmp_path_factory.mktemp("untouched") / "checkout"
    make_untouched(folder, small_params(), empty_records)
    return folder


def make_untouched(folder: Path, params: dict[str, Any], empty_records: Path) -> None:
    """Write such a checkout with these parameters into a new folder."""
    folder.mkdir()
    for name in git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if name.split("/")[0] not in LEFT_OUT and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / "dvc.lock").unlink()
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    git(folder, "init", "--quiet")
    dvc(folder, "pull", "data.dvc")
    reduce_corpus(folder / "data")
    dvc(folder, "add", "data")
    shutil.rmtree(folder / ".dvcstore")
    shutil.copy(empty_records, folder / "mlflow.db")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "a small pipeline")


@dataclass(frozen=True)
class Run:
    """A checkout in which the whole pipeline has run without interruption, and the seconds that it took."""

    checkout: Path
    seconds: float


def copy_checkout(checkout: Path, to: Path) -> Path:
    """Copy a checkout. The records hold absolute paths, so runs of the original are not usable in the copy."""
    shutil.copytree(checkout, to, symlinks=True)
    return to


@pytest.fixture(scope="session")
def finished(untouched: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run the pipeline in a copy of the untouched checkout."""
    checkout = copy_checkout(untouched, tmp_path_factory.mktemp("finished") / "checkout")
    home = tmp_path_factory.mktemp("prefect")
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "flows.pipeline"],
        cwd=checkout,
        env=environment(checkout, home),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "decision: promoted" in done.stdout, done.stdout
    return Run(checkout, time.monotonic() - began)


@contextmanager
def serving(checkout: Path, home: Path, **more: str) -> Iterator[Services]:
    """Run a server and a worker, with the deployments of prefect.yaml, during the block."""
    services = Services(checkout, home, **more)
    try:
        services.start("server")
        services.deploy()
        services.start("worker")
        yield services
    finally:
        services.stop()
        services.clear()
