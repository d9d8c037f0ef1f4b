"""Stamps: what tells, without reading a file, that it is the file it was."""

from __future__ import annotations

import os
import posixpath
from typing import NamedTuple

from pipeline.storage.run import Run

__all__ = ["Stamp", "stamp_of", "stamps_of"]

TAGS = ("ETag", "etag", "generation", "md5Hash")
"""Under which of these a store says what changes with the content of an object."""


class Stamp(NamedTuple):
    """What tells that a file is the one it was.

    Attributes:
        identity: On a disk the size, and when content and attributes were last changed; on object
            storage the size and the store's own tag.
        changed: When the file last changed, in nanoseconds of the disk's clock; 0 on object
            storage, whose tags follow from the content.
    """

    identity: str
    changed: int


def stamp_of(run: Run, *parts: str) -> Stamp | None:
    """The stamp of one file; None if it is not there, or its storage has no stamps."""
    return stamps_of(run, *parts[:-1]).get(parts[-1])


def stamps_of(run: Run, *parts: str) -> dict[str, Stamp]:
    """The stamps of the committed files of a folder, by name; one listing gives them all.

    A file whose storage has no tags is left out.
    """
    folder = run.at(*parts)
    stamps = {}
    try:
        if run.is_local:
            with os.scandir(folder) as entries:
                for entry in entries:
                    stat = entry.stat()
                    times = (stat.st_mtime_ns, stat.st_ctime_ns)
                    stamps[entry.name] = Stamp(f"{stat.st_size} {times}", max(times))
        else:
            for found in run.fs.ls(folder, detail=True):
                name = posixpath.basename(str(found["name"]).rstrip("/"))
                if tag := next((found[key] for key in TAGS if found.get(key)), None):
                    stamps[name] = Stamp(f"{found.get('size')} {tag}", 0)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {name: stamp for name, stamp in stamps.items() if not name.endswith(".partial")}
