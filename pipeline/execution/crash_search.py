"""The search for the rows of a shard that end the process which measures them."""

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
"""How often a shard whose worker died is tried again before its rows are searched."""

MOST_CRASHES = 8
"""Rows of a shard that may crash; if more do, the stage is broken and not the rows."""


@dataclass(frozen=True, kw_only=True)
class WorkerDeath:
    """The death of a worker during a call.

    Attributes:
        cause: What is known about the cause.
        is_memory: Whether the worker was ended because memory was short.
    """

    cause: str
    is_memory: bool = False


@dataclass(frozen=True)
class Call:
    """A call of a method of `Worker`.

    Attributes:
        method: The method.
        arguments: Its arguments; references to results of earlier calls may be among them.
        is_kept: Whether the result stays in Ray's object store, for a later call.
    """

    method: str
    arguments: tuple[Any, ...]
    is_kept: bool = False


def find_crashing_rows(
    name: str, shard: str, retry: tuple[str, ...], *, rows_can_fail: bool, memory: str
) -> Generator[Call, Any, dict[str, Any]]:
    """Finish a shard whose worker has died, without the rows that crash if there are some.

    The shard is first tried again, since the death may have been chance. Then it is split into
    halves: the result of a half is kept, and a half that ends its worker is split again, down to
    a single row that does so twice. For c crashing rows of n, this takes at most
    2 c (log2 n + 1) calls of `measure`, and c more.

    Args:
        name: The stage, or export.
        shard: The shard.
        retry: Errors of download whose rows are downloaded again.
        rows_can_fail: Whether a row of this stage can have a reason.
        memory: What to do if memory is short, for messages.

    Yields:
        The next call for a worker. The generator is sent its result, or the `WorkerDeath` of the
        worker.

    Returns:
        The result of `Worker.work`.

    Raises:
        ShardError: The worker dies over the shard as a whole, and not over some of its rows.
        BrokenStageError: It dies without any row, or over more than `MOST_CRASHES` rows.
    """
    for _ in range(ALONE):
        result = yield Call("work", (name, shard, retry))
        if not isinstance(result, WorkerDeath):
            return dict(result)
    death = result
    if death.is_memory:
        raise ShardError(f"its worker ran out of memory {1 + ALONE} times: {memory}")
    if not rows_can_fail:
        raise ShardError(f"its worker died {1 + ALONE} times ({death.cause})")
    if isinstance((yield Call("load", (name,))), WorkerDeath):
        raise BrokenStageError(
            f"its worker dies while the stage is loaded, before any row ({death.cause})"
        )
    due = yield Call("due", (name, shard, retry))
    if isinstance(due, WorkerDeath) or not due:
        raise ShardError(f"its worker died before it was given a row ({death.cause})")
    spans, parts, crashed = _halves(due), [], 0
    while spans:
        rows = spans.pop()
        call = Call("measure", (name, shard, retry, rows), is_kept=True)
        result = yield call
        if isinstance(result, WorkerDeath) and len(rows) == 1:
            result = yield call  # the first death may have had another cause than the row
        if not isinstance(result, WorkerDeath):
            parts.append((rows, result))
        elif result.is_memory and len(rows) == 1:
            raise ShardError(f"row {rows[0]} takes more memory than there is: {memory}")
        elif len(rows) > 1:
            spans += reversed(_halves(rows))
        else:
            crashed += 1
            if crashed > MOST_CRASHES:
                raise BrokenStageError(
                    f"more than {MOST_CRASHES} of its rows end their worker ({result.cause}): the "
                    "model or a library is broken rather than the rows, and none is marked"
                )
    measured = [rows for rows, _ in parts]
    arguments = (name, shard, retry, measured, *(part for _, part in parts))
    result = yield Call("commit", arguments)
    if isinstance(result, WorkerDeath):
        raise ShardError(f"its worker died while it wrote the result ({result.cause})")
    return dict(result)


def _halves(rows: list[int]) -> list[list[int]]:
    middle = len(rows) // 2
    return [half for half in (rows[:middle], rows[middle:]) if half]
