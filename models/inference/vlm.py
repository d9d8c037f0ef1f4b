"""Captions by any vision-language model of transformers: BLIP-2, LLaVA, Qwen-VL and the like.

    captioner = GenericCaptioner.from_pretrained("Salesforce/blip2-opt-2.7b")
    [[caption]] = captioner.caption([jpeg], seeds=[0], prompt="a photo of")

The loop is transformers' own `generate`; only the choice of a sampled token is ours, so that a
caption depends on its seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    LogitsProcessor,
    LogitsProcessorList,
)

from models.image.decode import open_rgb
from models.inference.batching import BatchRunner, check_one_each
from models.inference.decoding import Caption, Settings, from_nucleus, uniforms
from models.weights import Dtype, place

__all__ = ["GenericCaptioner", "architecture_of"]


def architecture_of(model: str, revision: str | None = None) -> str:
    """The `model_type` of a folder's or a hub model's config: blip, blip-2, llava, ..."""
    kind: str = AutoConfig.from_pretrained(
        model, revision=revision, trust_remote_code=False
    ).model_type
    return kind


class GenericCaptioner:
    """Writes captions of images with an AutoModelForImageTextToText."""

    def __init__(self, model: Any, processor: Any, threads: int = 4) -> None:
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.device: torch.device = model.device
        self.batches = BatchRunner(open_rgb, self.device, threads, _listed)

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        revision: str | None = None,
        device: str = "auto",
        dtype: Dtype = "auto",
        threads: int | None = None,
    ) -> Self:
        """Load a model; see `Blip.from_pretrained` for the arguments."""
        placement = place(device, dtype, threads)
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            model,
            revision=revision,
            dtype=placement.dtype,
            use_safetensors=True,
            trust_remote_code=False,
        )
        processor = AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            model, revision=revision, trust_remote_code=False
        )
        return cls(loaded.to(placement.device), processor, placement.threads)

    def caption(
        self,
        images: Sequence[bytes],
        seeds: Sequence[int],
        settings: Settings | None = None,
        *,
        prompt: str | None = None,
        continue_from: int = 0,
        batch_size: int | None = None,
    ) -> list[list[Caption]]:
        """Write captions of each image.

        Args:
            images: Encoded images.
            seeds: Of each image; 64 bits count.
            settings: How captions are decoded; both lengths count the prompt's own tokens, not
                those that stand for the image nor a chat template's.
            prompt: What is asked of a model with a chat template, and what captions go on from
                otherwise; left out of the result.
            continue_from: Captions of at most so many tokens are continued once, as MiniGPT-4's
                are up to 80 (arXiv:2304.10592); 0 continues none.
            batch_size: Images at a time; see `Batches.map`.

        Returns:
            For each image its captions, best first for beam; an empty list for an image that
            cannot be decoded.

        Raises:
            ValueError: An argument is impossible.
        """
        settings = settings or Settings()
        check_one_each(images, seeds, "seed")
        asked = self.tokenizer(prompt or "", add_special_tokens=False)["input_ids"]
        if len(asked) >= settings.max_length:
            raise ValueError(
                f"max_length counts the {len(asked)} tokens of the prompt and must be above, got "
                f"{settings.max_length}"
            )

        def write(positions: list[int], opened: list[Image.Image]) -> list[list[Caption]]:
            some = [seeds[position] for position in positions]
            texts = [self._asked(prompt or "")] * len(opened)
            found = self._generate(opened, texts, some, settings, len(asked))
            if continue_from:
                self._continue(opened, some, found, settings, prompt or "", continue_from)
            return found

        return [captions or [] for captions in self.batches.map(images, write, batch_size)]

    def _asked(self, prompt: str, said: str | None = None) -> str:
        """The text that a model reads, up to where it goes on."""
        if getattr(self.processor, "chat_template", None) is None:
            return prompt if said is None else f"{prompt} {said}".strip()
        turns: list[dict[str, Any]] = [_turn("user", {"type": "image"}, _text(prompt))]
        if said is not None:
            turns += [_turn("assistant", _text(said)), _turn("user", _text("Continue"))]
        asked: str = self.processor.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=False
        )
        return asked

    def _generate(
        self,
        images: list[Image.Image],
        texts: list[str],
        seeds: Sequence[int],
        settings: Settings,
        num_asked: int,
    ) -> list[list[Caption]]:
        # Without a prompt a model begins by itself; most processors take no empty text.
        given = {"text": texts} if any(texts) else {}
        inputs = self.processor(images=images, **given, return_tensors="pt", padding=True)
        inputs = inputs.to(self.device, self.model.dtype)
        most = settings.max_length - num_asked
        options: dict[str, Any] = {"do_sample": False}
        if settings.decoding == "nucleus":
            chances = uniforms(seeds, settings.num_captions, most)
            chosen = _Chosen(torch.from_numpy(chances).flatten(0, 1).to(self.device), settings)
            options = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
            options["logits_processor"] = LogitsProcessorList([chosen])
        elif settings.decoding == "beam":
            options["num_beams"] = settings.num_beams
        ids = self.model.generate(
            **inputs,
            **options,
            num_return_sequences=settings.num_captions,
            repetition_penalty=settings.repetition_penalty,
            max_new_tokens=most,
            min_new_tokens=max(0, settings.min_length - num_asked),
        )
        captions = [self._caption(row) for row in self._new(inputs, ids).tolist()]
        return [
            captions[start : start + settings.num_captions]
            for start in range(0, len(captions), settings.num_captions)
        ]

    def _continue(
        self,
        images: list[Image.Image],
        seeds: Sequence[int],
        captions: list[list[Caption]],
        settings: Settings,
        prompt: str,
        longest: int,
    ) -> None:
        """Continue short captions once, in their place."""
        once = Settings(
            decoding=settings.decoding,
            top_p=settings.top_p,
            top_k=settings.top_k,
            repetition_penalty=settings.repetition_penalty,
            num_beams=settings.num_beams,
            max_length=settings.max_length,
            min_length=0,
        )
        short = [
            (image, k)
            for image, some in enumerate(captions)
            for k, caption in enumerate(some)
            if caption.text and len(self.tokenizer(caption.text)["input_ids"]) <= longest
        ]
        if not short:
            return
        more = self._generate(
            [images[image] for image, _ in short],
            [self._asked(prompt, captions[image][k].text) for image, k in short],
            # Seeds of their own, so that a continuation does not draw its caption's numbers.
            [(seeds[image] + (k + 1) * 0x9E3779B97F4A7C15) % 2**64 for image, k in short],
            once,
            0,
        )
        for (image, k), [added] in zip(short, more, strict=True):
            text = f"{captions[image][k].text} {added.text}".strip()
            captions[image][k] = Caption(text, added.truncated)

    def _new(self, inputs: Any, ids: Tensor) -> Tensor:
        """The tokens that follow the prompt; some models give it back and some do not."""
        read = inputs.get("input_ids")
        if read is None or ids.shape[1] < read.shape[1]:
            return ids
        repeats = len(ids) // len(read)
        head = ids[:, : read.shape[1]]
        if bool((head == read.repeat_interleave(repeats, 0)).all()):
            return ids[:, read.shape[1] :]
        return ids

    def _caption(self, ids: list[int]) -> Caption:
        ends = self.model.generation_config.eos_token_id
        if ends is None:
            ends = self.tokenizer.eos_token_id
        ends = set(ends) if isinstance(ends, list) else {ends}
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return Caption(" ".join(text.split()), not ends.intersection(ids))


class _Chosen(LogitsProcessor):
    """Leaves `generate` the one token that a caption's own numbers choose.

    Args:
        chances: Of each caption and step, (rows, t, 2).
        settings: The nucleus.
    """

    def __init__(self, chances: Tensor, settings: Settings) -> None:
        self.steps = iter(chances.unbind(1))
        self.settings = settings

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (rows, V) that are finite for the chosen token alone."""
        settings = self.settings
        tokens = from_nucleus(scores.float(), next(self.steps), settings.top_p, settings.top_k)
        only = torch.full_like(scores, -torch.inf)
        return only.scatter_(1, tokens[:, None], 0.0)


def _listed(images: list[Any], pin: bool) -> list[Any]:
    return images


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _turn(role: str, *content: dict[str, str]) -> dict[str, Any]:
    return {"role": role, "content": list(content)}
