from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.image.decode import ImageError
from models.inference.batch_runner import BatchRunner

CPU = torch.device("cpu")


def number(image: bytes) -> Any:
    if image == b"junk":
        raise ImageError("not_an_image")
    return np.array([int(image)])


def doubled(_: list[int], batch: torch.Tensor) -> list[int]:
    return (2 * batch[:, 0]).tolist()


IMAGES = [b"junk" if i % 7 == 3 else str(i).encode() for i in range(30)]
EXPECTED = [None if i % 7 == 3 else 2 * i for i in range(30)]


@pytest.mark.parametrize("batch_size", [1, 4, 30, 99, None])
def test_results_stand_at_the_place_of_their_images(batch_size: int | None) -> None:
    assert BatchRunner(number, CPU, threads=3).map(IMAGES, doubled, batch_size) == EXPECTED


def test_a_batch_of_nothing_but_broken_images_is_not_computed() -> None:
    def refuse(positions: list[int], batch: Any) -> list[int]:
        raise AssertionError

    assert BatchRunner(number, CPU, threads=2).map([b"junk"] * 3, refuse, 2) == [None] * 3


def test_the_next_batch_opens_while_one_computes() -> None:
    opened = threading.Event()

    def watched(image: bytes) -> Any:
        if image == b"1":
            opened.set()
        return number(image)

    def compute(positions: list[int], batch: torch.Tensor) -> list[int]:
        assert opened.wait(timeout=600)
        return doubled(positions, batch)

    assert BatchRunner(watched, CPU, threads=1).map([b"0", b"1"], compute, 1) == [0, 2]


def cramped(room: int, error: Exception) -> Any:
    def compute(positions: list[int], batch: torch.Tensor) -> list[int]:
        if len(batch) > room:
            raise error
        return doubled(positions, batch)

    return compute


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_batch_that_does_not_fit_is_halved_and_so_are_the_later_ones(error: Exception) -> None:
    batches = BatchRunner(number, CPU, threads=2)
    assert batches.map(IMAGES, cramped(3, error), 16) == EXPECTED
    assert batches.most == 3
    assert batches.map(IMAGES, cramped(3, ValueError()), 16) == EXPECTED


def test_one_image_that_does_not_fit_raises() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        BatchRunner(number, CPU, threads=1).map(IMAGES, cramped(0, torch.OutOfMemoryError()))


def test_another_failure_is_not_taken_for_want_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        BatchRunner(number, CPU, threads=1).map(IMAGES, cramped(3, RuntimeError("shapes")), 16)


def test_a_batch_has_at_least_one_image() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        BatchRunner(number, CPU, threads=1).map(IMAGES, doubled, 0)


PROGRAM = """
import logging, os, resource, sys
sys.path[:0] = ["tests"]
import pyarrow as pa
from helpers.blips import WORDS, config_of, drawn, random_model, tokenizer_of
from transformers import BlipForConditionalGeneration
from models.image.decode import Preprocess
from stages.caption import CaptionConfig, CaptionStage

logging.basicConfig(level=logging.WARNING)
folder, size = sys.argv[1:]
tokenizer = tokenizer_of(WORDS.split())
config = config_of(tokenizer)
config.vision_config.image_size, config.vision_config.intermediate_size = 224, 8192
random_model(BlipForConditionalGeneration, config).save_pretrained(folder)
tokenizer.save_pretrained(folder)
Preprocess(size=224).save(folder)
stage = CaptionStage(CaptionConfig(model=folder, device="cpu", batch_size=int(size)))
stage.load()
stage._captioner.seen_at_once = 64
rows = pa.table({"uid": [str(i) for i in range(64)], "image": [drawn(i) for i in range(64)]})
stage.annotate(rows.slice(0, 2))
pages = int(open("/proc/self/statm").read().split()[0])
room = pages * os.sysconf("SC_PAGE_SIZE") + 250 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (room, room))
captions = stage.annotate(rows)["synthetic"].to_pylist()
assert [len(some) for some in captions] == [1] * 64
assert stage._captioner.batches.most <= 32
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_a_shard_is_finished_where_the_first_batch_does_not_fit(tmp_path: Path) -> None:
    """In a process that is allowed 250 MiB more than it has; 64 images need twice that."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), "64"],
        cwd=Path(__file__).resolve().parents[3],
        env={"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "out of memory: batches of" in done.stderr
