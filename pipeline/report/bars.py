"""Horizontal bars of shares as inline SVG, coloured by CSS class."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

from pipeline.results.tables import printable

__all__ = ["share_bar", "stacked_bar"]


def tag(name: str, *children: str | Markup, **attributes: object) -> Markup:
    """An SVG element; text and attribute values are escaped.

    In the name of an attribute, a trailing underscore is dropped and others become hyphens.
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
    """A horizontal bar divided into parts.

    Args:
        parts: CSS class and size of each part, left to right.
        total: The size that the whole width stands for.
        label: The text for a screen reader.
    """
    segments, x = [], 0.0
    for class_, size in parts:
        width = 1000 * size / total if total else 0.0
        if width:
            segments.append(tag("rect", x=x, y=0, width=width, height=10, class_=class_))
        x += width
    return tag(
        "svg",
        tag("rect", x=0, y=0, width=1000, height=10, class_="track"),
        *segments,
        class_="bar",
        viewBox="0 0 1000 10",
        preserveAspectRatio="none",
        role="img",
        aria_label=label,
    )


def share_bar(share: float, class_: str, label: str) -> Markup:
    """A horizontal bar for a share between 0 and 1."""
    return stacked_bar([(class_, min(max(share, 0.0), 1.0))], 1.0, label)


def _plain(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))
