"""Looking at a run: every verdict, and whether all files are sound."""

from __future__ import annotations

import json
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq

from pipeline.manifest.manifest import REVIEWS, STAGES, ManifestError
from pipeline.manifest.plan import Plan
from pipeline.results import retries
from pipeline.results.funnel import funnel, open_plan
from pipeline.results.verdicts import ConservationError, judge, verdict_table
from pipeline.storage.checksum import CHANGED
from pipeline.storage.run import ABLATION, OWN, DamagedError, Run
from stages.base import GlobalStage
from stages.review import read_decisions
from stages.schema import POOL

__all__ = ["verify", "write_verdicts"]

UID = "^[0-9a-f]{32}$"


def write_verdicts(run: Run, plan: Plan, out: str) -> int:
    """Write what became of every row of the pool: the columns of `verdicts.verdict_table`.

    URLs stay whole, so that they can be fetched. In csv, a text that a spreadsheet would take for
    a formula has a ' before it.

    Args:
        run: The run.
        plan: Its plan.
        out: A local file; its ending says parquet, csv or jsonl.

    Returns:
        How many rows.

    Raises:
        ValueError: The ending is none of these, or the run has no pool.
    """
    kind = out.rsplit(".", 1)[-1]
    if kind not in ("parquet", "csv", "jsonl"):
        raise ValueError(f"--out {out}: end the name in .parquet, .csv or .jsonl")
    shards = run.shards("pool")
    if not shards:
        raise ValueError(f"{run.root}: nothing is downloaded yet; `capfilt run` it first")
    rows = 0
    writer: Any = None
    with open(out, "wb") as file:
        for table in verdict_table(run, plan, shards):
            rows += table.num_rows
            if kind == "jsonl":
                for row in table.to_pylist():
                    file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
                continue
            if writer is None:
                make = pq.ParquetWriter if kind == "parquet" else pc_csv.CSVWriter
                writer = make(file, table.schema)
            if kind == "csv":
                table = _as_texts(table)
            writer.write_table(table)
        if writer is not None:
            writer.close()
    return rows


def _as_texts(table: pa.Table) -> pa.Table:
    """The texts of a table such that no spreadsheet carries them out (CWE-1236)."""
    for index, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            texts: Any = pc.replace_substring_regex(
                table.column(index),
                pattern="^([=+@\\t\\r\\n\uff1d\uff0b\uff0d\uff20-])",
                replacement=r"'\1",
            )
            table = table.set_column(index, field, texts)
    return table


def verify(run: Run, plan: Plan | None = None) -> Iterator[str]:
    """Every fault of a run's files, a sentence each that names the file and what to do.

    Reads all: every byte of list, pool, annotations, exports and trained models against the digests
    that they were written with; schemas; the rows of each shard against those of the pool, and
    those of the pool against the list; that no uid stands twice; that every stage accounts for all
    rows that reach it. A run's further rounds are checked with it. What cannot be read is told and
    holds up nothing else; so is what is no regular file of the run, which is not opened. Not
    checked is what a run can do without or has not finished: traces under failures/, what is still
    `*.partial`, and files that others put into its folder.

    Memory holds a shard, the columns of a shard that are judged, and at most 40 bytes for each row
    of the pool.

    Args:
        run: The run.
        plan: Its plan, where it is at hand.
    """
    told: set[str] = set()
    for fault in _faults(_Open(run.root, run.branch), plan):
        if fault not in told:
            told.add(fault)
            yield fault


class _Open(Run):
    """A run whose closed folders are empty."""

    def names(self, *parts: str) -> list[str]:
        try:
            return super().names(*parts)
        except OSError:
            if self.is_local:  # which `_closed` tells
                return []
            raise


def _unreadable(error: OSError, path: str) -> str:
    """What to tell of an error of the disk or the storage, at a path unless it names its own."""
    return f"{error.filename or path}: cannot be read: {error.strerror or error}"


def _faults(run: Run, plan: Plan | None) -> Iterator[str]:
    if plan is None and not run.exists("run.json"):
        open_plan(run)  # which says what may be meant
    yield from _closed(run)
    yield from _own(run)
    if plan is None:
        try:
            plan = open_plan(run)
        except ManifestError as error:
            yield from str(error).splitlines()
        except (DamagedError, OSError):  # told by now
            pass
    yield from _shared(run, plan)
    for kind in ("rounds", "chains") if not run.branch else ():
        for name in run.names(kind):
            yield from _own(_Open(run.root, f"{kind}/{name}"))


def _closed(run: Run) -> Iterator[str]:
    """The folders that cannot be listed: what is in them is not told otherwise."""
    errors: list[OSError] = []
    for _, folders, _ in os.walk(run.path, onerror=errors.append) if run.is_local else ():
        folders[:] = [name for name in folders if not name.endswith(".partial")]
    for error in errors:
        yield _unreadable(error, run.root)


def _shared(run: Run, plan: Plan | None) -> Iterator[str]:
    """The faults of list, pool and annotations."""
    before = [
        fault
        for folder in ("list", "pool", "annotations")
        for path in run.files(folder)
        for fault in _file(run, folder, *path.split("/"))
    ]
    yield from before
    shards, listed = run.shards("pool"), _listed(run)
    faults = list(_rows(run, shards, listed))
    if plan:
        faults += _annotations(run, plan, shards, listed)
    yield from faults
    if plan and not before and not faults:
        yield from _conservation(run, plan)


def _file(run: Run, *parts: str) -> Iterator[str]:
    """The fault of a file that has a seal."""
    name = parts[-1]
    try:
        if name.endswith(".parquet"):
            schema = run.check(*parts)
            if parts[0] == "pool" and _fields(schema) != _fields(POOL):
                raise run.damaged("its columns are not those of a pool", *parts)
        elif name.endswith(".json"):
            run.read_json(*parts)
        elif name.endswith(".html"):
            run.check_page(*parts)
        elif name.endswith(".jsonl"):
            run.admit(run.at(*parts))
            read_decisions(run.url(*parts))
    except OSError as error:
        yield _unreadable(error, run.url(*parts))
    except ValueError as error:
        yield str(error)
    except pa.ArrowException as error:
        yield str(run.damaged(error, *parts))


def _mark(run: Run, *parts: str) -> dict[str, Any]:
    """A mark; empty where it is absent, or damaged or unreadable, which `_file` tells."""
    try:
        return run.read_mark(*parts)
    except OSError:
        return {}


def _listed(run: Run) -> list[str]:
    """The shards that the list has, as its mark says, or without one as they lie there."""
    mark = _mark(run, "list", "_list.json")
    if "shards" in mark:
        return [f"{index:05d}" for index in range(mark["shards"])]
    return run.shards("list")


def _fields(schema: pa.Schema) -> list[tuple[str, pa.DataType]]:
    return [(field.name, field.type) for field in schema]


def _rows(run: Run, shards: Sequence[str], listed: Sequence[str]) -> Iterator[str]:
    """Rows of the pool that are not those of the list, and uids that stand more than once."""
    mark, there = _mark(run, "list", "_list.json"), set(run.shards("list"))
    promised = set(listed)
    for shard in sorted(promised ^ there):
        yield str(run.damaged("it does not go with _list.json", "list", f"{shard}.parquet"))
    if run.exists("pool", "_stage.json"):
        yield from _missing(run, ("pool",), promised - set(shards))
    keys: list[npt.NDArray[np.uint64]] = []
    rows: dict[str, int] = {}
    for shard in shards:
        keys.append(np.zeros(0, np.uint64))
        parts = ("pool", f"{shard}.parquet")
        try:
            uids: Any = run.read_table(*parts, columns=["uid"])["uid"]
            if not pc.all(pc.match_substring_regex(uids.fill_null(""), UID)).as_py():
                raise run.damaged("it has uids that are not 32 hexadecimal characters", *parts)
            keys[-1] = _keys(uids)
            if shard in promised:
                rows[shard] = len(uids)
            if shard in there:
                wanted = run.read_table("list", f"{shard}.parquet", columns=["uid"])["uid"]
                if not uids.equals(wanted):
                    raise run.damaged("its rows are not those of the list", *parts)
        except OSError as error:
            yield _unreadable(error, run.url(*parts))
        except ValueError as error:
            yield str(error)
        except pa.ArrowException as error:
            yield str(run.damaged(error, *parts))
    number = sum(rows.values())
    if mark and promised == rows.keys() and number != mark["rows"]:
        yield f"{run.root}: the list has {mark['rows']} rows, the pool {number} of them"
    yield from _repeated(run, shards, keys)


def _missing(run: Run, folder: Sequence[str], shards: Iterable[str]) -> Iterator[str]:
    what = "downloaded anew, and measured anew" if folder == ("pool",) else "made anew"
    for shard in sorted(shards):
        yield f"{run.url(*folder, shard)}.parquet: missing. Run again: it is {what}"


def _keys(uids: Any) -> npt.NDArray[np.uint64]:
    """The first halves of n uids; (n,)."""
    return np.frombuffer(bytes.fromhex("".join(uids.to_pylist())), np.uint64)[::2].copy()


def _repeated(run: Run, shards: Sequence[str], keys: list[npt.NDArray[np.uint64]]) -> Iterator[str]:
    """The shards with uids that stand more than once, each with how many."""
    ends = np.cumsum([len(part) for part in keys])
    whole = np.concatenate([np.zeros(0, np.uint64), *keys])
    order = np.argsort(whole, kind="stable")
    same = np.flatnonzero(whole[order][1:] == whole[order][:-1])
    rows = np.unique(np.concatenate([order[same], order[same + 1]]))
    places: dict[str, list[Any]] = {}
    for index in np.unique(np.searchsorted(ends, rows, "right")):
        first = ends[index] - len(keys[index])
        here = rows[(rows >= first) & (rows < ends[index])] - first
        try:
            found = run.read_table("pool", f"{shards[index]}.parquet", columns=["uid"])["uid"]
        except (OSError, ValueError) as error:
            yield f"{run.url('pool', shards[index])}.parquet: changed while it was read: {error}"
            continue
        places[shards[index]] = found.take(pa.array(here)).to_pylist()
    counts = Counter(uid for uids in places.values() for uid in uids)
    for shard, uids in places.items():
        if repeated := sum(counts[uid] > 1 for uid in uids):
            why = f"{repeated} uids stand more than once in the pool"
            yield str(run.damaged(why, "pool", f"{shard}.parquet"))


def _annotations(
    run: Run, plan: Plan, shards: Sequence[str], listed: Sequence[str]
) -> Iterator[str]:
    """The faults of what stages measured, held against the pool, and of what is not there."""
    for name in plan.names[1:]:
        try:
            folders = [(plan.folder(name), "_stage.json")]
        except (OSError, ValueError) as error:
            if not plan.trainings(plan.manifest.stages[name]):  # nor is it still to be trained
                yield f"{name}: not checked, nor what follows it: {error}"
            return
        if issubclass(STAGES[name], GlobalStage):
            folders.append((plan.summary_folder(name), "_summary.json"))
        for folder, mark in folders:
            there = run.shards(*folder)
            number = _mark(run, *folder, mark).get("shards", len(shards))
            yield from _missing(run, ("pool",), (set(there) & set(listed)) - set(shards))
            for shard in sorted(set(there) - set(shards) - set(listed)):
                yield f"{run.url(*folder, shard)}.parquet: the pool has no such shard. Remove it"
            if run.exists(*folder, mark):
                yield from _missing(run, folder, set(shards[:number]) - set(there))
        for shard in shards:
            try:
                judge(run, plan, shard, [name])
            except DamagedError as error:
                yield str(error)
            except OSError as error:
                yield _unreadable(error, run.url(*plan.folder(name), f"{shard}.parquet"))
            except (ValueError, KeyError, IndexError, pa.ArrowException) as error:
                file = run.url(*plan.folder(name), f"{shard}.parquet")
                yield f"{file}: {name} cannot judge what it measured: {error}"


def _conservation(run: Run, plan: Plan) -> Iterator[str]:
    """Stages that lose rows, or say that they have measured what they have not."""
    try:
        stages = funnel(run, plan)["stages"]
    except DamagedError as error:
        yield str(error)
        return
    except OSError as error:
        yield _unreadable(error, run.root)
        return
    except (ConservationError, ValueError) as error:
        yield f"{run.root}: {error}"
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
        if _mark(run, *path).get("complete_for") == reached:
            why = f"it calls {stage['not_measured']} rows measured that are not"
            yield str(run.damaged(why, *path))


def _own(run: Run) -> Iterator[str]:
    """The faults of what each branch of a run has of its own."""
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


def _export(run: Run, folder: tuple[str, ...]) -> Iterator[str]:
    """The faults of an export, finished or not."""
    files = run.files(*folder)
    is_whole = "manifest.json" in files
    for path in files:
        name = path.rsplit("/", 1)[-1]
        is_mark = name == "manifest.json" or (path.startswith("_") and name.endswith(".json"))
        if is_mark or (name.endswith(".parquet") and not is_whole):
            yield from _file(run, *folder, *path.split("/"))
    if not is_whole:
        return
    try:
        manifest = run.read_json(*folder, "manifest.json")
    except (DamagedError, OSError):  # told by now
        return
    digests = {file["name"]: file["sha256"] for file in manifest["files"]}
    digests |= {"README.md": manifest["card"]} if "card" in manifest else {}
    documents = manifest["documents"]["files"] if "documents" in manifest else {}
    digests |= {f"documents/{name}": sha256 for name, sha256 in documents.items()}
    for name, sha256 in digests.items():
        parts = (*folder, *name.split("/"))
        try:
            if not run.exists(*parts):
                yield str(run.damaged("it is missing", *parts))
            elif run.digest(*parts) != sha256:
                yield str(run.damaged("its bytes are not those of manifest.json", *parts))
        except OSError as error:
            yield _unreadable(error, run.url(*parts))
    sealed = {f"images-{name.removesuffix('.jsonl')}.parquet" for name in documents}
    sealed = {f"documents/{name}" for name in (*sealed, "verdicts.parquet")}
    sealed = sealed if "documents" in manifest else set()
    for path in sorted(sealed - set(files)):
        yield str(run.damaged("it is missing", *folder, *path.split("/")))
    for path in files:
        if path in sealed:
            yield from _file(run, *folder, *path.split("/"))
        elif not (
            path.startswith("_")
            or path == "manifest.json"
            or path in digests
            or posixpath.dirname(path) in digests
        ):
            yield f"{run.url(*folder, path)}: not in manifest.json. Remove it"


def _model(run: Run, name: str) -> Iterator[str]:
    """The faults of a trained model."""
    try:
        digests = run.read_json("models", f"{name}.json")["files"]
    except DamagedError as error:
        yield str(error)
        return
    except OSError as error:
        yield _unreadable(error, run.url("models", f"{name}.json"))
        return
    found = run.files("models", name)
    for path, sha256 in digests.items():
        parts = ("models", name, *path.split("/"))
        try:
            if path not in found:
                yield str(run.damaged("it is missing", *parts))
            elif run.sha256(*parts) != sha256:
                yield str(run.damaged(CHANGED, *parts))
        except OSError as error:
            yield _unreadable(error, run.url(*parts))
    for path in sorted(set(found) - set(digests)):
        yield f"{run.url('models', name, path)}: the training did not write it. Remove it"
