"""Floating-point operations of BLIP (arXiv:2201.12086), counted from the sizes of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Shape"]

PATCH = 16
VOCABULARY = 30524


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a BLIP that decide how much it computes.

    Attributes:
        side: Pixels of the square that it sees.
        width: Of the image encoder.
        layers: Of the image encoder.
        text_width: Of the text transformer.
        text_layers: Of the text transformer.
    """

    side: int = 384
    width: int = 768
    layers: int = 12
    text_width: int = 768
    text_layers: int = 12

    def captioning(self, captions: int, begun: int = 4, longest: int = 20) -> float:
        """Operations to see an image and write captions of it to the longest.

        Args:
            captions: How many.
            begun: Tokens of [DEC] and the prompt, read once for each image.
            longest: Tokens of a caption, `begun` among them.
        """
        steps = captions * (longest - begun - 1)
        reading = (begun + steps) * (self._own + self._crossing)
        saying = 2 * self.text_width * VOCABULARY
        return self._seeing + reading + (1 + steps) * saying

    def matching(self, texts: Sequence[float]) -> float:
        """Operations to see an image and read texts, once alone and once with the image.

        Args:
            texts: The tokens of each.
        """
        return self._seeing + sum(texts) * (2 * self._own + self._crossing)

    @property
    def _patches(self) -> int:
        return int((self.side // PATCH) ** 2 + 1)

    @property
    def _seeing(self) -> float:
        """The image encoder, and the keys and values that the text attends to."""
        patches, width = self._patches, self.width
        encoder = self.layers * (24 * patches * width**2 + 4 * patches**2 * width)
        return encoder + self.text_layers * 4 * patches * width * self.text_width

    @property
    def _own(self) -> float:
        """A token through the text transformer by itself."""
        return self.text_layers * 24 * self.text_width**2

    @property
    def _crossing(self) -> float:
        """A token's attention to the image."""
        width = self.text_width
        return self.text_layers * (4 * width**2 + 4 * self._patches * width)
