"""What runs on a worker: one shard in, one committed file out."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import export
from pipeline.manifest import Manifest
from pipeline.plan import Plan
from pipeline.pool import recovered
from pipeline.store import Run
from pipeline.verdicts import (
    DIGEST,
    Judgement,
    Mask,
    annotated,
    judge,
    measured_rows,
    summary_digest,
)
from stages.base import GlobalStage, Stage
from stages.download import DownloadStage
from stages.filter import FilterStage
from stages.review import revised
from stages.schema import POOL

__all__ = ["Worker"]

logger = logging.getLogger(__name__)


class Worker:
    """Carries out the stages of a manifest on shards; the last stage's models stay loaded.

    Every method is idempotent: it commits one file under a name that its arguments decide, with
    content that its inputs decide, so that a worker that outlives its driver does no harm.

    Args:
        manifest: The manifest of the run.
        threads: Threads that numerical libraries may use; None leaves that to them.
    """

    def __init__(self, manifest: Manifest, threads: int | None = 1) -> None:
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            if threads is not None:
                os.environ[variable] = str(threads)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self.plan = Plan(manifest)
        self.run = Run(manifest.run, manifest.branch)
        self._loaded: tuple[str, Stage[Any]] | None = None

    def ready(self) -> int:
        """The id of the process, once it answers."""
        return os.getpid()

    def work(self, name: str, shard: str, retry: Sequence[str] = ()) -> dict[str, Any]:
        """Do what a stage, or export, has left to do on a shard.

        Args:
            name: The stage.
            shard: The shard.
            retry: Errors of download whose rows are downloaded anew.

        Returns:
            rows (newly done), seconds, and what else the driver counts.
        """
        started = time.perf_counter()
        if name == DownloadStage.name:
            done = self._download(shard, retry)
        elif name in self.plan.exports:
            done = self._export(name, shard)
        else:
            done = self._measure(name, shard)
        return {**done, "shard": shard, "seconds": time.perf_counter() - started}

    def summarize(self, name: str, shards: list[str]) -> dict[str, Any]:
        """Decide over the whole pool and scatter the summary of a global stage, a file a shard."""
        started = time.perf_counter()
        stage = self.plan.stage(name)
        assert isinstance(stage, GlobalStage)
        live: dict[str, Mask] = {}

        def tables() -> Iterator[pa.Table]:
            for shard in shards:
                live[shard] = judge(self.run, self.plan, shard, self.plan.before(name)).live
                table = self.run.read_table(
                    *self.plan.folder(name),
                    f"{shard}.parquet",
                    columns=["uid", *stage.writes.names],
                )
                yield table.filter(pa.array(live[shard]))

        summary = stage.summarize(tables())
        expected = sum(int(mask.sum()) for mask in live.values())
        assert summary.num_rows == expected, f"{name}: {summary.num_rows} rows for {expected}"
        start = 0
        for shard in shards:
            mask = live[shard]
            uids = self.run.read_table("pool", f"{shard}.parquet", columns=["uid"])["uid"]
            part = summary.slice(start, int(mask.sum()))
            start += part.num_rows
            if not part["uid"].equals(uids.filter(pa.array(mask))):
                raise ValueError(f"{name}: its summary is not in the order of the rows given")
            scattered = _scatter(mask, part.drop_columns("uid"))
            table = pa.table(
                {
                    "uid": uids,
                    "summarized": pa.array(mask),
                    **{column: scattered[column] for column in stage.summary.names},
                }
            )
            self.run.write_table(table, *self.plan.summary_folder(name), f"{shard}.parquet")
        return {"rows": expected, "seconds": time.perf_counter() - started}

    def _stage(self, name: str) -> Stage[Any]:
        """The stage, loaded; the one before it makes room."""
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = None
            stage = self.plan.stage(name)
            stage.load()
            self._loaded = (name, stage)
        return self._loaded[1]

    def _download(self, shard: str, retry: Sequence[str]) -> dict[str, Any]:
        file = f"{shard}.parquet"
        old = self.run.read_table("pool", file) if self.run.exists("pool", file) else None
        rows = self.run.read_table("list", file)
        if old is not None:
            errors = pc.is_in(old["error"], pa.array(retry, pa.string()))
            again = np.flatnonzero(np.asarray(errors))
            if not len(again):
                return {"rows": 0, "reasons": {}}
            rows = rows.take(again)
        stage = self._stage(DownloadStage.name)
        found = _checked(stage, rows, stage.annotate(rows))
        new = pa.table({"uid": rows["uid"], **{n: found[n] for n in found.column_names}})
        new = new.select(POOL.names).cast(POOL)
        self.run.write_table(new if old is None else recovered(old, again, new), "pool", file)
        return {
            "rows": rows.num_rows,
            "bytes": pc.sum(found["original_bytes"]).as_py() or 0,
            "reasons": _tally(stage.judge(found)),
        }

    def _measure(self, name: str, shard: str) -> dict[str, Any]:
        file = f"{shard}.parquet"
        folder = self.plan.folder(name)
        before = self._judged(name, shard)
        old = self.run.read_table(*folder, file) if self.run.exists(*folder, file) else None
        measured = (
            np.zeros(len(before.live), bool)
            if old is None
            else measured_rows(self.run, self.plan, name, shard, old)
        )
        todo = before.live & ~measured
        if old is not None and not todo.any():
            return {"rows": 0, "reasons": {}}
        stage = self._stage(name)
        rows = self._gather(name, shard, before.uids, todo)
        new = (
            _checked(stage, rows, stage.annotate(rows))
            if rows.num_rows
            else stage.writes.empty_table()
        )
        table = _scatter(todo, new)
        if old is not None:
            kept = old.select(stage.writes.names)
            choose = pa.array(todo)
            table = pa.table(
                {
                    column: _choose(choose, table[column], kept[column])
                    for column in stage.writes.names
                },
                schema=stage.writes,
            )
        columns: dict[str, Any] = {column: table[column] for column in stage.writes.names}
        if (taken := summary_digest(self.run, self.plan, name, shard)) is not None:
            columns[DIGEST] = pa.array(taken)
        committed = pa.table({"uid": before.uids, "measured": pa.array(measured | todo), **columns})
        self.run.write_table(committed, *folder, file)
        reasons = (
            _tally(stage.judge(new.add_column(0, "uid", rows["uid"])))
            if rows.num_rows and not isinstance(stage, GlobalStage)
            else {}
        )
        return {"rows": rows.num_rows, "reasons": reasons}

    def _judged(self, name: str, shard: str) -> Judgement:
        """The verdicts before a stage, which must all be there.

        Raises:
            ValueError: An earlier stage has not measured a row that reached it.
        """
        found = judge(self.run, self.plan, shard, self.plan.judges(name))
        if not found.is_complete:
            raise ValueError(
                f"{name}: shard {shard} has rows that an earlier stage has not measured; run "
                "`capfilt run MANIFEST`, which measures what is missing"
            )
        return found

    def _gather(
        self, name: str, shard: str, uids: Any, wanted: Mask, without: Sequence[str] = ()
    ) -> pa.Table:
        """The columns that a stage takes, of the rows wanted, whichever file they lie in."""
        origins = self.plan.inputs(name)
        mask = pa.array(wanted)
        columns: dict[str, Any] = {}
        for origin in dict.fromkeys(origins.values()):
            names = [c for c, o in origins.items() if o == origin and c not in ("uid", *without)]
            if not names:
                continue
            if origin == DownloadStage.name:
                table = self.run.read_table("pool", f"{shard}.parquet", columns=names)
            else:
                found = annotated(self.run, self.plan, origin, shard)
                assert found is not None, f"{name} runs before {origin} is complete"
                table = found.select(names)
            table = table.filter(mask)
            columns.update({column: table[column] for column in names})
        return pa.table({"uid": uids.filter(mask), **columns})

    def _export(self, name: str, shard: str) -> dict[str, Any]:
        """Count the images of a shard of the pool, or write the shards that begin in it."""
        stage, folder = self.plan.export(name), self.plan.folder(name)
        if not self.run.exists(*folder, export.LAYOUT):
            rows, keeps = self._kept(name, shard, without=("image",))
            return {"rows": rows.num_rows, "reasons": {}, "images": stage.images(rows, keeps)}
        layout = export.Layout.read(self.run, folder, stage.config.shard_size)
        pairs = functools.lru_cache(maxsize=2)(lambda one: stage.pairs(*self._kept(name, one)))
        images = 0
        for part, slices in layout.parts(shard):
            if export.is_whole(self.run, folder, stage.format, part, layout.decision):
                continue
            table = pa.concat_tables(
                stage.slice(pairs(one), part.split, start, stop) for one, start, stop in slices
            )
            told = export.write(self.run, folder, stage.format, part, table, layout.decision)
            images += told["images"]
        return {"rows": images, "reasons": {}}

    def _kept(
        self, name: str, shard: str, without: Sequence[str] = ()
    ) -> tuple[pa.Table, pa.Table | None]:
        """What an export takes of the rows that no stage rejected, and which texts are kept."""
        found = self._judged(name, shard)
        rows = revised(self._gather(name, shard, found.uids, found.live, without))
        if FilterStage.name not in self.plan.judges(name):
            return rows, None
        scores = annotated(self.run, self.plan, FilterStage.name, shard)
        stage = self.plan.stage(FilterStage.name)
        assert scores is not None and isinstance(stage, FilterStage)
        live = scores.drop_columns("measured").filter(pa.array(found.live))
        return rows, stage.keep_texts(live)


def _checked(stage: Stage[Any], rows: pa.Table, found: pa.Table) -> pa.Table:
    """What `annotate` gave, or an error if it broke the contract of a stage."""
    if found.num_rows != rows.num_rows:
        raise ValueError(
            f"{stage.name}: annotate gave {found.num_rows} rows for {rows.num_rows}; a stage "
            "measures every row it is given"
        )
    if not found.schema.equals(stage.writes):
        raise ValueError(
            f"{stage.name}: annotate gave the columns {found.schema}, not {stage.writes}"
        )
    return found


def _scatter(mask: Mask, part: pa.Table) -> pa.Table:
    """Rows laid out over the shard: those of `part` where mask is true, nulls elsewhere."""
    positions: Any = pa.array(np.cumsum(mask) - 1, pa.int64(), mask=~mask)
    laid: pa.Table = part.combine_chunks().take(positions)
    return laid


def _choose(mask: Any, first: Any, second: Any) -> Any:
    """Values of `first` where mask is true, of `second` elsewhere; any type."""
    both = pa.chunked_array([*first.chunks, *second.chunks], type=first.type)
    here = np.arange(len(mask))
    index: Any = np.where(mask.to_numpy(zero_copy_only=False), here, here + len(mask))
    return both.take(pa.array(index)).combine_chunks()


def _tally(values: Any) -> dict[str, int]:
    """How often each value that is not null occurs."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    return {e["values"]: e["counts"] for e in values.drop_null().value_counts().to_pylist()}
