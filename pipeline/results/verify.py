"""Verification: whether all files of a run are whole, aligned and account for every row."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.errors import (
    CapfiltError,
    ConservationError,
    DamagedError,
    InputError,
    ManifestError,
    UnreadableError,
)
from pipeline.manifest.manifest import REVIEWS
from pipeline.results import retries
from pipeline.results.faults import caught, fault_of, find, lost, unreadable
from pipeline.results.funnel import funnel
from pipeline.results.open_run import open_results
from pipeline.results.output_faults import export_faults, model_faults
from pipeline.results.verdicts import Results
from pipeline.storage.records import (
    ExportRecord,
    ListRecord,
    ShardedRecord,
    StageRecord,
    SummaryRecord,
)
from pipeline.storage.run import ABLATION, OWN, Run
from stages.base import GlobalStage
from stages.download import DownloadStage
from stages.registry import STAGES

__all__ = ["unchecked", "verify"]

UID = "^[0-9a-f]{32}$"

KNOWN = {*OWN, REVIEWS, ABLATION, "list", "pool", "annotations", "rounds", "chains", "run.lock"}
"""Names of files and folders in the folder of a run."""


def verify(run: Run) -> Iterator[CapfiltError]:
    """Check all files of a run, and yield an error for each fault.

    An error names the file and says what to do. Its class, and so the exit status, is that of the
    error which a command that reads the file ends with.

    These are checked: every byte of list, pool, annotations, exports and trained models against
    the digests that they were written with; schemas; the rows of each shard against those of the
    pool, and those of the pool against the list; that no uid occurs twice; that every stage
    accounts for all rows that reach it. Later rounds of the run are checked with it. A file that
    cannot be read is an error and does not stop the check of the others; neither does a file that
    is not a regular one, which is not opened. Not checked are traces under failures/, files that
    are still `*.partial`, and files that others put into the run's folder.

    Memory holds one shard, the columns of a shard that are judged, and at most 40 bytes for each
    row of the pool.

    Args:
        run: The run.

    Raises:
        FileNotFoundError: The folder is no run.
    """
    seen: set[str] = set()
    for fault in _faults(_TolerantRun(run.root, run.branch)):
        if str(fault) not in seen:
            seen.add(str(fault))
            yield fault


class _TolerantRun(Run):
    """A run in which a folder that cannot be listed counts as empty."""

    def names(self, *parts: str) -> list[str]:
        try:
            return super().names(*parts)
        except OSError:
            if self.is_local:  # `_closed_folders` reports it
                return []
            raise


def _faults(run: Run) -> Iterator[CapfiltError]:
    if not run.exists("run.json"):
        open_results(run)  # raises the error that suggests other runs
    yield from _closed_folders(run)
    yield from _own_files(run)
    results = None
    try:
        results = open_results(run)
    except ManifestError as error:
        for line in str(error).splitlines():
            yield ManifestError(line)
    except (DamagedError, OSError):  # reported by `_own_files`
        pass
    yield from _shared_files(run, results)
    for kind in ("rounds", "chains") if not run.branch else ():
        for name in run.names(kind):
            yield from _own_files(_TolerantRun(run.root, f"{kind}/{name}"))


def _closed_folders(run: Run) -> Iterator[CapfiltError]:
    """Folders that cannot be listed."""
    errors: list[OSError] = []
    for _, folders, _ in os.walk(run.path, onerror=errors.append) if run.is_local else ():
        folders[:] = [name for name in folders if not name.endswith(".partial")]
    for error in errors:
        yield unreadable(error, run.root)


def _shared_files(run: Run, results: Results | None) -> Iterator[CapfiltError]:
    """The faults of list, pool and annotations, which all branches of the run share."""
    files = [
        fault
        for folder in ("list", "pool", "annotations")
        for path in run.files(folder)
        for fault in fault_of(run, folder, *path.split("/"))
    ]
    yield from files
    shards, listed = run.shards("pool"), _listed(run)
    rows = list(_rows(run, shards, listed))
    if results is not None:
        rows += _annotations(results, shards, listed)
        rows += _marks(results)
    yield from rows
    if results is not None and not files and not rows:
        yield from _conservation(results)


def _listed(run: Run) -> list[str]:
    """The shards of the list as its record says; without a record, the files that are there."""
    record = find(run, ListRecord, "list", "_list.json")
    return run.shards("list") if record is None else record.shard_names


def _rows(run: Run, shards: Sequence[str], listed: Sequence[str]) -> Iterator[CapfiltError]:
    """Rows of the pool that are not those of the list, and uids that occur more than once."""
    record, there = find(run, ListRecord, "list", "_list.json"), set(run.shards("list"))
    expected = set(listed)
    for shard in sorted(expected ^ there):
        yield run.damaged("it does not go with _list.json", "list", f"{shard}.parquet")
    if run.exists("pool", "_stage.json"):
        yield from _missing(run, ("pool",), expected - set(shards))
    keys: list[npt.NDArray[np.uint64]] = []
    rows: dict[str, int] = {}
    for shard in shards:
        keys.append(np.zeros(0, np.uint64))
        parts = ("pool", f"{shard}.parquet")
        with caught(run, *parts) as faults:
            uids: Any = run.read_table(*parts, columns=["uid"])["uid"]
            if not pc.all(pc.match_substring_regex(uids.fill_null(""), UID)).as_py():
                raise run.damaged("it has uids that are not 32 hexadecimal characters", *parts)
            keys[-1] = _keys(uids)
            if shard in expected:
                rows[shard] = len(uids)
            if shard in there:
                uids_listed = run.read_table("list", f"{shard}.parquet", columns=["uid"])["uid"]
                if not uids.equals(uids_listed):
                    raise run.damaged("its rows are not those of the list", *parts)
        yield from faults
    number = sum(rows.values())
    if record and expected == rows.keys() and number != record.rows:
        why = f"the list has {record.rows} rows, the pool {number} of them"
        yield DamagedError(f"{run.root}: {why}")
    yield from _repeated(run, shards, keys)


def _missing(run: Run, folder: Sequence[str], shards: Iterable[str]) -> Iterator[CapfiltError]:
    what = "downloaded anew, and measured anew" if folder == ("pool",) else "made anew"
    for shard in sorted(shards):
        yield DamagedError(f"{run.url(*folder, shard)}.parquet: missing. Run again: it is {what}")


def _keys(uids: Any) -> npt.NDArray[np.uint64]:
    """The first halves of n uids; (n,)."""
    return np.frombuffer(bytes.fromhex("".join(uids.to_pylist())), np.uint64)[::2].copy()


def _repeated(
    run: Run, shards: Sequence[str], keys: list[npt.NDArray[np.uint64]]
) -> Iterator[CapfiltError]:
    """Shards with uids that occur more than once in the pool.

    Args:
        run: The run.
        shards: The shards of the pool.
        keys: The `_keys` of each shard. Rows with equal keys are candidates; their uids decide.
    """
    ends = np.cumsum([len(part) for part in keys])
    whole = np.concatenate([np.zeros(0, np.uint64), *keys])
    order = np.argsort(whole, kind="stable")
    same = np.flatnonzero(whole[order][1:] == whole[order][:-1])
    rows = np.unique(np.concatenate([order[same], order[same + 1]]))
    candidates: dict[str, list[Any]] = {}
    for index in np.unique(np.searchsorted(ends, rows, "right")):
        first = ends[index] - len(keys[index])
        here = rows[(rows >= first) & (rows < ends[index])] - first
        parts = ("pool", f"{shards[index]}.parquet")
        try:
            uids = run.read_table(*parts, columns=["uid"])["uid"]
        except (OSError, ValueError) as error:
            yield UnreadableError(f"{run.url(*parts)}: changed while it was read: {error}")
            continue
        candidates[shards[index]] = uids.take(pa.array(here)).to_pylist()
    counts = Counter(uid for uids in candidates.values() for uid in uids)
    for shard, shard_uids in candidates.items():
        if repeated := sum(counts[uid] > 1 for uid in shard_uids):
            why = f"{repeated} uids stand more than once in the pool"
            yield run.damaged(why, "pool", f"{shard}.parquet")


def _annotations(
    results: Results, shards: Sequence[str], listed: Sequence[str]
) -> Iterator[CapfiltError]:
    """The faults of annotations against the pool, and annotations that are missing."""
    run, plan = results.run, results.plan
    for name in plan.names[1:]:
        try:
            folders: list[tuple[tuple[str, ...], str, type[ShardedRecord]]] = [
                (plan.folder(name), "_stage.json", StageRecord)
            ]
        except (OSError, ValueError) as error:
            if not plan.trainings(plan.manifest.stages[name]):  # else it is still to be trained
                is_input = isinstance(error, ValueError | FileNotFoundError)
                fault = InputError if is_input else UnreadableError
                yield fault(f"{name}: not checked, nor what follows it: {error}")
            return
        if issubclass(STAGES[name], GlobalStage):
            folders.append((plan.summary_folder(name), "_summary.json", SummaryRecord))
        for folder, mark, kind in folders:
            there = run.shards(*folder)
            record = find(run, kind, *folder, mark)
            number = None if record is None else record.shards
            yield from _missing(run, ("pool",), (set(there) & set(listed)) - set(shards))
            for shard in sorted(set(there) - set(shards) - set(listed)):
                yield DamagedError(
                    f"{run.url(*folder, shard)}.parquet: the pool has no such shard. Remove it"
                )
            if run.exists(*folder, mark):
                yield from _missing(run, folder, set(shards[:number]) - set(there))
        for shard in shards:
            file = run.url(*plan.folder(name), f"{shard}.parquet")
            try:
                results.judge(shard, [name])
            except DamagedError as error:
                yield error
            except OSError as error:
                yield unreadable(error, file)
            except (
                ConservationError,
                ValueError,
                KeyError,
                IndexError,
                pa.ArrowException,
            ) as error:
                yield DamagedError(f"{file}: {name} cannot judge what it measured: {error}")


def _conservation(results: Results) -> Iterator[CapfiltError]:
    """Stages that lose rows, or whose mark says that they have measured more than they have."""
    run, plan = results.run, results.plan
    try:
        stages = funnel(results, afresh=True)["stages"]
    except DamagedError as error:
        yield error
        return
    except OSError as error:
        yield unreadable(error, run.root)
        return
    except ConservationError as error:
        yield ConservationError(f"{run.root}: {error}")
        return
    except ValueError as error:
        yield DamagedError(f"{run.root}: {error}")
        return
    for stage in stages:
        name = stage["name"]
        if name not in plan.names[1:] or not stage["not_measured"]:
            continue
        try:
            path = (*plan.folder(name), "_stage.json")
            reached = retries.pool_state(run, plan.decision(plan.before(name)[-1]))
        except FileNotFoundError:
            return
        record = find(run, StageRecord, *path)
        if record is not None and record.complete_for == reached:
            why = f"it calls {stage['not_measured']} rows measured that are not"
            yield run.damaged(why, *path)


def _own_files(run: Run) -> Iterator[CapfiltError]:
    """The faults of the files that each branch of a run has of its own."""
    for name in sorted(OWN if run.branch else {*OWN, REVIEWS, ABLATION}):
        if name.endswith((".json", ".jsonl", ".parquet")) and run.exists(name):
            yield from fault_of(run, name)
    for name in run.files("report"):
        yield from fault_of(run, "report", name)
    folders = [("curated",), *(("exports", name) for name in run.names("exports"))]
    for folder in folders:
        yield from export_faults(run, folder)
    for name in sorted({name.removesuffix(".json") for name in run.names("models")}):
        yield from model_faults(run, name)


def _marks(results: Results) -> Iterator[CapfiltError]:
    """Records that are missing although a later record says that their stage was complete."""
    run, plan = results.run, results.plan
    marks: list[tuple[tuple[str, ...], bool]] = []
    try:
        for name in plan.names:
            folder = plan.folder(name)
            if name == DownloadStage.name:
                marks.append((("list", "_list.json"), False))
                reached = "list"
            else:
                reached = retries.pool_state(run, plan.decision(plan.before(name)[-1]))
            if issubclass(STAGES[name], GlobalStage):
                path = (*plan.summary_folder(name), "_summary.json")
                summary = find(run, SummaryRecord, *path)
                marks.append((path, summary is not None and summary.reached == reached))
            record = find(run, StageRecord, *folder, "_stage.json")
            is_current = record is not None and record.complete_for == reached
            marks.append(((*folder, "_stage.json"), is_current))
        for name in plan.exports:
            path = (*plan.folder(name), "manifest.json")
            export = find(run, ExportRecord, *path)
            key = retries.pool_state(run, plan.decision(name))
            marks.append((path, export is not None and export.decision == key))
    except (CapfiltError, OSError, ValueError):  # reported elsewhere, or not trained yet
        pass
    last = max((index for index, (_, is_current) in enumerate(marks) if is_current), default=0)
    for path, _ in marks[:last]:
        is_output = path[0] in ("curated", "exports")  # `export_faults` looks at these
        if not is_output and run.exists(*path[:-1]) and not run.exists(*path):
            yield lost(run, *path)


def unchecked(run: Run) -> list[str]:
    """Files and folders of a run that `verify` does not check, relative to the run."""
    found = []
    for folder in ((), ("models",), ("exports",)):
        try:
            entries = run.fs.ls(run.at(*folder), detail=False)
        except OSError:
            continue
        for name in sorted(posixpath.basename(str(entry).rstrip("/")) for entry in entries):
            is_known = name in KNOWN if not folder else not name.endswith(".partial")
            if folder == ("models",) and is_known and not name.endswith(".json"):
                is_known = run.exists(*folder, f"{name}.json")
            if not is_known:
                found.append(posixpath.join(*folder, name))
    return found
