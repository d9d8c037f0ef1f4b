"""Which rows of a shard end the process that measures them."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from models.errors import BrokenStageError, ShardError

__all__ = [
    "MOST_CRASHES",
    "Call",
    "WorkerDeath",
    "find_crashing_rows",
]

ALONE = 1
"""How often a shard whose worker died is tried once more as it is, before it is searched."""

MOST_CRASHES = 8
"""Rows of one shard that may crash; with one more the stage is broken, not the rows."""


@dataclass(frozen=True, kw_only=True)
class WorkerDeath:
    """The end of a worker in the middle of a call.

    Attributes:
        told: What is known of it.
        is_memory: Whether it was ended because memory was short.
    """

    told: str
    is_memory: bool = False


@dataclass(frozen=True)
class Call:
    """What a worker is asked: a method of `Worker`, and what it is given.

    Attributes:
        method: The method.
        arguments: Its arguments; results of earlier calls may be among them.
        is_kept: Whether the answer stays where it is, for a later call.
    """

    method: str
    arguments: tuple[Any, ...]
    is_kept: bool = False


def find_crashing_rows(
    name: str, shard: str, retry: tuple[str, ...], *, rows_can_fail: bool, memory: str
) -> Generator[Call, Any, dict[str, Any]]:
    """Finish a shard whose worker has died: as it is, or without the rows that crash.

    Tried alone first, as the death may have been chance. Then by halves: what a half gives is
    kept, and a half that ends its worker is halved again, down to a row that does so twice. For
    c rows of n that crash, this takes at most 2 c (log2 n + 1) calls of `measure` beside c more.

    Args:
        name: The stage, or export.
        shard: The shard.
        retry: Errors of download whose rows are downloaded anew.
        rows_can_fail: Whether a row of this stage can have a reason.
        memory: What to do where memory is short.

    Yields:
        What to ask of a worker; it is sent the answer, or the `Death` of that worker.

    Returns:
        What `Worker.work` gives.

    Raises:
        ShardError: The worker dies over the shard, and not over some of its rows.
        BrokenStageError: It dies over no row at all, or over more than `MOST_CRASHES`.
    """
    for _ in range(ALONE):
        found = yield Call("work", (name, shard, retry))
        if not isinstance(found, WorkerDeath):
            return dict(found)
    if found.is_memory:
        raise ShardError(f"its worker ran out of memory {1 + ALONE} times: {memory}")
    if not rows_can_fail:
        raise ShardError(f"its worker died {1 + ALONE} times ({found.told})")
    if isinstance((yield Call("load", (name,))), WorkerDeath):
        raise BrokenStageError(
            f"its worker dies as the stage is loaded, before any row ({found.told})"
        )
    due = yield Call("due", (name, shard, retry))
    if isinstance(due, WorkerDeath) or not due:
        raise ShardError(f"its worker died before it was given a row ({found.told})")
    spans, parts, crashed = _halves(due), [], 0
    while spans:
        rows = spans.pop()
        call = Call("measure", (name, shard, retry, rows), is_kept=True)
        found = yield call
        if isinstance(found, WorkerDeath) and len(rows) == 1:
            found = yield call  # a row is rejected for what it does, not for what befell it
        if not isinstance(found, WorkerDeath):
            parts.append((rows, found))
        elif found.is_memory and len(rows) == 1:
            raise ShardError(f"row {rows[0]} takes more memory than there is: {memory}")
        elif len(rows) > 1:
            spans += reversed(_halves(rows))
        else:
            crashed += 1
            if crashed > MOST_CRASHES:
                raise BrokenStageError(
                    f"more than {MOST_CRASHES} of its rows end their worker ({found.told}): the "
                    "model or a library is broken rather than the rows, and none is marked"
                )
    spans_found = [rows for rows, _ in parts]
    arguments = (name, shard, retry, spans_found, *(part for _, part in parts))
    found = yield Call("commit", arguments)
    if isinstance(found, WorkerDeath):
        raise ShardError(f"its worker died as it wrote what was found ({found.told})")
    return dict(found)


def _halves(rows: list[int]) -> list[list[int]]:
    middle = len(rows) // 2
    return [half for half in (rows[:middle], rows[middle:]) if half]
