"""The trainings of a manifest on Ray: independent ones side by side, resumed if a worker dies."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from models.errors import InputError, StageError
from pipeline.execution.runner import Runner
from pipeline.training.job import TrainingJob

__all__ = ["TrainingJobs"]

RETRIES = 2
"""How often a training is resumed after its worker died."""

PROGRESS_SECONDS = 15.0
"""Seconds between two lines about the progress of trainings."""


class TrainingJobs:
    """Carries out the trainings of a manifest.

    Args:
        runner: The runner of the manifest. Its workers are ended before models are trained.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.manifest = runner.manifest
        self.progress = runner.progress

    def job(self, name: str) -> TrainingJob:
        """The training of a name of the manifest's `train`."""
        return TrainingJob(self.manifest, name)

    def carry_out(self, names: Sequence[str], *, go_on: bool = False) -> None:
        """Train the models that are not trained yet; independent ones side by side.

        Args:
            names: Of the manifest's `train`.
            go_on: Take up checkpoints of other settings, too.

        Raises:
            InputError: Trainings depend on each other.
            StageError: A training failed.
        """
        left = [name for name in names if not self.job(name).is_done]
        while left:
            needs = {n: set(self.runner.plan.trainings(self.manifest.train[n])) for n in left}
            wave = [name for name in left if not needs[name] & set(left)]
            if not wave:
                raise InputError(f"trainings wait for each other: {', '.join(left)}")
            self._train(wave, go_on)
            left = [name for name in left if name not in wave]

    def _train(self, names: Sequence[str], go_on: bool) -> None:
        """Train some models side by side."""
        self.runner.pool.release()
        self.runner.cluster.start()
        started = time.monotonic()
        self.progress.say(f"train      {', '.join(names)}")
        for name in names:
            self.job(name).sources()  # fails here if data is missing
        running = {self._start(name, go_on): name for name in names}
        deaths: Counter[str] = Counter()
        while running:
            done, _ = ray.wait(list(running), timeout=PROGRESS_SECONDS)
            for reference in done:
                name = running.pop(reference)
                try:
                    ray.get(reference)
                except RayError as error:
                    deaths[name] += 1
                    is_death = not isinstance(error, RayTaskError)
                    if not is_death or deaths[name] > RETRIES or not self.runner.cluster.is_alive():
                        raise self._failure(name, error) from error
                    self.progress.say(f"train      {name}: its worker died; it resumes")
                    running[self._start(name, go_on)] = name
            lines = [line for name in running.values() if (line := self.job(name).progress())]
            if lines:
                self.progress.say(f"train      {'; '.join(lines)}")
        seconds = time.monotonic() - started
        self.progress.say(f"train      {', '.join(names)} done in {seconds:.1f} s")

    def _start(self, name: str, go_on: bool) -> Any:
        """Start a training on a worker; it resumes from its checkpoint."""
        job = self.job(name)
        resources = job.resources
        options: dict[str, Any] = {
            "num_cpus": resources.cpus,
            "num_gpus": resources.gpus,
            "max_retries": 0,
        }
        return ray.remote(**options)(_carry_out).remote(job, go_on)

    def _failure(self, name: str, error: RayError) -> StageError:
        """The error of a command whose training failed."""
        out = self.job(name).out
        why = self.runner.explain(f"train-{name}", error, "" if "://" in out else out)
        return StageError(
            f"train.{name}: {why}\nMend the cause and run the same command again: it resumes from "
            "its checkpoint",
            getattr(error, "cause", None),
        )


def _carry_out(job: TrainingJob, go_on: bool) -> None:
    job.carry_out(go_on=go_on)
