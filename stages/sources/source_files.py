"""The files that a source names, local or on any filesystem of fsspec."""

from __future__ import annotations

import codecs
import contextlib
import difflib
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow as pa

from stages.sources.config import Source
from stages.sources.encoding import Recoded, guess, marked, runs
from stages.sources.notices import Notices

__all__ = [
    "FOLDER",
    "SourceFile",
    "folder",
    "is_hidden",
    "is_image",
    "is_list",
    "is_local",
    "is_picture",
    "places",
    "root",
]

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".png", ".apng", ".webp", ".gif"),
        *(".bmp", ".dib", ".tif", ".tiff", ".avif", ".jp2", ".j2k", ".heic", ".heif", ".hif"),
        *(".ico", ".jxl"),
    }
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
    "txt": "txt",
    "tar": "tar",
}
_TEXTS = ("csv", "tsv", "jsonl", "json", "txt")
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}

_SYSTEM = frozenset(
    {
        "__macosx",
        "@eadir",
        "#recycle",
        "$recycle.bin",
        "@recycle",
        "system volume information",
        "lost+found",
        "thumbs.db",
        "desktop.ini",
    }
)

_MAGIC = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a"),
    *(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),  # TIFF
    *(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"\0\0\0\x0cJXL ", b"\xff\x0a", b"8BPS"),
)
_TEXTUAL = frozenset({".caption", ".md", ".html", ".log", ".yaml", ".yml", ".xml"})
HIDDEN = "hidden files and files of a system, which are left out"
_BRANDS = frozenset({b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1"})
_HEAD = 2**24  # bytes of a list whose encoding is told
_BLOCK = 2**20  # of them at once


@dataclass(frozen=True)
class SourceFile:
    """One file, or one folder of images.

    Attributes:
        fs: Its filesystem.
        path: Where it lies there.
        file: The same for a `Location`, written as the source's path was.
        name: From the source's path to it; empty where that is the place itself.
        prefix: What the names of its images start with.
        kind: csv, tsv, txt, parquet, jsonl, json, tar or folder.
        notices: Where its readers tell what is worth a warning.
        known: What was found out about it before.
    """

    fs: Any
    path: str
    file: str
    name: str
    prefix: str
    kind: str
    notices: Notices = field(default_factory=Notices, compare=False, repr=False)
    known: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @contextlib.contextmanager
    def open(self) -> Iterator[Any]:
        """The bytes, decompressed; those of a list of text in UTF-8, whatever it is in.

        A line of a list that is not in the encoding of the others stays as it is.

        Raises:
            UnicodeError: It is text in an encoding that cannot be told; it names the line.
        """
        encoding = self._encoding() if self.kind in _TEXTS else "utf-8"
        with self._packed() as stream:
            yield stream if encoding == "utf-8" else Recoded(stream, encoding)

    @contextlib.contextmanager
    def _packed(self) -> Iterator[Any]:
        compression: Any = _COMPRESSIONS.get(posixpath.splitext(self.path)[1].lower())
        with (
            self.fs.open(self.path, "rb") as raw,
            pa.input_stream(raw, compression=compression) as stream,
        ):
            yield stream

    def _encoding(self) -> str:
        """The encoding of a list, told from its first 16 MiB."""
        if "encoding" not in self.known:
            self.known["encoding"] = found = self._told()
            if found != "utf-8":
                self.notices.add(f"lists in {found.upper()}, read as that", self.path)
        return str(self.known["encoding"])

    def _told(self) -> str:
        with self._packed() as stream:
            block = bytes(stream.read(_BLOCK))
            found = marked(block[:1024])
            if found not in (None, "utf-8-sig"):
                return str(found)
            decoder = codecs.getincrementaldecoder("utf-8")("strict")
            with contextlib.suppress(UnicodeDecodeError):
                for _ in range(_HEAD // _BLOCK):
                    decoder.decode(block, not block)
                    if not block:
                        break
                    block = bytes(stream.read(_BLOCK))
                return "utf-8"
        with self._packed() as stream:
            head = bytes(stream.read(_HEAD))
        good, bad, first = runs(head)
        if good > bad:
            return "utf-8"
        page = (
            None
            if good * 10 > bad
            else guess(head.replace(b",", b"\n") if self.kind == "csv" else head)
        )
        if page is None:
            line = head.count(b"\n", 0, first) + 1
            raise UnicodeError(
                f"line {line} is not UTF-8, and its encoding cannot be told; save the list as UTF-8"
            )
        return page

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

    @property
    def beside(self) -> SourceFile:
        """The folder that a list lies in, as one of images."""
        return SourceFile(
            self.fs,
            posixpath.dirname(self.path),
            posixpath.dirname(self.file) or ".",
            posixpath.dirname(self.name),
            self.prefix,
            FOLDER,
            self.notices,
        )

    def walk(self, left_out: list[str] | None = None) -> Iterator[tuple[str, list[str]]]:
        """Each folder under the folder, as its relative path, with its files; sorted.

        Hidden files and folders, and those of a system, are left out.

        Args:
            left_out: Takes their names.
        """
        hidden = [] if left_out is None else left_out
        if not is_local(self.fs):
            found: dict[str, list[str]] = {}
            for path in self.fs.find(self.path):
                relative = posixpath.relpath(path, self.path)
                if any(map(is_hidden, relative.split("/"))):
                    hidden.append(relative)
                    continue
                parent, name = posixpath.split(relative)
                found.setdefault(parent, []).append(name)
            for parent in sorted(found):
                yield parent, sorted(found[parent])
            return

        def refuse(error: OSError) -> None:
            raise ValueError(f"download.source cannot be read: {error}") from error

        for folder, folders, names in os.walk(self.path, onerror=refuse):
            relative = os.path.relpath(folder, self.path).replace(os.sep, "/")
            relative = "" if relative == "." else relative
            hidden += [posixpath.join(relative, n) for n in (*folders, *names) if is_hidden(n)]
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            for link in filter(os.path.islink, (os.path.join(folder, name) for name in folders)):
                if left_out is not None:
                    self.notices.add("links to folders, which are not followed", link)
            yield relative, sorted(name for name in names if not is_hidden(name))

    def files(self, left_out: list[str] | None = None) -> Iterator[str]:
        """The relative path of each file of the folder."""
        for folder, names in self.walk(left_out):
            yield from (posixpath.join(folder, name) for name in names)

    def is_image(self, name: str) -> bool:
        """Whether a file of the folder is an image, by its name or else by how it begins."""
        if is_image(name):
            return True
        if posixpath.splitext(name)[1].lower() in _TEXTUAL or _kind(name):
            return False
        path = posixpath.join(self.path, name)
        if is_local(self.fs) and not os.path.isfile(path):  # a pipe would be waited for
            return False
        try:
            with self.fs.open(path, "rb") as stream:
                return is_picture(stream.read(32))
        except OSError:
            return False

    def streams(self) -> Iterator[tuple[str, IO[bytes]]]:
        """Each file under its name within the source, to be read and closed."""
        if self.kind != FOLDER:
            yield self.name, self.fs.open(self.path, "rb")
            return
        for name in self.files():
            yield name, self.fs.open(posixpath.join(self.path, name), "rb")


def is_image(name: str) -> bool:
    """Whether a file has a name as images have."""
    return posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES


def is_picture(head: bytes) -> bool:
    """Whether a file that begins so, with at least 32 bytes, is an image, readable or not."""
    if head.startswith(_MAGIC):
        return True
    if head.startswith(b"BM"):
        return head[6:10] == bytes(4) and head[15:18] == bytes(3)
    if head.startswith(b"\0\0\1\0"):  # an icon: how many pictures, then their sizes
        return head[4:6] not in (b"\0\0", b"") and head[9:10] == b"\0"
    if head.startswith(b"RIFF"):
        return head[8:12] == b"WEBP"
    return head[4:8] == b"ftyp" and head[8:12] in _BRANDS


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or one that a system keeps for itself."""
    is_step = name in (".", "..")
    return (name.startswith(".") and not is_step) or name.lower() in _SYSTEM


def places(source: Source, notices: Notices | None = None) -> Iterator[SourceFile]:
    """The places that a source names, in a fixed order.

    Args:
        source: The source.
        notices: Where their readers tell what is worth a warning.

    Raises:
        ValueError: There is nothing, nothing of a known format, or a mixture.
    """
    for number, path in enumerate(source.paths):
        prefix = source.name if len(source.paths) == 1 else f"{source.name}/{number}"
        yield from _places(path, prefix, Notices() if notices is None else notices)


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


def folder(path: str, prefix: str, notices: Notices | None = None) -> SourceFile:
    """The folder of images at a path.

    Raises:
        ValueError: There is none.
    """
    fs, found = _opened(path)
    if not fs.isdir(found):
        raise ValueError(f"download.source has no such folder: {path}{_instead(path)}")
    return SourceFile(
        fs, found, path, "", prefix, FOLDER, Notices() if notices is None else notices
    )


def _places(given: str, prefix: str, notices: Notices) -> list[SourceFile]:
    fs, path = _opened(given)
    try:
        if _kind(path) and fs.isfile(path):  # first: over HTTP, isdir would read it all
            base, names = posixpath.dirname(path), [posixpath.basename(path)]
        elif fs.isdir(path):
            whole = folder(given, prefix, notices)
            hidden: list[str] = []
            found = _lists(whole, hidden)
            if found is None:
                return [whole]
            for name in hidden:
                notices.add(HIDDEN, posixpath.join(given, name))
            base, names = path, found
        elif _fixed(path) != path:
            base = _fixed(path)
            names = [posixpath.relpath(p, base) for p in fs.glob(path) if fs.isfile(p)]
            for name in filter(_is_aside, names):
                notices.add(HIDDEN, posixpath.join(base, name))
            names = [name for name in names if not _is_aside(name)]
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
                "download.source must be csv, tsv, txt, parquet, jsonl or json (also .gz, .zst, "
                f".bz2), tar, or a folder, got {posixpath.join(base, name)}"
            )
    return [
        SourceFile(
            fs,
            posixpath.join(base, name),
            _as_given(given, path, base, name),
            name,
            prefix,
            kind,
            notices,
        )
        for name in sorted(names)
        for kind in [_kind(name)]
    ]


def _lists(whole: SourceFile, hidden: list[str]) -> list[str] | None:
    """The lists or the tars of a folder; nothing where it is one of images.

    Args:
        whole: The folder.
        hidden: Takes the names of what is left out.
    """
    names, others = [], []
    for name in whole.files(hidden):
        if is_image(name):
            return None
        if _kind(name) == "":
            others.append(name)
        elif _is_aside(name):
            hidden.append(name)
        else:
            names.append(name)
    for wanted in (("tar",), ("csv", "tsv", "jsonl", "parquet")):
        if found := [name for name in names if _kind(name) in wanted]:
            return found
    if any(whole.is_image(name) for name in others[:1000]):
        return None
    return [name for name in names if _kind(name) == "txt"]


def _is_aside(name: str) -> bool:
    """Whether a file is none of the lists beside it, as Spark's and macOS's own files."""
    return posixpath.basename(name).startswith(("_", "."))


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


def is_list(path: str) -> bool:
    """Whether a file has a name as lists have."""
    return _kind(path) not in ("", "tar")


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
