"""RUN/report/index.html, one file that asks for nothing else, and report.json, its numbers."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.manifest import Plan
from pipeline.report import health
from pipeline.report.charts import Histogram
from pipeline.report.examples import Example, examples, locate
from pipeline.report.page import Gallery, render
from pipeline.report.survey import CELLS, Place, Survey, Texts, survey
from pipeline.review import agreement
from pipeline.rounds import compare
from pipeline.store import Run
from pipeline.training import CURATED
from stages.clean import CleanStage
from stages.export import ExportStage
from stages.filter import FilterConfig, FilterStage
from stages.select import histogram

__all__ = ["write"]

MOST_HOSTS = 12
MOST_LANGUAGES = 10
MOST_PHRASES = 20
MOST_CLUSTERS = 6
MOST_SHARED = 8
MOST_BESIDE = 3


def write(
    run: Run,
    plan: Plan,
    funnel: Mapping[str, Any],
    *,
    evaluation: Mapping[str, Any] | None = None,
    truth: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Write the report of a run, finished or not.

    Args:
        run: The run.
        plan: Its plan.
        funnel: What `pipeline.status.funnel` says of it.
        evaluation: The metrics of each model, by its name.
        truth: Where the truth is known, how right each stage was, a mapping with `stage` for each;
            or these under `stages`, beside shares of the whole.
    """
    waiting = {stage["name"] for stage in funnel["stages"] if stage["state"] == "waiting"}
    names = list(itertools.takewhile(lambda name: name not in waiting, plan.names))
    found = survey(run, plan, names)
    facts = _facts(run, plan, funnel, found)
    facts["evaluation"] = _metrics(plan, evaluation or {})
    facts["rounds"] = _rounds(run, plan)
    facts["review"] = agreement.of_run(run, plan)
    facts["truth"] = dict(truth) if isinstance(truth, Mapping) else {"stages": list(truth or ())}
    training = _training(run)
    facts["training"] = {model: lines[-1] for model, lines in training.items()}
    facts["notes"] = [dataclasses.asdict(note) for note in health.notes(facts)]
    record = run.read_json("run.json") if run.exists("run.json") else {}
    page = render(facts, plan, _gallery(run, plan, names, found), training, record)
    run.write_json(facts, "report", "report.json")
    run.write(page.encode(), "report", "index.html")


def _facts(run: Run, plan: Plan, funnel: Mapping[str, Any], found: Survey) -> dict[str, Any]:
    """What report.json holds, models and truth left out."""
    states = {stage["name"]: stage["state"] for stage in funnel["stages"]}
    is_exported = states.get(ExportStage.name) == "done"
    exported = run.read_json("curated", "manifest.json") if is_exported else None
    config = plan.manifest.stages.get(FilterStage.name)
    least = config.min_itm if isinstance(config, FilterConfig) else None
    return {
        **funnel,
        "name": plan.manifest.name,
        "made": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "stages": [{**stage, "is_conserved": _is_conserved(stage)} for stage in funnel["stages"]],
        "input": {"rows": found.rows, "repeats": found.repeats, "captions": found.web.found},
        "output": {
            "rows": found.kept,
            "images": exported["images"] if exported else None,
            "pairs": {
                source: exported["pairs"][source]
                for source in ("web", "synthetic", "human")
                if source in exported["pairs"]
            }
            if exported
            else None,
        },
        "texts": {"web": _texts(found.web), "synthetic": _texts(found.synthetic)},
        "threshold": least,
        "paper": [dataclasses.asdict(band) for band in health.PAPER],
        "cells": {cell: found.cells[cell] for cell in CELLS} if found.cells else {},
        "histograms": {
            "web_words": _histogram(found.web.words),
            "synthetic_words": _histogram(found.synthetic.words),
            "web_itm": _histogram(found.web.scores),
            "synthetic_itm": _histogram(found.synthetic.scores),
            "log2_shorter_side": _histogram(found.sides),
            "log2_aspect": _histogram(found.aspects),
        },
        "hosts": _hosts(found),
        "languages": _languages(found),
        "rules": _rules(found),
        "clusters": {
            "number": len(found.clusters),
            "images": sum(cluster.size for cluster in found.clusters.values()),
            "largest": [
                {"representative": uid, "images": found.clusters[uid].size}
                for uid in _largest(found)
            ],
        },
        "shared_captions": _shared(found),
        "phrases": _phrases(found),
    }


def _is_conserved(stage: Mapping[str, Any]) -> bool:
    rejected = sum(stage["reasons"].values())
    return bool(stage["rows"] == stage["kept"] + rejected + stage["not_measured"])


def _texts(texts: Texts) -> dict[str, Any]:
    return {
        "found": texts.found,
        "judged": texts.judged,
        "rejected": texts.rejected,
        "reject_rate": texts.rejected / texts.judged if texts.judged else None,
        "kept": texts.kept,
        "variety": health.variety(texts.sample.values),
    }


def _histogram(histogram: Histogram) -> dict[str, Any]:
    return {"edges": list(histogram.edges), "series": dict(histogram.series)}


def _hosts(found: Survey) -> list[dict[str, Any]]:
    """The hosts of most rows, each with the reasons its downloads failed for."""
    rows: Counter[str] = Counter()
    reasons: dict[str, Counter[str]] = {}
    for (host, reason), number in found.hosts.items():
        rows[host] += number
        if reason is not None:
            reasons.setdefault(host, Counter())[reason] += number
    return [
        {
            "host": host,
            "rows": number,
            "failed": sum(reasons.get(host, Counter()).values()),
            "reasons": dict(reasons.get(host, Counter()).most_common()),
        }
        for host, number in sorted(rows.items(), key=lambda entry: (-entry[1], entry[0]))
    ][:MOST_HOSTS]


def _languages(found: Survey) -> list[dict[str, Any]]:
    rows: Counter[str] = Counter()
    for (language, _), number in found.languages.items():
        rows[language] += number
    ordered = sorted(rows.items(), key=lambda entry: (-entry[1], entry[0]))
    return [
        {"language": language, "rows": number, "kept": found.languages[language, True]}
        for language, number in ordered[:MOST_LANGUAGES]
    ]


def _rules(found: Survey) -> list[dict[str, Any]]:
    """The rules of clean that fired: on how many rows, first, alone, and beside which others."""
    names = list(CleanStage.reasons)
    rules = {name: {"fired": 0, "first": 0, "alone": 0} for name in names}
    beside: dict[str, Counter[str]] = {name: Counter() for name in names}
    for bits, number in found.fired.items():
        fired = [name for bit, name in enumerate(names) if bits >> bit & 1]
        for name in fired:
            rules[name]["fired"] += number
            rules[name]["first"] += number if name == fired[0] else 0
            rules[name]["alone"] += number if len(fired) == 1 else 0
            beside[name].update({other: number for other in fired if other != name})
    return [
        {"rule": name, **rules[name], "beside": dict(beside[name].most_common(MOST_BESIDE))}
        for name in sorted(names, key=lambda name: -rules[name]["fired"])
        if rules[name]["fired"]
    ]


def _shared(found: Survey) -> list[dict[str, Any]]:
    ordered = sorted(found.shared.values(), key=lambda entry: (-entry[0], entry[1]))
    return [{"caption": caption, "images": number} for number, caption in ordered[:MOST_SHARED]]


def _phrases(found: Survey) -> dict[str, Any]:
    before, after = found.phrases
    ordered = sorted(before.items(), key=lambda entry: (-entry[1], entry[0]))
    return {
        "distinct_before": len(before),
        "distinct_after": len(after),
        "top": [
            {"phrase": phrase, "before": number, "after": after[phrase]}
            for phrase, number in ordered[:MOST_PHRASES]
        ],
        "coverage": histogram(
            np.fromiter(before.values(), np.int64, len(before)),
            np.fromiter((after[phrase] for phrase in before), np.int64, len(before)),
        ).to_pylist(),
    }


def _largest(found: Survey) -> list[str]:
    order = sorted(found.clusters, key=lambda uid: (-found.clusters[uid].size, uid))
    return order[:MOST_CLUSTERS]


def _gallery(run: Run, plan: Plan, names: Sequence[str], found: Survey) -> Gallery:
    """Everything that the report shows in pictures."""
    strips = {uid: found.clusters[uid].members.values for uid in _largest(found)}
    places = [
        place
        for samples in (found.reasons.values(), found.shown.values())
        for sample in samples
        for place in sample.values
    ]
    places += [place for members in strips.values() for place in members]
    seen = examples(run, plan, names, places)
    firsts = {e.cluster for e in seen.values() if e.cluster not in (None, e.uid)} | set(strips)
    there = locate(run, (uid for uid in firsts if uid is not None))
    seen |= examples(run, plan, names, (place for place in there.values() if place not in seen))

    def take(sample: Sequence[Place]) -> list[Example]:
        return [seen[place] for place in sample]

    return Gallery(
        reasons={key: take(sample.values) for key, sample in found.reasons.items()},
        cells={cell: take(found.shown[cell].values) for cell in CELLS if cell in found.shown},
        clusters=[
            (found.clusters[uid].size, take([there[uid], *members]))
            for uid, members in strips.items()
            if uid in there
        ],
        firsts={uid: seen[place] for uid, place in there.items()},
    )


def _metrics(plan: Plan, evaluation: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The numbers of each model in the order of the manifest, nested names joined by a space."""
    wanted = plan.manifest.evaluate.models if plan.manifest.evaluate else ()
    order = [model.rstrip("/").rsplit("/", 1)[-1] for model in wanted]
    found = {}
    for model, entry in sorted(
        evaluation.items(), key=lambda item: order.index(item[0]) if item[0] in order else -1
    ):
        values = entry.get("metrics", entry) if isinstance(entry, Mapping) else {}
        found[model] = dict(_numbers(values))
    return {model: values for model, values in found.items() if values}


def _rounds(run: Run, plan: Plan) -> list[dict[str, Any]]:
    """What each finished bootstrap round came to: pairs, and the model that it trained anew."""
    if plan.manifest.rounds == 1:
        return []
    fresh = [
        name
        for name, config in plan.manifest.train.items()
        if config.objective == "pretrain" and CURATED in config.data
    ]
    return [
        {
            "round": entry["round"],
            "images": entry["images"],
            **{f"{source} captions": number for source, number in entry["pairs"].items()},
            **dict(_numbers(entry["evaluation"].get(fresh[0], {}) if fresh else {})),
        }
        for entry in compare(run.root)
    ]


def _numbers(values: Any, prefix: str = "") -> list[tuple[str, float]]:
    if isinstance(values, Mapping):
        return [
            pair
            for key, value in values.items()
            for pair in _numbers(value, f"{prefix} {key}".strip())
        ]
    is_number = isinstance(values, int | float) and not isinstance(values, bool)
    return [(prefix, values)] if is_number else []


def _training(run: Run) -> dict[str, list[dict[str, float]]]:
    """The lines of metrics.jsonl of each model that has them."""
    found = {}
    for model in run.names("models"):
        if not run.exists("models", model, "metrics.jsonl"):
            continue
        lines = []
        for line in run.read("models", model, "metrics.jsonl").decode().splitlines():
            try:
                values = json.loads(line)
            except json.JSONDecodeError:  # a last line cut short by a crash
                continue
            if isinstance(values, dict) and "step" in values:
                lines.append(dict(_numbers(values)))
        if lines:
            found[model] = lines
    return found
