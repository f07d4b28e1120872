"""Measure requests to `qamoe serve`: `python benchmarks/serve.py artifacts/train/qamoe/1 data`.

Starts a server on a checkpoint and a folder of raw clips. Measures the prediction of features sent over HTTP, of a
cached clip, and of a cached clip that is degraded, as by a slider of the page. Prints medians and 95th percentiles in
milliseconds for one client and for eight parallel clients, and the processor time per request, which depends less on
other load. The features have the shapes of the first sample.
"""

import argparse
import base64
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
from figures import figure

from qamoe.errors import UserError, exit_on_user_error

REQUESTS = 300
MOST_MS = {"features": 30, "slider": 200}  # bounds of the median of one client


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="a training folder, such as artifacts/train/qamoe/1")
    parser.add_argument("clips", type=Path, help="a folder of raw clips with a manifest.csv, such as data")
    options = parser.parse_args()
    with exit_on_user_error("serve.py"):
        serve(options.checkpoint, options.clips)


def serve(checkpoint: Path, clips: Path) -> None:
    for file in (checkpoint / "model.json", clips / "manifest.csv"):
        if not file.is_file():
            raise UserError(f"{file} does not exist")
    command = [sys.executable, "-m", "qamoe", "serve", "--folder", str(checkpoint), "--clips", str(clips)]
    server = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline().split("127.0.0.1:")[1].split()[0])
        measure(port, server.pid)
    finally:
        server.terminate()
        server.wait()


def measure(port: int, server: int) -> None:
    connection = HTTPConnection("127.0.0.1", port)
    about = ask(connection, "GET", "/model")
    clip = ask(connection, "POST", "/samples/0", {})
    text = ask(connection, "GET", "/samples")[0]["text"]
    draws = np.random.default_rng(1)
    features = {"text": text}
    for modality, frames in clip["frames"].items():
        values = draws.standard_normal((min(frames, about["frames"][modality]), about["columns"][modality])).astype(
            "<f4"
        )
        features[modality] = {"shape": list(values.shape), "float32": base64.b64encode(values.tobytes()).decode()}
    degraded = {"text": text, "degrade": {"audio": {"kind": "noise", "severity": 0.5}}}
    for name, path, body in (
        ("features", "/predict", {"clips": [features]}),
        ("kept clip", f"/clips/{clip['id']}/predict", {"text": text}),
        ("slider", f"/clips/{clip['id']}/predict", degraded),
    ):
        for clients in (1, 8):
            share = REQUESTS // clients
            with ThreadPoolExecutor(clients) as pool:
                begin, processor_begin = time.perf_counter(), processor(server)
                runs = [pool.submit(timed, port, path, body, share) for _ in range(clients)]
                times = [milliseconds for run in runs for milliseconds in run.result()]
                rate = len(times) / (time.perf_counter() - begin)
                processor_s = (processor(server) - processor_begin) / (len(times) + clients)
            prefix = f"serve: {name}, {clients} client{'s' if clients > 1 else ''}"
            most = MOST_MS.get(name) if clients == 1 else None
            figure(f"{prefix}, p50", statistics.median(times), "ms", at_most=most)
            figure(f"{prefix}, p95", statistics.quantiles(times, n=20)[-1], "ms")
            figure(f"{prefix}, rate", rate, "a second")
            figure(f"{prefix}, processor time", 1000 * processor_s, "ms")


def processor(pid: int) -> float:
    """Return the processor time of a process in seconds."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def timed(port: int, path: str, body: dict[str, Any], count: int) -> list[float]:
    connection = HTTPConnection("127.0.0.1", port)
    ask(connection, "POST", path, body)
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        ask(connection, "POST", path, body)
        times.append(1000 * (time.perf_counter() - begin))
    return times


def ask(connection: HTTPConnection, method: str, path: str, body: Any = None) -> Any:
    encoded = None if body is None else json.dumps(body)
    connection.request(method, path, encoded, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    received = answer.read()
    assert answer.status < 300, received
    return json.loads(received)


if __name__ == "__main__":
    main()
