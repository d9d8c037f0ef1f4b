"""The funnel of a run: each stage with its state, its counts and its seconds."""

from __future__ import annotations

import functools
from typing import Any

from pipeline.results import counts, retries
from pipeline.results.verdicts import Results
from pipeline.storage import lock
from pipeline.storage.records import ExportRecord, ExportStateRecord, ListRecord, StageRecord
from pipeline.storage.run import Run
from pipeline.storage.successor import standing
from stages.download import DownloadStage
from stages.export import ExportStage

__all__ = ["funnel", "holder"]


def holder(run: Run) -> dict[str, Any] | None:
    """The process that works on a run: host, pid, since (seconds since 1970); None without one."""
    try:
        content = lock.parsed(run.read("run.lock"))
        pid, since = int(content["pid"]), int(content["since"])
        result: dict[str, Any] = {"host": str(content["host"])[:40], "pid": pid, "since": since}
        if str(content.get("command", "")).isalpha():
            result["command"] = str(content["command"])[:20]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return None if lock.is_dead(content) else result


def funnel(results: Results, *, afresh: bool = False) -> dict[str, Any]:
    """Count the rows of each stage of a run, and give its state and seconds.

    Args:
        results: The results of the run.
        afresh: Whether shards that have not changed since they were counted are counted again.

    Returns:
        run, name, and stages, each with name, state, rows, kept, not_measured, reasons, seconds.
        A state is `waiting` (nothing measured), `partial` or `done`. For each stage
        `rows = kept + sum(reasons) + not_measured`, and its rows are those that the stage before
        kept or has not measured. Export adds `pairs`, the exported texts by source. Once there is
        a list, `list` holds its rows and repeats, and `notices` what the readers of the list and
        of human pairs have to say, a line each.
    """
    run, plan = results.run, results.plan
    listed = run.find_record(ListRecord, "list", "_list.json")
    ready = _ready(results)
    count = results.count if afresh else functools.partial(counts.count, results)
    totals = count(ready, run.shards("pool"))
    for name in plan.names[len(ready) :]:
        rows = totals[ready[-1]]["kept"] + totals[ready[-1]]["not_measured"] if ready else 0
        totals[name] = {"rows": rows, "kept": 0, "not_measured": rows, "reasons": {}}
    stages = []
    for name, total in totals.items():
        if name == DownloadStage.name and listed:
            missing = max(listed.rows - total["rows"], 0)  # shards may have been added
            total["rows"] += missing
            total["not_measured"] += missing
        measured = total["rows"] - total["not_measured"]
        record = None
        if name in ready:
            path = (*plan.folder(name), "_stage.json")
            record = run.find_record(StageRecord, *path, damaged_ok=True)
        seconds = record.seconds if record else 0.0
        if total["not_measured"] == 0 and seconds:
            state = "done"
        else:
            state = "partial" if measured else "waiting"
        stages.append({"name": name, "state": state, **total, "seconds": seconds})
    result: dict[str, Any] = {"run": run.root, "name": plan.manifest.name, "stages": stages}
    if listed:
        result["list"] = {"rows": listed.rows + listed.repeats, "repeats": listed.repeats}
        result["notices"] = listed.notices
    if ExportStage.name in plan.manifest.stages:
        row, notices = _export(results, ready, stages[-1] if stages else None)
        stages.append(row)
        result["notices"] = result.get("notices", []) + notices
    return result


def _ready(results: Results) -> list[str]:
    """The stages up to the first whose model is still to be trained."""
    ready = []
    for name in results.plan.names:
        try:
            results.plan.decision(name)
        except FileNotFoundError:
            break
        ready.append(name)
    return ready


def _export(
    results: Results, ready: list[str], last: dict[str, Any] | None
) -> tuple[dict[str, Any], list[str]]:
    """The row of export, and its notices.

    Args:
        results: The results of the run.
        ready: The stages whose models are there.
        last: The row of the last stage before export, if there is one.
    """
    run, plan = results.run, results.plan
    rows = last["kept"] + last["not_measured"] if last else 0
    row: dict[str, Any] = {
        "name": ExportStage.name,
        "state": "waiting",
        "rows": rows,
        "kept": 0,
        "not_measured": rows,
        "reasons": {},
        "seconds": 0.0,
    }
    if len(ready) < len(plan.names):
        return row, []
    export = run.find_record(ExportRecord, "curated", "manifest.json")
    decision = plan.decision(ExportStage.name)
    if export is None or export.decision != retries.pool_state(run, decision):
        return row, []
    path = (*standing(run, "curated"), "_export.json")
    state = run.find_record(ExportStateRecord, *path, damaged_ok=True)
    row |= {"state": "done", "kept": rows, "not_measured": 0, "pairs": export.pairs}
    row["seconds"] = state.seconds if state else 0.0
    return row, export.notices
