"""What a run comes to, as tables for the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

__all__ = ["cell", "flat", "funnel_table"]


def funnel_table(found: dict[str, Any]) -> Table:
    """The funnel as a table for the terminal."""
    table = Table(title=f"{found['name']}  {found['run']}", title_justify="left")
    table.add_column("stage")
    table.add_column("state")
    for name in ("rows", "kept", "to do", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("rejected", overflow="fold")
    for stage in found["stages"]:
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in stage["reasons"].items())
        if "pairs" in stage:
            reasons = "pairs: " + ", ".join(f"{k} {n:,}" for k, n in stage["pairs"].items())
        table.add_row(
            stage["name"],
            stage["state"],
            f"{stage['rows']:,}",
            f"{stage['kept']:,}",
            f"{stage['not_measured']:,}",
            f"{stage['seconds']:.1f}",
            reasons,
        )
    return table


def flat(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as dotted names and values."""
    if not isinstance(value, dict):
        return [(name, value)]
    return [pair for key, part in value.items() for pair in flat(part, f"{name}.{key}".lstrip("."))]


def cell(value: Any) -> Text:
    """A value as plain text: what the web wrote can neither style nor steer the terminal."""
    if isinstance(value, bytes):
        return Text(f"{len(value):,} bytes")
    shown = "-" if value is None else str(value)
    return Text("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown))
