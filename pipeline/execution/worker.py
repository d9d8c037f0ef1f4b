"""The worker: does a stage on one shard at a time, and commits one file for it."""

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

from models.errors import (
    ConservationError,
    ContractError,
    IncompleteError,
    StageUnavailableError,
)
from pipeline.execution import embeddings_writer, export_writer, logs
from pipeline.execution.map_reduce import PartitionedSummary
from pipeline.execution.metrics import Meter
from pipeline.execution.parts import commit_summary, measured, spread
from pipeline.execution.row_errors import measure_by_row
from pipeline.manifest.manifest import Manifest
from pipeline.results import retries
from pipeline.results.open_run import as_json, plan_for
from pipeline.results.verdicts import (
    DIGEST,
    Judgement,
    Mask,
    Results,
    crashed_rows,
)
from pipeline.storage.run import Run
from pipeline.storage.successor import Successor
from stages.base import CRASHED, GlobalStage, ModelConfig, Stage
from stages.download import DownloadStage
from stages.filter import FilterStage, with_kept_sentences
from stages.review import revised
from stages.schema import POOL

__all__ = ["Worker"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Due:
    """The rows of a shard that a stage has still to measure; n is the rows of the shard.

    Attributes:
        name: The stage.
        shard: The shard.
        uids: The uids of the n rows.
        todo: (n,) rows to measure.
        measured: (n,) rows that are measured already.
        old: The committed file of the shard; None if there is none.
        before: The verdicts of the stages before it; None for download.
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
        """The indices of the rows to measure."""
        return np.flatnonzero(self.todo)

    @property
    def is_open(self) -> bool:
        """Whether a file is to be committed."""
        return self.old is None or bool(self.todo.any())


class Worker:
    """Does the stages of a manifest on shards; the models of the last stage stay loaded.

    Every method is idempotent: the name of the file that it commits follows from its arguments,
    and the content from its inputs. So a worker that survives its driver does no harm.

    Args:
        manifest: The manifest of the run.
        threads: Threads that numerical libraries may use; None for their own default.
    """

    def __init__(self, manifest: Manifest, threads: int | None = 1) -> None:
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            if threads is not None:
                os.environ[variable] = str(threads)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self.run = Run(manifest.run, manifest.branch)
        self.plan = plan_for(self.run, manifest)
        self.results = Results(self.run, self.plan)
        self._loaded: tuple[str, Stage[Any]] | None = None
        self._meter = Meter(manifest.name)
        logs.configure()

    def ready(self) -> int:
        """Return the process id, once the worker has started."""
        return os.getpid()

    def work(self, name: str, shard: str, retry: Sequence[str] = ()) -> dict[str, Any]:
        """Do what a stage, or an export, has left to do on a shard.

        Args:
            name: The stage.
            shard: The shard, or a task of a `PartitionedSummary`.
            retry: Errors of download whose rows are downloaded again.

        Returns:
            shard, rows (newly done), reasons, seconds, cpu_seconds, device; for a stage also
            stage_seconds, which the stage itself took; for download bytes; for the counting of an
            export images.
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
            return self._report(name, shard, done, started, began)

    def load(self, name: str) -> None:
        """Load a stage, without any row."""
        self._stage(name)

    def due(self, name: str, shard: str, retry: Sequence[str] = ()) -> list[int]:
        """The indices of the rows of a shard that a stage has still to measure."""
        rows: list[int] = self._due(name, shard, retry).rows.tolist()
        return rows

    def measure(self, name: str, shard: str, retry: Sequence[str], rows: list[int]) -> pa.Table:
        """Measure some of the rows of `due`, without committing anything."""
        due = self._due(name, shard, retry)
        return self._annotate(name, self._given(due, np.array(rows, np.int64)))

    def commit(
        self, name: str, shard: str, retry: Sequence[str], spans: list[list[int]], *parts: pa.Table
    ) -> dict[str, Any]:
        """Commit the results of `measure` for a shard; due rows that are in no part crash.

        Args:
            name: The stage.
            shard: The shard.
            retry: As for `work`.
            spans: The rows of each part.
            parts: The results of `measure` for them.
        """
        started, began = time.perf_counter(), time.process_time()
        with logs.log_context(run=self.run.root, stage=name, shard=shard):
            due = self._due(name, shard, retry)
            rows = [np.array(span, np.int64) for span in spans]
            done = self._commit_parts(due, list(zip(rows, parts, strict=True)))
            return self._report(name, shard, done, started, began)

    def _report(
        self, name: str, shard: str, done: dict[str, Any], started: float, began: float
    ) -> dict[str, Any]:
        """Log and count a finished shard, and return its result with the time it took.

        Args:
            name: The stage.
            shard: The shard.
            done: What was done.
            started: The start by `time.perf_counter`.
            began: The start by `time.process_time`.
        """
        result = {
            **done,
            "shard": shard,
            "device": self._device(name),
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - began,
        }
        logged = {key: result[key] for key in ("rows", "bytes", "reasons") if key in result}
        logs.log_event("shard done", seconds=round(result["seconds"], 3), **logged)
        config = self.plan.manifest.stages.get(name)
        gpus = 0.0 if config is None else config.resources.gpus
        # The rows of a summary were counted when they were measured.
        self._meter.count(name, result | {"rows": 0} if ":" in shard else result, gpus)
        return result

    def summarize(self, name: str, shards: list[str]) -> dict[str, Any]:
        """Summarise the whole pool for a global stage, and commit a file for each shard."""
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
        commit_summary(self.results, name, masks, summary)
        return {
            "rows": expected,
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - began,
        }

    def _device(self, name: str) -> str:
        """The name of the GPU that a stage runs on here, or `cpu`."""
        if name in self.plan.exports or not self.plan.stage(name).config.resources.gpus:
            return "cpu"
        import torch

        return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else "cpu"

    def _stage(self, name: str) -> Stage[Any]:
        """The stage, loaded; an earlier stage is dropped first, to free its memory."""
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = None
            stage = self.plan.stage(name)
            self._check_model(stage)
            stage.load()
            self._loaded = (name, stage)
        return self._loaded[1]

    def _check_model(self, stage: Stage[Any]) -> None:
        """Check that the model is the one that the run was planned with.

        Raises:
            StageUnavailableError: It is another, or it cannot be reached.
        """
        recorded = self.plan.recorded.get("measurement", {}).get(stage.name)
        if recorded is None or not isinstance(stage.config, ModelConfig):
            return
        try:
            measurement = as_json(stage.config.measurement())
        except FileNotFoundError as error:
            raise StageUnavailableError(str(error)) from None
        if measurement != recorded:
            keys = sorted(key for key in recorded if measurement.get(key) != recorded[key])
            changes = ", ".join(f"{k}: {recorded[k]}, now {measurement.get(k)}" for k in keys)
            raise StageUnavailableError(
                f"the model has changed since the command began ({changes}). Give the same "
                "command again to measure all rows with the new one"
            )

    def _due(self, name: str, shard: str, retry: Sequence[str] = ()) -> _Due:
        file, folder = f"{shard}.parquet", self.plan.folder(name)
        is_there = self.run.exists(*folder, file)
        old: pa.Table | None
        if name == DownloadStage.name:
            uids = self.run.read_table("list", file, columns=["uid"])["uid"]
            todo = np.ones(len(uids), bool)
            old = self.run.read_table(*folder, file) if is_there else None
            if old is None:
                retries.forget_shard(self.run, shard)
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
        """Measure the rows that are due, in groups; rows that raise an error are in no group."""
        self._stage(due.name)  # an error of loading is not the fault of a row
        given = self._given(due, due.rows)

        def measure(rows: npt.NDArray[np.int64]) -> pa.Table:
            is_whole = len(rows) == given.num_rows
            return self._annotate(due.name, given if is_whole else given.take(rows))

        parts = measure_by_row(
            np.arange(len(due.rows)),
            measure,
            lambda row: f"{due.name}: uid {given['uid'][row]} of shard {due.shard}",
        )
        return [(due.rows[rows], part) for rows, part in parts]

    def _commit_parts(
        self, due: _Due, parts: list[tuple[npt.NDArray[np.int64], pa.Table]] | None
    ) -> dict[str, Any]:
        """Commit the measurements of some rows; due rows in no part get the reason `crashed`."""
        if parts is None:
            return self._commit(due, None)
        rows = np.concatenate([np.zeros(0, np.int64), *(span for span, _ in parts)])
        positions = {row: index for index, row in enumerate(rows.tolist())}
        index = np.array([positions.get(row, -1) for row in due.rows.tolist()], np.int64)
        crashed = index < 0
        empty = self.plan.stage(due.name).writes.empty_table()
        table = pa.concat_tables([empty, *(part for _, part in parts)])
        if crashed.any() or len(parts) > 1:
            chosen: Any = pa.array(index, mask=crashed)
            table = table.combine_chunks().take(chosen)
        return self._commit(due, table, crashed)

    def _given(self, due: _Due, rows: npt.NDArray[np.int64]) -> pa.Table:
        """Read the columns that a stage takes, for some rows of a shard."""
        if due.before is None:
            return self.run.read_table("list", f"{due.shard}.parquet").take(rows)
        mask = np.zeros(len(due.todo), bool)
        mask[rows] = True
        given = self._gather(due.name, due.shard, due.before, mask)
        if due.old is not None:
            for column in self.plan.stage(due.name).remembers:
                given = given.append_column(column, due.old[column].filter(pa.array(mask)))
        return given

    def _annotate(self, name: str, given: pa.Table) -> pa.Table:
        """Measure some rows."""
        stage = self._stage(name)
        if not given.num_rows:
            return stage.writes.empty_table()
        return _checked(stage, given, stage.annotate(given))

    def _commit(
        self, due: _Due, measured: pa.Table | None, crashed: Mask | None = None
    ) -> dict[str, Any]:
        """Write the file of a shard with the measurements of the rows that were due.

        Args:
            due: The rows that were due.
            measured: A row for each of them, nulls where it crashed; None if none was due.
            crashed: Which of them crash; None for none.
        """
        if measured is None:
            return {"rows": 0, "reasons": {}}
        crashed = np.zeros(measured.num_rows, bool) if crashed is None else crashed
        write = self._write_pool if due.name == DownloadStage.name else self._write_annotations
        done = write(due, measured, crashed)
        if number := int(crashed.sum()):
            done["reasons"][CRASHED] = number
        return {"rows": measured.num_rows, **done}

    def _write_pool(self, due: _Due, measured: pa.Table, crashed: Mask) -> dict[str, Any]:
        """Write the shard of the pool; arguments as of `_commit`."""
        file = f"{due.shard}.parquet"
        rows = self.run.read_table("list", file).filter(pa.array(due.todo))
        columns = {name: measured[name] for name in measured.column_names}
        if crashed.any():
            columns |= {name: rows[name] for name in columns if name in rows.column_names}
            for name, value in (("status", "failed_to_resize"), ("error", CRASHED)):
                columns[name] = pc.if_else(pa.array(crashed), value, columns[name])
        new = pa.table({"uid": rows["uid"], **columns}).select(POOL.names).cast(POOL)
        whole = new if due.old is None else retries.replace_rows(due.old, due.rows, new)
        self.run.write_table(whole, "pool", file)
        reasons = _tally(self.plan.stage(due.name).judge(measured.filter(pa.array(~crashed))))
        return {"bytes": pc.sum(measured["original_bytes"]).as_py() or 0, "reasons": reasons}

    def _write_annotations(self, due: _Due, measured: pa.Table, crashed: Mask) -> dict[str, Any]:
        """Write the shard of a stage's annotations; arguments as of `_commit`."""
        stage, todo = self.plan.stage(due.name), due.todo
        table = spread(todo, measured)
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
        judged = measured.add_column(0, "uid", due.uids.filter(pa.array(todo)))
        judged = judged.filter(pa.array(~crashed))
        return {"reasons": _tally(stage.judge(judged)), "notices": stage.notices(judged)}

    def _judged(self, name: str, shard: str) -> Judgement:
        """The verdicts of the stages before a stage, all of which must have measured their rows.

        Raises:
            IncompleteError: An earlier stage has not measured a row that reached it.
        """
        judgement = self.results.judge(shard, self.plan.judges(name))
        if not judgement.is_complete:
            raise IncompleteError(
                f"{name}: shard {shard} has rows that an earlier stage has not measured; run "
                "`capfilt run MANIFEST`, which measures them"
            )
        return judgement

    def _gather(
        self, name: str, shard: str, before: Judgement, rows: Mask, without: Sequence[str] = ()
    ) -> pa.Table:
        """Read the columns that a stage takes for some rows, from the files of earlier stages.

        Args:
            name: The stage.
            shard: The shard.
            before: The verdicts of the stages before it.
            rows: (n,) the rows to read.
            without: Columns to leave out.
        """
        origins = self.plan.inputs(name)
        mask = pa.array(rows)
        columns: dict[str, Any] = {}
        for origin in dict.fromkeys(origins.values()):
            names = [c for c, o in origins.items() if o == origin and c not in ("uid", *without)]
            if not names:
                continue
            if origin == DownloadStage.name:
                table = self.run.read_table("pool", f"{shard}.parquet", columns=names)
            else:
                annotations = before.tables.get(origin)
                if annotations is None:  # an unfiltered export takes scores of the filter
                    annotations = self.results.annotated(origin, shard)
                if annotations is None:
                    raise IncompleteError(f"{name}: shard {shard} of {origin} is not measured yet")
                if bulky := [c for c in names if c not in annotations.column_names]:
                    path = (*self.plan.folder(origin), f"{shard}.parquet")
                    large = self.run.read_table(*path, columns=bulky)
                    for column in bulky:
                        annotations = annotations.append_column(column, large[column])
                table = annotations.select(names)
            table = table.filter(mask)
            columns.update({column: table[column] for column in names})
        return pa.table({"uid": before.uids.filter(mask), **columns})

    def _export(self, name: str, shard: str) -> dict[str, Any]:
        """Count the images of a shard of the pool, or write the shards that begin in it."""
        stage = self.plan.export(name)
        folder = Successor(self.run, self.plan.folder(name)).parts
        if not self.run.exists(*folder, export_writer.LAYOUT):
            rows, keeps = self._kept(name, shard, without=("image",))
            return {"rows": rows.num_rows, "reasons": {}, "images": stage.images(rows, keeps)}
        if stage.config.embeddings:
            rows, keeps = self._kept(name, shard, without=("image",))
            uids = rows["uid"].filter(pa.array(stage.has_pair(rows, keeps)))
            embeddings_writer.write(self.results, folder, shard, uids)
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
        """Read what an export takes of the rows that no stage rejected, and the texts it keeps."""
        judgement = self._judged(name, shard)
        rows = self._gather(name, shard, judgement, judgement.live, without)
        scores = judgement.tables.get(FilterStage.name)
        if scores is None:
            return revised(rows), None
        keeps = self.results.kept_texts(scores.filter(pa.array(judgement.live)))
        return revised(with_kept_sentences(rows, keeps)), keeps


def _checked(stage: Stage[Any], rows: pa.Table, annotations: pa.Table) -> pa.Table:
    """Check the result of `annotate`, and return it.

    Raises:
        ContractError: It has other rows or columns than the stage promises.
    """
    if annotations.num_rows != rows.num_rows:
        raise ContractError(
            f"{stage.name}: annotate gave {annotations.num_rows} rows for {rows.num_rows}; a stage "
            "measures every row it is given"
        )
    if not annotations.schema.equals(stage.writes):
        raise ContractError(
            f"{stage.name}: annotate gave the columns {annotations.schema}, not {stage.writes}"
        )
    return annotations


def _choose(mask: Any, first: Any, second: Any) -> Any:
    """Take values of `first` where mask is true, and of `second` elsewhere; any type."""
    both = pa.chunked_array([*first.chunks, *second.chunks], type=first.type)
    here = np.arange(len(mask))
    index: Any = np.where(mask.to_numpy(zero_copy_only=False), here, here + len(mask))
    return both.take(pa.array(index)).combine_chunks()


def _tally(values: Any) -> dict[str, int]:
    """Count how often each value occurs, nulls left out."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    return {e["values"]: e["counts"] for e in values.drop_null().value_counts().to_pylist()}
