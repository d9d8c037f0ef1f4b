"""Clean: images too small, odd or flat, and texts that are no English caption."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from models.text.captions import LanguageDetector, TextMeasures, measure, normalize, script_words
from models.text.noun_phrases import revision
from models.text.parts_of_speech import PartsOfSpeech
from stages.base import Stage, StageConfig, threshold
from stages.clean_presets import PRESETS, Rules
from stages.dedup_fingerprints import PRINTS, ImagePrints, opened

__all__ = ["CleanConfig", "CleanStage"]

THUMBNAIL = 32
TOLERANCE = 12
SPEECH = {
    "text_noun": ("NOUN", "PROPN"),
    "text_determiner": ("DET",),
    "text_preposition": ("ADP",),
}
SHARES = (
    "max_single_colour",
    "max_repeat_share",
    "min_unique_share",
    "min_letters",
    "max_digits",
    "max_symbols",
    "max_capitals",
    "min_language_score",
)

Values = npt.NDArray[np.bool_]
Column: TypeAlias = "pa.ChunkedArray[Any]"

WRITES: dict[str, pa.DataType] = {
    "text": pa.string(),
    "caption_characters": pa.int32(),
    "caption_words": pa.int32(),
    "text_characters": pa.int32(),
    "text_words": pa.int32(),
    "text_repeats": pa.int32(),
    "text_repeat_share": pa.float32(),
    "text_unique_share": pa.float32(),
    "text_letters": pa.float32(),
    "text_digits": pa.float32(),
    "text_symbols": pa.float32(),
    "text_capitals": pa.float32(),
    "text_capitalised": pa.bool_(),
    "text_filename": pa.bool_(),
    "text_url": pa.bool_(),
    "text_contact": pa.bool_(),
    "text_entity": pa.bool_(),
    "text_boilerplate": pa.bool_(),
    "text_noun": pa.bool_(),
    "text_determiner": pa.bool_(),
    "text_preposition": pa.bool_(),
    "language": pa.string(),
    "language_score": pa.float32(),
    "image_width": pa.int32(),
    "image_height": pa.int32(),
    "image_aspect": pa.float32(),
    "image_bytes": pa.int64(),
    "image_single_colour": pa.float32(),
    "image_entropy": pa.float32(),
    **PRINTS,
}


@dataclass(frozen=True, kw_only=True)
class CleanConfig(Rules):
    """What a pair must be to stay: null takes the preset's value, off turns a rule off.

    Attributes:
        preset: The published set of rules that gives each threshold not set here; see
            `stages.clean_presets`.
        languages: The wanted languages as fastText labels them; empty for any.
        model: The spaCy pipeline that tells parts of speech, a package or a folder. It is loaded
            only where a noun, determiner or preposition is asked for.
        require_caption: Whether a pair without a web caption is rejected; otherwise no rule of
            texts applies to it, and it may still get a synthetic one.
    """

    preset: str = threshold("flamingo")
    languages: tuple[str, ...] = ("en",)
    model: str = "en_core_web_sm"
    require_caption: bool = threshold(False)

    @cached_property
    def limits(self) -> Mapping[str, Any]:
        """Every threshold of `Rules` by name, the preset's where none is set; False for off."""
        return self.over(PRESETS[self.preset])

    @property
    def needs_speech(self) -> bool:
        """Whether a rule asks for parts of speech."""
        return any(self.limits[name] for name in ("noun", "determiner", "preposition"))

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(
                f"clean.preset must be one of {', '.join(PRESETS)}, got {self.preset!r}"
            )
        for language in self.languages:
            if not (language.isascii() and language.isalpha() and language.islower()):
                raise ValueError(
                    f'clean.languages must hold codes such as "en" or "de", got {language!r}'
                )
        for name, limit in self.limits.items():
            if limit is False or not name.startswith(("min_", "max_")):
                continue
            if limit is True:
                raise ValueError(f"clean.{name} must be a number or off, got on")
            if name in SHARES and not 0 <= limit <= 1:
                raise ValueError(f"clean.{name} must be from 0 to 1, got {limit}")
            if not 0 <= limit < 2**31:
                raise ValueError(f"clean.{name} must be from 0 to 2147483647, got {limit}")
        aspect = self.limits["max_aspect"]
        if aspect is not False and aspect < 1:
            raise ValueError(f"clean.max_aspect must be at least 1, got {aspect}")
        for kind in ("words", "characters"):
            least, most = self.limits[f"min_{kind}"], self.limits[f"max_{kind}"]
            if most is not False and most < least:
                raise ValueError(
                    f"clean.max_{kind} must be at least clean.min_{kind}, {least}, got {most}"
                )

    def measurement(self) -> dict[str, Any]:
        """The wanted languages, and the revision of the pipeline where one is needed.

        Raises:
            FileNotFoundError: There is no such pipeline.
        """
        return {
            "languages": self.languages,
            "parts_of_speech": self._revision() if self.needs_speech else None,
        }

    def _revision(self) -> str:
        try:
            return revision(self.model)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"clean.model: no spaCy pipeline {self.model!r} to tell nouns, determiners and "
                f"prepositions; install it with `python -m spacy download {self.model}`, name a "
                "folder that holds one, or set clean.noun, clean.determiner and "
                "clean.preposition to off"
            ) from None

    def settings(self) -> dict[str, Any]:
        """Every field as plain values: thresholds as they apply, False for off."""
        return {**super().settings(), **self.limits}


class CleanStage(Stage[CleanConfig]):
    """Rules of image and text, each with a reason of its own; the first that fires is the verdict.

    Rules of images come first. Among those of texts, what a text is (the name of a file, a URL, a
    phrase of the site) comes before how long it is, and its language last: the language of
    "IMG_2034.JPG" says nothing. What was not measured breaks no rule.
    """

    name: ClassVar[str] = "clean"
    version: ClassVar[int] = 4
    config_type: ClassVar[type[StageConfig]] = CleanConfig
    reads: ClassVar[tuple[str, ...]] = (
        "caption",
        "image",
        "width",
        "height",
        "original_width",
        "original_height",
        "original_bytes",
    )
    writes: ClassVar[pa.Schema] = pa.schema(WRITES)
    reasons: ClassVar[Mapping[str, str]] = {
        "undecodable": "The image cannot be decoded.",
        "image_too_small": "A side of the image is shorter than min_side.",
        "aspect_ratio": "One side of the image is more than max_aspect times the other.",
        "too_few_bytes": "The encoded image has fewer bytes than min_bytes.",
        "single_colour": "More of the image than max_single_colour has one colour.",
        "low_entropy": "The entropy of the image's brightness is below min_entropy.",
        "no_caption": "There is no web caption, and require_caption is set.",
        "empty_caption": "The caption shows no character.",
        "filename": "The caption is the name of a file.",
        "url": "The caption holds a URL.",
        "contact": "The caption holds an e-mail address or a telephone number.",
        "entity": "The caption holds an HTML entity that stands for no character.",
        "boilerplate": "The caption is a placeholder or a phrase of the site.",
        "too_few_words": "The caption has fewer words than min_words.",
        "too_many_words": "The caption has more words than max_words.",
        "too_few_characters": "The caption has fewer characters than min_characters.",
        "too_many_characters": "The caption has more characters than max_characters.",
        "repetitive": "One word makes up more of the caption than max_repeat_share.",
        "few_distinct_words": "Fewer of the caption's words than min_unique_share are distinct.",
        "low_quality": "Fewer of the caption's characters than min_letters are letters.",
        "too_many_digits": "More of the caption's characters than max_digits are digits.",
        "too_many_symbols": "More of the caption's characters than max_symbols are symbols.",
        "too_many_capitals": "More of the caption's letters than max_capitals are capitals.",
        "not_capitalised": "The caption does not begin with a capital.",
        "no_noun": "The caption has no noun.",
        "no_determiner": "The caption has no determiner.",
        "no_preposition": "The caption has no preposition.",
        "not_english": "The caption is in none of the wanted languages.",
    }

    def load(self) -> None:
        """Load the language model, and the spaCy pipeline where a rule needs it."""
        self.detect = LanguageDetector(self.config.languages)
        self.speech = PartsOfSpeech(self.config.model) if self.config.needs_speech else None

    def annotate(self, rows: pa.Table) -> pa.Table:
        """Normalise the captions; measure them and the images.

        Returns:
            text, the caption by `text.normalize`; caption_characters and caption_words, counted
            in the caption as found; the counts, shares and facts of `text.TextMeasures`;
            text_noun, text_determiner and text_preposition, whether it has one, null where no
            rule asks; language, the most probable one, and language_score, the probability of
            the wanted ones together; all null without a caption. image_width and image_height of
            the image as downloaded, in pixels, and image_aspect, the longer by the shorter;
            image_bytes, of the image as downloaded; image_single_colour, the share of the
            image within a small tolerance of its most frequent colour, and image_entropy, of its
            brightness in bits, and `fingerprints.PRINTS`, by which dedup need not decode it again,
            all null for an image that cannot be decoded.
        """
        return pa.Table.from_pydict(
            {**self._texts(rows["caption"]), **_images(rows)}, schema=self.writes
        )

    def _texts(self, captions: Column) -> dict[str, pa.Array[Any]]:
        """The columns of texts; each distinct caption is measured once."""
        encoded: Any = captions.combine_chunks().dictionary_encode()
        found = encoded.dictionary.to_pylist()
        texts = [normalize(caption) for caption in found]
        columns: dict[str, Any] = {"text": texts}
        runs = [caption.split() for caption in found]
        columns["caption_characters"] = [len(" ".join(one)) for one in runs]
        columns["caption_words"] = [len(script_words(caption)) for caption in found]
        measures = zip(*map(measure, texts), strict=True) if texts else ((),) * 15
        for name, values in zip(TextMeasures._fields, measures, strict=True):
            columns[f"text_{name}"] = values
        parts = [None] * len(texts) if self.speech is None else list(self.speech(texts))
        for name, tags in SPEECH.items():
            columns[name] = [None if one is None else not one.isdisjoint(tags) for one in parts]
        languages = [self.detect(text) for text in texts]
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
        limits, languages = self.config.limits, self.config.languages
        counts = limits["counts"]
        never = np.zeros(len(annotations), bool)

        def below(column: str, name: str) -> Values:
            return self._compare(pc.less, annotations[column], limits[name])

        def above(column: str, name: str) -> Values:
            return self._compare(pc.greater, annotations[column], limits[name])

        def is_(column: str, name: str) -> Values:
            return _true(annotations[column]) if limits[name] else never

        def is_not(column: str, name: str) -> Values:
            return _true(pc.invert(annotations[column])) if limits[name] else never

        is_foreign = never
        if languages:
            wanted = pa.array([*languages, "und"], pa.string())
            is_foreign = ~_true(pc.is_in(annotations["language"], wanted))
        rules: dict[str, Values] = {
            "undecodable": _true(pc.is_null(annotations["image_single_colour"])),
            "image_too_small": below("image_width", "min_side") | below("image_height", "min_side"),
            "aspect_ratio": above("image_aspect", "max_aspect"),
            "too_few_bytes": below("image_bytes", "min_bytes"),
            "single_colour": above("image_single_colour", "max_single_colour"),
            "low_entropy": below("image_entropy", "min_entropy"),
            "no_caption": _true(pc.is_null(annotations["text"])) & self.config.require_caption,
            "empty_caption": _true(pc.equal(annotations["text"], pa.scalar(""))),
            "filename": is_("text_filename", "filename"),
            "url": is_("text_url", "url"),
            "contact": is_("text_contact", "contact"),
            "entity": is_("text_entity", "entity"),
            "boilerplate": is_("text_boilerplate", "boilerplate"),
            "too_few_words": below(f"{counts}_words", "min_words"),
            "too_many_words": above(f"{counts}_words", "max_words"),
            "too_few_characters": below(f"{counts}_characters", "min_characters"),
            "too_many_characters": above(f"{counts}_characters", "max_characters"),
            "repetitive": above("text_repeat_share", "max_repeat_share")
            & _true(pc.greater_equal(annotations["text_repeats"], pa.scalar(3))),
            "few_distinct_words": below("text_unique_share", "min_unique_share"),
            "low_quality": below("text_letters", "min_letters"),
            "too_many_digits": above("text_digits", "max_digits"),
            "too_many_symbols": above("text_symbols", "max_symbols"),
            "too_many_capitals": above("text_capitals", "max_capitals"),
            "not_capitalised": is_not("text_capitalised", "capitalised"),
            "no_noun": is_not("text_noun", "noun"),
            "no_determiner": is_not("text_determiner", "determiner"),
            "no_preposition": is_not("text_preposition", "preposition"),
            "not_english": is_foreign & below("language_score", "min_language_score"),
        }
        bits = np.zeros(len(annotations), np.int64)
        for bit, reason in enumerate(self.reasons):
            bits |= rules[reason].astype(np.int64) << bit
        return bits

    @staticmethod
    def _compare(compare: Any, values: Column, limit: float | bool) -> Values:
        """Where a measure is beyond a limit: nowhere if the rule is off, nor where it is null."""
        if limit is False:
            return np.zeros(len(values), bool)
        return _true(compare(values, pa.scalar(limit, values.type)))


def _true(values: Any) -> Values:
    """Where a column is true, neither false nor null."""
    return np.asarray(values.fill_null(pa.scalar(False)), bool)


def _images(rows: pa.Table) -> dict[str, Any]:
    """The columns of images."""
    width, height = (
        pc.coalesce(rows[f"original_{side}"], rows[side]) for side in ("width", "height")
    )
    shorter, longer = pc.min_element_wise(width, height), pc.max_element_wise(width, height)
    looks: list[tuple[float | None, float | None]] = []

    def look() -> Iterator[Image.Image | None]:
        for image in rows["image"]:
            found = opened(image.as_py())
            looks.append(_look(found))
            yield found

    prints = ImagePrints.taken(look()).columns()
    return {
        "image_width": width,
        "image_height": height,
        "image_aspect": pc.divide(pc.cast(longer, pa.float32()), pc.cast(shorter, pa.float32())),
        "image_bytes": pc.coalesce(rows["original_bytes"], pc.binary_length(rows["image"])),
        "image_single_colour": pa.array([colour for colour, _ in looks], pa.float32()),
        "image_entropy": pa.array([entropy for _, entropy in looks], pa.float32()),
        **prints,
    }


def _look(image: Image.Image | None) -> tuple[float, float] | tuple[None, None]:
    """The share of one colour in an image and its entropy; None if it cannot be opened."""
    if image is None:
        return None, None
    small = image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return single_colour(np.asarray(small)), small.convert("L").entropy()


def single_colour(pixels: npt.NDArray[np.uint8]) -> float:
    """The share of an RGB image, (h, w, 3), within 12 of its most frequent colour per channel.

    The most frequent colour is the mean of the fullest of 16 x 16 x 16 cells; the tolerance
    covers the noise of a JPEG and a cell's edge.
    """
    planes = np.ascontiguousarray(pixels.reshape(-1, 3).T, np.float32)
    red, green, blue = pixels.reshape(-1, 3).T.astype(np.int16) >> 4
    cell = red << 8 | green << 4 | blue
    fullest = planes[:, cell == np.bincount(cell).argmax()].mean(axis=1, keepdims=True)
    return float((np.abs(planes - fullest) <= TOLERANCE).all(axis=0).mean())
