"""Chromium without a window, driven over a pipe, that remembers what a page asked for and said."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")

LOADED = "Page.loadEventFired"
SECONDS = 60.0
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class Browser:
    """One page of one browser; a context manager.

    Attributes:
        requests: The URLs that the page asked for since it was opened, data URIs left out.
        complaints: What the console, the log and exceptions said of it.
    """

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()

        def wire() -> None:  # what is to become 3 and 4 must not be closed on the way
            high = os.dup(commands), os.dup(answers)
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self._process = subprocess.Popen(
            [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=wire,
        )
        os.close(commands)
        os.close(answers)
        self._rest = b""
        self._number = 0
        self._events: list[dict[str, Any]] = []
        self._session: str | None = None
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._session = None
        try:
            self.call("Browser.close")
            self._process.wait(10)
        except (OSError, AssertionError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def open(self, path: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> float:
        """Open a file in a window of this size; give the seconds until it had loaded."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.requests.clear()
        self.complaints.clear()
        self._events.clear()
        started = time.monotonic()
        self.call("Page.navigate", url=f"file://{path}")
        while all(event["method"] != LOADED for event in self._events):
            self._take(self._receive(started + SECONDS))
        return time.monotonic() - started

    def evaluate(self, script: str) -> Any:
        """What an expression comes to on the page; promises are waited for."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str, text: str = "") -> None:
        """Press and release a key, by its name and the text that it writes."""
        codes = {"Enter": 13, " ": 32, "Tab": 9, "ArrowLeft": 37, "ArrowRight": 39}
        code = codes.get(key) or ord(key.upper())
        for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                windowsVirtualKeyCode=code,
                **({"text": text} if text and kind == "keyDown" else {}),
            )

    def screenshot(self, path: Path, *, whole: bool = True) -> Path:
        """Write what is seen, or the whole page, as PNG."""
        taken = self.call(
            "Page.captureScreenshot", captureBeyondViewport=whole, **self._clip(whole)
        )
        path.write_bytes(base64.b64decode(taken["data"]))
        return path

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        box = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 16000)}
        return {"clip": {**box, "scale": 1}}

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the DevTools protocol and its answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + SECONDS
        while True:
            answer = self._receive(deadline)
            if answer.get("id") != self._number:
                self._take(answer)
                continue
            assert "error" not in answer, f"{method}: {answer['error']}"
            return dict(answer["result"])

    def _take(self, event: dict[str, Any]) -> None:
        """Remember what an event says of the page."""
        if "method" not in event:
            return
        self._events.append(event)
        told = event["params"]
        if event["method"] == "Network.requestWillBeSent":
            url = str(told["request"]["url"])
            if not url.startswith("data:"):
                self.requests.append(url)
        elif event["method"] == "Runtime.consoleAPICalled":
            self.complaints.append(json.dumps(told["args"]))
        elif event["method"] == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(told["exceptionDetails"]))
        elif event["method"] == "Log.entryAdded":
            self.complaints.append(str(told["entry"]["text"]))
        elif event["method"] == "Page.javascriptDialogOpening":
            self.complaints.append(f"dialog: {told['message']}")

    def _receive(self, deadline: float) -> dict[str, Any]:
        """The next message of the browser."""
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "chromium does not answer"
            found = os.read(self._read, 1 << 20)
            assert found, "chromium is gone"
            self._rest += found
        first, self._rest = self._rest.split(b"\0", 1)
        return dict(json.loads(first))
