"""How captions are decoded, and what a caption is; the same for every captioner.

Nothing here imports torch, so that a captioner behind a server needs none.
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
    """A caption, or why there is none.

    Attributes:
        text: Without the prompt and special tokens; empty where there is an error.
        truncated: Whether it was cut at the greatest length before the model ended it.
        error: Why there is no caption: undecodable (the image), refused (the server takes no such
            request), timeout, server_error (it fails on this request) or bad_answer (it answers
            something else than a caption); None where there is one.
        message: What the server said of the error.
    """

    text: str
    truncated: bool
    error: CaptionError | None = None
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How captions are decoded.

    Attributes:
        decoding: nucleus samples (arXiv:1904.09751), beam gives the best of `num_beams`, greedy
            the likeliest token each time.
        num_captions: Captions of an image: one for greedy, up to `num_beams` for beam.
        temperature: Divides the logits before a token is sampled; 1 in BLIP's paper.
        top_p: The mass of the nucleus; tokens tied with the least of it are in it.
        top_k: The tokens that may be in the nucleus; 0 is all, the pure nucleus of BLIP's paper.
            (Code over transformers' `generate` that sets top_p alone has 50 here.)
        repetition_penalty: Divides the odds of what was said, prompt included. BLIP's paper is
            silent; its code has 1.1 with nucleus and 1.0 with beam.
        num_beams: Of beam search, as transformers does it with length_penalty 1.
        max_length: Of tokens, the first and the prompt counted. Chat models go by `max_tokens`.
        min_length: Of tokens, the first and the prompt counted, before the end is allowed. Chat
            models end where they will.
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
                f"temperature must be above 0, got {self.temperature}; decoding greedy takes the "
                "likeliest token"
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
    """Writes captions of images as an answer to a prompt, which may differ from image to image."""

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
            seeds: n seeds; a caption depends on its image, prompt and seed.
            settings: How captions are decoded.
            prompt: n prompts.
            batch_size: Images at a time, where the captioner batches them itself.

        Returns:
            For each image its captions. An image that cannot be decoded has none, an empty list;
            a caption that could not be written has an error.
        """
