"""A fast implementation of BLIP's captioner (arXiv:2201.12086).

    captioner = Captioner.from_pretrained("Salesforce/blip-image-captioning-base")
    [[caption]] = captioner.caption([jpeg], seeds=[0])   # caption.text: "a dog on the grass"

Shapes: n images, k captions of an image, t tokens, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BlipForConditionalGeneration

from models.attention import attend, split_heads
from models.image.decode import Preprocess
from models.inference.batch_runner import check_one_each, is_out_of_memory
from models.inference.blip import Blip, ImageMemory
from models.inference.decoding import Caption, Settings
from models.inference.generation import write

__all__ = ["Captioner"]

logger = logging.getLogger(__name__)

PROMPT = "a picture of "
"""BLIP's prompt, for a model whose config does not name its prompt."""


class Captioner(Blip):
    """Writes captions of images with a BlipForConditionalGeneration."""

    architecture = BlipForConditionalGeneration

    def __init__(self, model: Any, tokenizer: Any, preprocess: Preprocess) -> None:
        super().__init__(model, tokenizer, preprocess)
        text = model.config.text_config
        self.begin = text.bos_token_id
        if self.begin is None or self.begin >= text.vocab_size:
            self.begin = tokenizer.get_vocab().get("[DEC]", text.vocab_size - 2)
        self.end = tokenizer.sep_token_id
        self.pad = tokenizer.pad_token_id
        self._reader: _Reader | None = None

    def caption(
        self,
        images: Sequence[bytes],
        seeds: Sequence[int],
        settings: Settings | None = None,
        *,
        prompt: str | None = "a picture of ",
        batch_size: int | None = None,
    ) -> list[list[Caption]]:
        """Write captions of each image.

        In nucleus sampling, the random numbers for token t of caption k of an image depend only on
        its seed, k and t. The batch matters only through rounding: a token can change if its
        number is within a rounding error of the boundary between two tokens.

        Args:
            images: Encoded images.
            seeds: The seed of each image; 64 bits are used.
            settings: How captions are decoded; both lengths include [DEC] and the prompt.
            prompt: The text that every caption continues; it is not part of the result.
            batch_size: Images at a time, halved if they do not fit. By default 256 on CUDA and 16
                on a CPU.

        Returns:
            The captions of each image, best first for beam; an empty list for an image that cannot
            be decoded.

        Raises:
            ValueError: An argument is not allowed.
        """
        settings = settings or Settings()
        check_one_each(images, seeds, "seed")
        words = self.tokenizer(prompt or "", add_special_tokens=False)["input_ids"]
        begun = torch.tensor([self.begin, *words], device=self.device)
        longest = self.model.config.text_config.max_position_embeddings
        if not len(begun) < settings.max_length <= longest:
            raise ValueError(
                f"max_length includes the {len(begun)} tokens of [DEC] and the prompt; it must be "
                f"from {len(begun) + 1} to {longest}, got {settings.max_length}"
            )

        def describe(positions: list[int], squares: Tensor) -> list[list[Caption]]:
            some = [seeds[position] for position in positions]
            ids = self._write(squares, some, settings, begun)[:, :, len(begun) :]
            return [[self._caption(row) for row in rows] for rows in ids.tolist()]

        return [captions or [] for captions in self.batches.map(images, describe, batch_size)]

    def write_captions(
        self, images: Sequence[bytes], settings: Settings, batch_size: int | None = None
    ) -> list[str]:
        """The best caption of each image; see `Writes`.

        Raises:
            ImageError: An image cannot be decoded.
        """
        prompt = getattr(self.model.config, "caption_prompt", PROMPT)
        seeds = [0] * len(images)
        written = self.caption(images, seeds, settings, prompt=prompt, batch_size=batch_size)
        for image, captions in zip(images, written, strict=True):
            if not captions:
                self.preprocess.square(image)  # raises the ImageError
        return [captions[0].text for captions in written]

    def _write(
        self, squares: Tensor, seeds: Sequence[int], settings: Settings, begun: Tensor
    ) -> Tensor:
        """Tokens (n, k, t), including the prompt, of captions of uint8 (n, size, size, 3)."""
        reader = self._reader_of(self.see(squares), settings.max_length)
        size, room = len(squares), reader.memory.num_images
        seeds = [*seeds, *[0] * (room - size)]
        return write(reader, begun, seeds, settings, end=self.end, pad=self.pad)[:size]

    def _reader_of(self, features: Tensor, max_length: int) -> _Reader:
        """A reader of images (n, P, D): the previous one if its shapes fit, or a new one."""
        kept = self._reader
        if kept is not None and kept.serves(len(features), max_length):
            kept.memory.replace(features)
            return kept
        self._reader = kept = None  # free its memory before the next one allocates
        reader = _Reader(self.model.text_decoder, features, max_length)
        if self.device.type == "cuda":
            self._reader = reader
        return reader

    def _caption(self, ids: list[int]) -> Caption:
        """The text of generated tokens up to [SEP], without BLIP's own tokens."""
        truncated = self.end not in ids
        if not truncated:
            ids = ids[: ids.index(self.end)]
        vocabulary = len(self.tokenizer)
        ids = [i for i in ids if i < vocabulary and i != self.begin]
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return Caption(text.removeprefix("##").strip(), truncated)


class _Reader:
    """The text decoder for n images, with a cache of the keys and values of tokens it has read.

    All steps have the same shapes, because keys that are not written yet are masked. So CUDA can
    record one step and replay it.

    Args:
        text: A `BlipTextLMHeadModel`.
        features: The features of the images, (n, P, D).
        max_length: The most tokens of a caption.
    """

    def __init__(self, text: Any, features: Tensor, max_length: int) -> None:
        self.bert = text.bert
        self.head = text.cls
        self.layers = self.bert.encoder.layer
        self.memory = ImageMemory(self.bert, features)
        self.max_length = max_length
        self.positions = torch.arange(max_length, device=features.device)
        self.num_rows = 0
        self.records = features.device.type == "cuda"

    def serves(self, num_images: int, max_length: int) -> bool:
        """Whether this many images fit the shapes and fill more than half of them."""
        most = self.memory.num_images
        return most < 2 * num_images <= 2 * most and max_length == self.max_length

    def prompt(self, ids: Tensor, num_captions: int) -> Tensor:
        """See `Next.prompt`."""
        num_images = self.memory.num_images
        self._hold(num_images * num_captions)
        self.position.fill_(len(ids) - 1)
        x = self.bert.embeddings(input_ids=ids.expand(num_images, -1))
        for index, layer in enumerate(self.layers):
            read = _keys_and_values(layer, x)
            for cache, new in zip(self.cache[index], read, strict=True):
                cache[:, :, : len(ids)] = new.repeat_interleave(num_captions, 0)
            x = self._layer(index, layer, x, read[0], read[1], causal=True)
        return self._logits(x)[:, None].expand(-1, num_captions, -1)

    def step(self, tokens: Tensor) -> Tensor:
        """See `Next.step`."""
        self.ids.copy_(tokens.reshape(-1, 1))
        self.position += 1
        if self.records and self.graph is None:
            self._record()
        if self.graph is None:
            logits = self._step()
        else:
            self.graph.replay()
            logits = self.logits
        return logits.view(*tokens.shape, -1)

    def follow(self, beams: Tensor) -> None:
        """See `Next.follow`."""
        first = torch.arange(len(beams), device=beams.device)[:, None] * beams.shape[1]
        self.cache.copy_(self.cache[:, :, (first + beams).flatten()])

    def _hold(self, num_rows: int) -> None:
        """Allocate the cache for the tokens of captions."""
        if num_rows == self.num_rows:
            return
        key, _ = self.memory.keys_and_values[0]
        self.num_rows = num_rows
        shape = len(self.layers), 2, num_rows, key.shape[1], self.max_length, key.shape[3]
        self.cache = key.new_zeros(shape)
        self.ids = torch.zeros(num_rows, 1, dtype=torch.long, device=key.device)
        self.position = torch.zeros(1, dtype=torch.long, device=key.device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def _step(self) -> Tensor:
        """The logits (rows, V) that follow `ids`, the tokens at `position`."""
        x = self.bert.embeddings(input_ids=self.ids, position_ids=self.position[None])
        written = (self.positions <= self.position)[None]
        for index, layer in enumerate(self.layers):
            for cache, new in zip(self.cache[index], _keys_and_values(layer, x), strict=True):
                cache.index_copy_(2, self.position, new)
            x = self._layer(index, layer, x, self.cache[index, 0], self.cache[index, 1], written)
        return self._logits(x)

    def _layer(
        self,
        index: int,
        layer: Any,
        x: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        *,
        causal: bool = False,
    ) -> Tensor:
        own = layer.attention
        query = split_heads(own.self.query(x), own.self.num_attention_heads)
        x = own.output(attend(query, key, value, mask, causal=causal), x)
        x = self.memory.attend(index, x)
        return layer.feed_forward_chunk(x)  # type: ignore[no-any-return]

    def _logits(self, x: Tensor) -> Tensor:
        return self.head(x[:, -1]).float()  # type: ignore[no-any-return]

    def _record(self) -> None:
        """Record a step as a CUDA graph; stop recording if CUDA cannot."""
        try:
            stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._step()  # warm-up: libraries allocate workspaces, which cannot be recorded
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.logits = self._step()
            self.graph = graph
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            logger.warning("CUDA cannot record the decoder, so captioning is slower: %s", error)
            self.records = False


def _keys_and_values(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    own = layer.attention.self
    heads = own.num_attention_heads
    return split_heads(own.key(x), heads), split_heads(own.value(x), heads)
