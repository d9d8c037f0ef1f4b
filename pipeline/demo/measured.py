"""The measurements of an ablation so far: its tables with their comparisons, and its curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.demo.ablation import Ablation, Curve, Site, Table
from pipeline.demo.effects import estimate, holm, p_value, power, seeds_needed, share, spread
from pipeline.storage.records import (
    AblationComparison,
    AblationCurve,
    AblationEffect,
    AblationMetric,
    AblationPoint,
    AblationPower,
    AblationRecord,
    AblationRow,
    AblationTable,
    EvaluationRecord,
    TruthRecord,
)
from pipeline.storage.run import Run

__all__ = ["collect"]

Values = list[float | None]
"""One for each seed; None where it is missing."""


def collect(ablation: Ablation) -> AblationRecord:
    """Collect what the chains of an ablation have measured.

    Every row of a table is compared to the first, and to those that `against` names, with the same
    seeds. Holm's correction is over all these comparisons in all metrics of the table.
    """
    measured = _Measured(ablation)
    return AblationRecord(
        name=ablation.name,
        seeds=list(ablation.seeds),
        tables=[_table(measured, table) for table in ablation.tables],
        curves=[_curve(measured, curve) for curve in ablation.curves],
    )


class _Measured:
    """What was measured in each chain, read once."""

    def __init__(self, ablation: Ablation) -> None:
        self.ablation = ablation
        self._read: dict[tuple[Site, str], dict[str, Any]] = {}

    def values(self, web: str, row: str, metric: str) -> Values:
        """The values of a metric of `CHAIN/MODEL` on a web, by seed."""
        chain, _, model = row.partition("/")
        path = self.ablation.metrics[metric].split(".")
        sites = [Site(web=web, seed=seed) for seed in self.ablation.seeds]
        if path[0] not in ("report", "truth"):
            path = ["models", model, *path]
        return [_value(self._of(site, chain), path) for site in sites]

    def _of(self, site: Site, chain: str) -> dict[str, Any]:
        if (site, chain) not in self._read:
            self._read[site, chain] = _found(self.ablation.opened(site, chain))
        return self._read[site, chain]


def _found(run: Run) -> dict[str, Any]:
    """The report.json, the truth.json and the evaluation of a chain; missing ones are empty."""
    report = run.read_json("report", "report.json") if run.exists("report", "report.json") else {}
    truth = run.find_record(TruthRecord, "truth.json")
    record = run.find_record(EvaluationRecord, "evaluation.json")
    known = truth.model_dump() if truth else {}
    return {
        "report": report,
        "truth": {**known, **{one["stage"]: one for one in known.get("stages", ())}},
        "models": {name: one.metrics for name, one in record.root.items()} if record else {},
    }


def _value(value: Any, path: Sequence[str]) -> float | None:
    """Look up a number by its path."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return float(value) if isinstance(value, int | float) else None


def _known(values: Values) -> list[float]:
    return [value for value in values if value is not None]


def _differences(values: Values, base: Values, *more: Values) -> list[tuple[float, ...]]:
    """The differences to a base by seed, of several rows where all have values."""
    pairs = zip(base, values, *more, strict=True)
    return [tuple(one - seed[0] for one in seed[1:]) for seed in pairs if None not in seed]


def _table(measured: _Measured, table: Table) -> AblationTable:
    web = table.web or measured.ablation.main
    names = table.metrics or tuple(measured.ablation.metrics)
    none: Values = [None] * len(measured.ablation.seeds)
    values = {
        label: {
            name: none if name in table.lacks.get(label, ()) else measured.values(web, row, name)
            for name in names
        }
        for label, row in table.rows.items()
    }
    first, *others = table.rows
    pairs = [(label, first) for label in others]
    pairs += [(label, other) for label, found in table.against.items() for other in found]
    effects = {
        (label, base, name): _effect(
            values[label][name],
            values[base][name],
            values[table.ceiling][name] if table.ceiling and base == first else None,
        )
        for label, base in pairs
        for name in names
    }
    _correct([effect for effect in effects.values() if effect is not None])
    rows = []
    for label, row in table.rows.items():
        chain, _, model = row.partition("/")
        metrics = {
            name: AblationMetric(
                values=values[label][name],
                estimate=estimate(_known(values[label][name])),
                difference=effects.get((label, first, name)),
            )
            for name in names
        }
        rows.append(AblationRow(label=label, chain=chain, model=model, metrics=metrics))
    return AblationTable(
        title=table.title,
        rows=rows,
        comparisons=[
            AblationComparison(
                label=label,
                against=base,
                metrics={name: effects[label, base, name] for name in names},
            )
            for label, base in pairs
            if base != first
        ],
        power=[_power(table, index, values) for index in range(len(table.expects))],
    )


def _effect(values: Values, base: Values, ceiling: Values | None) -> AblationEffect | None:
    differences = [one for (one,) in _differences(values, base)]
    found = estimate(differences)
    if found is None:
        return None
    part = None
    if ceiling is not None and (both := _differences(values, base, ceiling)):
        part = share([one for one, _ in both], [whole for _, whole in both])
    return AblationEffect(**found.model_dump(), p=p_value(differences), share=part)


def _correct(effects: Sequence[AblationEffect]) -> None:
    """Set the corrected p of the comparisons of a table."""
    tested = [effect for effect in effects if effect.p is not None]
    for effect, corrected in zip(tested, holm([one.p or 0.0 for one in tested]), strict=True):
        effect.corrected = corrected


def _power(table: Table, index: int, values: Mapping[str, Mapping[str, Values]]) -> AblationPower:
    expected = table.expects[index]
    row, base = (values[label][expected.metric] for label in (expected.row, expected.against))
    differences = [one for (one,) in _differences(row, base)]
    found = spread(differences)
    deviation = found or expected.spread
    return AblationPower(
        label=expected.row,
        against=expected.against,
        metric=expected.metric,
        difference=expected.difference,
        spread=deviation,
        is_measured=bool(found),
        seeds=seeds_needed(expected.difference, deviation),
        power=power(expected.difference, deviation, len(row)),
    )


def _curve(measured: _Measured, curve: Curve) -> AblationCurve:
    lines: dict[str, list[AblationPoint]] = {}
    for label, row in curve.rows.items():
        lines[label] = []
        for web, x in sorted(curve.x.items(), key=lambda pair: pair[1]):
            base = measured.values(web, curve.base, curve.metric)
            own = measured.values(web, row, curve.metric)
            gains = [one for (one,) in _differences(own, base)]
            lines[label].append(AblationPoint(x=x, gain=estimate(gains)))
    return AblationCurve(
        title=curve.title,
        x_label=curve.x_label or curve.title,
        metric=curve.metric,
        lines=lines,
    )
