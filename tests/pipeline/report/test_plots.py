from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.histogram import Histogram
from pipeline.report.plots import curves, histogram, intervals


def test_a_plot_holds_its_series_and_the_same_numbers_as_a_table():
    found = Histogram(edges=(0.0, 1.0, 2.0, 3.0), series={"found": [4, 0, 2000], "kept": [1, 0, 2]})
    shown = {"bins": ("low", "middle", "high"), "ticks": {0.0: "0"}, "x_label": "x", "label": "y"}
    bars = histogram(found, ("web faint", "web"), thresholds=[1.5], **shown)
    assert [trace["x"] for trace in bars.data] == [["low", "high"]] * 2
    assert [trace["y"] for trace in bars.data] == [[4, 2000], [1, 2]]
    assert bars.data[0]["hovertext"] == ["4 found", "2,000 found"]
    assert bars.layout["shapes"][0]["x0"] == 1  # the middle of the second bin
    assert bars.numbers == (
        ("x", "found", "kept"),
        [("low", "4", "1"), ("high", "2,000", "2")],
    )
    lines = histogram(found, ("web", "ink dashed"), is_overlaid=True, **shown)
    assert lines.data[1]["y"] == [0.333333, 0, 0.666667]
    assert lines.data[1]["hovertext"][0] == "33.3% of kept"
    whiskers = intervals([("a", 2.0, 1.0, 3.5, [1.5, 2.5])], x_label="x", label="y")
    assert whiskers.data[0]["error_x"]["array"] == [1.5]
    assert whiskers.numbers[1] == [("a", "2.000", "1.000 to 3.500", "1.500, 2.500")]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=900))
def test_a_long_line_is_thinned_to_means_and_its_table_to_some_rows(values):
    line = [(step, value) for step, value in enumerate(values, 1)]
    plot = curves({"loss": line}, ["ink"], x_label="step", label="y")
    assert len(plot.data[0]["x"]) == len(plot.data[0]["y"]) <= 240
    assert plot.data[0]["x"] == sorted(set(plot.data[0]["x"]))
    assert min(values) - 1e-3 * max(map(abs, values)) <= min(plot.data[0]["y"])
    rows = plot.numbers[1]
    assert len(rows) <= 60
    assert {rows[0][0], rows[-1][0]} == {f"{plot.data[0]['x'][n]:,}" for n in (0, -1)}
