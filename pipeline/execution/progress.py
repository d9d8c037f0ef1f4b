"""Progress on the terminal: a bar with rate and remaining time; elsewhere lines of text."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bars,
)

from pipeline.execution import logs
from stages.download import DownloadStage

__all__ = ["Progress"]

logger = logging.getLogger(__name__)

BESIDE = 47
"""Characters of the line of a bar besides its name, the numbers of shards and the rate."""

PLAIN_SECONDS = 10.0
"""Seconds between two lines if the output is not a terminal."""


class Progress:
    """Shows the progress of a stage: shards, rows, rows kept, rate, reasons, remaining time.

    Args:
        console: Where to write: bars on a terminal, lines of text elsewhere.
        quiet: Write nothing.
    """

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet
        self._bars: Bars | None = None
        self._waiting: threading.Timer | None = None

    def say(self, message: str) -> None:
        """Print a line of text."""
        logs.log_event(message)
        if not self.quiet:
            self.console.print(message, highlight=False, markup=False)

    def start(self, name: str, shards: int) -> None:
        """Begin to show a stage on so many shards."""
        self.name, self.shards, self.done, self.rows, self.bytes = name, shards, 0, 0, 0
        self.reasons: Counter[str] = Counter()
        self.began = self.last_line = time.monotonic()
        logs.log_event("stage begins", stage=name, shards=shards)
        if self.quiet:
            return
        if not self.console.is_terminal:
            self._wait(PLAIN_SECONDS)
            return
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description:<10}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("shards", markup=False),
            TimeRemainingColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            console=self.console,
            transient=True,
        )
        self._bar = self._bars.add_task(name, total=shards, rate=self._fit("working on the first"))
        self._bars.start()

    def advance(self, result: Mapping[str, Any]) -> None:
        """Count a finished shard; `result` is what the worker returned."""
        self._stop_waiting()
        self.done += 1
        logs.log_event(
            "shard done",
            stage=self.name,
            **{
                key: result[key] for key in ("shard", "rows", "seconds", "reasons") if key in result
            },
        )
        self.rows += int(result["rows"])
        self.bytes += int(result.get("bytes", 0))
        self.reasons.update(result["reasons"])
        if self._bars is not None:
            self._bars.update(self._bar, completed=self.done, rate=self._fit(self._rate()))
        elif self.done < self.shards and time.monotonic() - self.last_line > PLAIN_SECONDS:
            self.last_line = time.monotonic()
            left = (self.last_line - self.began) / self.done * (self.shards - self.done)
            self.say(
                f"{self.name:<10} {self.done}/{self.shards} shards  {self._rate()}"
                f"  {left:.0f} s left"
            )

    def finish(self) -> None:
        """End the display of the stage, finished or not."""
        self._stop_waiting()
        logs.log_event(
            "stage ends",
            stage=self.name,
            shards=self.shards,
            done=self.done,
            rows=self.rows,
            reasons=dict(self.reasons),
            seconds=round(time.monotonic() - self.began, 3),
        )
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
        if not self.quiet:
            seconds = time.monotonic() - self.began
            self.say(
                f"{self.name:<10} {self.done}/{self.shards} shards  {self._rate()}"
                f"  in {seconds:.1f} s"
            )

    def _wait(self, seconds: float) -> None:
        """Print a line in so many seconds, and again after twice as many."""

        def tell() -> None:
            elapsed = time.monotonic() - self.began
            self.say(
                f"{self.name:<10} 0/{self.shards} shards  working on the first for {elapsed:.0f} s"
            )
            self._wait(2 * seconds)

        self._waiting = threading.Timer(seconds, tell)
        self._waiting.daemon = True
        self._waiting.start()

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _fit(self, text: str) -> str:
        """Cut a text to what the bar, the shards and the time leave of the line."""
        taken = BESIDE + len(self.name.ljust(10)) + 2 * len(str(self.shards))
        room = max(self.console.width - taken, 0)
        return text if len(text) <= room else f"{text[: max(room - 1, 0)]}\u2026"[:room]

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self.began, 1e-3)
        parts = [f"{self.rows:,} rows"]
        if self.reasons:
            parts.append(f"{_percent(self.rows - self.reasons.total(), self.rows)} ok")
        unit = "images/s" if self.name == DownloadStage.name else "rows/s"
        parts.append(f"{self.rows / seconds:,.0f} {unit}")
        if self.bytes:
            parts.append(f"{self.bytes / seconds / 1e6:.1f} MB/s")
        top = [f"{_percent(n, self.rows)} {r}" for r, n in self.reasons.most_common(3)]
        return "  ".join([*parts, ", ".join(top)] if top else parts)


def _percent(part: int, whole: int) -> str:
    """Write a share in per cent; 0% and 100% only if it is exactly that."""
    share = 100 * part / max(whole, 1)
    if 0 < share < 0.1:
        return "<0.1%"
    if 99 < share < 100:
        share = math.floor(10 * share) / 10
    return f"{share:.0f}%" if 1 <= share <= 99 or share in (0, 100) else f"{share:.1f}%"
