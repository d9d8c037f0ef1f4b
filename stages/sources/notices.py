"""Warnings of the readers of sources: for each kind, the count and the first occurrence."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from stages.redaction import redacted

__all__ = ["Notices"]

logger = logging.getLogger(__name__)

_LONGEST = 300  # characters shown of an occurrence


class Notices:
    """Counts warnings by kind, over all files, so that each kind is logged in one line."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, str]] = {}

    def add(self, what: str, first: str, number: int = 1) -> None:
        """Add to the count of one kind.

        Args:
            what: The kind, in the plural: `images without a caption`.
            first: Where it occurred; only the value of the first call is kept.
            number: How many to add.
        """
        if not number:
            return
        before, kept = self._counts.get(what, (0, first))
        self._counts[what] = before + number, kept

    def lines(self) -> list[str]:
        """Return a line for each kind, in the order of their first occurrence."""
        return [
            f"{what}: {number:,}, the first {_plain(first)}"
            for what, (number, first) in self._counts.items()
        ]

    def warn(self) -> None:
        """Log the lines."""
        for line in self:
            logger.warning("%s", line)

    def __iter__(self) -> Iterator[str]:
        return iter(self.lines())


def _plain(text: str) -> str:
    """Make untrusted text safe for one log line: printable, redacted and cut."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return redacted(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")
