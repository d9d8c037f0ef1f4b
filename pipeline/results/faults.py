"""Faults of single files of a run, as errors: a command that reads the file ends with the same."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeVar

import pyarrow as pa
from pydantic import BaseModel

from models.errors import CapfiltError, DamagedError, UnreadableError
from pipeline.storage.run import Run
from stages.review import read_decisions
from stages.schema import POOL

__all__ = ["caught", "fault_of", "find", "lost", "unreadable"]

T = TypeVar("T", bound=BaseModel)


def unreadable(error: OSError, path: str) -> UnreadableError:
    """The error for a file that cannot be read from the disk or the storage.

    Args:
        error: The error that the system raised.
        path: The path to name if the error names none.
    """
    return UnreadableError(f"{error.filename or path}: cannot be read: {error.strerror or error}")


@contextlib.contextmanager
def caught(run: Run, *parts: str) -> Iterator[list[CapfiltError]]:
    """Catch the error of reading a file and append it to the list that is yielded."""
    faults: list[CapfiltError] = []
    try:
        yield faults
    except OSError as error:
        faults.append(unreadable(error, run.url(*parts)))
    except CapfiltError as error:
        faults.append(error)
    except (ValueError, pa.ArrowException) as error:
        faults.append(run.damaged(error, *parts))


def fault_of(run: Run, *parts: str) -> Iterator[CapfiltError]:
    """The fault of a file that carries a checksum."""
    name = parts[-1]
    with caught(run, *parts) as faults:
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


def find(run: Run, kind: type[T], *parts: str) -> T | None:
    """A record; None if it is absent, damaged or unreadable, which `fault_of` reports."""
    try:
        return run.find_record(kind, *parts, damaged_ok=True)
    except OSError:
        return None


def lost(run: Run, *parts: str) -> DamagedError:
    """The error for a missing record, which the next run writes again."""
    return DamagedError(f"{run.url(*parts)}: missing. Run again: it is written anew")


def _fields(schema: pa.Schema) -> list[tuple[str, pa.DataType]]:
    return [(field.name, field.type) for field in schema]
