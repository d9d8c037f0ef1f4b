"""What a run comes to, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table
from rich.text import Text

__all__ = ["ablation_tables", "agreement_table", "cell", "flat", "funnel_table", "interval"]


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


def ablation_tables(found: dict[str, Any]) -> Iterator[Table]:
    """The tables of `pipeline.ablation.collect` for the terminal."""
    for entry in found["tables"]:
        table = Table(title=entry["title"], title_justify="left")
        table.add_column("")
        for name in entry["rows"][0]["metrics"]:
            table.add_column(name, justify="right")
        for row in entry["rows"]:
            cells = (interval(metric["estimate"]) for metric in row["metrics"].values())
            table.add_row(row["label"], *cells)
        for row in entry["rows"][1:]:
            cells = (interval(metric["difference"], "+") for metric in row["metrics"].values())
            table.add_row(f"{row['label']} against {entry['rows'][0]['label']}", *cells)
        yield table


def agreement_table(found: dict[str, Any]) -> Table:
    """The agreement of `pipeline.review.agreement.told` for the terminal."""
    measures = [
        f"{name} {found[key]:.3f}"
        for key, name in (("accuracy", "accuracy"), ("kappa", "Cohen's kappa"))
        if found[key] is not None
    ]
    table = Table(title=", ".join(["agreement", *measures]), title_justify="left")
    table.add_column("pairs")
    for name in ("people accept", "people reject or fix"):
        table.add_column(name, justify="right")
    table.add_row("filter keeps", f"{found['both_keep']:,}", f"{found['only_filter']:,}")
    table.add_row("filter rejects", f"{found['only_people']:,}", f"{found['neither']:,}")
    return table


def interval(estimate: dict[str, Any] | None, sign: str = "") -> str:
    """A mean with its interval; three decimals at most."""
    if estimate is None:
        return "-"
    if estimate["low"] is None:
        return f"{estimate['mean']:{sign}.3f}"
    return (
        f"{estimate['mean']:{sign}.3f} [{estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f}]"
    )


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
