"""What an ablation takes: its webs, trainings and evaluations, what is done, and how long."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.demo.ablation import Ablation, Site
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
from pipeline.manifest.train_config import CURATED, POOL, as_sources, word_of
from pipeline.storage.records import EvaluationRecord, ModelRecord
from pipeline.storage.run import Run
from pipeline.training.job import TrainingJob
from stages.base import ModelConfig, StageConfig, digest
from stages.export import ExportStage

__all__ = ["Pass", "Schedule", "Training", "schedule"]

SECONDS_A_STEP = 0.35
"""A step of 64 pairs by a process of one thread, of two that share two cores with others."""

SECONDS_AN_EVALUATION = 40.0
"""250 held-out images with 1,250 captions, one model after the other."""

SECONDS_A_PAGE = 0.05
"""Drawing, downloading, cleaning and deduplicating a page."""

SECONDS_A_CAPTION = 0.012
"""Writing or judging a text of a page."""

SIDE_BY_SIDE = 2
"""Trainings that run at the same time, at most; a chain seldom has more that are independent."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training of a chain on a web with a seed.

    Attributes:
        place: The web, seed and chain.
        name: The entry of the manifest's `train`.
        steps: Its steps; 0 where it goes by epochs.
        is_shared: Whether the main chain makes the same model, which is then copied.
        is_done: Whether the model is there.
        seconds: What it took, if that is recorded.
    """

    place: str
    name: str
    steps: int
    is_shared: bool
    is_done: bool
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A stage with a model over the pages of a web.

    Attributes:
        stage: The stage.
        pages: Pages of the web.
        texts: Texts of a page that it writes or judges.
    """

    stage: str
    pages: int
    texts: int


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Everything that an ablation takes.

    Attributes:
        pages: Pages of each web, once for each seed.
        is_drawn: Whether each of these webs is on disk.
        trainings: The trainings.
        passes: Stages with a model, those that chains share once.
        evaluations: Models that are evaluated, once for each chain.
        evaluated: How many of them are done.
    """

    pages: Sequence[int]
    is_drawn: Sequence[bool]
    trainings: Sequence[Training]
    passes: Sequence[Pass]
    evaluations: int
    evaluated: int

    @property
    def own(self) -> list[Training]:
        """The trainings that are not copied from the main chain."""
        return [one for one in self.trainings if not one.is_shared]

    @property
    def due(self) -> list[Training]:
        """The trainings that are neither done nor copied."""
        return [one for one in self.own if not one.is_done]

    def seconds_a_step(self) -> float | None:
        """The mean over the trainings of this ablation that are done; None before there is one."""
        taken = [(one.seconds, one.steps) for one in self.own if one.seconds and one.steps]
        total = sum(steps for _, steps in taken)
        return sum(seconds for seconds, _ in taken) / total if total else None

    def seconds(self) -> float:
        """An estimate of what is left, on this machine's cores."""
        step = self.seconds_a_step() or SECONDS_A_STEP
        trained = sum(one.steps for one in self.due) * step / min(_cores(), SIDE_BY_SIDE)
        drawn = sum(pages for pages, is_drawn in self._webs() if not is_drawn) * SECONDS_A_PAGE
        share = len(self.due) / len(self.own) if self.own else 0.0
        written = sum(one.pages * one.texts for one in self.passes) * SECONDS_A_CAPTION * share
        measured = (self.evaluations - self.evaluated) * SECONDS_AN_EVALUATION
        return trained + drawn + written + measured

    def _webs(self) -> Iterator[tuple[int, bool]]:
        return zip(self.pages, self.is_drawn, strict=True)

    def lines(self) -> list[str]:
        """Say it, a line for each thing."""
        steps, due = sum(one.steps for one in self.own), sum(one.steps for one in self.due)
        copied = len(self.trainings) - len(self.own)
        known = self.seconds_a_step()
        basis = (
            f"{known:.2f} s a step, measured on {sum(one.is_done for one in self.own)} trainings "
            "of it"
            if known
            else f"{SECONDS_A_STEP} s a step, as on two cores that others use too"
        )
        return [
            f"pools        {_number(len(self.pages))} of {sum(self.pages):,} pages in all; "
            f"{sum(self.is_drawn):,} drawn",
            f"trainings    {_number(len(self.own))} of {steps:,} steps in all, and "
            f"{_number(copied)} copied from the first chain; "
            f"{len(self.own) - len(self.due):,} done",
            f"stages       {_number(len(self.passes))} with a model over a pool",
            f"evaluations  {_number(self.evaluations)}; {self.evaluated:,} done",
            f"left         {due:,} steps, about {_duration(self.seconds())} on "
            f"{min(_cores(), SIDE_BY_SIDE)} cores: {basis}",
        ]


def schedule(ablation: Ablation) -> Schedule:
    """What an ablation takes, without starting anything.

    Raises:
        ManifestError: A chain makes a manifest that is not valid.
    """
    sites = list(ablation.sites())
    trainings: list[Training] = []
    passes: dict[str, Pass] = {}
    evaluations = evaluated = 0
    for site in sites:
        first = ablation.chains_on(site.web)[0]
        trunk = ablation.manifest_of(site, first, ablation.planned(site))
        for chain in ablation.chains_on(site.web):
            manifest = ablation.manifest_of(site, chain, ablation.planned(site))
            run = ablation.opened(site, chain)
            trainings += _trainings(manifest, trunk, f"{site.label}, {chain}", run)
            passes |= _passes(manifest, site, ablation.webs[site.web].pages)
            record = run.find_record(EvaluationRecord, "evaluation.json", damaged_ok=True)
            measured = record.root if record else {}
            evaluations += len(manifest.evaluated)
            evaluated += len(measured.keys() & manifest.evaluated.keys())
    return Schedule(
        pages=[ablation.webs[site.web].pages for site in sites],
        is_drawn=[Run(ablation.folder(site)).exists("web", "web.json") for site in sites],
        trainings=trainings,
        passes=list(passes.values()),
        evaluations=evaluations,
        evaluated=evaluated,
    )


def _trainings(manifest: Manifest, trunk: Manifest, place: str, run: Run) -> Iterator[Training]:
    for name, config in manifest.train.items():
        made = run.find_record(ModelRecord, "models", f"{name}.json", damaged_ok=True)
        is_same = (
            manifest.branch != trunk.branch
            and name in trunk.train
            and _identity(manifest, name) == _identity(trunk, name)
        )
        result: Mapping[str, Any] = made.result if made else {}
        is_whole = result.get("resumed_from") == 0
        yield Training(
            place=place,
            name=name,
            steps=config.steps,
            is_shared=is_same,
            is_done=made is not None and TrainingJob(manifest, name).is_done,
            seconds=float(result["seconds"]) if is_whole else None,
        )


def _passes(manifest: Manifest, site: Site, pages: int) -> dict[str, Pass]:
    """The stages of a manifest that run a model, by what distinguishes them from others."""
    found = {}
    for name, config in manifest.stages.items():
        if isinstance(config, ModelConfig):
            key = digest([site.label, *_stages(manifest, name)])
            texts = getattr(config, "num_captions", 1)
            found[key] = Pass(stage=name, pages=pages, texts=texts)
    return found


def _identity(manifest: Manifest, name: str) -> Any:
    """What a training's model will depend on, as far as that is known before anything is made.

    Two trainings of one name with the same identity make the same model.
    """
    config = manifest.train[name]
    settings = config.measurement()
    for field, model in config.objective.models().items():
        settings[field] = _model(manifest, model)
    settings["data"] = [
        {**dataclasses.asdict(source), "path": _data(manifest, source.path)}
        for source in as_sources(config.data)
    ]
    return settings


def _model(manifest: Manifest, model: str) -> Any:
    """The identity of a model that the manifest trains, with its part; the path of any other."""
    own = model.removeprefix(f"{manifest.models}/")
    name, _, part = own.partition("/")
    return [_identity(manifest, name), part] if own != model and name in manifest.train else model


def _data(manifest: Manifest, path: str) -> Any:
    """The identity of an export of the manifest; the path of any other data."""
    plan = Plan(manifest)
    word, inner = word_of(path)
    name = ExportStage.name if word == CURATED else word
    if path == POOL or name not in plan.exports:
        return path
    return [plan.export(name).config.settings(), *_stages(manifest, name), *inner]


def _stages(manifest: Manifest, name: str) -> list[Any]:
    """The settings of the stages up to one, with what their models depend on."""
    plan = Plan(manifest)
    own = [name] if name in plan.names else []
    return [[one, _settings(manifest, manifest.stages[one])] for one in (*plan.before(name), *own)]


def _settings(manifest: Manifest, config: StageConfig) -> dict[str, Any]:
    settings = {
        key: value for key, value in dataclasses.asdict(config).items() if key not in config.places
    }
    if isinstance(config, ModelConfig):
        settings |= {role: _model(manifest, name) for role, (name, _) in config.models().items()}
    return settings


def _cores() -> int:
    return os.cpu_count() or 1


def _number(value: int) -> str:
    return f"{value:,}" if value else "none"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
