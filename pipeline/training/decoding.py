"""Decodes and augments images, in this process or in others that do nothing else.

`python -m pipeline.training.decoding` is such a process: it reads images from its input and writes
their views to its output, until its input ends. It imports no torch, and starts in a fraction of a
second. An image that makes a decoder crash ends that process, and is left out of the training.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import random
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.image.augmentation import View
from models.image.decode import ImageError, decode

__all__ = ["CACHE_BYTES", "Decoder", "Decoders", "Views"]

logger = logging.getLogger(__name__)

CACHE_BYTES = 1 << 30
"""Bytes of decoded images that are cached; images that do not fit are decoded every time."""

PIPE_BYTES = 1 << 20
"""Size of the pipes to and from a process; Linux allows as much without privileges."""

REQUEST = struct.Struct("<QI")
"""Before an image: the seed of its view, and its length in bytes."""

Views = npt.NDArray[np.uint8]


class Decoder:
    """Decodes and augments images, and caches the first decoded images.

    Args:
        view: The augmentation.
        cache_bytes: Bytes of decoded images that are cached.
    """

    def __init__(self, view: View, cache_bytes: int = 0) -> None:
        self.view = view
        self.room = cache_bytes
        self.kept: dict[str, Views] = {}

    def __call__(self, image: bytes, seed: int, image_id: str = "") -> Views | None:
        """The augmented image, uint8 (size, size, 3); None if the image cannot be opened.

        Args:
            image: The encoded image.
            seed: The seed of the augmentation.
            image_id: The key of the image in the cache.
        """
        pixels = self.kept.get(image_id)
        if pixels is None:
            least = (2 * self.view.size, 2 * self.view.size)
            try:
                pixels = decode(image, min_size=least).pixels
            except ImageError as error:
                logger.debug("%s: %s", image_id, error)
                return None
            if pixels.nbytes <= self.room:
                self.room -= pixels.nbytes
                self.kept[image_id] = pixels
        return self.view(Image.fromarray(pixels), random.Random(seed))


class Decoders:
    """Processes that decode and augment images.

    Example:
        >>> with Decoders(view, 4) as decoders:
        ...     coming = [decoders.submit(image, seed) for image, seed in images]
        ...     views = [one.result() for one in coming]

    Args:
        view: The augmentation.
        number: The number of processes.
    """

    def __init__(self, view: View, number: int) -> None:
        self.view = view
        self._threads = ThreadPoolExecutor(number, "decode")  # each talks to a process of its own
        self._own = threading.local()
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            _end(process)

    def submit(self, image: bytes, seed: int) -> Future[Views | None]:
        """Decode and augment an image; see `Decoder`."""
        return self._threads.submit(self._ask, image, seed)

    def _ask(self, image: bytes, seed: int) -> Views | None:
        process: subprocess.Popen[bytes] = getattr(self._own, "process", None) or self._start()
        assert process.stdin is not None and process.stdout is not None
        view: Views = np.empty((self.view.size, self.view.size, 3), np.uint8)
        try:
            process.stdin.write(REQUEST.pack(seed, len(image)))
            process.stdin.write(image)
            process.stdin.flush()
            is_readable = process.stdout.read(1)
            if is_readable == b"\0":
                return None
            if is_readable and process.stdout.readinto(view.reshape(-1).data) == view.nbytes:  # type: ignore[attr-defined]
                return view
        except BrokenPipeError:
            pass
        logger.warning("an image ended the process that decoded it, and is left out")
        _end(process)
        self._own.process = None
        return None

    def _start(self) -> subprocess.Popen[bytes]:
        settings = json.dumps(dataclasses.asdict(self.view))
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "OMP_NUM_THREADS": "1",
            },
        )
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError, AttributeError):  # not Linux, or pipes are short
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._own.process = process
        self._processes.append(process)
        return process


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process, whose work is lost."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def serve(view: View, requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer requests for views until there are no more."""
    decode = Decoder(view)
    for image, seed in _read(requests):
        found = decode(image, seed)
        if found is None:
            replies.write(b"\0")
        else:
            replies.write(b"\1")
            replies.write(np.ascontiguousarray(found).data)
        replies.flush()


def _read(requests: BinaryIO) -> Iterator[tuple[bytes, int]]:
    while len(header := requests.read(REQUEST.size)) == REQUEST.size:
        seed, length = REQUEST.unpack(header)
        image = requests.read(length)
        if len(image) < length:
            return
        yield image, seed


def _main(settings: dict[str, Any]) -> None:
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no reply
    serve(View(**settings), sys.stdin.buffer, replies)


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
