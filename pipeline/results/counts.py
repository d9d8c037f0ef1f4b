"""Counts of the verdicts on a run, kept from one command to the next.

Verdicts are never stored. How many there are of each in a shard is, in RUN/counts.parquet, with
the stamps (`pipeline.storage.stamps`) of the files that they were counted from. A shard whose files
have other stamps, or another plan, is counted anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from models.errors import DamagedError
from pipeline.results.verdicts import Results, totals_of
from pipeline.storage.run import COUNTS, Run
from pipeline.storage.stamps import stamp_of, stamps_of
from stages.base import GlobalStage, digest
from stages.registry import STAGES

__all__ = ["count"]

COLUMNS: dict[str, pa.DataType] = {
    "shard": pa.string(),
    "stamp": pa.string(),
    "changed": pa.int64(),
    "stage": pa.string(),
    "verdict": pa.string(),
    "rows": pa.int64(),
}
SCHEMA = pa.schema(COLUMNS)
"""Counts of `Results.tally`, with the shard that they are of, and the digest and the latest change
of the files that they were counted from."""

WORTH_KEEPING = 100
"""So many shards that were counted anew are worth the writing of the file."""

TICK = 2_000_000_000
"""Nanoseconds within which two changes of a file may have the same time, on the worst of disks."""


def count(
    results: Results, names: Iterable[str], shards: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """As `Results.count`; shards that have not changed since they were counted are not read.

    The counts are kept if many are new; a run that cannot be written is counted each time.
    """
    run, names = results.run, list(names)
    if not names:
        return results.count(names, shards)
    stamps = _stamps(results, names, shards)
    kept = _kept(run, names, stamps)
    known = set(kept["shard"].unique().to_pylist())
    new = [shard for shard in shards if shard not in known]
    counted = zip(new, run.each(lambda shard: results.tally(shard, names), new), strict=True)
    rows = [
        {"shard": shard, "stamp": stamp, "changed": changed, **line}
        for shard, lines in counted
        for stamp, changed in [stamps.get(shard, ("", 0))]
        for line in lines
    ]
    table = pa.concat_tables([kept, pa.Table.from_pylist(rows, schema=SCHEMA)])
    if len(new) >= WORTH_KEEPING:
        with contextlib.suppress(OSError):
            run.write_table(table.filter(pc.field("stamp") != ""), COUNTS)
    sums = table.group_by(["stage", "verdict"]).aggregate([("rows", "sum")])
    return totals_of(names, [sums.rename_columns({"rows_sum": "rows"}).to_pylist()])


def _stamps(
    results: Results, names: Sequence[str], shards: Sequence[str]
) -> dict[str, tuple[str, int]]:
    """For each shard a digest of the stamps of all files that its counts follow from.

    With it goes the latest change of one of them. A shard is left out if a file of its pool has no
    stamp.
    """
    run, plan = results.run, results.plan
    folders = [plan.folder(name) for name in names]
    folders += [plan.summary_folder(n) for n in names if issubclass(STAGES[n], GlobalStage)]
    found = [stamps_of(run, *folder) for folder in folders]
    decision = plan.decision(names[-1])
    result = {}
    for shard in shards:
        files = [folder.get(f"{shard}.parquet") for folder in found]
        if files[0] is not None:
            identity = digest([decision, *(file and file.identity for file in files)])
            result[shard] = identity, max(file.changed for file in files if file)
    return result


def _kept(run: Run, names: Sequence[str], stamps: dict[str, tuple[str, int]]) -> pa.Table:
    """The kept counts of shards whose files are those that were counted.

    A file that changed just before the counts were written may have changed once more within the
    same tick of the disk's clock, so it does not count as the same.
    """
    nothing = SCHEMA.empty_table()
    written = stamp_of(run, COUNTS)
    try:
        table = run.read_table(COUNTS)
    except (OSError, DamagedError):
        return nothing
    if table.schema != SCHEMA or written is None:
        return nothing
    table = table.filter((pc.field("rows") >= 0) & pc.field("stage").isin(names))
    if run.is_local:
        table = table.filter(pc.field("changed") < written.changed - TICK)
    today = pa.table(
        {"shard": pa.array(stamps, pa.string()), "today": [s for s, _ in stamps.values()]}
    )
    joined = table.join(today, "shard").filter(pc.field("stamp") == pc.field("today"))
    return joined.select(SCHEMA.names)
