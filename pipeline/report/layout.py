"""How pages are laid out: the templates, their filters, the style, and what a page may load.

A page loads nothing: its content security policy forbids all but its own style and scripts, by
their hashes, and images that stand in it. Without scripts its plots are tables.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from pipeline.report.charts import share_bar, stacked_bar
from pipeline.results.tables import printable

__all__ = ["environment", "metric", "policy"]

FOLDER = Path(__file__).parent


def environment() -> jinja2.Environment:
    """What lays out pages: everything that is not markup is escaped."""
    found = jinja2.Environment(
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
    }
    found.filters.update(filters)
    found.globals.update(stacked_bar=stacked_bar, share_bar=share_bar)
    return found


def policy() -> dict[str, Any]:
    """The style and the scripts of a page, and the policy that allows these and nothing else."""
    style, script = (
        (FOLDER / f"report.{end}").read_text(encoding="utf-8") for end in ("css", "js")
    )
    library, sheet = _library()
    # Plotly fills an empty style by rules, which no policy minds once it stands.
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
    """Plotly.js, and the id of the style sheet of its maps, which it adds where nothing has it."""
    library = get_plotlyjs()
    found = re.search(r'getElementById\("([0-9a-f]{64})"\)', library)
    return library, found[1] if found else "plotly"


@functools.cache
def _digest(part: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'"


def _shown(value: Any) -> Any:
    """What an expression of the template puts on the page."""
    return printable(value) if type(value) is str else value


def _sentence(text: str) -> Markup:
    """An explanation, its `names` set as code."""
    parts = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else escape(part)
        for index, part in enumerate(parts)
    )


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
    return ("+" if value > 0 else "\u2212") + metric(abs(value))


def metric(value: Any) -> str:
    """A value of unknown meaning, short."""
    if value is None:
        return "\u2013"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
    return str(value)
