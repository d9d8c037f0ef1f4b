"""Arrays of 128-bit digests: uint64 (n, 2), ordered like their bytes; two zeros mean no digest."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["Digests", "codes", "from_binary", "from_hex", "links", "matches", "to_hex"]

Digests = npt.NDArray[np.uint64]
Int64s = npt.NDArray[np.int64]


def from_binary(column: Any) -> Digests:
    """Convert n binaries of 16 bytes to digests, (n, 2)."""
    values = np.frombuffer(column.buffers()[1] or b"", np.uint8)
    values = values[16 * column.offset : 16 * (column.offset + len(column))]
    digests = values.view(">u8").astype(np.uint64).reshape(-1, 2)
    digests[np.asarray(column.is_null())] = 0
    return digests


def from_hex(column: pa.Array[Any]) -> Digests:
    """Convert n strings of 32 hex characters to digests, (n, 2).

    Raises:
        ValueError: A string does not have 32 hex characters.
    """
    strings: list[Any] = column.to_pylist()
    text = "".join(strings)
    if len(text) != 32 * len(column):
        raise ValueError("a uid must be 32 hex characters")
    return np.frombuffer(bytes.fromhex(text), ">u8").astype(np.uint64).reshape(-1, 2)


def to_hex(digests: Digests) -> pa.ChunkedArray[Any]:
    """Convert digests to strings of 32 hex characters; null for no digest."""
    chunks = []
    for start in range(0, len(digests), 2**18):
        chunk = digests[start : start + 2**18]
        text = np.ascontiguousarray(chunk.astype(">u8")).tobytes().hex().encode()
        offsets: Any = np.arange(0, len(text) + 1, 32, dtype=np.int32)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(text)]
        strings = pa.Array.from_buffers(pa.string(), len(chunk), buffers)
        is_some: Any = chunk.any(axis=1)
        chunks.append(pc.if_else(pa.array(is_some), strings, None))
    return pa.chunked_array(chunks, pa.string())


def codes(digests: Digests) -> Int64s:
    """Number the distinct digests 0, 1, ... in ascending order; -1 for no digest."""
    order, is_equal = _ordered(digests)
    numbers = np.full(len(digests), -1)
    numbers[order] = np.cumsum(~is_equal) - 1
    return numbers


def links(digests: Digests) -> tuple[Int64s, Int64s]:
    """Return pairs of positions that link equal digests: n - 1 pairs for n equal ones."""
    order, is_equal = _ordered(digests)
    repeats = np.flatnonzero(is_equal)
    return order[repeats - 1], order[repeats]


def matches(digests: Digests, others: Digests) -> tuple[Int64s, Int64s]:
    """Return positions (i, j) of each digest that equals one of `others`, the first of them."""
    numbers = codes(np.concatenate((digests, others)))
    ours, theirs = numbers[: len(digests)], numbers[len(digests) :]
    first = np.full(int(numbers.max(initial=-1)) + 2, -1)  # the last element is for no digest
    first[theirs[::-1]] = np.arange(len(others))[::-1]
    first[-1] = -1
    i = np.flatnonzero(first[ours] >= 0)
    return i, first[ours[i]]


def _ordered(digests: Digests) -> tuple[Int64s, npt.NDArray[np.bool_]]:
    """Sort digests: their positions in ascending order, and whether each equals the previous one.

    Positions without a digest are left out.
    """
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    order = order[int((~digests.any(axis=1)).sum()) :]
    is_equal = np.zeros(len(order), bool)
    is_equal[1:] = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
    return order, is_equal
