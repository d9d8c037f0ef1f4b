"""Ablations: variants of one manifest, run with several seeds, shown as tables with intervals.

    name: ablation
    manifest: demo.yaml             # relative to this file; each seed draws its own web
    seeds: [0, 1, 2]
    chains:                         # changes to the manifest; the first chain is the main run
      nucleus: {train: {none: {like: curated, data: [export:none]}}}
      beam: {stages: {caption: {decoding: beam}}}
    metrics: {TR@1: retrieval.itm.TR@1, noise: report.texts.synthetic.reject_rate}
    tables:
      - title: Decoding
        rows: {beam: beam/curated, nucleus: nucleus/curated}

A row of a table is a model that a chain trains. Chains with the same seed share the pool, and the
annotations and models that they have in common. Finished work is reused, so the same command
resumes.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pydantic
from scipy.stats import t as student

from models.errors import ManifestError, YamlError
from pipeline.demo import run as drawn
from pipeline.execution.progress import Progress
from pipeline.execution.session import write_report
from pipeline.manifest import yaml
from pipeline.manifest.manifest import A_NAME, Manifest, is_name
from pipeline.manifest.validation import explain
from pipeline.results.open_run import open_results
from pipeline.storage.records import (
    AblationMetric,
    AblationRecord,
    AblationRow,
    AblationTable,
    Estimate,
    Evaluation,
    EvaluationRecord,
)
from pipeline.storage.run import ABLATION, Run

__all__ = ["Ablation", "Table", "collect", "estimate"]

CONFIDENCE = 0.95

WEB = "runs/demo/web"
"""The web of the demo in a chain; each seed's own web takes its place."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table of an ablation.

    Attributes:
        title: The title.
        rows: `CHAIN/MODEL` by label; all rows are compared to the first.
        metrics: The metrics shown; empty shows all of the ablation.
        lacks: Metrics that do not apply to a row, by its label.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    title: str
    rows: dict[str, str]
    metrics: tuple[str, ...] = ()
    lacks: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """A validated ablation.

    Attributes:
        name: Its name.
        manifest: Path of the base manifest, relative to the file.
        seeds: Seeds of the web, the stages and the trainings; each has its own run.
        chains: Mappings, by name, that are merged into the manifest. Paths in runs/demo/web are
            those of the web of each seed.
        metrics: Path of each metric in the evaluation of a model, or, with the prefix `report.`,
            in the report of its chain.
        tables: The tables.
        run: Folder of all its runs.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    name: str
    manifest: str
    seeds: tuple[int, ...]
    chains: dict[str, dict[str, Any]]
    metrics: dict[str, str]
    tables: tuple[Table, ...]
    run: str = ""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be one or more different numbers, got {self.seeds}")
        if not self.chains:
            raise ValueError("chains must have at least one entry")
        for name in (self.name, *self.chains):
            if not is_name(name):
                raise ValueError(f"the name of an ablation or a chain must be {A_NAME}: {name!r}")
        for table in self.tables:
            for label, row in table.rows.items():
                chain, slash, model = row.partition("/")
                if chain not in self.chains or not slash or not model:
                    raise ValueError(
                        f"tables: row {label!r} of {table.title!r} must be CHAIN/MODEL with a "
                        f"chain of {', '.join(self.chains)}, got {row!r}"
                    )
            for metric in (*table.metrics, *itertools.chain(*table.lacks.values())):
                if metric not in self.metrics:
                    raise ValueError(
                        f"tables: {table.title!r} shows {metric!r}; metrics has "
                        f"{', '.join(self.metrics)}"
                    )
            if unknown := table.lacks.keys() - table.rows.keys():
                raise ValueError(
                    f"tables: {table.title!r} lacks metrics of {', '.join(sorted(unknown))}; its "
                    f"rows are {', '.join(table.rows)}"
                )

    @classmethod
    def load(cls, path: str, run: str | None = None) -> Ablation:
        """Read and validate an ablation.

        Raises:
            ManifestError: The file is not a valid ablation; the message says where.
        """
        try:
            content = yaml.load_file(path)
            if not isinstance(content, dict):
                raise ManifestError(
                    f"{path}: an ablation must be a mapping with `manifest` and `tables`"
                )
            if problems := [
                f"{path}: {field}: {message}" for field, message in yaml.find_problems(content)
            ]:
                raise ManifestError("\n".join(problems))
            given = {"run": f"runs/{content.get('name')}", **content}
            if isinstance(given.get("manifest"), str):
                given["manifest"] = str(Path(path).parent / given["manifest"])
            if run is not None:
                given["run"] = run
            return pydantic.TypeAdapter(cls).validate_python(given)
        except FileNotFoundError:
            raise ManifestError(f"{path}: no such file") from None
        except YamlError as error:
            raise ManifestError(str(error)) from None
        except pydantic.ValidationError as error:
            problems = [
                f"{path}: {w or 'ablation'}: {message}" for w, message in explain(error, cls)
            ]
            raise ManifestError("\n".join(problems)) from None

    def folder(self, seed: int) -> str:
        """Return the folder of the run of a seed."""
        return f"{self.run}/seed-{seed}"

    def branch(self, chain: str) -> str:
        """Return the folder, within the run, for the files of one chain only."""
        return "" if chain == next(iter(self.chains)) else f"chains/{chain}"

    def opened(self, seed: int, chain: str) -> Run:
        """Open the run of a chain with a seed."""
        return Run(self.folder(seed), self.branch(chain))

    def carry_out(self, workers: int | None, progress: Progress) -> None:
        """Run every chain with every seed, one after the other, skipping what is done."""
        for chain in self.chains:
            for seed in self.seeds:
                web = drawn.prepare(self.folder(seed), seed, progress)
                manifest = self.manifest_of(seed, chain, web)
                progress.say(f"chain      {chain}, seed {seed}")
                drawn.carry_out(manifest, web, workers, progress)
                write_report(open_results(self.opened(seed, chain)))

    def publish(self, record: AblationRecord) -> None:
        """Add the tables of `collect` to the reports of all runs and chains."""
        for seed in self.seeds:
            Run(self.folder(seed)).write_record(record, ABLATION)
            for chain in self.chains:
                write_report(open_results(self.opened(seed, chain)))

    def manifest_of(self, seed: int, chain: str, web: drawn.Web) -> Manifest:
        """Return the manifest of a chain for the web of a seed."""
        models = (drawn.SHIPPED / "captioner", drawn.SHIPPED / "matcher")
        overrides = [f"seed={seed}", *drawn.paths(web, *models)]
        base = Manifest.load(self.manifest, overrides, self.folder(seed))
        changes = _in_web(self.chains[chain], web)
        content = merge(base.source, changes)
        return Manifest.parse(content, f"{self.manifest} + {chain}", self.branch(chain))


def _in_web(value: Any, web: drawn.Web) -> Any:
    """Replace the folder of the demo's web in all texts by that of a web."""
    if isinstance(value, dict):
        return {key: _in_web(one, web) for key, one in value.items()}
    if isinstance(value, list):
        return [_in_web(one, web) for one in value]
    if isinstance(value, str) and value.startswith(f"{WEB}/"):
        return str(web.folder / value.removeprefix(f"{WEB}/"))
    return value


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge changes into nested mappings; null removes an entry, lists are replaced."""
    merged = copy.deepcopy(dict(base))
    for key, value in changes.items():
        if value is None:
            merged.pop(key, None)
            continue
        old = merged.get(key)
        merged[key] = (
            merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return merged


def collect(ablation: Ablation) -> AblationRecord:
    """Collect the measurements of an ablation so far.

    The difference of a metric is to the first row of the table with the same seed.
    """
    pairs = itertools.product(ablation.seeds, ablation.chains)
    measured = {pair: _measured(ablation.opened(*pair)) for pair in pairs}
    tables = []
    for table in ablation.tables:
        names = table.metrics or tuple(ablation.metrics)
        first: dict[str, list[float | None]] = {}
        rows: list[AblationRow] = []
        for label, row in table.rows.items():
            chain, _, model = row.partition("/")
            metrics = {}
            for name in names:
                is_lacking = name in table.lacks.get(label, ())
                values = [
                    None
                    if is_lacking
                    else _value(measured[seed, chain], model, ablation.metrics[name])
                    for seed in ablation.seeds
                ]
                base = first.setdefault(name, values)
                differences = [
                    value - other
                    for value, other in zip(values, base, strict=True)
                    if value is not None and other is not None
                ]
                metrics[name] = AblationMetric(
                    values=values,
                    estimate=estimate([value for value in values if value is not None]),
                    difference=estimate(differences) if rows else None,
                )
            rows.append(AblationRow(label=label, chain=chain, model=model, metrics=metrics))
        tables.append(AblationTable(title=table.title, rows=rows))
    return AblationRecord(name=ablation.name, seeds=list(ablation.seeds), tables=tables)


def _measured(run: Run) -> tuple[dict[str, Any], dict[str, Evaluation]]:
    """Read the report.json and the evaluation of a chain; missing ones are empty."""
    report = run.read_json("report", "report.json") if run.exists("report", "report.json") else {}
    record = run.find_record(EvaluationRecord, "evaluation.json")
    return report, record.root if record else {}


def _value(
    measured: tuple[dict[str, Any], dict[str, Evaluation]], model: str, path: str
) -> float | None:
    """Look up a metric of a model by its path."""
    report, models = measured
    value: Any = models[model].metrics if model in models else None
    if path.startswith("report."):
        value, path = report, path.removeprefix("report.")
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return float(value) if isinstance(value, int | float) else None


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return the mean of values and its 95 % interval by Student's t; one value has no interval."""
    if not values:
        return None
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Estimate(mean=mean, low=None, high=None)
    quantile = float(student.ppf(0.5 + CONFIDENCE / 2, len(values) - 1))
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean=mean, low=mean - half, high=mean + half)
