"""A browser on a page that lies in a file, and what the page asked for and complained of."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

from helpers.browser import CHROMIUM, Browser

__all__ = ["CHROMIUM", "PageBrowser"]

TALLEST = 16_000
SAID = {
    "Runtime.consoleAPICalled": "args",
    "Runtime.exceptionThrown": "exceptionDetails",
    "Log.entryAdded": "entry",
    "Page.javascriptDialogOpening": "message",
}
"""Events by which a page complains, and what they say."""


class PageBrowser(Browser):
    """Opens one file after another, in windows of any size, light or dark."""

    def visit(
        self, path: str, *, width: int = 1280, height: int = 900, dark: bool = False
    ) -> float:
        """Open a file; give the seconds until it had loaded."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url="about:blank")
        self.events.clear()
        started = time.monotonic()
        self.open(f"file://{path}")
        return time.monotonic() - started

    @property
    def requests(self) -> list[str]:
        """The URLs that the page asked for, data URIs left out."""
        urls = [str(told["request"]["url"]) for told in self.told("Network.requestWillBeSent")]
        return [url for url in urls if not url.startswith("data:")]

    @property
    def complaints(self) -> list[str]:
        """What the console, the log, exceptions and dialogs said."""
        return [json.dumps(told[key]) for event, key in SAID.items() for told in self.told(event)]

    def draw(self) -> None:
        """Have the page draw the plots that nobody has scrolled to, as before it is printed."""
        self.value("dispatchEvent(new Event('beforeprint'))")

    def picture_of_all(self, path: Path) -> Path:
        """A screenshot of the whole page, all its images loaded and its plots drawn."""
        self.draw()
        self.value("for (const image of document.images) image.loading = 'eager'")
        self.value("Promise.all([...document.images].map(image => image.decode()))")
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip: dict[str, Any] = {"x": 0, "y": 0, "width": size["width"], "scale": 1}
        clip["height"] = min(size["height"], TALLEST)
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(found["data"]))
        return path
