"""Headless Chromium over its own protocol: enough to open a page, run script in it, press keys and look at it."""

import base64
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_WITHIN_S = 240  # a limit for what hangs, no measure


class Tab:
    """One page. `asked` lists the addresses of all requests that it made."""

    def __init__(self, socket: Any, session: str) -> None:
        self._socket, self._session = socket, session
        self._numbers = itertools.count(1)
        self.asked: list[str] = []
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        sent = {"id": number, "method": method, "params": params, "sessionId": self._session}
        self._socket.send(json.dumps(sent))
        while True:
            message = json.loads(self._socket.recv(_WITHIN_S))
            self._noted(message)
            if message.get("id") == number and message.get("sessionId") == self._session:
                assert "error" not in message, message["error"]
                return message["result"]

    def _noted(self, message: dict[str, Any]) -> None:
        told = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.asked.append(told["request"]["url"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(told["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.complaints.append(str(told["entry"]))

    def size(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """The value of an expression in the page, awaited where it is a promise."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait in the page, picture by picture, until an expression holds."""
        look = f"() => {{ let held = false; try {{ held = {condition}; }} catch {{}} return held; }}"
        # Neither hidden tabs nor a busy machine stop a timer, as they do animation frames.
        self.run(
            f"new Promise((done, fail) => {{ const look = {look}; let left = {_WITHIN_S * 50};"
            "const again = () => look() ? done() : left-- ? setTimeout(again, 20) : fail('never held'); again(); })"
        )

    def press(self, key: str, code: int, times: int = 1) -> None:
        for _ in range(times):
            for kind in ("rawKeyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def picture(self, path: Path) -> None:
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def tab(home: Path) -> Iterator[Tab]:
    """A tab of a fresh Chromium that keeps everything in `home` and ends with the block."""
    assert CHROMIUM is not None
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio"]
    options += ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command = [CHROMIUM, *options, f"--user-data-dir={home}", "--remote-debugging-port=0", "about:blank"]
    environment = {**os.environ, "HOME": str(home)}
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment, start_new_session=True
    )
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "DevTools listening on " in line)
        with connect(line.split(" on ", 1)[1].strip(), max_size=None, proxy=None, ping_interval=None) as socket:
            socket.send(json.dumps({"id": 0, "method": "Target.createTarget", "params": {"url": "about:blank"}}))
            target = _result(socket, 0)["targetId"]
            params = {"targetId": target, "flatten": True}
            socket.send(json.dumps({"id": 0, "method": "Target.attachToTarget", "params": params}))
            yield Tab(socket, _result(socket, 0)["sessionId"])
    finally:
        process.kill()
        process.wait()


def _result(socket: Any, number: int) -> Any:
    while True:
        message = json.loads(socket.recv(_WITHIN_S))
        if message.get("id") == number and "sessionId" not in message:
            return message["result"]
