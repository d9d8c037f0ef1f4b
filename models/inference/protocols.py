"""Protocols that say what a loaded model can do; `capfilt evaluate` measures by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from models.inference.decoding import Settings

__all__ = ["Embedder", "EmbedsImages", "Matches", "Ranks", "Writes"]


@runtime_checkable
class Ranks(Protocol):
    """A model that embeds images and texts in one space: retrieval and classification."""

    def embed_images(self, images: Sequence[bytes], batch_size: int | None = None) -> Tensor:
        """Unit embeddings of encoded images, (n, d).

        The shape is (n, q, d) if an image has q embeddings; the one closest to a text counts.

        Raises:
            ImageError: An image cannot be decoded.
        """

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings of texts, (m, d)."""


class EmbedsImages(Protocol):
    """A model that embeds images, whether or not it reads texts."""

    def embed_each(
        self, images: Sequence[bytes], batch_size: int | None = None
    ) -> list[Tensor | None]:
        """The unit embedding (d,) of each encoded image; None for one that cannot be decoded."""
        ...


class Embedder(Ranks, Protocol):
    """A dual encoder: the cosine of an image and a text measures how well they agree.

    Attributes:
        max_text: The most tokens of a text that are read; the rest is cut.
    """

    max_text: int

    def unread(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens at the end of each text that are cut off."""
        ...

    def logits(self, cosines: Tensor) -> Tensor:
        """Multiply cosines by the model's scale and add its bias, if it has one.

        For a model trained with a sigmoid loss, the sigmoid of a logit is a probability. For
        others, the softmax over the logits of several texts is.
        """
        ...


@runtime_checkable
class Matches(Protocol):
    """A model that judges an image and a text together: re-ranking and matching."""

    def match(
        self,
        images: Sequence[bytes],
        texts: Sequence[Sequence[str]],
        batch_size: int | None = None,
    ) -> list[Tensor]:
        """For each encoded image, logits (k, 2) of its k texts; column 1 is a match.

        Raises:
            ImageError: An image cannot be decoded.
        """


@runtime_checkable
class Writes(Protocol):
    """A model that writes captions: BLEU and CIDEr."""

    def write_captions(
        self, images: Sequence[bytes], settings: Settings, batch_size: int | None = None
    ) -> list[str]:
        """The best caption of each encoded image, with the prompt from the model's training.

        Raises:
            ImageError: An image cannot be decoded.
        """
