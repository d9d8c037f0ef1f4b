"""The HTML of a report: figures, tables and galleries laid out by index.html.j2.

The page needs no script and loads nothing; its content security policy forbids both.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from pipeline.manifest import STAGES, Plan
from pipeline.report.charts import Histogram, curves, histogram, printable, share_bar, stacked_bar
from pipeline.report.examples import Example
from pipeline.report.health import PAPER
from pipeline.report.survey import CELLS

__all__ = ["Figure", "Gallery", "render"]

FOLDER = Path(__file__).parent
MOST_MEASURES = 4
HEADLINES = {
    "retrieval itm TR@1": "Image to text, R@1",
    "retrieval itm IR@1": "Text to image, R@1",
    "captioning CIDEr": "Captions, CIDEr",
}
"""The metrics of the paper's tables."""

TRUTHS = {
    "raw_true": ("web faint", "Web captions true of their image, as found"),
    "exported_true": ("web", "Web captions true of their image, as exported"),
    "synthetic_true": ("synthetic", "Synthetic captions true of their image, as exported"),
    "exported_recall": ("kept", "Photographs with a true web caption that keep one"),
}
SCORES = ("stage", "precision", "recall")

LOSSES = ("loss", "itc", "itm", "lm")
CELL_TITLES = {
    "both": "Both kept",
    "web": "Only the web caption kept",
    "synthetic": "Only the synthetic caption kept",
    "none": "Neither kept",
}


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The rows that the page shows in pictures.

    Attributes:
        reasons: For each (stage, reason).
        cells: For each of the four fates of an image's texts.
        clusters: (size, representative and some members) of the largest clusters.
        firsts: The representatives of near-duplicates, by uid.
    """

    reasons: Mapping[tuple[str, str], Sequence[Example]] = field(default_factory=dict)
    cells: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    clusters: Sequence[tuple[int, Sequence[Example]]] = ()
    firsts: Mapping[str, Example] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart with its title, what its colours mean as (CSS class, name), and a remark."""

    title: str
    svg: Markup
    legend: Sequence[tuple[str, str]] = ()
    remark: str = ""


def render(
    facts: Mapping[str, Any],
    plan: Plan,
    gallery: Gallery,
    training: Mapping[str, Sequence[Mapping[str, float]]],
    record: Mapping[str, Any],
) -> str:
    """The page.

    Args:
        facts: The content of report.json.
        plan: The plan of the run.
        gallery: The rows to show.
        training: The lines of metrics.jsonl of each model.
        record: The content of run.json.
    """
    environment = jinja2.Environment(
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
        "metric": _metric,
        "words": lambda text: str(text).replace("_", " "),
        "sentence": _sentence,
    }
    environment.filters.update(filters)
    style = (FOLDER / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = environment.get_template("index.html.j2").render(
        facts=facts,
        style=Markup(style),
        digest=digest,
        gallery=gallery,
        relevant=_relevant,
        sentences={name: dict(STAGES[name].reasons) for name in plan.names},
        cell_titles=CELL_TITLES,
        cells=CELLS,
        paper=PAPER,
        itm=_itm_figures(facts),
        lengths=_length_figures(facts),
        images=_image_figures(facts),
        curves=_curves(training),
        metrics=_columns(facts["evaluation"].values()),
        best=_best(facts["evaluation"]),
        round_facts=[name for name in _columns(facts["rounds"]) if name != "round"],
        verdicts=sorted(_columns(facts["truth"].get("stages", ())), key=_score_order),
        truths=TRUTHS,
        headlines=_headlines(facts),
        seed=plan.manifest.seed,
        record=json.dumps(record, indent=2, ensure_ascii=False, default=str),
        versions=record.get("versions", {}),
        stacked_bar=stacked_bar,
        share_bar=share_bar,
    )
    return page.strip() + "\n"


def _itm_figures(facts: Mapping[str, Any]) -> list[Figure]:
    threshold = facts["threshold"]
    found = []
    for source in ("web", "synthetic"):
        texts = facts["texts"][source]
        if not texts["judged"]:
            continue
        whole = _read(facts, f"{source}_itm")
        counts = whole.series["texts"]
        cut = 0.0 if threshold is None else threshold
        below = [n if low < cut else 0 for low, n in zip(whole.edges, counts, strict=False)]
        shown = Histogram(edges=whole.edges, series={"texts": counts, "below": below})
        remark = f"{texts['judged']:,} texts, {texts['reject_rate']:.1%} rejected"
        found.append(
            Figure(
                title=f"ITM scores of {source} captions",
                svg=histogram(
                    shown,
                    (source, "reject"),
                    bins=[f"{low:.3g} to {high:.3g}" for low, high in _pairs(whole.edges)],
                    ticks={0.0: "0", 0.25: "0.25", 0.5: "0.5", 0.75: "0.75", 1.0: "1"},
                    x_label="probability of a match",
                    label=f"Histogram of ITM scores of {source} captions: {remark}",
                    threshold=threshold,
                ),
                legend=((source, "kept"), ("reject", f"under {threshold}"))
                if threshold is not None
                else (),
                remark=remark,
            )
        )
    return found


def _length_figures(facts: Mapping[str, Any]) -> list[Figure]:
    found = []
    for source, verb in (("web", "found"), ("synthetic", "written")):
        counts = _read(facts, f"{source}_words")
        if not counts.total:
            continue
        kept = facts["texts"][source]["kept"]
        remark = f"{counts.total:,} {verb}, {kept:,} kept"
        found.append(
            Figure(
                title=f"Length of {source} captions",
                svg=histogram(
                    counts,
                    (f"{source} faint", source),
                    bins=[*(f"{n:.0f} words" for n in counts.edges[:-2]), "30 words or more"],
                    ticks={**{n + 0.5: str(n) for n in range(0, 30, 5)}, 30.5: "30+"},
                    x_label="words",
                    label=f"Histogram of lengths of {source} captions: {remark}",
                ),
                legend=((f"{source} faint", verb), (source, "kept")),
                remark=remark,
            )
        )
    return found


def _image_figures(facts: Mapping[str, Any]) -> list[Figure]:
    found = []
    powers = {float(n): f"{2**n:,}" for n in range(4, 13, 2)}
    ratios = {-2.0: "1:4", -1.0: "1:2", 0.0: "1:1", 1.0: "2:1", 2.0: "4:1"}
    for key, title, ticks, x_label, form in (
        ("log2_shorter_side", "Shorter side of the images", powers, "pixels, log scale", ".0f"),
        ("log2_aspect", "Shape of the images", ratios, "width : height, log scale", ".2f"),
    ):
        counts = _read(facts, key)
        if not counts.total:
            continue
        bins = [f"{2**low:{form}} to {2**high:{form}}" for low, high in _pairs(counts.edges)]
        remark = f"{counts.total:,} downloaded, {sum(counts.series['kept']):,} kept"
        found.append(
            Figure(
                title=title,
                svg=histogram(
                    counts,
                    ("kept faint", "kept"),
                    bins=bins,
                    ticks=ticks,
                    x_label=x_label,
                    label=f"Histogram: {title.lower()}, {remark}",
                ),
                legend=(("kept faint", "downloaded"), ("kept", "kept")),
                remark=remark,
            )
        )
    return found


def _curves(training: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Figure]:
    """The losses of each model over its steps."""
    found = []
    for model, lines in training.items():
        series = {
            name: [(line["step"], line[name]) for line in lines if name in line] for name in LOSSES
        }
        series = {name: points for name, points in series.items() if len(points) > 1}
        if len(series) == 2:  # the only part is the loss
            series.pop("loss", None)
        if not series:
            continue
        classes = [f"loss-{name}" for name in series]
        last = {name: points[-1][1] for name, points in series.items()}
        ends = ", ".join(f"{name} {value:.3g}" for name, value in last.items())
        speeds = [line["images_per_s"] for line in lines if "images_per_s" in line]
        speed = f"; {sum(speeds) / len(speeds):,.0f} images/s" if speeds else ""
        found.append(
            Figure(
                title=model,
                svg=curves(
                    series, classes, x_label="step", label=f"Losses of {model}, at the end {ends}"
                ),
                legend=tuple(zip(classes, series, strict=True)),
                remark=f"{int(lines[-1]['step']):,} steps, at the end {ends}{speed}",
            )
        )
    return found


def _headlines(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The main metrics of the model evaluated last, as (title, value, remark)."""
    models = list(facts["evaluation"].items())
    if not models:
        return []
    (first, before), (last, after) = models[0], models[-1]
    return [
        (
            title,
            _metric(after[name]),
            f"model {last}"
            + (f"; {first} {_metric(before[name])}" if first != last and name in before else ""),
        )
        for name, title in HEADLINES.items()
        if name in after
    ]


def _best(evaluation: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The highest value of each metric of which higher is better."""
    hints = ("@", "CIDEr", "roc_auc", "accuracy")
    values = list(evaluation.values())
    return {
        name: max(found[name] for found in values if name in found)
        for name in _columns(values)
        if len(values) > 1 and any(hint in name for hint in hints)
    }


def _score_order(name: str) -> int:
    return SCORES.index(name) if name in SCORES else len(SCORES)


def _read(facts: Mapping[str, Any], key: str) -> Histogram:
    entry = facts["histograms"][key]
    return Histogram(edges=entry["edges"], series=entry["series"])


def _pairs(edges: Sequence[float]) -> list[tuple[float, float]]:
    return list(itertools.pairwise(edges))


def _columns(rows: Any) -> list[str]:
    """The keys of some mappings, each once, in the order of their first use."""
    return list(dict.fromkeys(key for row in rows for key in row))


def _relevant(measures: Mapping[str, str], explanation: str) -> dict[str, str]:
    """The measures whose names an explanation mentions most, a few at most."""
    said = explanation.lower()
    hits = {name: sum(word in said for word in name.split("_")) for name in measures}
    most = max(hits.values(), default=0)
    chosen = [name for name in measures if hits[name] == most]
    return {name: measures[name] for name in chosen[:MOST_MEASURES]}


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


def _metric(value: Any) -> str:
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
