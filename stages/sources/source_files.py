"""Finds and opens the files of a source, on the local disk or any fsspec filesystem."""

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
from stages.sources.encoding import Recoded, count_runs, guess_code_page, unicode_encoding
from stages.sources.notices import Notices

__all__ = [
    "FOLDER",
    "SourceFile",
    "folder",
    "is_hidden",
    "is_image",
    "is_image_content",
    "is_list",
    "is_local",
    "root",
    "source_files",
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
HIDDEN = "hidden files and files of the operating system, which are left out"
_BRANDS = frozenset({b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1"})
_HEAD = 2**24  # bytes of a list used to detect its encoding
_BLOCK = 2**20  # bytes read at once to do so


@dataclass(frozen=True)
class SourceFile:
    """One file of a source, or one folder of images.

    Attributes:
        fs: Its fsspec filesystem.
        path: Its path on that filesystem.
        file: Its path for a `Location`: written as the source's path is.
        name: Its path relative to the source's path; empty if it is the source's path.
        prefix: Prefix of the names of its images.
        kind: csv, tsv, txt, parquet, jsonl, json, tar or folder.
        notices: Collects warnings.
        known: Cache for facts about the file, such as its encoding.
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
        """Open the file as a stream of decompressed bytes; text lists are converted to UTF-8.

        In a list that is mostly UTF-8, lines in another encoding are left unchanged.

        Raises:
            UnicodeError: The encoding of a text list cannot be detected; the message has the line.
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
        """Return the encoding of a text list, detected from its first 16 MiB."""
        if "encoding" not in self.known:
            self.known["encoding"] = encoding = self._detect_encoding()
            if encoding != "utf-8":
                self.notices.add(f"lists read as {encoding.upper()}", self.path)
        return str(self.known["encoding"])

    def _detect_encoding(self) -> str:
        with self._packed() as stream:
            block = bytes(stream.read(_BLOCK))
            encoding = unicode_encoding(block[:1024])
            if encoding not in (None, "utf-8-sig"):
                return str(encoding)
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
        good, bad, first = count_runs(head)
        if good > bad:
            return "utf-8"
        page = (
            None
            if good * 10 > bad
            else guess_code_page(head.replace(b",", b"\n") if self.kind == "csv" else head)
        )
        if page is None:
            line = head.count(b"\n", 0, first) + 1
            raise UnicodeError(
                f"line {line} is not UTF-8, and its encoding is unknown; save the list as UTF-8"
            )
        return page

    @contextlib.contextmanager
    def read_as(self, kind: str, *errors: type[Exception]) -> Iterator[None]:
        """Add the file's path and format to errors that occur while it is read.

        Raises:
            ValueError: Reading failed with an error of files or encodings, or one of `errors`.
        """
        expected: tuple[type[Exception], ...] = (OSError, EOFError, UnicodeError, *errors)
        try:
            yield
        except expected as error:
            raise ValueError(
                f"download.source cannot be read as {kind}: {self.path}: {error}"
            ) from error

    def url(self, image: str | int) -> str:
        """Return the name that replaces the URL of an image without one."""
        return "/".join(part for part in (self.prefix, self.name, str(image)) if part)

    def under(self, name: str) -> str:
        """Return the path of a file of the folder for a `Location`."""
        return posixpath.join(self.file, name)

    @property
    def beside(self) -> SourceFile:
        """The folder that holds the list, as a folder of images."""
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
        """Yield each subfolder, as a relative path, with the names of its files, sorted.

        Hidden files and folders, and those of the operating system, are left out.

        Args:
            left_out: Receives the paths that are left out.
        """
        hidden = [] if left_out is None else left_out
        if not is_local(self.fs):
            names_by_folder: dict[str, list[str]] = {}
            for path in self.fs.find(self.path):
                relative = posixpath.relpath(path, self.path)
                if any(map(is_hidden, relative.split("/"))):
                    hidden.append(relative)
                    continue
                parent, name = posixpath.split(relative)
                names_by_folder.setdefault(parent, []).append(name)
            for parent in sorted(names_by_folder):
                yield parent, sorted(names_by_folder[parent])
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
        """Yield the relative path of each file below the folder."""
        for folder, names in self.walk(left_out):
            yield from (posixpath.join(folder, name) for name in names)

    def is_image(self, name: str) -> bool:
        """Whether a file of the folder is an image, by its name or else by its first bytes."""
        if is_image(name):
            return True
        if posixpath.splitext(name)[1].lower() in _TEXTUAL or _kind(name):
            return False
        path = posixpath.join(self.path, name)
        if is_local(self.fs) and not os.path.isfile(path):  # opening a pipe would block
            return False
        try:
            with self.fs.open(path, "rb") as stream:
                return is_image_content(stream.read(32))
        except OSError:
            return False

    def streams(self) -> Iterator[tuple[str, IO[bytes]]]:
        """Yield each file as its name within the source and an open stream, which to close."""
        if self.kind != FOLDER:
            yield self.name, self.fs.open(self.path, "rb")
            return
        for name in self.files():
            yield name, self.fs.open(posixpath.join(self.path, name), "rb")


def is_image(name: str) -> bool:
    """Whether a file name has the extension of an image."""
    return posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES


def is_image_content(head: bytes) -> bool:
    """Whether a file is an image, decodable or not, by its first 32 bytes."""
    if head.startswith(_MAGIC):
        return True
    if head.startswith(b"BM"):
        return head[6:10] == bytes(4) and head[15:18] == bytes(3)
    if head.startswith(b"\0\0\1\0"):  # an icon: the number of images, then their sizes
        return head[4:6] not in (b"\0\0", b"") and head[9:10] == b"\0"
    if head.startswith(b"RIFF"):
        return head[8:12] == b"WEBP"
    return head[4:8] == b"ftyp" and head[8:12] in _BRANDS


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or belongs to the operating system."""
    is_step = name in (".", "..")
    return (name.startswith(".") and not is_step) or name.lower() in _SYSTEM


def source_files(source: Source, notices: Notices | None = None) -> Iterator[SourceFile]:
    """Yield the files of a source, in a fixed order.

    Args:
        source: The source.
        notices: Collects warnings of their readers.

    Raises:
        ValueError: A path does not exist, or has no file of a known format.
    """
    for number, path in enumerate(source.paths):
        prefix = source.name if len(source.paths) == 1 else f"{source.name}/{number}"
        yield from _files_at(path, prefix, Notices() if notices is None else notices)


def root(path: str) -> tuple[str, Any, str]:
    """Return the file or folder that holds all images of a source's path.

    Returns:
        The prefix of the `file` of its `Location`s, the filesystem, and the path of the file or
        folder on it. A glob gives the folder above its first wildcard.
    """
    fs, fs_path = _open_path(path)
    if fs.exists(fs_path):
        return path.rstrip("/"), fs, fs_path
    return _above_wildcard(path).rstrip("/"), fs, _above_wildcard(fs_path)


def folder(path: str, prefix: str, notices: Notices | None = None) -> SourceFile:
    """Return the folder of images at a path.

    Raises:
        ValueError: There is no such folder.
    """
    fs, fs_path = _open_path(path)
    if not fs.isdir(fs_path):
        raise ValueError(f"download.source has no such folder: {path}{_did_you_mean(path)}")
    return SourceFile(
        fs, fs_path, path, "", prefix, FOLDER, Notices() if notices is None else notices
    )


def _files_at(given: str, prefix: str, notices: Notices) -> list[SourceFile]:
    fs, path = _open_path(given)
    try:
        if _kind(path) and fs.isfile(path):  # first, since isdir over HTTP reads the whole file
            base, names = posixpath.dirname(path), [posixpath.basename(path)]
        elif fs.isdir(path):
            directory = folder(given, prefix, notices)
            hidden: list[str] = []
            lists = _lists(directory, hidden)
            if lists is None:
                return [directory]
            for name in hidden:
                notices.add(HIDDEN, posixpath.join(given, name))
            base, names = path, lists
        elif _above_wildcard(path) != path:
            base = _above_wildcard(path)
            names = [posixpath.relpath(p, base) for p in fs.glob(path) if fs.isfile(p)]
            for name in filter(_is_not_list, names):
                notices.add(HIDDEN, posixpath.join(base, name))
            names = [name for name in names if not _is_not_list(name)]
        else:
            base, names = posixpath.dirname(path), [posixpath.basename(path)] * fs.exists(path)
    except OSError as error:
        raise ValueError(f"download.source cannot be opened: {given}: {error}") from error
    if not names and fs.exists(path):
        raise ValueError(f"download.source holds neither a list nor images: {given}")
    if not names:
        raise ValueError(
            f"download.source has no such list or images: {given}{_did_you_mean(given)}"
        )
    for name in names:
        if _is_packed(name):
            raise ValueError(
                f"download.source: {posixpath.join(base, name)} cannot be read while it is "
                "compressed; decompress it"
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
            _path_like(given, path, base, name),
            name,
            prefix,
            kind,
            notices,
        )
        for name in sorted(names)
        for kind in [_kind(name)]
    ]


def _lists(directory: SourceFile, hidden: list[str]) -> list[str] | None:
    """Return the names of the tars or lists in a folder; None if it is a folder of images.

    Args:
        directory: The folder.
        hidden: Receives the names that are left out.
    """
    names, others = [], []
    for name in directory.files(hidden):
        if is_image(name):
            return None
        if _kind(name) == "":
            others.append(name)
        elif _is_not_list(name):
            hidden.append(name)
        else:
            names.append(name)
    for wanted in (("tar",), ("csv", "tsv", "jsonl", "parquet")):
        if chosen := [name for name in names if _kind(name) in wanted]:
            return chosen
    if any(directory.is_image(name) for name in others[:1000]):
        return None
    return [name for name in names if _kind(name) == "txt"]


def _is_not_list(name: str) -> bool:
    """Whether a file is not a list although its extension says so, as Spark and macOS write."""
    return posixpath.basename(name).startswith(("_", "."))


def _open_path(path: str) -> tuple[Any, str]:
    """Return the filesystem of a path, and the path on it."""
    try:
        fs, fs_path = fsspec.core.url_to_fs(path)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"download.source cannot be opened: {path}: {error}") from error
    return fs, fs_path.rstrip("/") or "/"


def _path_like(given: str, path: str, base: str, name: str) -> str:
    """Return the path of a file written like the source's path `given`.

    `path` is `given` without its protocol.
    """
    if path == posixpath.join(base, name):
        return given
    if path == base:
        return posixpath.join(given, name)
    return posixpath.join(_above_wildcard(given), name)


def _above_wildcard(path: str) -> str:
    """Return the folder above the first wildcard of a glob; other paths are returned unchanged."""
    parts = path.split("/")
    for number, part in enumerate(parts):
        if any(character in part for character in "*?["):
            return "/".join(parts[:number]) or ("/" if path.startswith("/") else ".")
    return path


def _kind(path: str) -> str:
    """Return the format of a file by its extension, or an empty string."""
    name, ending = posixpath.splitext(path.lower())
    if ending in _COMPRESSIONS:
        ending = posixpath.splitext(name)[1]
    return _KINDS.get(ending.removeprefix("."), "")


def is_list(path: str) -> bool:
    """Whether a file name has the extension of a list."""
    return _kind(path) not in ("", "tar")


def _is_packed(path: str) -> bool:
    """Whether a file is a compressed tar or Parquet file, which cannot be read by position."""
    ending = posixpath.splitext(path.lower())[1]
    return ending == ".tgz" or (ending in _COMPRESSIONS and _kind(path) in ("tar", "parquet"))


def is_local(fs: Any) -> bool:
    """Whether a filesystem is the local one."""
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))


def _did_you_mean(path: str) -> str:
    """Return a "did you mean" hint if there is a file with a similar path."""
    missing = Path(path.removeprefix("file://")).expanduser()
    parent = missing.parent
    beside = [str(entry) for entry in parent.iterdir()] if parent.is_dir() else []
    close = difflib.get_close_matches(str(missing), beside, n=1, cutoff=0.8)
    return f"; did you mean {close[0]}?" if close else ""
