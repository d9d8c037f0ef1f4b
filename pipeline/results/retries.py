"""Retries: failed rows of a finished pool that are downloaded again.

A retry replaces failed rows in the pool. All other rows, and what later stages measured of them,
stay as they are. Rows that the retry recovers are measured by the next run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.errors import InputError
from pipeline.manifest.validation import did_you_mean
from pipeline.storage.records import RetriesRecord
from pipeline.storage.run import Run
from stages.base import digest
from stages.download import DownloadStage

__all__ = [
    "failed_rows",
    "forget_shard",
    "pool_state",
    "record_replaced",
    "record_retry",
    "replace_rows",
]

_RETRIES = ("pool", "_retries.json")


def pool_state(run: Run, decision: str) -> str:
    """Digest a decision together with the state of the pool.

    The state of the pool is the names of its shards and the number of retries.

    Args:
        run: The run.
        decision: The digest of a decision; see `Plan.decision`.
    """
    return digest([decision, run.shards("pool"), len(_retries(run))])


def failed_rows(run: Run, reasons: Sequence[str]) -> dict[str, int]:
    """Count the rows that failed for one of some reasons, by shard; shards without are left out.

    Raises:
        InputError: Download has no such reason.
    """
    known = list(DownloadStage.every_reason())
    for reason in reasons:
        if reason not in known:
            hint = did_you_mean(reason, known)
            raise InputError(f"--retry: download has no reason {reason!r}{hint}")
    numbers = {}
    for shard in run.shards("pool"):
        errors = run.read_table("pool", f"{shard}.parquet", columns=["error"])["error"]
        if number := int(np.asarray(pc.is_in(errors, pa.array(reasons, pa.string()))).sum()):
            numbers[shard] = number
    return numbers


def record_retry(run: Run, reasons: Sequence[str], rows: int) -> None:
    """Record a retry; called before its first row, so that old results count as incomplete."""
    _add(run, {"reasons": list(reasons), "rows": rows})


def record_replaced(run: Run, shards: Sequence[str]) -> None:
    """Record that shards which later stages may have measured are downloaded again.

    It is called before the first of them is downloaded.
    """
    _add(run, {"shards": list(shards)})


def forget_shard(run: Run, shard: str) -> None:
    """Remove what stages measured of a shard, since it is downloaded again."""
    for folder in run.names("annotations"):
        run.remove("annotations", folder, f"{shard}.parquet")


def _retries(run: Run) -> list[Any]:
    record = run.find_record(RetriesRecord, *_RETRIES)
    return record.retries if record else []


def _add(run: Run, retry: dict[str, Any]) -> None:
    run.write_record(RetriesRecord(retries=[*_retries(run), retry]), *_RETRIES)


def replace_rows(old: pa.Table, positions: npt.NDArray[np.int64], new: pa.Table) -> pa.Table:
    """Replace some rows of a shard of the pool.

    Args:
        old: n rows.
        positions: (m,) the rows to replace, ascending.
        new: m rows of the same schema and with the same uids.
    """
    index = np.arange(old.num_rows)
    index[positions] = old.num_rows + np.arange(len(positions))
    both: pa.Table = pa.concat_tables([old, new]).combine_chunks()
    return both.take(index)
