"""MDS, the shards of MosaicML's streaming."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import pyarrow as pa

from stages.formats.base import Format, Shard, samples

__all__ = ["Mds"]

COLUMNS = {"caption": "str", "image": "jpeg", "json": "json", "uid": "str"}
"""The columns, in order, with their encoding; `jpeg` is what PIL opens, so PNG and WebP too."""

LARGEST = 2**32
"""Bytes below which a shard must stay, since offsets are uint32."""


class Mds(Format):
    """One MDS file per shard, and an index.json per split.

    A shard is the number of samples, the offset of each and of the end, the columns as JSON, and
    the samples; a sample is the length of each column, then the columns. Numbers are uint32.
    """

    name = "mds"
    has_index = True
    has_choice = True
    draws = "`json`"
    about = """\
MDS shards for MosaicML's streaming, in a folder for each split. `image` is decoded by PIL;
`caption` is one caption of it (the first, which is the web caption if it was kept, or as
`export.captions` says); `json` has all captions with their sources, names and scores, and the URL,
size and SHA-256 of the image.

```python
from streaming import StreamingDataset

data = StreamingDataset(local="FOLDER", split="train", batch_size=32, shuffle=True)
data[0]["image"], data[0]["caption"], data[0]["json"]["captions"]
```
"""

    def path(self, shard: Shard) -> str:
        """See `Format.path`."""
        return f"{shard.split}/{'human-' * shard.is_human}{shard.number:05d}.mds"

    def files(self, shard: Shard, pairs: pa.Table) -> Iterator[tuple[str, bytes]]:
        """See `Format.files`.

        Raises:
            ValueError: The shard has 4 GiB or more.
        """
        yield self.path(shard), self._shard(shard, pairs)[0]

    def entries(self, shard: Shard, pairs: pa.Table) -> Iterator[dict[str, Any]]:
        """See `Format.entries`."""
        content, number = self._shard(shard, pairs)
        file = {
            "basename": self.path(shard).rpartition("/")[2],
            "bytes": len(content),
            "hashes": {"sha256": hashlib.sha256(content).hexdigest()},
        }
        yield {**_settings(), "samples": number, "raw_data": file, "zip_data": None}

    def index(self, entries: Mapping[str, Sequence[bytes]]) -> Iterator[tuple[str, str, bytes]]:
        """See `Format.index`."""
        for split, lines in entries.items():
            shards = b",\n".join(lines)
            yield split, f"{split}/index.json", b'{"version": 2, "shards": [\n' + shards + b"\n]}\n"

    def _shard(self, shard: Shard, pairs: pa.Table) -> tuple[bytes, int]:
        """Return the content of a shard, and its number of samples."""
        packed = []
        for sample in samples(pairs):
            columns = (
                self.caption(sample).encode(),
                sample.image,
                json.dumps({**sample.facts, **sample.texts}, ensure_ascii=False).encode(),
                sample.uid.encode(),
            )
            lengths = struct.pack(f"<{len(columns)}I", *map(len, columns))
            packed.append(b"".join((lengths, *columns)))
        settings = json.dumps(_settings(), sort_keys=True).encode()
        first = 4 * (len(packed) + 2) + len(settings)
        offsets = [*accumulate(map(len, packed), initial=first)]
        if offsets[-1] >= LARGEST:
            raise ValueError(
                f"export.format: mds holds less than 4 GiB a shard, and {self.path(shard)} has "
                f"{offsets[-1]:,} bytes; lower export.shard_size"
            )
        head = struct.pack(f"<{len(offsets) + 1}I", len(packed), *offsets)
        return b"".join((head, settings, *packed)), len(packed)


def _settings() -> dict[str, Any]:
    return {
        "version": 2,
        "format": "mds",
        "column_names": list(COLUMNS),
        "column_encodings": list(COLUMNS.values()),
        "column_sizes": [None] * len(COLUMNS),
        "compression": None,
        "hashes": ["sha256"],
        "size_limit": LARGEST - 1,
    }
