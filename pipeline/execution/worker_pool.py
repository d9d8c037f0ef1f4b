"""The workers of a stage: each does one shard at a time, and is replaced when it dies."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from models.errors import BrokenStageError, ShardError, StageUnavailableError, WorkerPoolError
from pipeline.execution.cluster import Cluster
from pipeline.execution.crash_search import Call, WorkerDeath, find_crashing_rows
from pipeline.execution.worker import Worker
from pipeline.manifest.manifest import Manifest
from pipeline.storage.disk_errors import explain_disk_error
from stages.base import Resources

__all__ = ["StageTask", "WorkerPool"]

GROWTH_SECONDS = 5.0
"""Seconds between two checks whether the cluster has room for more workers."""

MOST_SUSPECTS = 8
"""Shards under suspicion of crashing their worker; at this number no further shard is begun."""


@dataclass(frozen=True, kw_only=True)
class StageTask:
    """A stage to do on shards.

    Attributes:
        name: The stage, or export.
        resources: What a worker occupies.
        retry: Errors of download whose rows are downloaded again.
        rows_can_fail: Whether a row can have a reason, so that a row that crashes can be rejected.
        memory: What to do if memory is short, for messages.
    """

    name: str
    resources: Resources
    retry: tuple[str, ...] = ()
    rows_can_fail: bool = True
    memory: str = "give fewer --workers"


@dataclass
class _Job:
    """A shard with its next call, and a search for crashing rows once its worker has died."""

    shard: str
    call: Call
    search: Generator[Call, Any, dict[str, Any]] | None = None


@dataclass
class _Progress:
    """What is waiting, in flight, done and failed of a task."""

    waiting: deque[_Job]
    suspects: deque[_Job] = field(default_factory=deque)
    in_flight: dict[Any, tuple[int, _Job]] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, Exception] = field(default_factory=dict)

    @property
    def searches(self) -> int:
        """The number of searches in flight."""
        return sum(job.search is not None for _, job in self.in_flight.values())

    def next(self, workers: int) -> _Job | None:
        """The next job for an idle worker: one worker searches suspects while the others go on."""
        is_paused = len(self.suspects) + self.searches >= MOST_SUSPECTS
        can_begin = bool(self.waiting) and not is_paused
        if self.suspects and (not can_begin or (workers > 1 and not self.searches)):
            return self.suspects.popleft()
        return self.waiting.popleft() if can_begin else None


class WorkerPool:
    """Workers with the same resources, kept from stage to stage.

    Args:
        manifest: The manifest that they carry out.
        cluster: The Ray that they run on.
        say: Prints messages during a stage.
    """

    def __init__(
        self, manifest: Manifest, cluster: Cluster, say: Callable[[str], None] = lambda text: None
    ) -> None:
        self.manifest = manifest
        self.cluster = cluster
        self.say = say
        self._workers: list[Any] = []
        self._resources: Resources | None = None

    def release(self) -> None:
        """End the workers, and free their resources."""
        for worker in self._workers:
            ray.kill(worker)
        self._workers, self._resources = [], None

    def hold(self, name: str, resources: Resources, number: int) -> list[Any]:
        """Start workers until there are at least `number`, and return all.

        Workers of an earlier stage are kept if they have the same resources.

        Raises:
            WorkerPoolError: No node has room for a worker, and no node can join.
        """
        self.cluster.start()
        if (lack := self.cluster.lacks(resources)) is not None:
            if not self.cluster.can_grow:
                raise WorkerPoolError(f"{name}: {lack}")
            self.say(f"{name}: {lack}; waiting for one")
        if self._resources != resources:
            self.release()
        self._resources = resources
        while len(self._workers) < number:
            self._workers.append(self._worker(resources))
        return self._workers

    def ask(self, task: StageTask, method: str, *arguments: Any) -> Any:
        """Call a method of one worker; if the worker dies, call it once more on another.

        Args:
            task: The stage.
            method: The method of `Worker`.
            arguments: Its arguments.

        Raises:
            WorkerPoolError: No node has room for a worker, none has begun for too long, more
                workers died before they began than there were, two died during the call, or Ray
                has died.
            RayError: What the method raised.
        """
        workers = self.hold(task.name, task.resources, 1)
        deaths_left = {"ready": len(workers), method: 1}
        while True:
            # All are asked again: some may have died with their node, or wait for room.
            called = {worker.ready.remote(): index for index, worker in enumerate(workers)}
            patience = self.cluster.room_seconds
            ready, _ = ray.wait(list(called), num_returns=1, timeout=patience)
            if not ready:
                what = f"no worker has begun for {patience:.0f} s"
                raise WorkerPoolError(self._stalled(task, what, "room for one"))
            index, step = called[ready[0]], "ready"
            outcome = self._outcome(task, ready[0])
            if not isinstance(outcome, WorkerDeath):
                step = method
                outcome = self._outcome(task, getattr(workers[index], method).remote(*arguments))
            if isinstance(outcome, Exception):
                raise outcome
            if not isinstance(outcome, WorkerDeath):
                return outcome
            if not deaths_left[step]:
                remedy = f": {task.memory}" if outcome.is_memory else ""
                raise WorkerPoolError(
                    f"{task.name}: workers die in {step} ({outcome.cause}){remedy}"
                )
            deaths_left[step] -= 1
            workers[index] = self._replace(workers[index], task.name, task.resources)

    def carry_out(
        self, task: StageTask, shards: Sequence[str], advance: Callable[[dict[str, Any]], None]
    ) -> tuple[list[dict[str, Any]], dict[str, Exception]]:
        """Do a stage on shards, in any order.

        Each worker has one shard in flight, so that its death is due to that shard. Workers are
        added when nodes join. A shard whose worker died is a suspect: one worker searches the
        suspects for crashing rows (`find_crashing_rows`), one after the other, while the other
        workers go on.

        Args:
            task: The stage.
            shards: The shards.
            advance: Called with the result of each shard once it is done.

        Returns:
            The results of the shards that are done, and the error of each shard that failed.

        Raises:
            WorkerPoolError: The stage can do no shard at all; or no shard has finished for longer
                than `Cluster.stall_seconds`, or than `Cluster.room_seconds` without any worker.
        """
        work = (_Job(s, Call("work", (task.name, s, task.retry))) for s in shards)
        progress = _Progress(deque(work))
        idle: deque[int] = deque()
        called: dict[Any, int] = {}
        self.cluster.start()
        number = min(self.cluster.slots(task.resources), len(shards))
        workers = self.hold(task.name, task.resources, number)
        last = looked = reminded = time.monotonic()
        known = 0
        while True:
            if progress.waiting and time.monotonic() - looked > GROWTH_SECONDS:
                looked = time.monotonic()
                number = min(self.cluster.slots(task.resources), len(shards))
                while len(workers) < number:
                    workers.append(self._worker(task.resources))
            # A worker gets no shard before a node has room for it.
            called |= {workers[i].ready.remote(): i for i in range(known, len(workers))}
            known = len(workers)
            while idle and (job := progress.next(known)) is not None:
                index = idle.popleft()
                method = getattr(workers[index], job.call.method)
                progress.in_flight[method.remote(*job.call.arguments)] = (index, job)
            if not (progress.in_flight or progress.waiting or progress.suspects):
                return progress.results, progress.failed
            done, _ = ray.wait([*progress.in_flight, *called], num_returns=1, timeout=1.0)
            now = time.monotonic()
            patience = (
                self.cluster.stall_seconds if progress.in_flight else self.cluster.room_seconds
            )
            idling = f"no shard has finished for {now - last:.0f} s"
            if not done and patience is not None and now - last > patience:
                raise WorkerPoolError(self._stalled(task, idling, _awaited(progress)))
            if not done and now - max(last, reminded) > self.cluster.room_seconds:
                reminded = now
                self.say(f"{task.name}: {idling}; in flight: {_awaited(progress)}")
            for reference in done:
                last = time.monotonic()
                if reference in called:
                    # A worker that could not start fails on its first shard, with the reason.
                    idle.append(called.pop(reference))
                    continue
                index, job = progress.in_flight.pop(reference)
                outcome = self._outcome(task, reference)
                if isinstance(outcome, WorkerDeath):
                    workers[index] = self._replace(workers[index], task.name, task.resources)
                    called[workers[index].ready.remote()] = index
                else:
                    idle.append(index)
                self._take(task, progress, job, outcome, reference, advance)

    def _outcome(self, task: StageTask, reference: Any) -> Any:
        """The outcome of a call: its result, the death of the worker, or the error of the shard.

        Raises:
            WorkerPoolError: All shards would meet the same: the model of the stage is unavailable,
                or the disk refuses to be written to.
        """
        try:
            return ray.get(reference)
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if isinstance(cause, StageUnavailableError):
                raise WorkerPoolError(
                    f"{task.name}: {cause}. Every shard that is committed is kept"
                ) from None
            if _is_memory(cause):
                return WorkerDeath(cause=_line(cause), is_memory=True)
            if explanation := explain_disk_error(cause):
                raise WorkerPoolError(
                    f"{task.name}: {explanation}, and run the same command again: every shard "
                    "that is committed is kept"
                ) from None
            return error
        except RayError as error:
            return _death(error)

    def _take(
        self,
        task: StageTask,
        progress: _Progress,
        job: _Job,
        outcome: Any,
        reference: Any,
        advance: Callable[[dict[str, Any]], None],
    ) -> None:
        """Continue a shard after the outcome of a call.

        Args:
            task: The stage.
            progress: The progress of the stage.
            job: The shard.
            outcome: See `_outcome`.
            reference: Ray's reference to the result of the call.
            advance: See `carry_out`.
        """
        if isinstance(outcome, Exception):
            progress.failed[job.shard] = outcome
            return
        try:
            if job.search is None and isinstance(outcome, WorkerDeath):
                job.search = find_crashing_rows(
                    task.name,
                    job.shard,
                    task.retry,
                    rows_can_fail=task.rows_can_fail,
                    memory=task.memory,
                )
                job.call = next(job.search)
                progress.suspects.append(job)
                return
            if job.search is not None:
                is_kept = job.call.is_kept and not isinstance(outcome, WorkerDeath)
                job.call = job.search.send(reference if is_kept else outcome)
                progress.suspects.appendleft(job)
                return
        except StopIteration as end:
            outcome = end.value
        except ShardError as error:
            progress.failed[job.shard] = error
            return
        except BrokenStageError as error:
            raise WorkerPoolError(f"{task.name}: shard {job.shard}: {error}") from None
        progress.results.append(outcome)
        advance(outcome)

    def _replace(self, worker: Any, name: str, resources: Resources) -> Any:
        """Start a worker in place of one that died.

        Raises:
            WorkerPoolError: Ray itself has died.
        """
        if not self.cluster.is_alive():
            raise WorkerPoolError(
                f"{name}: Ray on this machine has died, and its workers with it. Every shard that "
                "is committed is kept; the same command resumes"
            )
        ray.kill(worker)
        return self._worker(resources)

    def _worker(self, resources: Resources) -> Any:
        options = self.cluster.options(resources)
        return ray.remote(**options)(Worker).remote(self.manifest, resources.cpus)

    def _stalled(self, task: StageTask, what: str, awaited: str) -> str:
        lack = self.cluster.lacks(task.resources)
        why = f": {lack}." if lack else ". Is a node gone, or is that too short a time?"
        return f"{task.name}: {what}; waiting for {awaited}{why} The same command resumes"


def _awaited(progress: _Progress) -> str:
    """The shards that a stage waits for, for a message."""
    if names := sorted(job.shard for _, job in progress.in_flight.values()):
        return ", ".join(names)
    left = [job.shard for job in (*progress.suspects, *progress.waiting)]
    return f"room for a worker, to do {', '.join(left[:8])}{', ...' * (len(left) > 8)}"


def _death(error: RayError) -> WorkerDeath:
    text = str(error)
    if isinstance(error, OutOfMemoryError) or "running low on memory" in text:
        return WorkerDeath(cause="Ray ended it because the node ran low on memory", is_memory=True)
    if getattr(error, "actor_init_failed", False):
        return WorkerDeath(cause=f"it could not start: {text.strip().splitlines()[-1]}")
    if "node" in text and "died" in text and "worker process has died" not in text:
        return WorkerDeath(cause="its node is gone")
    return WorkerDeath(cause="its process ended without an exception: it crashed, or was killed")


def _is_memory(cause: Exception) -> bool:
    text = str(cause).lower()
    return isinstance(cause, MemoryError) or "out of memory" in text or "allocate memory" in text


def _line(cause: Exception) -> str:
    return (str(cause).strip().splitlines() or [""])[0] or type(cause).__name__
