"""Opening a run that exists: its plan, and its results."""

from __future__ import annotations

import glob
import os

from pipeline.manifest.former import upgraded
from pipeline.manifest.manifest import REVIEWS, Manifest
from pipeline.manifest.plan import Plan
from pipeline.manifest.validation import did_you_mean
from pipeline.results.verdicts import Results
from pipeline.storage.records import RunRecord
from pipeline.storage.run import Run

__all__ = ["open_plan", "open_results"]


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
    recorded = {"settings": record.settings, "measurement": record.measurement}
    path, has_reviews = run.url("run.json"), run.exists(REVIEWS)
    return Plan(Manifest.parse(content, path, run.branch, has_reviews=has_reviews), recorded)


def _other_runs(run: Run) -> str:
    """A hint for the message: runs inside the folder, or a run beside it with a similar name."""
    if not run.is_local:
        return ""
    inside = [os.path.dirname(path) for path in glob.glob(f"{glob.escape(run.root)}/*/run.json")]
    if inside:
        return f", but in it {', '.join(sorted(inside)[:5])}"
    parent = os.path.dirname(run.root)
    beside = [os.path.dirname(p) for p in glob.glob(os.path.join(parent, "*", "run.json"))]
    return did_you_mean(run.root, beside, else_list=False)
