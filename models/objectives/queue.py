"""The sizes that a contrastive queue may have."""

from __future__ import annotations

__all__ = ["check_queue"]


def check_queue(queue_size: int, global_batch: int) -> None:
    """Refuse a queue that whole batches do not fill, and name the sizes near it that they do.

    Raises:
        ValueError: `queue_size` is not a multiple of `global_batch`.
    """
    if queue_size % global_batch == 0:
        return
    below = queue_size // global_batch * global_batch
    near = " or ".join(str(size) for size in (below, below + global_batch) if size)
    raise ValueError(
        f"train.queue_size must be a multiple of the global batch {global_batch}, "
        f"got {queue_size}: use {near}"
    )
