"""A session on a run: stages, trainings, evaluation and report of a manifest, in order."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import signal
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from models.errors import ClusterError, DamagedError, InputError, StageError
from models.objectives.config import ObjectiveConfig
from models.weights import check_files
from pipeline.execution import logs
from pipeline.execution.cluster import Cluster
from pipeline.execution.progress import Progress
from pipeline.execution.runner import Runner
from pipeline.execution.training_jobs import TrainingJobs
from pipeline.manifest.fields import as_yaml
from pipeline.manifest.manifest import REVIEWS, Manifest
from pipeline.manifest.train_config import start_of
from pipeline.results.funnel import funnel
from pipeline.results.verdicts import Results
from pipeline.storage.records import Evaluation, EvaluationRecord, TruthRecord
from pipeline.storage.run import Run
from pipeline.training.data import state_of
from stages.base import ModelConfig, digest

__all__ = ["Session", "write_report"]

EVALUATION = "evaluation.json"


class Session:
    """What a command holds while it works on a run: its lock, Ray, the progress.

    Args:
        manifest: The manifest to carry out.
        address: A Ray cluster's address; None starts Ray here once something is to be done.
        workers: Workers of each stage; None for as many as there is room for.
        working_dir: Code to ship to the workers of a cluster; see `Cluster`.
        stall_seconds: Seconds without a finished shard before a stage gives up; see `Cluster`.
        progress: Shows progress.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        address: str | None = None,
        workers: int | None = None,
        working_dir: str | None = None,
        stall_seconds: float | None = None,
        progress: Progress,
    ) -> None:
        if Run(manifest.run, manifest.branch).exists(REVIEWS):
            manifest = manifest.with_reviews()
        self.manifest = manifest
        self.progress = progress
        self.cluster = Cluster(address, workers, stall_seconds, working_dir)
        self.runner = Runner(manifest, self.cluster, progress)
        self.trainings = TrainingJobs(self.runner)
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> Session:
        logs.configure()
        self._exits.enter_context(logs.log_context(run=self.runner.run.root))
        self._exits.enter_context(self.runner.run.lock())
        self._exits.callback(self.cluster.stop)
        self._exits.callback(self.runner.pool.release)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.progress.say("stopping; Ctrl-C again stops at once")
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, signal.SIG_DFL)
        self._exits.__exit__(kind, error, trace)

    def _begin(self, names: Sequence[str], first: str | None = None) -> None:
        """Check the models of some stages, and write run.json.

        Args:
            names: The stages.
            first: See `Runner.record`.

        Raises:
            FileNotFoundError: A stage names a model that is not there.
            DamagedError: A file of a model is damaged.
            IncompleteError: Nothing can be done on this run yet.
            PoolMismatchError: The run holds the pool of another list.
        """
        for name in names:
            config = self.manifest.stages.get(name)
            if config is None or self._needed(name):
                continue
            if isinstance(config, ModelConfig):
                if self.runner.is_complete(name):
                    continue  # its model is needed no more
                for role, (model, _) in config.models().items():
                    try:
                        check_files(model)
                    except DamagedError as error:
                        raise DamagedError(f"{name}.{role}: {error}") from None
                    except ValueError as error:
                        raise InputError(f"{name}.{role}: {error}") from None
            config.measurement()  # looks up the revision of its model
        former = self.runner.run.read("run.json") if self.runner.run.exists("run.json") else None
        self._exits.push(functools.partial(self._put_back, former))
        self.runner.record(names, first)

    def _put_back(self, former: bytes | None, *raised: Any) -> None:
        """Put run.json back as it was, where Ray did not start and so nothing has been done."""
        if isinstance(raised[1], ClusterError) and former is not None:
            self.runner.run.write(former, "run.json")

    def outline(self, until: str | None = None) -> list[str]:
        """List what `run` would do, in order, a line each."""
        lines = [f"{self.manifest.name} -> {self.manifest.run}"]
        trained: set[str] = set()
        for name in self._stages(until):
            for training in self._needed(name):
                if training not in trained:
                    trained.add(training)
                    lines.append(
                        f"  train     {training}: {_settings(self.manifest.train[training])}"
                    )
            lines.append(f"  {name:<9} {_settings(self.manifest.stages[name])}")
            lines += [f"  {'':<9} {line}" for line in self.manifest.stages[name].explain()]
        if until is None:
            lines += [f"  {name}: {_settings(c)}" for name, c in self.manifest.exports.items()]
            rest = [name for name in self.manifest.train if name not in trained]
            lines += [
                f"  train     {name}: {_settings(self.manifest.train[name])}" for name in rest
            ]
            if self.manifest.evaluate is not None:
                lines.append(f"  evaluate  {', '.join(self.manifest.evaluate.models)}")
            lines.append("  report")
        return lines

    def run(self, until: str | None = None) -> None:
        """Do everything that is not done yet, except the report.

        Args:
            until: The stage to stop after.

        Raises:
            StageError: Something failed; the same call resumes.
            DamagedError: A file is damaged that the run cannot make again just as it was.
            FileNotFoundError: A stage names a model that is not there; raised before anything
                starts.
        """
        names = self._stages(until)
        self._begin(names)
        while True:
            try:
                return self._carry_out(names, until)
            except (DamagedError, StageError) as error:
                damage = error.__cause__ if isinstance(error, StageError) else error
                if not isinstance(damage, DamagedError) or not self.runner.drop(damage):
                    raise

    def _carry_out(self, names: Sequence[str], until: str | None) -> None:
        for name in names:
            self.trainings.carry_out(self._needed(name))
            self.runner.stage(name)
        if until is not None:
            return
        for name in self.runner.plan.exports:
            self.runner.stage(name)
        self.trainings.carry_out(tuple(self.manifest.train))
        self._evaluate()

    def report(self) -> str:
        """Write the report of the run and return its path; damaged files are made again first."""
        while True:
            try:
                return write_report(self.runner.results)
            except DamagedError as damage:
                if not self.runner.drop(damage):
                    raise
            self.run()

    def stage(self, name: str) -> None:
        """Do one stage of the manifest; the stages before it must be complete."""
        self._begin([name], name)
        self.runner.stage(name)

    def export(self, name: str | None = None) -> None:
        """Write the exports of the manifest, or one: `curated` or a name of `exports`.

        Raises:
            InputError: The manifest has no such export.
        """
        names = {self.runner.plan.folder(one)[-1]: one for one in self.runner.plan.exports}
        if not names or name not in (None, *names):
            raise InputError(f"the manifest has no such export; it has {', '.join(names) or '-'}")
        chosen = [*names.values()] if name is None else [names[str(name)]]
        self._begin((), chosen[0])
        for one in chosen:
            self.runner.stage(one)

    def retry(self, reasons: Sequence[str]) -> None:
        """Download rows again that failed for some reasons; see `Runner.retry`."""
        self._begin(())
        self.runner.retry(reasons)

    def train(
        self, objective: str | None = None, name: str | None = None, *, go_on: bool = False
    ) -> None:
        """Carry out the trainings of the manifest, or those of one objective or name.

        Args:
            objective: Only those of this objective.
            name: Only the one of this name.
            go_on: Take up checkpoints of other settings, too.

        Raises:
            InputError: The manifest has no such training.
        """
        chosen = [
            key
            for key, config in self.manifest.train.items()
            if objective in (None, config.objective.name) and name in (None, key)
        ]
        if not chosen:
            raise InputError(
                f"the manifest trains no such model; it has {', '.join(self.manifest.train) or '-'}"
            )
        self._begin(())
        plan = self.runner.plan
        needed = [n for key in chosen for n in (*plan.trainings(self.manifest.train[key]), key)]
        self.trainings.carry_out(tuple(dict.fromkeys(needed)), go_on=go_on)

    def _stages(self, until: str | None) -> Sequence[str]:
        names = list(self.manifest.stages)
        if until is None:
            return names
        if until not in names:
            raise InputError(
                f"--until {until}: the manifest has no such stage; it has {', '.join(names)}"
            )
        return names[: names.index(until) + 1]

    def _needed(self, name: str) -> tuple[str, ...]:
        """The trainings that must be done before a stage.

        The first stage that takes a trained model waits for the models of all stages, so that
        they can be trained side by side.
        """
        plan, stages = self.runner.plan, self.manifest.stages
        if not plan.trainings(stages[name]):
            return ()
        needed = [training for stage in stages.values() for training in plan.trainings(stage)]
        return tuple(dict.fromkeys(needed))

    def _evaluate(self) -> None:
        """Evaluate the models of the manifest on its held-out images, if that is not done."""
        config = self.manifest.evaluate
        if config is None:
            return
        from pipeline.training.evaluate import evaluate

        run = self.runner.run
        record = run.find_record(EvaluationRecord, EVALUATION, damaged_ok=True)
        models = record.root if record else {}
        test = state_of(config.data)
        for name, model in self.manifest.evaluated.items():
            identity = digest([self._weights(model), test])
            if name not in models or models[name].model != identity:
                self.progress.say(f"evaluate   {name}")
                metrics = json.loads(json.dumps(evaluate(model, config.data, tagger=config.tagger)))
                models[name] = Evaluation(model=identity, metrics=metrics)
                run.write_record(EvaluationRecord(models), EVALUATION)

    def _weights(self, model: str) -> str | list[str]:
        """A value that changes with the weights of a model; for a model of the hub, its name."""
        for name in self.manifest.train:
            job = self.trainings.job(name)
            if f"{model}/".startswith(f"{job.out}/"):
                return job.fingerprint
        return start_of(model) or model


def _settings(config: Any) -> str:
    """The model of a config, and its fields that differ from their defaults."""
    return ", ".join(_changed(config)) or "defaults"


def _changed(config: Any) -> Iterator[str]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, ObjectiveConfig):
            yield f"objective={value.name}"
            yield from _changed(value)
        elif field.name == "model" and not getattr(config, "needs_speech", True):
            continue  # a pipeline that no rule that is on needs
        elif value != _default(field) or field.name in ("model", "preset"):
            shown = as_yaml(value) if dataclasses.is_dataclass(value) else value
            yield f"{field.name}={shown}"


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def write_report(results: Results) -> str:
    """Write the report of a run and return its path."""
    from pipeline.report import build

    run = results.run
    evaluation = run.find_record(EvaluationRecord, EVALUATION)
    truth = run.find_record(TruthRecord, "truth.json")
    build.write(results, funnel(results), evaluation=evaluation, truth=truth)
    return run.url("report", "index.html")
