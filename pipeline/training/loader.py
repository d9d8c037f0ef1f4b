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
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from models.image.augmentation import View
from models.objectives.base import Objective
from models.objectives.batch import Batch, Documents
from models.random import seed_of
from models.text.near_misses import NearMisses, Vocabulary, words_of
from pipeline.manifest.train_config import TrainConfig
from pipeline.training.data import Example, Pairs, Position, Stream
from pipeline.training.decoding import CACHE_BYTES, Decoder, Decoders, Views
from pipeline.training.interleaved import Page

__all__ = ["Loaded", "ahead", "make_batches", "near_misses_of"]

BATCHES_AHEAD = 2
"""Batches of a stream that processes decode ahead of the training."""

VOCABULARY_IMAGES = 20_000
"""Images whose texts provide the vocabulary of near misses."""


class Illustrated(Protocol):
    """A pair or a document, as `Example` and `Page` are."""

    @property
    def epoch(self) -> int:
        """The number of earlier epochs."""
        ...

    @property
    def images(self) -> tuple[tuple[bytes, str], ...]:
        """Each encoded image and its SHA-256."""
        ...

    def with_readable(self, is_readable: Sequence[bool]) -> Any:
        """The same without the images that cannot be opened; None if it is left out."""
        ...


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The batches of a step, of a rank.

    Attributes:
        batches: The pairs and the documents, if there are such, in the order of the rank's streams.
            Their pixels are still uint8 (..., size, size, 3), a quarter of what they are on the
            device; see `on`.
        captions: The prepared texts that were tokenized.
        positions: The position of each stream after the batch.
        unreadable: Number of images skipped for this batch because they cannot be opened.
    """

    batches: tuple[Batch, ...]
    captions: tuple[str, ...]
    positions: tuple[Position, ...]
    unreadable: int

    def on(self, device: torch.device, objective: Objective) -> list[Batch]:
        """The batches on a device, with their images normalised there."""
        return [_on(batch, device, objective) for batch in self.batches]


def _on(batch: Batch, device: torch.device, objective: Objective) -> Batch:
    if device.type == "cuda":
        batch = batch.pin_memory()
    batch = batch.to(device)
    *sizes, side, _, channels = batch.pixels.shape
    pixels = objective.normalize(batch.pixels.view(-1, side, side, channels))
    return dataclasses.replace(batch, pixels=pixels.view(*sizes, channels, side, side))


@dataclass(frozen=True)
class Share:
    """The examples that one stream adds to a batch, each with the views of its images."""

    examples: list[Any]
    views: list[list[Views]]
    position: Position
    unreadable: int


Ready = Callable[[], list[Views | None]]
"""Waits for the views of an example; None where an image cannot be opened."""


class _Ahead:
    """The examples of a stream with their views, some of them decoded ahead.

    Args:
        config: The config of the training.
        stream: The stream.
        position: Where it continues.
        decoders: Processes that decode; None decodes each example when it is asked for.
        decode: Decodes without such processes.
        number: Examples that are decoded ahead.
    """

    def __init__(
        self,
        config: TrainConfig,
        stream: Stream[Any],
        position: Position,
        decoders: Decoders | None,
        decode: Decoder,
        number: int,
    ) -> None:
        self.seed = config.seed
        self.examples = stream.examples(position, read_ahead=decoders is not None)
        self.decoders = decoders
        self.decode = decode
        self.number = number
        self.coming: collections.deque[tuple[Illustrated, Position, list[Future[Views | None]]]]
        self.coming = collections.deque()
        self.error: Exception | None = None

    def take(self, number: int) -> list[tuple[Illustrated, Position, Ready]]:
        """The next examples, the position after each, and what waits for its views."""
        return [self._next() for _ in range(number)]

    def _next(self) -> tuple[Illustrated, Position, Ready]:
        if self.decoders is None:
            example, at = next(self.examples)
            return example, at, lambda: self._decoded(example)
        while self.error is None and len(self.coming) < self.number:
            try:
                example, at = next(self.examples)
            except Exception as error:  # in its turn, as it would be without reading ahead
                self.error = error
                break
            futures = [
                self.decoders.submit(image, self._seed(example.epoch, image_id))
                for image, image_id in example.images
            ]
            self.coming.append((example, at, futures))
        if not self.coming and self.error is not None:
            raise self.error
        example, at, futures = self.coming.popleft()
        return example, at, lambda: [future.result() for future in futures]

    def _decoded(self, example: Illustrated) -> list[Views | None]:
        return [
            self.decode(image, self._seed(example.epoch, image_id), image_id)
            for image, image_id in example.images
        ]

    def _seed(self, epoch: int, image_id: str) -> int:
        return seed_of(self.seed, "view", epoch, image_id)


def make_batches(
    config: TrainConfig,
    streams: Sequence[Stream[Any]],
    objective: Objective,
    positions: Sequence[Position],
    near_misses: NearMisses | None = None,
) -> Iterator[Loaded]:
    """Yield full batches without end, with an equal share from every stream of a kind.

    Args:
        config: The config of the training.
        streams: The streams of this rank, those of pairs first.
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
    with contextlib.ExitStack() as opened:
        decoders = opened.enter_context(Decoders(view, config.loaders)) if config.loaders else None
        shares = []
        for stream, position in zip(streams, positions, strict=True):
            number = getattr(objective_config, stream.field) // config.streams
            ahead = max(BATCHES_AHEAD * number, 4 * config.loaders)
            coming = _Ahead(config, stream, position, decoders, decode, ahead)
            shares.append(_shares(coming, stream, position, number))
        while True:
            dealt = [next(share) for share in shares]
            examples = [example for share in dealt for example in share.examples]
            views = [views for share in dealt for views in share.views]
            pairs = sum(isinstance(example, Example) for example in examples)
            batches, captions = [], []
            if pairs:
                captions += [objective.prepare(example.caption) for example in examples[:pairs]]
                batch = _pairs(config, examples[:pairs], views[:pairs], captions, objective)
                if near_misses is not None:
                    near = _near_tokens(config, examples[:pairs], objective, near_misses)
                    batch = dataclasses.replace(batch, near_misses=near)
                batches.append(batch)
            if pairs < len(examples):
                captions += [page.text for page in examples[pairs:]]
                batches.append(_documents(config, examples[pairs:], views[pairs:], objective))
            yield Loaded(
                batches=tuple(batches),
                captions=tuple(captions),
                positions=tuple(share.position for share in dealt),
                unreadable=sum(share.unreadable for share in dealt),
            )


def _pairs(
    config: TrainConfig,
    examples: Sequence[Example],
    views: Sequence[Sequence[Views]],
    captions: Sequence[str],
    objective: Objective,
) -> Batch:
    return Batch(
        pixels=torch.from_numpy(np.stack([view for (view,) in views])),
        tokens=objective.tokenize(captions, config.objective.max_text_tokens),
        image_ids=torch.tensor([seed_of(example.image_id) for example in examples]),
    )


def _documents(
    config: TrainConfig,
    pages: Sequence[Page],
    views: Sequence[Sequence[Views]],
    objective: Objective,
) -> Documents:
    side, most = config.objective.image_size, max(map(len, views))
    pixels = torch.zeros(len(pages), most, side, side, 3, dtype=torch.uint8)
    for images, own in zip(pixels, views, strict=True):
        images[: len(own)] = torch.from_numpy(np.stack(own))
    _, longest = config.objective.document_settings()
    return Documents(
        pixels=pixels,
        tokens=objective.tokenize_documents([page.text for page in pages], longest),
        image_ids=torch.tensor([seed_of(page.images[0][1]) for page in pages]),
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


def _shares(
    coming: _Ahead, stream: Stream[Any], position: Position, number: int
) -> Iterator[Share]:
    """Yield `number` readable examples at a time; the incomplete rest of an epoch is left out."""
    epoch = full_epoch = position.epoch
    examples: list[Any] = []
    views: list[list[Views]] = []
    unreadable = 0
    while True:
        wanted = coming.take(number - len(views))
        position = wanted[-1][1]
        if position.epoch != epoch:
            epoch, examples, views = position.epoch, [], []
            wanted = [one for one in wanted if one[0].epoch == epoch]
        if epoch > full_epoch + stream.patience:
            raise ValueError(
                f"train.{stream.field} needs {number} {stream.noun} of stream {stream.stream} of "
                f"{stream.num_streams}, but an epoch has fewer readable ones: use a smaller one"
            )
        for example, _, ready in wanted:
            found = ready()
            readable = [view for view in found if view is not None]
            unreadable += len(found) - len(readable)
            if (kept := example.with_readable([view is not None for view in found])) is not None:
                examples.append(kept)
                views.append(readable)
        if len(views) == number:
            yield Share(examples, views, position, unreadable)
            full_epoch, examples, views, unreadable = epoch, [], [], 0


def near_misses_of(config: TrainConfig, pairs: Stream[Any]) -> NearMisses | None:
    """The maker of near misses; None if the objective uses none.

    Raises:
        ValueError: The tagger is missing, or the data have no pairs.
    """
    number, tagger, weights = config.objective.near_miss_settings()
    if not number:
        return None
    if not isinstance(pairs, Pairs):
        raise ValueError(f"train.near_misses are made of pairs, but the data are {pairs.kind}")
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
