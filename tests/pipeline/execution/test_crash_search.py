"""The search for the rows that end their worker, against a worker that is a set of rows."""

import math
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import BrokenStageError, ShardError
from pipeline.execution.crash_search import MOST_CRASHES, WorkerDeath, find_crashing_rows
from pipeline.execution.worker_pool import MOST_SUSPECTS, _Job, _Progress

DEAD = WorkerDeath(cause="it crashed")


def carry_out(search, answer):
    """Ask `answer` whatever a search asks, to its end; what it returns, and all calls."""
    calls, outcome = [], None
    try:
        while True:
            call = search.send(outcome)
            calls.append(call)
            outcome = answer(call)
    except StopIteration as end:
        return end.value, calls


def search(**fields):
    settings = {"rows_can_fail": True, "memory": "lower clean.batch_size"}
    return find_crashing_rows("clean", "00003", (), **{**settings, **fields})


def worker(due, poisoned):
    """A worker that dies over some rows, and gives as a part the rows themselves."""

    def answer(call):
        if call.method == "due":
            return due
        if call.method == "measure":
            rows = call.arguments[-1]
            return DEAD if poisoned & set(rows) else tuple(rows)
        if call.method == "work":
            return DEAD if poisoned & set(due) else {"rows": len(due)}
        if call.method == "commit":
            _, _, _, spans, *parts = call.arguments
            assert [tuple(span) for span in spans] == parts
            return {"found": sorted(row for part in parts for row in part)}
        return None

    return answer


@given(st.data())
def test_exactly_the_rows_that_crash_are_found_in_few_calls(data):
    due = sorted(data.draw(st.sets(st.integers(0, 2000), min_size=1, max_size=1200)))
    poisoned = data.draw(st.sets(st.sampled_from(due), min_size=1, max_size=MOST_CRASHES))
    found, calls = carry_out(search(), worker(due, poisoned))
    assert found == {"found": [row for row in due if row not in poisoned]}
    measured = sum(call.method == "measure" for call in calls)
    depth = math.ceil(math.log2(len(due))) if len(due) > 1 else 0
    assert measured <= len(poisoned) * (2 * (depth + 1) + 1)


def test_a_shard_whose_worker_died_by_chance_is_done_alone():
    found, calls = carry_out(search(), worker([1, 2], set()))
    assert found == {"rows": 2} and len(calls) == 1


def test_a_row_that_dies_once_is_kept():
    real, died = worker(list(range(16)), {5}), []

    def answer(call):
        if call.method == "measure" and call.arguments[-1] == [5]:
            died.append(call)
            return DEAD if len(died) == 1 else (5,)
        return real(call)

    found, _ = carry_out(search(), answer)
    assert found == {"found": list(range(16))}


def test_a_stage_that_crashes_on_everything_is_broken_and_marks_no_row():
    due = list(range(1000))
    asked = []

    def answer(call):
        asked.append(call)
        return worker(due, set(due))(call)

    with pytest.raises(BrokenStageError, match=f"more than {MOST_CRASHES} of its rows"):
        carry_out(search(), answer)
    assert len(asked) < 60 and not any(call.method == "commit" for call in asked)


@pytest.mark.parametrize(
    ("dead", "fields", "error", "match"),
    [
        ("load", {}, BrokenStageError, "while the stage is loaded, before any row"),
        ("due", {}, ShardError, "before it was given a row"),
        ("commit", {}, ShardError, "while it wrote the result"),
        ("", {"rows_can_fail": False}, ShardError, "its worker died 2 times"),
    ],
)
def test_what_is_not_a_rows_fault_is_told_apart(dead, fields, error, match):
    real = worker([0, 1, 2], {1})
    with pytest.raises(error, match=match):
        carry_out(search(**fields), lambda call: DEAD if call.method == dead else real(call))


def test_a_shard_that_is_too_large_for_the_memory_says_what_to_lower():
    short = WorkerDeath(cause="the node ran low", is_memory=True)
    with pytest.raises(ShardError, match=r"out of memory 2 times: lower clean\.batch_size"):
        carry_out(search(), lambda call: short)


def test_suspects_have_a_worker_of_their_own_and_hold_up_no_other():
    ordinary, suspects = (deque(_Job(f"{kind}{n}", None) for n in range(3)) for kind in "os")
    for job in suspects:
        job.search = iter(())
    left = _Progress(ordinary, suspects)
    first = left.next(4)
    left.in_flight[1] = (0, first)
    assert first.shard == "s0"
    assert [left.next(4).shard for _ in range(3)] == ["o0", "o1", "o2"]
    assert left.next(4).shard == "s1"  # all have begun, so that the others may help
    alone = _Progress(deque([_Job("o", None)]), deque([_Job("s", None, iter(()))]))
    assert [alone.next(1).shard, alone.next(1).shard] == ["o", "s"] and alone.next(1) is None


def test_many_suspects_hold_back_the_shards_that_have_not_begun():
    suspects = deque(_Job(f"s{n}", None, iter(())) for n in range(MOST_SUSPECTS))
    left = _Progress(deque([_Job("o", None)]), suspects)
    assert left.next(1).shard == "s0" and left.next(1).shard == "o"
