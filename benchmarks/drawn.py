"""Filters of the drawn world for the benchmarks: its human captions, and what is trained on them.

Everything is kept in a folder and made once: `FOLDER/SEED/web` and `FOLDER/SEED/NAME`, the model
that the training `filter` of manifests/demo.yaml makes with some fields changed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.demo.language import train_language
from pipeline.demo.run import MANIFESTS, SHIPPED
from pipeline.demo.web import build, photograph
from pipeline.demo.world import Scene, describe, sample_scene
from pipeline.manifest.manifest import Manifest
from pipeline.training.loop import train

__all__ = ["Picture", "pictures", "prepare", "table", "trained_filter"]

PAGES = 100
"""Pages of the web, which is not read; the human captions are those of any number of pages."""


@dataclass(frozen=True)
class Picture:
    """A scene with a photograph of it and true captions."""

    scene: Scene
    image: bytes
    captions: list[str]


def prepare(folder: Path, seed: int) -> Path:
    """The human captions of a seed and the language of the world, made if they are not there."""
    place = folder / str(seed) / "web"
    if not (place / "done").exists():
        build(place, base_url="http://127.0.0.1", seed=seed, num_pages=PAGES)
        train_language(place / "language", seed=seed)
        (place / "done").touch()
    return place


def trained_filter(folder: Path, seed: int, name: str, fields: Sequence[str] = ()) -> Path:
    """The filter of the demo, fine-tuned on the human captions of a seed.

    Args:
        folder: Where everything is kept.
        seed: Of the world and of the training.
        name: What to call the model.
        fields: Settings of the training that differ from the demo's, as `near_misses=2`.
    """
    place, out = prepare(folder, seed), folder / str(seed) / name
    if (out / "model.safetensors").exists():
        return out
    human = place / "human.jsonl"
    overrides = [
        f"seed={seed}",
        f"train.filter.model={SHIPPED / 'matcher'}",
        f"train.filter.data=[{human}]",
        f"train.filter.tagger={place / 'language'}",
        *(f"train.filter.{field}" for field in fields),
    ]
    manifest = Manifest.load(str(MANIFESTS / "demo.yaml"), overrides, str(out.parent / "run"))
    train(manifest.train["filter"], [str(human)], out)
    return out


def pictures(seed: int, number: int, captions: int) -> Iterator[Picture]:
    """Scenes that no training has seen, with so many captions each."""
    rng = random.Random(f"{seed} held out")
    for _ in range(number):
        scene = sample_scene(rng)
        texts = [describe(scene, rng) for _ in range(captions)]
        yield Picture(scene, photograph(scene, rng), texts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, the first column to the left."""
    lines = [list(head), ["---", *("---:" for _ in head[1:])], *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(folder: Path, name: str, found: object) -> None:
    """Keep what was found as JSON beside the models."""
    (folder / f"{name}.json").write_text(json.dumps(found, indent=1))
