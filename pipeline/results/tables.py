"""Tables for the terminal: the funnel, one sample, an ablation, the agreement of a review."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.results.history import Caption, SampleHistory, Sentence, StageVerdict
from pipeline.storage.records import AblationEffect, AblationRecord, AblationTable, Estimate

__all__ = [
    "INTERNAL",
    "ablation_lines",
    "ablation_tables",
    "agreement_table",
    "cell",
    "flat",
    "funnel_table",
    "interval",
    "notice_lines",
    "power_lines",
    "printable",
    "put",
    "sample_tables",
]

CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

STYLES = {
    "kept": "green",
    "done": "green",
    "rejected": "red",
    "dropped": "red",
    "partial": "yellow",
    "waiting": "dim",
    "not reached": "dim",
}

INTERNAL = ("hash", "_cluster", "_key", "_duplicate", "_colours", "_minhash")
"""Endings of columns that only say which rows belong together."""

CAPTIONS = ("text", "caption_text", "synthetic", "further_captions")
"""Columns that the table of captions shows, beside those of the filter."""

OF_FILTER = ("itm_", "itc_", "clip_", "sentences_", "unread_")
"""Prefixes of the filter's columns that the table of captions shows."""

KEEPS = {True: "kept", False: "dropped", None: "-"}


def put(console: Console, table: Table) -> None:
    """Print a table: with lines on a terminal, elsewhere as plain columns for other tools."""
    if console.is_terminal:
        console.print(table)
        return
    table.box = None
    table.pad_edge = False
    with console.capture() as output:
        console.print(table)
    for line in output.get().splitlines():
        console.print(Text(line.rstrip()), highlight=False, soft_wrap=True)


def funnel_table(counts: dict[str, Any]) -> Table:
    """The table of `pipeline.results.funnel.funnel`."""
    table = Table(title=cell(f"{counts['name']}  {counts['run']}"), title_justify="left")
    table.add_column("stage")
    table.add_column("state")
    for name in ("rows", "kept", "to do", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("rejected", overflow="fold")
    for stage in counts["stages"]:
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in stage["reasons"].items())
        if "pairs" in stage:
            reasons = "pairs: " + ", ".join(f"{k} {n:,}" for k, n in stage["pairs"].items())
        table.add_row(
            stage["name"],
            _styled(stage["state"]),
            f"{stage['rows']:,}",
            f"{stage['kept']:,}",
            f"{stage['not_measured']:,}",
            f"{stage['seconds']:.1f}",
            cell(reasons),
        )
    return table


def notice_lines(counts: dict[str, Any]) -> Iterator[Text]:
    """The notices of `pipeline.results.funnel.funnel`, a line each."""
    for notice in counts.get("notices", []):
        yield Text("note  ", "yellow").append_text(cell(notice))


def sample_tables(history: SampleHistory) -> Iterator[Table]:
    """The tables of one sample: its row, the verdict of each stage, its texts, its copies."""
    yield _row_table(history)
    table = Table("stage", "verdict")
    table.add_column("reason and measures", overflow="fold")
    for step in history.steps:
        table.add_row(step.name, _styled(step.verdict), _measures(step))
    yield table
    if history.captions:
        yield _caption_table(history.captions)
    if history.copies:
        table = Table("same image", "verdict")
        table.add_column("url", overflow="fold")
        for copy in history.copies:
            table.add_row(copy["uid"][:12], cell(copy["reason"] or "stays"), cell(copy["url"]))
        yield table


def _row_table(history: SampleHistory) -> Table:
    """The row of a sample in the pool, and its verdict."""
    table = Table(show_header=False)
    table.add_column("", style="bold")
    table.add_column("", overflow="fold")
    pool = history.pool
    size = f"{len(history.image):,} bytes" if history.image else "none"
    if pool["width"]:
        size = f"{pool['width']} x {pool['height']}, {size}"
    if pool["original_width"]:
        size += f"; as found {pool['original_width']} x {pool['original_height']}"
    style = STYLES["kept" if history.verdict == "kept" else "rejected"]
    fields = {
        "verdict": Text(history.verdict, style),
        "uid": pool["uid"],
        "url": pool["url"],
        "source": pool["source"],
        "id there": pool["source_uid"],
        "caption": pool["caption"],
        "repeats": pool["repeats"] or None,
        "image": size,
        "sha256": pool["sha256"],
        "image of": history.representative if history.representative != pool["uid"] else None,
    }
    for name, value in fields.items():
        if value is not None or name == "caption":
            table.add_row(name, value if isinstance(value, Text) else cell(value))
    return table


def _caption_table(captions: Sequence[Caption]) -> Table:
    """The texts of a sample with the scores that at least one of them has."""
    table = Table("caption", "verdict")
    names = [
        name
        for name in ("itm", "itc", "clip")
        if any(getattr(caption, name) is not None for caption in captions)
    ]
    for name in names:
        table.add_column(name.upper(), justify="right")
    table.add_column("text", overflow="fold")
    for caption in captions:
        text = cell(caption.text)
        source = caption.source if caption.name is None else f"{caption.source} {caption.name}"
        if caption.unread:
            text.append(f" ({caption.unread} tokens of it not read)", "yellow")
        parts: list[tuple[Caption | Sentence, str, Text]] = [(caption, source, text)]
        parts += [(sent, "  sentence", cell(sent.text)) for sent in caption.sentences]
        for part, label, shown in parts:
            scores = [getattr(part, name) for name in names]
            table.add_row(
                label,
                _styled(KEEPS[part.is_kept]),
                *("-" if score is None else f"{score:.3f}" for score in scores),
                shown,
            )
    return table


def _measures(step: StageVerdict) -> Text:
    """The reason of a stage, then what it measured."""
    text = Text()
    if step.reason is not None:
        text.append_text(cell(f"{step.reason}: {step.why}"))
    if step.also:
        text.append("\n" * bool(text) + f"also: {', '.join(step.also)}")
    shown = [
        f"{name}={short}"
        for name, value in step.measures.items()
        if not name.endswith(INTERNAL)
        and not name.startswith(OF_FILTER)
        and name not in CAPTIONS
        and (short := _short(value)) is not None
    ]
    if shown:
        text.append("\n" * bool(text))
        text.append_text(cell(" ".join(shown)))
    return text


def _short(value: Any) -> str | None:
    """Write a measure in a few characters; None if it says nothing."""
    if isinstance(value, bool):
        return "yes" if value else None
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value or 0.0:.3g}"  # no -0
    if isinstance(value, str):
        return value if len(value) <= 40 else None
    if isinstance(value, list) and value and not isinstance(value[0], int):
        shown = [_short(part) for part in value[:12]]
        return ",".join(filter(None, shown)) + ",..." * (len(value) > 12) or None
    return None


def _styled(word: str) -> Text:
    return Text(word, STYLES.get(word, ""))


def ablation_tables(record: AblationRecord) -> Iterator[Table]:
    """The tables of an ablation for the terminal."""
    for entry in record.tables:
        table = Table(title=cell(entry.title), title_justify="left")
        table.add_column("")
        for name in entry.rows[0].metrics:
            table.add_column(cell(name), justify="right")
        for label, cells in ablation_lines(entry):
            table.add_row(cell(label), *cells)
        yield table


def ablation_lines(table: AblationTable) -> Iterator[tuple[str, list[str]]]:
    """The rows of a table of an ablation, then its comparisons: a label and a cell a metric.

    A comparison has the mean difference with its interval, and a star where its p is below 0.05
    after Holm's correction. Where there is a ceiling, the differences follow as shares of it.
    """
    first, *others = table.rows
    for row in table.rows:
        yield row.label, [interval(metric.estimate) for metric in row.metrics.values()]
    compared: list[tuple[str, str, list[AblationEffect | None]]] = [
        (row.label, first.label, [metric.difference for metric in row.metrics.values()])
        for row in others
    ]
    compared += [(one.label, one.against, [*one.metrics.values()]) for one in table.comparisons]
    for label, base, effects in compared:
        yield f"{label} against {base}", [effect_cell(effect) for effect in effects]
    for label, base, effects in compared:
        if any(effect is not None and effect.share is not None for effect in effects):
            shares = [effect and effect.share for effect in effects]
            yield f"{label} against {base}, of the ceiling", [interval(one, "+") for one in shares]


def effect_cell(effect: AblationEffect | None) -> str:
    """A difference with its interval, and a star if it holds after the correction."""
    holds = effect is not None and effect.corrected is not None and effect.corrected < 0.05
    return interval(effect, "+") + " *" * holds


def power_lines(record: AblationRecord) -> Iterator[str]:
    """How many seeds the differences need that others have published, a sentence each."""
    for table in record.tables:
        for one in table.power:
            seeds = "more than 10,000" if one.seeds is None else f"{one.seeds:,}"
            source = "measured here" if one.is_measured else "expected"
            yield (
                f"power        {one.label} against {one.against}, {one.metric}: a difference of "
                f"{one.difference:+.3f} needs {seeds} seeds to be found 4 times in 5 (spread over "
                f"seeds {one.spread:.3f}, {source}); {len(record.seeds)} seeds find it "
                f"{one.power:.0%} of the time"
            )


def agreement_table(agreement: dict[str, Any]) -> Table:
    """The table of the agreement between people and the filter; see `pipeline.review.agreement`."""
    measures = [
        f"{name} {agreement[key]:.3f}"
        for key, name in (("accuracy", "accuracy"), ("kappa", "Cohen's kappa"))
        if agreement[key] is not None
    ]
    table = Table(title=", ".join(["agreement", *measures]), title_justify="left")
    table.add_column("pairs")
    for name in ("people accept", "people reject or fix"):
        table.add_column(name, justify="right")
    table.add_row("filter keeps", f"{agreement['both_keep']:,}", f"{agreement['only_filter']:,}")
    table.add_row("filter rejects", f"{agreement['only_people']:,}", f"{agreement['neither']:,}")
    return table


def interval(estimate: Estimate | None, sign: str = "") -> str:
    """A mean with its interval, in three decimals.

    Args:
        estimate: The mean and its interval.
        sign: `+` writes a plus before positive numbers.
    """
    if estimate is None:
        return "-"
    if estimate.low is None:
        return f"{estimate.mean:{sign}.3f}"
    return f"{estimate.mean:{sign}.3f} [{estimate.low:{sign}.3f}, {estimate.high:{sign}.3f}]"


def flat(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """Flatten nested mappings to dotted names and values."""
    if not isinstance(value, dict):
        return [(name, value)]
    return [pair for key, part in value.items() for pair in flat(part, f"{name}.{key}".lstrip("."))]


def printable(text: str) -> str:
    """Replace the control characters of a text, except line breaks and tabs."""
    return CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def cell(value: Any) -> Text:
    """Make a cell of plain text, so that text from the web cannot control the terminal."""
    if isinstance(value, bytes):
        return Text(f"{len(value):,} bytes")
    shown = "-" if value is None else str(value)
    return Text("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown))
