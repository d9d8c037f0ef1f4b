"""The workers of a stage: each on one shard at a time, and replaced when it dies."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from models.errors import BrokenStageError, ShardError, WorkerPoolError
from pipeline.execution.cluster import Cluster
from pipeline.execution.crash_search import Call, WorkerDeath, find_crashing_rows
from pipeline.execution.worker import Worker
from pipeline.manifest.manifest import Manifest
from pipeline.storage.disk_errors import explain_disk_error
from stages.base import Resources

__all__ = ["StageTask", "WorkerPool"]

GROWTH_SECONDS = 5.0
"""How often a stage looks whether the cluster has room for more workers than it had."""

MOST_SUSPECTS = 8
"""Shards whose worker has died at a time; with more, shards that have not begun wait for them."""


@dataclass(frozen=True, kw_only=True)
class StageTask:
    """What a crew is to do on shards.

    Attributes:
        name: The stage, or export.
        resources: What a worker occupies.
        retry: Errors of download whose rows are downloaded anew.
        rows_can_fail: Whether a row may have a reason, so that one that crashes can.
        memory: What to do where memory is short.
    """

    name: str
    resources: Resources
    retry: tuple[str, ...] = ()
    rows_can_fail: bool = True
    memory: str = "give fewer --workers"


@dataclass
class _Job:
    """A shard, and what is asked of a worker next; a search where its worker has died."""

    shard: str
    call: Call
    search: Generator[Call, Any, dict[str, Any]] | None = None


@dataclass
class _Progress:
    """What is left, under way and done of a duty."""

    waiting: deque[_Job]
    suspects: deque[_Job] = field(default_factory=deque)
    flight: dict[Any, tuple[int, _Job]] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, Exception] = field(default_factory=dict)

    @property
    def searches(self) -> int:
        """Searches under way."""
        return sum(job.search is not None for _, job in self.flight.values())

    def next(self, workers: int) -> _Job | None:
        """What an idle worker does: one serves the suspects while the others go on."""
        is_held = len(self.suspects) + self.searches >= MOST_SUSPECTS
        goes_on = bool(self.waiting) and not is_held
        if self.suspects and (not goes_on or (workers > 1 and not self.searches)):
            return self.suspects.popleft()
        return self.waiting.popleft() if goes_on else None


class WorkerPool:
    """Workers with the same resources, kept from stage to stage.

    Args:
        manifest: The manifest that they carry out.
        cluster: Where.
        say: Told what must not wait for the end of a stage.
    """

    def __init__(
        self, manifest: Manifest, cluster: Cluster, say: Callable[[str], None] = lambda text: None
    ) -> None:
        self.manifest = manifest
        self.cluster = cluster
        self.say = say
        self._workers: list[Any] = []
        self._held: Resources | None = None

    def release(self) -> None:
        """End the workers, so that what they hold is free for others."""
        for worker in self._workers:
            ray.kill(worker)
        self._workers, self._held = [], None

    def hold(self, name: str, resources: Resources, number: int) -> list[Any]:
        """At least `number` workers with these resources; those of other stages serve on.

        Raises:
            WorkerPoolError: No node has room for one, and none will come.
        """
        self.cluster.start()
        if (lack := self.cluster.lacks(resources)) is not None:
            told = f"{name}: {lack}"
            if not self.cluster.can_grow:
                raise WorkerPoolError(told)
            self.say(f"{told}; waiting for one")
        if self._held != resources:
            self.release()
        self._held = resources
        while len(self._workers) < number:
            self._workers.append(self._worker(resources))
        return self._workers

    def ask(self, duty: StageTask, method: str, *arguments: Any) -> Any:
        """What one worker gives; if it dies of it, one more is asked.

        Raises:
            WorkerPoolError: No node has room for a worker, none has begun for too long, more
                workers died before they began than there were, two died during the call, or Ray
                has died.
            RayError: What the method raised.
        """
        workers = self.hold(duty.name, duty.resources, 1)
        borne = {"ready": len(workers), method: 1}
        while True:
            # All, and anew, as some may have died with their node, and a new one wait for room.
            called = {worker.ready.remote(): index for index, worker in enumerate(workers)}
            patience = self.cluster.room_seconds
            found, _ = ray.wait(list(called), num_returns=1, timeout=patience)
            if not found:
                told = f"no worker has begun for {patience:.0f} s"
                raise WorkerPoolError(self._stalled(duty, told, "room for one"))
            index, asked = called[found[0]], "ready"
            outcome = self._outcome(duty, found[0])
            if not isinstance(outcome, WorkerDeath):
                asked = method
                outcome = self._outcome(duty, getattr(workers[index], method).remote(*arguments))
            if isinstance(outcome, Exception):
                raise outcome
            if not isinstance(outcome, WorkerDeath):
                return outcome
            if not borne[asked]:
                remedy = f": {duty.memory}" if outcome.is_memory else ""
                raise WorkerPoolError(
                    f"{duty.name}: workers die in {asked} ({outcome.told}){remedy}"
                )
            borne[asked] -= 1
            workers[index] = self._replace(workers[index], duty.name, duty.resources)

    def carry_out(
        self, duty: StageTask, shards: Sequence[str], told: Callable[[dict[str, Any]], None]
    ) -> tuple[list[dict[str, Any]], dict[str, Exception]]:
        """Do a stage on shards, one in flight a worker, in any order.

        Workers are added as nodes join. One shard in flight for each worker keeps the blame for a
        worker's death exact. A shard whose worker died is a suspect: one worker finds out about
        them (`blame`), one after the other, while the others go on.

        Args:
            duty: What to do.
            shards: On what.
            told: Given the result of each shard as it is done.

        Returns:
            What the workers gave, and why each shard that failed did.

        Raises:
            WorkerPoolError: The stage can do no shard at all, or none has finished for too long,
                because there is no room for a worker or because of `Cluster.stall_seconds`.
        """
        work = (_Job(s, Call("work", (duty.name, s, duty.retry))) for s in shards)
        round_ = _Progress(deque(work))
        idle: deque[int] = deque()
        called: dict[Any, int] = {}
        self.cluster.start()
        number = min(self.cluster.slots(duty.resources), len(shards))
        workers = self.hold(duty.name, duty.resources, number)
        last = looked = reminded = time.monotonic()
        known = 0
        while True:
            if round_.waiting and time.monotonic() - looked > GROWTH_SECONDS:
                looked = time.monotonic()
                number = min(self.cluster.slots(duty.resources), len(shards))
                while len(workers) < number:
                    workers.append(self._worker(duty.resources))
            # A worker that no node has room for yet takes no shard.
            called |= {workers[i].ready.remote(): i for i in range(known, len(workers))}
            known = len(workers)
            while idle and (job := round_.next(known)) is not None:
                index = idle.popleft()
                asked = getattr(workers[index], job.call.method)
                round_.flight[asked.remote(*job.call.arguments)] = (index, job)
            if not (round_.flight or round_.waiting or round_.suspects):
                return round_.results, round_.failed
            done, _ = ray.wait([*round_.flight, *called], num_returns=1, timeout=1.0)
            now = time.monotonic()
            patience = self.cluster.stall_seconds if round_.flight else self.cluster.room_seconds
            idling = f"no shard has finished for {now - last:.0f} s"
            if not done and patience is not None and now - last > patience:
                raise WorkerPoolError(self._stalled(duty, idling, _awaited(round_)))
            if not done and now - max(last, reminded) > self.cluster.room_seconds:
                reminded = now
                self.say(f"{duty.name}: {idling}; under way: {_awaited(round_)}")
            for reference in done:
                last = time.monotonic()
                if reference in called:  # one that could not start says why on its first shard
                    idle.append(called.pop(reference))
                    continue
                index, job = round_.flight.pop(reference)
                outcome = self._outcome(duty, reference)
                if isinstance(outcome, WorkerDeath):
                    workers[index] = self._replace(workers[index], duty.name, duty.resources)
                    called[workers[index].ready.remote()] = index
                else:
                    idle.append(index)
                self._take(duty, round_, job, outcome, reference, told)

    def _outcome(self, duty: StageTask, reference: Any) -> Any:
        """What a worker gave: an answer, its death, or the error of its shard.

        Raises:
            WorkerPoolError: The error is none of this shard, but of the place it is written to.
        """
        try:
            return ray.get(reference)
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if _is_memory(cause):
                return WorkerDeath(told=_line(cause), is_memory=True)
            if told := explain_disk_error(cause):
                raise WorkerPoolError(
                    f"{duty.name}: {told}, and give the same command again: every shard that is "
                    "committed stands"
                ) from None
            return error
        except RayError as error:
            return _death(error)

    def _take(
        self,
        duty: StageTask,
        round_: _Progress,
        job: _Job,
        outcome: Any,
        reference: Any,
        told: Callable[[dict[str, Any]], None],
    ) -> None:
        """Go on with a shard after what became of a call."""
        if isinstance(outcome, Exception):
            round_.failed[job.shard] = outcome
            return
        try:
            if job.search is None and isinstance(outcome, WorkerDeath):
                job.search = find_crashing_rows(
                    duty.name,
                    job.shard,
                    duty.retry,
                    rows_can_fail=duty.rows_can_fail,
                    memory=duty.memory,
                )
                job.call = next(job.search)
                round_.suspects.append(job)
                return
            if job.search is not None:
                is_kept = job.call.is_kept and not isinstance(outcome, WorkerDeath)
                job.call = job.search.send(reference if is_kept else outcome)
                round_.suspects.appendleft(job)
                return
        except StopIteration as end:
            outcome = end.value
        except ShardError as error:
            round_.failed[job.shard] = error
            return
        except BrokenStageError as error:
            raise WorkerPoolError(f"{duty.name}: shard {job.shard}: {error}") from None
        round_.results.append(outcome)
        told(outcome)

    def _replace(self, worker: Any, name: str, resources: Resources) -> Any:
        """A worker in the place of one that died.

        Raises:
            WorkerPoolError: Ray has died with it.
        """
        if not self.cluster.stands():
            raise WorkerPoolError(
                f"{name}: Ray on this machine has died, and its workers with it. Every shard that "
                "is committed stands; the same command goes on"
            )
        ray.kill(worker)
        return self._worker(resources)

    def _worker(self, resources: Resources) -> Any:
        options = self.cluster.options(resources)
        return ray.remote(**options)(Worker).remote(self.manifest, resources.cpus)

    def _stalled(self, duty: StageTask, told: str, awaited: str) -> str:
        lack = self.cluster.lacks(duty.resources)
        why = f": {lack}." if lack else ". Is a node gone, or is that too short a time?"
        return f"{duty.name}: {told}; waiting for {awaited}{why} The same command resumes"


def _awaited(round_: _Progress) -> str:
    """What a round waits for."""
    if names := sorted(job.shard for _, job in round_.flight.values()):
        return ", ".join(names)
    left = [job.shard for job in (*round_.suspects, *round_.waiting)]
    return f"room for a worker, to do {', '.join(left[:8])}{', ...' * (len(left) > 8)}"


def _death(error: RayError) -> WorkerDeath:
    text = str(error)
    if isinstance(error, OutOfMemoryError) or "running low on memory" in text:
        return WorkerDeath(told="Ray ended it, as the node ran low on memory", is_memory=True)
    if getattr(error, "actor_init_failed", False):
        return WorkerDeath(told=f"it could not start: {text.strip().splitlines()[-1]}")
    if "node" in text and "died" in text and "worker process has died" not in text:
        return WorkerDeath(told="its node is gone")
    return WorkerDeath(told="its process ended without an exception: it crashed, or was killed")


def _is_memory(cause: Exception) -> bool:
    text = str(cause).lower()
    return isinstance(cause, MemoryError) or "out of memory" in text or "allocate memory" in text


def _line(cause: Exception) -> str:
    return (str(cause).strip().splitlines() or [""])[0] or type(cause).__name__
