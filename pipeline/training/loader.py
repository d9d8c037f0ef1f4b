"""Makes the batches of a training: augmented images and tokenized texts, prepared ahead."""

from __future__ import annotations

import itertools
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
from models.text.near_misses import NearMisses, Vocabulary, words_of
from pipeline.manifest.train_config import TrainConfig
from pipeline.training.data import Example, Pairs, Position

__all__ = ["Loaded", "ahead", "make_batches", "near_misses_of"]

logger = logging.getLogger(__name__)

CACHE_BYTES = 1 << 30
"""Bytes of decoded images that are cached; images that do not fit are decoded every time."""

VOCABULARY_IMAGES = 20_000
"""Images whose texts provide the vocabulary of near misses."""

Views = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A batch of a rank.

    Attributes:
        batch: The pairs, in the order of the rank's streams.
        captions: The prepared texts that were tokenized.
        positions: The position of each stream after the batch.
        unreadable: Number of images skipped for this batch because they cannot be opened.
    """

    batch: Batch
    captions: tuple[str, ...]
    positions: tuple[Position, ...]
    unreadable: int


@dataclass(frozen=True)
class Share:
    """The examples that one stream adds to a batch."""

    examples: list[Example]
    views: list[Views]
    position: Position
    unreadable: int


class Decoder:
    """Decodes and augments images, and caches up to `CACHE_BYTES` of decoded images."""

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
        """The augmented image, uint8 (size, size, 3); None if the image cannot be opened."""
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
    """Yield full batches without end, with an equal share from every stream.

    Args:
        config: The config of the training.
        streams: The streams of this rank.
        objective: Prepares and tokenizes the texts, and normalises the images.
        positions: The position from which each stream continues.
        near_misses: Makes near misses, if the objective uses them.

    Raises:
        ValueError: An epoch of a stream has too few readable images for a share.
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
    """int64 (n, k, L): k near misses of each text; a missing one consists of padding."""
    number, _ = config.objective.near_miss_settings()
    texts: list[str | None] = []
    for example in examples:
        known = words_of(example.captions)
        for which in range(number):
            seed = seed_of(config.seed, "near", example.epoch, example.image_id, which)
            near_miss = make(example.caption, random.Random(seed), known=known)
            texts.append(None if near_miss is None else objective.prepare(near_miss.text))
    tokens = objective.tokenize([text or "" for text in texts], config.objective.max_text_tokens)
    lacking = torch.tensor([text is None for text in texts])
    tokens[lacking] = objective.tokenizer.pad_token_id
    return tokens.view(len(examples), number, -1)


def _shares(pairs: Pairs, position: Position, number: int, decode: Any) -> Iterator[Share]:
    """Yield `number` readable examples at a time; the incomplete rest of an epoch is left out."""
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
                f"train.batch_size needs {number} images of stream {pairs.stream} of "
                f"{pairs.num_streams}, but an epoch has fewer readable ones: use a smaller one"
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


def near_misses_of(config: TrainConfig, pairs: Pairs) -> NearMisses | None:
    """The maker of near misses; None if the objective uses none.

    Raises:
        ValueError: The tagger is missing.
    """
    number, tagger = config.objective.near_miss_settings()
    if not number:
        return None
    captions = itertools.islice(pairs.captions(), VOCABULARY_IMAGES)
    try:
        return NearMisses(Vocabulary(captions, tagger))
    except OSError as error:
        raise ValueError(
            f"train.tagger: no spaCy pipeline {tagger!r}, which near misses need; install it "
            f"with `python -m spacy download {tagger}`, or name a folder that holds one"
        ) from error


def ahead(batches: Iterator[Loaded]) -> Iterator[Loaded]:
    """Yield the same batches, each prepared in the background while the previous one is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, batches)
        while True:
            batch = coming.result()
            coming = pool.submit(next, batches)
            yield batch
