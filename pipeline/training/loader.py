"""Makes the batches of a training: augmented images and tokenized texts, prepared ahead."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.image.augmentation import View
from models.objectives.base import Objective
from models.objectives.batch import Batch
from models.random import seed_of
from models.text.near_misses import NearMisses, Vocabulary, words_of
from pipeline.manifest.train_config import TrainConfig
from pipeline.training.data import Example, Pairs, Position
from pipeline.training.decoding import CACHE_BYTES, Decoder, Decoders, Views

__all__ = ["Loaded", "ahead", "make_batches", "near_misses_of"]

BATCHES_AHEAD = 2
"""Batches of a stream that processes decode ahead of the training."""

VOCABULARY_IMAGES = 20_000
"""Images whose texts provide the vocabulary of near misses."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A batch of a rank.

    Attributes:
        batch: The pairs, in the order of the rank's streams. Its pixels are still uint8
            (n, size, size, 3), a quarter of what they are on the device; see `on`.
        captions: The prepared texts that were tokenized.
        positions: The position of each stream after the batch.
        unreadable: Number of images skipped for this batch because they cannot be opened.
    """

    batch: Batch
    captions: tuple[str, ...]
    positions: tuple[Position, ...]
    unreadable: int

    def on(self, device: torch.device, objective: Objective) -> Batch:
        """The batch on a device, with its images normalised there."""
        batch = self.batch
        if device.type == "cuda":
            batch = batch.pin_memory()
        batch = batch.to(device)
        return dataclasses.replace(batch, pixels=objective.normalize(batch.pixels))


@dataclass(frozen=True)
class Share:
    """The examples that one stream adds to a batch."""

    examples: list[Example]
    views: list[Views]
    position: Position
    unreadable: int


class _Ahead:
    """The examples of a stream with their views, some of them decoded ahead.

    Args:
        config: The config of the training.
        pairs: The stream.
        position: Where it continues.
        decoders: Processes that decode; None decodes each example when it is asked for.
        decode: Decodes without such processes.
        number: Examples that are decoded ahead.
    """

    def __init__(
        self,
        config: TrainConfig,
        pairs: Pairs,
        position: Position,
        decoders: Decoders | None,
        decode: Decoder,
        number: int,
    ) -> None:
        self.seed = config.seed
        self.examples = pairs.examples(position, read_ahead=decoders is not None)
        self.decoders = decoders
        self.decode = decode
        self.number = number
        self.coming: collections.deque[tuple[Example, Position, Future[Views | None]]]
        self.coming = collections.deque()
        self.error: Exception | None = None

    def take(self, number: int) -> list[tuple[Example, Position, Callable[[], Views | None]]]:
        """The next examples, the position after each, and what waits for its view."""
        return [self._next() for _ in range(number)]

    def _next(self) -> tuple[Example, Position, Callable[[], Views | None]]:
        if self.decoders is None:
            example, at = next(self.examples)
            seed = self._seed(example)
            return example, at, lambda: self.decode(example.image, seed, example.image_id)
        while self.error is None and len(self.coming) < self.number:
            try:
                example, at = next(self.examples)
            except Exception as error:  # in its turn, as it would be without reading ahead
                self.error = error
                break
            self.coming.append(
                (example, at, self.decoders.submit(example.image, self._seed(example)))
            )
        if not self.coming and self.error is not None:
            raise self.error
        example, at, future = self.coming.popleft()
        return example, at, future.result

    def _seed(self, example: Example) -> int:
        return seed_of(self.seed, "view", example.epoch, example.image_id)


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
        objective: Prepares and tokenizes the texts.
        positions: The position from which each stream continues.
        near_misses: Makes near misses, if the objective uses them.

    Raises:
        ValueError: An epoch of a stream has too few readable images for a share.
    """
    objective_config = config.objective
    view = View(
        size=objective_config.image_size,
        augment=objective_config.augment,
        crop_scale=objective_config.crop_scale,
        magnitude=objective_config.magnitude,
    )
    decode = Decoder(view, CACHE_BYTES)
    number = config.objective.batch_size // config.streams
    ahead = max(BATCHES_AHEAD * number, 4 * config.loaders)
    with contextlib.ExitStack() as opened:
        decoders = opened.enter_context(Decoders(view, config.loaders)) if config.loaders else None
        shares = [
            _shares(
                _Ahead(config, pairs, position, decoders, decode, ahead), pairs, position, number
            )
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
                    pixels=torch.from_numpy(np.stack(views)),
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
    number = config.objective.near_miss_settings().number
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


def _shares(stream: _Ahead, pairs: Pairs, position: Position, number: int) -> Iterator[Share]:
    """Yield `number` readable examples at a time; the incomplete rest of an epoch is left out."""
    epoch = full_epoch = position.epoch
    examples: list[Example] = []
    views: list[Views] = []
    unreadable = 0
    while True:
        wanted = stream.take(number - len(views))
        position = wanted[-1][1]
        if position.epoch != epoch:
            epoch, examples, views = position.epoch, [], []
            wanted = [one for one in wanted if one[0].epoch == epoch]
        if epoch > full_epoch + pairs.patience:
            raise ValueError(
                f"train.batch_size needs {number} images of stream {pairs.stream} of "
                f"{pairs.num_streams}, but an epoch has fewer readable ones: use a smaller one"
            )
        for example, _, view_of in wanted:
            if (view := view_of()) is None:
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
    number, tagger, weights = config.objective.near_miss_settings()
    if not number:
        return None
    captions = itertools.islice(pairs.captions(), VOCABULARY_IMAGES)
    try:
        return NearMisses(Vocabulary(captions, tagger), weights)
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
