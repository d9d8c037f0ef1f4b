"""Small trained models that objectives with frozen parts start from, made once a process."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from helpers import nano

__all__ = ["blip_of"]


def _folder(name: str) -> Path:
    top = tempfile.mkdtemp(prefix="capfilt-starts-")
    atexit.register(shutil.rmtree, top, ignore_errors=True)
    return Path(top) / name


@functools.cache
def blip_of(tokenizer: str) -> str:
    """A nano BLIP with large random weights: `captioner/` and `matcher/`."""
    folder = _folder("blip")
    nano.make(tokenizer).save(folder)
    return str(folder)
