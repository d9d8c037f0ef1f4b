"""Clean: images too small, odd or flat, and texts that are no English caption."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from models.images import ImageError, open_rgb
from models.text import LanguageDetector, measure, normalize
from stages.base import Stage, StageConfig, threshold

__all__ = ["CleanConfig", "CleanStage"]

THUMBNAIL = 64

Values = npt.NDArray[Any]

WRITES: dict[str, pa.DataType] = {
    "text": pa.string(),
    "text_characters": pa.int32(),
    "text_words": pa.int32(),
    "text_repeats": pa.int32(),
    "text_repeat_share": pa.float32(),
    "text_unique_share": pa.float32(),
    "text_letters": pa.float32(),
    "text_filename": pa.bool_(),
    "text_url": pa.bool_(),
    "text_boilerplate": pa.bool_(),
    "language": pa.string(),
    "language_score": pa.float32(),
    "image_side": pa.int32(),
    "image_aspect": pa.float32(),
    "image_single_colour": pa.float32(),
    "image_entropy": pa.float32(),
}


@dataclass(frozen=True, kw_only=True)
class CleanConfig(StageConfig):
    """What a pair must be to stay.

    The image rules are Flamingo's (arXiv:2204.14198), the counts of words Conceptual 12M's
    (arXiv:2102.08981) and that of characters DataComp's (arXiv:2304.14108). The limits that no
    paper gives were set on LAION alt-text and photographs.

    Attributes:
        languages: The wanted languages as fastText labels them; empty for any.
        min_side: The least width and height of the image as downloaded, in pixels.
        max_aspect: The most that one side may be of the other.
        max_single_colour: The largest share of an image that may have one colour.
        min_words: The least number of words.
        max_words: The largest number of words.
        min_characters: The least number of characters.
        max_repeat_share: The largest share of all words that one word may make up which is no
            function word and occurs three times or more.
        min_letters: The least share of letters among the characters.
        min_language_score: A text whose most probable language is unwanted is rejected when the
            probability of the wanted ones is lower. Captions are short, and products have foreign
            names: a much higher limit loses English.
        require_caption: Whether a pair without a web caption is rejected; otherwise no rule of
            texts applies to it, and it may still get a synthetic one.
    """

    languages: tuple[str, ...] = ("en",)
    min_side: int = threshold(64)
    max_aspect: float = threshold(3.0)
    max_single_colour: float = threshold(0.99)
    min_words: int = threshold(3)
    max_words: int = threshold(256)
    min_characters: int = threshold(6)
    max_repeat_share: float = threshold(0.3)
    min_letters: float = threshold(0.5)
    min_language_score: float = threshold(0.05)
    require_caption: bool = threshold(False)

    def __post_init__(self) -> None:
        for language in self.languages:
            if not (language.isascii() and language.isalpha() and language.islower()):
                raise ValueError(
                    f'clean.languages must hold codes such as "en" or "de", got {language!r}'
                )
        for name in ("min_side", "min_words", "min_characters"):
            if getattr(self, name) < 0:
                raise ValueError(f"clean.{name} must be at least 0, got {getattr(self, name)}")
        if self.max_aspect < 1:
            raise ValueError(f"clean.max_aspect must be at least 1, got {self.max_aspect}")
        if self.max_words < self.min_words:
            raise ValueError(
                f"clean.max_words must be at least clean.min_words, {self.min_words}, "
                f"got {self.max_words}"
            )
        for name in ("max_single_colour", "max_repeat_share", "min_letters", "min_language_score"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"clean.{name} must be from 0 to 1, got {getattr(self, name)}")


class CleanStage(Stage[CleanConfig]):
    """Rules of image and text, each with a reason of its own; the first that fires is the verdict.

    Rules of images come first. Among those of texts, what a text is (the name of a file, a URL, a
    phrase of the site) comes before how long it is, and its language last: the language of
    "IMG_2034.JPG" says nothing.
    """

    name: ClassVar[str] = "clean"
    version: ClassVar[int] = 1
    config_type: ClassVar[type[StageConfig]] = CleanConfig
    reads: ClassVar[tuple[str, ...]] = (
        "caption",
        "image",
        "width",
        "height",
        "original_width",
        "original_height",
    )
    writes: ClassVar[pa.Schema] = pa.schema(WRITES)
    reasons: ClassVar[Mapping[str, str]] = {
        "undecodable": "The image cannot be decoded.",
        "image_too_small": "A side of the image is shorter than min_side.",
        "aspect_ratio": "One side of the image is more than max_aspect times the other.",
        "single_colour": "More of the image than max_single_colour has one colour.",
        "no_caption": "There is no web caption, and require_caption is set.",
        "filename": "The caption is the name of a file.",
        "url": "The caption holds a URL.",
        "boilerplate": "The caption is a placeholder or a phrase of the site.",
        "too_few_words": "The caption has fewer words than min_words.",
        "too_many_words": "The caption has more words than max_words.",
        "too_few_characters": "The caption has fewer characters than min_characters.",
        "repetitive": "One word makes up more of the caption than max_repeat_share.",
        "low_quality": "Fewer of the caption's characters than min_letters are letters.",
        "not_english": "The caption is in none of the wanted languages.",
    }

    def load(self) -> None:
        """Load the language model."""
        self.detect = LanguageDetector(self.config.languages)

    def annotate(self, rows: pa.Table) -> pa.Table:
        """Normalise the captions; measure them and the images.

        Returns:
            text, the caption by `text.normalize`; the counts and shares of `text.TextMeasures`;
            language, the most probable one, and language_score, the probability of the wanted
            ones together; all null without a caption. image_side, the shorter side in pixels, and
            image_aspect, the longer by the shorter, of the image as downloaded;
            image_single_colour, the share of the image within a small tolerance of its most
            frequent colour, and image_entropy, of its brightness in bits, both null for an image
            that cannot be decoded.
        """
        return pa.Table.from_pydict(
            {**self._texts(rows["caption"]), **_images(rows)}, schema=self.writes
        )

    def _texts(self, captions: pa.ChunkedArray[Any]) -> dict[str, pa.Array[Any]]:
        """The columns of texts; each distinct caption is measured once."""
        encoded: Any = captions.combine_chunks().dictionary_encode()
        texts = [normalize(caption) for caption in encoded.dictionary.to_pylist()]
        measures = [measure(text) for text in texts]
        languages = [self.detect(text) for text in texts]
        columns: dict[str, list[Any]] = {"text": texts}
        for name in ("characters", "words", "repeats", "repeat_share", "unique_share", "letters"):
            columns[f"text_{name}"] = [getattr(one, name) for one in measures]
        for name in ("filename", "url", "boilerplate"):
            columns[f"text_{name}"] = [getattr(one, name) for one in measures]
        columns["language"] = [language for language, _ in languages]
        columns["language_score"] = [score for _, score in languages]
        return {
            name: pa.array(values, self.writes.field(name).type).take(encoded.indices)
            for name, values in columns.items()
        }

    def judge(self, annotations: pa.Table) -> pa.StringArray:
        """The first rule that fires."""
        fired = self.fired(annotations)
        lowest = np.log2(np.maximum(fired & -fired, 1)).astype(np.int64)
        verdicts: pa.StringArray = pa.array(list(self.reasons), pa.string()).take(
            pa.array(lowest, mask=fired == 0)
        )
        return verdicts

    def fired(self, annotations: pa.Table) -> npt.NDArray[np.int64]:
        """All rules that fire, (n,): bit i stands for the i-th key of `reasons`."""
        limits = self.config

        def column(name: str, null: Any = 0) -> Values:
            values = annotations[name]
            return np.asarray(values.fill_null(pa.scalar(null, values.type)))

        has_text = np.asarray(pc.is_valid(annotations["text"]))
        wanted = [*limits.languages, "und"] if limits.languages else None
        is_foreign = (
            np.zeros(len(annotations), bool)
            if wanted is None
            else ~np.isin(column("language", "und").astype(str), wanted)
        )
        rules: dict[str, Values] = {
            "undecodable": np.asarray(pc.is_null(annotations["image_single_colour"])),
            "image_too_small": column("image_side", 2**31 - 1) < limits.min_side,
            "aspect_ratio": column("image_aspect") > limits.max_aspect,
            "single_colour": column("image_single_colour") > limits.max_single_colour,
            "no_caption": ~has_text & limits.require_caption,
            "filename": column("text_filename", False),
            "url": column("text_url", False),
            "boilerplate": column("text_boilerplate", False),
            "too_few_words": has_text & (column("text_words") < limits.min_words),
            "too_many_words": column("text_words") > limits.max_words,
            "too_few_characters": has_text & (column("text_characters") < limits.min_characters),
            "repetitive": (column("text_repeats") >= 3)
            & (column("text_repeat_share") > limits.max_repeat_share),
            "low_quality": has_text & (column("text_letters") < limits.min_letters),
            "not_english": is_foreign & (column("language_score") < limits.min_language_score),
        }
        assert list(rules) == list(self.reasons)
        bits = np.zeros(len(annotations), np.int64)
        for bit, fires in enumerate(rules.values()):
            bits |= fires.astype(np.int64) << bit
        return bits


def _images(rows: pa.Table) -> dict[str, pa.Array[Any]]:
    """The columns of images."""
    width, height = (
        pc.coalesce(rows[f"original_{side}"], rows[side]) for side in ("width", "height")
    )
    side, longer = pc.min_element_wise(width, height), pc.max_element_wise(width, height)
    colours: list[float | None] = []
    entropies: list[float | None] = []
    for image in rows["image"]:
        try:
            opened = open_rgb(image.as_py() or b"", min_size=(THUMBNAIL, THUMBNAIL))
        except ImageError:
            colours.append(None)
            entropies.append(None)
            continue
        small = opened.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
        colours.append(single_colour(np.asarray(small)))
        entropies.append(small.convert("L").entropy())
    return {
        "image_side": side,
        "image_aspect": pc.divide(pc.cast(longer, pa.float32()), pc.cast(side, pa.float32())),
        "image_single_colour": pa.array(colours, pa.float32()),
        "image_entropy": pa.array(entropies, pa.float32()),
    }


def single_colour(pixels: npt.NDArray[np.uint8]) -> float:
    """The share of an RGB image, (h, w, 3), within 12 of its most frequent colour per channel.

    The most frequent colour is the mean of the fullest of 16 x 16 x 16 cells; the tolerance
    covers the noise of a JPEG and a cell's edge.
    """
    colours = pixels.reshape(-1, 3).astype(np.int64)
    cells = colours >> 4
    cell = cells[:, 0] << 8 | cells[:, 1] << 4 | cells[:, 2]
    fullest = colours[cell == np.bincount(cell).argmax()].mean(axis=0)
    return float((np.abs(colours - fullest) <= 12).all(axis=1).mean())
