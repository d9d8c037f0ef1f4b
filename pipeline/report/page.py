"""The HTML of a report: figures, tables and galleries laid out by index.html.j2.

The page loads nothing: its content security policy forbids all but its own style and script, by
their hashes, and images that stand in it. Without the script it shows the same.
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

from pipeline.manifest import STAGES
from pipeline.plan import Plan
from pipeline.report.charts import (
    Histogram,
    curves,
    histogram,
    overlay,
    printable,
    share_bar,
    stacked_bar,
)
from pipeline.report.examples import Example
from pipeline.report.health import PAPER
from pipeline.report.survey import CELLS

__all__ = [
    "DISTRIBUTIONS",
    "Figure",
    "Gallery",
    "Rows",
    "distribution",
    "environment",
    "policy",
    "render",
]

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
class Rows:
    """The rows behind a reason to reject.

    Attributes:
        sample: Drawn at random.
        rejected: Those of its rows nearest the threshold.
        kept: The rows nearest the threshold that the stage keeps.
        name: The field that sets the threshold, if the reason has one.
        limit: Its value; None where the pool decides it.
    """

    sample: Sequence[Example]
    rejected: Sequence[Example] = ()
    kept: Sequence[Example] = ()
    name: str = ""
    limit: float | None = None

    @property
    def examples(self) -> list[Example]:
        """All of them."""
        return [*self.rejected, *self.kept, *self.sample]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The rows that the page shows in pictures.

    Attributes:
        reasons: Those of each (stage, reason).
        cells: For each of the four fates of an image's texts.
        clusters: (size, representative and some members) of the largest clusters.
        firsts: The representatives of near-duplicates, by uid.
    """

    reasons: Mapping[tuple[str, str], Rows] = field(default_factory=dict)
    cells: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    clusters: Sequence[tuple[int, Sequence[Example]]] = ()
    firsts: Mapping[str, Example] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart.

    Attributes:
        title: What it shows.
        svg: The chart.
        legend: What its colours mean, as (CSS class, name).
        remark: A sentence below the title.
        numbers: The same as a table: its heads, and its rows.
    """

    title: str
    svg: Markup
    legend: Sequence[tuple[str, str]] = ()
    remark: str = ""
    numbers: tuple[Sequence[str], Sequence[Sequence[str]]] = ((), ())


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
    page = (
        environment()
        .get_template("index.html.j2")
        .render(
            facts=facts,
            **policy(),
            gallery=gallery,
            relevant=_relevant,
            sentences={name: STAGES[name].every_reason() for name in plan.names},
            cell_titles=CELL_TITLES,
            cells=CELLS,
            paper=PAPER,
            scores=[
                figure
                for kind in ("itm", "clip")
                for source in ("web", "synthetic")
                if (figure := _score_figure(facts, source, kind)) is not None
            ],
            lengths=_length_figures(facts),
            images=_image_figures(facts),
            phrases=_phrase_figures(facts),
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
            machine=record.get("machine", {}),
        )
    )
    return page.strip() + "\n"


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
        "metric": _metric,
        "change": _change,
        "words": lambda text: str(text).replace("_", " "),
        "sentence": _sentence,
    }
    found.filters.update(filters)
    found.globals.update(stacked_bar=stacked_bar, share_bar=share_bar)
    return found


def policy() -> dict[str, Any]:
    """The style and the script of a page, and the policy that allows these and nothing else."""
    parts = {
        kind: (FOLDER / f"report.{end}").read_text(encoding="utf-8")
        for kind, end in (("style", "css"), ("script", "js"))
    }
    hashes = " ".join(
        f"{kind}-src 'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}';"
        for kind, part in parts.items()
    )
    return {
        **{kind: Markup(part) for kind, part in parts.items()},
        "policy": f"default-src 'none'; img-src data:; {hashes} base-uri 'none'; "
        "form-action 'none'",
    }


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """How the histogram of a fact is drawn.

    Attributes:
        title: What it counts.
        x_label: What x is.
        ticks: Labels of the x axis by the value they stand at.
        bins: What a bin is called, by its two edges.
    """

    title: str
    x_label: str
    ticks: Mapping[float, str]
    bins: Callable[[float, float], str]


def _range(form: str, scale: Callable[[float], float] = float) -> Callable[[float, float], str]:
    return lambda low, high: f"{scale(low):{form}} to {scale(high):{form}}"


def _words_bin(low: float, high: float) -> str:
    return "30 words or more" if low >= 30 else f"{low:.0f} words"


QUARTERS = {0.0: "0", 0.25: "0.25", 0.5: "0.5", 0.75: "0.75", 1.0: "1"}
COSINES = {n / 10: f"{n / 10:g}" for n in range(-1, 7)}
COUNTS = {**{n + 0.5: str(n) for n in range(0, 30, 5)}, 30.5: "30+"}
PIXELS = {float(n): f"{2**n:,}" for n in range(4, 13, 2)}
RATIOS = {-2.0: "1:4", -1.0: "1:2", 0.0: "1:1", 1.0: "2:1", 2.0: "4:1"}
DISTRIBUTIONS = {
    **{
        f"{source}_words": Distribution(
            title=f"Length of {source} captions", x_label="words", ticks=COUNTS, bins=_words_bin
        )
        for source in ("web", "synthetic")
    },
    **{
        f"{source}_itm": Distribution(
            title=f"ITM scores of {source} captions",
            x_label="probability of a match",
            ticks=QUARTERS,
            bins=_range(".3g"),
        )
        for source in ("web", "synthetic")
    },
    **{
        f"{source}_clip": Distribution(
            title=f"CLIP similarity of {source} captions",
            x_label="cosine",
            ticks=COSINES,
            bins=_range(".2f"),
        )
        for source in ("web", "synthetic")
    },
    "log2_shorter_side": Distribution(
        title="Shorter side of the images",
        x_label="pixels, log scale",
        ticks=PIXELS,
        bins=_range(".0f", lambda value: 2**value),
    ),
    "log2_aspect": Distribution(
        title="Shape of the images",
        x_label="width : height, log scale",
        ticks=RATIOS,
        bins=_range(".2f", lambda value: 2**value),
    ),
}
"""The histograms of report.json, by their key."""


def distribution(
    key: str,
    counts: Histogram,
    legend: Sequence[tuple[str, str]],
    remark: str,
    *,
    thresholds: Sequence[float] = (),
    is_overlaid: bool = False,
) -> Figure:
    """A histogram of report.json.

    Args:
        key: Its key.
        counts: What it counts.
        legend: CSS class and name of each series.
        remark: A sentence on it.
        thresholds: Where to draw lines.
        is_overlaid: Its series are of several runs, shown as shares.
    """
    drawn = DISTRIBUTIONS[key]
    bins = [drawn.bins(low, high) for low, high in itertools.pairwise(counts.edges)]
    names = [name for _, name in legend]
    series = dict(zip(names, counts.series.values(), strict=True))
    lines = zip(bins, *series.values(), strict=True)
    draw = overlay if is_overlaid else histogram
    return Figure(
        title=drawn.title,
        svg=draw(
            Histogram(edges=counts.edges, series=series),
            [class_ for class_, _ in legend],
            bins=bins,
            ticks=drawn.ticks,
            x_label=drawn.x_label,
            label=f"Histogram: {drawn.title}, {remark}",
            thresholds=thresholds,
        ),
        legend=legend,
        remark=remark,
        numbers=(
            (drawn.x_label, *names),
            [(bin_, *map(_number, values)) for bin_, *values in lines if any(values)],
        ),
    )


def _score_figure(facts: Mapping[str, Any], source: str, kind: str) -> Figure | None:
    """The scores of a source's texts, those under the threshold set off."""
    whole = _read(facts, f"{source}_{kind}")
    if not whole.total:
        return None
    threshold = facts["thresholds"][kind]
    lines = [] if threshold is None else [threshold]
    remark = f"{whole.total:,} texts, {facts['texts'][source]['reject_rate']:.1%} rejected"
    legend: tuple[tuple[str, str], ...] = ((source, "texts"),)
    if kind == "clip":
        legend = ((f"{source} faint", "judged"), (source, "kept"))
        remark = f"{whole.total:,} texts, {sum(whole.series['kept']):,} kept"
    elif threshold is not None:
        counts = whole.series["texts"]
        below = [n if low < threshold else 0 for low, n in zip(whole.edges, counts, strict=False)]
        over = [n - m for n, m in zip(counts, below, strict=True)]
        whole = Histogram(edges=whole.edges, series={"over": over, "below": below})
        legend = ((source, "kept"), ("reject", f"under {threshold:g}"))
    return distribution(f"{source}_{kind}", whole, legend, remark, thresholds=lines)


def _length_figures(facts: Mapping[str, Any]) -> list[Figure]:
    found = []
    for source, verb in (("web", "found"), ("synthetic", "written")):
        counts = _read(facts, f"{source}_words")
        if counts.total:
            kept = facts["texts"][source]["kept"]
            legend = ((f"{source} faint", verb), (source, "kept"))
            remark = f"{counts.total:,} {verb}, {kept:,} kept"
            found.append(distribution(f"{source}_words", counts, legend, remark))
    return found


def _image_figures(facts: Mapping[str, Any]) -> list[Figure]:
    found = []
    for key in ("log2_shorter_side", "log2_aspect"):
        counts = _read(facts, key)
        if counts.total:
            legend = (("kept faint", "downloaded"), ("kept", "kept"))
            remark = f"{counts.total:,} downloaded, {sum(counts.series['kept']):,} kept"
            found.append(distribution(key, counts, legend, remark))
    return found


def _phrase_figures(facts: Mapping[str, Any]) -> list[Figure]:
    """The frequencies of noun phrases from the most frequent on, as LLaVA draws them."""
    phrases = facts["phrases"]
    lines = {name: phrases["frequencies"][name] for name in ("before", "after")}
    lines = {name: line for name, line in lines.items() if line}
    if not lines:
        return []
    classes = [f"loss-{name}" for name in lines]
    told = {name: f"{name}, {phrases[f'distinct_{name}']:,} phrases" for name in lines}
    remark = "Each phrase at its rank; both axes logarithmic."
    return [
        Figure(
            title="Frequency of noun phrases",
            svg=curves(
                lines,
                classes,
                x_label="rank",
                label="Frequencies of noun phrases by rank: " + "; ".join(told.values()),
                is_log=True,
            ),
            legend=tuple(zip(classes, told.values(), strict=True)),
            remark=remark,
        )
    ]


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


def _columns(rows: Any) -> list[str]:
    """The keys of some mappings, each once, in the order of their first use."""
    return list(dict.fromkeys(key for row in rows for key in row))


def _relevant(measures: Mapping[str, str], explanation: str) -> dict[str, str]:
    """The measures whose names an explanation mentions most, a few at most."""
    said = explanation.lower()
    hits = {name: sum(word in said for word in name.split("_")) for name in measures}
    most = max(hits.values(), default=0)
    chosen = [name for name in measures if hits[name] == most > 0]
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


def _change(value: float | None) -> str:
    """A difference with its sign."""
    if not value:
        return "" if value is None else "0"
    return ("+" if value > 0 else "\u2212") + _metric(abs(value))


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
