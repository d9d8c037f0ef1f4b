"""The schemas of the pool, which download writes, and of the pairs, which export writes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pyarrow as pa

__all__ = ["DRAWN_PAIRS", "PAIRS", "POOL", "uid_of", "web_captions"]

_POOL: list[pa.Field[Any]] = [
    pa.field("uid", pa.string(), nullable=False),
    pa.field("source", pa.string(), nullable=False),
    pa.field("source_uid", pa.string()),
    pa.field("url", pa.string(), nullable=False),
    pa.field("caption", pa.string()),
    pa.field("repeats", pa.int32(), nullable=False),
    pa.field("status", pa.string(), nullable=False),
    pa.field("error", pa.string()),
    pa.field("image", pa.binary()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("original_width", pa.int32()),
    pa.field("original_height", pa.int32()),
    pa.field("original_bytes", pa.int64()),
    pa.field("sha256", pa.string()),
]
POOL = pa.schema(_POOL)
"""One row for each distinct (url, caption) of the input, failed downloads included.

- `source_uid`: the source's own id, such as DataComp's uid.
- `url`: the URL; for an image without one, its name within the source.
- `caption`: the unchanged web caption.
- `repeats`: number of further input rows with the same uid.
- `status`: img2dataset's status: success, failed_to_download or failed_to_resize.
- `error`: null on success, otherwise one of download's reasons.
- `image`: the encoded image without EXIF; null on failure.
- `width`, `height`: size of `image`, in pixels.
- `original_width`, `original_height`, `original_bytes`, `sha256`: size and SHA-256 of the
  downloaded file, before it was resized.
"""

_IMAGE: pa.DataType = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

_PAIRS: list[pa.Field[Any]] = [
    pa.field("uid", pa.string(), nullable=False),
    pa.field("image", _IMAGE),
    pa.field("caption", pa.string(), nullable=False),
    pa.field("caption_full", pa.string()),
    pa.field("caption_source", pa.string(), nullable=False),
    pa.field("itm_score", pa.float32()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("url", pa.string()),
    pa.field("source", pa.string()),
    pa.field("sha256", pa.string()),
    pa.field("caption_name", pa.string()),
]


def _as_features(fields: list[pa.Field[Any]]) -> pa.Schema:
    """The schema of some fields, of which `datasets` decodes `image`."""
    names = {pa.string(): "string", pa.float32(): "float32", pa.int32(): "int32"}
    features: dict[str, dict[str, str]] = {
        field.name: {"_type": "Image"}
        if field.name == "image"
        else {"dtype": names[field.type], "_type": "Value"}
        for field in fields
    }
    return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": features}})})


PAIRS = _as_features(_PAIRS)
"""One row per (image, caption).

`caption_full` is the caption before the filter dropped sentences of it, null if it dropped none.
`caption_source` is web, synthetic, fused (synthetic, by a prompt with the web caption in it) or
human. `itm_score` is the filter's probability of a match, null if no filter ran; of a caption
judged in sentences it is the least of those kept. `caption_name` is the name of a synthetic
caption's prompt, null if it has none. The
metadata lets `datasets.load_dataset("parquet", ...)` decode the images."""

DRAWN_PAIRS = _as_features([*_PAIRS, pa.field("draws", pa.int32(), nullable=False)])
"""The pairs of a pool whose rows were drawn with repetition: `draws` says how often the image was
drawn, 1 for human pairs. A training passes over the image that often an epoch."""


def uid_of(url: str, caption: str | None) -> str:
    """Return the uid of a sample: a 128-bit hash of (url, web caption) as 32 hex characters."""
    text = f"{url}\0{'' if caption is None else caption}"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def web_captions(rows: pa.Table) -> pa.ChunkedArray[Any]:
    """Return the web captions of rows: clean's normalised `text` if it ran, else `caption`."""
    return rows["text" if "text" in rows.column_names else "caption"]
