"""The page of a search: the nearest rows with thumbnails and their verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.report.examples import examples
from pipeline.report.layout import environment, policy
from pipeline.results.sampling import RowLocation
from pipeline.results.search import Found
from pipeline.results.verdicts import Results

__all__ = ["write"]


def write(results: Results, query: str, found: Sequence[Found], out: str) -> None:
    """Write a self-contained page.

    Args:
        results: The results of the run.
        query: What was searched for.
        found: The rows, the nearest first.
        out: The file.
    """
    places = [RowLocation(one.shard, one.row) for one in found]
    shown = examples(results, [n for n in results.plan.names if n != "embed"], places)
    page = (
        environment()
        .get_template("search.html.j2")
        .render(
            run=results.run.root,
            query=query,
            hits=[(one, shown[place]) for one, place in zip(found, places, strict=True)],
            **policy(),
        )
    )
    Path(out).write_text(page.strip() + "\n", encoding="utf-8")
