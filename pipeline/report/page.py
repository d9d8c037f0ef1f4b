"""Renders the page of a report from its facts and its gallery with index.html.j2."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.manifest.plan import Plan
from pipeline.report import figures, sweep
from pipeline.report.ablation import tables
from pipeline.report.examples import Example
from pipeline.report.health import PAPER
from pipeline.report.layout import environment, metric, policy
from pipeline.report.pool_map import PoolMap
from pipeline.report.survey import CELLS
from pipeline.storage.records import AblationRecord, RunRecord, content_of
from stages.dedup import DedupStage
from stages.registry import STAGES

__all__ = ["Gallery", "Rows", "render"]

MOST_MEASURES = 4
HEADLINES = {
    "retrieval itm TR@1": "Image to text, R@1",
    "retrieval itm IR@1": "Text to image, R@1",
    "captioning CIDEr": "Captions, CIDEr",
}
"""The metrics of the paper's tables."""

TRUTHS = {
    "raw_true": ("web faint", "Web captions true of their image, before any stage"),
    "exported_true": ("web", "Web captions true of their image, as exported"),
    "synthetic_true": ("synthetic", "Synthetic captions true of their image, as exported"),
    "exported_recall": ("kept", "Photographs with a true web caption that keep one"),
}
SCORES = ("stage", "precision", "recall")

CELL_TITLES = {
    "both": "Both kept",
    "web": "Only the web caption kept",
    "synthetic": "Only the synthetic caption kept",
    "none": "Neither kept",
}


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows shown for a reason to reject.

    Attributes:
        sample: Rows with this reason, drawn at random.
        rejected: The rows with this reason that are nearest to its threshold.
        kept: The kept rows that are nearest to the threshold.
        name: The field that sets the threshold; empty if the reason has no threshold.
        limit: The threshold; None if it depends on the whole pool.
    """

    sample: Sequence[Example]
    rejected: Sequence[Example] = ()
    kept: Sequence[Example] = ()
    name: str = ""
    limit: float | None = None

    @property
    def examples(self) -> list[Example]:
        """All rows."""
        return [*self.rejected, *self.kept, *self.sample]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The rows that the page shows with their images.

    Attributes:
        reasons: Rows for each (stage, reason).
        cells: Rows for each of `CELLS`.
        clusters: Size, and representative and some members, of each of the largest clusters.
        extremes: Kept images that are least like the others: what each is, what its number is, and
            each image with its number.
        firsts: The representatives of near-duplicates, by uid.
        pool: The picture of the embeddings; None without them.
    """

    reasons: Mapping[tuple[str, str], Rows] = field(default_factory=dict)
    cells: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    clusters: Sequence[tuple[int, Sequence[Example]]] = ()
    extremes: Sequence[tuple[str, str, Sequence[tuple[Example, str]]]] = ()
    firsts: Mapping[str, Example] = field(default_factory=dict)
    pool: PoolMap | None = None


def render(
    facts: Mapping[str, Any],
    plan: Plan,
    gallery: Gallery,
    training: Mapping[str, Sequence[Mapping[str, float]]],
    record: RunRecord | None,
    ablation: AblationRecord | None = None,
) -> str:
    """Render the page.

    Args:
        facts: The content of report.json.
        plan: The plan of the run.
        gallery: The rows to show.
        training: The lines of metrics.jsonl of each model.
        record: The run.json of the run, if it exists.
        ablation: The ablation that the run is part of, if any.
    """
    record = record or RunRecord(manifest={})
    page = (
        environment()
        .get_template("index.html.j2")
        .render(
            facts=facts,
            **policy(),
            gallery=gallery,
            relevant=_relevant,
            sentences={name: STAGES[name].every_reason() for name in plan.names},
            finds_copies=_writers(plan, "image_cluster"),
            scores_texts=_writers(plan, "itm_web", "clip_web"),
            cell_titles=CELL_TITLES,
            cells=CELLS,
            paper=PAPER,
            scores=figures.scores(facts),
            numbers=_numbers(facts, plan),
            lengths=figures.lengths(facts),
            images=figures.images(facts),
            phrases=figures.phrases(facts),
            curves=[*figures.losses(training), *figures.validations(training)],
            ablation=tables(ablation) if ablation else [],
            metrics=_columns(facts["evaluation"].values()),
            best=_best(facts["evaluation"]),
            round_facts=[name for name in _columns(facts["rounds"]) if name != "round"],
            verdicts=sorted(_columns(facts["truth"].get("stages", ())), key=_score_order),
            truths=TRUTHS,
            headlines=_headlines(facts),
            seed=plan.manifest.seed,
            record=json.dumps(content_of(record), indent=2, ensure_ascii=False, default=str),
            versions=record.versions,
            machine=record.machine,
        )
    )
    return page.strip() + "\n"


def _numbers(facts: Mapping[str, Any], plan: Plan) -> dict[str, list[figures.Figure]]:
    """The figures of what each stage measured."""
    found = figures.numbers(facts, plan)
    dedup: Any = plan.manifest.stages.get(DedupStage.name)
    if facts["semantic_sweep"] is not None and dedup.semantic is not None:
        found[DedupStage.name].append(sweep.figure(facts["semantic_sweep"], 1 - dedup.semantic))
    return found


def _writers(plan: Plan, *columns: str) -> set[str]:
    """The stages that write at least one of these columns."""
    return {name for name in plan.names if set(columns) & set(plan.columns(name).names)}


def _headlines(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The main metrics of the model evaluated last, as (title, value, remark)."""
    models = list(facts["evaluation"].items())
    if not models:
        return []
    (first, before), (last, after) = models[0], models[-1]
    return [
        (
            title,
            metric(after[name]),
            f"model {last}"
            + (f"; {first} {metric(before[name])}" if first != last and name in before else ""),
        )
        for name, title in HEADLINES.items()
        if name in after
    ]


def _best(evaluation: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The highest value of each metric for which higher is better."""
    hints = ("@", "CIDEr", "roc_auc", "accuracy")
    values = list(evaluation.values())
    return {
        name: max(metrics[name] for metrics in values if name in metrics)
        for name in _columns(values)
        if len(values) > 1 and any(hint in name for hint in hints)
    }


def _score_order(name: str) -> int:
    return SCORES.index(name) if name in SCORES else len(SCORES)


def _columns(rows: Any) -> list[str]:
    """The distinct keys of mappings, in the order of their first use."""
    return list(dict.fromkeys(key for row in rows for key in row))


def _relevant(measures: Mapping[str, str], explanation: str) -> dict[str, str]:
    """The measures whose names an explanation mentions most, at most `MOST_MEASURES`."""
    words = explanation.lower()
    hits = {name: sum(word in words for word in name.split("_")) for name in measures}
    most = max(hits.values(), default=0)
    chosen = [name for name in measures if hits[name] == most > 0]
    return {name: measures[name] for name in chosen[:MOST_MEASURES]}
