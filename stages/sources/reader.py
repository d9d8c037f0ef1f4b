"""The bytes of the images at hand, and of nothing else."""

from __future__ import annotations

import errno
import functools
import posixpath
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.sources.config import SourceConfig
from stages.sources.parquet_images import Pictures
from stages.sources.row import Location
from stages.sources.source_files import is_list, is_local, root

__all__ = ["Reader"]


_OPEN = 2  # Parquet files at once, since threads do not ask quite in order


class Reader:
    """Reads what the rows of the sources say, from many threads.

    What a row says is not trusted: what lies outside the paths that the config names, also through
    a link, is not read.

    Args:
        config: The sources.
        max_bytes: The longest image; null has no limit.
    """

    def __init__(self, config: SourceConfig, max_bytes: int | None = None) -> None:
        self._config = config
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._pictures: dict[str, tuple[Any, Pictures]] = {}

    def read(self, location: Location) -> bytes | str:
        """The bytes of an image, or the reason why there are none.

        The reasons are `outside_source`, `missing`, `empty` and `too_large`.

        Raises:
            OSError: The filesystem, not a local one, fails.
        """
        place = self._place(location.file)
        if place is None:
            return "outside_source"
        fs, path = place
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
            return "missing"  # a path may hold what no path can
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
        """What the filesystem tells of the file of an image; nothing where it cannot be read."""
        place = self._place(location.file)
        try:
            found: dict[str, Any] = {} if place is None else place[0].info(place[1])
        except (OSError, ValueError):
            return {}
        return found

    @functools.cached_property
    def _roots(self) -> list[tuple[str, Any, str, str]]:
        """Of each path what files start with, the filesystem, the folder there, and what it is.

        What a list names lies in the folder of its images, or else in that of the list.
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
        """The filesystem of a file and the path there; nothing where it lies outside."""
        for prefix, fs, top, inside in self._roots:
            if not file.startswith(prefix):
                continue
            path = posixpath.normpath(top.rstrip("/") + file.removeprefix(prefix))
            try:
                real = str(Path(path).resolve()) if is_local(fs) else path
            except (OSError, ValueError, RuntimeError):  # a path may hold what no path can
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
                    self._pictures[path] = (stream, Pictures(stream))
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
            size = int(fs.info(path)["size"])  # of an empty file, object stores give no range
            stop = size if end is None else min(end, size)
            content = fs.cat_file(path, start=start, end=stop) if start < stop else b""
        return content
    with open(path, "rb") as stream:
        stream.seek(start)
        return stream.read(-1 if length is None else length)
