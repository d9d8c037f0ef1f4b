"""The page of an ablation, and its tables as Markdown and JSON."""

from __future__ import annotations

from typing import Any

from pipeline.report.figures import Figure
from pipeline.report.layout import environment, policy
from pipeline.report.plots import intervals
from pipeline.results.tables import ablation_lines
from pipeline.storage.checksum import with_checksum_page
from pipeline.storage.records import AblationRecord, AblationTable
from pipeline.storage.run import Run

__all__ = ["markdown", "tables", "write"]


def write(folder: str, record: AblationRecord) -> str:
    """Write report/index.html, ablation.md and ablation.json under a folder.

    Args:
        folder: The folder of the ablation.
        record: The record of the ablation.

    Returns:
        The path of the page.
    """
    run = Run(folder)
    run.write_record(record, "report", "ablation.json")
    run.write(markdown(record).encode(), "report", "ablation.md")
    page = (
        environment()
        .get_template("ablation.html.j2")
        .render(
            name=record.name,
            seeds=record.seeds,
            tables=tables(record),
            **policy(),
        )
    )
    run.write(with_checksum_page(page.strip() + "\n"), "report", "index.html")
    return run.url("report", "index.html")


def tables(record: AblationRecord) -> list[dict[str, Any]]:
    """The tables of an ablation for the templates."""
    return [_table(table) for table in record.tables]


def _table(table: AblationTable) -> dict[str, Any]:
    metrics = list(table.rows[0].metrics)
    figures = []
    for metric in metrics:
        rows = []
        for row in table.rows:
            if (estimate := row.metrics[metric].estimate) is not None:
                values = [value for value in row.metrics[metric].values if value is not None]
                rows.append((row.label, estimate.mean, estimate.low, estimate.high, values))
        if rows:
            means = "; ".join(f"{label} {mean:.3f}" for label, mean, *_ in rows)
            label = f"{metric} of {table.title}: {means}"
            figures.append(Figure(title=metric, plot=intervals(rows, x_label=metric, label=label)))
    return {
        "title": table.title,
        "metrics": metrics,
        "rows": [{"label": label, "cells": cells} for label, cells in ablation_lines(table)],
        "figures": figures,
    }


def markdown(record: AblationRecord) -> str:
    """The tables of an ablation in Markdown."""
    parts = []
    for table in record.tables:
        metrics = list(table.rows[0].metrics)
        parts += [f"### {table.title}", "", f"| | {' | '.join(metrics)} |"]
        parts.append("| --- |" + " ---: |" * len(metrics))
        parts += [f"| {label} | {' | '.join(cells)} |" for label, cells in ablation_lines(table)]
        parts.append("")
    return "\n".join(parts)
