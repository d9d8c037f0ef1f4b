"""A folder that is written anew beside the one that stands, and takes its place when it is whole.

    RUN/curated/            what stands, on a disk
    RUN/curated.partial/    its successor, which one rename puts in its place
    RUN/curated.former.partial/   what stood, on file systems that cannot exchange two names

On object storage, where nothing can be renamed, each version has a folder of its own, and one put
of the manifest names the one that counts:

    RUN/curated/manifest.json   folder: "2"
    RUN/curated/2/              what stands
    RUN/curated/3/              its successor

A process that is killed at any moment leaves the old folder or the new one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fnmatch
import functools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipeline.storage.records import ExportRecord
from pipeline.storage.run import FORMER, Run, sync

__all__ = ["Successor", "put_in_place", "replacing", "standing"]

AT_FDCWD = -100
RENAME_EXCHANGE = 2
NOT_SUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def standing(run: Run, *folder: str) -> tuple[str, ...]:
    """The folder that holds the files of an export which stands, as parts of a path.

    Raises:
        DamagedError: manifest.json is damaged.
    """
    if run.is_local:
        return folder
    record = run.find_record(ExportRecord, *folder, "manifest.json")
    return (*folder, record.folder) if record and record.folder else folder


class Successor:
    """The next version of an export, while it is written.

    Args:
        run: The run.
        folder: The folder of the export.

    Attributes:
        parts: The folder in which it is written.
    """

    def __init__(self, run: Run, folder: Sequence[str]) -> None:
        self.run = run
        self.folder = tuple(folder)
        self.parts = (*self.folder[:-1], f"{self.folder[-1]}.partial")
        if not run.is_local:
            record = run.find_record(ExportRecord, *self.folder, "manifest.json", damaged_ok=True)
            former = record and record.folder
            self.parts = (*self.folder, str(int(former) + 1 if former else 1))

    def begin(self) -> None:
        """Make the folder; where the one that stands is a link to another disk, on that disk."""
        if not self.run.is_local:
            return
        own = self.run.at(*self.parts)
        if os.path.islink(other := self.run.at(*self.folder)) and not os.path.lexists(own):
            there = f"{os.path.realpath(other)}.partial"
            os.makedirs(there, exist_ok=True)
            os.symlink(there, own)
        os.makedirs(own, exist_ok=True)

    def take_place(self, record: ExportRecord) -> None:
        """Put the finished folder in the place of the one that stands, and remove that one.

        Args:
            record: Its manifest.json.
        """
        if self.run.is_local:
            put_in_place(self.run.at(*self.parts), self.run.at(*self.folder))
        else:
            named = record.model_copy(update={"folder": self.parts[-1]})
            self.run.write_record(named, *self.folder, "manifest.json")
        self.discard()

    def discard(self) -> None:
        """Remove all that is not the folder which stands: a former one, or an unfinished one."""
        if self.run.is_local:
            _remove(self.run.at(*self.parts))
            return
        keep = {standing(self.run, *self.folder)[-1], "manifest.json"}
        for name in self.run.names(*self.folder):
            if name not in keep:
                self.run.remove(*self.folder, name)


@contextlib.contextmanager
def replacing(run: Run, folder: str, *, keep: str) -> Iterator[str]:
    """Give a folder in which the files of another are written anew; it takes its place at the end.

    On object storage it is that folder itself, and files replace each other one by one.

    Args:
        run: The run.
        folder: The folder, by its name in the run.
        keep: A pattern of the names of files that stay.
    """
    if not run.is_local:
        yield folder
        return
    new, old = run.at(f"{folder}.partial"), run.at(folder)
    _remove(new)
    os.makedirs(new)
    yield f"{folder}.partial"
    for name in fnmatch.filter(run.names(folder), keep):
        shutil.copy2(os.path.join(old, name), os.path.join(new, name))
    put_in_place(new, old)
    _remove(new)


def put_in_place(new: str, old: str) -> None:
    """Rename a folder to a name that another folder may have, which then has the first one's name.

    It is one step where the file system can exchange two names (ext4, XFS, Btrfs, tmpfs). Elsewhere
    it takes two, and `Run.lock` mends what a kill between them leaves. Links are followed.
    """
    new, old = os.path.realpath(new), os.path.realpath(old)
    parent = os.path.dirname(old)
    if not os.path.exists(old):
        os.rename(new, old)
    elif not _exchange(new, old):
        former = f"{old}{FORMER}"
        _remove(former)
        os.rename(old, former)
        os.rename(new, old)
        os.rename(former, new)
    sync(parent)


def _exchange(first: str, second: str) -> bool:
    """Exchange the names of two folders in one step; False where that is not possible."""
    rename = _renameat2()
    if rename is None:
        return False
    names = os.fsencode(first), os.fsencode(second)
    if rename(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0:
        return True
    if (number := ctypes.get_errno()) in NOT_SUPPORTED:
        return False
    raise OSError(number, os.strerror(number), second)


@functools.cache
def _renameat2() -> Callable[..., Any] | None:
    """The system call of Linux, by way of the C library; None on other systems."""
    with contextlib.suppress(OSError, AttributeError):
        function = ctypes.CDLL(None, use_errno=True).renameat2
        function.argtypes = [
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_uint,
        ]
        return function
    return None


def _remove(folder: str) -> None:
    """Remove a local folder, also where it is a link to one."""
    if os.path.islink(folder):
        shutil.rmtree(os.path.realpath(folder), ignore_errors=True)
        os.unlink(folder)
    elif os.path.exists(folder):
        shutil.rmtree(folder)
