"""The forecast of `capfilt plan`: a run of a sample, extrapolated to a long list."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from models.errors import InputError
from pipeline.execution.map_reduce import PART_ROWS
from pipeline.manifest.plan import Plan
from pipeline.manifest.validation import did_you_mean
from pipeline.results.funnel import funnel
from pipeline.results.tables import cell
from pipeline.results.verdicts import Results
from pipeline.storage.records import (
    ExportRecord,
    ExportStateRecord,
    StageRecord,
    SummaryRecord,
)
from pipeline.storage.successor import standing
from stages.base import GlobalStage
from stages.download import DownloadStage

__all__ = ["Step", "forecast", "forecast_table", "notes", "parse_rows", "parse_workers"]

MAY_DIFFER = ("source", "limit", "shard_size", "seed")
"""Settings that may differ between the run of a sample and the manifest."""

NOT_MEASURED = "the run has not measured it"

SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9}


@dataclass(frozen=True, kw_only=True)
class Step:
    """The forecast for one stage.

    Attributes:
        name: The stage, or `STAGE summary` for its summary in one process.
        missing: Why there is no forecast; the other values are 0 then.
        rows: Rows that reach the stage; for an export, images that it writes.
        device: The device of the run: cpu, or the name of a GPU.
        workers: Workers at a time.
        seconds: Seconds from start to end.
        worker_seconds: Seconds of all workers together.
        error: Two standard errors of `worker_seconds`, from the differences between the shards of
            the run; None for fewer than 3 shards.
        received: Bytes downloaded.
        written: Bytes written.
        measured: Rows that the run measured the stage on.
    """

    name: str
    missing: str | None = None
    rows: float = 0.0
    device: str = ""
    workers: int = 1
    seconds: float = 0.0
    worker_seconds: float = 0.0
    error: float | None = None
    received: float = 0.0
    written: float = 0.0
    measured: int = 0


def parse_rows(text: str) -> int:
    """Read a number of rows such as 14M, 5B or 2500.

    Raises:
        InputError: It is no such number.
    """
    match = re.fullmatch(r"([0-9][0-9_,]*(?:\.[0-9]+)?)\s*([KMBG]?)", text.strip().upper())
    rows = 0
    if match is not None and len(text) < 30:
        rows = round(float(match[1].replace(",", "").replace("_", "")) * SUFFIXES[match[2]])
    if rows < 1:
        raise InputError(f"--rows must be a number from 1, such as 14M or 200000, got {text!r}")
    return rows


def parse_workers(given: Sequence[str], plan: Plan) -> dict[str, int]:
    """Read `STAGE=N`, or `N` for every stage; a later one wins.

    Raises:
        InputError: The manifest has no such stage, or N is not a whole number from 1.
    """
    names = (*plan.names, *plan.exports)
    workers: dict[str, int] = {}
    for text in given:
        stage, _, number = text.rpartition("=")
        if stage and stage not in names:
            raise InputError(f"--workers {text}: no stage {stage!r}{did_you_mean(stage, names)}")
        if not re.fullmatch(r"0*[1-9][0-9]{0,8}", number):
            raise InputError(f"--workers {text}: write STAGE=N or N, N a whole number from 1")
        workers |= dict.fromkeys([stage] if stage else names, int(number))
    return workers


def forecast(plan: Plan, rows: int, sample: Results, workers: Mapping[str, int]) -> Iterator[Step]:
    """Extrapolate the measurements of a run to a longer list, stage by stage.

    Time and bytes grow with the rows that reach a stage. Each stage keeps the share of rows that it
    kept in the run; a stage that the run did not measure keeps all.

    Args:
        plan: The plan of the manifest.
        rows: Rows of the whole list.
        sample: The results of a run of a sample of the list.
        workers: Workers of a stage, by its name; 1 for stages without an entry.
    """
    run, measured = sample.run, sample.plan
    counts = {stage["name"]: stage for stage in funnel(sample)["stages"]}
    number = float(rows)
    for name in (*plan.names, *plan.exports):
        if (why := _difference(plan, measured, name)) is not None:
            yield Step(name=name, missing=why)
            continue
        is_export, folder, stage = name in plan.exports, measured.folder(name), counts.get(name, {})
        record: StageRecord | ExportStateRecord | None
        given = stage.get("rows", 0)
        if not is_export:
            record = run.find_record(StageRecord, *folder, "_stage.json", damaged_ok=True)
        else:
            state = (*standing(run, *folder), "_export.json")
            record = run.find_record(ExportStateRecord, *state, damaged_ok=True)
            export = run.find_record(ExportRecord, *folder, "manifest.json", damaged_ok=True)
            given = export.images if export else 0
            number = rows * given / max(counts[DownloadStage.name]["rows"], 1)
        work = record.work if record else None
        if stage.get("state", "done") != "done" or not given or not work or not work.rows:
            yield Step(name=name, missing=NOT_MEASURED)
            continue
        each = work.seconds / work.rows
        variance = max(work.squares / work.rows - each**2, 0.0)
        yield Step(
            name=name,
            rows=number,
            device=work.device,
            workers=workers.get(name, 1),
            seconds=number * each / workers.get(name, 1),
            worker_seconds=number * each,
            error=2 * number * math.sqrt(variance / work.shards) if work.shards > 2 else None,
            received=number * work.bytes / work.rows,
            written=number * run.fs.du(run.at(*folder)) / given,
            measured=work.rows,
        )
        if not is_export:
            if isinstance(measured.stage(name), GlobalStage):
                yield _summary(sample, name, number, rows)
            number *= stage["kept"] / given


def _difference(plan: Plan, sample: Plan, name: str) -> str | None:
    """Why a run of a sample does not measure a stage of the manifest; None if it does."""
    if name not in (*sample.names, *sample.exports):
        return "the run has no such stage"
    own, other = (
        one.export(name).config if name in one.exports else one.manifest.stages[name]
        for one in (plan, sample)
    )
    for field in dataclasses.fields(own):
        expected, actual = (
            # A model that the manifest trains lies in the folder of its run.
            value.removeprefix(f"{one.manifest.models}/") if isinstance(value, str) else value
            for one, value in (
                (plan, getattr(own, field.name)),
                (sample, getattr(other, field.name)),
            )
        )
        if expected != actual and field.name not in MAY_DIFFER:
            of_run, of_manifest = ("none" if v is None else repr(v) for v in (actual, expected))
            return f"the run has {field.name} {of_run}, the manifest {of_manifest}"
    return None


def _summary(sample: Results, name: str, number: float, rows: int) -> Step:
    """The forecast for the summary of a global stage.

    Args:
        sample: The results of the run of a sample.
        name: The stage.
        number: Rows that reach the stage.
        rows: Rows of the list.
    """
    stage: Any = sample.plan.stage(name)
    path = (*sample.plan.summary_folder(name), "_summary.json")
    record = sample.run.find_record(SummaryRecord, *path, damaged_ok=True) or SummaryRecord()
    name = f"{name} summary"
    if record.parts is not None or (stage.in_parts and rows > PART_ROWS):
        why = f"workers share it for lists of more than {PART_ROWS:,} rows"
        return Step(name=name, missing=why)
    if not record.rows:
        return Step(name=name, missing=NOT_MEASURED)
    seconds = number * record.seconds / record.rows
    return Step(
        name=name,
        rows=number,
        device="cpu",
        seconds=seconds,
        worker_seconds=seconds,
        measured=record.rows,
    )


def notes(plan: Plan, steps: Sequence[Step]) -> Iterator[str]:
    """Say what the forecast leaves out and depends on, a line each."""
    for step in steps:
        if step.missing is not None:
            yield f"not measured: {step.name}: {step.missing}"
    if measured := [f"{s.name} {s.measured:,}" for s in steps if s.missing is None]:
        yield f"measured on rows: {', '.join(measured)}"
    names = [name for name in plan.names if isinstance(plan.stage(name), GlobalStage)]
    if names:
        yield f"the share kept by {' and '.join(names)} depends on the size of the list"
    yield "left out: reading the list, starting workers, training, evaluation, the report"
    if plan.manifest.rounds > 1:
        yield "left out: the rounds after the first"


def forecast_table(steps: Sequence[Step]) -> Table:
    """The table of the measured steps, with their sum; 80 characters suffice for 100M rows."""
    table = Table(show_edge=False, pad_edge=False)
    for name in ("stage", "on"):
        table.add_column(name, overflow="fold")
    for name in ("rows", "time", "worker hours", "received", "written"):
        table.add_column(name, justify="right", overflow="fold")
    for step in steps:
        if step.missing is None:
            error = "" if step.error is None else f" ± {_hours(step.error)}"
            table.add_row(
                step.name,
                cell(f"{step.workers} x {step.device}"),
                f"{step.rows:,.0f}",
                _time(step.seconds),
                f"{_hours(step.worker_seconds)}{error}",
                _bytes(step.received) if step.received else "-",
                _bytes(step.written) if step.written else "-",
            )
    written = _bytes(sum(step.written for step in steps))
    table.add_row("all", "", "", _time(sum(s.seconds for s in steps)), "", "", written)
    for column in table.columns:  # lines break between words
        words = (word for one in (column.header, *column.cells) for word in str(one).split())
        column.min_width = max(map(len, words))
    return table


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.2f}" if hours < 100 else f"{hours:,.0f}"


def _time(seconds: float) -> str:
    return _scaled(seconds, ((86400 * 2, "d"), (3600, "h"), (60, "min"), (1, "s")))


def _bytes(number: float) -> str:
    return _scaled(number, ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")))


def _scaled(value: float, units: Sequence[tuple[float, str]]) -> str:
    size, unit = next((one for one in units if value >= one[0]), units[-1])
    return f"{value / size:,.1f} {unit}"
