"""Faults of the output of a run: its exports and models."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator

from models.errors import CapfiltError, DamagedError
from pipeline.results.faults import fault_of, lost, unreadable
from pipeline.storage.checksum import CHANGED
from pipeline.storage.records import ExportRecord, ModelRecord
from pipeline.storage.run import Run, sums_of
from pipeline.storage.successor import standing

__all__ = ["export_faults", "model_faults"]

LAYOUT, STATE = "_layout.json", "_export.json"


def export_faults(run: Run, folder: tuple[str, ...]) -> Iterator[CapfiltError]:
    """The faults of a finished export; an export that is being written is left out."""
    mark = (*folder, "manifest.json")
    if not run.exists(*mark):
        files = run.files(*folder) if run.is_local else []
        if files and LAYOUT not in files:  # former versions wrote unfinished exports here
            yield lost(run, *mark)
        return
    try:
        record = run.read_record(ExportRecord, *mark)
        at = standing(run, *folder)
    except (CapfiltError, OSError):
        yield from fault_of(run, *mark)
        return
    files = run.files(*at)
    if STATE not in files:
        yield lost(run, *at, STATE)
    for path in files:
        name = path.rsplit("/", 1)[-1]
        if name == "manifest.json" or (path.startswith("_") and name.endswith(".json")):
            yield from fault_of(run, *at, *path.split("/"))
    digests = {file.name: file.sha256 for file in record.files}
    digests |= {} if record.card is None else {"README.md": record.card}
    documents = {} if record.documents is None else record.documents.files
    digests |= {f"documents/{name}": sha256 for name, sha256 in documents.items()}
    digests |= {f"embeddings/{name}": sha256 for name, sha256 in record.embeddings.items()}
    if any(path.startswith("_sha256/") for path in files):  # former versions wrote no such lists
        folders = [file for file in record.files if file.name not in files]
        digests |= {"/".join(sums_of(file.name)): file.sha256 for file in folders}
    yield from _digests(run, at, digests, "its bytes are not those of manifest.json")
    texts = [name for name in documents if name.endswith(".jsonl")]
    checked = {f"images-{name.removesuffix('.jsonl')}.parquet" for name in texts}
    checked -= set(documents)  # former versions kept no digests of these
    checked = {f"documents/{name}" for name in (*checked, "verdicts.parquet")}
    checked = set() if record.documents is None else checked
    for path in sorted(checked - set(files)):
        yield run.damaged("it is missing", *at, *path.split("/"))
    for path in files:
        if path in checked:
            yield from fault_of(run, *at, *path.split("/"))
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
            yield unreadable(error, run.url(*parts))


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


def model_faults(run: Run, name: str) -> Iterator[CapfiltError]:
    """The faults of a trained model, which may be the next one of its record."""
    mark = ("models", f"{name}.json")
    if not run.exists(*mark):
        if run.exists("models", name, "metrics.jsonl"):  # which a training wrote
            yield lost(run, *mark)
        return
    try:
        record = run.read_record(ModelRecord, *mark)
    except DamagedError as error:
        yield error
        return
    except OSError as error:
        yield unreadable(error, run.url(*mark))
        return
    if record.next and not [*_digests(run, ("models", name), record.next, CHANGED)]:
        return
    yield from _digests(run, ("models", name), record.files, CHANGED)
    for path in sorted(set(run.files("models", name)) - set(record.files)):
        yield DamagedError(
            f"{run.url('models', name, path)}: the training did not write it. Remove it"
        )
