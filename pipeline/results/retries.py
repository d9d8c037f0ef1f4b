"""The pool once it stands: which of its failures are worth another try, and what that changes.

A retry replaces failed rows where they lie. Every other row, and all that later stages measured
of it, stays; rows that it brings to life are measured by the next run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.manifest.validation import did_you_mean
from pipeline.storage.records import RetriesRecord
from pipeline.storage.run import Run
from stages.base import digest
from stages.download import DownloadStage

__all__ = ["due", "forget_retries", "pool_state", "recovered", "replacing", "retrying"]

_RETRIES = ("pool", "_retries.json")


def pool_state(run: Run, decision: str) -> str:
    """A decision with the pool it was taken on: its shards, and how often it was mended."""
    return digest([decision, run.shards("pool"), len(_retries(run))])


def due(run: Run, reasons: Sequence[str]) -> dict[str, int]:
    """How many rows of each shard failed for one of some reasons; shards without are left out.

    Raises:
        ValueError: A reason is none of download's.
    """
    known = list(DownloadStage.every_reason())
    for reason in reasons:
        if reason not in known:
            hint = did_you_mean(reason, known)
            raise ValueError(f"--retry: download has no reason {reason!r}{hint}")
    found = {}
    for shard in run.shards("pool"):
        errors = run.read_table("pool", f"{shard}.parquet", columns=["error"])["error"]
        if number := int(np.asarray(pc.is_in(errors, pa.array(reasons, pa.string()))).sum()):
            found[shard] = number
    return found


def retrying(run: Run, reasons: Sequence[str], rows: int) -> None:
    """Record a retry before its first row, so that no result of the old pool passes for whole."""
    _add(run, {"reasons": list(reasons), "rows": rows})


def replacing(run: Run, shards: Sequence[str]) -> None:
    """Record that shards which later stages have measured are downloaded anew, before the first."""
    _add(run, {"shards": list(shards)})


def forget_retries(run: Run, shard: str) -> None:
    """Remove what stages measured of a shard that is downloaded anew."""
    for folder in run.names("annotations"):
        run.remove("annotations", folder, f"{shard}.parquet")


def _retries(run: Run) -> list[Any]:
    record = run.find_record(RetriesRecord, *_RETRIES)
    return record.retries if record else []


def _add(run: Run, retry: dict[str, Any]) -> None:
    run.write_record(RetriesRecord(retries=[*_retries(run), retry]), *_RETRIES)


def recovered(old: pa.Table, positions: npt.NDArray[np.int64], new: pa.Table) -> pa.Table:
    """A shard of the pool with some rows replaced.

    Args:
        old: n rows.
        positions: (m,) which of them, ascending.
        new: m rows of the same schema and uids.
    """
    index = np.arange(old.num_rows)
    index[positions] = old.num_rows + np.arange(len(positions))
    both: pa.Table = pa.concat_tables([old, new]).combine_chunks()
    return both.take(index)
