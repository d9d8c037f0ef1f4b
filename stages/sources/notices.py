"""What the readers of sources tell, once for each kind of it: how many, and which was the first."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from stages.redaction import redacted

__all__ = ["Notices"]

logger = logging.getLogger(__name__)

_LONGEST = 300  # characters of a name


class Notices:
    """Counts what is worth a warning.

    Each kind is counted once however many files it is found in, so there are as few lines as kinds.
    """

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, what: str, first: str, number: int = 1) -> None:
        """Count something.

        Args:
            what: What is counted, in the plural: `captions that are no text`.
            first: Where it was found; that of the first call is kept.
            number: How many.
        """
        if not number:
            return
        before, kept = self._found.get(what, (0, first))
        self._found[what] = before + number, kept

    def lines(self) -> list[str]:
        """A line for each kind, in the order in which they were first found."""
        return [
            f"{what}: {number:,}, the first {_plain(first)}"
            for what, (number, first) in self._found.items()
        ]

    def warn(self) -> None:
        """Log the lines."""
        for line in self:
            logger.warning("%s", line)

    def __iter__(self) -> Iterator[str]:
        return iter(self.lines())


def _plain(text: str) -> str:
    """A name of unknown origin as part of a line."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return redacted(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")
