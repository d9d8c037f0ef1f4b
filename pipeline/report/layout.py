"""The layout of pages: templates, their filters, style, scripts and content security policy.

A page loads nothing. Its policy allows only its own style and scripts, by their hashes, and images
that are embedded in it. Without scripts, its plots are shown as tables.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from pipeline.report.bars import share_bar, stacked_bar
from pipeline.results.tables import printable

__all__ = ["environment", "metric", "policy"]

FOLDER = Path(__file__).parent


def environment() -> jinja2.Environment:
    """The Jinja environment of the pages; it escapes everything that is not markup."""
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "number": _number,
        "percent": _percent,
        "seconds": _seconds,
        "metric": metric,
        "change": _change,
        "words": lambda text: str(text).replace("_", " "),
        "sentence": _sentence,
        "breakable": _breakable,
    }
    pages.filters.update(filters)
    pages.globals.update(stacked_bar=stacked_bar, share_bar=share_bar)
    return pages


def policy() -> dict[str, Any]:
    """The style and the scripts of a page, and the policy that allows only these."""
    style, script = (
        (FOLDER / f"report.{end}").read_text(encoding="utf-8") for end in ("css", "js")
    )
    library, sheet = _library()
    # Plotly adds rules to an empty style element by script, which the policy does not restrict.
    sources = {"style": (style, ""), "script": (library, script)}
    hashes = " ".join(
        f"{kind}-src {' '.join(map(_digest, parts))};" for kind, parts in sources.items()
    )
    return {
        "style": Markup(style),
        "script": Markup(script),
        "library": Markup(library),
        "sheet": sheet,
        "policy": f"default-src 'none'; img-src data:; {hashes} base-uri 'none'; "
        "form-action 'none'",
    }


@functools.cache
def _library() -> tuple[str, str]:
    """Plotly.js, and the id of the style element that it adds to a page without one.

    It is the basic bundle of plotly.js 4.1.1 (bars and lines; MIT licence), a quarter of the whole.
    """
    library = (FOLDER / "plotly-basic.min.js").read_text(encoding="utf-8")
    match = re.search(r'getElementById\("([0-9a-f]{64})"\)', library)
    return library, match[1] if match else "plotly"


@functools.cache
def _digest(part: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'"


def _shown(value: Any) -> Any:
    """The text of a template expression, without control characters."""
    return printable(value) if type(value) is str else value


def _sentence(text: str) -> Markup:
    """An explanation as markup, with `names` in backquotes as code."""
    parts = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else escape(part)
        for index, part in enumerate(parts)
    )


def _breakable(text: str) -> Markup:
    """A URL or a path as markup whose lines break after a slash, and elsewhere only if need be."""
    parts = re.split(r"(?<=[^/]/)(?=[^/])|(?<=[?&=])", printable(text))
    return Markup("<wbr>").join(map(escape, parts))


def _number(value: float) -> str:
    return f"{value:,}"


def _percent(value: float | None, digits: int = 1) -> str:
    return "\u2013" if value is None else f"{value:.{digits}%}"


def _seconds(value: float | None) -> str:
    if not value:
        return "\u2013"
    if value < 90:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 90:
        return f"{minutes} min {seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _change(value: float | None) -> str:
    """A difference with its sign."""
    if not value:
        return "" if value is None else "0"
    text = metric(abs(value))
    if not text.strip("0."):  # a small one, between numbers that read differently
        text = format(Decimal(f"{abs(value):.1g}"), "f")
    return ("+" if value > 0 else "\u2212") + text


def metric(value: Any) -> str:
    """The short text of a value of any type."""
    if value is None:
        return "\u2013"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{round(value, 3) or 0.0:.3f}" if abs(value) < 10 else f"{value:,.1f}"  # no -0
    return str(value)
