"""Opens a run that exists: its plan and its results."""

from __future__ import annotations

import glob
import json
import os
from typing import Any

from pipeline.manifest.manifest import REVIEWS, Manifest
from pipeline.manifest.plan import Plan
from pipeline.manifest.upgrade import upgraded
from pipeline.manifest.validation import did_you_mean
from pipeline.results.verdicts import Results
from pipeline.storage.records import RunRecord
from pipeline.storage.run import Run

__all__ = ["as_json", "open_plan", "open_results", "plan_for"]


def open_results(run: Run) -> Results:
    """Open the results of a run, with the plan of its last command.

    Raises:
        FileNotFoundError: The folder is no run.
    """
    return Results(run, open_plan(run))


def open_plan(run: Run) -> Plan:
    """Read the plan of the last command on a run; its models need not be there.

    Raises:
        FileNotFoundError: The folder is no run.
    """
    if not run.exists("run.json"):
        raise FileNotFoundError(
            f"{run.root}: no run there"
            + (_other_runs(run) or f"; `capfilt run MANIFEST --run {run.root}` makes one")
        )
    record = run.read_record(RunRecord, "run.json")
    content = {**upgraded(record.manifest), "run": run.root}
    recorded = {
        "settings": record.settings,
        "measurement": record.measurement,
        "decided": _decided(record),
    }
    path, has_reviews = run.url("run.json"), run.exists(REVIEWS)
    manifest = Manifest.parse(content, path, run.branch, has_reviews=has_reviews)
    return Plan(manifest, recorded, asks_servers=False)


def plan_for(run: Run, manifest: Manifest) -> Plan:
    """Make the plan of a manifest for a run.

    If a model cannot be reached, for example on a server that is switched off, the measurement that
    the run has recorded is used, provided that the settings of the stage are the same. A
    finished stage therefore no longer needs its model.

    Raises:
        InputError: The run's folder is a file.
    """
    run.check_folder()
    record = run.find_record(RunRecord, "run.json", damaged_ok=True)
    if record is None:
        return Plan(manifest)
    same = [
        name
        for name, config in manifest.stages.items()
        if name in record.measurement and record.settings.get(name) == as_json(config.settings())
    ]
    recorded = {"measurement": record.measurement, "settings": record.settings}
    told = {key: {n: of[n] for n in same} for key, of in recorded.items()}
    return Plan(manifest, {**told, "decided": _decided(record)})


def _decided(record: RunRecord) -> dict[str, dict[str, Any]]:
    """What the digests of decisions of a run hold of each stage."""
    return record.settings if record.decided is None else record.decided


def as_json(value: Any) -> Any:
    """Convert a value to what it is after being written to JSON and read back."""
    return json.loads(json.dumps(value, default=str))


def _other_runs(run: Run) -> str:
    """A hint for the message: runs inside the folder, or a run with a similar name."""
    if not run.is_local:
        return ""
    inside = [os.path.dirname(path) for path in glob.glob(f"{glob.escape(run.root)}/*/run.json")]
    if inside:
        return f", but in it {', '.join(sorted(inside)[:5])}"
    parent = os.path.dirname(run.root)
    patterns = (os.path.join(glob.escape(parent), "*", "run.json"), "runs/*/run.json")
    known = [os.path.dirname(path) for pattern in patterns for path in glob.glob(pattern)]
    return did_you_mean(run.root, known, else_list=False)
