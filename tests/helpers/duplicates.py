"""Rows with drawn images, and what dedup says of them."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import pyarrow as pa
from PIL import Image

from helpers.fakes import painting
from stages.dedup import DedupConfig, DedupStage
from stages.schema import POOL, uid_of


def jpeg(image: Image.Image, quality: int = 90, scale: float = 1.0) -> bytes:
    file = io.BytesIO()
    size = round(image.width * scale), round(image.height * scale)
    image.resize(size).save(file, "JPEG", quality=quality)
    return file.getvalue()


PAINTINGS = [jpeg(painting(seed)) for seed in range(40)]


def row(
    image: bytes | None, url: str, caption: str | None = None, **columns: Any
) -> dict[str, Any]:
    return {
        "uid": uid_of(url, caption),
        "source": "test",
        "url": url,
        "caption": caption,
        "repeats": 0,
        "status": "success",
        "image": image,
        "width": 160,
        "height": 120,
        "original_width": 640,
        "original_height": 480,
        "sha256": hashlib.sha256(image or b"").hexdigest(),
        **columns,
    }


def pool(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=POOL)


def annotated(stage: DedupStage, rows: pa.Table) -> pa.Table:
    annotations = stage.annotate(rows)
    assert annotations.schema.equals(stage.writes)
    return annotations.add_column(0, "uid", rows["uid"])


def summarized(rows: pa.Table, **settings: Any) -> list[dict[str, Any]]:
    """The summary of each row, with its verdict as `reason`."""
    stage = DedupStage(DedupConfig(**settings))
    annotations = annotated(stage, rows)
    summary = stage.summarize(iter([annotations]))
    assert summary["uid"].equals(rows["uid"])
    assert summary.drop_columns("uid").schema.equals(stage.summary)
    for name in stage.summary.names:
        annotations = annotations.append_column(name, summary[name])
    verdicts = stage.judge(annotations)
    assert set(verdicts.to_pylist()) <= {None, *stage.reasons}
    return summary.append_column("reason", verdicts).to_pylist()


def reasons(*rows: dict[str, Any], **settings: Any) -> list[str | None]:
    return [one["reason"] for one in summarized(pool(*rows), **settings)]
