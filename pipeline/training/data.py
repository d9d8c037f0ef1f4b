"""Reads training pairs from Parquet and JSON in a seeded order, and resumes at a position.

The order is that of `Stream`, which `pipeline.training.interleaved` has of documents.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import logging
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar

import fsspec
import numpy as np
import numpy.typing as npt

from models.random import seed_of
from pipeline.manifest.train_config import DOCUMENTS, Source
from pipeline.storage import checksum
from pipeline.storage.run import Run
from pipeline.training.units import Unit, units_of
from stages import sources
from stages.base import digest
from stages.formats import VALIDATION
from stages.sources import Sample, SourceConfig, samples
from stages.sources.source_files import is_local

__all__ = [
    "Example",
    "Pairs",
    "Position",
    "Stream",
    "files_of",
    "fingerprint_of",
    "fingerprints_of",
    "has_documents",
    "is_folder",
    "read_folder",
    "read_json",
    "state_of",
]

logger = logging.getLogger(__name__)

SHUFFLE_BUFFER = 10_000

READERS = 16
"""Files that are opened at once when a training starts."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image with one of its texts.

    Attributes:
        image: The encoded image; empty if its file is missing.
        caption: The text, as the data have it.
        captions: All texts of the image.
        image_id: The SHA-256 of the image; it does not depend on the paths of files.
        epoch: The number of earlier epochs.
    """

    image: bytes
    caption: str
    captions: tuple[str, ...]
    image_id: str
    epoch: int

    @property
    def images(self) -> tuple[tuple[bytes, str], ...]:
        """The encoded image and its `image_id`."""
        return ((self.image, self.image_id),)

    def with_readable(self, is_readable: Sequence[bool]) -> Example | None:
        """The same pair, or None if its image cannot be opened."""
        return self if all(is_readable) else None


E = TypeVar("E")


@dataclass(frozen=True, kw_only=True)
class Position:
    """A position in a stream: the first `offset` examples of a block of an epoch are done."""

    epoch: int = 0
    block: int = 0
    offset: int = 0


def read_json(path: str, images: str | None = None) -> list[Sample]:
    """Read the images of a list that have captions or a label.

    Args:
        path: Any source that `download.source` reads: JSON Lines of {"image": path, "caption":
            text} or {"image": path, "captions": [text, ...]}, with {"label": text} beside or
            instead of the texts; a JSON list of the same; COCO's JSON; a tar.
        images: The folder of the images; the folder of the file by default.

    Raises:
        ValueError: A record cannot be read; the message names the file and the line.
    """
    listed = samples(path, images)
    return [sample for sample in listed if sample.captions or sample.label is not None]


def read_folder(folder: str) -> list[Sample]:
    """Read the images of a folder that have captions; without any, images in labelled folders."""
    listed = samples(folder)
    if any(sample.captions for sample in listed):
        return [sample for sample in listed if sample.captions]
    inside = [sample for sample in listed if sample.name.count("/") > 1]
    return [dataclasses.replace(sample, label=sample.name.split("/")[-2]) for sample in inside]


def state_of(test: str) -> str:
    """The version of held-out images: the SHA-256 of a file, or a digest of a folder's listing."""
    if not is_folder(test):
        return fingerprint_of(test)
    identity = sources.identity(SourceConfig(source=test))
    return digest([entry["version"] for entries in identity.values() for entry in entries])


def is_folder(path: str) -> bool:
    """Whether a path or URL is a folder."""
    fs, inner = fsspec.core.url_to_fs(path, use_listings_cache=False)
    return bool(fs.isdir(inner))


def files_of(source: Source) -> list[str]:
    """The files of a source, sorted by name: one file, or those of a folder or a glob.

    Files that an export set apart for validation are left out. A folder without Parquet files is a
    folder of images and is returned itself. Of exported documents the files of texts come first,
    then those of images.

    Raises:
        ValueError: There is no file.
    """
    fs, path = fsspec.core.url_to_fs(source.path, use_listings_cache=False)
    if fs.isfile(path):
        files = [path]
    elif "*" in path or "?" in path:
        files = sorted(fs.glob(path))
    else:
        names = _documents(Run(source.path).names()) or [
            f"{name}.parquet"
            for name in Run(source.path).shards()
            if not name.startswith(f"{VALIDATION}-")
        ]
        files = [f"{path.rstrip('/')}/{name}" for name in names]
        if not files and fs.isdir(path) and fs.ls(path):
            files = [path.rstrip("/")]
    if not files:
        raise ValueError(f"train.data: no file {source.path}")
    return files if is_local(fs) else [fs.unstrip_protocol(file) for file in files]


def has_documents(files: Sequence[str]) -> bool:
    """Whether the files of a source are those of interleaved documents."""
    return bool(_documents([file.rpartition("/")[2] for file in files]))


def _documents(names: Sequence[str]) -> list[str]:
    """Those of some names that are of exported documents: first of their texts, then of images."""
    texts = [name for name in names if name.endswith(".jsonl")]
    images = [f"images-{name.removesuffix('.jsonl')}.parquet" for name in texts]
    return [*texts, *images] if texts and set(images) <= set(names) else []


def fingerprint_of(file: str) -> str:
    """The SHA-256 of a file, from the manifest of its export if it is part of one."""
    return fingerprints_of([file])[0]


def fingerprints_of(files: Sequence[str]) -> list[str]:
    """The SHA-256 of each file, as in `fingerprint_of`; each manifest is read once."""
    exports: dict[tuple[Any, str], dict[str, str]] = {}
    fingerprints = []
    for file in files:
        fs, path = fsspec.core.url_to_fs(file, use_listings_cache=False)
        folder, _, name = path.rpartition("/")
        if name.endswith((".parquet", ".jsonl")) and (fs, folder) not in exports:
            exports[fs, folder] = _exported(fs, folder)
        sha256 = exports.get((fs, folder), {}).get(name)
        if sha256 is None and fs.isdir(path):
            sha256 = sources.content_digest(SourceConfig(source=file))
        if sha256 is None:
            info = fs.info(path)
            sha256 = _sha256(file, info["size"], _modified(info))
        fingerprints.append(sha256)
    return fingerprints


def _exported(fs: Any, folder: str) -> dict[str, str]:
    """The SHA-256 of each file that the manifest.json of an export lists; empty for any other."""
    above, _, own = folder.rpartition("/")
    has_documents = own == DOCUMENTS
    path = f"{above if has_documents else folder}/manifest.json"
    try:
        record = checksum.open_json(fs.cat_file(path)) if fs.exists(path) else {"files": []}
        if has_documents:
            return dict(record["documents"]["files"])
        return {entry["name"]: entry["sha256"] for entry in record["files"]}
    except (ValueError, KeyError, TypeError):
        return {}


def _modified(info: Mapping[str, Any]) -> str:
    return str(info.get("mtime", info.get("LastModified", "")))


@functools.lru_cache(maxsize=4096)
def _sha256(file: str, size: int, modified: str) -> str:
    with fsspec.open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class Placed:
    """A unit within its source: its first image is number `first` of `size`."""

    unit: Unit
    weight: float
    first: int
    size: int

    def passes(self, epoch: int) -> npt.NDArray[np.int64]:
        """(images,) how many times an epoch passes over each image of the unit.

        Before an epoch, image k of n was passed floor(epoch * weight + k / n) times. So the numbers
        of two images differ by at most one, for any weight.
        """
        share = np.arange(self.first, self.first + self.unit.num_images) / self.size
        upto = np.floor((epoch + 1) * self.weight + share)
        return (upto - np.floor(epoch * self.weight + share)).astype(np.int64)


class Stream(ABC, Generic[E]):
    """An endless, seeded stream of examples from files; one of several that share the data.

    Each epoch passes over every image as often as the weight of its source says. Row groups (or
    runs of JSON entries) are shuffled and distributed over the streams. Images are shuffled within
    blocks of about `shuffle_buffer`, which are held in memory. The stream depends on the content
    and the order of the files, the seed, the index of the stream and the number of streams, but not
    on the paths of the files. For a stream of documents, read documents for images.

    Attributes:
        num_images: Images with a text, of all streams, including failed downloads of a pool.
        images_an_epoch: The same number, each image multiplied by the weight of its source.
        files: The files of each source.
    """

    kind: ClassVar[str]
    """What its examples are, for messages."""

    noun: ClassVar[str]
    """What an epoch counts, for messages."""

    field: ClassVar[str]
    """The field of the objective that says how many a step has."""

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        seed: int = 0,
        stream: int = 0,
        num_streams: int = 1,
        shuffle_buffer: int = SHUFFLE_BUFFER,
    ) -> None:
        self.seed = seed
        self.stream = stream
        self.num_streams = num_streams
        self.shuffle_buffer = shuffle_buffer
        self.files = {source: files_of(source) for source in sources}
        self.sizes: dict[Source, int] = {}
        self.units: list[Placed] = []
        for source, files in self.files.items():
            # Most of the time of many small files is waiting for the storage.
            with ThreadPoolExecutor(READERS) as threads:
                read = threads.map(self.units_of, files, itertools.repeat(source))
                units = [unit for some in read for unit in some]
            self.sizes[source] = size = sum(unit.num_images for unit in units)
            first = 0
            for unit in units:
                self.units.append(Placed(unit, source.weight, first, size))
                first += unit.num_images
        self.num_images = sum(self.sizes.values())
        self.images_an_epoch = int(sum(s.weight * size for s, size in self.sizes.items()))
        if not self.num_images:
            named = ", ".join(source.path for source in sources)
            raise ValueError(f"no {self.kind} in {named or 'no files'}")
        if len(self.units) < num_streams:
            raise ValueError(
                f"{len(self.units)} row groups are too few for {num_streams} streams; write "
                f"smaller shards or train with fewer train.workers"
            )
        # Within this many epochs, every source is passed at least once.
        self.patience = math.ceil(1 / min(source.weight for source in sources))

    @abstractmethod
    def units_of(self, file: str, source: Source) -> Sequence[Unit]:
        """The units of a file of a source."""

    @abstractmethod
    def example(self, sample: Any, epoch: int) -> E:
        """A sample of a unit as it is met in an epoch."""

    def like(self, **changes: int) -> Self:
        """The same data with another stream, num_streams, shuffle_buffer or seed."""
        other = object.__new__(type(self))
        other.__dict__ |= self.__dict__ | changes
        return other

    def epochs_before(self, position: Position) -> float:
        """The number of epochs of this stream before a position."""
        sizes = [_size(block) for block in self.blocks(position.epoch)]
        done = sum(sizes[: position.block]) + position.offset
        return position.epoch + done / max(1, sum(sizes))

    def position_after(self, epochs: float) -> Position:
        """The position after a number of epochs of this stream."""
        epoch = int(epochs)
        sizes = [_size(block) for block in self.blocks(epoch)]
        done = round((epochs - epoch) * sum(sizes))
        for number, size in enumerate(sizes):
            if done < size:
                return Position(epoch=epoch, block=number, offset=done)
            done -= size
        return Position(epoch=epoch + 1)

    def described(self) -> list[dict[str, Any]]:
        """The path, kind, weight, images and sha256 of each source."""
        return [
            {
                "path": source.path,
                "kind": self.kind,
                "weight": source.weight,
                "images": self.sizes[source],
                "sha256": _together(fingerprints_of(files)),
            }
            for source, files in self.files.items()
        ]

    def examples(
        self, position: Position | None = None, *, read_ahead: bool = False
    ) -> Iterator[tuple[E, Position]]:
        """Yield examples from a position on without end, each with the position after it.

        Raises:
            ValueError: The stream has no image that can be read.
        """
        at = position or Position()
        barren = 0
        while True:
            blocks = self.blocks(at.epoch)
            barren = 0 if blocks else barren + 1
            if barren > 8 * self.patience:
                raise ValueError(
                    f"train.data: stream {self.stream} of {self.num_streams} gets no data; write "
                    f"smaller shards or train with fewer train.workers"
                )
            for number, loaded in _loaded(blocks, at.block, read_ahead):
                order = random.Random(seed_of(self.seed, "order", at.epoch, self.stream, number))
                order.shuffle(loaded)
                first = at.offset if number == at.block else 0
                for offset in range(first, len(loaded)):
                    yield (
                        self.example(loaded[offset], at.epoch),
                        Position(epoch=at.epoch, block=number, offset=offset + 1),
                    )
            at = Position(epoch=at.epoch + 1)

    def blocks(self, epoch: int) -> list[list[tuple[Unit, npt.NDArray[np.bool_]]]]:
        """The blocks of an epoch of this stream: units, each with the mask of images to use."""
        visits: list[tuple[Unit, npt.NDArray[np.bool_]]] = []
        for placed in self.units:
            passes = placed.passes(epoch)
            turns = range(passes.max(initial=0))
            visits += [(placed.unit, passes > turn) for turn in turns]
        random.Random(seed_of(self.seed, "units", epoch)).shuffle(visits)
        blocks: list[list[tuple[Unit, npt.NDArray[np.bool_]]]] = []
        room = 0
        for unit, is_met in visits[self.stream :: self.num_streams]:
            number = int(is_met.sum())
            if not blocks or number > room:
                blocks.append([])
                room = self.shuffle_buffer
            blocks[-1].append((unit, is_met))
            room -= number
        return blocks


class Pairs(Stream[Example]):
    """A stream of pairs: in each epoch an image comes with one of its texts.

    Args:
        sources: The sources.
        conversations: Whether conversations are read whole.
        settings: See `Stream`.
    """

    kind = "pairs"
    noun = "images"
    field = "batch_size"

    def __init__(
        self, sources: Sequence[Source], *, conversations: bool = False, **settings: int
    ) -> None:
        self.conversations = conversations
        super().__init__(sources, **settings)

    def units_of(self, file: str, source: Source) -> Sequence[Unit]:
        """The units of a file of a source."""
        return units_of(file, source.images, self.conversations)

    def captions(self) -> Iterator[Sequence[str]]:
        """The texts of each image of all streams, in a seeded order of row groups."""
        units: list[Any] = [placed.unit for placed in self.units]
        random.Random(seed_of(self.seed, "texts")).shuffle(units)
        for unit in units:
            yield from unit.captions()

    def example(self, sample: Sample, epoch: int) -> Example:
        """An image with one of its texts, drawn for the epoch."""
        try:
            image = sample.read()
        except FileNotFoundError:
            logger.warning("no image at %s", sample.name)
            image = b""
        identity = hashlib.sha256(image).hexdigest()
        draw = seed_of(self.seed, "caption", epoch, identity)
        return Example(
            image=image,
            caption=sample.captions[draw % len(sample.captions)],
            captions=sample.captions,
            image_id=identity,
            epoch=epoch,
        )


def _together(fingerprints: Sequence[str]) -> str:
    """The fingerprint of one file, or a digest of the fingerprints of several."""
    return fingerprints[0] if len(fingerprints) == 1 else digest(list(fingerprints))


def _size(block: list[tuple[Unit, npt.NDArray[np.bool_]]]) -> int:
    return sum(int(is_met.sum()) for _, is_met in block)


def _loaded(
    blocks: Sequence[list[tuple[Unit, npt.NDArray[np.bool_]]]], first: int, read_ahead: bool
) -> Iterator[tuple[int, list[Any]]]:
    """The samples of each block from the first on; the next is read meanwhile if asked."""
    if not read_ahead:
        yield from ((number, _load(blocks[number])) for number in range(first, len(blocks)))
        return
    with ThreadPoolExecutor(1) as thread:
        coming = [thread.submit(_load, block) for block in blocks[first : first + 1]]
        for number in range(first, len(blocks)):
            samples = coming.pop().result()
            coming = [thread.submit(_load, block) for block in blocks[number + 1 : number + 2]]
            yield number, samples


def _load(block: list[tuple[Unit, npt.NDArray[np.bool_]]]) -> list[Any]:
    """The samples of a block; a unit that occurs twice is read once."""
    loaded: dict[int, Sequence[Any]] = {}
    samples = []
    for unit, is_met in block:
        if id(unit) not in loaded:
            loaded[id(unit)] = unit.load()
        # Failed downloads of a pool have no sample, so there can be fewer samples than counted.
        samples += [s for s, met in zip(loaded[id(unit)], is_met, strict=False) if met]
    return samples
