"""What every objective keeps: its losses can be lowered, its state taken up, its model loaded.

A test file of an objective calls `check_contract` with a small config:

    def test_contract(tokenizer, tmp_path):
        check_contract(small(ClipConfig, tokenizer), tmp_path)
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from helpers.blips import drawn
from helpers.starts import blip_of, clip_of, language_of, llava_of, qformer_of
from models.image.decode import open_rgb
from models.inference.decoding import Settings
from models.inference.protocols import Matches, Ranks, Writes
from models.objectives.base import Objective, Step
from models.objectives.batch import Batch
from models.objectives.config import ObjectiveConfig
from models.objectives.masking import IGNORED
from models.objectives.registry import reader_of
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.optim import make_optimizer

CAPTIONS = (
    *("a red dog", "two blue birds on the house", "a small cat in a green tree", "the big house"),
    *("a blue tree", "the small red bird", "two cats", "a picture of a green dog"),
)
PAIRS = len(CAPTIONS)
IMAGES = [drawn(number) for number in range(PAIRS)]

NANO_FIELDS: dict[str, dict[str, Any]] = {
    "beit3": {"joint_layers": 1, "drop_path": 0.0},
    "coca": {"queries": 4, "patch_size": 16},
    "flamingo": {"images": 2, "latents": 4, "depth": 1, "heads": 1},
    "qformer": {"queries": 4},
    "simvlm": {"conv_blocks": (1, 1, 1)},
    "vilt": {"patch_size": 16},
    "vlmo": {"joint_layers": 1, "drop_path": 0.0},
}
"""What the sizes of an objective set beside the numbers of an architecture."""

STARTS: dict[str, dict[str, Callable[[str], str]]] = {
    "qformer": {"vision": blip_of},
    "generate": {"model": qformer_of, "language": language_of},
    "flamingo": {"model": clip_of, "language": language_of},
    "project": {"model": clip_of, "language": language_of},
    "instruct": {"model": llava_of},
}
"""The trained models that an objective freezes parts of, by field."""


def small(kind: type[ObjectiveConfig], tokenizer: str, **fields: Any) -> ObjectiveConfig:
    """The settings of an objective for a model of the size `nano`."""
    own = dict(NANO_FIELDS.get(kind.name, {}))
    own |= {field: start(tokenizer) for field, start in STARTS.get(kind.name, {}).items()}
    plain: dict[str, Any] = {
        "model": "nano",
        "tokenizer": tokenizer,
        "image_size": 32,
        "batch_size": PAIRS,
        "max_text_tokens": 12,
        "lr": 1e-3,
    }
    plain |= own
    if "model" in own:
        plain["tokenizer"] = None  # the language model's
    return kind.of(**{**plain, **fields})


def check_contract(config: ObjectiveConfig, folder: Path, *, unsaved: Collection[str] = ()) -> None:
    """Check an objective.

    Args:
        config: Settings that make a small model.
        folder: An empty folder.
        unsaved: Losses whose head is not saved.
    """
    check_that_a_step_lowers_the_loss(config)
    check_that_a_killed_step_is_done_again_bit_for_bit(config, folder)
    check_that_what_is_written_loads_again(config, folder, unsaved)
    check_that_what_is_not_finite_stays_out_of_the_memory(config)


def built(config: ObjectiveConfig) -> Objective:
    """The model as a training builds it, its weights large enough to matter."""
    torch.manual_seed(0)
    objective = config.build()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in objective.trained().values():
            if parameter.dim() > 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return objective


def batch_of(objective: Objective, config: ObjectiveConfig, first: int = 0) -> Batch:
    """Eight pairs as the loader makes them; another `first` gives them another order."""
    side = config.image_size
    opened = (open_rgb(image).resize((side, side)) for image in IMAGES)
    squares = torch.from_numpy(np.stack([np.asarray(image) for image in opened]))
    texts = [objective.prepare(caption) for caption in CAPTIONS]
    batch = Batch(
        pixels=objective.normalize(squares),
        tokens=objective.tokenize(texts, config.max_text_tokens),
        image_ids=torch.arange(PAIRS),
    )
    order = torch.arange(first, first + PAIRS) % PAIRS
    return Batch(
        pixels=batch.pixels[order],
        tokens=batch.texts[order],
        image_ids=batch.image_ids[order],
    )


def step_of(number: int) -> Step:
    """A step whose draws are its own."""
    generator = torch.Generator().manual_seed(number)
    return Step(number=number, steps_an_epoch=2, generator=generator)


def loss_of(objective: Objective, batch: Batch, number: int = 0) -> torch.Tensor:
    """The loss that a training minimises."""
    torch.manual_seed(number)
    losses = objective(batch, step_of(number))
    assert losses and all(loss.ndim == 0 for loss in losses.values())
    return torch.stack(list(losses.values())).sum()


def check_that_a_step_lowers_the_loss(config: ObjectiveConfig) -> None:
    """A short step against the gradient makes the loss of the same pairs less."""
    objective = built(config).eval()
    batch = batch_of(objective, config)
    before = loss_of(objective, batch)
    before.backward()
    gradients = {name: p.grad for name, p in objective.trained().items() if p.grad is not None}
    square = sum(float(gradient.square().sum()) for gradient in gradients.values())
    assert square > 0
    with torch.no_grad():
        for name, parameter in objective.trained().items():
            if name in gradients:
                parameter.sub_(gradients[name], alpha=0.01 / square)
    after = float(loss_of(objective, batch).detach())
    # So short a step lowers it by 0.01, to the first order.
    assert float(before.detach()) - after == pytest.approx(0.01, rel=0.5)


def advance(
    objective: Objective, optimizer: torch.optim.Optimizer, config: ObjectiveConfig, number: int
) -> dict[str, float]:
    """Carry out a step of a training; the loss and what is logged."""
    loss = loss_of(objective.train(), batch_of(objective, config, number), number)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return {"loss": float(loss.detach()), **objective.logged()}


def check_that_a_killed_step_is_done_again_bit_for_bit(
    config: ObjectiveConfig, folder: Path
) -> None:
    """Trained parameters and memory are all that a step needs of those before it."""
    whole = built(config)
    optimizer = make_optimizer(whole, config)
    for number in range(2):
        advance(whole, optimizer, config, number)
    checkpoint = Checkpoint(folder / "checkpoint.safetensors", "identity")
    checkpoint.save(whole, optimizer, step=2)
    expected = [advance(whole, optimizer, config, number) for number in (2, 3)]

    again = built(config)
    optimizer = make_optimizer(again, config)
    state = checkpoint.read()
    assert state["step"] == 2
    checkpoint.restore(again, optimizer, state)
    assert [advance(again, optimizer, config, number) for number in (2, 3)] == expected
    for name, value in {**whole.trained(), **whole.memory()}.items():
        other = {**again.trained(), **again.memory()}[name]
        assert torch.equal(value, other), name
    with safe_open(checkpoint.path, "pt") as file:
        keys = list(file.keys())
    saved = {key.removeprefix("model.") for key in keys if key.startswith("model.")}
    assert saved == whole.trained().keys()


@torch.no_grad()
def check_that_what_is_not_finite_stays_out_of_the_memory(config: ObjectiveConfig) -> None:
    """A step that is left out leaves nothing that would spoil the steps after it."""
    objective = built(config).train()
    batch = batch_of(objective, config)
    bad = dataclasses.replace(batch, pixels=torch.full_like(batch.pixels, torch.nan))
    objective(bad, step_of(0))
    for name, value in objective.memory().items():
        assert value.isfinite().all(), name


@torch.no_grad()
def check_that_what_is_written_loads_again(
    config: ObjectiveConfig, folder: Path, unsaved: Collection[str]
) -> None:
    """The folders start a training with the same losses, and the reader of each runs them."""
    objective = built(config)
    # Built again from what it writes, momentum encoders are copies of the model, as here.
    model = folder / "model"
    model.mkdir()
    objective.write(model)
    suffixes = {path.suffix for path in model.rglob("*") if path.is_file()}
    assert suffixes <= {".jinja", ".json", ".safetensors", ".txt"}
    for name, saved in config.written().items():
        described = json.loads((model / name / "config.json").read_text())
        assert described["architectures"] == [saved.architecture]
        if saved.reader:
            run(reader_of(saved.architecture), str(model / name))
    first = dataclasses.replace(config, model=str(model), tokenizer=None).build()
    first.write(folder / "again")
    second = dataclasses.replace(config, model=str(folder / "again"), tokenizer=None).build()
    losses = []
    for one in (first, second):
        found = one.eval()(batch_of(one, config), step_of(0))
        losses.append({key: loss.item() for key, loss in found.items() if key not in unsaved})
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    trained = objective.trained()
    kept = {name: p for name, p in first.trained().items() if name in trained}
    differing = [name for name, p in kept.items() if not torch.equal(p, trained[name])]
    assert not [name for name in differing if not name.startswith(tuple(unsaved))], differing


def run(reader: type, folder: str) -> None:
    """Load a folder as the stages and `evaluate` do, and have it do what it can."""
    model = reader.from_pretrained(folder, dtype="float32")
    abilities = [kind for kind in (Ranks, Matches, Writes) if isinstance(model, kind)]
    assert abilities
    if isinstance(model, Ranks):
        images, texts = model.embed_images(IMAGES), model.embed_texts(CAPTIONS)
        assert len(images) == len(texts) == PAIRS
        for embedded in (images, texts):
            length = embedded.norm(dim=-1)
            torch.testing.assert_close(length, torch.ones_like(length))
    if isinstance(model, Matches):
        logits = model.match(IMAGES, [CAPTIONS] * PAIRS)
        assert [one.shape for one in logits] == [(PAIRS, 2)] * PAIRS
    if isinstance(model, Writes):
        settings = Settings(decoding="greedy", min_length=0)
        assert len(model.write_captions(IMAGES, settings)) == PAIRS


HEART = tuple(
    f"{number} {size} {color} {thing}"
    for number in ("a", "two")
    for size in ("big", "small")
    for color in ("red", "blue")
    for thing in ("dog", "cat")
)
"""Sixteen captions that differ in one word or more."""


def share_known(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of texts whose every word is the likeliest after those before it.

    Such a text is written by a greedy decoding.

    Args:
        logits: (n, L, V).
        labels: int64 (n, L), IGNORED where no word is asked for.
    """
    right = (logits.argmax(-1) == labels) | (labels == IGNORED)
    return right.all(1).float().mean().item()


def learnt_by_heart(config: ObjectiveConfig, steps: int, *, lr: float = 3e-3) -> tuple[Any, Batch]:
    """Train on sixteen pairs; the model in evaluation mode, and the pairs.

    Images are noise, which nothing but the image itself tells apart.
    """
    torch.manual_seed(0)
    objective = config.build().train()
    generator = torch.Generator().manual_seed(0)
    texts = [objective.prepare(caption) for caption in HEART]
    side = config.image_size
    batch = Batch(
        pixels=torch.randn(len(HEART), 3, side, side, generator=generator),
        tokens=objective.tokenize(texts, config.max_text_tokens),
        image_ids=torch.arange(len(HEART)),
    )
    config = dataclasses.replace(config, lr=lr, weight_decay=0.0)
    optimizer = make_optimizer(objective, config)
    for number in range(steps):
        torch.manual_seed(number)
        losses = objective(batch, step_of(number))
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return objective.eval(), batch
