"""A run on disk or object storage: where its files are, and how a file is written and read.

    RUN/run.json                                   the manifest as resolved, versions, seed
    RUN/list/00042.parquet                         the input list, cut into shards
    RUN/pool/00042.parquet                         the rows as download left them
    RUN/annotations/clean-1f2e3d4c/00042.parquet   what a stage measured; _stage.json beside it
    RUN/reviews.jsonl                              decisions of people; the stage review reads them
    RUN/curated/                                   the export, with manifest.json and README.md; on
                                                   object storage manifest.json names a folder in it
    RUN/exports/NAME/                              further exports, like curated/
    RUN/models/NAME/                               save_pretrained folders
    RUN/report/index.html
    RUN/counts.parquet                             how many rows had which verdict, by shard
    RUN/ablation.json                              the tables of the ablation it is part of
    RUN/rounds/2/                                  the files of a later round, named as here

A file under its own name is whole: it is written beside itself as `*.partial`, flushed and renamed,
or put in one request on object storage. JSON and Parquet files carry a checksum
(`pipeline.storage.checksum`): a file that was cut off or changed is refused when it is read.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import hashlib
import io
import logging
import os
import posixpath
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from models.errors import ChecksumError, DamagedError, InputError
from pipeline.storage import checksum, records
from pipeline.storage.checksum import Buffer
from pipeline.storage.lock import is_alive, lock_local, lock_remote
from pipeline.storage.records import (
    ExportRecord,
    ListRecord,
    RunRecord,
    ShardedRecord,
    StageRecord,
    SummaryRecord,
)
from stages.schema import POOL
from stages.sources.source_files import is_local

__all__ = ["COUNTS", "FORMER", "Run", "sync"]

logger = logging.getLogger(__name__)

_OWNER = re.compile(r"\.(\d+)(-[0-9a-f]+)?\.partial$")

ABLATION = "ablation.json"
"""The file with the tables of the ablation that a run is part of."""

MARKS: dict[str, type[ShardedRecord] | type[ExportRecord]] = {
    "_stage.json": StageRecord,
    "_summary.json": SummaryRecord,
    "_list.json": ListRecord,
    "manifest.json": ExportRecord,
}
"""The files that say that a folder is whole: of a stage, a summary, the list, an export."""

COUNTS = "counts.parquet"
"""The file with how many rows of each shard had which verdict, when they were counted last."""

OWN = frozenset(
    ("curated", "exports", "models", "report", "run.json", "evaluation.json", "truth.json", COUNTS)
)
"""Files and folders that each branch of a run has of its own; the branches share all others."""


T = TypeVar("T")
R = TypeVar("R", bound=BaseModel)

SIDE_BY_SIDE = 16
"""Requests to object storage at a time."""

ONE_PUT_BYTES = 5 << 29
"""s3fs sends files below twice this size in one request: 5 GiB, the most that S3 accepts."""

WHOLE_BYTES = 4 << 20
"""Files on object storage below this size are fetched whole; a request costs more than bytes."""

PARTIAL = re.compile(r"\.partial(/|$)")
"""Matches files and folders that are still being written."""

FORMER = ".former.partial"
"""The ending of a folder whose place another takes, where that needs two steps."""

DERIVED = ("annotations", "curated", "exports")
"""Folders whose files a run makes again just as they were, once they are removed."""

REMEDIES = {
    "run.json": "`capfilt run MANIFEST` writes it anew",
    COUNTS: "Remove it: the next `capfilt status` counts anew",
    "list": "Remove the folder {folder} and run again: the list is cut anew from its source and "
    "held against the pool",
    "pool": "Remove it and run again: its rows are downloaded anew, and measured anew",
    "pool/_retries.json": "Remove it with {root}/annotations/*/summary-*, {root}/curated and "
    "{root}/exports, and run again: they are made anew",
    "annotations": "Remove it and run again: it is measured anew",
    "curated": "Remove the folder {folder} and run again: it is exported anew",
    "exports": "Remove the folder {folder}/{name} and run again: it is exported anew",
    "models": "Copy it back, or remove {folder}/{name}.json and run again: the model is trained "
    "anew",
}
"""What to do about a damaged file, by its path or the first part of its path."""


class Run:
    """The folder of one run. Methods take the parts of a path relative to it.

    Args:
        root: A local path or any fsspec URL.
        branch: The folder under it that holds the files of `OWN`, such as that of a later round;
            empty for the run itself.

    Raises:
        InputError: No package for the storage of the URL is installed.
    """

    def __init__(self, root: str, branch: str = "") -> None:
        self.root = root.rstrip("/")
        self.branch = branch
        try:
            # A kept listing would hide files that another machine has put since.
            self.fs, path = fsspec.core.url_to_fs(self.root, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise InputError(
                f"{self.root}: cannot be opened: {error}. For S3 `pip install 'capfilt[s3]'`, for "
                "Azure `pip install 'capfilt[azure]'`"
            ) from None
        self.path = str(path).rstrip("/")
        self.is_local = is_local(self.fs)

    @property
    def _is_s3(self) -> bool:
        return "s3" in self.fs.protocol

    def __repr__(self) -> str:
        return f"Run({self.root!r}, {self.branch!r})"

    @classmethod
    def find(cls, path: str) -> Run:
        """Open the run in a folder; for the folder of a branch, the run above it with that branch.

        Raises:
            DamagedError: The folder is a branch, and not in its run.
            InputError: The path is a file.
        """
        run = cls(path)
        if not run.exists("run.json"):
            run.check_folder()
            return run
        record = run.find_record(RunRecord, "run.json", damaged_ok=True)
        if record is None or not (branch := record.branch):
            return run
        for root in (run.root, run.path if run.is_local else run.root):
            if root.endswith(f"/{branch}"):
                return cls(root.removesuffix(f"/{branch}"), branch)
        raise run.damaged(f"it belongs to {branch} of a run, and is not there", "run.json")

    def check_folder(self) -> None:
        """Refuse a root that is a file.

        Raises:
            InputError: It is a file.
        """
        if self.fs.isfile(self.path):
            raise InputError(f"{self.root}: a file, where the folder of a run is asked for")

    def at(self, *parts: str) -> str:
        """The path of a file of this run on its file system."""
        if self.branch and parts and parts[0].removesuffix(".partial") in OWN:
            parts = (self.branch, *parts)
        return posixpath.join(self.path, *parts)

    def url(self, *parts: str) -> str:
        """The path or URL of a file of this run, for other programs and for messages."""
        path = self.at(*parts)
        return path if self.is_local else str(self.fs.unstrip_protocol(path))

    def exists(self, *parts: str) -> bool:
        """Whether a file or folder is there."""
        return bool(self.fs.exists(self.at(*parts)))

    def names(self, *parts: str) -> list[str]:
        """The names of the committed files of a folder, sorted; empty if it is not there."""
        folder = self.at(*parts)
        try:
            entries = self.fs.ls(folder, detail=False)
        except FileNotFoundError:
            return []
        names = (posixpath.basename(str(entry).rstrip("/")) for entry in entries)
        return sorted(name for name in names if not name.endswith(".partial"))

    def shards(self, *parts: str) -> list[str]:
        """The names, without extension, of the Parquet files of a folder, sorted.

        The listing of an object store may lag behind, so the shards that the record of a finished
        folder names are also looked for one by one.
        """
        names = self.names(*parts)
        shards = {name.removesuffix(".parquet") for name in names if name.endswith(".parquet")}
        if not self.is_local:
            unlisted = self._recorded_shards(names, *parts) - shards
            shards |= {name for name in unlisted if self.exists(*parts, f"{name}.parquet")}
        return sorted(shards)

    def _recorded_shards(self, names: Sequence[str], *parts: str) -> set[str]:
        """The shards of a finished folder by its record, which may not be listed yet itself."""
        for name in [name for name in MARKS if name in names] or MARKS:
            record = self.find_record(MARKS[name], *parts, name, damaged_ok=True)
            if record is not None and record.shard_names:
                return set(record.shard_names)
        return set()

    @contextlib.contextmanager
    def _reading(self, *parts: str) -> Iterator[str]:
        """Give the path of a file to read, and name the file in errors of the disk."""
        path = self.at(*parts)
        try:
            self.admit(path)
            yield path
        except OSError as error:
            if error.errno is not None and error.filename is None:
                error.filename = self.url(*parts)
            raise

    def admit(self, path: str) -> None:
        """Refuse a path that is not a regular file: reading a pipe or a device may never end.

        Raises:
            OSError: It is not one.
        """
        if self.is_local and not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)

    def read(self, *parts: str) -> bytes:
        """Read the bytes of a file."""
        options = {"max_concurrency": 1} if self._is_s3 else {}  # saves the request for its size
        with self._reading(*parts) as path:
            return bytes(self.fs.cat_file(path, **options))

    def open(self, *parts: str) -> Any:
        """Open a file for random access; small files are fetched whole, large ones piecewise."""
        path = self.at(*parts)
        if self.is_local:
            self.admit(path)
            return self.fs.open(path, "rb")
        if not self._is_s3:  # only S3 is known to give the end of an object in one request
            if self.fs.size(path) < WHOLE_BYTES:
                return io.BytesIO(self.fs.cat_file(path))
            return self.fs.open(path, "rb", cache_type="none")
        try:
            end = self.fs.cat_file(path, start=-WHOLE_BYTES)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            end = b""  # object stores give no range of an empty file
        if len(end) < WHOLE_BYTES:
            return io.BytesIO(end)
        return self.fs.open(path, "rb", cache_type="none")

    def each(self, function: Callable[[str], T], names: Sequence[str]) -> Iterator[T]:
        """Call a function that reads files for each name, and yield the results in order.

        On object storage it is called in threads, also for names whose result is not taken yet.
        """
        if self.is_local:
            yield from map(function, names)
            return
        with concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            for start in range(0, len(names), 4 * SIDE_BY_SIDE):
                yield from pool.map(function, names[start : start + 4 * SIDE_BY_SIDE])

    def write(self, content: bytes | Sequence[Buffer], *parts: str) -> None:
        """Commit a file, given whole or in pieces: under its name is all of it, or nothing."""
        path, pieces = self.at(*parts), [content] if isinstance(content, bytes) else content
        if not self.is_local:
            options = {"chunksize": ONE_PUT_BYTES} if self._is_s3 else {}
            self.fs.pipe_file(path, b"".join(pieces), **options)
            return
        folder = os.path.dirname(path)
        os.makedirs(folder, exist_ok=True)
        partial = f"{path}.{os.getpid()}-{uuid.uuid4().hex[:8]}.partial"
        try:
            with open(partial, "wb") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError as error:
            with contextlib.suppress(OSError):  # frees its space on a full disk
                os.unlink(partial)
            error.filename = path  # the system names the partial file, or none
            raise
        sync(folder)

    def remove(self, *parts: str) -> None:
        """Remove a file, or a folder with its content, if it is there."""
        path = self.at(*parts)
        if not self.is_local:
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(path)  # a listing may not show it yet
        if self.exists(*parts):
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm(path, recursive=True)

    def damaged(self, why: object, *parts: str) -> DamagedError:
        """Make the error for a damaged file; its message says what to do.

        Args:
            why: What is wrong with it.
            parts: Its path.
        """
        top = parts[0].removesuffix(".partial")
        remedy = REMEDIES.get("/".join(parts)) or REMEDIES.get(top, "Remove it and run again")
        remedy = remedy.format(
            root=self.url(),
            folder=self.url(parts[0]),
            name="".join(parts[1:2]).removesuffix(".json"),
        )
        message = f"{self.url(*parts)}: damaged: {why}. {remedy}"
        return DamagedError(message, parts, top in DERIVED)

    def read_json(self, *parts: str) -> dict[str, Any]:
        """Read a JSON file of `write_json`.

        Raises:
            DamagedError: It is not as it was written.
            FileNotFoundError: It is not there.
        """
        try:
            return checksum.open_json(self.read(*parts))
        except (ValueError, RecursionError) as error:
            raise self.damaged(error, *parts) from error

    def write_json(self, value: Mapping[str, Any], *parts: str) -> None:
        """Commit a value as readable JSON with a checksum, in the field `seal`."""
        self.write(checksum.with_checksum_json(value), *parts)

    def read_record(self, kind: type[R], *parts: str) -> R:
        """Read a JSON file of `write_record`.

        Args:
            kind: The record that the file holds.
            parts: The path of the file.

        Raises:
            DamagedError: It is not as it was written, or does not hold such a record.
            FileNotFoundError: It is not there.
        """
        content = self.read_json(*parts)
        try:
            return records.parse(kind, content)
        except (ValueError, RecursionError) as error:
            raise self.damaged(error, *parts) from error

    def find_record(self, kind: type[R], *parts: str, damaged_ok: bool = False) -> R | None:
        """Read a JSON file of `write_record`, or return None if it is not there.

        Args:
            kind: The record that the file holds.
            parts: The path of the file.
            damaged_ok: Return None for a damaged file too, with a warning in the log; for records
                that cost little to do without.

        Raises:
            DamagedError: It is damaged, and that is not ok.
        """
        try:
            return self.read_record(kind, *parts)
        except FileNotFoundError:
            return None
        except DamagedError:
            if not damaged_ok:
                raise
            logger.warning("%s is damaged and taken for absent", self.url(*parts))
            return None

    def write_record(self, record: BaseModel, *parts: str) -> None:
        """Commit a record as readable JSON with a checksum."""
        self.write_json(records.content_of(record), *parts)

    def check_json(self, *parts: str) -> None:
        """Check the checksum of a JSON file and, if a record belongs at its path, its fields.

        Raises:
            DamagedError: It is not as it was written, or does not hold that record.
        """
        if (kind := records.kind_of("/".join(parts))) is None:
            self.read_json(*parts)
        else:
            self.read_record(kind, *parts)

    def read_table(
        self, *parts: str, columns: Sequence[str] | None = None, without: Sequence[str] = ()
    ) -> pa.Table:
        """Read a Parquet file of `write_table`, or some of its columns in the given order.

        Args:
            parts: The path of the file.
            columns: The columns to read; all by default.
            without: Columns to leave out of all.

        Raises:
            DamagedError: It is not as it was written, or lacks a column.
        """
        with self.open_table(*parts) as parquet:
            names = parquet.schema_arrow.names if columns is None else list(columns)
            self._check_schema(parquet.schema_arrow, names, parts)
            names = [name for name in names if name not in without]
            table = parquet.read(columns=names)
            return table if columns is None else table.select(names)

    @contextlib.contextmanager
    def open_table(self, *parts: str) -> Iterator[pq.ParquetFile]:
        """Open a Parquet file of `write_table`; its parts are checked when they are read.

        Raises:
            DamagedError: It is not as it was written.
        """
        try:
            with (
                self._reading(*parts),
                self.open(*parts) as file,
                checksum.open_parquet(file) as parquet,
            ):
                yield parquet
        except ChecksumError as error:
            raise self.damaged(error, *parts) from error

    def _check_schema(
        self, schema: pa.Schema, names: Sequence[str], parts: tuple[str, ...]
    ) -> None:
        """Refuse a table that has a column not once, or a column of the pool in another type.

        Raises:
            DamagedError: It does.
        """
        if missing := [name for name in names if schema.get_field_index(name) < 0]:
            raise self.damaged(f"it has no one column {', '.join(missing)}", *parts)
        for name in names if parts[0] == "pool" else ():
            if name in POOL.names and schema.field(name).type != POOL.field(name).type:
                raise self.damaged(
                    f"its column {name} is {schema.field(name).type}, not {POOL.field(name).type}",
                    *parts,
                )

    def write_table(self, table: pa.Table, *parts: str, rows_a_group: int | None = None) -> None:
        """Commit a table as Parquet with a checksum; equal tables give equal bytes.

        Columns of bytes are not compressed, since images do not compress.

        Args:
            table: The table.
            parts: The path in the run.
            rows_a_group: Rows of a row group; pyarrow's choice by default.
        """
        leaves = [leaf for field in table.schema for leaf in _leaves(field.name, field.type)]
        others = [path for path, kind in leaves if not pa.types.is_binary(kind)]
        options: dict[str, Any] = {
            "compression": {path: "zstd" if path in others else "none" for path, _ in leaves},
            "compression_level": dict.fromkeys(others, 3),
            "use_dictionary": others,
        }
        stream = pa.BufferOutputStream()
        pq.write_table(table, stream, row_group_size=rows_a_group, **options)
        self.write(checksum.with_checksum_parquet(stream.getvalue()), *parts)

    def check(self, *parts: str) -> pa.Schema:
        """Check every byte of a Parquet file of `write_table`, and return its schema.

        Raises:
            DamagedError: It is not as it was written.
        """
        try:
            with self._reading(*parts) as path, self.fs.open(path, "rb") as file:
                return checksum.check_parquet(file)
        except ValueError as error:
            raise self.damaged(error, *parts) from error

    def sha256(self, *parts: str) -> str:
        """The SHA-256 of a file's bytes, in hex."""
        value = hashlib.sha256()
        with self._reading(*parts) as path, self.fs.open(path, "rb") as file:
            while block := file.read(1 << 20):
                value.update(block)
        return value.hexdigest()

    def digest(self, *parts: str) -> str:
        """The SHA-256 of a file; of a folder, that of the output of sha256sum on its files.

        For a folder it is the result of `cd FOLDER; LC_ALL=C sha256sum * | sha256sum`.
        """
        if not self.fs.isdir(self.at(*parts)):
            return self.sha256(*parts)
        return digest_of_listing({name: self.sha256(*parts, name) for name in self.names(*parts)})

    def check_page(self, *parts: str) -> None:
        """Check a page of `checksum.with_checksum_page`.

        Raises:
            DamagedError: It is not as it was written.
        """
        try:
            checksum.check_page(self.read(*parts))
        except ValueError as error:
            raise self.damaged(error, *parts) from error

    def files(self, *parts: str) -> list[str]:
        """The paths of all committed files under a folder, relative to it, sorted."""
        folder = self.at(*parts).rstrip("/")
        paths = (str(path).removeprefix(f"{folder}/") for path in self.fs.find(folder))
        return sorted(path for path in paths if not PARTIAL.search(path))

    def digests(self, *parts: str) -> dict[str, str]:
        """The SHA-256 of each committed file under a folder, by its path relative to it."""
        return {path: self.sha256(*parts, *path.split("/")) for path in self.files(*parts)}

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run for this process, and remove files left by dead processes.

        They are removed before, and after if all went well: a worker may have died meanwhile.

        Raises:
            RunBusyError: A live process holds the lock.
            InputError: The root is a file.
        """
        if not self.is_local:
            with lock_remote(self.fs, self.at("run.lock"), self.root):
                yield
            return
        self.check_folder()
        with lock_local(self.at("run.lock"), self.root):
            self.sweep()
            yield
            self.sweep()

    def sweep(self) -> None:
        """Remove what dead processes of this machine left half-written or half-renamed.

        Files of exports are left out; what an export leaves is removed when it is finished.
        """
        for folder, folders, files in os.walk(self.path):
            for name in [name for name in folders if name.endswith(FORMER)]:
                _restore(os.path.join(folder, name))
            if os.path.basename(folder) == "exports":
                folders.clear()
            folders[:] = [name for name in folders if name.split(".")[0] != "curated"]
            for name in files:
                owner = _OWNER.search(name)
                if owner is not None and not is_alive(int(owner[1])):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(os.path.join(folder, name))


def _restore(former: str) -> None:
    """Give a folder its name back, where its successor has not taken it; else remove it."""
    place = former.removesuffix(FORMER)
    if os.path.exists(place):
        shutil.rmtree(former)
    else:
        os.rename(former, place)


def listing_of(hashes: Mapping[str, str]) -> bytes:
    """The output of sha256sum on files, given the hash of each file by its path."""
    names = {path.rsplit("/", 1)[-1]: path for path in hashes}
    return "".join(f"{hashes[names[name]]}  {name}\n" for name in sorted(names)).encode()


def sums_of(path: str) -> tuple[str, str]:
    """Where an export keeps the `listing_of` a shard that is a folder, by the path of the shard."""
    return "_sha256", f"{path.replace('/', '-')}.txt"


def digest_of_listing(hashes: Mapping[str, str]) -> str:
    """The SHA-256 of `listing_of`."""
    return hashlib.sha256(listing_of(hashes)).hexdigest()


def _leaves(path: str, kind: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    """The columns that Parquet makes of a field, by their paths, with their types."""
    if pa.types.is_struct(kind):
        for field in kind:
            yield from _leaves(f"{path}.{field.name}", field.type)
    elif pa.types.is_list(kind):
        yield from _leaves(f"{path}.list.element", kind.value_type)
    else:
        yield path, kind


def sync(folder: str) -> None:
    """Flush the names in a folder to the disk, so that a commit survives a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
