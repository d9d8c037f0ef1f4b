"""The rows of all sources to the shards of a pool, each uid once, in two passes."""

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

_CHUNK = 4096  # rows whose lots are drawn at once


def shards(config: SourceConfig, notices: Notices | None = None) -> Iterator[pa.Table]:
    """The rows of the sources, a table for each shard of the pool.

    The sources are read twice: first to count the rows of each uid, then to give the first of
    them with the number of the others as `repeats`. Memory holds 16 bytes for each row of the
    sources in the first pass (three times that while they are sorted), 4 in the second; a sample
    takes 48 bytes for each of its rows while it is drawn.

    Args:
        config: The sources.
        notices: Takes what the readers tell, which is logged too.

    Returns:
        Tables of schema `LIST` with `config.shard_size` rows, the last one with fewer; the same
        for the same sources.

    Raises:
        ValueError: A source is missing, empty or unreadable, lacks a column, or changed between
            the two passes; raised before the first table wherever the first pass can tell.
    """
    notices = Notices() if notices is None else notices
    uids = bytearray()
    bounds = []
    for source in config.sources:
        found, bound = _uids(source, notices)
        if not found:
            raise ValueError(f"download.source has no rows: {source}")
        uids += found
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
            place = row.location or (None, None, None, None)
            rows.append(
                (uid, source.name, row.source_uid, row.url, row.caption, count, *place, row.fault)
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
    """The rows of a source up to its limit, or with lots up to a bound."""
    rows = dispatch.rows(source, notices)
    if bound is None:
        yield from itertools.islice(rows, source.limit)
        return
    for row, lot in zip(rows, _lots(source.seed or 0), strict=False):
        if lot <= bound:
            yield row


def _uids(source: Source, notices: Notices) -> tuple[bytearray, int | None]:
    """The uids of the chosen rows of a source, 16 bytes each, and the bound of their lots.

    A row of a sample is one of those with the `limit` smallest lots. Lots are distinct, so the
    largest of these tells them from all others.
    """
    uids = bytearray()
    if source.seed is None or source.limit is None:
        for row in _chosen(source, None, notices):
            uids += bytes.fromhex(uid_of(row.url, row.caption))
        return uids, None
    lots = array("Q")
    bound = 2**64 - 1
    for row, lot in zip(dispatch.rows(source, notices), _lots(source.seed), strict=False):
        if lot <= bound:
            lots.append(lot)
            uids += bytes.fromhex(uid_of(row.url, row.caption))
            if len(lots) == 2 * source.limit + _CHUNK:
                lots, uids, bound = _smallest(lots, uids, source.limit)
    if len(lots) > source.limit:
        lots, uids, bound = _smallest(lots, uids, source.limit)
    return uids, bound


def _smallest(lots: array[int], uids: bytearray, number: int) -> tuple[array[int], bytearray, int]:
    """The smallest lots and their uids, in the order given, and the largest of them."""
    values = np.array(lots, np.uint64)
    bound = np.partition(values, number - 1)[number - 1]
    kept = values <= bound
    halves = np.frombuffer(bytes(uids), np.uint64).reshape(-1, 2)[kept]
    return array("Q", values[kept].tobytes()), bytearray(halves.tobytes()), int(bound)


def _lots(seed: int) -> Iterator[int]:
    """A lot for each position in a source, uniform, distinct, and decided by the seed."""
    start = splitmix(seed)
    for first in itertools.count(0, _CHUNK):
        positions = np.arange(first, first + _CHUNK, dtype=np.uint64)
        yield from splitmix(splitmix(positions) ^ start).tolist()


def _repeats(uids: bytearray) -> npt.NDArray[np.int32]:
    """For each row the further rows of its uid, or -1 where an earlier row has the same uid."""
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
        "run again when nothing writes to it"
    )
