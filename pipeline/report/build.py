"""Builds the report of a run: report/index.html, which needs no other file, and report.json."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.manifest.plan import Plan, revisions
from pipeline.manifest.rounds import branch, fresh
from pipeline.report import health, pool_map
from pipeline.report.examples import Example, examples, locate
from pipeline.report.histogram import Histogram
from pipeline.report.page import Gallery, Rows, render
from pipeline.report.survey import (
    CELLS,
    MAX_SHARED,
    Borderline,
    Survey,
    Texts,
    survey,
)
from pipeline.results.sampling import RowLocation, Smallest
from pipeline.results.verdicts import Results
from pipeline.review import agreement
from pipeline.storage.checksum import with_checksum_page
from pipeline.storage.records import (
    AblationRecord,
    Evaluation,
    EvaluationRecord,
    ExportRecord,
    RunRecord,
    TruthRecord,
    content_of,
)
from pipeline.storage.run import ABLATION, Run
from pipeline.storage.successor import replacing
from stages.clean import CleanStage
from stages.export import ExportStage
from stages.filter import FilterConfig, FilterStage
from stages.select import histogram

__all__ = ["facts_of", "lines_of", "measured_by", "write"]

MOST_HOSTS = 12
MOST_LANGUAGES = 10
MOST_PHRASES = 20
MOST_CLUSTERS = 6
MOST_SHARED = 8
MOST_BESIDE = 3
MOST_FREQUENT = 5
MOST_SAMPLES = 4
CURVE_POINTS = 160
"""Ranks at which the frequencies of noun phrases are drawn."""


def write(
    results: Results,
    funnel: Mapping[str, Any],
    *,
    evaluation: EvaluationRecord | None = None,
    truth: TruthRecord | None = None,
) -> None:
    """Write the report of a run, finished or not.

    Args:
        results: The results of the run.
        funnel: The funnel of the run, from `pipeline.results.funnel.funnel`.
        evaluation: The evaluation of each model; None if there is none.
        truth: How well each stage agrees with the truth; None if the truth is not known.
    """
    run, plan = results.run, results.plan
    names = measured_by(plan, funnel)
    totals = survey(results, names)
    training = lines_of(run, "metrics.jsonl", "step")
    facts = facts_of(results, funnel, totals, evaluation)
    facts["review"] = agreement.of_run(results)
    facts["truth"] = content_of(truth or TruthRecord(stages=[]))
    facts["training"] = {model: dict(_numbers(lines[-1])) for model, lines in training.items()}
    facts["samples"] = _samples(run)
    ablation = run.find_record(AblationRecord, ABLATION, damaged_ok=True)
    facts["ablation"] = content_of(ablation) if ablation else {}
    facts["notes"] = [dataclasses.asdict(note) for note in health.notes(facts)]
    record = run.find_record(RunRecord, "run.json")
    page = render(facts, plan, _gallery(results, names, totals), training, record, ablation)
    with replacing(run, "report", keep="compare.*") as folder:
        run.write_json(facts, folder, "report.json")
        run.write(with_checksum_page(page), folder, "index.html")


def measured_by(plan: Plan, funnel: Mapping[str, Any]) -> list[str]:
    """The stages before the first one that has measured nothing."""
    waiting = {stage["name"] for stage in funnel["stages"] if stage["state"] == "waiting"}
    return list(itertools.takewhile(lambda name: name not in waiting, plan.names))


def facts_of(
    results: Results,
    funnel: Mapping[str, Any],
    totals: Survey,
    evaluation: EvaluationRecord | None,
) -> dict[str, Any]:
    """The content of report.json without truth and training.

    Args:
        results: The results of the run.
        funnel: The funnel of the run.
        totals: The survey of the run.
        evaluation: The evaluation of each model; None if there is none.
    """
    run, plan = results.run, results.plan
    states = {stage["name"]: stage["state"] for stage in funnel["stages"]}
    is_exported = states.get(ExportStage.name) == "done"
    exported = run.read_record(ExportRecord, "curated", "manifest.json") if is_exported else None
    models = evaluation.root if evaluation else {}
    config = plan.manifest.stages.get(FilterStage.name)
    thresholds: dict[str, float | None] = {"itm": None, "clip": None}
    if isinstance(config, FilterConfig):
        thresholds = {"itm": config.min_itm, "clip": config.min_clip}
    return {
        **funnel,
        "name": plan.manifest.name,
        "made": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "stages": [{**stage, "is_conserved": _is_conserved(stage)} for stage in funnel["stages"]],
        "input": {"rows": totals.rows, "repeats": totals.repeats, "captions": totals.web.total},
        "output": {
            "rows": totals.kept,
            "images": exported.images if exported else None,
            "human_images": _human_images(exported),
            "further": totals.further,
            "pairs": {
                source: exported.pairs[source]
                for source in ("web", "synthetic", "fused", "human")
                if source in exported.pairs
            }
            if exported
            else None,
        },
        "texts": {"web": _texts(totals.web), "synthetic": _texts(totals.synthetic)},
        "prompts": {
            name: {
                **dataclasses.asdict(count),
                "reject_rate": count.rejected / count.judged if count.judged else None,
            }
            for name, count in totals.prompts.items()
        },
        "caption_failures": dict(totals.failures.most_common()),
        "thresholds": thresholds,
        "paper": [dataclasses.asdict(band) for band in health.PAPER],
        "cells": {cell: totals.cells[cell] for cell in CELLS} if totals.cells else {},
        "histograms": {
            "web_words": _histogram(totals.web.words),
            "synthetic_words": _histogram(totals.synthetic.words),
            "web_itm": _histogram(totals.web.scores),
            "synthetic_itm": _histogram(totals.synthetic.scores),
            "web_clip": _histogram(totals.web.similarities),
            "synthetic_clip": _histogram(totals.synthetic.similarities),
            "log2_shorter_side": _histogram(totals.sides),
            "log2_aspect": _histogram(totals.aspects),
        },
        "numbers": _stage_numbers(totals),
        "semantic_sweep": totals.sweep.facts(),
        "hosts": _hosts(totals),
        "languages": _languages(totals),
        "rules": _rules(totals),
        "clusters": {
            "number": len(totals.clusters),
            "images": sum(cluster.size for cluster in totals.clusters.values()),
            "largest": [
                {"representative": uid, "images": totals.clusters[uid].size}
                for uid in _largest(totals)
            ],
        },
        "shared_captions": _shared(totals),
        "phrases": _phrases(totals),
        "models": _models(plan),
        "evaluation": _metrics(plan, models),
        "intervals": _intervals(models),
        "rounds": _rounds(results),
    }


def _human_images(exported: ExportRecord | None) -> int | None:
    """The images of an export that come from human pairs, and not from the list."""
    if exported is None:
        return None
    return sum(file.images for file in exported.files if set(file.pairs) == {"human"})


def _models(plan: Plan) -> list[dict[str, str]]:
    """The models that stages use, each with the revision of its weights."""
    models = []
    for name in plan.names:
        config = plan.manifest.stages[name]
        try:
            measurement = plan.measurement(name)
        except (FileNotFoundError, ValueError):  # the model is not trained yet, or was removed
            continue
        for role, revision in revisions(measurement).items():
            model = getattr(config, role, None) or getattr(config, "model", role)
            models.append({"stage": name, "model": str(model), "revision": revision})
    return models


def _is_conserved(stage: Mapping[str, Any]) -> bool:
    rejected = sum(stage["reasons"].values())
    return bool(stage["rows"] == stage["kept"] + rejected + stage["not_measured"])


def _texts(texts: Texts) -> dict[str, Any]:
    return {
        "found": texts.total,
        "judged": texts.judged,
        "rejected": texts.rejected,
        "reject_rate": texts.rejected / texts.judged if texts.judged else None,
        "cut": texts.cut,
        "sentences": texts.sentences,
        "sentences_dropped": texts.sentences_dropped,
        "kept": texts.kept,
        "variety": health.variety(texts.sample.values),
        "frequent": [
            {"caption": text[:MAX_SHARED], "number": number}
            for text, number in texts.frequent.most(MOST_FREQUENT)
        ],
        "frequent_missed": texts.frequent.missed,
    }


def _histogram(histogram: Histogram) -> dict[str, Any]:
    return {"edges": list(histogram.edges), "series": dict(histogram.series)}


def _stage_numbers(totals: Survey) -> dict[str, dict[str, Any]]:
    """By stage, the histogram of each column of numbers that the report draws."""
    numbers: dict[str, dict[str, Any]] = {}
    for (stage, column), counts in totals.numbers.items():
        if (whole := counts.histogram()) is not None:
            entry = {**_histogram(whole), "is_whole": counts.is_whole}
            numbers.setdefault(stage, {})[column] = entry
    return numbers


def _hosts(totals: Survey) -> list[dict[str, Any]]:
    """The hosts with the most rows, each with the reasons of its failed downloads."""
    rows: Counter[str] = Counter()
    reasons: dict[str, Counter[str]] = {}
    for (host, reason), number in totals.hosts.items():
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


def _languages(totals: Survey) -> list[dict[str, Any]]:
    """The most frequent languages, and the sum of all others."""
    rows: Counter[str] = Counter()
    for (language, _), number in totals.languages.items():
        rows[language] += number
    ordered = sorted(rows.items(), key=lambda entry: (-entry[1], entry[0]))
    entries: list[dict[str, Any]] = [
        {"language": language, "rows": number, "kept": totals.languages[language, True]}
        for language, number in ordered
    ]
    shown, others = entries[:MOST_LANGUAGES], entries[MOST_LANGUAGES:]
    if others:
        rest = {key: sum(entry[key] for entry in others) for key in ("rows", "kept")}
        shown.append({"language": f"{len(others)} others", **rest})
    return shown


def _rules(totals: Survey) -> list[dict[str, Any]]:
    """The rules of clean that fired: rows in all, first, alone, and the rules fired beside them."""
    names = list(CleanStage.reasons)
    rules = {name: {"fired": 0, "first": 0, "alone": 0} for name in names}
    beside: dict[str, Counter[str]] = {name: Counter() for name in names}
    for bits, number in totals.fired.items():
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


def _shared(totals: Survey) -> list[dict[str, Any]]:
    ordered = sorted(totals.shared.values(), key=lambda entry: (-entry[0], entry[1]))
    return [{"caption": caption, "images": number} for number, caption in ordered[:MOST_SHARED]]


def _phrases(totals: Survey) -> dict[str, Any]:
    before, after = totals.phrases
    ordered = sorted(before.items(), key=lambda entry: (-entry[1], entry[0]))
    return {
        "distinct_before": len(before),
        "distinct_after": len(after),
        "top": [
            {"phrase": phrase, "before": number, "after": after[phrase]}
            for phrase, number in ordered[:MOST_PHRASES]
        ],
        "frequencies": {"before": _ranked(before), "after": _ranked(after)},
        "coverage": [
            {name: int(value) for name, value in row.items()}
            for row in histogram(
                np.fromiter(before.values(), np.int64, len(before)),
                np.fromiter((after[phrase] for phrase in before), np.int64, len(before)),
            ).to_pylist()
        ],
    }


def _ranked(counts: Counter[str]) -> list[tuple[int, int]]:
    """(rank, frequency) of phrases at logarithmically spaced ranks, the most frequent first."""
    ordered = sorted((number for number in counts.values() if number), reverse=True)
    if not ordered:
        return []
    ranks = np.geomspace(1, len(ordered), CURVE_POINTS).round()
    return [(int(rank), ordered[int(rank) - 1]) for rank in np.unique(ranks)]


def _largest(totals: Survey) -> list[str]:
    order = sorted(totals.clusters, key=lambda uid: (-totals.clusters[uid].size, uid))
    return order[:MOST_CLUSTERS]


def _gallery(results: Results, names: Sequence[str], totals: Survey) -> Gallery:
    """The rows that the report shows with their images."""
    strips = {uid: totals.clusters[uid].members.values for uid in _largest(totals)}
    locations = [
        location
        for samples in (totals.reasons.values(), totals.shown.values())
        for sample in samples
        for location in sample.values
    ]
    locations += [
        location
        for line in totals.thresholds.values()
        for sample in (line.rejected, line.kept)
        for location in sample.values
    ]
    locations += [point.location for point in totals.points.values]
    locations += [location for members in strips.values() for location in members]
    extremes = totals.extremes.extremes(results)
    locations += [location for extreme in extremes for location, _ in extreme.rows]
    seen = examples(results, names, locations)
    firsts = {e.cluster for e in seen.values() if e.cluster not in (None, e.uid)} | set(strips)
    there = locate(results.run, (uid for uid in firsts if uid is not None))
    missing = [location for location in there.values() if location not in seen]
    seen |= examples(results, names, missing)

    def take(sample: Sequence[RowLocation]) -> list[Example]:
        return [seen[location] for location in sample]

    return Gallery(
        reasons={
            key: _rows(sample, totals.thresholds.get(key), take)
            for key, sample in totals.reasons.items()
        },
        cells={cell: take(totals.shown[cell].values) for cell in CELLS if cell in totals.shown},
        clusters=[
            (totals.clusters[uid].size, take([there[uid], *members]))
            for uid, members in strips.items()
            if uid in there
        ],
        extremes=[
            (
                end.title,
                end.remark,
                [(seen[location], end.write(value)) for location, value in rows],
            )
            for end, rows in ((extreme.end, extreme.rows) for extreme in extremes)
        ],
        firsts={uid: seen[location] for uid, location in there.items()},
        pool=pool_map.draw(results, totals.embedded, totals.points.values, seen),
    )


def _rows(
    sample: Smallest[RowLocation],
    line: Borderline | None,
    take: Callable[[Sequence[RowLocation]], list[Example]],
) -> Rows:
    """The rows shown for a reason: the nearest to its threshold, and a random sample of others."""
    if line is None or not line.rejected.values:
        return Rows(sample=take(sample.values))
    near = line.rejected.values
    return Rows(
        name=line.name,
        limit=line.limit,
        rejected=take(near),
        kept=take(line.kept.values),
        sample=take([location for location in sample.values if location not in near]),
    )


def _metrics(plan: Plan, models: Mapping[str, Evaluation]) -> dict[str, dict[str, float]]:
    """The metrics of each model, in the order of the manifest, nested names joined."""
    order = list(plan.manifest.evaluated)
    metrics = {}
    for model, entry in sorted(
        models.items(), key=lambda item: order.index(item[0]) if item[0] in order else -1
    ):
        numbers = _numbers(entry.metrics)
        metrics[model] = {n: value for n, value in numbers if not n.startswith("intervals ")}
    return {model: values for model, values in metrics.items() if values}


def _intervals(models: Mapping[str, Evaluation]) -> dict[str, dict[str, list[float]]]:
    """The two ends of the interval of each metric of each model, if the evaluation has one."""
    return {
        model: dict(_leaves(entry.metrics["intervals"]))
        for model, entry in models.items()
        if "intervals" in entry.metrics
    }


def _rounds(results: Results) -> list[dict[str, Any]]:
    """The result of each finished bootstrap round: its pairs, and the metrics of its new model."""
    manifest = results.plan.manifest
    if manifest.rounds == 1:
        return []
    new = fresh(manifest)
    return [
        {
            "round": entry["round"],
            "images": entry["images"],
            **{f"{source} captions": number for source, number in entry["pairs"].items()},
            **dict(_numbers(entry["evaluation"].get(new[0], {}) if new else {})),
        }
        for entry in compare_rounds(results.run.root)
    ]


def _leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings, each with its keys joined by a space."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _leaves(value, f"{prefix} {key}".strip())
    else:
        yield prefix, values


def _numbers(values: Any) -> list[tuple[str, float]]:
    return [
        (name, value)
        for name, value in _leaves(values)
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]


def lines_of(run: Run, file: str, key: str) -> dict[str, list[dict[str, Any]]]:
    """By model, the lines of a JSON Lines file that have a key; models without any are left out."""
    lines_by_model = {}
    for model in run.names("models"):
        if not run.exists("models", model, file):
            continue
        lines = []
        for line in run.read("models", model, file).decode().splitlines():
            try:
                values = json.loads(line)
            except json.JSONDecodeError:  # a last line cut short by a crash
                continue
            if isinstance(values, dict) and key in values:
                lines.append(values)
        if lines:
            lines_by_model[model] = lines
    return lines_by_model


def _samples(run: Run) -> dict[str, list[dict[str, Any]]]:
    """By model, captions written in training, at the first and at the last step with captions."""
    samples = {}
    for model, lines in lines_of(run, "samples.jsonl", "written").items():
        steps = [line.get("step") for line in lines]
        samples[model] = [
            {key: line.get(key) for key in ("step", "caption", "written")}
            for step in dict.fromkeys((steps[0], steps[-1]))
            for line in [line for line in lines if line.get("step") == step][:MOST_SAMPLES]
        ]
    return samples


def compare_rounds(root: str) -> list[dict[str, Any]]:
    """The result of each finished round of a run, in order: images, pairs by source, evaluation."""
    finished: list[dict[str, Any]] = []
    while True:
        number = len(finished) + 1
        run = Run(root, branch(number))
        exported = run.find_record(ExportRecord, "curated", "manifest.json")
        if exported is None:
            return finished
        evaluation = run.find_record(EvaluationRecord, "evaluation.json")
        models = evaluation.root if evaluation else {}
        finished.append(
            {
                "round": number,
                "images": exported.images,
                "pairs": exported.pairs,
                "evaluation": {name: entry.metrics for name, entry in models.items()},
            }
        )
