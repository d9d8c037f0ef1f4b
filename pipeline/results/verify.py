"""Verification: whether all files of a run are whole, aligned and account for every row."""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

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
from pipeline.results.funnel import funnel
from pipeline.results.open_run import open_results
from pipeline.results.verdicts import Results
from pipeline.storage.checksum import CHANGED
from pipeline.storage.records import (
    ExportRecord,
    ListRecord,
    ModelRecord,
    ShardedRecord,
    StageRecord,
    SummaryRecord,
)
from pipeline.storage.run import ABLATION, OWN, Run, sums_of
from pipeline.storage.successor import standing
from stages.base import GlobalStage
from stages.registry import STAGES
from stages.review import read_decisions
from stages.schema import POOL

__all__ = ["verify"]

UID = "^[0-9a-f]{32}$"
LAYOUT, STATE = "_layout.json", "_export.json"

R = TypeVar("R", bound=ShardedRecord)


def verify(run: Run) -> Iterator[CapfiltError]:
    """Check all files of a run, and yield an error for each fault.

    An error names the file and says what to do. It is of the class, and so of the exit status, that
    a command which reads the file ends with.

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


def _unreadable(error: OSError, path: str) -> UnreadableError:
    """The error for a file that the disk or the storage does not give.

    Args:
        error: What the system raised.
        path: The path to name if the error names none.
    """
    return UnreadableError(f"{error.filename or path}: cannot be read: {error.strerror or error}")


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
        yield _unreadable(error, run.root)


def _shared_files(run: Run, results: Results | None) -> Iterator[CapfiltError]:
    """The faults of list, pool and annotations, which all branches of the run share."""
    files = [
        fault
        for folder in ("list", "pool", "annotations")
        for path in run.files(folder)
        for fault in _file(run, folder, *path.split("/"))
    ]
    yield from files
    shards, listed = run.shards("pool"), _listed(run)
    rows = list(_rows(run, shards, listed))
    if results is not None:
        rows += _annotations(results, shards, listed)
    yield from rows
    if results is not None and not files and not rows:
        yield from _conservation(results)


@contextlib.contextmanager
def _caught(run: Run, *parts: str) -> Iterator[list[CapfiltError]]:
    """Catch what reading a file raises; the list holds it afterwards, as the fault of the file."""
    faults: list[CapfiltError] = []
    try:
        yield faults
    except OSError as error:
        faults.append(_unreadable(error, run.url(*parts)))
    except CapfiltError as error:
        faults.append(error)
    except (ValueError, pa.ArrowException) as error:
        faults.append(run.damaged(error, *parts))


def _file(run: Run, *parts: str) -> Iterator[CapfiltError]:
    """The fault of a file that carries a checksum."""
    name = parts[-1]
    with _caught(run, *parts) as faults:
        if name.endswith(".parquet"):
            schema = run.check(*parts)
            if parts[0] == "pool" and _fields(schema) != _fields(POOL):
                raise run.damaged("its columns are not those of a pool", *parts)
        elif name.endswith(".json"):
            run.check_json(*parts)
        elif name.endswith(".html"):
            run.check_page(*parts)
        elif name.endswith(".jsonl"):
            run.admit(run.at(*parts))
            read_decisions(run.url(*parts))
    yield from faults


def _record(run: Run, kind: type[R], *parts: str) -> R | None:
    """A record; None if it is absent, damaged or unreadable, which `_file` reports."""
    try:
        return run.find_record(kind, *parts, damaged_ok=True)
    except OSError:
        return None


def _listed(run: Run) -> list[str]:
    """The shards of the list as its record says; without a record, the files that are there."""
    record = _record(run, ListRecord, "list", "_list.json")
    return run.shards("list") if record is None else record.shard_names


def _fields(schema: pa.Schema) -> list[tuple[str, pa.DataType]]:
    return [(field.name, field.type) for field in schema]


def _rows(run: Run, shards: Sequence[str], listed: Sequence[str]) -> Iterator[CapfiltError]:
    """Rows of the pool that are not those of the list, and uids that occur more than once."""
    record, there = _record(run, ListRecord, "list", "_list.json"), set(run.shards("list"))
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
        with _caught(run, *parts) as faults:
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
            record = _record(run, kind, *folder, mark)
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
                yield _unreadable(error, file)
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
        stages = funnel(results)["stages"]
    except DamagedError as error:
        yield error
        return
    except OSError as error:
        yield _unreadable(error, run.root)
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
        record = _record(run, StageRecord, *path)
        if record is not None and record.complete_for == reached:
            why = f"it calls {stage['not_measured']} rows measured that are not"
            yield run.damaged(why, *path)


def _own_files(run: Run) -> Iterator[CapfiltError]:
    """The faults of the files that each branch of a run has of its own."""
    for name in sorted(OWN if run.branch else {*OWN, REVIEWS, ABLATION}):
        if name.endswith((".json", ".jsonl")) and run.exists(name):
            yield from _file(run, name)
    for name in run.files("report"):
        yield from _file(run, "report", name)
    folders = [("curated",), *(("exports", name) for name in run.names("exports"))]
    for folder in folders:
        yield from _export(run, folder)
    for name in run.names("models"):
        if name.endswith(".json"):
            yield from _model(run, name.removesuffix(".json"))


def _export(run: Run, folder: tuple[str, ...]) -> Iterator[CapfiltError]:
    """The faults of an export that stands; one that is being written is left out."""
    mark = (*folder, "manifest.json")
    if not run.exists(*mark):
        files = run.files(*folder) if run.is_local else []
        if files and LAYOUT not in files:  # former versions wrote unfinished exports here
            yield run.damaged("it is missing", *mark)
        return
    try:
        record = run.read_record(ExportRecord, *mark)
        at = standing(run, *folder)
    except (CapfiltError, OSError):
        yield from _file(run, *mark)
        return
    files = run.files(*at)
    if STATE not in files:
        yield run.damaged("it is missing", *at, STATE)
    for path in files:
        name = path.rsplit("/", 1)[-1]
        if name == "manifest.json" or (path.startswith("_") and name.endswith(".json")):
            yield from _file(run, *at, *path.split("/"))
    digests = {file.name: file.sha256 for file in record.files}
    digests |= {} if record.card is None else {"README.md": record.card}
    documents = {} if record.documents is None else record.documents.files
    digests |= {f"documents/{name}": sha256 for name, sha256 in documents.items()}
    if any(path.startswith("_sha256/") for path in files):  # former versions wrote no such lists
        folders = [file for file in record.files if file.name not in files]
        digests |= {"/".join(sums_of(file.name)): file.sha256 for file in folders}
    yield from _digests(run, at, digests, "its bytes are not those of manifest.json")
    checked = {f"images-{name.removesuffix('.jsonl')}.parquet" for name in documents}
    checked = {f"documents/{name}" for name in (*checked, "verdicts.parquet")}
    checked = set() if record.documents is None else checked
    for path in sorted(checked - set(files)):
        yield run.damaged("it is missing", *at, *path.split("/"))
    for path in files:
        if path in checked:
            yield from _file(run, *at, *path.split("/"))
        elif not (
            path.startswith("_")
            or path == "manifest.json"
            or path in digests
            or posixpath.dirname(path) in digests
        ):
            yield DamagedError(f"{run.url(*at, path)}: not in manifest.json. Remove it")


def _digests(
    run: Run, folder: tuple[str, ...], digests: dict[str, str], why: str
) -> Iterator[CapfiltError]:
    """Files of a folder that are missing, or do not have the SHA-256 that is recorded of them."""
    for path, sha256 in digests.items():
        parts = (*folder, *path.split("/"))
        try:
            if not run.exists(*parts):
                yield run.damaged("it is missing", *parts)
            elif run.digest(*parts) != sha256:
                yield from _changed(run, folder, path, sha256, why)
        except OSError as error:
            yield _unreadable(error, run.url(*parts))


def _changed(
    run: Run, folder: tuple[str, ...], path: str, sha256: str, why: str
) -> Iterator[CapfiltError]:
    """The faults of a file, or of a folder of files by the list of their digests if it has one."""
    parts = (*folder, *path.split("/"))
    listing = (*folder, *sums_of(path))
    lines = run.read(*listing).decode(errors="replace") if run.exists(*listing) else ""
    if hashlib.sha256(lines.encode()).hexdigest() != sha256:
        yield run.damaged(why, *parts)
        return
    pairs = (line.split("  ", 1) for line in lines.split("\n")[:-1])
    expected = {name: digest for digest, name in pairs}
    there = set(run.names(*parts))
    for name in sorted(expected.keys() | there):
        if name not in there:
            yield run.damaged("it is missing", *parts, name)
        elif name not in expected:
            yield DamagedError(f"{run.url(*parts, name)}: not in manifest.json. Remove it")
        elif run.sha256(*parts, name) != expected[name]:
            yield run.damaged(why, *parts, name)


def _model(run: Run, name: str) -> Iterator[CapfiltError]:
    """The faults of a trained model."""
    mark = ("models", f"{name}.json")
    try:
        digests = run.read_record(ModelRecord, *mark).files
    except DamagedError as error:
        yield error
        return
    except OSError as error:
        yield _unreadable(error, run.url(*mark))
        return
    yield from _digests(run, ("models", name), digests, CHANGED)
    for path in sorted(set(run.files("models", name)) - set(digests)):
        yield DamagedError(
            f"{run.url('models', name, path)}: the training did not write it. Remove it"
        )
