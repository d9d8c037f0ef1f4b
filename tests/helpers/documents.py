"""Interleaved documents on disk, as an export writes them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from PIL import Image

from helpers.trainings import COLORS
from pipeline.execution.documents_writer import IMAGES, ROWS_A_GROUP
from pipeline.storage.run import Run

__all__ = ["IMAGE_OF", "PAGES", "write_documents"]


def _png(number: int) -> bytes:
    buffer = io.BytesIO()
    color = list(COLORS.values())[number % len(COLORS)]
    Image.new("RGB", (40 + number, 40), color).save(buffer, "PNG")
    return buffer.getvalue()


IMAGE_OF = {f"{number:032x}": _png(number) for number in range(24)}
"""Coloured squares by their uids."""

PAGES = [
    (f"here <EOC><image>a {one} square <EOC><image>{two} square<EOC>", (uid, other))
    for one, two, uid, other in zip(
        list(COLORS) * 3,
        list(COLORS)[1:] * 4,
        list(IMAGE_OF)[::2],
        list(IMAGE_OF)[1::2],
        strict=True,
    )
]
"""Twelve documents of two images each."""


def write_documents(
    folder: Path,
    pages: Sequence[tuple[str, Sequence[str]]] = PAGES,
    images: dict[str, bytes] | None = None,
    shard_size: int = 5,
) -> str:
    """Write documents, (text, uids of the images) each, in shards; returns the folder."""
    images = IMAGE_OF if images is None else images
    run = Run(str(folder))
    for number, start in enumerate(range(0, len(pages), shard_size)):
        some = pages[start : start + shard_size]
        lines = [
            json.dumps({"uid": str(start + i), "url": "", "text": text, "images": list(uids)})
            for i, (text, uids) in enumerate(some)
        ]
        run.write(("\n".join(lines) + "\n").encode(), f"{number:05d}.jsonl")
        rows = [
            {"uid": uid, "image": {"bytes": images[uid], "path": None}, "width": 40, "height": 40}
            for uid in dict.fromkeys(uid for _, uids in some for uid in uids)
            if uid in images
        ]
        table = pa.Table.from_pylist(rows, IMAGES)
        run.write_table(table, f"images-{number:05d}.parquet", rows_a_group=min(ROWS_A_GROUP, 4))
    return str(folder)
