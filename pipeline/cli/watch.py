"""`capfilt status --watch`: prints the funnel of a run whenever it changes."""

from __future__ import annotations

import json
import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from pipeline.results.funnel import funnel, holder
from pipeline.results.open_run import open_results
from pipeline.results.tables import funnel_table, put
from pipeline.storage.run import Run

__all__ = ["describe_holder", "speed_of", "watch"]

SECONDS = 2.0
"""Seconds between two reads of the run, at least."""

SHARE = 5
"""The wait between two reads is at least this many times as long as a read."""


def watch(run: Run, console: Console, *, as_json: bool = False) -> None:
    """Show the funnel until every stage is done, or until interrupted.

    On a terminal, the funnel is redrawn. Otherwise it is printed whenever it has changed: as a line
    of JSON or as a table.

    Args:
        run: The run.
        console: The console to print to.
        as_json: Whether to print JSON.
    """
    before: dict[str, Any] | None = None
    before_time = time.monotonic()
    live = (
        Live(console=console, auto_refresh=False) if console.is_terminal and not as_json else None
    )
    try:
        if live is not None:
            live.start()
        while True:
            began = time.monotonic()
            counts = funnel(open_results(run))
            is_done = all(stage["state"] == "done" for stage in counts["stages"])
            if live is not None:
                note = "" if is_done else _note(run, speed_of(before, counts, began - before_time))
                live.update(Group(funnel_table(counts), Text(note, "dim")), refresh=True)
            elif counts != before and as_json:
                console.print(json.dumps(counts), highlight=False, markup=False, soft_wrap=True)
            elif counts != before:
                put(console, funnel_table(counts))
            if is_done:
                return
            before, before_time = counts, began
            time.sleep(max(SECONDS, SHARE * (time.monotonic() - began)))
    except KeyboardInterrupt:
        return
    finally:
        if live is not None:
            live.stop()


def speed_of(before: dict[str, Any] | None, after: dict[str, Any], seconds: float) -> str:
    """The speed and the remaining time of the stage that measured rows between two funnels."""
    if before is None:
        return ""
    for old, new in zip(before["stages"], after["stages"], strict=False):
        measured = [stage["rows"] - stage["not_measured"] for stage in (old, new)]
        if measured[1] > measured[0] and new["not_measured"]:
            rate = (measured[1] - measured[0]) / seconds
            left = new["not_measured"] / rate
            time_left = f"{left:.0f} s" if left < 120 else f"{left / 60:.0f} min"
            return f"{new['name']}: {rate:,.0f} rows/s, {time_left} left"
    return ""


def describe_holder(holder: dict[str, Any] | None) -> str:
    """The holder of a run, from `funnel.holder`, in words."""
    if holder is None:
        return "no process is working on it"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["since"]))
    if holder.get("command") == "review":
        return (
            f"capfilt review (process {holder['pid']} on {holder['host']}) holds it since {since}; "
            "press Done on its page to go on"
        )
    return f"process {holder['pid']} on {holder['host']} has been working on it since {since}"


def _note(run: Run, speed: str) -> str:
    """The line below the funnel: the holder of the run, and the speed."""
    who = describe_holder(holder(run))
    return f"{who}{'; ' * bool(speed)}{speed}   Ctrl-C stops watching, not the run"
