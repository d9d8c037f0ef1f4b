"""Charts as inline SVG: colours by CSS class, sizes by attribute, every mark with a text."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

__all__ = [
    "Histogram",
    "curves",
    "histogram",
    "intervals",
    "printable",
    "share_bar",
    "stacked_bar",
]

WIDTH = 360
HEIGHT = 212
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 12, 38
MAX_POINTS = 240
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


def histogram(
    found: Histogram,
    classes: Sequence[str],
    *,
    bins: Sequence[str],
    ticks: Mapping[float, str],
    x_label: str,
    label: str,
    threshold: float | None = None,
) -> Markup:
    """Bars over bins, a later series over an earlier one.

    Args:
        found: What to draw.
        classes: The CSS class of each series.
        bins: What each bin holds, for its tooltip.
        ticks: Labels of the x axis by the value they stand at.
        x_label: What x is.
        label: What a screen reader says.
        threshold: Where to draw a vertical line.
    """
    edges = list(found.edges)
    highest = max((max(counts, default=0) for counts in found.series.values()), default=0)
    step = max(_nice_step(highest, 4), 1.0)
    top = max(step * math.ceil(highest / step), step)
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at_x(value: float) -> float:
        return LEFT + width * (value - edges[0]) / (edges[-1] - edges[0])

    def at_y(value: float) -> float:
        return TOP + height * (1 - value / top)

    marks = []
    for value in _multiples(step, top):
        marks.append(_grid(at_y(value)))
        marks.append(_text(LEFT - 6, at_y(value) + 3.5, f"{value:,.0f}", anchor="end"))
    for index, (low, high) in enumerate(itertools.pairwise(edges)):
        values = {name: counts[index] for name, counts in found.series.items()}
        if not any(values.values()):
            continue
        x = at_x(low)
        bars = [
            tag(
                "rect",
                x=x + 0.5,
                y=at_y(value),
                width=max(at_x(high) - x - 1, 0.5),
                height=at_y(0) - at_y(value),
                class_=class_,
            )
            for class_, value in zip(classes, values.values(), strict=True)
        ]
        sizes = ", ".join(f"{value:,} {name}" for name, value in values.items())
        marks.append(tag("g", tag("title", f"{bins[index]}: {sizes}"), *bars))
    marks.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at_y(0), y2=at_y(0), class_="axis"))
    for value, text in ticks.items():
        anchor = "end" if value >= edges[-1] else "middle"
        marks.append(_text(at_x(value), HEIGHT - BOTTOM + 15, text, anchor=anchor))
    marks.append(_text(LEFT + width / 2, HEIGHT - 5, x_label, class_="label"))
    if threshold is not None:
        x = at_x(threshold)
        marks.append(tag("line", x1=x, x2=x, y1=TOP - 6, y2=at_y(0), class_="threshold"))
    return _chart(marks, label)


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    classes: Sequence[str],
    *,
    x_label: str,
    label: str,
) -> Markup:
    """Lines over a shared x axis.

    Args:
        series: (x, y) points in ascending x for each line, by its name.
        classes: The CSS class of each line.
        x_label: What x is.
        label: What a screen reader says.
    """
    points = [point for line in series.values() for point in line]
    if not points:
        return Markup("")
    xs, ys = [x for x, _ in points], [y for _, y in points]
    left, right = min(xs), max(xs)
    step = _nice_step(max(ys) - min(0.0, min(ys)), 4)
    low = step * math.floor(min(0.0, min(ys)) / step)
    high = max(step * math.ceil(max(ys) / step), low + step)
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at_x(value: float) -> float:
        return LEFT + width * (value - left) / ((right - left) or 1)

    def at_y(value: float) -> float:
        return TOP + height * (high - value) / (high - low)

    marks = []
    for value in _multiples(step, high, low):
        marks.append(_grid(at_y(value)))
        marks.append(_text(LEFT - 6, at_y(value) + 3.5, f"{value:g}", anchor="end"))
    for (name, line), class_ in zip(series.items(), classes, strict=True):
        path = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in _thinned(line))
        title = f"{name}: {line[0][1]:.4g} at {line[0][0]:g}, {line[-1][1]:.4g} at {line[-1][0]:g}"
        marks.append(tag("polyline", tag("title", title), points=path, class_=f"line {class_}"))
    marks.append(_text(LEFT, HEIGHT - BOTTOM + 15, f"{left:,.0f}", anchor="start"))
    marks.append(_text(WIDTH - RIGHT, HEIGHT - BOTTOM + 15, f"{right:,.0f}", anchor="end"))
    marks.append(_text(LEFT + width / 2, HEIGHT - 5, x_label, class_="label"))
    return _chart(marks, label)


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
        marks.append(tag("g", tag("title", told), *parts))
        marks.append(_text(margin - 8, y + 3.5, name, anchor="end"))
    marks.append(_text(margin + width / 2, TOP + height + 32, x_label, class_="label"))
    view = f"0 0 {WIDTH} {TOP + height + 38}"
    return tag("svg", *marks, class_="chart", viewBox=view, role="img", aria_label=label)


def _chart(marks: Sequence[Markup], label: str) -> Markup:
    view = f"0 0 {WIDTH} {HEIGHT}"
    return tag("svg", *marks, class_="chart", viewBox=view, role="img", aria_label=label)


def _text(x: float, y: float, text: str, *, anchor: str = "middle", class_: str = "tick") -> Markup:
    return tag("text", text, x=x, y=y, text_anchor=anchor, class_=class_)


def _grid(y: float) -> Markup:
    return tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid")


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
