"""Looking at a run: every verdict, and whether all files are sound."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq

from pipeline import export
from pipeline.plan import Plan
from pipeline.store import Run
from pipeline.verdicts import judge, verdict_table

__all__ = ["verify", "write_verdicts"]


def write_verdicts(run: Run, plan: Plan, out: str) -> int:
    """Write what became of every row of the pool: the columns of `verdicts.verdict_table`.

    Args:
        run: The run.
        plan: Its plan.
        out: A local file; its ending says parquet, csv or jsonl.

    Returns:
        How many rows.

    Raises:
        ValueError: The ending is none of these, or the run has no pool.
    """
    kind = out.rsplit(".", 1)[-1]
    if kind not in ("parquet", "csv", "jsonl"):
        raise ValueError(f"--out {out}: end the name in .parquet, .csv or .jsonl")
    shards = run.shards("pool")
    if not shards:
        raise ValueError(f"{run.root}: nothing is downloaded yet; `capfilt run` it first")
    rows = 0
    writer: Any = None
    with open(out, "wb") as file:
        for table in verdict_table(run, plan, shards):
            rows += table.num_rows
            if kind == "jsonl":
                for row in table.to_pylist():
                    file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
                continue
            if writer is None:
                make = pq.ParquetWriter if kind == "parquet" else pc_csv.CSVWriter
                writer = make(file, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()
    return rows


def verify(run: Run, plan: Plan) -> Iterator[str]:
    """Every fault of a run's files, a sentence each.

    Reads all of the pool and the annotations, checks schemas, alignment, uniqueness of uids and
    row conservation, and the export against the SHA-256s of its manifest.
    """
    from pipeline.status import funnel

    seen: set[str] = set()
    for shard in run.shards("pool"):
        try:
            uids = list(map(str, run.read_table("pool", f"{shard}.parquet")["uid"].to_pylist()))
        except (ValueError, KeyError, pa.ArrowException) as error:
            yield str(error)
            continue
        if repeated := len(uids) - len(set(uids)) + len(seen.intersection(uids)):
            yield f"{run.url('pool', shard)}.parquet: {repeated} uids stand more than once"
        seen.update(uids)
        for name in plan.names[1:]:
            try:
                judge(run, plan, shard, [name])
            except FileNotFoundError:
                break
            except (ValueError, KeyError, pa.ArrowException) as error:
                yield str(error)
    try:
        funnel(run, plan)
    except (AssertionError, ValueError, KeyError) as error:
        yield f"{run.root}: {error}"
    if run.exists("list", "_list.json"):
        rows = run.read_json("list", "_list.json")["rows"]
        if len(run.shards("pool")) == run.read_json("list", "_list.json")["shards"] and (
            rows != len(seen)
        ):
            yield f"{run.root}: the list has {rows} rows, the pool {len(seen)}"
    for name in plan.exports:
        yield from _verify_export(run, plan.folder(name))


def _verify_export(run: Run, folder: tuple[str, ...]) -> Iterator[str]:
    """The faults of an export, if it is finished."""
    if not run.exists(*folder, "manifest.json"):
        return
    files = run.read_json(*folder, "manifest.json")["files"]
    for file in files:
        path = (*folder, *file["name"].split("/"))
        if not run.exists(*path):
            yield f"{run.url(*path)}: missing"
        elif export.digest(run, *path) != file["sha256"]:
            yield f"{run.url(*path)}: its bytes are not those of manifest.json"
    extra = set(run.shards(*folder)) - {f["name"].removesuffix(".parquet") for f in files}
    for name in sorted(extra):
        yield f"{run.url(*folder, name)}.parquet: not in manifest.json"
