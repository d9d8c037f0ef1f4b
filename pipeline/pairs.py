"""Training pairs out of Parquet and JSON lines, in a seeded order that can be taken up again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import fsspec
import pyarrow.parquet as pq

__all__ = ["Example", "Pairs", "Position", "pre_caption", "read_lines", "seed_of"]

LINES_A_UNIT = 1000
ROWS_A_BLOCK = 10_000


def seed_of(*parts: object) -> int:
    """63 bits from a seed and what it is for, the same on every machine."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def pre_caption(caption: str, max_words: int = 30) -> str:
    """A caption as BLIP trains on it: lower-case, some punctuation off, cut to `max_words`."""
    words = re.sub(r'[.!"()*#:;~]', " ", caption.lower()).split()
    return " ".join(words[:max_words])


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image with one of its texts.

    Attributes:
        image: Encoded.
        caption: As it was found.
        image_id: The uid of the sample, or the path of the image; equal for equal images.
        epoch: How often the pairs had been seen before.
    """

    image: bytes
    caption: str
    image_id: str
    epoch: int


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a rank stands: `offset` examples into a block of an epoch have been given."""

    epoch: int = 0
    block: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Sample:
    """An image, encoded or by its path, and all the texts it has in one unit."""

    image_id: str
    captions: tuple[str, ...]
    image: bytes | str

    def read(self) -> bytes:
        """The encoded image.

        Raises:
            FileNotFoundError: The path that a JSON-lines file names is not there.
        """
        if isinstance(self.image, bytes):
            return self.image
        with fsspec.open(self.image, "rb") as file:
            encoded: bytes = file.read()
        return encoded


class Unit(Protocol):
    """What is read at once: a row group of a Parquet file, or some lines of a JSON-lines file."""

    num_images: int

    def load(self) -> list[Sample]:
        """The samples that have an image and a text, in file order."""
        ...


class RowGroup:
    """A row group with `image`, `caption` and, to join the texts of an image, `uid`."""

    def __init__(self, path: str, index: int, file: pq.ParquetFile) -> None:
        self.path = path
        self.index = index
        names = set(file.schema_arrow.names)
        if missing := {"image", "caption"} - names:
            raise ValueError(
                f"{path} has no column {' or '.join(sorted(missing))}; training reads image "
                f"(binary, or a struct with bytes), caption and, where present, uid"
            )
        self.columns = [name for name in ("uid", "caption", "image") if name in names]
        narrow = file.read_row_group(index, columns=self.columns[:-1]).to_pylist()
        self.num_images = len(
            {row.get("uid", i) for i, row in enumerate(narrow) if row["caption"] is not None}
        )

    def load(self) -> list[Sample]:
        """The samples whose image and caption are not null; rows of one uid are joined."""
        with open_parquet(self.path) as file:
            rows = file.read_row_group(self.index, columns=self.columns)
        images: dict[str, bytes] = {}
        captions: dict[str, list[str]] = {}
        for i, row in enumerate(rows.to_pylist()):
            image = row["image"]
            if isinstance(image, dict):
                image = image["bytes"]
            if image is None or row["caption"] is None:
                continue
            uid = row.get("uid") or f"{self.path}#{self.index}.{i}"
            images.setdefault(uid, image)
            captions.setdefault(uid, []).append(row["caption"])
        return [Sample(uid, tuple(captions[uid]), image) for uid, image in images.items()]


class Lines:
    """Lines `{"image": path, "caption": text}` or `{"image": path, "captions": [text, ...]}`."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples
        self.num_images = len(samples)

    def load(self) -> list[Sample]:
        """The samples of these lines."""
        return self.samples


def read_lines(path: str) -> list[Sample]:
    """The samples of a JSON-lines file; lines of one image are joined.

    Args:
        path: Image paths in it are relative to it.

    Raises:
        ValueError: A line is not an object with an image and captions.
    """
    folder = path.rpartition("/")[0] if "://" in path else str(Path(path).resolve().parent)
    captions: dict[str, list[str]] = {}
    with fsspec.open(path, "r", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            row = json.loads(line) if line.strip() else {}
            if not row:
                continue
            texts = row.get("captions", row.get("caption"))
            if not isinstance(row.get("image"), str) or texts is None:
                raise ValueError(
                    f'{path}, line {number}: expected {{"image": path, "caption": text}} or '
                    f'{{"image": path, "captions": [text, ...]}}'
                )
            texts = [texts] if isinstance(texts, str) else texts
            captions.setdefault(row["image"], []).extend(text for text in texts if text)
    return [
        Sample(f"{folder}/{image}", tuple(texts), f"{folder}/{image}")
        for image, texts in captions.items()
        if texts
    ]


def units_of(path: str) -> list[Unit]:
    """The units of a file."""
    if path.endswith((".jsonl", ".json")):
        samples = read_lines(path)
        starts = range(0, len(samples), LINES_A_UNIT)
        return [Lines(samples[start : start + LINES_A_UNIT]) for start in starts]
    with open_parquet(path) as file:
        return [RowGroup(path, index, file) for index in range(file.num_row_groups)]


@contextlib.contextmanager
def open_parquet(path: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file, local or at any fsspec URL."""
    with fsspec.open(path, "rb") as file:
        yield pq.ParquetFile(file)


class Pairs:
    """An endless, seeded stream of pairs over files, split between ranks.

    Each epoch meets every image once with one of its texts. Row groups (or runs of lines) are put
    in a random order and dealt to the ranks; images are shuffled within blocks of about
    `ROWS_A_BLOCK`, which is what is held in memory. The stream is a function of the names and
    content of the files, the seed, the rank and the number of ranks.

    Attributes:
        num_images: Images with a text, of all ranks; a pool's failed downloads included.
    """

    def __init__(
        self, paths: Sequence[str], *, seed: int = 0, rank: int = 0, num_ranks: int = 1
    ) -> None:
        self.seed = seed
        self.rank = rank
        self.num_ranks = num_ranks
        self.units = [unit for path in sorted(paths) for unit in units_of(path)]
        self.num_images = sum(unit.num_images for unit in self.units)
        if not self.num_images:
            raise ValueError(f"no pairs in {', '.join(sorted(paths)) or 'no files'}")
        if len(self.units) < num_ranks:
            raise ValueError(
                f"{len(self.units)} row groups cannot be dealt to {num_ranks} ranks; write smaller "
                f"shards or train on fewer ranks"
            )

    def examples(self, position: Position | None = None) -> Iterator[tuple[Example, Position]]:
        """Examples from a position on, each with the position behind it, without end."""
        at = position or Position()
        while True:
            blocks = self.blocks(at.epoch)
            for number in range(at.block, len(blocks)):
                samples = [sample for unit in blocks[number] for sample in unit.load()]
                order = random.Random(seed_of(self.seed, "order", at.epoch, self.rank, number))
                order.shuffle(samples)
                first = at.offset if number == at.block else 0
                for offset in range(first, len(samples)):
                    sample = samples[offset]
                    draw = seed_of(self.seed, "caption", at.epoch, sample.image_id)
                    example = Example(
                        image=sample.read(),
                        caption=sample.captions[draw % len(sample.captions)],
                        image_id=sample.image_id,
                        epoch=at.epoch,
                    )
                    yield example, Position(epoch=at.epoch, block=number, offset=offset + 1)
            at = Position(epoch=at.epoch + 1)

    def blocks(self, epoch: int) -> list[list[Unit]]:
        """This rank's units of an epoch, in the order of that epoch."""
        units = list(self.units)
        random.Random(seed_of(self.seed, "units", epoch)).shuffle(units)
        blocks: list[list[Unit]] = []
        room = 0
        for unit in units[self.rank :: self.num_ranks]:
            if not blocks or unit.num_images > room:
                blocks.append([])
                room = ROWS_A_BLOCK
            blocks[-1].append(unit)
            room -= unit.num_images
        return blocks
