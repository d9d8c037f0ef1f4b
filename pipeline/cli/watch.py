"""Watching a run: its funnel again and again, with who is at work on it, the rate, what is left."""

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

__all__ = ["describe_holder", "pace", "watch"]

SECONDS = 2.0
"""Between two looks."""

SHARE = 5
"""Looks may take one part in this many of the time."""


def watch(run: Run, console: Console, *, as_json: bool = False) -> None:
    """Show the funnel until every stage is done, or until interrupted.

    A terminal sees it redrawn. Anything else gets the funnel whenever it has changed: as JSON a
    line each, else as a table each.

    Args:
        run: The run.
        console: Where to.
        as_json: Whether values are wanted.
    """
    before: dict[str, Any] | None = None
    told = time.monotonic()
    live = (
        Live(console=console, auto_refresh=False) if console.is_terminal and not as_json else None
    )
    try:
        if live is not None:
            live.start()
        while True:
            began = time.monotonic()
            found = funnel(open_results(run))
            is_done = all(stage["state"] == "done" for stage in found["stages"])
            if live is not None:
                note = "" if is_done else _note(run, pace(before, found, began - told))
                live.update(Group(funnel_table(found), Text(note, "dim")), refresh=True)
            elif found != before and as_json:
                console.print(json.dumps(found), highlight=False, markup=False, soft_wrap=True)
            elif found != before:
                put(console, funnel_table(found))
            if is_done:
                return
            before, told = found, began
            time.sleep(max(SECONDS, SHARE * (time.monotonic() - began)))
    except KeyboardInterrupt:
        return
    finally:
        if live is not None:
            live.stop()


def pace(before: dict[str, Any] | None, after: dict[str, Any], seconds: float) -> str:
    """How fast the stage that went on between two looks goes, and when it is through."""
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
    """Who is at work on a run, as `status.holder` gives it, in words."""
    if holder is None:
        return "nobody is at work on it"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["since"]))
    return f"process {holder['pid']} on {holder['host']} is at work on it since {since}"


def _note(run: Run, told: str) -> str:
    """Who is at work on the run, and how fast."""
    who = describe_holder(holder(run))
    return f"{who}{'; ' * bool(told)}{told}   Ctrl-C ends the watch, not the run"
