"""The figures of pages: distributions of report.json, and losses of the logs of trainings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.manifest.plan import Plan
from pipeline.report.charts import Histogram
from pipeline.report.plots import Plot, curves, histogram
from stages.base import Stage

__all__ = [
    "DISTRIBUTIONS",
    "Figure",
    "distribution",
    "images",
    "lengths",
    "losses",
    "numbers",
    "phrases",
    "points",
    "scores",
]

SOURCES = ("web", "synthetic")

MOST_TICKS = 6

LOSS_COLOURS = ("web", "synthetic", "human", "reject", "kept")
"""The colours of the parts of a loss; the sum has the colour of text. More parts are left out."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A plot with what stands around it.

    Attributes:
        title: What it shows.
        plot: The plot.
        legend: What its colours mean, as (CSS class, name), in the order of its series.
        remark: A sentence below the title.
    """

    title: str
    plot: Plot
    legend: Sequence[tuple[str, str]] = ()
    remark: str = ""


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


def _whole_bin(low: float, high: float) -> str:
    return f"{low:,.0f}" if high == low + 1 else f"{low:,.0f} to {high - 1:,.0f}"


def _words_bin(low: float, high: float) -> str:
    return "30 words or more" if low >= 30 else f"{low:.0f} words"


QUARTERS = {0.0: "0", 0.25: "0.25", 0.5: "0.5", 0.75: "0.75", 1.0: "1"}
COSINES = {n / 10: f"{n / 10:g}" for n in range(-1, 7)}
COUNTS = {**{n + 0.5: str(n) for n in range(0, 30, 5)}, 30.5: "30+"}
PIXELS = {float(n): f"{2**n:,}" for n in range(4, 13, 2)}
RATIOS = {-2.0: "1:4", -1.0: "1:2", 0.0: "1:1", 1.0: "2:1", 2.0: "4:1"}
OF_TEXTS: dict[str, tuple[str, str, Mapping[float, str], Callable[[float, float], str]]] = {
    "words": ("Length", "words", COUNTS, _words_bin),
    "itm": ("ITM scores", "probability of a match", QUARTERS, _range(".3g")),
    "clip": ("CLIP similarity", "cosine", COSINES, _range(".2f")),
}
DISTRIBUTIONS = {
    **{
        f"{source}_{kind}": Distribution(
            title=f"{title} of {source} captions", x_label=x_label, ticks=ticks, bins=bins
        )
        for kind, (title, x_label, ticks, bins) in OF_TEXTS.items()
        for source in SOURCES
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
        legend: Colour and name of each series.
        remark: A sentence on it.
        thresholds: Where to draw lines.
        is_overlaid: Its series are of several runs, shown as shares.
    """
    drawn = DISTRIBUTIONS[key]
    bins = [drawn.bins(low, high) for low, high in itertools.pairwise(counts.edges)]
    names = [name for _, name in legend]
    series = dict(zip(names, counts.series.values(), strict=True))
    return Figure(
        title=drawn.title,
        plot=histogram(
            Histogram(edges=counts.edges, series=series),
            [class_ for class_, _ in legend],
            bins=bins,
            ticks=drawn.ticks,
            x_label=drawn.x_label,
            label=f"Histogram: {drawn.title}, {remark}",
            thresholds=thresholds,
            is_overlaid=is_overlaid,
        ),
        legend=legend,
        remark=remark,
    )


def scores(facts: Mapping[str, Any]) -> list[Figure]:
    """The ITM scores and CLIP similarities of web and synthetic captions."""
    found = [_scores(facts, source, kind) for kind in ("itm", "clip") for source in SOURCES]
    return [figure for figure in found if figure is not None]


def _scores(facts: Mapping[str, Any], source: str, kind: str) -> Figure | None:
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


def numbers(facts: Mapping[str, Any], plan: Plan) -> dict[str, list[Figure]]:
    """The numbers that stages measured, all and those of rows kept, by the stage."""
    return {
        stage: [_numbers(name, entry, plan.stage(stage)) for name, entry in columns.items()]
        for stage, columns in facts["numbers"].items()
    }


def _numbers(column: str, entry: Mapping[str, Any], stage: Stage[Any]) -> Figure:
    """A column of numbers, with the thresholds that it is compared with."""
    edges, is_whole = entry["edges"], entry["is_whole"]
    fields = (field for field, compared in stage.thresholds.values() if compared == column)
    limits = (stage.limit(field) for field in fields)
    step = max(1, len(edges) // MOST_TICKS)
    total, kept = (sum(counts) for counts in entry["series"].values())
    title, remark = column.replace("_", " "), f"{total:,} measured, {kept:,} of rows kept"
    legend = (("kept faint", "measured"), ("kept", "kept"))
    return Figure(
        title=title,
        plot=histogram(
            Histogram(edges=edges, series=entry["series"]),
            [class_ for class_, _ in legend],
            bins=[
                _whole_bin(low, high) if is_whole else f"{low:.6g} to {high:.6g}"
                for low, high in itertools.pairwise(edges)
            ],
            ticks={
                edge + 0.5 * (is_whole and edges[1] - edges[0] == 1): f"{edge:.6g}"
                for edge in edges[:-1:step]
            },
            x_label=title,
            label=f"Histogram: {title}, {remark}",
            thresholds=[
                limit for limit in limits if limit is not None and edges[0] <= limit <= edges[-1]
            ],
        ),
        legend=legend,
        remark=remark,
    )


def lengths(facts: Mapping[str, Any]) -> list[Figure]:
    """The lengths of captions, all and those kept."""
    found = []
    for source, verb in (("web", "found"), ("synthetic", "written")):
        counts = _read(facts, f"{source}_words")
        if counts.total:
            kept = facts["texts"][source]["kept"]
            legend = ((f"{source} faint", verb), (source, "kept"))
            remark = f"{counts.total:,} {verb}, {kept:,} kept"
            found.append(distribution(f"{source}_words", counts, legend, remark))
    return found


def images(facts: Mapping[str, Any]) -> list[Figure]:
    """The sizes and shapes of images, all and those kept."""
    found = []
    for key in ("log2_shorter_side", "log2_aspect"):
        counts = _read(facts, key)
        if counts.total:
            legend = (("kept faint", "downloaded"), ("kept", "kept"))
            remark = f"{counts.total:,} downloaded, {sum(counts.series['kept']):,} kept"
            found.append(distribution(key, counts, legend, remark))
    return found


def phrases(facts: Mapping[str, Any]) -> list[Figure]:
    """The frequencies of noun phrases from the most frequent on, as LLaVA draws them."""
    phrases = facts["phrases"]
    lines = {name: phrases["frequencies"][name] for name in ("before", "after")}
    lines = {name: line for name, line in lines.items() if line}
    if not lines:
        return []
    colours = [{"before": "soft", "after": "web"}[name] for name in lines]
    told = {name: f"{name}, {phrases[f'distinct_{name}']:,} phrases" for name in lines}
    remark = "Each phrase at its rank; both axes logarithmic."
    return [
        Figure(
            title="Frequency of noun phrases",
            plot=curves(
                lines,
                colours,
                x_label="rank",
                label="Frequencies of noun phrases by rank: " + "; ".join(told.values()),
                is_log=True,
            ),
            legend=tuple(zip(colours, told.values(), strict=True)),
            remark=remark,
        )
    ]


def losses(training: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Figure]:
    """The losses of each model over its steps."""
    found = []
    for model, lines in training.items():
        series = {name: points(lines, name) for name in _loss_names(lines)}
        series = {name: line for name, line in series.items() if len(line) > 1}
        if len(series) == 2:  # the only part is the loss
            series.pop("loss", None)
        if not series:
            continue
        parts = iter(LOSS_COLOURS)
        colours = ["ink" if name == "loss" else next(parts) for name in series]
        last = {name: line[-1][1] for name, line in series.items()}
        ends = ", ".join(f"{name} {value:.3g}" for name, value in last.items())
        speeds = [value for _, value in points(lines, "images_per_second")]
        speed = f"; {sum(speeds) / len(speeds):,.0f} images/s" if speeds else ""
        found.append(
            Figure(
                title=model,
                plot=curves(
                    series, colours, x_label="step", label=f"Losses of {model}, at the end {ends}"
                ),
                legend=tuple(zip(colours, series, strict=True)),
                remark=f"{int(lines[-1]['step']):,} steps, at the end {ends}{speed}",
            )
        )
    return found


def _loss_names(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The losses of a log, their sum first: what stands before the learning rate in a line."""
    names = list(lines[-1]) if lines else []
    before = names[: names.index("lr")] if "lr" in names else names
    parts = [name for name in before if name not in ("step", "epoch", "loss")]
    return ["loss", *parts[: len(LOSS_COLOURS)]]


def points(lines: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """(step, value) of a log, where both are numbers."""
    found = []
    for line in lines:
        step, value = line.get("step"), line.get(name)
        if isinstance(step, int | float) and isinstance(value, int | float):
            found.append((step, value))
    return [point for point in found if all(map(math.isfinite, point))]


def _read(facts: Mapping[str, Any], key: str) -> Histogram:
    entry = facts["histograms"][key]
    return Histogram(edges=entry["edges"], series=entry["series"])
