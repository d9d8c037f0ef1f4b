"""Reads the bytes of images that need no download, and of no other files."""

from __future__ import annotations

import errno
import functools
import posixpath
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.sources.config import SourceConfig
from stages.sources.parquet_images import ParquetImages
from stages.sources.row import Location
from stages.sources.source_files import is_list, is_local, root

__all__ = ["Reader"]


_OPEN = 2  # Parquet files open at once, since threads do not read exactly in order


class Reader:
    """Reads the images that rows of the sources point to; safe for use from several threads.

    Locations are untrusted: a file outside the paths of the config is not read, nor is one that a
    link leads to.

    Args:
        config: The sources.
        max_bytes: Maximum size of an image; None for no limit.
    """

    def __init__(self, config: SourceConfig, max_bytes: int | None = None) -> None:
        self._config = config
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._pictures: dict[str, tuple[Any, ParquetImages]] = {}

    def read(self, location: Location) -> bytes | str:
        """Return the bytes of an image, or the reason why it cannot be read.

        The reasons are `outside_source`, `missing`, `empty` and `too_large`.

        Raises:
            OSError: A remote filesystem fails.
        """
        resolved = self._place(location.file)
        if resolved is None:
            return "outside_source"
        fs, path = resolved
        limit = self._max_bytes
        if limit is not None and (location.length or 0) > limit:
            return "too_large"
        try:
            if is_local(fs) and not Path(path).is_file():
                return "missing"
            if location.row is not None:
                content = self._picture(fs, path, location.row)
            else:
                start = location.offset or 0
                length = location.length
                if length is None and limit is not None:
                    length = limit + 1
                content = _range(fs, path, start, length)
        except (FileNotFoundError, IsADirectoryError, ValueError, pa.ArrowException):
            return "missing"  # ValueError: the path has a character that no path can have
        except OSError:
            if is_local(fs):
                return "missing"
            raise
        if content is None:
            return "missing"
        if limit is not None and len(content) > limit:
            return "too_large"
        return content or "empty"

    def info(self, location: Location) -> dict[str, Any]:
        """Return the filesystem's info on the file of an image; empty if it cannot be read."""
        resolved = self._place(location.file)
        try:
            info: dict[str, Any] = {} if resolved is None else resolved[0].info(resolved[1])
        except (OSError, ValueError):
            return {}
        return info

    @functools.cached_property
    def _roots(self) -> list[tuple[str, Any, str, str]]:
        """The paths that images may be read from.

        These are the paths of the sources and of their `images`; for a list without `images`, the
        folder of the list.
        """
        paths = []
        for source in self._config.sources:
            paths += [*source.paths, *([source.images] if source.images else [])]
            if source.images is None:
                paths += [posixpath.dirname(p) or "." for p in source.paths if is_list(p)]
        return [
            (prefix, fs, top, str(Path(top).resolve()) if is_local(fs) else posixpath.normpath(top))
            for prefix, fs, top in map(root, dict.fromkeys(paths))
        ]

    def _place(self, file: str) -> tuple[Any, str] | None:
        """Return the filesystem and the path of a file; None if it is outside of all roots."""
        for prefix, fs, top, inside in self._roots:
            if not file.startswith(prefix):
                continue
            path = posixpath.normpath(top.rstrip("/") + file.removeprefix(prefix))
            try:
                real = str(Path(path).resolve()) if is_local(fs) else path
            except (OSError, ValueError, RuntimeError):  # no such path is possible
                continue
            if real == inside or real.startswith(inside.rstrip("/") + "/"):
                return fs, real
        return None

    def _picture(self, fs: Any, path: str, row: int) -> bytes | None:
        with self._lock:
            if path not in self._pictures:
                if len(self._pictures) == _OPEN:
                    self._pictures.pop(next(iter(self._pictures)))[0].close()
                stream = fs.open(path, "rb")
                try:
                    self._pictures[path] = (stream, ParquetImages(stream))
                except BaseException:
                    stream.close()
                    raise
            return self._pictures[path][1][row]


def _range(fs: Any, path: str, start: int, length: int | None) -> bytes:
    if not is_local(fs):
        end = None if length is None else start + length
        try:
            content: bytes = fs.cat_file(path, start=start, end=end)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            size = int(fs.info(path)["size"])  # object stores refuse a range of an empty file
            stop = size if end is None else min(end, size)
            content = fs.cat_file(path, start=start, end=stop) if start < stop else b""
        return content
    with open(path, "rb") as stream:
        stream.seek(start)
        return stream.read(-1 if length is None else length)
