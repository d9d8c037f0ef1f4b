"""Splits the rows of all sources into shards, with each uid once, in two passes."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.random import splitmix
from stages.schema import uid_of
from stages.sources import dispatch
from stages.sources.config import Source, SourceConfig
from stages.sources.notices import Notices
from stages.sources.row import LIST, Row

__all__ = ["shards"]

_CHUNK = 4096  # rows that are given random numbers at once


def shards(config: SourceConfig, notices: Notices | None = None) -> Iterator[pa.Table]:
    """Return the rows of the sources as one table for each shard of the pool.

    The sources are read twice. The first pass counts the rows of each uid; the second gives the
    first row of each uid, with the number of the others as `repeats`. The first pass needs 16 bytes
    of memory per row of the sources (48 while they are sorted), the second 4; drawing a sample
    needs 48 bytes per row of the sample.

    Args:
        config: The sources.
        notices: Collects warnings, which are logged too.

    Returns:
        Tables with the schema `LIST` and `config.shard_size` rows, the last one with fewer. The
        same sources give the same tables.

    Raises:
        ValueError: A source is missing, empty or unreadable, lacks a column, or changed between
            the two passes. Errors of the first pass are raised before the first table.
    """
    notices = Notices() if notices is None else notices
    uids = bytearray()
    bounds = []
    for source in config.sources:
        source_uids, bound = _uids(source, notices)
        if not source_uids:
            raise ValueError(f"download.source has no rows: {source}")
        uids += source_uids
        bounds.append(bound)
    notices.warn()
    return _shards(config, bounds, _repeats(uids))


def _shards(
    config: SourceConfig, bounds: list[int | None], repeats: npt.NDArray[np.int32]
) -> Iterator[pa.Table]:
    rows: list[tuple[Any, ...]] = []
    position = 0
    for source, bound in zip(config.sources, bounds, strict=True):
        for row in _chosen(source, bound, Notices()):
            if position == len(repeats):
                raise _changed(config)
            count = int(repeats[position])
            position += 1
            if count < 0:
                continue
            uid = uid_of(row.url, row.caption)
            location = row.location or (None, None, None, None)
            rows.append(
                (
                    uid,
                    source.name,
                    row.source_uid,
                    row.url,
                    row.caption,
                    count,
                    *location,
                    row.fault,
                )
            )
            if len(rows) == config.shard_size:
                yield _table(rows)
                rows = []
    if position < len(repeats):
        raise _changed(config)
    if rows:
        yield _table(rows)


def _table(rows: list[tuple[Any, ...]]) -> pa.Table:
    return pa.table(dict(zip(LIST.names, zip(*rows, strict=True), strict=True)), schema=LIST)


def _chosen(source: Source, bound: int | None, notices: Notices) -> Iterator[Row]:
    """Yield the rows of a source up to its limit, or those whose random number is <= `bound`."""
    rows = dispatch.rows(source, notices)
    if bound is None:
        yield from itertools.islice(rows, source.limit)
        return
    for row, draw in zip(rows, _random_numbers(source.seed or 0), strict=False):
        if draw <= bound:
            yield row


def _uids(source: Source, notices: Notices) -> tuple[bytearray, int | None]:
    """Return the uids of the chosen rows of a source, 16 bytes each, and the bound of a sample.

    A sample consists of the rows with the `limit` smallest random numbers. These are distinct, so
    the largest of them separates the sample from the other rows. The bound is None without a
    sample.
    """
    uids = bytearray()
    if source.seed is None or source.limit is None:
        for row in _chosen(source, None, notices):
            uids += bytes.fromhex(uid_of(row.url, row.caption))
        return uids, None
    draws = array("Q")
    bound = 2**64 - 1
    for row, draw in zip(
        dispatch.rows(source, notices), _random_numbers(source.seed), strict=False
    ):
        if draw <= bound:
            draws.append(draw)
            uids += bytes.fromhex(uid_of(row.url, row.caption))
            if len(draws) == 2 * source.limit + _CHUNK:
                draws, uids, bound = _smallest(draws, uids, source.limit)
    if len(draws) > source.limit:
        draws, uids, bound = _smallest(draws, uids, source.limit)
    return uids, bound


def _smallest(draws: array[int], uids: bytearray, number: int) -> tuple[array[int], bytearray, int]:
    """Return the `number` smallest draws with their uids, in order, and the largest of them."""
    values = np.array(draws, np.uint64)
    bound = np.partition(values, number - 1)[number - 1]
    kept = values <= bound
    halves = np.frombuffer(bytes(uids), np.uint64).reshape(-1, 2)[kept]
    return array("Q", values[kept].tobytes()), bytearray(halves.tobytes()), int(bound)


def _random_numbers(seed: int) -> Iterator[int]:
    """Yield a random number for each position in a source: uniform, distinct, set by the seed."""
    start = splitmix(seed)
    for first in itertools.count(0, _CHUNK):
        positions = np.arange(first, first + _CHUNK, dtype=np.uint64)
        yield from splitmix(splitmix(positions) ^ start).tolist()


def _repeats(uids: bytearray) -> npt.NDArray[np.int32]:
    """Return for each row the number of later rows with its uid, or -1 if an earlier row has it."""
    halves = np.frombuffer(uids, np.uint64).reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: equal uids stay in row order
    ordered = halves[order]
    starts = np.flatnonzero(np.r_[True, (ordered[1:] != ordered[:-1]).any(axis=1)])
    repeats = np.full(len(halves), -1, np.int32)
    repeats[order[starts]] = np.diff(np.r_[starts, len(halves)]) - 1
    return repeats


def _changed(config: SourceConfig) -> ValueError:
    return ValueError(
        f"download.source changed while it was read: {', '.join(map(str, config.sources))}; "
        "run the command again when nothing writes to it"
    )
