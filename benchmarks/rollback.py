"""Measure `qamoe rollback`, and the reload of a server after it: `python benchmarks/rollback.py artifacts`.

Registers seeds 1 and 2 of qamoe as champion and previous in a temporary store, runs the command, and then reloads a
server of the champion.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from http.client import HTTPConnection
from pathlib import Path

from figures import figure

from qamoe.config.params import load
from qamoe.errors import UserError, exit_on_user_error
from qamoe.registry import registry
from qamoe.tracking.mlflow_store import connect
from qamoe.tracking.runs import record_training

MOST_S = 10


def measure(out: Path) -> None:
    folders = [out / "train" / "qamoe" / seed for seed in ("1", "2")]
    if absent := [str(folder) for folder in folders if not folder.is_dir()]:
        raise UserError(f"{', '.join(absent)} does not exist; train seeds 1 and 2 of qamoe first, such as by make demo")
    name = load(Path("params.yaml")).registry.name
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{temporary}/mlflow.db"
        client = connect()
        for alias, folder in zip((registry.CHAMPION, registry.PREVIOUS), folders, strict=True):
            run = client.get_run(record_training(client, folder, name))
            client.set_registered_model_alias(name, alias, registry._register(client, name, run))
        model = f"models:/{name}@champion"
        serve = [sys.executable, "-m", "qamoe", "serve", "--model", model, "--port", "0"]
        server = subprocess.Popen(serve, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline().split("127.0.0.1:")[1].split()[0])
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-m", "qamoe", "rollback", "--out", temporary], check=True)
            rollback_s = time.perf_counter() - begin
            connection = HTTPConnection("127.0.0.1", port)
            connection.request("POST", "/reload", "")
            served = json.loads(connection.getresponse().read())["name"]
            reload_s = time.perf_counter() - begin
        finally:
            server.terminate()
            server.wait()
    assert "version 2" in served, served
    figure("rollback", rollback_s, "s", at_most=MOST_S)
    figure("rollback, until a server has reloaded", reload_s, "s", at_most=MOST_S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifacts", type=Path, help="an artifacts folder with train/qamoe/1 and train/qamoe/2")
    options = parser.parse_args()
    with exit_on_user_error("rollback.py"):
        measure(options.artifacts)


if __name__ == "__main__":
    main()
