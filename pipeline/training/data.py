"""Training pairs out of Parquet and JSON, in a seeded order that can be taken up again."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from models.errors import ChecksumError, DamagedError
from models.random import seed_of
from pipeline.manifest.train_config import Source
from pipeline.storage import checksum
from pipeline.storage.run import Run
from stages import sources
from stages.base import digest
from stages.formats import VALIDATION
from stages.sources import Sample, SourceConfig, samples
from stages.sources.captions import captions_of, first_nonempty
from stages.sources.columns import CAPTION_COLUMNS
from stages.sources.parquet_images import column
from stages.sources.source_files import is_local

__all__ = [
    "Example",
    "Pairs",
    "Position",
    "files_of",
    "fingerprint_of",
    "fingerprints_of",
    "is_folder",
    "read_folder",
    "read_json",
    "state_of",
]

logger = logging.getLogger(__name__)

LINES_A_UNIT = 1000
SHUFFLE_BUFFER = 10_000


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image with one of its texts.

    Attributes:
        image: Encoded; empty where the file that names it is alone.
        caption: As it was found.
        captions: All texts of the image.
        image_id: The SHA-256 of the image, so that a training does not depend on where files lie.
        epoch: How often the pairs had been seen before.
    """

    image: bytes
    caption: str
    captions: tuple[str, ...]
    image_id: str
    epoch: int


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a stream stands: `offset` examples into a block of an epoch have been given."""

    epoch: int = 0
    block: int = 0
    offset: int = 0


class Unit(Protocol):
    """What is read at once: a row group of a Parquet file, or some entries of a JSON file."""

    num_images: int

    def load(self) -> list[Sample]:
        """The samples that have an image and a text, in file order."""
        ...

    def captions(self) -> Iterator[Sequence[str]]:
        """The texts of each image that has some; images are not read."""
        ...


class RowGroup:
    """A row group with images, columns of captions and, to join the texts of an image, `uid`."""

    def __init__(self, path: str, index: int, file: pq.ParquetFile) -> None:
        self.path = path
        self.index = index
        names = file.schema_arrow.names
        image = column(file.schema_arrow) or ""
        self.image = image.split(".")[0]
        self.texts = [name for name in CAPTION_COLUMNS if name in names]
        missing = ["image"] * (not image) + ["caption"] * (not self.texts)
        if missing:
            raise ValueError(
                f"{path} has no column {' or '.join(missing)}; training reads image (binary, or a "
                f"struct with bytes), {', '.join(CAPTION_COLUMNS)} (a text or a list of them) and, "
                "where present, uid"
            )
        self.columns = [name for name in ("uid", *self.texts) if name in names]
        narrow = file.read_row_group(index, columns=self.columns).to_pylist()
        self.num_images = len(
            {row.get("uid", i) for i, row in enumerate(narrow) if self._captions(row)}
        )

    def _captions(self, row: dict[str, Any]) -> tuple[str, ...]:
        return first_nonempty(*(captions_of(row[name]) for name in self.texts)).texts

    def captions(self) -> Iterator[Sequence[str]]:
        """The texts of each uid."""
        with open_parquet(self.path) as file:
            rows = file.read_row_group(self.index, columns=self.columns).to_pylist()
        found: dict[object, list[str]] = {}
        for i, row in enumerate(rows):
            found.setdefault(row.get("uid") or i, []).extend(self._captions(row))
        yield from (texts for texts in found.values() if texts)

    def load(self) -> list[Sample]:
        """The samples whose image and text are not null; rows of one uid are joined."""
        with open_parquet(self.path) as file:
            rows = file.read_row_group(self.index, columns=[*self.columns, self.image])
        images: dict[object, bytes] = {}
        captions: dict[object, list[str]] = {}
        for i, row in enumerate(rows.to_pylist()):
            image = row[self.image]
            if isinstance(image, dict):
                image = image["bytes"]
            texts = self._captions(row)
            if image is None or not texts:
                continue
            uid = row.get("uid") or i
            images.setdefault(uid, image)
            captions.setdefault(uid, []).extend(texts)
        return [
            Sample(name=str(uid), image=image, captions=tuple(captions[uid]))
            for uid, image in images.items()
        ]


class Entries:
    """Some images of a list, a tar or a folder, by where they lie."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples
        self.num_images = len(samples)

    def load(self) -> list[Sample]:
        """The samples of these entries."""
        return self.samples

    def captions(self) -> Iterator[Sequence[str]]:
        """The texts of each sample."""
        yield from (sample.captions for sample in self.samples)


def read_json(path: str, images: str | None = None) -> list[Sample]:
    """The images of a list that have a caption or a label, each with all of them.

    Args:
        path: Whatever `download.source` reads, as JSON Lines of {"image": path, "caption": text} or
            {"image": path, "captions": [text, ...]}, with {"label": text} beside or in place of the
            texts; a JSON list of them; COCO's JSON; a tar.
        images: The folder of the images; by default that of the file.

    Raises:
        ValueError: A record cannot be read; it names the file and the line.
    """
    found = samples(path, images)
    return [sample for sample in found if sample.captions or sample.label is not None]


def read_folder(folder: str) -> list[Sample]:
    """The images of a folder that have a caption, or else each with its folder's name as label."""
    found = samples(folder)
    if any(sample.captions for sample in found):
        return [sample for sample in found if sample.captions]
    inside = [sample for sample in found if sample.name.count("/") > 1]
    return [dataclasses.replace(sample, label=sample.name.split("/")[-2]) for sample in inside]


def state_of(test: str) -> str:
    """What changes with held-out images: a file's SHA-256, or what a folder's listing tells."""
    if not is_folder(test):
        return fingerprint_of(test)
    found = sources.identity(SourceConfig(source=test))
    return digest([entry["version"] for entries in found.values() for entry in entries])


def is_folder(path: str) -> bool:
    """Whether a path or URL is a folder."""
    fs, found = fsspec.core.url_to_fs(path, use_listings_cache=False)
    return bool(fs.isdir(found))


def files_of(source: Source) -> list[str]:
    """The files of a source: those of a folder or a glob by name, or the one that it is.

    Those of a folder that an export set apart for validation are left out. A folder without Parquet
    files is one of images, and stands for itself.

    Raises:
        ValueError: There is none.
    """
    fs, path = fsspec.core.url_to_fs(source.path, use_listings_cache=False)
    if fs.isfile(path):
        found = [path]
    elif "*" in path or "?" in path:
        found = sorted(fs.glob(path))
    else:
        found = [
            f"{path.rstrip('/')}/{name}.parquet"
            for name in Run(source.path).shards()
            if not name.startswith(f"{VALIDATION}-")
        ]
        if not found and fs.isdir(path) and fs.ls(path):
            found = [path.rstrip("/")]
    if not found:
        raise ValueError(f"train.data: no file {source.path}")
    return found if is_local(fs) else [fs.unstrip_protocol(file) for file in found]


def fingerprint_of(file: str) -> str:
    """The SHA-256 of a file, out of the manifest of the export that it is part of where it is."""
    return fingerprints_of([file])[0]


def fingerprints_of(files: Sequence[str]) -> list[str]:
    """The SHA-256 of each file, as `fingerprint_of`; a manifest is read once for all its files."""
    exports: dict[tuple[Any, str], dict[str, str]] = {}
    found = []
    for file in files:
        fs, path = fsspec.core.url_to_fs(file, use_listings_cache=False)
        folder, _, name = path.rpartition("/")
        if name.endswith(".parquet") and (fs, folder) not in exports:
            exports[fs, folder] = _exported(fs, folder)
        sha256 = exports.get((fs, folder), {}).get(name)
        if sha256 is None and fs.isdir(path):
            sha256 = sources.content_digest(SourceConfig(source=file))
        if sha256 is None:
            info = fs.info(path)
            sha256 = _sha256(file, info["size"], _modified(info))
        found.append(sha256)
    return found


def _exported(fs: Any, folder: str) -> dict[str, str]:
    """The SHA-256 of each file that the manifest of an export lists; none of another's manifest."""
    path = f"{folder}/manifest.json"
    try:
        listed = checksum.open_json(fs.cat_file(path))["files"] if fs.exists(path) else []
        return {entry["name"]: entry["sha256"] for entry in listed}
    except (ValueError, KeyError):
        return {}


def _modified(info: Mapping[str, Any]) -> str:
    return str(info.get("mtime", info.get("LastModified", "")))


@functools.lru_cache(maxsize=4096)
def _sha256(file: str, size: int, modified: str) -> str:
    with fsspec.open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def units_of(path: str, images: str | None = None) -> list[Unit]:
    """The units of a file."""
    if not path.endswith((".parquet", ".pq")):
        found = [sample for sample in samples(path, images) if sample.captions]
        # Small files too can be dealt to several streams.
        size = max(1, min(LINES_A_UNIT, len(found) // 64))
        return [Entries(found[at : at + size]) for at in range(0, len(found), size)]
    with open_parquet(path) as file:
        return [RowGroup(path, index, file) for index in range(file.num_row_groups)]


@contextlib.contextmanager
def open_parquet(path: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file, local or at any fsspec URL; one of a run is checked as it is read.

    Raises:
        ValueError: It is no Parquet file.
        DamagedError: It is a file of a run, and not as it was written.
    """
    with fsspec.open(path, "rb") as file:
        if not checksum.has_checksum(file):
            file.seek(0)
            try:
                opened = pq.ParquetFile(file)
            except pa.ArrowInvalid as error:
                raise ValueError(f"{path}: not a Parquet file: {error}") from error
            yield opened
            return
        try:
            yield checksum.open_parquet(file)
        except ChecksumError as error:
            raise DamagedError(
                f"{path}: {error}. `capfilt verify RUN` names every damaged file, and what to do"
            ) from error


@dataclass(frozen=True)
class Placed:
    """A unit within its source: its first image is number `first` of `size`."""

    unit: Unit
    weight: float
    first: int
    size: int

    def passes(self, epoch: int) -> npt.NDArray[np.int64]:
        """How often an epoch meets each image of the unit.

        Image k of n has been met floor(epoch * weight + k / n) times before, so that all images
        are met equally often, give or take one, whatever the weight.
        """
        share = np.arange(self.first, self.first + self.unit.num_images) / self.size
        upto = np.floor((epoch + 1) * self.weight + share)
        return (upto - np.floor(epoch * self.weight + share)).astype(np.int64)


class Pairs:
    """An endless, seeded stream of pairs over files; one of several that share the data.

    Each epoch meets every image as often as the weight of its source says, each time with one of
    its texts. Row groups (or runs of JSON entries) are put in a random order and dealt to the
    streams; images are shuffled within blocks of about `shuffle_buffer`, which is what is held in
    memory. The stream is a function of the content of the files, their order, the seed, the number
    of the stream and how many there are, and not of where the files lie.

    Attributes:
        num_images: Images with a text, of all streams; a pool's failed downloads included.
        images_an_epoch: The same, times the weights.
        files: Of each source, its files.
    """

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
            units = [unit for file in files for unit in units_of(file, source.images)]
            self.sizes[source] = size = sum(unit.num_images for unit in units)
            first = 0
            for unit in units:
                self.units.append(Placed(unit, source.weight, first, size))
                first += unit.num_images
        self.num_images = sum(self.sizes.values())
        self.images_an_epoch = int(sum(s.weight * size for s, size in self.sizes.items()))
        if not self.num_images:
            named = ", ".join(source.path for source in sources)
            raise ValueError(f"no pairs in {named or 'no files'}")
        if len(self.units) < num_streams:
            raise ValueError(
                f"{len(self.units)} row groups cannot be dealt to {num_streams} streams; write "
                f"smaller shards or train with fewer train.workers"
            )
        # Within so many epochs every source is met.
        self.patience = math.ceil(1 / min(source.weight for source in sources))

    def of_stream(self, stream: int) -> Pairs:
        """Another stream of the same data."""
        other = object.__new__(Pairs)
        other.__dict__ |= self.__dict__ | {"stream": stream}
        return other

    def captions(self) -> Iterator[Sequence[str]]:
        """The texts of each image, of all streams, in a seeded order of row groups."""
        units = [placed.unit for placed in self.units]
        random.Random(seed_of(self.seed, "texts")).shuffle(units)
        for unit in units:
            yield from unit.captions()

    def examples(self, position: Position | None = None) -> Iterator[tuple[Example, Position]]:
        """Examples from a position on, each with the position behind it, without end.

        Raises:
            ValueError: No image of the stream's is left to give.
        """
        at = position or Position()
        barren = 0
        while True:
            blocks = self.blocks(at.epoch)
            barren = 0 if blocks else barren + 1
            if barren > 8 * self.patience:
                raise ValueError(
                    f"train.data: nothing is dealt to stream {self.stream} of {self.num_streams}; "
                    f"write smaller shards or train with fewer train.workers"
                )
            for number in range(at.block, len(blocks)):
                samples = _load(blocks[number])
                order = random.Random(seed_of(self.seed, "order", at.epoch, self.stream, number))
                order.shuffle(samples)
                first = at.offset if number == at.block else 0
                for offset in range(first, len(samples)):
                    yield (
                        self._example(samples[offset], at.epoch),
                        Position(epoch=at.epoch, block=number, offset=offset + 1),
                    )
            at = Position(epoch=at.epoch + 1)

    def _example(self, sample: Sample, epoch: int) -> Example:
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

    def blocks(self, epoch: int) -> list[list[tuple[Unit, npt.NDArray[np.bool_]]]]:
        """This stream's units of an epoch in its order, each with the images that are met."""
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


def _load(block: list[tuple[Unit, npt.NDArray[np.bool_]]]) -> list[Sample]:
    """The samples of a block; a unit that is met twice is read once."""
    loaded: dict[int, list[Sample]] = {}
    samples = []
    for unit, is_met in block:
        if id(unit) not in loaded:
            loaded[id(unit)] = unit.load()
        # A pool's failed downloads have no sample: there may be fewer than were counted.
        samples += [s for s, met in zip(loaded[id(unit)], is_met, strict=False) if met]
    return samples
