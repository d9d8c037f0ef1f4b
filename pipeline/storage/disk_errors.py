"""Errors of a disk that all further writes will meet too, explained with what to do about them."""

from __future__ import annotations

import errno
import os
import re
import tempfile

__all__ = ["explain_disk_error"]

REMEDIES = {
    errno.ENOSPC: "Make room there",
    errno.EDQUOT: "Make room there",
    errno.EFBIG: "Raise the limit of the size of files",
    errno.EROFS: "Give a folder that can be written to",
    errno.EACCES: "Give this user access, or give another folder",
    errno.EPERM: "Give this user access, or give another folder",
}
"""What to do about each error, by its number."""

_NUMBER = re.compile(r"\(os error (\d+)\)")
"""How libraries written in Rust, such as safetensors, write the number of an error."""


def explain_disk_error(error: BaseException, path: str = "") -> str | None:
    """Say in a line which file cannot be written, why, and what to do; None for another error.

    Args:
        error: What was raised.
        path: The file or folder to name if the error names none; by default the folder of
            temporary files, since errors of workers without a name come from there.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (match := _NUMBER.search(str(error))):
        number = int(match[1])
    if number not in REMEDIES:
        return None
    file = getattr(error, "filename", None) or path or tempfile.gettempdir()
    remedy = REMEDIES[number]
    if number == errno.ENOSPC and _has_no_inode(str(file)):
        remedy = "Remove some files there: it has space left, but for no more files"
    return f"{file}: {os.strerror(number).lower()}. {remedy}"


def _has_no_inode(path: str) -> bool:
    """Whether the disk of a path has free space, and no free inode."""
    while not os.path.exists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    try:
        disk = os.statvfs(path)
    except OSError:
        return False
    return disk.f_files > 0 == disk.f_favail and disk.f_bavail > 0
