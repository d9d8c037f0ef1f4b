"""Plots: the traces and the layout for Plotly, and the same numbers as a table.

report.js draws them. A colour is the name of a CSS variable, which the script looks up for the
light or the dark theme. Texts are plain; the script escapes them.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.histogram import Histogram
from pipeline.results.tables import printable

__all__ = ["Plot", "curves", "histogram", "intervals", "shares"]

HEIGHT = 240
MAX_POINTS = 240
MAX_ROWS = 60
"""Rows of the table of numbers of a line plot, at most."""

LABEL_WIDTH = 22
FAINT = 0.3


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A plot.

    Attributes:
        label: The text for a screen reader.
        data: The traces for Plotly, the series first. A trace with `hovertext` shows its values.
        layout: The fields of Plotly's layout that differ from the common ones in report.js.
        numbers: The same numbers as a table: the titles of its columns, and its rows.
        is_line: Whether its series are lines instead of areas.
    """

    label: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    numbers: tuple[Sequence[str], Sequence[Sequence[str]]]
    is_line: bool = False


def histogram(
    bars: Histogram,
    colours: Sequence[str],
    *,
    bins: Sequence[str],
    ticks: Mapping[float, str],
    x_label: str,
    label: str,
    thresholds: Sequence[float] = (),
    is_overlaid: bool = False,
) -> Plot:
    """A plot of a histogram: bars, a later series over an earlier one, or outlines.

    Args:
        bars: The counts, over bins of one width.
        colours: The colour of each series: a CSS variable, then `faint` or `dashed`, separated by
            spaces.
        bins: The name of each bin; names must differ.
        ticks: The labels of the x axis, by their values.
        x_label: The title of the x axis.
        label: The text for a screen reader.
        thresholds: Values at which to draw vertical lines.
        is_overlaid: Draw each series as an outline, in shares of its own sum.
    """
    width = bars.edges[1] - bars.edges[0]

    def position(value: float) -> float:
        return (value - bars.edges[0]) / width - 0.5

    lines = list(zip(*bars.series.values(), strict=True))
    chosen = [index for index, line in enumerate(lines) if is_overlaid or any(line)]
    data = []
    for (name, counts), colour in zip(bars.series.items(), colours, strict=True):
        total = sum(counts) or 1
        if is_overlaid:
            values = [round(count / total, 6) for count in counts]
            hover = [f"{value:.1%} of {printable(name)}" for value in values]
            drawn: dict[str, Any] = {
                "type": "scatter",
                "mode": "lines",
                "line": _line(colour, shape="hvh"),
            }
        else:
            values = [counts[index] for index in chosen]
            hover = [f"{value:,} {printable(name)}" for value in values]
            drawn = {"type": "bar", "width": 0.94, "marker": _fill(colour)}
        data.append({**drawn, "x": [bins[i] for i in chosen], "y": values, "hovertext": hover})
    highest = max((max(counts, default=0) for counts in bars.series.values()), default=0)
    whole = {"dtick": 1} if highest < 5 and not is_overlaid else {}
    return Plot(
        label=label,
        data=data,
        layout={
            "height": HEIGHT,
            "barmode": "overlay",
            "hovermode": "x unified",
            "xaxis": {
                "type": "category",
                "categoryorder": "array",
                "categoryarray": list(bins),
                "range": [-0.5, len(bins) - 0.48],
                # At the exact middle of a bin, Plotly would show the bin's name instead.
                "tickvals": [position(value) + 0.01 for value in ticks],
                "ticktext": list(ticks.values()),
                "title": {"text": x_label},
            },
            "yaxis": {
                "tickformat": ".3~%" if is_overlaid else ",",
                "rangemode": "tozero",
                "fixedrange": True,
                **whole,
            },
            "shapes": [_threshold(position(value), f"{value:g}") for value in thresholds],
        },
        numbers=(
            (x_label, *bars.series),
            [
                (bin_, *(f"{n:,}" for n in line))
                for bin_, line in zip(bins, lines, strict=True)
                if any(line)
            ],
        ),
        is_line=is_overlaid,
    )


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    colours: Sequence[str],
    *,
    x_label: str,
    label: str,
    is_log: bool = False,
) -> Plot:
    """Lines over a shared x axis.

    Args:
        series: The (x, y) points of each line, in ascending x, by its name. A line of more than
            `MAX_POINTS` points is drawn through the means of runs of points.
        colours: As for `histogram`.
        x_label: The title of the x axis.
        label: The text for a screen reader.
        is_log: Whether both axes are logarithmic; then points must be positive.
    """
    lines = {name: line if is_log else _thinned(line) for name, line in series.items()}
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "line": _line(colour),
            "x": [x for x, _ in line],
            "y": [y for _, y in line],
            "hovertext": [f"{y:,.4g} {printable(name)}" for _, y in line],
        }
        for (name, line), colour in zip(lines.items(), colours, strict=True)
    ]
    log = {"type": "log", "dtick": 1, "tickformat": ","} if is_log else {}
    return Plot(
        label=label,
        data=data,
        layout={
            "height": HEIGHT,
            "hovermode": "x unified",
            "xaxis": {"tickformat": ",", **log, "title": {"text": x_label}},
            "yaxis": log or {"rangemode": "tozero"},
        },
        numbers=((x_label, *series), _rows(lines)),
        is_line=True,
    )


def shares(
    name: str,
    line: Sequence[tuple[float, float]],
    colour: str,
    *,
    x_label: str,
    label: str,
    threshold: float,
) -> Plot:
    """A line of shares, each from 0 to 1, over a threshold that could be set.

    Args:
        name: The name of the line.
        line: Its (x, share) points, in ascending x.
        colour: As for `histogram`.
        x_label: The title of the x axis.
        label: The text for a screen reader.
        threshold: The value that is set, marked by a vertical line.
    """
    (first, _), (last, _) = line[0], line[-1]
    told = line[:: math.ceil(len(line) / MAX_ROWS)]
    drawn = {
        "type": "scatter",
        "mode": "lines",
        "line": _line(colour),
        "x": [x for x, _ in line],
        "y": [round(share, 6) for _, share in line],
        "hovertext": [f"{share:.1%} {printable(name)}" for _, share in line],
    }
    return Plot(
        label=label,
        data=[drawn],
        layout={
            "height": HEIGHT,
            "hovermode": "x unified",
            # The margin is for the label of a threshold at an end.
            "xaxis": {
                "title": {"text": x_label},
                "range": [first - 0.05 * (last - first), last + 0.05 * (last - first)],
            },
            "yaxis": {"tickformat": ".3~%", "rangemode": "tozero", "fixedrange": True},
            "shapes": [_threshold(threshold, f"{threshold:g}")],
        },
        numbers=((x_label, name), [(f"{x:g}", f"{share:.2%}") for x, share in told]),
        is_line=True,
    )


def intervals(
    rows: Sequence[tuple[str, float, float | None, float | None, Sequence[float]]],
    *,
    x_label: str,
    label: str,
) -> Plot:
    """A plot of means with their intervals and the single values, a line for each row.

    Args:
        rows: Label, mean, low and high end of the interval or None, and the values.
        x_label: The title of the x axis.
        label: The text for a screen reader.
    """
    names = [textwrap.fill(printable(name), LABEL_WIDTH) for name, *_ in rows]
    ends = [
        (mean, mean, mean) if low is None or high is None else (mean, low, high)
        for _, mean, low, high, _ in rows
    ]
    cells = [
        (
            f"{mean:.3f}",
            "\u2013" if low is None or high is None else f"{low:.3f} to {high:.3f}",
            ", ".join(f"{value:.3f}" for value in values),
        )
        for _, mean, low, high, values in rows
    ]
    means = {
        "type": "scatter",
        "mode": "markers",
        "marker": {**_fill("web"), "size": 9},
        "x": [mean for mean, *_ in ends],
        "y": names,
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [high - mean for mean, _, high in ends],
            "arrayminus": [mean - low for mean, low, _ in ends],
            "color": "--web",
            "thickness": 2,
            "width": 5,
        },
        "hovertext": [f"{mean} ({interval}); values {texts}" for mean, interval, texts in cells],
    }
    single = [(value, name) for name, row in zip(names, rows, strict=True) for value in row[-1]]
    dots = {
        "type": "scatter",
        "mode": "markers",
        "marker": {**_fill("ink faint"), "size": 6},
        "x": [value for value, _ in single],
        "y": [name for _, name in single],
        "hoverinfo": "skip",
    }
    return Plot(
        label=label,
        data=[means, dots],
        layout={
            "height": 70 + 34 * len(rows),
            "hovermode": "y unified",
            "xaxis": {"title": {"text": printable(x_label)}},
            "yaxis": {
                "type": "category",
                "categoryorder": "array",
                "categoryarray": names,
                "range": [len(rows) - 0.5, -0.5],
                "fixedrange": True,
                "showgrid": False,
            },
        },
        numbers=(
            ("", "mean", "95% interval", "values"),
            [(row[0], *texts) for row, texts in zip(rows, cells, strict=True)],
        ),
    )


def _fill(colour: str) -> dict[str, Any]:
    name, *how = colour.split()
    return {"color": f"--{name}", "opacity": FAINT if "faint" in how else 1}


def _line(colour: str, **fields: Any) -> dict[str, Any]:
    name, *how = colour.split()
    dash = {"dash": "dash"} if "dashed" in how else {}
    return {"color": f"--{name}", "width": 1.8, **dash, **fields}


def _threshold(position: float, label: str) -> dict[str, Any]:
    """A vertical line over the whole height, with its value on top."""
    return {
        "type": "line",
        "yref": "paper",
        **{"x0": position, "x1": position, "y0": 0, "y1": 1},
        "line": {"color": "--ink", "width": 1.5, "dash": "dash"},
        "label": {"text": label, "textposition": "end", "yanchor": "bottom", "textangle": 0},
    }


def _thinned(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MAX_POINTS` points, each the mean of a run of points."""
    size = math.ceil(len(line) / MAX_POINTS)
    runs = [line[start : start + size] for start in range(0, len(line), size)]
    return [
        (
            round(sum(x for x, _ in run) / len(run)),
            float(f"{sum(y for _, y in run) / len(run):.5g}"),
        )
        for run in runs
    ]


def _rows(lines: Mapping[str, Sequence[tuple[float, float]]]) -> list[Sequence[str]]:
    """The rows of a table: the values of lines at evenly spaced points, first and last included."""
    known = [dict(line) for line in lines.values()]
    places = sorted(set().union(*known))
    number = min(len(places), MAX_ROWS)
    chosen = {round(n * (len(places) - 1) / max(number - 1, 1)) for n in range(number)}
    return [
        (
            f"{places[at]:,.0f}",
            *(f"{one[places[at]]:,.4g}" if places[at] in one else "" for one in known),
        )
        for at in sorted(chosen)
    ]
