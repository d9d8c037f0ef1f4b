"""Trainings under `torchrun` or Slurm's `srun`, which start a process for each rank themselves.

    torchrun --nproc-per-node 8 --no-python capfilt train manifest.yaml --name blip
    srun --ntasks 16 --gpus-per-task 1 capfilt train manifest.yaml --name blip

Slurm does not say where the ranks meet: set MASTER_ADDR to the first node, and MASTER_PORT.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.training.job import TrainingJob

__all__ = ["carry_out", "joined", "launched_ranks"]

SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
"""The variables of torchrun, and what they are called by Slurm."""

PATIENCE = datetime.timedelta(hours=2)
"""How long a rank waits for the others, as for a validation on rank 0. Ranks that died are noticed
at once: their connections close."""


def launched_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that say which of several ranks this process is; empty if it is alone.

    Args:
        environment: The variables of the process.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return {name: environment.get(name, "0") for name in SLURM}
    is_task = "MASTER_ADDR" in environment and all(name in environment for name in SLURM.values())
    if not is_task or environment["SLURM_NTASKS"] == "1":
        return {}
    return {name: environment[slurm] for name, slurm in SLURM.items()}


@contextlib.contextmanager
def joined(variables: Mapping[str, str]) -> Iterator[None]:
    """Join the other ranks, each with a GPU of its own where there are some.

    Args:
        variables: See `launched_ranks`.
    """
    import torch

    os.environ.update(variables)
    os.environ.setdefault("MASTER_PORT", "29500")
    has_gpus = torch.cuda.is_available()
    if has_gpus:
        torch.cuda.set_device(int(variables["LOCAL_RANK"]) % torch.cuda.device_count())
    torch.distributed.init_process_group(
        "nccl" if has_gpus else "gloo", init_method="env://", timeout=PATIENCE
    )
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


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
