"""The funnel of a run: each stage with its state, its counts and its seconds."""

from __future__ import annotations

import glob
import os
from typing import Any

from pipeline.manifest.manifest import REVIEWS, Manifest
from pipeline.manifest.plan import Plan
from pipeline.manifest.validation import did_you_mean
from pipeline.results import retries
from pipeline.results.verdicts import count
from pipeline.storage import lock
from pipeline.storage.run import Run
from stages.download import DownloadStage
from stages.export import ExportStage

__all__ = ["funnel", "holder", "open_plan"]


def open_plan(run: Run) -> Plan:
    """The plan that a run was last given, wherever its models are.

    Raises:
        FileNotFoundError: The folder is no run.
    """
    if not run.exists("run.json"):
        raise FileNotFoundError(
            f"{run.root}: no run there"
            + (_others(run) or f"; `capfilt run MANIFEST --run {run.root}` makes one")
        )
    record = run.read_json("run.json")
    content = {**record["manifest"], "run": run.root}
    recorded = {what: record.get(what, {}) for what in ("settings", "measurement")}
    path, has_reviews = run.url("run.json"), run.exists(REVIEWS)
    return Plan(Manifest.parse(content, path, run.branch, has_reviews=has_reviews), recorded)


def _others(run: Run) -> str:
    """The runs in the folder of that name, or a run beside it that may be meant."""
    if not run.is_local:
        return ""
    inside = [os.path.dirname(path) for path in glob.glob(f"{glob.escape(run.root)}/*/run.json")]
    if inside:
        return f", but in it {', '.join(sorted(inside)[:5])}"
    parent = os.path.dirname(run.root)
    beside = [os.path.dirname(p) for p in glob.glob(os.path.join(parent, "*", "run.json"))]
    return did_you_mean(run.root, beside, else_list=False)


def holder(run: Run) -> dict[str, Any] | None:
    """Host, process and start (seconds since 1970) of who is at work on a run, if anybody."""
    try:
        found = lock.parsed(run.read("run.lock"))
        pid, since = int(found["pid"]), int(found["since"])
        told = {"host": str(found["host"])[:40], "pid": pid, "since": since}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return None if lock.is_dead(found) else told


def funnel(run: Run, plan: Plan) -> dict[str, Any]:
    """Rows, kept, not measured, reasons, state and seconds of each stage of a run.

    A state is `waiting` (nothing measured), `partial` or `done`. For each stage
    `rows = kept + sum(reasons) + not_measured`; the rows of a stage are those the one before kept
    or has not measured. Export adds `pairs`, the exported texts by source. `notices` are what the
    readers of the list and of human pairs told, a line each.
    """
    listed = run.read_json("list", "_list.json", default={})
    shards = run.shards("pool")
    ready = []
    for name in plan.names:
        try:
            plan.decision(name)
        except FileNotFoundError:  # a model that is still to be trained
            break
        ready.append(name)
    counts = count(run, plan, ready, shards)
    for name in plan.names[len(ready) :]:
        rows = counts[ready[-1]]["kept"] + counts[ready[-1]]["not_measured"] if ready else 0
        counts[name] = {"rows": rows, "kept": 0, "not_measured": rows, "reasons": {}}
    stages = []
    for name, total in counts.items():
        if name == DownloadStage.name and listed:
            missing = max(listed["rows"] - total["rows"], 0)  # shards may have been added
            total["rows"] += missing
            total["not_measured"] += missing
        measured = total["rows"] - total["not_measured"]
        folder = plan.folder(name) if name in ready else None
        seconds = 0.0
        if folder is not None:
            seconds = run.read_mark(*folder, "_stage.json").get("seconds", 0.0)
        if total["not_measured"] == 0 and seconds:
            state = "done"
        else:
            state = "partial" if measured else "waiting"
        stages.append({"name": name, "state": state, **total, "seconds": seconds})
    result: dict[str, Any] = {"run": run.root, "name": plan.manifest.name, "stages": stages}
    if listed:
        result["list"] = {"rows": listed["rows"] + listed["repeats"], "repeats": listed["repeats"]}
        result["notices"] = listed.get("notices", [])
    if ExportStage.name in plan.manifest.stages:
        stages.append(_export(run, plan, ready, stages[-1] if stages else None))
        told = stages[-1].pop("notices", [])
        result["notices"] = result.get("notices", []) + told
    return result


def _export(run: Run, plan: Plan, ready: list[str], last: dict[str, Any] | None) -> dict[str, Any]:
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
        return row
    manifest = run.read_json("curated", "manifest.json", default={})
    if not manifest or manifest["decision"] != retries.pool_state(
        run, plan.decision(ExportStage.name)
    ):
        return row
    seconds = run.read_mark("curated", "_export.json").get("seconds", 0.0)
    return {
        **row,
        "state": "done",
        "kept": rows,
        "not_measured": 0,
        "pairs": manifest["pairs"],
        "notices": manifest.get("notices", []),
        "seconds": seconds,
    }
