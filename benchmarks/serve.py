"""How long `qamoe serve` takes for one clip: features over HTTP, a clip that it keeps, and a slider of the page.

    python benchmarks/serve.py artifacts/train/qamoe/1 data

Starts a server on the checkpoint and a folder of raw clips, and prints medians and 95th percentiles in milliseconds,
from one client and from eight at once, and the processor time of a request, which says the same on a busy machine.
Features have the shapes of the first sample's.
"""

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

REQUESTS = 300
MOST_MS = {"features": 30, "slider": 200}  # median of one client


def main(folder: str, clips: str) -> None:
    command = [sys.executable, "-m", "qamoe", "serve", "--folder", folder, "--clips", clips, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline().split("127.0.0.1:")[1].split()[0])
        measure(port, server.pid)
    finally:
        server.terminate()
        server.wait()


def measure(port: int, server: int) -> None:
    first = HTTPConnection("127.0.0.1", port)
    about = asked(first, "GET", "/model")
    clip = asked(first, "POST", "/samples/0", {})
    text = asked(first, "GET", "/samples")[0]["text"]
    draws = np.random.default_rng(1)
    features = {"text": text}
    for modality, frames in clip["frames"].items():
        values = draws.standard_normal((frames, about["columns"][modality])).astype("<f4")
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
                started, worked = time.perf_counter(), processor(server)
                runs = [pool.submit(timed, port, path, body, share) for _ in range(clients)]
                times = [each for run in runs for each in run.result()]
                rate = len(times) / (time.perf_counter() - started)
                worked = (processor(server) - worked) / (len(times) + clients)
            here = f"serve: {name}, {clients} client{'s' if clients > 1 else ''}"
            most = MOST_MS.get(name) if clients == 1 else None
            figure(f"{here}, p50", statistics.median(times), "ms", at_most=most)
            figure(f"{here}, p95", statistics.quantiles(times, n=20)[-1], "ms")
            figure(f"{here}, rate", rate, "a second")
            figure(f"{here}, processor time", 1000 * worked, "ms")


def processor(pid: int) -> float:
    """Seconds of processor time that a process has had."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def timed(port: int, path: str, body: dict[str, Any], count: int) -> list[float]:
    connection = HTTPConnection("127.0.0.1", port)
    asked(connection, "POST", path, body)
    times = []
    for _ in range(count):
        started = time.perf_counter()
        asked(connection, "POST", path, body)
        times.append(1000 * (time.perf_counter() - started))
    return times


def asked(connection: HTTPConnection, method: str, path: str, body: Any = None) -> Any:
    content = None if body is None else json.dumps(body)
    connection.request(method, path, content, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    assert answer.status < 300, content
    return json.loads(content)


if __name__ == "__main__":
    main(*sys.argv[1:])
