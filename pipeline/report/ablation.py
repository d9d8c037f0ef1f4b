"""The page of an ablation, its tables as Markdown, and its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.report.figures import Figure
from pipeline.report.layout import environment, policy
from pipeline.report.plots import intervals
from pipeline.results.tables import interval
from pipeline.storage.checksum import with_checksum_page
from pipeline.storage.run import Run

__all__ = ["markdown", "tables", "write"]


def write(folder: str, found: Mapping[str, Any]) -> str:
    """Write report/index.html, ablation.md and ablation.json under a folder.

    Args:
        folder: That of the ablation.
        found: What `pipeline.demo.ablation.collect` gave.

    Returns:
        The path of the page.
    """
    run = Run(folder)
    run.write_json(found, "report", "ablation.json")
    run.write(markdown(found).encode(), "report", "ablation.md")
    page = (
        environment()
        .get_template("ablation.html.j2")
        .render(
            name=found["name"],
            seeds=found["seeds"],
            tables=tables(found),
            **policy(),
        )
    )
    run.write(with_checksum_page(page.strip() + "\n"), "report", "index.html")
    return run.url("report", "index.html")


def tables(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tables of what `pipeline.demo.ablation.collect` gave, as the templates show them."""
    return [_table(table) for table in found["tables"]]


def _table(table: Mapping[str, Any]) -> dict[str, Any]:
    metrics = list(table["rows"][0]["metrics"])
    figures = []
    for metric in metrics:
        rows = []
        for row in table["rows"]:
            known, whole = row["metrics"][metric]["values"], row["metrics"][metric]["estimate"]
            if whole is not None:
                values = [value for value in known if value is not None]
                rows.append((row["label"], whole["mean"], whole["low"], whole["high"], values))
        if rows:
            told = "; ".join(f"{label} {mean:.3f}" for label, mean, *_ in rows)
            label = f"{metric} of {table['title']}: {told}"
            figures.append(Figure(title=metric, plot=intervals(rows, x_label=metric, label=label)))
    return {
        "title": table["title"],
        "metrics": metrics,
        "rows": list(_lines(table)),
        "figures": figures,
    }


def _lines(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows, then the differences to the first."""
    first, *others = table["rows"]
    lines = [
        {
            "label": row["label"],
            "cells": [interval(metric["estimate"]) for metric in row["metrics"].values()],
        }
        for row in table["rows"]
    ]
    lines += [
        {
            "label": f"{row['label']} against {first['label']}",
            "cells": [interval(metric["difference"], "+") for metric in row["metrics"].values()],
        }
        for row in others
    ]
    return lines


def markdown(found: Mapping[str, Any]) -> str:
    """The tables in Markdown."""
    parts = []
    for table in found["tables"]:
        metrics = list(table["rows"][0]["metrics"])
        parts += [f"### {table['title']}", "", f"| | {' | '.join(metrics)} |"]
        parts.append("| --- |" + " ---: |" * len(metrics))
        parts += [f"| {line['label']} | {' | '.join(line['cells'])} |" for line in _lines(table)]
        parts.append("")
    return "\n".join(parts)
