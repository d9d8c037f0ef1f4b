"""Pre-trains an image encoder on labelled drawings, as BLIP's is pre-trained on ImageNet."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.image.decode import CLIP_MEAN, CLIP_STD
from models.objectives.blip import MED
from models.objectives.masking import IGNORED
from models.objectives.start import Shape
from pipeline.demo import shapes
from pipeline.demo.world import RADII, SMALL, Scene, World, draw, sample_scene

__all__ = ["accuracies", "classes", "labels", "train_vision"]

SIDE = 64
"""Side of a drawing in pixels."""
LEAST_CROP = 56
"""Side of the smallest crop of a drawing in pixels."""
NUM_DRAWINGS = 40_000
HELD_OUT = 40
"""One drawing of so many is kept from training."""
NUM_STEPS = 20_000
BATCH = 32
LEARNING_RATE = 1.5e-3
WARMUP_STEPS = 200
POSITION_SPREAD = 1.0
"""Standard deviation of new position embeddings. They are added to patches of about this size;
with the spread of the other weights it takes the encoder long to notice where a patch is."""
ATTRIBUTES = ("kind", "color", "size", "count")
"""Attributes of a group."""

COLORS = tuple(shapes.COLORS)
SIZES = tuple(RADII)
GROUNDS = tuple(shapes.GROUNDS)
RELATIONS = (None, "left", "above")


def classes(world: World) -> dict[str, int]:
    """The number of classes of each attribute. The first group is the left or the upper one."""
    group = dict(zip(ATTRIBUTES, (len(world.kinds), len(COLORS), len(SIZES), 3), strict=True))
    return {
        **{f"first {name}": number for name, number in group.items()},
        **{f"second {name}": number for name, number in group.items()},
        "relation": len(RELATIONS),
        "ground": len(GROUNDS),
    }


def labels(scene: Scene, world: World) -> list[int]:
    """The class of each attribute of `classes`; IGNORED for a second group that is not there."""
    found: list[int] = []
    for group in scene.groups:
        kind, color = world.kinds.index(group.kind), COLORS.index(group.color)
        found += [kind, color, SIZES.index(group.size), group.count - 1]
    found += [IGNORED] * (2 * len(ATTRIBUTES) - len(found))
    return [*found, RELATIONS.index(scene.relation), GROUNDS.index(scene.ground)]


def drawn(scene: Scene, number: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Draw a scene: uint8 (SIDE, SIDE, 3)."""
    return np.asarray(draw(scene, SIDE, random.Random(f"{seed} drawing {number}")))


def pixels(drawings: Tensor, rng: np.random.Generator | None = None) -> Tensor:
    """Normalise drawings, and with `rng` crop each of them.

    Args:
        drawings: uint8 (n, SIDE, SIDE, 3).
        rng: Chooses one side for all crops, and the place of each.

    Returns:
        float32 (n, 3, SIDE, SIDE).
    """
    if rng is not None:
        side = int(rng.integers(LEAST_CROP, SIDE + 1))
        corners = rng.integers(0, SIDE + 1 - side, (len(drawings), 2)).tolist()
        drawings = torch.stack(
            [
                drawing[top : top + side, left : left + side]
                for drawing, (top, left) in zip(drawings, corners, strict=True)
            ]
        )
    scaled = drawings.permute(0, 3, 1, 2).float() / 255
    if scaled.shape[-1] != SIDE:
        scaled = F.interpolate(scaled, size=SIDE, mode="bilinear")
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (CLIP_MEAN, CLIP_STD))
    return (scaled - mean) / std


class Classifier(nn.Module):
    """An image encoder with a linear classifier of each attribute on its [CLS].

    Args:
        vision: The image encoder.
        width: Its width.
        classes: The number of classes of each attribute.
    """

    def __init__(self, vision: nn.Module, width: int, classes: Mapping[str, int]) -> None:
        super().__init__()
        self.vision = vision
        self.classes = classes
        self.head = nn.Linear(width, sum(classes.values()))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return logits (n, number of classes) of each attribute for (n, 3, SIDE, SIDE) images."""
        first = self.vision(pixel_values=images).last_hidden_state[:, 0]
        return torch.split(self.head(first), list(self.classes.values()), dim=1)


@torch.no_grad()
def accuracies(model: Classifier, drawings: Tensor, truth: Tensor) -> dict[str, float]:
    """The share of drawings whose attribute is found, where there is such an attribute."""
    rows = zip(model.classes, model(pixels(drawings)), truth.T, strict=True)
    return {
        name: float((logits.argmax(1) == own)[own != IGNORED].float().mean())
        for name, logits, own in rows
    }


def train_vision(
    folder: str | Path,
    tokenizer: str | Path,
    *,
    seed: int = 0,
    num_drawings: int = NUM_DRAWINGS,
    num_steps: int = NUM_STEPS,
    shape: Shape | None = None,
    world: World = SMALL,
    each: Callable[..., Iterable[Any]] = map,
) -> dict[str, float]:
    """Train the image encoder of a tiny BLIP to tell what is in a drawing, and write the BLIP.

    `start: {vision: folder}` takes the image encoder; the text layers of the folder are random.

    Args:
        folder: Folder to write to; created if necessary.
        tokenizer: Tokenizer of the BLIP.
        seed: Seed of drawings, their order and the weights.
        num_drawings: Number of distinct drawings, those held out included.
        num_steps: Steps of `BATCH` drawings.
        shape: Numbers of the BLIP that differ from those of `tiny`.
        world: What is drawn, everything in it equally often.
        each: `map`, or one that draws in several processes.

    Returns:
        The accuracy of each attribute on drawings held out.
    """
    scenes = list(islice(_scenes(random.Random(f"{seed} vision"), world.even()), num_drawings))
    draw_one = functools.partial(drawn, seed=seed)
    drawings = torch.from_numpy(np.stack(list(each(draw_one, scenes, range(num_drawings)))))
    truth = torch.tensor([labels(scene, world) for scene in scenes])
    torch.manual_seed(seed)
    blip = MED.from_pretrained(
        "tiny", parts=("captioner",), tokenizer=str(tokenizer), image_size=SIDE, shape=shape
    )
    vision: Any = blip.vision
    nn.init.normal_(vision.embeddings.position_embedding, std=POSITION_SPREAD)
    model = Classifier(vision, blip.config.vision_config.hidden_size, classes(world))
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.98), weight_decay=0.05)
    num_seen = num_drawings - max(1, num_drawings // HELD_OUT)
    rng = np.random.default_rng(seed)
    for step in range(1, num_steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, step / WARMUP_STEPS) * _cosine(step / num_steps)
        chosen = torch.from_numpy(rng.integers(0, num_seen, BATCH))
        logits = model(pixels(drawings[chosen], rng))
        loss = torch.zeros(())
        for one, own in zip(logits, truth[chosen].T, strict=True):
            loss = loss + F.cross_entropy(one, own, ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
    blip.save(folder)
    return accuracies(model, drawings[num_seen:], truth[num_seen:])


def _scenes(rng: random.Random, world: World) -> Iterator[Scene]:
    while True:
        yield sample_scene(rng, world)


def _cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * share))
