"""Scenes of the drawn world on disk, with captions that are true."""

import random
from collections.abc import Iterator
from pathlib import Path

from pipeline.demo.web import photograph
from pipeline.demo.world import describe, sample_scene


def write_scenes(folder: Path, number: int, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Write a picture of each scene; gives its file name and five captions."""
    rng = random.Random(seed)
    for index in range(number):
        scene = sample_scene(rng)
        (folder / f"{index}.jpg").write_bytes(photograph(scene, rng))
        yield f"{index}.jpg", [describe(scene, rng) for _ in range(5)]
