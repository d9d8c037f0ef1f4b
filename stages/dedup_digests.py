"""128-bit digests in bulk: (n, 2) uint64 that compare as their bytes do, both 0 for none."""

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
    """The digests of n binaries of 16 bytes, (n, 2)."""
    values = np.frombuffer(column.buffers()[1] or b"", np.uint8)
    values = values[16 * column.offset : 16 * (column.offset + len(column))]
    found = values.view(">u8").astype(np.uint64).reshape(-1, 2)
    found[np.asarray(column.is_null())] = 0
    return found


def from_hex(column: pa.Array[Any]) -> Digests:
    """The digests of n strings of 32 hex characters, (n, 2).

    Raises:
        ValueError: Some are not.
    """
    strings: list[Any] = column.to_pylist()
    text = "".join(strings)
    if len(text) != 32 * len(column):
        raise ValueError("a uid must be 32 hex characters")
    return np.frombuffer(bytes.fromhex(text), ">u8").astype(np.uint64).reshape(-1, 2)


def to_hex(digests: Digests) -> pa.ChunkedArray[Any]:
    """The digests as strings of 32 hex characters, null for none."""
    chunks = []
    for start in range(0, len(digests), 2**18):
        some = digests[start : start + 2**18]
        text = np.ascontiguousarray(some.astype(">u8")).tobytes().hex().encode()
        offsets: Any = np.arange(0, len(text) + 1, 32, dtype=np.int32)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(text)]
        strings = pa.Array.from_buffers(pa.string(), len(some), buffers)
        is_some: Any = some.any(axis=1)
        chunks.append(pc.if_else(pa.array(is_some), strings, None))
    return pa.chunked_array(chunks, pa.string())


def codes(digests: Digests) -> Int64s:
    """Number the distinct digests 0, 1, ... in ascending order; -1 for none."""
    order, is_equal = _ordered(digests)
    numbers = np.full(len(digests), -1)
    numbers[order] = np.cumsum(~is_equal) - 1
    return numbers


def links(digests: Digests) -> tuple[Int64s, Int64s]:
    """Pairs of positions that join all that have the same digest, n - 1 pairs for n of them."""
    order, is_equal = _ordered(digests)
    places = np.flatnonzero(is_equal)
    return order[places - 1], order[places]


def matches(digests: Digests, others: Digests) -> tuple[Int64s, Int64s]:
    """Positions (i, j) of each digest that is one of the others, j the first of them."""
    numbers = codes(np.concatenate((digests, others)))
    ours, theirs = numbers[: len(digests)], numbers[len(digests) :]
    first = np.full(int(numbers.max(initial=-1)) + 2, -1)  # the last place is for none
    first[theirs[::-1]] = np.arange(len(others))[::-1]
    first[-1] = -1
    i = np.flatnonzero(first[ours] >= 0)
    return i, first[ours[i]]


def _ordered(digests: Digests) -> tuple[Int64s, npt.NDArray[np.bool_]]:
    """The positions of digests in ascending order, and whether each equals the one before it."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    order = order[int((~digests.any(axis=1)).sum()) :]
    is_equal = np.zeros(len(order), bool)
    is_equal[1:] = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
    return order, is_equal
