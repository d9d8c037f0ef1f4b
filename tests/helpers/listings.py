"""What the reader of sources makes of a file: rows, captions, and the bytes of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages import sources
from stages.sources import Location, Notices, Reader, Source, SourceConfig


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows(path: Path, notices: Notices | None = None, **fields: Any) -> list[dict[str, Any]]:
    config = SourceConfig(source=(Source(path=str(path), **fields),))
    return [row for table in sources.shards(config, notices) for row in table.to_pylist()]


def pairs(path: Path, **fields: Any) -> list[tuple[str, str | None]]:
    return [(row["url"], row["caption"]) for row in rows(path, **fields)]


def contents(path: Path, **fields: Any) -> list[tuple[bytes | str, str | None]]:
    config = SourceConfig(source=(Source(path=str(path), **fields),))
    reader = Reader(config)
    return [
        (reader.read(Location(*(row[field] for field in Location._fields))), row["caption"])
        for row in rows(path, **fields)
    ]
