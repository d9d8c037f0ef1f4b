"""The files that a source names, local or on any filesystem of fsspec."""

from __future__ import annotations

import codecs
import contextlib
import difflib
import io
import logging
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow as pa

from stages.sources.config import Source

__all__ = ["FOLDER", "Place", "folder", "is_image", "is_local", "places", "root"]

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2"}
)
FOLDER = "folder"
_KINDS = {
    "csv": "csv",
    "tsv": "tsv",
    "parquet": "parquet",
    "pq": "parquet",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "json": "json",
    "tar": "tar",
}
_TEXTS = ("csv", "tsv", "jsonl", "json")
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}


@dataclass(frozen=True)
class Place:
    """One file, or one folder of images.

    Attributes:
        fs: Its filesystem.
        path: Where it lies there.
        file: The same for a `Location`, written as the source's path was.
        name: From the source's path to it; empty where that is the place itself.
        prefix: What the names of its images start with.
        kind: csv, tsv, parquet, jsonl, json, tar or folder.
    """

    fs: Any
    path: str
    file: str
    name: str
    prefix: str
    kind: str

    @contextlib.contextmanager
    def open(self) -> Iterator[Any]:
        """The bytes, decompressed.

        Raises:
            UnicodeError: It is text in UTF-16 or UTF-32.
        """
        compression: Any = _COMPRESSIONS.get(posixpath.splitext(self.path)[1].lower())
        with self.fs.open(self.path, "rb") as raw:
            if self.kind in _TEXTS:
                raw = io.BufferedReader(raw)
                if (wide := _wide(raw.peek(4)[:4])) is not None:
                    raise UnicodeError(f"it is {wide}; save it as UTF-8")
            with pa.input_stream(raw, compression=compression) as stream:
                yield stream

    @contextlib.contextmanager
    def read_as(self, kind: str, *errors: type[Exception]) -> Iterator[None]:
        """Name the file, and what it is taken for, in what goes wrong while it is read.

        Raises:
            ValueError: Reading failed with an error of files or texts, or one of `errors`.
        """
        told: tuple[type[Exception], ...] = (OSError, EOFError, UnicodeError, *errors)
        try:
            yield
        except told as error:
            raise ValueError(
                f"download.source cannot be read as {kind}: {self.path}: {error}"
            ) from error

    def url(self, image: str | int) -> str:
        """What stands in the place of a URL for an image that has none."""
        return "/".join(part for part in (self.prefix, self.name, str(image)) if part)

    def under(self, name: str) -> str:
        """A file of the folder, for a `Location`."""
        return posixpath.join(self.file, name)

    def walk(self) -> Iterator[tuple[str, list[str]]]:
        """Each folder under the folder, as its relative path, with its files; sorted."""
        if not is_local(self.fs):
            found: dict[str, list[str]] = {}
            for path in self.fs.find(self.path):
                parent, name = posixpath.split(posixpath.relpath(path, self.path))
                found.setdefault(parent, []).append(name)
            for parent in sorted(found):
                yield parent, sorted(found[parent])
            return

        def refuse(error: OSError) -> None:
            raise ValueError(f"download.source cannot be read: {error}") from error

        for folder, folders, names in os.walk(self.path, onerror=refuse):
            folders.sort()
            for link in filter(os.path.islink, (os.path.join(folder, name) for name in folders)):
                logger.warning("%s is a link to a folder, which is not followed", link)
            relative = os.path.relpath(folder, self.path).replace(os.sep, "/")
            yield "" if relative == "." else relative, sorted(names)

    def files(self) -> Iterator[str]:
        """The relative path of each file of the folder."""
        for folder, names in self.walk():
            yield from (posixpath.join(folder, name) for name in names)

    def streams(self) -> Iterator[tuple[str, IO[bytes]]]:
        """Each file under its name within the source, to be read and closed."""
        if self.kind != FOLDER:
            yield self.name, self.fs.open(self.path, "rb")
            return
        for name in self.files():
            yield name, self.fs.open(posixpath.join(self.path, name), "rb")


def _wide(head: bytes) -> str | None:
    """The encoding of a text that begins so, by its mark or its NULs, if it is not of bytes."""
    if head in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        return "UTF-32"
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "UTF-16"
    nuls = tuple(byte == 0 for byte in head)  # as RFC 4627, section 3, tells encodings apart
    if nuls in ((False, True, True, True), (True, True, True, False)):
        return "UTF-32"
    return "UTF-16" if nuls in ((False, True) * 2, (True, False) * 2) else None


def is_image(name: str) -> bool:
    """Whether a file has a name as images have."""
    return posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES


def places(source: Source) -> Iterator[Place]:
    """The places that a source names, in a fixed order.

    Raises:
        ValueError: There is nothing, nothing of a known format, or a mixture.
    """
    for number, path in enumerate(source.paths):
        prefix = source.name if len(source.paths) == 1 else f"{source.name}/{number}"
        yield from _places(path, prefix)


def root(path: str) -> tuple[str, Any, str]:
    """Outside of what the images of a source's path may not lie.

    Returns:
        What the files of its `Location`s start with, and what that stands for: the filesystem, and
        the folder there, or the file where the path names one.
    """
    fs, found = _opened(path)
    if fs.exists(found):
        return path.rstrip("/"), fs, found
    return _fixed(path).rstrip("/"), fs, _fixed(found)


def folder(path: str, prefix: str) -> Place:
    """The folder of images at a path."""
    fs, found = _opened(path)
    if not fs.isdir(found):
        raise ValueError(f"download.source has no such folder: {path}{_instead(path)}")
    return Place(fs, found, path, "", prefix, FOLDER)


def _places(given: str, prefix: str) -> list[Place]:
    fs, path = _opened(given)
    try:
        if _kind(path) and fs.isfile(path):  # first: over HTTP, isdir would read it all
            base, names = posixpath.dirname(path), [posixpath.basename(path)]
        elif fs.isdir(path):
            whole = folder(given, prefix)
            names = []
            for name in whole.files():
                if is_image(name):
                    return [whole]
                if _kind(name) not in ("", "json"):
                    names.append(name)
            tars = [name for name in names if _kind(name) == "tar"]
            base, names = path, tars or names
        elif _fixed(path) != path:
            base = _fixed(path)
            names = [posixpath.relpath(p, base) for p in fs.glob(path) if fs.isfile(p)]
        else:
            base, names = posixpath.dirname(path), [posixpath.basename(path)] * fs.exists(path)
    except OSError as error:
        raise ValueError(f"download.source cannot be opened: {given}: {error}") from error
    if not names and fs.exists(path):
        raise ValueError(f"download.source holds neither a list nor images: {given}")
    if not names:
        raise ValueError(f"download.source has no such list or images: {given}{_instead(given)}")
    for name in names:
        if _is_packed(name):
            raise ValueError(
                f"download.source: {posixpath.join(base, name)} cannot be read where it is packed; "
                "unpack it"
            )
        if not _kind(name):
            raise ValueError(
                "download.source must be csv, tsv, parquet, jsonl or json (also .gz, .zst, .bz2), "
                f"tar, or a folder, got {posixpath.join(base, name)}"
            )
    return [
        Place(
            fs, posixpath.join(base, name), _as_given(given, path, base, name), name, prefix, kind
        )
        for name in sorted(names)
        for kind in [_kind(name)]
    ]


def _opened(path: str) -> tuple[Any, str]:
    """The filesystem of a path, and the path there."""
    try:
        fs, found = fsspec.core.url_to_fs(path)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"download.source cannot be opened: {path}: {error}") from error
    return fs, found.rstrip("/") or "/"


def _as_given(given: str, path: str, base: str, name: str) -> str:
    """A file as the source would name it: `path` is `given` on its filesystem, without protocol."""
    if path == posixpath.join(base, name):
        return given
    if path == base:
        return posixpath.join(given, name)
    return posixpath.join(_fixed(given), name)


def _fixed(path: str) -> str:
    """The folder above the first wildcard of a glob; a path without one as it is."""
    parts = path.split("/")
    for number, part in enumerate(parts):
        if any(character in part for character in "*?["):
            return "/".join(parts[:number]) or ("/" if path.startswith("/") else ".")
    return path


def _kind(path: str) -> str:
    """The format of a file by its name, or nothing."""
    name, ending = posixpath.splitext(path.lower())
    if ending in _COMPRESSIONS:
        ending = posixpath.splitext(name)[1]
    return _KINDS.get(ending.removeprefix("."), "")


def _is_packed(path: str) -> bool:
    """Whether a file that is read by position is compressed."""
    ending = posixpath.splitext(path.lower())[1]
    return ending == ".tgz" or (ending in _COMPRESSIONS and _kind(path) in ("tar", "parquet"))


def is_local(fs: Any) -> bool:
    """Whether a filesystem is this machine's own."""
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))


def _instead(path: str) -> str:
    """A file beside a missing one with a similar name, as a question."""
    missing = Path(path.removeprefix("file://")).expanduser()
    parent = missing.parent
    beside = [str(found) for found in parent.iterdir()] if parent.is_dir() else []
    close = difflib.get_close_matches(str(missing), beside, n=1, cutoff=0.8)
    return f"; did you mean {close[0]}?" if close else ""
