"""A training on several workers: Ray starts a process for each, and torch joins them.

Ray Train is left out: measured here its report of a checkpoint comes late, so that a killed
training replays steps, and its start takes as long as many a small training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pipeline.objective import TrainConfig
from pipeline.pairs import Source
from pipeline.train import TrainResult, train
from stages.base import Resources

__all__ = ["train_together"]

PATIENCE_SECONDS = 3600.0
"""How long the workers' places may be taken by others before the training gives up."""


def train_together(
    config: TrainConfig, data: Sequence[Source], out: str, resources: Resources
) -> TrainResult:
    """Train on `config.workers` processes; in this one where it is one.

    Args:
        config: What to do.
        data: What to learn from.
        out: The model folder, on storage that all workers share.
        resources: What each worker occupies.

    Raises:
        ValueError: The cluster has no place for so many workers at all.
        TimeoutError: Others have kept those places for an hour.
    """
    if config.workers == 1:
        return train(config, data, out)
    place = {"CPU": float(resources.cpus), "GPU": resources.gpus}
    place = {name: amount for name, amount in place.items() if amount}
    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    if any(there.get(name, 0) < amount * config.workers for name, amount in place.items()):
        wanted = ", ".join(f"{amount * config.workers:g} {name}" for name, amount in place.items())
        raise ValueError(
            f"train.workers {config.workers} take {wanted}, and there are "
            f"{', '.join(f'{there.get(name, 0):g} {name}' for name in place)}: use fewer"
        )
    # All places or none: two trainings that each hold half would wait for ever.
    group = placement_group([place] * config.workers, strategy="PACK")
    actors: list[Any] = []
    try:
        if not group.wait(PATIENCE_SECONDS):
            raise TimeoutError(f"train: no place for {config.workers} workers in an hour")
        actors = [
            _Worker.options(  # type: ignore[attr-defined]
                num_cpus=place.get("CPU", 0),
                num_gpus=place.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, rank),
            ).remote(config, rank)
            for rank in range(config.workers)
        ]
        meeting = ray.get(actors[0].meet.remote())
        waiting = [actor.train.remote(meeting, data, out) for actor in actors]
        first = waiting[0]
        while waiting:
            # One that fails leaves the others waiting for it: the first error ends all.
            done, waiting = ray.wait(waiting)
            ray.get(done)
        result: TrainResult = ray.get(first)
        return result
    finally:
        for actor in actors:
            ray.kill(actor)
        remove_placement_group(group)


@ray.remote(max_restarts=0)
class _Worker:
    """One rank of a training."""

    def __init__(self, config: TrainConfig, rank: int) -> None:
        self.config = config
        self.rank = rank
        self.store: Any = None

    def meet(self) -> tuple[str, int]:
        """Open the store where the ranks find each other, and say where it is."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        self.store = TCPStore(host, 0, self.config.workers, is_master=True, wait_for_workers=False)
        return host, self.store.port

    def train(self, meeting: tuple[str, int], data: Sequence[Source], out: str) -> TrainResult:
        """Join the others and train."""
        import torch
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        host, port = meeting
        store = self.store or TCPStore(host, port, self.config.workers)
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(
            backend, store=store, rank=self.rank, world_size=self.config.workers
        )
        try:
            return train(self.config, data, out)
        finally:
            torch.distributed.destroy_process_group()
