"""The units in which training reads its data: row groups of Parquet files, and parts of lists."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.errors import ChecksumError, DamagedError
from pipeline.storage import checksum
from stages.sources import Sample, samples
from stages.sources.captions import captions_of, first_nonempty
from stages.sources.columns import CAPTION_COLUMNS
from stages.sources.parquet_images import column
from stages.sources.source_files import is_local

__all__ = ["RowGroup", "Unit", "units_of"]

LINES_A_UNIT = 1000

DRAWS = "draws"
"""The column of an export that says how often an image was drawn."""

MOST_DRAWS = 1_000_000

CAPTION_LENGTH = 4
"""A text of so many characters that has a letter or a digit is a caption, and not `nan`."""


class Unit(Protocol):
    """The unit of reading: a row group of a Parquet file, or some entries of a JSON file.

    Attributes:
        num_images: Images with a text, each as often as it was drawn.
    """

    num_images: int

    def load(self) -> Sequence[Any]:
        """The samples that have an image and a text, in file order, each as often as drawn."""
        ...


class RowGroup:
    """A row group with columns of images and captions.

    `uid` joins rows, and `draws` says how often an image was drawn, where there are such columns.
    """

    def __init__(self, path: str, index: int, file: pq.ParquetFile) -> None:
        self.path = path
        self.index = index
        schema = file.schema_arrow
        names = schema.names
        image = column(schema) or ""
        self.image = image.split(".")[0]
        self.texts = [name for name in CAPTION_COLUMNS if name in names]
        missing = ["image"] * (not image) + ["caption"] * (not self.texts)
        if missing:
            raise ValueError(
                f"{path} has no column {' or '.join(missing)}; training reads image (binary, or a "
                f"struct with bytes), {', '.join(CAPTION_COLUMNS)} (a text or a list of texts) and "
                "optionally uid"
            )
        self.columns = [name for name in ("uid", DRAWS, *self.texts) if name in names]
        narrow = file.read_row_group(index, columns=self.columns)
        self.num_images = self._count(narrow)

    def _count(self, narrow: pa.Table) -> int:
        """The images with a caption, without a look at each row where every row surely has one."""
        if DRAWS not in self.columns and any(
            map(_all_are_captions, narrow.select(self.texts).columns)
        ):
            if "uid" not in self.columns:
                return narrow.num_rows
            if not narrow["uid"].null_count:
                return int(pc.count_distinct(narrow["uid"]).as_py())
        draws: dict[object, int] = {}
        for i, row in enumerate(narrow.to_pylist()):
            if self._captions(row):
                draws.setdefault(row.get("uid") or i, self._draws(row))
        return sum(draws.values())

    def _draws(self, row: dict[str, Any]) -> int:
        """How often to pass over the image of a row: as often as it was drawn, else once."""
        draws = row.get(DRAWS, 1)
        if not isinstance(draws, int) or not 1 <= draws <= MOST_DRAWS:
            raise ValueError(
                f"{self.path}: the column {DRAWS} says how often to pass over an image, so it must "
                f"hold whole numbers from 1 to {MOST_DRAWS:,}, got {draws!r}; correct or remove it"
            )
        return draws

    def _captions(self, row: dict[str, Any]) -> tuple[str, ...]:
        return first_nonempty(*(captions_of(row[name]) for name in self.texts)).texts

    def captions(self) -> Iterator[Sequence[str]]:
        """The texts of each uid."""
        with open_parquet(self.path) as file:
            rows = file.read_row_group(self.index, columns=self.columns).to_pylist()
        texts_by_uid: dict[object, list[str]] = {}
        for i, row in enumerate(rows):
            texts_by_uid.setdefault(row.get("uid") or i, []).extend(self._captions(row))
        yield from (texts for texts in texts_by_uid.values() if texts)

    def load(self) -> list[Sample]:
        """The samples that have an image and a text; rows with the same uid are joined."""
        with open_parquet(self.path) as file:
            rows = file.read_row_group(self.index, columns=[*self.columns, self.image])
        encoded = rows[self.image]
        if pa.types.is_struct(encoded.type):
            encoded = pc.struct_field(encoded, "bytes")
        has_image = encoded.is_valid().to_pylist()
        images: dict[object, bytes] = {}
        captions: dict[object, list[str]] = {}
        draws: dict[object, int] = {}
        for i, row in enumerate(rows.select(self.columns).to_pylist()):
            texts = self._captions(row)
            if not has_image[i] or not texts:
                continue
            uid = row.get("uid") or i
            if uid not in images:  # an image is copied once, however many texts it has
                images[uid], draws[uid] = encoded[i].as_py(), self._draws(row)
            captions.setdefault(uid, []).extend(texts)
        return [
            Sample(name=str(uid), image=image, captions=tuple(captions[uid]))
            for uid, image in images.items()
            for _ in range(draws[uid])
        ]


class Entries:
    """Some samples of a list, a tar or a folder; images are read when needed."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples
        self.num_images = len(samples)

    def load(self) -> list[Sample]:
        """The samples of these entries."""
        return self.samples

    def captions(self) -> Iterator[Sequence[str]]:
        """The texts of each sample."""
        yield from (sample.captions for sample in self.samples)


def _all_are_captions(texts: pa.ChunkedArray[Any]) -> bool:
    """Whether every text of a column is surely a caption; false says nothing."""
    if texts.type not in (pa.string(), pa.large_string()) or texts.null_count or not len(texts):
        return False
    lengths = pc.utf8_length(pc.utf8_trim_whitespace(texts))
    if pc.min(lengths).as_py() < CAPTION_LENGTH:
        return False
    # The pattern of all scripts takes ten times as long.
    patterns = ("[0-9A-Za-z]", r"[\pL\pN]")
    return any(pc.all(pc.match_substring_regex(texts, one)).as_py() for one in patterns)


def units_of(
    path: str, images: str | None = None, conversations: bool = False
) -> list[RowGroup] | list[Entries]:
    """The units of a file; its conversations are read whole if asked for."""
    if not path.endswith((".parquet", ".pq")):
        listed = samples(path, images, conversations=conversations)
        captioned = [sample for sample in listed if sample.captions]
        # Small files too are divided, so that several streams get a share.
        size = max(1, min(LINES_A_UNIT, len(captioned) // 64))
        return [Entries(captioned[at : at + size]) for at in range(0, len(captioned), size)]
    with open_parquet(path) as file:
        return [RowGroup(path, index, file) for index in range(file.num_row_groups)]


@contextlib.contextmanager
def open_parquet(path: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file at a path or fsspec URL; the checksums of a run's file are checked.

    Raises:
        ValueError: The file is not a Parquet file.
        DamagedError: The file is part of a run and is not as it was written.
    """
    opener = fsspec.open(path, "rb")
    far = not is_local(opener.fs)  # reading ahead saves requests, and on a disk it costs time
    with opener as file:
        if not checksum.has_checksum(file):
            file.seek(0)
            try:
                opened = pq.ParquetFile(file, pre_buffer=far)
            except pa.ArrowInvalid as error:
                raise ValueError(f"{path}: not a Parquet file: {error}") from error
            yield opened
            return
        try:
            yield checksum.open_parquet(file, pre_buffer=far)
        except ChecksumError as error:
            raise DamagedError(
                f"{path}: {error}. `capfilt verify RUN` names every damaged file and the fix"
            ) from error
