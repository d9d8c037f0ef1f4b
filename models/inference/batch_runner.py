"""Runs a model over images in batches: decodes ahead on threads, halves batches that do not fit."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch

from models.image.decode import ImageError

__all__ = ["BatchRunner", "check_one_each", "is_out_of_memory", "stack"]

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


def stack(arrays: list[Any], pin: bool) -> torch.Tensor:
    """Stack arrays of one shape into a tensor, in pinned memory if it goes to a GPU."""
    whole = torch.from_numpy(np.stack(arrays))
    return whole.pin_memory() if pin else whole


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: in CUDA, cuBLAS or the CPU allocator."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator" in message
        or "CUBLAS_STATUS_ALLOC_FAILED" in message
        or "could not create a memory object" in message
    )


def check_one_each(images: Sequence[Any], others: Sequence[Any], what: str) -> None:
    """Raise a ValueError if there is not exactly one `what` for each image."""
    if len(others) != len(images):
        raise ValueError(f"one {what} for each image, got {len(others)} for {len(images)}")


class BatchRunner:
    """Runs a model over images, and opens the next batch while the current one computes.

    A batch that does not fit into memory is halved, and so are all later batches.

    Args:
        open_image: Opens an encoded image for `gather`; raises ImageError.
        device: The device of the model.
        threads: Threads that open images.
        gather: Makes a batch of opened images; its second argument says whether to pin memory. The
            batch can be sliced by images.
    """

    on_cuda = 256
    on_cpu = 16

    def __init__(
        self,
        open_image: Callable[[bytes], Any],
        device: torch.device,
        threads: int,
        gather: Callable[[list[Any], bool], Any] = stack,
    ) -> None:
        self.open_image = open_image
        self.device = device
        self.threads = threads
        self.gather = gather
        self.most = sys.maxsize
        """The most images in a batch that may fit into memory."""

    def map(
        self,
        images: Sequence[bytes],
        compute: Callable[[list[int], Any], list[ResultT]],
        batch_size: int | None = None,
    ) -> list[ResultT | None]:
        """Compute a result for each image; None for an image that cannot be opened.

        Args:
            images: Encoded images.
            compute: Takes positions in `images` and the batch of these images, and returns one
                result for each. If memory runs out, it is called again with fewer images.
            batch_size: Images at a time; by default 256 on CUDA and 16 on a CPU.

        Raises:
            ValueError: `batch_size` is below 1.
            torch.OutOfMemoryError: A single image does not fit.
        """
        if batch_size is None:
            batch_size = self.on_cuda if self.device.type == "cuda" else self.on_cpu
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        results: list[ResultT | None] = [None] * len(images)
        computed: list[ResultT] | None
        with torch.inference_mode():
            for positions, batch in self._opened(images, batch_size):
                done = 0
                while done < len(positions):
                    size = min(self.most, len(positions) - done)
                    part = slice(done, done + size)
                    try:
                        computed = compute(positions[part], batch[part])
                    except (RuntimeError, MemoryError) as error:
                        if size == 1 or not is_out_of_memory(error):
                            raise
                        computed = None
                    if computed is None:  # after the except clause, which keeps tensors alive
                        self.most = size // 2
                        logger.warning("out of memory: batches of %d images from now", self.most)
                        if self.device.type == "cuda":
                            torch.cuda.empty_cache()
                        continue
                    for position, result in zip(positions[part], computed, strict=True):
                        results[position] = result
                    done += size
        return results

    def map_all(
        self,
        images: Sequence[bytes],
        compute: Callable[[list[int], Any], list[ResultT]],
        batch_size: int | None = None,
    ) -> list[ResultT]:
        """Compute a result for each image, as `map` does, but raise if an image cannot be opened.

        Raises:
            ImageError: An image cannot be opened.
        """
        results = self.map(images, compute, batch_size)
        for image, result in zip(images, results, strict=True):
            if result is None:
                self.open_image(image)  # raises the ImageError
        return [result for result in results if result is not None]

    def _opened(self, images: Sequence[bytes], batch_size: int) -> Iterator[tuple[list[int], Any]]:
        """Yield (positions, batch), with the next one loading; images that fail are left out."""
        pin = self.device.type == "cuda"
        with ThreadPoolExecutor(self.threads) as openers, ThreadPoolExecutor(1) as gatherer:

            def load(start: int) -> tuple[list[int], Any]:
                opened = list(openers.map(self._open, images[start : start + batch_size]))
                whole = [i for i, image in enumerate(opened) if image is not None]
                batch = self.gather([opened[i] for i in whole], pin) if whole else None
                return [start + i for i in whole], batch

            starts = range(0, len(images), batch_size)
            ahead = gatherer.submit(load, 0)
            for start in starts:
                now, ahead = ahead, gatherer.submit(load, start + batch_size)
                positions, batch = now.result()
                if positions:
                    yield positions, batch

    def _open(self, image: bytes) -> Any:
        try:
            return self.open_image(image)
        except ImageError as error:
            logger.debug("an image cannot be opened: %s", error)
            return None
