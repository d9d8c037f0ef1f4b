"""Bodies that a server sends compressed, though it was asked not to."""

from __future__ import annotations

import zlib
from email.message import Message
from typing import Any, ClassVar

__all__ = ["Inflater", "codings_of"]

_UNREADABLE = frozenset({"br", "zstd", "compress", "x-compress"})


def codings_of(headers: Message) -> list[str]:
    """The compressions that a response names; other words in their place mean nothing."""
    named = ",".join(headers.get_all("Content-Encoding", [])).lower().split(",")
    known = Inflater.CODINGS | _UNREADABLE
    return [coding for coding in map(str.strip, named) if coding in known]


class Inflater:
    """What a gzip or deflate body was before it was encoded.

    A body that is called gzip and is none is taken as it is: servers that call every file so send
    the file.

    Args:
        coding: One of `CODINGS`.
    """

    CODINGS: ClassVar[frozenset[str]] = frozenset({"gzip", "x-gzip", "deflate"})

    def __init__(self, coding: str) -> None:
        self._is_gzip = coding != "deflate"
        self._inflate: Any = None
        self._is_plain = False
        self._has_ended = False

    @property
    def is_cut(self) -> bool:
        """Whether the end of the encoded body is missing."""
        return self._inflate is not None

    def feed(self, data: bytes, most: int) -> bytes:
        """The next bytes; of more than `most` the rest is dropped.

        Raises:
            zlib.error: The body is broken.
        """
        if self._is_plain:
            return data
        found = b""
        while data and len(found) < most:
            if self._inflate is None:
                is_gzip = data.startswith(b"\x1f\x8b")
                if self._has_ended and not is_gzip:  # what comes after the end means nothing
                    break
                if self._is_gzip and not is_gzip:
                    self._is_plain = True
                    return data
                is_zlib = data[0] & 15 == 8 and int.from_bytes(data[:2], "big") % 31 == 0
                self._inflate = zlib.decompressobj(31 if is_gzip else 15 if is_zlib else -15)
            found += self._inflate.decompress(data, most - len(found))
            data = self._inflate.unconsumed_tail
            if self._inflate.eof:
                data = self._inflate.unused_data
                self._inflate, self._has_ended = None, True
        return found
