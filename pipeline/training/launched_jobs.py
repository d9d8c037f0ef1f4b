"""Trainings under `torchrun` or Slurm's `srun`, which start a process for each rank themselves.

torchrun --nproc-per-node 8 --no-python capfilt train manifest.yaml --name blip
srun --ntasks 16 --gpus-per-task 1 capfilt train manifest.yaml --name blip
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from pipeline.training.job import TrainingJob

__all__ = ["carry_out"]


def carry_out(jobs: Sequence[TrainingJob], *, go_on: bool = False) -> None:
    """Carry out trainings one after the other on all ranks that have joined.

    Rank 0 holds the run's lock, and writes. On an error of one rank the launcher ends the others.

    Args:
        jobs: The trainings, in order.
        go_on: See `train`.

    Raises:
        ValueError: A training has another number of workers than there are ranks.
    """
    import torch

    from models.objectives.distributed import num_ranks, rank
    from pipeline.training.loop import train

    for job in jobs:
        if job.config.workers != num_ranks():
            raise ValueError(
                f"train.{job.name}.workers is {job.config.workers}, and {num_ranks()} ranks were "
                f"launched: set it to {num_ranks()}"
            )
    with contextlib.ExitStack() as opened:
        if rank() == 0 and jobs:
            opened.enter_context(jobs[0].run.lock())
        for job in jobs:
            is_done = [job.is_done if rank() == 0 else None]
            torch.distributed.broadcast_object_list(is_done)
            if is_done[0]:
                continue
            if rank() == 0:
                job.carry_out(
                    go_on=go_on, launch=lambda *told, go_on: train(*told[:3], go_on=go_on)
                )
            else:
                train(job.config, job.sources(), job.out, go_on=go_on)
            torch.distributed.barrier()
