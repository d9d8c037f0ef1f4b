"""Serves the page of all rows to this machine only.

GET  /TOKEN/             the page, which requests only the following paths
GET  /TOKEN/facts        what can be chosen: reasons, sources, languages, columns, thresholds
GET  /TOKEN/rows?...     a page of rows; the fields of `Query`, and `page` from 0
GET  /TOKEN/thumbs/N     a small image of the Nth row
GET  /TOKEN/images/N     a large one
POST /TOKEN/done         stops the server
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import urllib.parse
from http import HTTPStatus
from pathlib import Path
from typing import Any

from pipeline.results.verdicts import Results
from pipeline.review.local_server import LocalServer, RequestError, as_jpeg, shown
from pipeline.view.rows import Query, RowIndex

__all__ = ["ViewServer"]

PAGE = 24
"""Rows of a page."""

THUMBNAIL = (240, 240)
SHARDS = 4
"""Shards whose images are kept in memory."""

FIELDS = {field.name for field in dataclasses.fields(Query)}
NUMBERS = ("low", "high")


class ViewServer(LocalServer):
    """Serves the rows of a run.

    Args:
        results: The results of the run.
        port: Port to listen on; 0 chooses a free one.

    Raises:
        OSError: The port is taken.
        ValueError: The run has no rows yet.
    """

    folder = Path(__file__).parent

    def __init__(self, results: Results, port: int = 0) -> None:
        super().__init__(results.plan.manifest.name, port)
        self.index = RowIndex(results)
        self._images = functools.lru_cache(SHARDS)(self._read_images)

    def get(self, path: str, query: str) -> Any:
        """See `LocalServer.get`."""
        if path == "facts":
            return self.index.facts()
        if path == "rows":
            return self.rows(query)
        if match := re.fullmatch(r"(thumbs|images)/(\d{1,12})", path):
            return self.image(int(match[2]), is_small=match[1] == "thumbs")
        raise RequestError(HTTPStatus.NOT_FOUND, "no such page")

    def rows(self, query: str) -> dict[str, Any]:
        """Return a page of rows, the number of all that match, and what the column says of them.

        Raises:
            RequestError: The query has an unknown field, or a number that is none.
        """
        given = dict(urllib.parse.parse_qsl(query))
        try:
            page = int(given.pop("page", "0"))
            if unknown := set(given) - FIELDS:
                raise ValueError(f"no field {sorted(unknown)[0]!r}")
            numbers = {name: float(given.pop(name)) for name in NUMBERS if name in given}
            if page < 0 or not all(map(math.isfinite, numbers.values())):
                raise ValueError("not a number that can be used")
            asked: Any = {**given, **numbers}
            chosen, histogram = self.index.select(Query(**asked))
            column = asked.get("column", "")
            within = self.index.tally(chosen, column) if column else None
        except ValueError as error:
            raise RequestError(HTTPStatus.BAD_REQUEST, str(error)) from None
        rows = self.index.rows(chosen[page * PAGE : (page + 1) * PAGE].tolist())
        for row in rows:
            for name in ("url", "caption", "web"):
                row[name] = None if row[name] is None else shown(row[name])
            row["synthetic"] = [shown(text) for text in row["synthetic"] or ()]
        pages = -(-len(chosen) // PAGE)
        total = len(chosen)
        return {
            "rows": rows,
            "total": total,
            "pages": pages,
            "histogram": histogram,
            "within": within,
        }

    def image(self, index: int, *, is_small: bool) -> bytes:
        """Return the image of a row as JPEG.

        Raises:
            RequestError: There is no such row, or no image that can be decoded.
        """
        if index >= self.index.table.num_rows:
            raise RequestError(HTTPStatus.NOT_FOUND, "no such row")
        shard, row = self.index.place(index)
        encoded = self._images(shard)[row].as_py()
        return as_jpeg(encoded, THUMBNAIL) if is_small else as_jpeg(encoded)

    def _read_images(self, shard: str) -> Any:
        run = self.index.results.run
        return run.read_table("pool", f"{shard}.parquet", columns=["image"])["image"]
