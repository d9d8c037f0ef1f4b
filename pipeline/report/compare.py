"""The page that compares two runs: differences first, and rows whose verdict changed."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.report.build import facts_of, lines_of, measured_by
from pipeline.report.examples import Example, examples
from pipeline.report.figures import DISTRIBUTIONS, Figure, distribution, points
from pipeline.report.histogram import Histogram
from pipeline.report.layout import environment, metric, policy
from pipeline.report.plots import curves
from pipeline.report.survey import CELLS, survey
from pipeline.results.funnel import funnel
from pipeline.results.sampling import RowLocation, ranks_of
from pipeline.results.tables import flat
from pipeline.results.verdicts import Judgement, Mask, Results
from pipeline.storage.checksum import with_checksum_json, with_checksum_page
from pipeline.storage.records import EvaluationRecord, RunRecord
from stages.filter import FilterStage

__all__ = ["write"]

MOST_CHANGES = 16
SHOWN = 6
"""Rows shown of each change of verdict."""

MOVES = 3
"""Verdicts named beside the count of a reason that changed, in each direction."""

KEPT = "kept"
KEPT_TEXTS = {
    "both": "kept with web and synthetic captions",
    "web": "kept with web captions",
    "synthetic": "kept with synthetic captions",
}
SERIES = {"words": "kept", "itm": "texts", "clip": "judged", "side": "kept", "aspect": "kept"}
"""The series of each histogram of report.json that is compared, by the end of its key."""

COLOURS = ("soft dashed", "web")
SOURCES = ("web", "synthetic")
TEXT_FACTS = (
    *("found", "judged", "rejected", "reject_rate", "cut", "sentences", "sentences_dropped"),
    "kept",
)
VARIETY = ("unique", "distinct_1", "distinct_2", "repeated", "words")


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two runs.

    Attributes:
        results: The results of the run.
        names: The stages that have measured something.
        facts: The facts in its report.json.
        fates: uid, code (an index of `verdicts`), shard and row of each row.
        verdicts: The verdicts that occur, in words.
    """

    results: Results
    names: list[str]
    facts: Mapping[str, Any]
    fates: pa.Table
    verdicts: list[str]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A fact of both runs; None if a run does not have it."""

    label: str
    before: Any
    after: Any
    moved: str = ""
    """Of the rows of a reason: which verdict most of those have that left it, or joined it."""

    @property
    def is_same(self) -> bool:
        """Whether both runs have the same value, or values that read the same."""
        is_float = isinstance(self.before, float) and isinstance(self.after, float)
        return bool(
            self.before == self.after or (is_float and metric(self.before) == metric(self.after))
        )

    @property
    def change(self) -> float | int | None:
        """The difference, if both values are numbers."""
        values = (self.before, self.after)
        if any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
            return None
        difference: float | int = self.after - self.before
        return difference


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of verdict, the number of its rows, and some of these rows as in both runs."""

    before: str
    after: str
    rows: int
    shown: list[tuple[Example, Example]]


def write(before: Results, after: Results, out: str | None = None) -> tuple[str, dict[str, int]]:
    """Write the page that compares two runs, and its facts beside it as .json.

    Rows with the same uid are compared.

    Args:
        before: The results of the first run, finished or not.
        after: The results of the second run.
        out: A local file; None writes report/compare.html of the second run.

    Returns:
        The path of the page, and the numbers of rows: `both`, `only_before`, `only_after`,
        `changed`, `newly_kept` and `newly_rejected`.

    Raises:
        ValueError: The folder of `out` does not exist.
    """
    if out is not None and not os.path.isdir(folder := os.path.dirname(out) or "."):
        raise ValueError(f"--out {out}: no folder {folder}")
    sides = (_side(before), _side(after))
    counts, changes = _changes(*sides)
    names = _names(*sides)
    facts = {
        "made": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "names": names,
        "counts": counts,
        "settings": [line for line in _paired(*map(_settings, sides)) if not line.is_same],
        "funnel": dict(_funnel(*sides, changes)),
        "captions": {
            source: _paired(*(_captions(side, source) for side in sides)) for source in SOURCES
        },
        "metrics": _paired(*map(_evaluation, sides)),
        "hosts": _paired(*(_counted(s, "hosts", "host", "failed") for s in sides)),
        "languages": _paired(*(_counted(s, "languages", "language", "rows") for s in sides)),
        "times": _paired(*map(_times, sides)),
    }
    page = environment().get_template("compare.html.j2").render(
        **policy(),
        **facts,
        before=sides[0].facts,
        after=sides[1].facts,
        changes=changes,
        distributions=_distributions(*sides),
        curves=_curves(*sides),
    )  # fmt: skip
    facts["runs"] = [side.results.run.root for side in sides]
    facts["changes"] = [
        {"before": change.before, "after": change.after, "rows": change.rows} for change in changes
    ]
    facts["histograms"] = dict(zip(names, (s.facts["histograms"] for s in sides), strict=True))
    content = with_checksum_page(page.strip() + "\n")
    numbers = with_checksum_json(json.loads(json.dumps(facts, default=dataclasses.asdict)))
    if out is None:
        after.run.write(numbers, "report", "compare.json")
        after.run.write(content, "report", "compare.html")
        return after.run.url("report", "compare.html"), counts
    for path, part in ((f"{os.path.splitext(out)[0]}.json", numbers), (out, content)):
        with open(path, "wb") as file:
            file.write(part)
    return out, counts


def _side(results: Results) -> Side:
    counts = funnel(results)
    names = measured_by(results.plan, counts)
    evaluation = results.run.find_record(EvaluationRecord, "evaluation.json")
    facts = facts_of(results, counts, survey(results, names), evaluation)
    fates, verdicts = _fates(results, names)
    return Side(results=results, names=names, facts=facts, fates=fates, verdicts=verdicts)


def _names(before: Side, after: Side) -> tuple[str, str]:
    """Names of the runs that differ: those in the manifests, their folders, or first and second."""
    folders = (posixpath.basename(side.results.run.root) for side in (before, after))
    named = (before.facts["name"], after.facts["name"]), tuple(folders), ("first", "second")
    return next((first, second) for first, second in named if first != second)


def _fates(results: Results, names: list[str]) -> tuple[pa.Table, list[str]]:
    """The verdict of every row, as `Side.fates` and `Side.verdicts`."""
    known: dict[str, int] = {}
    tables = []
    for number, shard in enumerate(results.run.shards("pool")):
        judgement = results.judge(shard, names)
        codes = np.full(len(judgement.uids), -1, np.int64)
        for verdict, mask in _verdicts(results, judgement):
            codes[mask & (codes < 0)] = known.setdefault(verdict, len(known))
        tables.append(
            pa.table(
                {
                    "uid": judgement.uids,
                    "code": codes,
                    "shard": np.full(len(codes), number, np.int32),
                    "row": np.arange(len(codes), dtype=np.int32),
                }
            )
        )
    empty = {"uid": pa.array([], pa.string()), "code": pa.array([], pa.int64())}
    places = {"shard": pa.array([], pa.int32()), "row": pa.array([], pa.int32())}
    return pa.concat_tables(tables or [pa.table({**empty, **places})]), list(known)


def _verdicts(results: Results, judgement: Judgement) -> Iterator[tuple[str, Mask]]:
    """Verdicts with masks of their rows; if several apply to a row, the first one counts."""
    for name, reasons in judgement.reasons.items():
        yield f"not measured by {name} yet", judgement.waiting(name)
        values = np.array(reasons.to_pylist(), dtype=object)
        for reason in reasons.drop_null().unique().to_pylist():
            yield f"{name}: {reason}".replace("_", " "), values == reason
    if (table := judgement.tables.get(FilterStage.name)) is not None:
        measured = judgement.measured[FilterStage.name]
        keeps = results.kept_texts(table.filter(pa.array(measured)))
        web = np.zeros(len(measured), bool)
        synthetic = np.zeros(len(measured), bool)
        further = [any(flags or ()) for flags in keeps["keep_further"].to_pylist()]
        web[measured] = keeps["keep_web"].to_numpy() | np.array(further, bool)
        synthetic[measured] = [any(flags or ()) for flags in keeps["keep_synthetic"].to_pylist()]
        masks = (web & synthetic, web & ~synthetic, ~web & synthetic)
        for cell, mask in zip(CELLS[:3], masks, strict=True):
            yield KEPT_TEXTS[cell], mask & judgement.live
    yield KEPT, judgement.live


def _changes(before: Side, after: Side) -> tuple[dict[str, int], list[Change]]:
    """The counts of rows, and the changes of verdict; the most frequent ones have sample rows."""
    joined = before.fates.join(after.fates, "uid", join_type="inner", right_suffix="_after")
    verdicts = list(dict.fromkeys((*before.verdicts, *after.verdicts)))
    old, new = (
        np.array([verdicts.index(verdict) for verdict in side.verdicts], np.int64)[
            joined[column].to_numpy()
        ]
        for side, column in ((before, "code"), (after, "code_after"))
    )
    kept = np.array([verdict.startswith(KEPT) for verdict in verdicts], bool)
    rejected = np.array([": " in verdict for verdict in verdicts], bool)
    counts = {
        "both": len(old),
        "only_before": before.fates.num_rows - len(old),
        "only_after": after.fates.num_rows - len(old),
        "changed": int((old != new).sum()),
        "newly_kept": int((kept[new] & ~kept[old]).sum()),
        "newly_rejected": int((rejected[new] & ~rejected[old]).sum()),
    }
    ranks = ranks_of(joined["uid"].combine_chunks(), after.results.plan.manifest.seed)
    transitions = Counter(zip(old[old != new].tolist(), new[old != new].tolist(), strict=True))
    samples: dict[tuple[int, int], npt.NDArray[np.intp]] = {}
    for first, second in sorted(transitions, key=lambda pair: (-transitions[pair], pair)):
        rows = np.flatnonzero((old == first) & (new == second))
        size = SHOWN if len(samples) < MOST_CHANGES else 0
        samples[first, second] = rows[np.argsort(ranks[rows])][:size]
    olds = _shown(before, joined, samples.values(), "")
    news = _shown(after, joined, samples.values(), "_after")
    return counts, [
        Change(
            before=verdicts[first],
            after=verdicts[second],
            rows=transitions[first, second],
            shown=[(olds[row], news[row]) for row in rows.tolist()],
        )
        for (first, second), rows in samples.items()
    ]


def _shown(
    side: Side, joined: pa.Table, samples: Iterable[npt.NDArray[np.intp]], suffix: str
) -> dict[int, Example]:
    """The sampled rows of the joined table as they are in one run, by their index there."""
    names = side.results.run.shards("pool")
    shards, rows = (joined[f"{name}{suffix}"].to_numpy() for name in ("shard", "row"))
    places = {
        index: RowLocation(names[shards[index]], int(rows[index]))
        for sample in samples
        for index in sample.tolist()
    }
    seen = examples(side.results, side.names, places.values())
    return {index: seen[place] for index, place in places.items()}


def _paired(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Line]:
    """The facts of two mappings side by side, those that differ first."""
    lines = [
        Line(label=key, before=before.get(key), after=after.get(key))
        for key in dict.fromkeys((*before, *after))
    ]
    return sorted(lines, key=lambda line: line.is_same)


def _settings(side: Side) -> dict[str, Any]:
    """Every field of the resolved manifest, revisions and versions; the run's path becomes RUN."""
    manifest = side.results.plan.manifest
    settings: dict[str, Any] = {"seed": manifest.seed}
    for name, config in manifest.stages.items():
        try:
            fields = side.results.plan.settings(name)
        except FileNotFoundError:  # an evaluation set was removed
            fields = dataclasses.asdict(config)
        settings.update(flat(fields, name))
    for name, training in manifest.train.items():
        settings.update(flat(training.settings(), f"train.{name}"))
    for row in side.facts["models"]:
        settings[f"{row['stage']}.revision of {row['model']}"] = row["revision"]
    record = side.results.run.find_record(RunRecord, "run.json")
    if record is not None:
        settings.update(flat({"versions": record.versions, "machine": record.machine}))
    root = manifest.run.rstrip("/")
    return {key.replace(root, "RUN"): _setting_text(value, root) for key, value in settings.items()}


def _setting_text(value: Any, root: str) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_setting_text(entry, root) for entry in value) or "none"
    if value is None or isinstance(value, bool):
        return {None: "unset", True: "on", False: "off"}[value]
    return str(value).replace(root, "RUN")


def _funnel(
    before: Side, after: Side, changes: Sequence[Change]
) -> Iterator[tuple[str, list[Line]]]:
    """The counts of each stage: rows, kept, and each reason, with what became of its rows.

    A row has the first reason that applies, so a rule that rejects more takes rows from others.
    """
    old, new = (
        {stage["name"]: stage for stage in side.facts["stages"]} for side in (before, after)
    )
    for name in dict.fromkeys((*old, *new)):
        first, second = _outcomes(old.get(name)), _outcomes(new.get(name))
        yield (
            name,
            [
                Line(
                    label=label,
                    before=first.get(label, 0) if first else None,
                    after=second.get(label, 0) if second else None,
                    moved=_moved(f"{name}: {label}".replace("_", " "), changes),
                )
                for label in dict.fromkeys((*first, *second))
            ],
        )


def _moved(verdict: str, changes: Sequence[Change]) -> str:
    """Where most rows went that have lost a verdict, and whence those came that have it now."""
    went = [f"{c.rows:,} now {c.after}" for c in changes if c.before == verdict]
    came = [f"{c.rows:,} before {c.before}" for c in changes if c.after == verdict]
    return ", ".join((*went[:MOVES], *came[:MOVES]))


def _outcomes(stage: Mapping[str, Any] | None) -> dict[str, int]:
    if stage is None:
        return {}
    left = {"not measured": stage["not_measured"]} if stage["not_measured"] else {}
    return {"rows": stage["rows"], "kept": stage["kept"], **stage["reasons"], **left}


def _captions(side: Side, source: str) -> dict[str, Any]:
    texts = side.facts["texts"][source]
    if not texts["found"]:
        return {}
    values = {name: texts[name] for name in TEXT_FACTS}
    values |= {name: texts["variety"][name] for name in VARIETY}
    return {**values, "exported": (side.facts["output"]["pairs"] or {}).get(source)}


def _evaluation(side: Side) -> dict[str, Any]:
    return {
        f"{model}: {name}": value
        for model, values in side.facts["evaluation"].items()
        for name, value in values.items()
    }


def _counted(side: Side, key: str, name: str, number: str) -> dict[str, int]:
    return {row[name]: row[number] for row in side.facts[key]}


def _times(side: Side) -> dict[str, float]:
    return {stage["name"]: stage["seconds"] for stage in side.facts["stages"]}


def _distributions(before: Side, after: Side) -> list[Figure]:
    """The histograms of both runs, one over the other, the most different first."""
    figures: list[tuple[float, int, Figure]] = []
    names = _names(before, after)
    for key in DISTRIBUTIONS:
        which = SERIES[key.rsplit("_", 1)[-1]]
        entries = [side.facts["histograms"][key] for side in (before, after)]
        lines = [entry["series"][which] for entry in entries]
        if not all(map(sum, lines)):
            continue
        series = dict(zip(COLOURS, lines, strict=True))
        remark = ", ".join(
            f"{name} {sum(line):,} {which}" for name, line in zip(names, lines, strict=True)
        )
        kind = key.rsplit("_", 1)[-1]
        limits = {side.facts["thresholds"].get(kind) for side in (before, after)} - {None}
        figure = distribution(
            key,
            Histogram(edges=entries[0]["edges"], series=series),
            list(zip(COLOURS, names, strict=True)),
            remark,
            thresholds=sorted(limits),
            is_overlaid=True,
        )
        shares = [np.array(line) / sum(line) for line in lines]
        figures.append((-float(np.abs(shares[0] - shares[1]).sum()), len(figures), figure))
    return [figure for *_, figure in sorted(figures, key=lambda entry: entry[:2])]


def _curves(before: Side, after: Side) -> list[Figure]:
    """The losses of the models that both runs have trained."""
    logs = [lines_of(side.results.run, "metrics.jsonl", "step") for side in (before, after)]
    figures = []
    for model in logs[0]:
        lines = [points(log.get(model, ()), "loss") for log in logs]
        if min(map(len, lines)) < 2:
            continue
        names = _names(before, after)
        ends = ", ".join(f"{n} {line[-1][1]:.3g}" for n, line in zip(names, lines, strict=True))
        figures.append(
            Figure(
                title=f"Loss of {model}",
                plot=curves(
                    dict(zip(names, lines, strict=True)),
                    COLOURS,
                    x_label="step",
                    label=f"Loss of {model}, at the end {ends}",
                ),
                legend=list(zip(COLOURS, names, strict=True)),
                remark=f"at the end {ends}",
            )
        )
    return figures
