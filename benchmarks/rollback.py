"""How long `qamoe rollback` takes, and a server that follows it: `python benchmarks/rollback.py artifacts`.

Two trained seeds become champion and previous of a store of their own; then the command is run as a person would, and
a server that serves the champion is told to reload. Seconds go to benchmarks/results.jsonl.
"""

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
from qamoe.registry import registry
from qamoe.tracking.mlflow_store import connect
from qamoe.tracking.runs import record_training

MOST_S = 10


def main(out: str) -> None:
    name = load(Path("params.yaml")).registry.name
    with tempfile.TemporaryDirectory() as place:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{place}/mlflow.db"
        client = connect()
        for alias, seed in ((registry.CHAMPION, 1), (registry.PREVIOUS, 2)):
            run = client.get_run(record_training(client, Path(out) / "train" / "qamoe" / str(seed), name))
            client.set_registered_model_alias(name, alias, registry._register(client, name, run))
        model = f"models:/{name}@champion"
        serve = [sys.executable, "-m", "qamoe", "serve", "--model", model, "--port", "0"]
        server = subprocess.Popen(serve, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline().split("127.0.0.1:")[1].split()[0])
            started = time.perf_counter()
            subprocess.run([sys.executable, "-m", "qamoe", "rollback", "--out", place], check=True)
            rolled = time.perf_counter() - started
            connection = HTTPConnection("127.0.0.1", port)
            connection.request("POST", "/reload", "")
            served = json.loads(connection.getresponse().read())["name"]
            followed = time.perf_counter() - started
        finally:
            server.terminate()
            server.wait()
    assert "version 2" in served, served
    figure("rollback", rolled, "s", at_most=MOST_S)
    figure("rollback, until a server has reloaded", followed, "s", at_most=MOST_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
