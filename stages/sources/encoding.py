"""Detects the encoding of a text from its bytes; the result is None unless the evidence is clear.

The rules, in order:

1. A byte order mark gives UTF-8, UTF-16 or UTF-32.
2. Control characters, such as NULs, in every second byte mean UTF-16; three NULs in every four
   bytes mean UTF-32.
3. Valid UTF-8 is UTF-8. A mixture of valid UTF-8 and other bytes is unknown.
4. A text whose letters are mostly ASCII is Western (cp1252) if it decodes to the same text in the
   Central European, Turkish and Baltic code pages, as it does if it only has curly quotes or `e`
   with an acute accent. Otherwise fastText decides by the language of each decoded text: it must
   find a language that is written in that code page, with a probability of at least 0.8 and 0.2
   more than for any other decoded text. A code page is excluded if its text has, in at least one
   of twenty lines, a symbol inside a word or (for cp1252) three accented letters in a row.
5. Any other text with at least twelve bytes beyond ASCII has the encoding that charset-normalizer
   ranks first, if fastText finds, with a probability of at least 0.8, a language written in it.
6. Any other encoding is unknown.
"""

from __future__ import annotations

import codecs
import functools
import io
import re
from typing import Any

from models.text.captions import LanguageDetector

__all__ = [
    "Recoded",
    "count_runs",
    "detect",
    "guess_code_page",
    "text_of_bytes",
    "unicode_encoding",
]

_LATIN = {
    "cp1252": (
        "en fr de es it pt nl da sv no nn fi is ca eu gl af sq ga id ms tl sw lb oc br ast cy gd"
    ),
    "cp1250": "pl cs sk hu hr sl ro bs sh sr",
    "cp1254": "tr az",
    "cp1257": "lt lv et",
}
_CENTRAL = {"iso8859_2": _LATIN["cp1250"]}
_OTHERS = {
    "cp1251": "ru uk bg sr mk be",
    "koi8_r": "ru",
    "cp1253": "el",
    "cp1255": "he yi",
    "cp1256": "ar fa ur",
    "cp932": "ja",
    "euc_jp": "ja",
    "gb18030": "zh wuu",
    "big5": "zh yue wuu",
    "cp949": "ko",
}
_SURE, _AHEAD, _FEW = 0.8, 0.2, 12
_SAMPLE = 2**14  # bytes that are examined
_CONTROLS = re.compile("[\x80-\x9f]")
_IMPROBABLE = re.compile(
    "(?<=[^\\W\\d_])[\xa1-\xa6\xa8-\xac\xae-\xb6\xb8-\xbf\xd7\xf7](?=[^\\W\\d_])|\xff\xfe|\xfe\xff"
)
_NOT_WESTERN = re.compile(  # three accented letters in a row, or a single one that is not a word
    "[\xc0-\xd6\xd8-\xf6\xf8-\xff]{3}|(?<!\\w)[\xe3\xf5\xf1\xf0\xfe\xff\xdf\xc3\xd5\xd1\xd0\xde](?!\\w)"
)
_BOUNDS = re.compile(rb'["\t\r\n]')  # bytes that are not part of a longer character here
_BEYOND = re.compile(rb"[\x80-\xff]+")
_URL = re.compile(r"\S*(?:://|%[0-9A-Fa-f]{2})\S*")


def unicode_encoding(head: bytes) -> str | None:
    """Return the Unicode encoding that a byte order mark or NULs show; None if neither does."""
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if head.startswith(mark):
            return name
    if len(head) >= 4:
        nuls = [head[at::4].count(0) / len(head[at::4]) for at in range(4)]
        if nuls[0] < 0.1 and min(nuls[2:]) > 0.9:
            return "utf-32-le"
        if nuls[3] < 0.1 and min(nuls[:2]) > 0.9:
            return "utf-32-be"
    if len(head) < 2:
        return None
    even, odd = _controls(head[::2]), _controls(head[1::2])
    for name, high, low in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
        if high[0] > 0.3 and high[1] > 0.05 and low[0] < 0.1:
            return name
    return None


def _controls(data: bytes) -> tuple[float, float]:
    """Return the share of control characters among bytes, with and without line ends and tabs.

    The high bytes of UTF-16 are control characters in all scripts except those of East Asia.
    """
    number = sum(byte < 0x20 for byte in data)
    ends = data.count(b"\t") + data.count(b"\n") + data.count(b"\r")
    return number / len(data), (number - ends) / len(data)


def detect(content: bytes) -> str | None:
    """Return the encoding of a whole text; None if it is unknown."""
    encoding = unicode_encoding(content[:1024])
    try:
        content.decode(encoding or "utf-8")
    except UnicodeDecodeError:
        return None if encoding or count_runs(content)[0] else guess_code_page(content)
    return encoding or "utf-8"


def count_runs(content: bytes) -> tuple[int, int, int]:
    """Count the runs of bytes beyond ASCII that are UTF-8, and those that are not.

    Returns:
        Both counts, and the position of the first run that is not UTF-8.
    """
    good, bad, first = 0, 0, 0
    for run in _BEYOND.finditer(content):
        try:
            run[0].decode("utf-8", "surrogatepass")  # Java writes lone surrogates
            good += 1
        except UnicodeDecodeError:
            first = first if bad else run.start()
            bad += 1
    return good, bad, first


def text_of_bytes(content: bytes) -> str | None:
    """Decode a whole text without its byte order mark; None if its encoding is unknown."""
    encoding = detect(content)
    if encoding is None:
        return None
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        return None


def guess_code_page(content: bytes) -> str | None:
    """Return the code page of a text that is not Unicode; None if it is unknown."""
    pieces = (piece for piece in _BOUNDS.split(content) if not piece.isascii())
    sample = b"\n".join(pieces)[:_SAMPLE]
    beyond = sum(byte >= 0x80 for byte in sample)
    letters = sum(chr(byte).isalpha() for byte in sample if byte < 0x80)
    if letters >= beyond:
        return _latin(sample)
    return _other(sample) if beyond >= _FEW else None


def _latin(sample: bytes) -> str | None:
    readings = {
        page: text
        for page in _LATIN
        if (text := _read(sample, page)) is not None
        and _is_rare(_IMPROBABLE, text)
        and (page != "cp1252" or _is_rare(_NOT_WESTERN, text))
    }
    if not readings:
        return None
    if "cp1252" in readings and len(readings) == len(_LATIN) and len(set(readings.values())) == 1:
        return "cp1252"
    pages = _LATIN | _CENTRAL
    for page in _CENTRAL:
        text = _read(sample, page)
        if text is not None and not _CONTROLS.search(text) and _is_rare(_IMPROBABLE, text):
            readings[page] = text
    scores = sorted(
        ((_language_score(text, pages[page]), page) for page, text in readings.items()),
        reverse=True,
    )
    if not scores or scores[0][0] < _SURE:
        return None
    best = readings[scores[0][1]]
    rest = [score for score, page in scores[1:] if readings[page] != best]
    return scores[0][1] if not rest or scores[0][0] - rest[0] >= _AHEAD else None


def _other(sample: bytes) -> str | None:
    from charset_normalizer import from_bytes

    best = from_bytes(sample, cp_isolation=list(_OTHERS)).best()
    page = best.encoding if best is not None else ""
    if page not in _OTHERS or (text := _read(sample, page)) is None:
        return None
    beyond = [character for character in text if not character.isascii()]
    narrow = sum("\uff61" <= character <= "\uff9f" for character in beyond)
    if narrow * 4 > len(beyond):  # half-width katakana, which any bytes decode to
        return None
    return page if _language_score(text, _OTHERS[page]) >= _SURE else None


def _is_rare(pattern: re.Pattern[str], text: str) -> bool:
    """Whether a pattern matches less than once in twenty lines."""
    return sum(1 for _ in pattern.finditer(text)) * 20 < text.count("\n") + 1


def _read(sample: bytes, page: str) -> str | None:
    try:
        return codecs.getincrementaldecoder(page)("strict").decode(sample)
    except UnicodeDecodeError:
        return None


def _language_score(text: str, languages: str) -> float:
    """Return how likely a text is written in one of some languages.

    The mean, over parts of 200 characters, of the probability of the best language; 0 for a part
    whose best language is another one.
    """
    words = " ".join(_URL.sub(" ", text).split()).lower()
    wanted = languages.split()
    parts = [words[start : start + 200] for start in range(0, min(len(words), 1600), 200)]
    scores = []
    for part in parts:
        language, score = _detector().best(part)
        scores.append(score if language in wanted else 0.0)
    return sum(scores) / len(scores) if scores else 0.0


@functools.cache
def _detector() -> LanguageDetector:
    return LanguageDetector(("en",))


class Recoded(io.RawIOBase):
    """Converts a stream of bytes to UTF-8.

    Args:
        stream: The bytes.
        encoding: Encoding of the bytes.
    """

    def __init__(self, stream: Any, encoding: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)("strict")
        self._ready = b""
        self._is_whole = False

    def readable(self) -> bool:
        """See `io.RawIOBase.readable`."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase.readinto`.

        Raises:
            UnicodeError: A byte is not valid in the encoding.
        """
        while not self._ready and not self._is_whole:
            block = bytes(self._stream.read(2**16))
            self._is_whole = not block
            text = self._decoder.decode(block, self._is_whole)
            self._ready = text.encode("utf-8", "surrogatepass")
        number = min(len(buffer), len(self._ready))
        buffer[:number] = self._ready[:number]
        self._ready = self._ready[number:]
        return number
