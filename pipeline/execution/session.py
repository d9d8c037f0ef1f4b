"""A manifest carried out from its list to its report: stages, trainings, evaluation in order."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from models.errors import DamagedError, InputError, StageError
from models.weights import check_files
from pipeline.execution import logs
from pipeline.execution.cluster import Cluster
from pipeline.execution.progress import Progress
from pipeline.execution.runner import Runner
from pipeline.manifest.manifest import REVIEWS, Manifest
from pipeline.manifest.train_config import start_of
from pipeline.results.funnel import funnel
from pipeline.results.verdicts import Results
from pipeline.storage.records import Evaluation, EvaluationRecord, TruthRecord
from pipeline.storage.run import Run
from pipeline.training.data import state_of
from pipeline.training.job import TrainingJob
from stages.base import ModelConfig, digest

__all__ = ["Session", "write_report"]

EVALUATION = "evaluation.json"

RETRIES = 2
"""How often a training whose worker died is taken up again."""

PROGRESS_SECONDS = 15.0
"""How often a training says how far it is."""


class Session:
    """One command's hold on a run: its lock, its Ray, its progress.

    Args:
        manifest: What to carry out.
        address: A Ray cluster's address; None starts Ray here when something is to be done.
        workers: Workers of each stage; None fills the machine or cluster.
        working_dir: Code to ship to the workers of a cluster; see `Cluster`.
        stall_seconds: How long a shard under way may take; see `Cluster`.
        progress: Where progress shows.
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
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> Session:
        logs.configure()
        self._exits.enter_context(logs.log_context(run=self.runner.run.root))
        self._exits.enter_context(self.runner.run.lock())
        self._exits.callback(self.cluster.stop)
        self._exits.callback(self.runner.crew.release)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.progress.say("stopping; Ctrl-C once more leaves at once")
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, signal.SIG_DFL)
        self._exits.__exit__(kind, error, trace)

    def _begin(self, names: Sequence[str], first: str | None = None) -> None:
        """Write down what runs, once the models of some stages are found sound.

        Args:
            names: These stages.
            first: See `Runner.record`.

        Raises:
            FileNotFoundError: A stage names a model that is nowhere.
            ValueError: A file of a model is damaged.
            IncompleteError: Nothing can be done on this run yet.
            PoolMismatchError: The run holds the pool of another list.
        """
        for name in names:
            config = self.manifest.stages.get(name)
            if config is None or self._needed(name):
                continue
            models = config.models() if isinstance(config, ModelConfig) else {}
            for role, (model, _) in models.items():
                try:
                    check_files(model)
                except DamagedError as error:
                    raise DamagedError(f"{name}.{role}: {error}") from None
                except ValueError as error:
                    raise InputError(f"{name}.{role}: {error}") from None
            config.measurement()  # asks for the revision of its model
        self.runner.record(names, first)

    def outline(self, until: str | None = None) -> list[str]:
        """What `run` would do, in order, a line each."""
        lines = [f"{self.manifest.name} -> {self.manifest.run}"]
        trained: set[str] = set()
        for name in self._stages(until):
            for training in self._needed(name):
                if training not in trained:
                    trained.add(training)
                    lines.append(f"  train     {training}: {_told(self.manifest.train[training])}")
            lines.append(f"  {name:<9} {_told(self.manifest.stages[name])}")
        if until is None:
            lines += [f"  {name}: {_told(c)}" for name, c in self.manifest.exports.items()]
            rest = [name for name in self.manifest.train if name not in trained]
            lines += [f"  train     {name}: {_told(self.manifest.train[name])}" for name in rest]
            if self.manifest.evaluate is not None:
                lines.append(f"  evaluate  {', '.join(self.manifest.evaluate.models)}")
            lines.append("  report")
        return lines

    def run(self, until: str | None = None) -> None:
        """Everything that is not done yet, the report excepted.

        Args:
            until: The stage to stop after.

        Raises:
            StageError: Something failed; the same call resumes.
            DamagedError: A file is not as it was written, and cannot be made again just as it was.
            FileNotFoundError: A stage names a model that is nowhere; said before anything starts.
            ValueError: A file of a model is damaged; so too.
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
            self._train(self._needed(name))
            self.runner.stage(name)
        if until is not None:
            return
        for name in self.runner.plan.exports:
            self.runner.stage(name)
        self._train(tuple(self.manifest.train))
        self._evaluate()

    def report(self) -> str:
        """Write the report of the run and give its path; what is found damaged is made anew."""
        while True:
            try:
                return write_report(self.runner.results)
            except DamagedError as damage:
                if not self.runner.drop(damage):
                    raise
            self.run()

    def stage(self, name: str) -> None:
        """One stage of the manifest; what it reads must be complete."""
        self._begin([name], name)
        self.runner.stage(name)

    def export(self, name: str | None = None) -> None:
        """The exports of the manifest, or one: `curated` or a name of `exports`.

        Raises:
            ValueError: The manifest has none such.
        """
        names = {self.runner.plan.folder(one)[-1]: one for one in self.runner.plan.exports}
        if not names or name not in (None, *names):
            raise InputError(f"the manifest has no such export; it has {', '.join(names) or '-'}")
        chosen = [*names.values()] if name is None else [names[str(name)]]
        self._begin((), chosen[0])
        for one in chosen:
            self.runner.stage(one)

    def retry(self, reasons: Sequence[str]) -> None:
        """Download anew what failed for some reasons; see `Runner.retry`."""
        self._begin(())
        self.runner.retry(reasons)

    def train(self, objective: str | None = None, name: str | None = None) -> None:
        """The trainings of the manifest, or those of one objective or name.

        Raises:
            ValueError: The manifest has none such.
        """
        chosen = [
            key
            for key, config in self.manifest.train.items()
            if objective in (None, config.objective) and name in (None, key)
        ]
        if not chosen:
            raise InputError(
                f"the manifest trains no such model; it has {', '.join(self.manifest.train) or '-'}"
            )
        self._begin(())
        plan = self.runner.plan
        needed = [n for key in chosen for n in (*plan.trainings(self.manifest.train[key]), key)]
        self._train(tuple(dict.fromkeys(needed)))

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
        """The trainings to have done before a stage.

        The first stage that takes a trained model waits for those of all stages, so that
        they are trained side by side.
        """
        plan, stages = self.runner.plan, self.manifest.stages
        if not plan.trainings(stages[name]):
            return ()
        found = [training for stage in stages.values() for training in plan.trainings(stage)]
        return tuple(dict.fromkeys(found))

    def _train(self, names: tuple[str, ...]) -> None:
        """Train what is not trained yet, those that need nothing of each other side by side."""
        left = [name for name in names if not self._training(name).is_done]
        while left:
            needs = {n: set(self.runner.plan.trainings(self.manifest.train[n])) for n in left}
            wave = [name for name in left if not needs[name] & set(left)]
            if not wave:
                raise InputError(f"trainings wait for each other: {', '.join(left)}")
            self.runner.crew.release()
            self.cluster.start()
            started = time.monotonic()
            self.progress.say(f"train      {', '.join(wave)}")
            for name in wave:
                self._training(name).sources()  # what is missing is said before anything starts
            waiting = {self._start(name): name for name in wave}
            deaths: Counter[str] = Counter()
            while waiting:
                done, _ = ray.wait(list(waiting), timeout=PROGRESS_SECONDS)
                for reference in done:
                    name = waiting.pop(reference)
                    try:
                        ray.get(reference)
                    except RayError as error:
                        deaths[name] += 1
                        is_death = not isinstance(error, RayTaskError)
                        if is_death and deaths[name] <= RETRIES and self.cluster.stands():
                            self.progress.say(f"train      {name}: its worker died; it goes on")
                            waiting[self._start(name)] = name
                            continue
                        out = self._training(name).out
                        why = self.runner.told(f"train-{name}", error, "" if "://" in out else out)
                        raise StageError(
                            f"train.{name}: {why}\nMend the cause and give the same command "
                            "again: it goes on from its checkpoint",
                            getattr(error, "cause", None),
                        ) from error
                told = [self._training(name).progress() for name in waiting.values()]
                if any(told):
                    self.progress.say(f"train      {'; '.join(filter(None, told))}")
            seconds = time.monotonic() - started
            self.progress.say(f"train      {', '.join(wave)} done in {seconds:.1f} s")
            left = [name for name in left if name not in wave]

    def _start(self, name: str) -> Any:
        """Have a training carried out on a worker; it goes on from its checkpoint."""
        training = self._training(name)
        resources = training.resources
        options: dict[str, Any] = {
            "num_cpus": resources.cpus,
            "num_gpus": resources.gpus,
            "max_retries": 0,
        }
        return ray.remote(**options)(_carry_out).remote(training)

    def _training(self, name: str) -> TrainingJob:
        return TrainingJob(self.manifest, name)

    def _evaluate(self) -> None:
        """Evaluate the models of the manifest that have not been, on its held-out images."""
        from pipeline.training.evaluate import evaluate

        wanted = self.manifest.evaluate
        if wanted is None:
            return
        run = self.runner.run
        record = run.find_record(EvaluationRecord, EVALUATION, damaged_ok=True)
        models = record.root if record else {}
        test = state_of(wanted.data)
        for name, model in self.manifest.evaluated.items():
            identity = digest([self._weights(model), test])
            if name not in models or models[name].model != identity:
                self.progress.say(f"evaluate   {name}")
                metrics = json.loads(json.dumps(evaluate(model, wanted.data)))
                models[name] = Evaluation(model=identity, metrics=metrics)
                run.write_record(EvaluationRecord(models), EVALUATION)

    def _weights(self, model: str) -> str | list[str]:
        """What changes with the weights of a model; of one of the hub, its name."""
        for name in self.manifest.train:
            training = self._training(name)
            if f"{model}/".startswith(f"{training.out}/"):
                return training.fingerprint
        return start_of(model) or model


def _told(config: Any) -> str:
    """The model of a config, and the fields that are not as by default."""
    values = (
        (field.name, getattr(config, field.name), field.default)
        for field in dataclasses.fields(config)
    )
    told = [f"{n}={value}" for n, value, default in values if value != default or n == "model"]
    return ", ".join(told) or "as by default"


def _carry_out(training: TrainingJob) -> None:
    training.carry_out()


def write_report(results: Results) -> str:
    """Write the report of a run and return its path."""
    from pipeline.report import build

    run = results.run
    evaluation = run.find_record(EvaluationRecord, EVALUATION)
    truth = run.find_record(TruthRecord, "truth.json")
    build.write(results, funnel(results), evaluation=evaluation, truth=truth)
    return run.url("report", "index.html")
