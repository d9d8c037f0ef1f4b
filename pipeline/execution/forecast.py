"""What the stages of a manifest take for a long list, extrapolated from a run of a sample."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

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
from stages.base import GlobalStage
from stages.download import DownloadStage

__all__ = ["Step", "forecast", "forecast_table", "notes", "parse_rows", "parse_workers"]

MAY_DIFFER = ("source", "limit", "shard_size", "seed")
"""Settings in which a run of a sample may differ from the manifest."""

NOT_MEASURED = "the run has not measured it"

SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9}


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one stage takes.

    Attributes:
        name: The stage, or `STAGE summary` for its decision over the whole pool in one process.
        missing: Why it is not known; all that follows is 0 then.
        rows: Rows that reach it; of an export, images that it writes.
        device: What the run measured it on: cpu, or the name of a GPU.
        workers: Workers at once.
        seconds: From its start to its end.
        worker_seconds: Seconds of all workers together.
        error: Two standard errors of `worker_seconds`, from how the shards of the run differ; null
            for fewer than 3 shards.
        received: Bytes that it downloads.
        written: Bytes that it writes.
        measured: Rows that the run measured it on.
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
        ValueError: It is no such number.
    """
    match = re.fullmatch(r"([0-9][0-9_,]*(?:\.[0-9]+)?)\s*([KMBG]?)", text.strip().upper())
    rows = 0
    if match is not None and len(text) < 30:
        rows = round(float(match[1].replace(",", "").replace("_", "")) * SUFFIXES[match[2]])
    if rows < 1:
        raise ValueError(f"--rows must be a number from 1, such as 14M or 200000, got {text!r}")
    return rows


def parse_workers(given: Sequence[str], plan: Plan) -> dict[str, int]:
    """Read `STAGE=N`, or `N` for every stage; a later one wins.

    Raises:
        ValueError: The manifest has no such stage, or N is not a whole number from 1.
    """
    names = (*plan.names, *plan.exports)
    workers: dict[str, int] = {}
    for text in given:
        stage, _, number = text.rpartition("=")
        if stage and stage not in names:
            raise ValueError(f"--workers {text}: no stage {stage!r}{did_you_mean(stage, names)}")
        if not re.fullmatch(r"0*[1-9][0-9]{0,8}", number):
            raise ValueError(f"--workers {text}: write STAGE=N or N, N a whole number from 1")
        workers |= dict.fromkeys([stage] if stage else names, int(number))
    return workers


def forecast(plan: Plan, rows: int, sample: Results, workers: Mapping[str, int]) -> Iterator[Step]:
    """Extrapolate what a run measured to a longer list, stage by stage.

    Time and bytes grow with the rows that reach a stage. Each stage keeps the share of rows that
    it kept in the run; one that the run did not measure keeps all.

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
            record = run.find_record(ExportStateRecord, *folder, "_export.json", damaged_ok=True)
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
    """Why the run of a sample has not measured the stage that a manifest has, if it has not."""
    if name not in (*sample.names, *sample.exports):
        return "the run has no such stage"
    own, other = (
        one.export(name).config if name in one.exports else one.manifest.stages[name]
        for one in (plan, sample)
    )
    for field in dataclasses.fields(own):
        wanted, given = (
            # A model that the manifest trains lies in the folder of its run.
            value.removeprefix(f"{one.manifest.models}/") if isinstance(value, str) else value
            for one, value in (
                (plan, getattr(own, field.name)),
                (sample, getattr(other, field.name)),
            )
        )
        if wanted != given and field.name not in MAY_DIFFER:
            return f"the run has {field.name} {given!r}, the manifest {wanted!r}"
    return None


def _summary(sample: Results, name: str, number: float, rows: int) -> Step:
    """The decision of a global stage over the `number` rows that reach it, of `rows` listed."""
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
    """What the numbers leave out and depend on, a line each."""
    for step in steps:
        if step.missing is not None:
            yield f"not measured: {step.name}: {step.missing}"
    names = [name for name in plan.names if isinstance(plan.stage(name), GlobalStage)]
    if names:
        yield f"the share kept by {' and '.join(names)} depends on the size of the list"
    yield "left out: reading the list, starting workers, training, evaluation, the report"
    if plan.manifest.rounds > 1:
        yield "left out: the rounds after the first"


def forecast_table(steps: Sequence[Step]) -> Table:
    """The measured steps for the terminal, with their sum."""
    table = Table("stage", "on")
    for name in ("rows", "time", "worker-hours", "received", "written", "measured on"):
        table.add_column(name, justify="right")
    for step in steps:
        if step.missing is None:
            error = "" if step.error is None else f" ± {step.error / 3600:,.2f}"
            table.add_row(
                step.name,
                cell(f"{step.workers} x {step.device}"),
                f"{step.rows:,.0f}",
                _time(step.seconds),
                f"{step.worker_seconds / 3600:,.2f}{error}",
                _bytes(step.received) if step.received else "-",
                _bytes(step.written) if step.written else "-",
                f"{step.measured:,}",
            )
    written = _bytes(sum(step.written for step in steps))
    table.add_row("all", "", "", _time(sum(s.seconds for s in steps)), "", "", written, "")
    return table


def _time(seconds: float) -> str:
    return _scaled(seconds, ((86400 * 2, "d"), (3600, "h"), (60, "min"), (1, "s")))


def _bytes(number: float) -> str:
    return _scaled(number, ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")))


def _scaled(value: float, units: Sequence[tuple[float, str]]) -> str:
    size, unit = next((one for one in units if value >= one[0]), units[-1])
    return f"{value / size:,.1f} {unit}"
