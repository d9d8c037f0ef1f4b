"""Batches for a training: views of images beside their tokenized texts, made ahead of it."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from models.image.augmentation import View
from models.image.decode import ImageError, open_rgb
from models.objectives.base import Objective
from models.objectives.batch import Batch
from models.random import seed_of
from models.text.near_misses import NearMisses, words_of
from pipeline.manifest.train_config import TrainConfig
from pipeline.training.data import Example, Pairs, Position

__all__ = ["Loaded", "ahead", "make_batches"]

logger = logging.getLogger(__name__)

CACHE_BYTES = 1 << 30
"""Decoded images that are kept in memory; the images behind them are decoded every time."""

Views = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A batch of a rank.

    Attributes:
        batch: Its pairs, those of each of the rank's streams in turn.
        captions: What was tokenized.
        positions: Where each stream stands behind it.
        unreadable: How many images before it could not be opened.
    """

    batch: Batch
    captions: tuple[str, ...]
    positions: tuple[Position, ...]
    unreadable: int


@dataclass(frozen=True)
class Share:
    """What one stream adds to a batch."""

    examples: list[Example]
    views: list[Views]
    position: Position
    unreadable: int


class Decoder:
    """Examples to views, with the decoded images of the first GiB kept in memory."""

    def __init__(self, config: TrainConfig) -> None:
        objective = config.objective
        self.view = View(
            size=objective.image_size,
            augment=objective.augment,
            crop_scale=objective.crop_scale,
            magnitude=objective.magnitude,
        )
        self.seed = config.seed
        self.room = CACHE_BYTES
        self.kept: dict[str, Views] = {}

    def __call__(self, example: Example) -> Views | None:
        """A view, uint8 (size, size, 3), or null where the image cannot be opened."""
        pixels = self.kept.get(example.image_id)
        if pixels is None:
            least = (2 * self.view.size, 2 * self.view.size)
            try:
                pixels = np.asarray(open_rgb(example.image, min_size=least))
            except ImageError as error:
                logger.debug("%s: %s", example.image_id, error)
                return None
            if pixels.nbytes <= self.room:
                self.room -= pixels.nbytes
                self.kept[example.image_id] = pixels
        rng = random.Random(seed_of(self.seed, "view", example.epoch, example.image_id))
        return self.view(Image.fromarray(pixels), rng)


def make_batches(
    config: TrainConfig,
    streams: Sequence[Pairs],
    objective: Objective,
    positions: Sequence[Position],
    near_misses: NearMisses | None = None,
) -> Iterator[Loaded]:
    """Full batches without end, an equal share of each from every stream.

    Args:
        config: The training.
        streams: Those of this rank.
        objective: Prepares and tokenizes the texts, and normalises the images.
        positions: Where each stream goes on.
        near_misses: Makes the near misses that the objective asks for.

    Raises:
        ValueError: An epoch of a stream holds too few readable images for a share.
    """
    decode = Decoder(config)
    number = config.objective.batch_size // config.streams
    with ThreadPoolExecutor(max(1, config.loaders)) as pool:
        each = pool.map if config.loaders else map
        shares = [
            _shares(pairs, position, number, lambda some: each(decode, some))
            for pairs, position in zip(streams, positions, strict=True)
        ]
        while True:
            dealt = [next(share) for share in shares]
            examples = [example for share in dealt for example in share.examples]
            views = [view for share in dealt for view in share.views]
            captions = tuple(objective.prepare(example.caption) for example in examples)
            ids = [seed_of(example.image_id) for example in examples]
            yield Loaded(
                batch=Batch(
                    pixels=objective.normalize(torch.from_numpy(np.stack(views))),
                    tokens=objective.tokenize(captions, config.objective.max_text_tokens),
                    image_ids=torch.tensor(ids),
                    near_misses=None
                    if near_misses is None
                    else _near_tokens(config, examples, objective, near_misses),
                ),
                captions=captions,
                positions=tuple(share.position for share in dealt),
                unreadable=sum(share.unreadable for share in dealt),
            )


def _near_tokens(
    config: TrainConfig, examples: Sequence[Example], objective: Objective, make: NearMisses
) -> Tensor:
    """int64 (n, k, L): near misses of each text, padding alone in the place of those that lack."""
    number, _ = config.objective.near_miss_settings()
    texts: list[str | None] = []
    for example in examples:
        known = words_of(example.captions)
        for which in range(number):
            seed = seed_of(config.seed, "near", example.epoch, example.image_id, which)
            found = make(example.caption, random.Random(seed), known=known)
            texts.append(None if found is None else objective.prepare(found.text))
    tokens = objective.tokenize([text or "" for text in texts], config.objective.max_text_tokens)
    lacking = torch.tensor([text is None for text in texts])
    tokens[lacking] = objective.tokenizer.pad_token_id
    return tokens.view(len(examples), number, -1)


def _shares(pairs: Pairs, position: Position, number: int, decode: Any) -> Iterator[Share]:
    """So many readable examples at a time; an epoch's last, incomplete share is left out."""
    stream = pairs.examples(position)
    epoch = full_epoch = position.epoch
    examples: list[Example] = []
    views: list[Views] = []
    unreadable = 0
    while True:
        wanted = [next(stream) for _ in range(number - len(views))]
        position = wanted[-1][1]
        if position.epoch != epoch:
            epoch, examples, views = position.epoch, [], []
            wanted = [(example, at) for example, at in wanted if example.epoch == epoch]
        if epoch > full_epoch + pairs.patience:
            raise ValueError(
                f"train.batch_size takes {number} of stream {pairs.stream} of "
                f"{pairs.num_streams}, and fewer images can be read in an epoch: use a smaller one"
            )
        fresh = [example for example, _ in wanted]
        for example, view in zip(fresh, decode(fresh), strict=True):
            if view is None:
                unreadable += 1
            else:
                examples.append(example)
                views.append(view)
        if len(views) == number:
            yield Share(examples, views, position, unreadable)
            full_epoch, examples, views, unreadable = epoch, [], [], 0


def ahead(batches: Iterator[Loaded]) -> Iterator[Loaded]:
    """The same batches, the next one made while the last is trained on."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, batches)
        while True:
            batch = coming.result()
            coming = pool.submit(next, batches)
            yield batch
