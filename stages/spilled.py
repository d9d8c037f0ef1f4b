"""Arrays in temporary files, for summaries of more rows than memory holds."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Spilled"]

Array = npt.NDArray[Any]


class Spilled:
    """An array in a temporary file, which grows along its first axis.

    Args:
        dtype: Data type of the elements.
        width: Elements per row; None for a one-dimensional array.
    """

    def __init__(self, dtype: Any, width: int | None = None) -> None:
        self._dtype: np.dtype[Any] = np.dtype(dtype)
        self._shape = () if width is None else (width,)
        self._file = tempfile.TemporaryFile(prefix="capfilt-")  # noqa: SIM115
        self._length = 0

    def append(self, rows: Array) -> None:
        """Add rows at the end."""
        self._file.write(np.ascontiguousarray(rows, self._dtype).tobytes())
        self._length += len(rows)

    def read(self) -> Array:
        """Read all rows into memory."""
        self._file.flush()
        self._file.seek(0)
        return np.fromfile(self._file, self._dtype).reshape(self._length, *self._shape)

    def mapped(self) -> Array:
        """Return all rows as a memory-mapped array."""
        self._file.flush()
        shape = (self._length, *self._shape)
        if not self._length:  # an empty file cannot be mapped
            return np.zeros(shape, self._dtype)
        return np.asarray(np.memmap(self._file, self._dtype, "r", shape=shape))
