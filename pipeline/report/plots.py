"""Plots as Plotly takes them, each with its numbers as a table; report.js draws them.

A colour is the name of a CSS variable, and texts are plain: the script looks up the one for light
and dark and escapes the other.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.charts import Histogram
from pipeline.results.tables import printable

__all__ = ["Plot", "curves", "histogram", "intervals"]

HEIGHT = 240
MAX_POINTS = 240
MAX_ROWS = 60
"""Rows of a table of numbers of a line."""

LABEL_WIDTH = 22
FAINT = 0.3


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A plot.

    Attributes:
        label: What a screen reader says.
        data: Traces of Plotly. The first ones are the series; those with `hovertext` tell values.
        layout: What of Plotly's layout is its own.
        numbers: The same as a table: its heads, and its rows.
        is_line: Its series are lines, not areas.
    """

    label: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    numbers: tuple[Sequence[str], Sequence[Sequence[str]]]
    is_line: bool = False


def histogram(
    found: Histogram,
    colours: Sequence[str],
    *,
    bins: Sequence[str],
    ticks: Mapping[float, str],
    x_label: str,
    label: str,
    thresholds: Sequence[float] = (),
    is_overlaid: bool = False,
) -> Plot:
    """Bars over bins, a later series over an earlier one; or outlines, where each is a whole.

    Args:
        found: What to draw, over bins of one width.
        colours: That of each series, as (CSS variable, `faint`, `dashed`) parted by a space.
        bins: What each bin is called, all different.
        ticks: Labels of the x axis by the value they stand at.
        x_label: What x is.
        label: What a screen reader says.
        thresholds: Where to draw vertical lines.
        is_overlaid: The series are drawn as shares of their own sums.
    """
    width = found.edges[1] - found.edges[0]

    def place(value: float) -> float:
        return (value - found.edges[0]) / width - 0.5

    lines = list(zip(*found.series.values(), strict=True))
    chosen = [index for index, line in enumerate(lines) if is_overlaid or any(line)]
    data = []
    for (name, counts), colour in zip(found.series.items(), colours, strict=True):
        total = sum(counts) or 1
        if is_overlaid:
            values = [round(count / total, 6) for count in counts]
            told = [f"{value:.1%} of {printable(name)}" for value in values]
            drawn: dict[str, Any] = {
                "type": "scatter",
                "mode": "lines",
                "line": _line(colour, shape="hvh"),
            }
        else:
            values = [counts[index] for index in chosen]
            told = [f"{value:,} {printable(name)}" for value in values]
            drawn = {"type": "bar", "width": 0.94, "marker": _fill(colour)}
        data.append({**drawn, "x": [bins[i] for i in chosen], "y": values, "hovertext": told})
    highest = max((max(counts, default=0) for counts in found.series.values()), default=0)
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
                # A tick at the very middle of a bin would name the bin.
                "tickvals": [place(value) + 0.01 for value in ticks],
                "ticktext": list(ticks.values()),
                "title": {"text": x_label},
            },
            "yaxis": {
                "tickformat": ".3~%" if is_overlaid else ",",
                "rangemode": "tozero",
                "fixedrange": True,
                **whole,
            },
            "shapes": [_threshold(place(value), f"{value:g}") for value in thresholds],
        },
        numbers=(
            (x_label, *found.series),
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
        series: (x, y) points in ascending x for each line, by its name. Of a line of very many,
            each point drawn is the mean of a run of them.
        colours: As of `histogram`.
        x_label: What x is.
        label: What a screen reader says.
        is_log: Both axes are logarithmic; points must be positive.
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


def intervals(
    rows: Sequence[tuple[str, float, float | None, float | None, Sequence[float]]],
    *,
    x_label: str,
    label: str,
) -> Plot:
    """A mean with its interval and the values behind it, a line for each row.

    Args:
        rows: Label, mean, low and high end of the interval or None, and the values.
        x_label: What x is.
        label: What a screen reader says.
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
        "hovertext": [f"{mean} ({interval}); values {told}" for mean, interval, told in cells],
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
            [(row[0], *told) for row, told in zip(rows, cells, strict=True)],
        ),
    )


def _fill(colour: str) -> dict[str, Any]:
    name, *how = colour.split()
    return {"color": f"--{name}", "opacity": FAINT if "faint" in how else 1}


def _line(colour: str, **fields: Any) -> dict[str, Any]:
    name, *how = colour.split()
    dash = {"dash": "dash"} if "dashed" in how else {}
    return {"color": f"--{name}", "width": 1.8, **dash, **fields}


def _threshold(place: float, label: str) -> dict[str, Any]:
    """A line over the whole height, its value on top."""
    return {
        "type": "line",
        "yref": "paper",
        **{"x0": place, "x1": place, "y0": 0, "y1": 1},
        "line": {"color": "--ink", "width": 1.5, "dash": "dash"},
        "label": {"text": label, "textposition": "end", "yanchor": "bottom", "textangle": 0},
    }


def _thinned(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MAX_POINTS` points, each the mean of the run of points it stands for."""
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
    """The values of lines at some of their places, the first and the last among them."""
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
