"""The sweep of the threshold of semantic copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.sweep import Sweep, figure

COSINES = st.none() | st.floats(-1, 1, width=32) | st.sampled_from([0.95, 0.9, 1.0, 0.5, 0.4995])


def rows(cosines: list[Any], uncompared: int) -> pa.Table:
    """Rows of which some were not compared, and some have no better row that stays."""
    copies = [one is not None and one >= 0.9 for one in cosines]
    return pa.table(
        {
            "semantic_cosine": pa.array([*cosines, *[None] * uncompared], pa.float32()),
            "semantic_copy": pa.array([*copies, *[None] * uncompared], pa.bool_()),
        }
    )


@given(st.lists(st.lists(COSINES, max_size=20), min_size=1, max_size=4), st.integers(0, 3))
def test_each_epsilon_drops_the_rows_that_are_so_near(parts: list[list[Any]], more: int) -> None:
    sweep = Sweep()
    for part in parts:
        sweep.add(rows(part, more))
    every = [np.float32(one) for part in parts for one in part if one is not None]
    number = sum(map(len, parts))
    assert sweep.compared == number
    facts = sweep.facts()
    if facts is None:
        assert not number
        return
    least = [np.float32(1 - epsilon) for epsilon in facts["epsilons"]]
    assert facts["dropped"] == [sum(one >= bound for one in every) for bound in least]
    today = facts["dropped"][facts["epsilons"].index(0.1)]
    copies = [one for part in parts for one in part if one is not None and one >= np.float32(0.9)]
    assert today == len(copies)


def test_the_figure_marks_the_epsilon_of_the_run() -> None:
    sweep = Sweep()
    sweep.add(rows([0.99, 0.93, None, 0.2], 5))
    facts = sweep.facts()
    assert facts is not None
    plot = figure(facts, 1 - 0.95).plot
    assert [shape["x0"] for shape in plot.layout["shapes"]] == [0.05]
    shares = dict(zip(plot.data[0]["x"], plot.data[0]["y"], strict=True))
    assert (shares[0.005], shares[0.02], shares[0.08], shares[0.5]) == (0, 0.25, 0.5, 0.5)
    assert len(plot.numbers[1]) == 51 and plot.numbers[1][2] == ("0.02", "25.00%")
