"""The figures of a page: the distributions in report.json, and the losses of trainings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.manifest.plan import Plan
from pipeline.report.histogram import Histogram
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
    "validations",
]

SOURCES = ("web", "synthetic")

MOST_TICKS = 6

LOSS_COLOURS = ("web", "synthetic", "human", "reject", "kept")
"""The colours of the parts of a loss; the sum has the colour of text. Other parts are left out."""


VALIDATION_METRICS = (
    "retrieval.itm.TR@1",
    "retrieval.itm.IR@1",
    "retrieval.itc.TR@1",
    "retrieval.itc.IR@1",
    "matching.roc_auc",
    "captioning.CIDEr",
    "captioning.BLEU@4",
    "classification.accuracy@1",
)
"""The metrics of validations that are drawn, as many of them as there are colours."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A plot with its title, its legend and a remark.

    Attributes:
        title: The title.
        plot: The plot.
        legend: (CSS class, name) of each series, in order.
        remark: A sentence below the title.
    """

    title: str
    plot: Plot
    legend: Sequence[tuple[str, str]] = ()
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """How a histogram of report.json is drawn.

    Attributes:
        title: The title.
        x_label: The title of the x axis.
        ticks: The labels of the x axis, by their values.
        bins: Returns the name of a bin for its two edges.
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
"""How each histogram of report.json is drawn, by its key."""


def distribution(
    key: str,
    counts: Histogram,
    legend: Sequence[tuple[str, str]],
    remark: str,
    *,
    thresholds: Sequence[float] = (),
    is_overlaid: bool = False,
) -> Figure:
    """The figure of a histogram of report.json.

    Args:
        key: The key of the histogram.
        counts: The histogram.
        legend: Colour and name of each series.
        remark: A sentence below the title.
        thresholds: Values at which to draw vertical lines.
        is_overlaid: Whether its series belong to different runs and are drawn as shares.
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
    """Figures of the ITM scores and CLIP similarities of web and synthetic captions."""
    figures = [_scores(facts, source, kind) for kind in ("itm", "clip") for source in SOURCES]
    return [figure for figure in figures if figure is not None]


def _scores(facts: Mapping[str, Any], source: str, kind: str) -> Figure | None:
    """The figure of the scores of a source; scores under the threshold have another colour."""
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
    """Figures of the numbers that stages measured, of all rows and of kept rows, by stage."""
    return {
        stage: [_numbers(name, entry, plan.stage(stage)) for name, entry in columns.items()]
        for stage, columns in facts["numbers"].items()
    }


def _numbers(column: str, entry: Mapping[str, Any], stage: Stage[Any]) -> Figure:
    """The figure of a column of numbers, with the thresholds that apply to it."""
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
    """Figures of the lengths of captions: all, and kept."""
    figures = []
    for source, verb in (("web", "found"), ("synthetic", "written")):
        counts = _read(facts, f"{source}_words")
        if counts.total:
            kept = facts["texts"][source]["kept"]
            legend = ((f"{source} faint", verb), (source, "kept"))
            remark = f"{counts.total:,} {verb}, {kept:,} kept"
            figures.append(distribution(f"{source}_words", counts, legend, remark))
    return figures


def images(facts: Mapping[str, Any]) -> list[Figure]:
    """Figures of the sizes and aspect ratios of images: all, and kept."""
    figures = []
    for key in ("log2_shorter_side", "log2_aspect"):
        counts = _read(facts, key)
        if counts.total:
            legend = (("kept faint", "downloaded"), ("kept", "kept"))
            remark = f"{counts.total:,} downloaded, {sum(counts.series['kept']):,} kept"
            figures.append(distribution(key, counts, legend, remark))
    return figures


def phrases(facts: Mapping[str, Any]) -> list[Figure]:
    """The figure of the frequencies of noun phrases by rank, as LLaVA draws it."""
    phrases = facts["phrases"]
    lines = {name: phrases["frequencies"][name] for name in ("before", "after")}
    lines = {name: line for name, line in lines.items() if line}
    if not lines:
        return []
    colours = [{"before": "soft", "after": "web"}[name] for name in lines]
    names = {name: f"{name}, {phrases[f'distinct_{name}']:,} phrases" for name in lines}
    remark = "Each phrase at its rank; both axes logarithmic."
    return [
        Figure(
            title="Frequency of noun phrases",
            plot=curves(
                lines,
                colours,
                x_label="rank",
                label="Frequencies of noun phrases by rank: " + "; ".join(names.values()),
                is_log=True,
            ),
            legend=tuple(zip(colours, names.values(), strict=True)),
            remark=remark,
        )
    ]


def losses(training: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Figure]:
    """Figures of the losses of each model by step."""
    figures = []
    for model, lines in training.items():
        series = {name: points(lines, name) for name in _loss_names(lines)}
        series = {name: line for name, line in series.items() if len(line) > 1}
        if len(series) == 2:  # the sum equals its only part
            series.pop("loss", None)
        if not series:
            continue
        parts = iter(LOSS_COLOURS)
        colours = ["ink" if name == "loss" else next(parts) for name in series]
        last = {name: line[-1][1] for name, line in series.items()}
        ends = ", ".join(f"{name} {value:.3g}" for name, value in last.items())
        speeds = [value for _, value in points(lines, "images_per_second")]
        speed = f"; {sum(speeds) / len(speeds):,.0f} images/s" if speeds else ""
        figures.append(
            Figure(
                title=model,
                plot=curves(
                    series, colours, x_label="step", label=f"Losses of {model}, at the end {ends}"
                ),
                legend=tuple(zip(colours, series, strict=True)),
                remark=f"{int(lines[-1]['step']):,} steps, at the end {ends}{speed}",
            )
        )
    return figures


def validations(training: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Figure]:
    """Figures of what the validations of each model measured, by step."""
    figures = []
    for model, lines in training.items():
        measured = [
            {"step": line["step"], **line["validation"]} for line in lines if "validation" in line
        ]
        series = {name: points(measured, name) for name in VALIDATION_METRICS}
        series = {name: line for name, line in series.items() if line}
        series = dict(list(series.items())[: len(LOSS_COLOURS)])
        if not series:
            continue
        colours = LOSS_COLOURS[: len(series)]
        best = {name: max(line, key=lambda at: at[1]) for name, line in series.items()}
        told = ", ".join(
            f"{name} {value:.3g} at {step:,.0f}" for name, (step, value) in best.items()
        )
        figures.append(
            Figure(
                title=f"{model}, validation",
                plot=curves(
                    series, colours, x_label="step", label=f"Validations of {model}, best {told}"
                ),
                legend=tuple(zip(colours, series, strict=True)),
                remark=f"{len(measured):,} validations, best {told}",
            )
        )
    return figures


def _loss_names(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the losses in a log, the sum first; a line has them before `lr`.

    The lines of skipped steps have no losses.
    """
    names = next((list(line) for line in reversed(lines) if "loss" in line), [])
    before = names[: names.index("lr")] if "lr" in names else names
    parts = [name for name in before if name not in ("step", "epoch", "loss")]
    return ["loss", *parts[: len(LOSS_COLOURS)]]


def points(lines: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """The (step, value) points of a log; lines without two finite numbers are left out."""
    pairs = []
    for line in lines:
        step, value = line.get("step"), line.get(name)
        if isinstance(step, int | float) and isinstance(value, int | float):
            pairs.append((step, value))
    return [point for point in pairs if all(map(math.isfinite, point))]


def _read(facts: Mapping[str, Any], key: str) -> Histogram:
    entry = facts["histograms"][key]
    return Histogram(edges=entry["edges"], series=entry["series"])
