"""Captions and the settings of decoding, the same for every captioner.

This module does not import torch, so that a captioner behind a server needs no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

__all__ = ["Caption", "CaptionError", "ChatCaptioner", "Decoding", "Settings"]

Decoding = Literal["nucleus", "beam", "greedy"]

CaptionError = Literal["undecodable", "refused", "timeout", "server_error", "bad_answer"]


class Caption(NamedTuple):
    """A caption, or the error because of which there is none.

    Attributes:
        text: The text without the prompt and special tokens; empty if there is an error.
        truncated: Whether it reached the maximum length before the model ended it.
        error: Why there is no caption: undecodable (the image), refused (the server rejects the
            request), timeout, server_error (the server fails on the request) or bad_answer (the
            answer is not a caption); None if there is a caption.
        message: The server's message about the error.
    """

    text: str
    truncated: bool
    error: CaptionError | None = None
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How captions are decoded.

    Attributes:
        decoding: nucleus samples (arXiv:1904.09751), beam takes the best of `num_beams`, greedy
            takes the most likely token at each step.
        num_captions: Captions of an image: one for greedy, up to `num_beams` for beam.
        temperature: Divides the logits before a token is sampled; 1 in BLIP's paper.
        top_p: The probability mass of the nucleus; it includes all tokens tied with its last one.
        top_k: The most tokens in the nucleus; 0 sets no limit, as in BLIP's paper. (Code that calls
            transformers' `generate` and sets only top_p uses 50.)
        repetition_penalty: Penalises the logits of tokens that occur already, also in the prompt.
            BLIP's paper does not give it; its code has 1.1 for nucleus and 1.0 for beam.
        num_beams: Beams of beam search, which is that of transformers with length_penalty 1.
        max_length: The most tokens, including the first and the prompt. Chat models use
            `max_tokens`.
        min_length: The fewest tokens, including the first and the prompt. Chat models have no
            minimum.
        max_tokens: The most tokens that a chat model writes.
    """

    decoding: Decoding = "nucleus"
    num_captions: int = 1
    temperature: float = 1.0
    top_p: float = 0.9
    top_k: int = 0
    repetition_penalty: float = 1.0
    num_beams: int = 3
    max_length: int = 20
    min_length: int = 5
    max_tokens: int = 256

    def __post_init__(self) -> None:
        most = {"nucleus": sys.maxsize, "beam": self.num_beams, "greedy": 1}[self.decoding]
        if not 1 <= self.num_captions <= most:
            raise ValueError(
                f"num_captions must be from 1 to {most} with {self.decoding} decoding, got "
                f"{self.num_captions}; nucleus decoding gives any number"
            )
        if self.temperature <= 0:
            raise ValueError(
                f"temperature must be above 0, got {self.temperature}; decoding: greedy takes the "
                "most likely token"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.top_k < 0 or self.repetition_penalty <= 0:
            raise ValueError(
                f"top_k must be at least 0 and repetition_penalty above 0, got {self.top_k} and "
                f"{self.repetition_penalty}"
            )
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")


class ChatCaptioner(Protocol):
    """Writes captions of images as answers to prompts, one prompt for each image."""

    def caption(
        self,
        images: Sequence[bytes],
        seeds: Sequence[int],
        settings: Settings,
        *,
        prompt: Sequence[str],
        batch_size: int | None = None,
    ) -> list[list[Caption]]:
        """Write captions of each image.

        Args:
            images: n encoded images.
            seeds: n seeds; a caption depends only on its image, prompt and seed.
            settings: How captions are decoded.
            prompt: n prompts.
            batch_size: Images at a time, if the captioner makes batches itself.

        Returns:
            The captions of each image. An image that cannot be decoded has an empty list; a caption
            that could not be written has an error.
        """
