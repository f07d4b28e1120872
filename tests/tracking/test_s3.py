"""Use an S3 server: DVC pushes and pulls files, and clients of MLflow need only the address of the MLflow server."""

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
    """The address of a server with an empty bucket qamoe; its keys are in the environment."""
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
    """Return the names in the bucket."""
    return [entry["Key"] for entry in client(address).list_objects_v2(Bucket="qamoe").get("Contents", [])]


def command(*arguments: str, where: Path, exit_code: int = 0) -> str:
    process = subprocess.run(arguments, cwd=where, capture_output=True, text=True)
    assert process.returncode == exit_code, process.stdout + process.stderr
    return process.stdout + process.stderr


def dvc(*arguments: str, where: Path, exit_code: int = 0) -> str:
    return command(sys.executable, "-m", "dvc", *arguments, where=where, exit_code=exit_code)


def test_another_checkout_pulls_the_files_that_dvc_pushed(s3: str, tmp_path: Path) -> None:
    checkout, clone = tmp_path / "checkout", tmp_path / "clone"
    (checkout / "data").mkdir(parents=True)
    for number in range(5):
        (checkout / "data" / f"{number}.bin").write_bytes(os.urandom(10_000))
    command("git", "init", "--quiet", ".", where=checkout)
    dvc("init", "--quiet", where=checkout)
    dvc("add", "data", "--quiet", where=checkout)
    dvc("remote", "add", "--default", "team", "s3://qamoe/dvc", where=checkout)
    dvc("remote", "modify", "team", "endpointurl", s3, where=checkout)
    dvc("push", where=checkout)
    assert len(names(s3)) == 6, "five files and their list"
    command("git", "add", "--all", where=checkout)
    identity = ("-c", "user.name=someone", "-c", "user.email=someone@example.org")
    command("git", *identity, "commit", "--quiet", "--message", "data", where=checkout)
    command("git", "clone", "--quiet", str(checkout), str(clone), where=tmp_path)
    dvc("pull", where=clone)
    for path in (checkout / "data").iterdir():
        assert (clone / "data" / path.name).read_bytes() == path.read_bytes()
    assert "hush-hush" not in "".join(path.read_text() for path in (checkout / ".dvc").glob("config*"))


def test_a_client_without_keys_promotes_and_loads_a_model_on_s3(
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
            answers = mlflow.pyfunc.load_model("models:/qa-moe@champion").predict(pd.DataFrame({"text": ["a video"]}))
        assert len(answers) == 1
        assert any(name.endswith("MLmodel") for name in names(s3)), "the server, which has the keys, stored the model"
