"""The image encoder that learns from labelled drawings."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from models.objectives.blip import MED
from models.objectives.masking import IGNORED
from models.objectives.start import Start
from pipeline.demo.tokenizer import write_tokenizer
from pipeline.demo.vision import SIDE, classes, labels, pixels, train_vision
from pipeline.demo.world import WORLDS, sample_scene


@pytest.mark.parametrize("name", WORLDS)
def test_every_attribute_of_a_scene_has_a_class(name: str) -> None:
    rng, world = random.Random(0), WORLDS[name]
    number_of = classes(world)
    scenes = [sample_scene(rng, world.even()) for _ in range(50 * len(world.kinds))]
    rows = torch.tensor([labels(scene, world) for scene in scenes])
    assert rows.shape == (len(scenes), len(number_of))
    for own, number in zip(rows.T, number_of.values(), strict=True):
        assert set(own.tolist()) - {IGNORED} == set(range(number)) - (
            {2} if number == 3 and IGNORED in own else set()  # no second group is of three
        )
    alone = torch.tensor([scene.relation is None for scene in scenes])
    assert ((rows[:, 4:8] == IGNORED).all(1) == alone).all()


def test_a_crop_is_a_part_of_the_drawing() -> None:
    """A drawing whose columns are all alike stays so, whichever part is cut out."""
    drawing = torch.randint(0, 256, (1, SIDE, 1, 3), dtype=torch.uint8).expand(8, SIDE, SIDE, 3)
    cropped = pixels(drawing, np.random.default_rng(1))
    assert cropped.shape == (8, 3, SIDE, SIDE)
    torch.testing.assert_close(cropped, cropped[..., :1].expand_as(cropped))
    assert torch.equal(pixels(drawing)[0], pixels(drawing)[7])


def test_the_encoder_learns_and_a_captioner_starts_from_it(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    shares = train_vision(
        tmp_path / "vision", tmp_path / "tokenizer", num_drawings=800, num_steps=150
    )
    assert shares["ground"] > 0.8  # 0.2 by chance
    blip = MED.from_pretrained(tmp_path / "vision", parts=("captioner",))
    started = MED.from_pretrained(
        "tiny",
        parts=("captioner",),
        tokenizer=str(tmp_path / "tokenizer"),
        start=Start(vision=str(tmp_path / "vision")),
    )
    for own, other in zip(blip.vision.parameters(), started.vision.parameters(), strict=True):
        assert torch.equal(own, other)
