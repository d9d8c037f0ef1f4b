"""An error that nobody foresaw costs the rows it comes from, and no other."""

from __future__ import annotations

import logging
import math

import numpy as np
import pyarrow as pa
import pytest
from helpers import pools
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import ContractError
from pipeline.execution.row_errors import MOST_FAILURES, measure_by_row
from pipeline.execution.worker import Worker
from pipeline.manifest.manifest import Manifest
from pipeline.results.verdicts import Results
from pipeline.storage.run import Run
from stages.base import CRASHED
from stages.clean import CleanStage
from stages.registry import STAGES
from stages.schema import POOL


def name_of(row):
    return f"row {row}"


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_exactly_the_rows_that_raise_are_left_out(data):
    number = data.draw(st.integers(0, 200))
    bad = data.draw(st.sets(st.integers(0, 199), max_size=MOST_FAILURES))
    rows = np.flatnonzero(np.arange(number) % 3 != 1)
    calls = 0

    def measure(span):
        nonlocal calls
        calls += 1
        if bad.intersection(span.tolist()):
            raise ZeroDivisionError
        return [row * 2 for row in span.tolist()]

    found = measure_by_row(rows, measure, name_of)
    failing = bad.intersection(rows.tolist())
    kept = [row for span, _ in found for row in span.tolist()]
    assert kept == [row for row in rows.tolist() if row not in bad]
    assert [two for _, part in found for two in part] == [row * 2 for row in kept]
    assert calls <= 1 + 2 * len(failing) * (math.ceil(math.log2(max(2, len(rows)))) + 1)


@pytest.mark.parametrize("error", [OSError, MemoryError, ImportError, ContractError])
def test_what_is_the_fault_of_no_row_is_raised_at_once(error):
    calls = []

    def measure(span):
        calls.append(span)
        raise error("no")

    with pytest.raises(error):
        measure_by_row(np.arange(100), measure, name_of)
    assert len(calls) == 1


def test_a_stage_that_fails_on_most_rows_is_broken():
    def measure(span):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        measure_by_row(np.arange(100), measure, name_of)


def test_one_row_alone_may_fail(caplog):
    def measure(span):
        raise ZeroDivisionError("by it")

    with caplog.at_level(logging.ERROR):
        assert measure_by_row(np.array([7]), measure, name_of) == []
    assert "row 7 cannot be measured" in caplog.text
    assert "ZeroDivisionError: by it" in caplog.text


class Fussy(CleanStage):
    """Raises where a caption says so, as a measure with a fault would."""

    def annotate(self, rows):
        if "poison" in rows["caption"].to_pylist():
            raise KeyError("poison")
        return super().annotate(rows)


def test_a_row_that_raises_is_rejected_and_the_shard_goes_on(tmp_path, monkeypatch):
    captions = [f"A dog runs far on beach number {n}" for n in range(40)]
    captions[11] = captions[29] = "poison"
    run = Run(str(tmp_path))
    run.write_table(pa.Table.from_pylist(pools.pool_of(captions), POOL), "pool", "00000.parquet")
    worker = Worker(
        Manifest.parse(
            {
                "name": "m",
                "run": str(tmp_path),
                "stages": {"download": {"source": "x"}, "clean": {}},
            }
        )
    )
    monkeypatch.setitem(STAGES._classes, "clean", Fussy)
    done = worker.work("clean", "00000")
    assert done["rows"] == 40
    assert done["reasons"][CRASHED] == 2
    verdicts = Results(run, worker.plan).judge("00000", worker.plan.names)
    reasons = verdicts.reasons["clean"].to_pylist()
    assert [index for index, reason in enumerate(reasons) if reason == CRASHED] == [11, 29]
    assert worker.work("clean", "00000")["rows"] == 0
