"""Files on a server of S3's kind: what DVC pushes is pulled elsewhere, and MLflow's clients need its address alone."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import boto3
import mlflow
import pandas as pd
import pytest
from moto.server import ThreadedMotoServer

from qamoe.pipeline import promote
from qamoe.pipeline.shared import data_digest
from qamoe.tracking import runs
from qamoe.tracking.mlflow_store import connect

pytestmark = pytest.mark.slow
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "hush-hush", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server with an empty bucket qamoe, whose keys are in the environment."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        client(f"http://{host}:{port}").create_bucket(Bucket="qamoe")
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def client(address: str) -> Any:
    return boto3.client("s3", endpoint_url=address)


def names(address: str) -> list[str]:
    """What lies in the bucket."""
    return [found["Key"] for found in client(address).list_objects_v2(Bucket="qamoe").get("Contents", [])]


def command(*arguments: str, where: Path, ends: int = 0) -> str:
    done = subprocess.run(arguments, cwd=where, capture_output=True, text=True)
    assert done.returncode == ends, done.stdout + done.stderr
    return done.stdout + done.stderr


def dvc(*arguments: str, where: Path, ends: int = 0) -> str:
    return command(sys.executable, "-m", "dvc", *arguments, where=where, ends=ends)


def test_what_dvc_pushes_is_pulled_in_another_checkout(s3: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "data").mkdir(parents=True)
    for number in range(5):
        (here / "data" / f"{number}.bin").write_bytes(os.urandom(10_000))
    command("git", "init", "--quiet", ".", where=here)
    dvc("init", "--quiet", where=here)
    dvc("add", "data", "--quiet", where=here)
    dvc("remote", "add", "--default", "team", "s3://qamoe/dvc", where=here)
    dvc("remote", "modify", "team", "endpointurl", s3, where=here)
    dvc("push", where=here)
    assert len(names(s3)) == 6, "five files and their list"
    command("git", "add", "--all", where=here)
    who = ("-c", "user.name=someone", "-c", "user.email=someone@example.org")
    command("git", *who, "commit", "--quiet", "--message", "data", where=here)
    command("git", "clone", "--quiet", str(here), str(there), where=tmp_path)
    dvc("pull", where=there)
    for path in (here / "data").iterdir():
        assert (there / "data" / path.name).read_bytes() == path.read_bytes()
    assert "hush-hush" not in "".join(path.read_text() for path in (here / ".dvc").glob("config*"))


def test_a_model_on_s3_is_promoted_and_loaded_by_who_has_no_keys(
    s3: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mlflow_server: Callable[..., AbstractContextManager[int]],
    tiny_params: Any,
    tiny_corpus: Callable[..., None],
    tiny_checkpoint: Callable[..., Path],
) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path("artifacts")
    tiny_corpus(out)
    digests = {"params": "p" * 64, "data": data_digest(out), "code": "c" * 64}
    folder = tiny_checkpoint(out / "train/qamoe/1", answer=1.0, digests=digests)
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", s3)
    with mlflow_server(tmp_path, files="s3://qamoe/mlflow") as port:
        with monkeypatch.context() as without:
            for name in (*KEYS, "MLFLOW_S3_ENDPOINT_URL"):
                without.delenv(name)
            without.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
            without.setenv("QAMOE_DEVICE", "cpu")
            runs.record_training(connect(), folder, "qa-moe")
            params = tiny_params.model_copy(update={"seeds": {"qamoe": [1]}})
            assert promote.decide(params, out).outcome == "promoted"
            answers = mlflow.pyfunc.load_model("models:/qa-moe@champion").predict(pd.DataFrame({"text": ["a film"]}))
        assert len(answers) == 1
        assert any(name.endswith("MLmodel") for name in names(s3)), "the server has the keys, and put it there"
