"""What the place that files are written to refuses, and what to do about it."""

from __future__ import annotations

import errno
import os
import re
import tempfile

__all__ = ["explain_disk_error"]

REMEDIES = {
    errno.ENOSPC: "Make room there",
    errno.EDQUOT: "Make room there",
    errno.EFBIG: "Let files be larger",
    errno.EROFS: "Give a place that can be written to",
    errno.EACCES: "Let this user in, or give another place",
    errno.EPERM: "Let this user in, or give another place",
}
"""What one file fails of, all others will; and what to do."""

_NUMBER = re.compile(r"\(os error (\d+)\)")
"""How libraries written in Rust, as safetensors, tell the number of an error."""


def explain_disk_error(error: BaseException, place: str = "") -> str | None:
    """The file, what is refused of it and what to do, in a line; None for any other error.

    Args:
        error: What was raised.
        place: What to name where the error names no file; by default the folder of temporary
            ones, as those of workers do not.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (told := _NUMBER.search(str(error))):
        number = int(told[1])
    if number not in REMEDIES:
        return None
    file = getattr(error, "filename", None) or place or tempfile.gettempdir()
    return f"{file}: {os.strerror(number).lower()}. {REMEDIES[number]}"
