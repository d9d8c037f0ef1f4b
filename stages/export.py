"""Export: joins the verdicts, drops rejected rows, and makes the curated pairs."""

from __future__ import annotations

import hashlib
import io
import logging
import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from models.image.decode import ImageError, open_rgb
from models.random import hash_of
from stages.base import StageConfig
from stages.documents import DocumentsConfig
from stages.formats import FORMATS, SPLITS, TRAIN, VALIDATION, Choice, Format, Shard
from stages.redaction import redacted
from stages.schema import DRAWN_PAIRS, PAIRS, uid_of, web_captions
from stages.sources import Notices, Sample, samples

__all__ = ["OTHER", "ExportConfig", "ExportStage"]

logger = logging.getLogger(__name__)

OTHER = "other"
"""The hub's name for a licence that it does not know; the card says more."""
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class ExportConfig(StageConfig):
    """Which pairs to export, and how.

    Attributes:
        human: Human-annotated pairs, added unfiltered as in BLIP (arXiv 2201.12086, section 3.3).
            They may have any format that `download.source` reads and whose images need no download,
            such as JSON Lines of `image` (a path relative to the file) and `caption` or
            `captions`. Images without a caption are left out.
        web: Whether to export web captions.
        synthetic: Whether to export synthetic captions, including fused ones.
        filtered: Whether to export only captions that the filter keeps. Otherwise all captions of
            the rows that reached the filter are exported, as in the rows without F of the paper's
            table 1.
        format: Format of the files: parquet; webdataset, tars in img2dataset's layout; energon,
            those with the index of Megatron energon; mds, shards of MosaicML's streaming; llava,
            conversations; blip, a JSON list; imagefolder, images with a metadata.jsonl; sidecars,
            images with a .txt beside each; urls, Parquet without the images.
        captions: Which caption stands where the format has room for one an image (webdataset,
            energon, mds, imagefolder, sidecars): first, the web caption if it was kept; longest;
            best, the one with the highest ITM score; random, by the seed; all, a line each.
        validation: Share of images in the validation split. The split depends on the seed and the
            SHA-256 of the downloaded image, so that all captions and copies of an image are in one
            split.
        shard_size: Maximum images per shard. The shards of a split are of equal size, give or take
            one image; only the last shard of human pairs may be smaller.
        embeddings: Whether to write the embeddings of the stage embed too, in embeddings/: those of
            images and of web captions as .npy, and Parquet with the uid of each row, as
            clip-retrieval has them.
        documents: How to judge and cut interleaved documents of the sources; null exports none.
        license: Licence of the data set, as the hub names it, such as cc-by-4.0, for the card and
            the Croissant metadata. It is yours to grant for the selection and for captions that
            were written for it, not for images and texts of others.
        seed: Seed of the split, and of the instructions of the format llava.
    """

    human: tuple[str, ...] = ()
    web: bool = True
    synthetic: bool = True
    filtered: bool = True
    format: Literal[
        "parquet",
        "webdataset",
        "energon",
        "mds",
        "llava",
        "blip",
        "imagefolder",
        "sidecars",
        "urls",
    ] = "parquet"
    captions: Choice = "first"
    validation: float = 0.0
    shard_size: int = 1000
    embeddings: bool = False
    documents: DocumentsConfig | None = None
    license: str = OTHER
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.web or self.synthetic or self.human):
            raise ValueError(
                "export: web, synthetic and human are all off, so nothing would be exported; turn "
                "one of them on"
            )
        if not 0 <= self.validation < 1:
            raise ValueError(f"export.validation must be from 0 to below 1, got {self.validation}")
        if self.shard_size < 1:
            raise ValueError(f"export.shard_size must be at least 1, got {self.shard_size}")
        if self.captions != "first" and not FORMATS[self.format].has_choice:
            raise ValueError(
                f"export.captions: {self.format} holds every caption of an image, so none is "
                "chosen; leave captions at first"
            )
        if not LICENSE.fullmatch(self.license):
            raise ValueError(
                f"export.license must be a licence as the hub names it, such as cc-by-4.0, mit or "
                f"{OTHER}, got {self.license!r}"
            )
        if self.format == "urls" and self.documents is not None:
            raise ValueError(
                "export.format: urls writes no images, but documents need theirs; set "
                "export.documents to null"
            )

    def settings(self) -> dict[str, Any]:
        """Return every field; three only where they are set, as before they existed."""
        fields = super().settings()
        if self.captions == "first":
            del fields["captions"]
        if not self.embeddings:
            del fields["embeddings"]
        if self.license == OTHER:
            del fields["license"]
        return fields

    def check(self, columns: pa.Schema) -> None:
        """Check that there are embeddings if they are to be written."""
        if self.embeddings and "image_embedding" not in columns.names:
            raise ValueError("export.embeddings needs the stage embed; add it to stages")


class ExportStage:
    """Makes the pairs of kept rows.

    An image gives a pair for each of its captions that the filter keeps. Its captions are its web
    caption, those that dedup took over from its copies, and its synthetic captions. Without a
    filter all of them are kept.
    """

    name = "export"
    reads = ("image", "caption", "width", "height", "url", "source", "sha256")
    uses = (
        "text",
        "further_captions",
        "synthetic",
        "synthetic_names",
        "synthetic_fused",
        "itm_web",
        "itm_further",
        "itm_synthetic",
        "reviews",
        "draws",
    )

    def __init__(self, config: ExportConfig, *, is_drawn: bool = False) -> None:
        self.config = config
        self.is_drawn = is_drawn
        """Whether rows were drawn with repetition; pairs then have a column `draws`."""
        self.notices = Notices()
        """Warnings of the readers of human pairs."""

    @property
    def schema(self) -> pa.Schema:
        """The schema of the pairs."""
        return DRAWN_PAIRS if self.is_drawn else PAIRS

    @property
    def format(self) -> Format:
        """The file format of the export."""
        config = self.config
        return FORMATS[config.format](
            shard_size=config.shard_size,
            is_split=config.validation > 0,
            seed=config.seed,
            captions=config.captions,
        )

    def pairs(self, rows: pa.Table, keeps: pa.Table | None) -> pa.Table:
        """Return the pairs of kept rows, with secrets in URLs hidden, since exports are shared.

        Args:
            rows: n rows with uid, `reads`, the existing columns of `uses` and, where the filter
                judged sentences, the columns of `with_kept_sentences`.
            keeps: The filter's keep_web (bool), keep_further and keep_synthetic (list<bool>) of the
                same rows; None keeps every caption.

        Returns:
            A table of `schema`. The pairs of one image are adjacent, the web caption first.
        """
        parts = self._texts(rows, keeps)
        if not parts:
            return self.schema.empty_table()
        index = np.concatenate([part.rows for part in parts])
        order: Any = np.argsort(index, kind="stable")
        taken = rows.take(pa.array(index[order]))
        images: Any = _column(taken, "image")
        columns: dict[str, Any] = {
            "uid": taken["uid"],
            "image": pa.StructArray.from_arrays(
                [images, pa.nulls(len(images), pa.string())], names=["bytes", "path"]
            ),
            "caption": pa.concat_arrays([part.captions for part in parts]).take(order),
            "caption_full": pa.concat_arrays([part.full for part in parts]).take(order),
            "caption_source": pa.concat_arrays([part.sources for part in parts]).take(order),
            "caption_name": pa.concat_arrays([part.names for part in parts]).take(order),
            "itm_score": pa.concat_arrays([part.scores for part in parts]).take(order),
            "url": pa.array(
                [url and redacted(url) for url in taken["url"].to_pylist()], pa.string()
            ),
            **{name: taken[name] for name in ("width", "height", "source", "sha256")},
        }
        if self.is_drawn:
            # A row that a person has put back was not drawn.
            columns["draws"] = pc.max_element_wise(taken["draws"], pa.scalar(1, pa.int32()))
        return pa.table(columns, schema=self.schema)

    def images(self, rows: pa.Table, keeps: pa.Table | None) -> dict[str, int]:
        """Count the images of each split that have a pair in `pairs`; needs no column `image`."""
        has_pair = self.has_pair(rows, keeps)
        validation = self._is_validation(rows)
        return {
            TRAIN: int((has_pair & ~validation).sum()),
            VALIDATION: int((has_pair & validation).sum()),
        }

    def has_pair(self, rows: pa.Table, keeps: pa.Table | None) -> npt.NDArray[np.bool_]:
        """(n,) which rows have a pair in `pairs`; needs no column `image`."""
        found = np.zeros(rows.num_rows, bool)
        for part in self._texts(rows, keeps):
            found[part.rows] = True
        return found

    def slice(self, pairs: pa.Table, split: str, start: int, stop: int) -> pa.Table:
        """Return the pairs of the images from `start` to before `stop` of a split in a table."""
        chosen = pairs.filter(pa.array(self._is_validation(pairs) == (split == VALIDATION)))
        uids: Any = np.asarray(chosen["uid"])
        images = np.cumsum(np.concatenate([np.zeros(1, bool), uids[1:] != uids[:-1]])[: len(uids)])
        return chosen.filter(pa.array((images >= start) & (images < stop)))

    def human_pairs(self) -> Iterator[tuple[Shard, pa.Table]]:
        """Yield the human pairs, unfiltered, in shards of `shard_size` images of one split.

        Raises:
            ValueError: A line or an image cannot be read; the message has the file, the line and
                the fix.
        """
        waiting: dict[str, list[list[dict[str, Any]]]] = {split: [] for split in SPLITS}
        numbers: Counter[str] = Counter()

        def shard(split: str) -> tuple[Shard, pa.Table]:
            rows = [row for image in waiting[split] for row in image]
            waiting[split].clear()
            numbers[split] += 1
            number = numbers[split] - 1
            identifier = Shard(split=split, number=number, is_human=True)
            return identifier, pa.Table.from_pylist(rows, schema=self.schema)

        for rows in self._human_images():
            split = self._split(rows[0]["sha256"])
            waiting[split].append(rows)
            if len(waiting[split]) == self.config.shard_size:
                yield shard(split)
        for split in SPLITS:
            if waiting[split]:
                yield shard(split)

    def _human_images(self) -> Iterator[list[dict[str, Any]]]:
        """Yield the pairs of each human-annotated image, gathered from all its lines."""
        seen: dict[str, str] = {}
        for path in self.config.human:
            source = posixpath.basename(path.rstrip("/")).split(".")[0]
            for sample in samples(path, name=source, of="export.human", notices=self.notices):
                if not sample.captions:
                    continue
                rows = _human_rows(path, source, sample)
                uid = rows[0]["uid"]
                if seen.setdefault(uid, path) != path:
                    raise ValueError(
                        f"export.human: {path}:{sample.number}: {seen[uid]} also has an image "
                        f"{sample.name!r}, and files with the same name count as one source; "
                        "rename one of the two files"
                    )
                yield rows
        self.notices.warn()

    def _is_validation(self, rows: pa.Table) -> npt.NDArray[np.bool_]:
        """Return whether each of n rows with sha256 and uid is in the validation split, (n,)."""
        if not self.config.validation:
            return np.zeros(rows.num_rows, bool)
        keys: Any = pc.coalesce(rows["sha256"], rows["uid"]).to_pylist()
        return np.array([self._split(key) == VALIDATION for key in keys], bool)

    def _split(self, key: str) -> str:
        share = hash_of(f"{self.config.seed} validation {key}") / 2**64
        return VALIDATION if share < self.config.validation else TRAIN

    def _texts(self, rows: pa.Table, keeps: pa.Table | None) -> list[_Texts]:
        captions: Any = web_captions(rows).combine_chunks()
        parts: list[_Texts] = []
        if self.config.web:
            keep: Any = captions.is_valid()
            if keeps is not None:
                keep = pc.and_(keep, _column(keeps, "keep_web").fill_null(False))
            web = pa.array(["web"] * len(rows), pa.string())
            scores = {name: _optional(rows, f"{name}_web") for name in BY_FILTER}
            parts.append(_Texts.choose(np.arange(len(rows)), captions, web, keep, **scores))
            parts += _lists("web", "further", "further_captions", rows, keeps)
        if self.config.synthetic:
            parts += _lists("synthetic", "synthetic", "synthetic", rows, keeps)
        return parts


BY_FILTER = ("itm", "kept_text", "kept_itm")
"""The filter's columns that a pair takes."""


@dataclass(frozen=True)
class _Texts:
    """The m exported captions of a column.

    Attributes:
        rows: (m,) the rows that they belong to.
        captions: The captions.
        full: The captions before sentences were dropped, null where none was.
        sources: The source of each.
        names: The name of each, null if it has none.
        scores: The ITM score of each, null if it has none.
    """

    rows: npt.NDArray[np.int64]
    captions: Any
    full: Any
    sources: Any
    names: Any
    scores: Any

    @classmethod
    def choose(
        cls,
        rows: Any,
        captions: Any,
        sources: Any,
        keep: Any,
        *,
        names: Any = None,
        itm: Any = None,
        kept_text: Any = None,
        kept_itm: Any = None,
    ) -> _Texts:
        """Select the captions for which `keep` is true; names and scores may be None."""
        captions = captions.filter(keep)

        def chosen(values: Any, type: Any) -> Any:
            return pa.nulls(len(captions), type) if values is None else values.filter(keep)

        left = chosen(kept_text, pa.string())
        return cls(
            rows=np.asarray(rows, np.int64)[keep.to_numpy(zero_copy_only=False)],
            captions=pc.coalesce(left, captions),
            full=pc.if_else(left.is_valid(), captions, pa.scalar(None, pa.string())),
            sources=sources.filter(keep),
            names=chosen(names, pa.string()),
            scores=pc.coalesce(chosen(kept_itm, pa.float32()), chosen(itm, pa.float32())),
        )


def _lists(
    source: str, kind: str, column: str, rows: pa.Table, keeps: pa.Table | None
) -> list[_Texts]:
    """Return the exported captions of a column of lists."""
    if column not in rows.column_names:
        return []
    lists = _column(rows, column)
    texts = lists.flatten()
    kept: Any = pc.greater(pc.utf8_length(texts), pa.scalar(0, pa.int32()))
    if keeps is not None:
        kept = pc.and_(kept, _column(keeps, f"keep_{kind}").flatten())
    sources: Any = pa.array([source] * len(texts), pa.string())
    names = None
    if column == "synthetic" and "synthetic_fused" in rows.column_names:
        fused = _column(rows, "synthetic_fused").flatten()
        if len(fused) == len(texts):  # null lists: the captions have no names
            sources = pc.if_else(fused, "fused", sources)
            names = _column(rows, "synthetic_names").flatten()
    found = {name: _optional(rows, f"{name}_{kind}") for name in BY_FILTER}
    scores = {name: None if values is None else values.flatten() for name, values in found.items()}
    parents = np.asarray(pc.list_parent_indices(lists))
    return [_Texts.choose(parents, texts, sources, kept, names=names, **scores)]


def _optional(table: pa.Table, name: str) -> Any:
    return _column(table, name) if name in table.column_names else None


def _column(table: pa.Table, name: str) -> Any:
    return table[name].combine_chunks()


def _human_rows(path: str, source: str, sample: Sample) -> list[dict[str, Any]]:
    try:
        content = sample.read()
        image = open_rgb(content)
    except (OSError, ImageError) as error:
        raise ValueError(
            f"export.human: {path}:{sample.number}: cannot read image {sample.name} ({error}); "
            "`image` must be a path relative to the list"
        ) from error
    uid = uid_of(sample.name, None)  # shared by all captions of the image
    return [
        {
            "uid": uid,
            "image": {"bytes": _plain(content, image), "path": None},
            "caption": caption,
            "caption_full": None,
            "caption_source": "human",
            "itm_score": None,
            "width": image.width,
            "height": image.height,
            "url": None,
            "source": source,
            "sha256": hashlib.sha256(content).hexdigest(),
            "caption_name": None,
            "draws": 1,
        }
        for caption in sample.captions
    ]


def _plain(content: bytes, image: Image.Image) -> bytes:
    """Return the bytes unchanged if they are an RGB JPEG without EXIF, else a new JPEG."""
    with Image.open(io.BytesIO(content)) as opened:
        if opened.format == "JPEG" and opened.mode == "RGB" and not opened.getexif():
            return content
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
