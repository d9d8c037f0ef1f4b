"""A training on several workers: Ray Train starts a process for each and joins them by torch.

Data and checkpoints stay with the training's own loop: a checkpoint that Ray Train is told of
comes late, so that a killed training would replay steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import ray

from pipeline.manifest.train_config import Source, TrainConfig
from pipeline.storage.run import Run
from pipeline.training.loop import TrainResult, train
from stages.base import Resources

__all__ = ["notes", "train_together"]


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
        Exception: What the first rank that failed raised.
    """
    if config.workers == 1:
        return train(config, data, out)
    from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchTrainer

    place = {"CPU": float(resources.cpus), "GPU": resources.gpus}
    place = {name: amount for name, amount in place.items() if amount}
    _check_room(config.workers, place)
    with notes(out) as own:
        trainer = TorchTrainer(
            _loop,  # type: ignore[arg-type]
            train_loop_config={"config": config, "data": list(data), "out": out},
            scaling_config=ScalingConfig(
                num_workers=config.workers,
                use_gpu=resources.gpus > 0,
                resources_per_worker=place,
                placement_strategy="PACK",
            ),
            run_config=RunConfig(
                name="train", storage_path=own, failure_config=FailureConfig(max_failures=0)
            ),
        )
        try:
            result = trainer.fit()
        except WorkerGroupError as error:
            _, first = min(error.worker_failures.items())
            raise getattr(first, "_base_exc", first) from first  # Ray wraps it in its trace
    found: TrainResult = result.return_value  # type: ignore[attr-defined]
    return found


@contextlib.contextmanager
def notes(out: str) -> Iterator[str]:
    """A folder beside a model for Ray Train's notes on its run, which are for this run alone.

    Those that a killed training left would be taken up.
    """
    folder = Run(f"{out}.ray.partial")
    folder.remove()
    try:
        yield folder.root
    finally:
        with contextlib.suppress(OSError):  # Ray may still be writing, and the training is done
            folder.remove()


def _loop(told: dict[str, Any]) -> TrainResult:
    return train(told["config"], told["data"], told["out"])


def _check_room(workers: int, place: dict[str, float]) -> None:
    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    if any(there.get(name, 0) < amount * workers for name, amount in place.items()):
        wanted = ", ".join(f"{amount * workers:g} {name}" for name, amount in place.items())
        raise ValueError(
            f"train.workers {workers} take {wanted}, and there are "
            f"{', '.join(f'{there.get(name, 0):g} {name}' for name in place)}: use fewer"
        )
