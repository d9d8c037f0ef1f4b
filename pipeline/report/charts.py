"""Charts as inline SVG: colours by CSS class, sizes by attribute, every mark with a text."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

__all__ = [
    "Frame",
    "Histogram",
    "curves",
    "histogram",
    "intervals",
    "overlay",
    "printable",
    "share_bar",
    "stacked_bar",
]

WIDTH = 360
HEIGHT = 212
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 12, 38
MAX_POINTS = 240
MAX_MARKS = 60
"""Places along a line at which its values are told."""

CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts over fixed bins.

    Attributes:
        edges: n + 1 ascending bounds.
        series: n counts for each series, by its name. A later series is a part of an earlier one
            and is drawn over it.
    """

    edges: Sequence[float]
    series: Mapping[str, list[int]]

    @classmethod
    def empty(cls, edges: Sequence[float], *names: str) -> Histogram:
        """Zeros for each series."""
        return cls(edges=edges, series={name: [0] * (len(edges) - 1) for name in names})

    def add(self, name: str, values: npt.NDArray[Any]) -> None:
        """Count values in a series; those beyond the ends count in the outermost bins."""
        last = np.nextafter(self.edges[-1], -np.inf)
        counts, _ = np.histogram(np.clip(values, self.edges[0], last), np.asarray(self.edges))
        for index, count in enumerate(counts.tolist()):
            self.series[name][index] += count

    @property
    def total(self) -> int:
        """The sum of the first series."""
        return sum(next(iter(self.series.values()), []))


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What stands around the marks of a chart.

    Attributes:
        ticks: Labels of the x axis by the value they stand at.
        x_label: What x is.
        label: What a screen reader says.
        bins: What each bin of a histogram holds, for its tooltip.
        thresholds: Where to draw vertical lines.
    """

    ticks: Mapping[float, str]
    x_label: str
    label: str
    bins: Sequence[str] = ()
    thresholds: Sequence[float] = ()


def printable(text: str) -> str:
    """The text without control characters, line breaks and tabs excepted."""
    return CONTROLS.sub("\ufffd", text)


def tag(name: str, *children: str | Markup, **attributes: object) -> Markup:
    """An element; text and attribute values are escaped.

    A trailing underscore of an attribute's name is dropped, others become hyphens.
    """
    pairs = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _plain(value))
        for key, value in attributes.items()
    )
    content = Markup("").join(
        child if isinstance(child, Markup) else escape(printable(child)) for child in children
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), pairs, content)


def stacked_bar(parts: Sequence[tuple[str, float]], total: float, label: str) -> Markup:
    """One horizontal bar cut in parts.

    Args:
        parts: CSS class and size of each part, left to right.
        total: What the whole width stands for.
        label: What a screen reader says.
    """
    marks, x = [], 0.0
    for class_, size in parts:
        width = 1000 * size / total if total else 0.0
        if width:
            marks.append(tag("rect", x=x, y=0, width=width, height=10, class_=class_))
        x += width
    return tag(
        "svg",
        tag("rect", x=0, y=0, width=1000, height=10, class_="track"),
        *marks,
        class_="bar",
        viewBox="0 0 1000 10",
        preserveAspectRatio="none",
        role="img",
        aria_label=label,
    )


def share_bar(share: float, class_: str, label: str) -> Markup:
    """One horizontal bar for a share of 1."""
    return stacked_bar([(class_, min(max(share, 0.0), 1.0))], 1.0, label)


def histogram(found: Histogram, classes: Sequence[str], frame: Frame) -> Markup:
    """Bars over bins, a later series over an earlier one.

    Args:
        found: What to draw.
        classes: The CSS class of each series.
        frame: What stands around.
    """
    edges = list(found.edges)
    highest = max((max(counts, default=0) for counts in found.series.values()), default=0)
    axes, marks = _over_bins(edges, highest, lambda value: f"{value:,.0f}", least_step=1.0)
    for index, (low, high) in enumerate(itertools.pairwise(edges)):
        values = {name: counts[index] for name, counts in found.series.items()}
        if not any(values.values()):
            continue
        bars = [
            axes.bar(low, high, value, class_)
            for class_, value in zip(classes, values.values(), strict=True)
        ]
        sizes = ", ".join(f"{value:,} {name}" for name, value in values.items())
        marks.append(_mark(f"{frame.bins[index]}: {sizes}", *bars))
    return axes.chart(marks, frame)


def overlay(found: Histogram, classes: Sequence[str], frame: Frame) -> Markup:
    """Outlines over bins, each series as shares of its own sum; otherwise as `histogram`."""
    edges = list(found.edges)
    shares = {
        name: [count / (sum(counts) or 1) for count in counts]
        for name, counts in found.series.items()
    }
    highest = max((max(line, default=0.0) for line in shares.values()), default=0.0)
    axes, marks = _over_bins(edges, highest, lambda value: f"{100 * value:.3g}%")
    for line, class_ in zip(shares.values(), classes, strict=True):
        corners = [
            (edge, share) for index, share in enumerate(line) for edge in edges[index : index + 2]
        ]
        corners = [(edges[0], 0.0), *corners, (edges[-1], 0.0)]
        marks.append(tag("polyline", points=axes.path(corners), class_=f"line {class_}"))
    for index, (low, high) in enumerate(itertools.pairwise(edges)):
        if any(line[index] for line in shares.values()):
            told = ", ".join(f"{line[index]:.1%} of {name}" for name, line in shares.items())
            hit = axes.bar(low, high, axes.top, "hit")
            marks.append(_mark(f"{frame.bins[index]}: {told}", hit))
    return axes.chart(marks, frame)


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    classes: Sequence[str],
    *,
    x_label: str,
    label: str,
    is_log: bool = False,
) -> Markup:
    """Lines over a shared x axis.

    Args:
        series: (x, y) points in ascending x for each line, by its name.
        classes: The CSS class of each line.
        x_label: What x is.
        label: What a screen reader says.
        is_log: Both axes are logarithmic; points must be positive.
    """
    scale = math.log10 if is_log else float
    lines = {name: [(scale(x), scale(y)) for x, y in line] for name, line in series.items()}
    points = [point for line in lines.values() for point in line]
    if not points:
        return Markup("")
    xs, ys = [x for x, _ in points], [y for _, y in points]
    least = min(0.0, min(ys))
    step = 1.0 if is_log else _nice_step(max(ys) - least, 4)
    low = step * math.floor(least / step)
    right = max(max(xs), math.ceil(max(xs)) if is_log else max(xs))
    axes = _Axes(min(xs), right, low, max(step * math.ceil(max(ys) / step), low + step))
    marks = axes.grid(step, lambda value: f"{10**value:,.0f}" if is_log else f"{value:g}")
    for (name, line), class_ in zip(lines.items(), classes, strict=True):
        (x0, y0), (x1, y1) = series[name][0], series[name][-1]
        title = f"{name}: {y0:.4g} at {x0:g}, {y1:.4g} at {x1:g}"
        shown = line if is_log else _thinned(line)
        marks.append(
            tag("polyline", tag("title", title), points=axes.path(shown), class_=f"line {class_}")
        )
    width = (axes.right - axes.left) / MAX_MARKS
    told: dict[int, dict[str, tuple[float, float]]] = {}
    for name, line in lines.items():
        for (at, _), point in zip(line, series[name], strict=True):
            index = min(int((at - axes.left) / width), MAX_MARKS - 1) if width else 0
            told.setdefault(index, {})[name] = point
    for index, values in sorted(told.items()):
        text = ", ".join(f"{name} {y:,.4g}" for name, (_, y) in values.items())
        start = axes.left + index * width
        hit = axes.bar(start, start + width, axes.top, "hit")
        marks.append(_mark(f"{x_label} {max(x for x, _ in values.values()):,.0f}: {text}", hit))
    if is_log:
        ticks = {float(n): f"{10**n:,}" for n in range(int(right) + 1)}
    else:
        ticks = {axes.left: f"{axes.left:,.0f}", right: f"{right:,.0f}"}
    return axes.chart(marks, Frame(ticks=ticks, x_label=x_label, label=label))


def intervals(
    rows: Sequence[tuple[str, float, float | None, float | None, Sequence[float]]],
    *,
    x_label: str,
    label: str,
) -> Markup:
    """A mean with its interval and the values behind it, a line for each row.

    Args:
        rows: Label, mean, low and high end of the interval or None, and the values.
        x_label: What x is.
        label: What a screen reader says.
    """
    ends = [x for _, mean, low, high, values in rows for x in (mean, low, high, *values)]
    known = [x for x in ends if x is not None]
    step = _nice_step((max(known) - min(known)) or abs(max(known)) or 1.0, 4)
    start, stop = (
        step * f(edge / step) for f, edge in ((math.floor, min(known)), (math.ceil, max(known)))
    )
    stop = max(stop, start + step)
    margin, width, height = 130, WIDTH - 130 - 14, 26 * len(rows)

    def at_x(value: float) -> float:
        return margin + width * (value - start) / (stop - start)

    marks = []
    for value in _multiples(step, stop, start):
        x = at_x(value)
        marks.append(tag("line", x1=x, x2=x, y1=TOP, y2=TOP + height, class_="grid"))
        marks.append(_text(x, TOP + height + 15, f"{value:g}"))
    for index, (name, mean, low, high, values) in enumerate(rows):
        y = TOP + 26 * index + 13
        told = f"{name}: {mean:.3f}"
        parts = [tag("circle", cx=at_x(one), cy=y, r=2.5, class_="dot faint") for one in values]
        if low is not None and high is not None:
            told += f", interval {low:.3f} to {high:.3f}"
            parts.append(tag("line", x1=at_x(low), x2=at_x(high), y1=y, y2=y, class_="whisker"))
        parts.append(tag("circle", cx=at_x(mean), cy=y, r=4.5, class_="dot"))
        marks.append(_mark(told, *parts))
        marks.append(_text(margin - 8, y + 3.5, name, anchor="end"))
    marks.append(_text(margin + width / 2, TOP + height + 32, x_label, class_="label"))
    view = f"0 0 {WIDTH} {TOP + height + 38}"
    return _svg(marks, view, label)


class _Axes:
    """The area of a chart, from values to places in it."""

    def __init__(self, left: float, right: float, bottom: float, top: float) -> None:
        self.left, self.right, self.bottom, self.top = left, right, bottom, top

    def x(self, value: float) -> float:
        share = (value - self.left) / ((self.right - self.left) or 1)
        return LEFT + (WIDTH - LEFT - RIGHT) * share

    def y(self, value: float) -> float:
        share = (self.top - value) / (self.top - self.bottom)
        return TOP + (HEIGHT - TOP - BOTTOM) * share

    def path(self, line: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in line)

    def bar(self, low: float, high: float, value: float, class_: str) -> Markup:
        x, y = self.x(low), self.y(value)
        width, height = max(self.x(high) - x - 1, 0.5), self.y(self.bottom) - y
        return tag("rect", x=x + 0.5, y=y, width=width, height=height, class_=class_)

    def grid(self, step: float, form: Callable[[float], str]) -> list[Markup]:
        """Lines at multiples of a step, with their values beside them."""
        marks = []
        for value in _multiples(step, self.top, self.bottom):
            y = self.y(value)
            marks.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
            marks.append(_text(LEFT - 6, y + 3.5, form(value), anchor="end"))
        return marks

    def chart(self, marks: Sequence[Markup], frame: Frame) -> Markup:
        """The whole, with the x axis and vertical lines at the thresholds."""
        y = self.y(self.bottom)
        rest = [tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="axis")]
        for value, text in frame.ticks.items():
            anchor = "end" if value >= self.right else "middle"
            rest.append(_text(self.x(value), HEIGHT - BOTTOM + 15, text, anchor=anchor))
        middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
        rest.append(_text(middle, HEIGHT - 5, frame.x_label, class_="label"))
        for x in map(self.x, frame.thresholds):
            rest.append(tag("line", x1=x, x2=x, y1=TOP - 6, y2=y, class_="threshold"))
        view = f"0 0 {WIDTH} {HEIGHT}"
        return _svg([*marks, *rest], view, frame.label)


def _over_bins(
    edges: Sequence[float], highest: float, form: Callable[[float], str], least_step: float = 0.0
) -> tuple[_Axes, list[Markup]]:
    """Axes from 0 to a round number, and their grid."""
    step = max(_nice_step(highest, 4), least_step)
    axes = _Axes(edges[0], edges[-1], 0.0, max(step * math.ceil(highest / step), step))
    return axes, axes.grid(step, form)


def _svg(marks: Sequence[Markup], view: str, label: str) -> Markup:
    return tag("svg", *marks, class_="chart", viewBox=view, role="img", aria_label=label)


def _mark(title: str, *children: Markup) -> Markup:
    """A place of a chart with what it says."""
    return tag("g", tag("title", title), *children, class_="mark")


def _text(x: float, y: float, text: str, *, anchor: str = "middle", class_: str = "tick") -> Markup:
    return tag("text", text, x=x, y=y, text_anchor=anchor, class_=class_)


def _thinned(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MAX_POINTS` points, each the mean of the run of points it stands for."""
    size = math.ceil(len(line) / MAX_POINTS)
    runs = [line[start : start + size] for start in range(0, len(line), size)]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def _nice_step(span: float, number: int) -> float:
    """1, 2 or 5 times a power of ten, so that about `number` steps make the span."""
    if span <= 0:
        return 1.0
    raw = span / number
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)


def _multiples(step: float, top: float, low: float = 0.0) -> list[float]:
    return [low + step * index for index in range(round((top - low) / step) + 1)]


def _plain(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))
