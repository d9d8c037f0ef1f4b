"""A training on several workers: Ray Train starts the processes, and torch connects them.

The training loop reads the data and writes the checkpoints itself. Ray Train registers a checkpoint
late, and a killed training would repeat steps.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import ray
import torch

from pipeline.manifest.train_config import Source, TrainConfig
from pipeline.storage.run import Run
from pipeline.training.loop import TrainResult, train
from pipeline.training.ranks import PATIENCE
from stages.base import Resources

__all__ = ["notes", "train_together"]

logger = logging.getLogger(__name__)


def train_together(
    config: TrainConfig,
    data: Sequence[Source],
    out: str,
    resources: Resources,
    *,
    go_on: bool = False,
) -> TrainResult:
    """Train in `config.workers` processes; a single worker trains in this process.

    Args:
        config: The config of the training.
        data: The data.
        out: The model folder, on storage that all workers share.
        resources: The resources of each worker.
        go_on: See `train`.

    Raises:
        ValueError: The cluster is too small for this many workers.
        Exception: The error of the first rank that failed.
    """
    if config.workers == 1:
        return train(config, data, out, go_on=go_on)
    from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchConfig, TorchTrainer

    per_worker = {"CPU": float(resources.cpus), "GPU": resources.gpus}
    per_worker = {name: amount for name, amount in per_worker.items() if amount}
    _check_room(config.workers, per_worker)
    told = {"config": config, "data": list(data), "out": out, "go_on": go_on}
    for failures in itertools.count():
        with notes(out) as own:
            trainer = TorchTrainer(
                _loop,  # type: ignore[arg-type]
                train_loop_config=told,
                torch_config=TorchConfig(timeout_s=int(PATIENCE.total_seconds())),
                scaling_config=ScalingConfig(
                    num_workers=config.workers,
                    use_gpu=resources.gpus > 0,
                    resources_per_worker=per_worker,
                    placement_strategy="PACK",
                ),
                run_config=RunConfig(
                    name="train", storage_path=own, failure_config=FailureConfig(max_failures=0)
                ),
            )
            try:
                result = trainer.fit()
                break
            except WorkerGroupError as error:
                if failures >= config.max_failures or not any(
                    map(_is_death, error.worker_failures.values())
                ):
                    _, first = min(error.worker_failures.items())
                    raise getattr(
                        first, "_base_exc", first
                    ) from first  # Ray wraps it in an error of its own
        logger.warning("%s: a worker died; the training continues from its last checkpoint", out)
    outcome: TrainResult = result.return_value  # type: ignore[attr-defined]
    return outcome


def _is_death(error: BaseException) -> bool:
    """Whether a worker failed because it, or one it was talking to, is gone."""
    from ray.exceptions import RayError, RayTaskError
    from ray.train.v2._internal.exceptions import RayTrainError

    error = getattr(error, "_base_exc", error)
    if isinstance(error, RayTrainError | torch.distributed.DistError):
        return True
    if isinstance(error, RayError):
        return not isinstance(error, RayTaskError)
    return isinstance(error, RuntimeError) and "gloo/transport" in str(error)


@contextlib.contextmanager
def notes(out: str) -> Iterator[str]:
    """A new folder beside a model for Ray Train's own files, removed afterwards.

    Ray Train would resume from the files of a killed training, so they are removed first.
    """
    folder = Run(f"{out}.ray.partial")
    folder.remove()
    try:
        yield folder.root
    finally:
        with contextlib.suppress(OSError):  # Ray may still write; the training is done anyway
            folder.remove()


def _loop(settings: dict[str, Any]) -> TrainResult:
    return train(**settings)


def _check_room(workers: int, per_worker: dict[str, float]) -> None:
    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    if any(there.get(name, 0) < amount * workers for name, amount in per_worker.items()):
        wanted = ", ".join(f"{amount * workers:g} {name}" for name, amount in per_worker.items())
        raise ValueError(
            f"train.workers {workers} take {wanted}, and there are "
            f"{', '.join(f'{there.get(name, 0):g} {name}' for name in per_worker)}: use fewer"
        )
