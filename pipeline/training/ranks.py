"""The ranks of a training, as `torchrun` or Slurm's `srun` names them.

Slurm does not say where the ranks meet: set MASTER_ADDR to the first node, and MASTER_PORT.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator, Mapping

__all__ = ["PATIENCE", "joined", "launched_ranks"]

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
