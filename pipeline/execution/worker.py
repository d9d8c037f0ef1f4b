"""What runs on a worker: one shard in, one committed file out."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.errors import ConservationError, ContractError
from pipeline.execution import export_writer, logs
from pipeline.execution.map_reduce import PartitionedSummary, laid_out, measured, scatter
from pipeline.execution.metrics import Meter
from pipeline.execution.row_errors import measure_by_row
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
from pipeline.results import retries
from pipeline.results.verdicts import (
    DIGEST,
    Judgement,
    Mask,
    Results,
    crashed_rows,
)
from pipeline.storage.run import Run
from stages.base import CRASHED, GlobalStage, Stage
from stages.download import DownloadStage
from stages.filter import FilterStage
from stages.review import revised
from stages.schema import POOL

__all__ = ["Worker"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Due:
    """What a stage has left to do on a shard of n rows.

    Attributes:
        name: The stage.
        shard: The shard.
        uids: Of its n rows.
        todo: (n,) the rows due.
        measured: (n,) those that are done already.
        old: What stands of it, if anything does.
        before: The verdicts of the stages before it, none before download.
    """

    name: str
    shard: str
    uids: Any
    todo: Mask
    measured: Mask
    old: pa.Table | None
    before: Judgement | None = None

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """The rows due, by their places."""
        return np.flatnonzero(self.todo)

    @property
    def is_open(self) -> bool:
        """Whether there is anything to commit."""
        return self.old is None or bool(self.todo.any())


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
        self.results = Results(self.run, self.plan)
        self._loaded: tuple[str, Stage[Any]] | None = None
        self._meter = Meter(manifest.name)
        logs.configure()

    def ready(self) -> int:
        """The id of the process, once it answers."""
        return os.getpid()

    def work(self, name: str, shard: str, retry: Sequence[str] = ()) -> dict[str, Any]:
        """Do what a stage, or export, has left to do on a shard.

        Args:
            name: The stage.
            shard: The shard, or a task of the stage's `Summary`.
            retry: Errors of download whose rows are downloaded anew.

        Returns:
            rows (newly done), seconds, cpu_seconds, device, the seconds of them that the stage
            itself took, and what else the driver counts.
        """
        started, began = time.perf_counter(), time.process_time()
        with logs.log_context(run=self.run.root, stage=name, shard=shard):
            if ":" in shard:
                done = PartitionedSummary.open(self.results, name).work(shard)
            elif name in self.plan.exports:
                done = self._export(name, shard)
            else:
                due = self._due(name, shard, retry)
                measuring = time.perf_counter()
                parts = self._measure(due) if due.is_open else None
                seconds = time.perf_counter() - measuring
                done = {**self._commit_parts(due, parts), "stage_seconds": seconds}
            return self._told(name, shard, done, started, began)

    def load(self, name: str) -> None:
        """Load a stage, and no row."""
        self._stage(name)

    def due(self, name: str, shard: str, retry: Sequence[str] = ()) -> list[int]:
        """Which rows of a shard a stage has left to do."""
        rows: list[int] = self._due(name, shard, retry).rows.tolist()
        return rows

    def measure(self, name: str, shard: str, retry: Sequence[str], rows: list[int]) -> pa.Table:
        """What a stage finds of some of the rows that are due; nothing is committed."""
        due = self._due(name, shard, retry)
        return self._annotate(name, self._given(due, np.array(rows, np.int64)))

    def commit(
        self, name: str, shard: str, retry: Sequence[str], spans: list[list[int]], *parts: pa.Table
    ) -> dict[str, Any]:
        """Commit what `measure` found of a shard; the rows of no span are those that crash.

        Args:
            name: The stage.
            shard: The shard.
            retry: As for `work`.
            spans: The rows of each part.
            parts: What `measure` gave for them.
        """
        started, began = time.perf_counter(), time.process_time()
        with logs.log_context(run=self.run.root, stage=name, shard=shard):
            due = self._due(name, shard, retry)
            rows = [np.array(span, np.int64) for span in spans]
            done = self._commit_parts(due, list(zip(rows, parts, strict=True)))
            return self._told(name, shard, done, started, began)

    def _told(
        self, name: str, shard: str, done: dict[str, Any], started: float, began: float
    ) -> dict[str, Any]:
        """What was done of a shard, with what it took, once the log and the metrics have it."""
        result = {
            **done,
            "shard": shard,
            "device": self._device(name),
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - began,
        }
        told = {key: result[key] for key in ("rows", "bytes", "reasons") if key in result}
        logs.log_event("shard done", seconds=round(result["seconds"], 3), **told)
        config = self.plan.manifest.stages.get(name)
        gpus = 0.0 if config is None else config.resources.gpus
        # The rows of a summary were counted as they were measured.
        self._meter.count(name, result | {"rows": 0} if ":" in shard else result, gpus)
        return result

    def summarize(self, name: str, shards: list[str]) -> dict[str, Any]:
        """Decide over the whole pool and scatter the summary of a global stage, a file a shard."""
        started, began = time.perf_counter(), time.process_time()
        stage: Any = self.plan.stage(name)
        masks: dict[str, Mask] = {}

        def tables() -> Iterator[pa.Table]:
            for shard in shards:
                masks[shard], table = measured(self.results, name, shard)
                yield table

        summary = stage.summarize(tables())
        expected = sum(int(mask.sum()) for mask in masks.values())
        if summary.num_rows != expected:
            raise ConservationError(
                f"{name}: summarize gave {summary.num_rows} rows for {expected}"
            )
        scatter(self.results, name, masks, summary)
        return {
            "rows": expected,
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - began,
        }

    def _device(self, name: str) -> str:
        """The kind of GPU that a stage has here, or `cpu`."""
        if name in self.plan.exports or not self.plan.stage(name).config.resources.gpus:
            return "cpu"
        import torch

        return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else "cpu"

    def _stage(self, name: str) -> Stage[Any]:
        """The stage, loaded; the one before it makes room."""
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = None
            stage = self.plan.stage(name)
            stage.load()
            self._loaded = (name, stage)
        return self._loaded[1]

    def _due(self, name: str, shard: str, retry: Sequence[str] = ()) -> _Due:
        file, folder = f"{shard}.parquet", self.plan.folder(name)
        is_there = self.run.exists(*folder, file)
        old: pa.Table | None
        if name == DownloadStage.name:
            uids = self.run.read_table("list", file, columns=["uid"])["uid"]
            todo = np.ones(len(uids), bool)
            old = self.run.read_table(*folder, file) if is_there else None
            if old is None:
                retries.forget_retries(self.run, shard)
            else:
                self.results.check_alignment(uids, old["uid"], "list", file)
                todo = np.asarray(pc.is_in(old["error"], pa.array(retry, pa.string())))
            return _Due(name=name, shard=shard, uids=uids, todo=todo, measured=~todo, old=old)
        before = self._judged(name, shard)
        old = self.results.measured_table(name, shard, before.uids) if is_there else None
        measured = (
            np.zeros(len(before.live), bool)
            if old is None
            else self.results.measured_rows(name, shard, old)
        )
        todo = before.live & ~measured
        return _Due(
            name=name,
            shard=shard,
            uids=before.uids,
            todo=todo,
            measured=measured,
            old=old,
            before=before,
        )

    def _measure(self, due: _Due) -> list[tuple[npt.NDArray[np.int64], pa.Table]]:
        """What a stage finds of the rows that are due, by runs of rows; those that fail lack."""
        self._stage(due.name)  # what cannot be loaded is the fault of no row
        given = self._given(due, due.rows)

        def measure(places: npt.NDArray[np.int64]) -> pa.Table:
            whole = len(places) == given.num_rows
            return self._annotate(due.name, given if whole else given.take(places))

        parts = measure_by_row(
            np.arange(len(due.rows)),
            measure,
            lambda place: f"{due.name}: uid {given['uid'][place]} of shard {due.shard}",
        )
        return [(due.rows[places], part) for places, part in parts]

    def _commit_parts(
        self, due: _Due, parts: list[tuple[npt.NDArray[np.int64], pa.Table]] | None
    ) -> dict[str, Any]:
        """Commit what was found of some rows; due rows of no part get the reason `crashed`."""
        if parts is None:
            return self._commit(due, None)
        rows = np.concatenate([np.zeros(0, np.int64), *(span for span, _ in parts)])
        place = {row: index for index, row in enumerate(rows.tolist())}
        index = np.array([place.get(row, -1) for row in due.rows.tolist()], np.int64)
        crashed = index < 0
        empty = self.plan.stage(due.name).writes.empty_table()
        found = pa.concat_tables([empty, *(part for _, part in parts)])
        if crashed.any() or len(parts) > 1:
            chosen: Any = pa.array(index, mask=crashed)
            found = found.combine_chunks().take(chosen)
        return self._commit(due, found, crashed)

    def _given(self, due: _Due, rows: npt.NDArray[np.int64]) -> pa.Table:
        """What a stage takes of some rows of a shard."""
        if due.before is None:
            return self.run.read_table("list", f"{due.shard}.parquet").take(rows)
        wanted = np.zeros(len(due.todo), bool)
        wanted[rows] = True
        return self._gather(due.name, due.shard, due.before, wanted)

    def _annotate(self, name: str, given: pa.Table) -> pa.Table:
        """What a stage finds of some rows."""
        stage = self._stage(name)
        if not given.num_rows:
            return stage.writes.empty_table()
        return _checked(stage, given, stage.annotate(given))

    def _commit(
        self, due: _Due, found: pa.Table | None, crashed: Mask | None = None
    ) -> dict[str, Any]:
        """Write a shard with what was found of the rows that were due.

        Args:
            due: What was due.
            found: A row for each row due, nulls where it crashed; None where nothing was.
            crashed: Which of them crash; None for none.
        """
        if found is None:
            return {"rows": 0, "reasons": {}}
        crashed = np.zeros(found.num_rows, bool) if crashed is None else crashed
        write = self._write_pool if due.name == DownloadStage.name else self._write_measured
        done = write(due, found, crashed)
        if number := int(crashed.sum()):
            done["reasons"][CRASHED] = number
        return {"rows": found.num_rows, **done}

    def _write_pool(self, due: _Due, found: pa.Table, crashed: Mask) -> dict[str, Any]:
        file = f"{due.shard}.parquet"
        rows = self.run.read_table("list", file).filter(pa.array(due.todo))
        columns = {name: found[name] for name in found.column_names}
        if crashed.any():
            columns |= {name: rows[name] for name in columns if name in rows.column_names}
            for name, value in (("status", "failed_to_resize"), ("error", CRASHED)):
                columns[name] = pc.if_else(pa.array(crashed), value, columns[name])
        new = pa.table({"uid": rows["uid"], **columns}).select(POOL.names).cast(POOL)
        whole = new if due.old is None else retries.recovered(due.old, due.rows, new)
        self.run.write_table(whole, "pool", file)
        reasons = _tally(self.plan.stage(due.name).judge(found.filter(pa.array(~crashed))))
        return {"bytes": pc.sum(found["original_bytes"]).as_py() or 0, "reasons": reasons}

    def _write_measured(self, due: _Due, found: pa.Table, crashed: Mask) -> dict[str, Any]:
        stage, todo = self.plan.stage(due.name), due.todo
        table = laid_out(todo, found)
        all_crashed = np.zeros(len(todo), bool)
        all_crashed[due.rows] = crashed
        if due.old is not None:
            kept = due.old.select(stage.writes.names)
            choose = pa.array(todo)
            table = pa.table(
                {
                    column: _choose(choose, table[column], kept[column])
                    for column in stage.writes.names
                },
                schema=stage.writes,
            )
            all_crashed |= crashed_rows(due.old) & ~todo
        columns: dict[str, Any] = {column: table[column] for column in stage.writes.names}
        if all_crashed.any():
            columns[CRASHED] = pa.array(all_crashed)
        taken = self.results.summary_digest(due.name, due.shard)
        if taken is not None:
            columns[DIGEST] = pa.array(taken)
        committed = pa.table(
            {"uid": due.uids, "measured": pa.array(due.measured | todo), **columns}
        )
        self.run.write_table(committed, *self.plan.folder(due.name), f"{due.shard}.parquet")
        if isinstance(stage, GlobalStage):
            return {"reasons": {}}
        judged = found.add_column(0, "uid", due.uids.filter(pa.array(todo)))
        return {"reasons": _tally(stage.judge(judged.filter(pa.array(~crashed))))}

    def _judged(self, name: str, shard: str) -> Judgement:
        """The verdicts before a stage, which must all be there.

        Raises:
            ValueError: An earlier stage has not measured a row that reached it.
        """
        found = self.results.judge(shard, self.plan.judges(name))
        if not found.is_complete:
            raise ValueError(
                f"{name}: shard {shard} has rows that an earlier stage has not measured; run "
                "`capfilt run MANIFEST`, which measures what is missing"
            )
        return found

    def _gather(
        self, name: str, shard: str, before: Judgement, wanted: Mask, without: Sequence[str] = ()
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
                found = before.tables.get(origin)
                if found is None:  # the filter's, whose scores an export takes that is not filtered
                    found = self.results.annotated(origin, shard)
                if found is None:
                    raise ValueError(f"{name}: shard {shard} of {origin} is not measured yet")
                table = found.select(names)
            table = table.filter(mask)
            columns.update({column: table[column] for column in names})
        return pa.table({"uid": before.uids.filter(mask), **columns})

    def _export(self, name: str, shard: str) -> dict[str, Any]:
        """Count the images of a shard of the pool, or write the shards that begin in it."""
        stage, folder = self.plan.export(name), self.plan.folder(name)
        if not self.run.exists(*folder, export_writer.LAYOUT):
            rows, keeps = self._kept(name, shard, without=("image",))
            return {"rows": rows.num_rows, "reasons": {}, "images": stage.images(rows, keeps)}
        layout = export_writer.Layout.read(self.run, folder, stage.config.shard_size)
        pairs = functools.lru_cache(maxsize=2)(lambda one: stage.pairs(*self._kept(name, one)))
        images = 0
        for part, slices in layout.parts(shard):
            if export_writer.is_whole(self.run, folder, stage.format, part, layout.decision):
                continue
            table = pa.concat_tables(
                stage.slice(pairs(one), part.split, start, stop) for one, start, stop in slices
            )
            shard_written = export_writer.write(
                self.run, folder, stage.format, part, table, layout.decision
            )
            expected = sum(stop - start for _, start, stop in slices)
            if shard_written.images != expected:
                raise ConservationError(
                    f"{name}: wrote {shard_written.images} images for {expected}"
                )
            images += expected
        return {"rows": images, "reasons": {}}

    def _kept(
        self, name: str, shard: str, without: Sequence[str] = ()
    ) -> tuple[pa.Table, pa.Table | None]:
        """What an export takes of the rows that no stage rejected, and which texts are kept."""
        found = self._judged(name, shard)
        rows = revised(self._gather(name, shard, found, found.live, without))
        scores = found.tables.get(FilterStage.name)
        if scores is None:
            return rows, None
        return rows, self.results.kept_texts(scores.filter(pa.array(found.live)))


def _checked(stage: Stage[Any], rows: pa.Table, found: pa.Table) -> pa.Table:
    """What `annotate` gave, or an error if it broke the contract of a stage."""
    if found.num_rows != rows.num_rows:
        raise ContractError(
            f"{stage.name}: annotate gave {found.num_rows} rows for {rows.num_rows}; a stage "
            "measures every row it is given"
        )
    if not found.schema.equals(stage.writes):
        raise ContractError(
            f"{stage.name}: annotate gave the columns {found.schema}, not {stage.writes}"
        )
    return found


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
