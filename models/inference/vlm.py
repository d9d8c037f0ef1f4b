"""Captions by any vision-language model in transformers, such as BLIP-2, LLaVA and Qwen-VL.

    captioner = GenericCaptioner.from_pretrained("Salesforce/blip2-opt-2.7b")
    [[caption]] = captioner.caption([jpeg], seeds=[0], prompt="a photo of")

The loop is transformers' `generate`. Only the choice of a sampled token is our own, so that a
caption depends only on its seed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

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
from models.inference.batch_runner import BatchRunner, check_one_each
from models.inference.decoding import Caption, Settings
from models.inference.generation import from_nucleus, uniforms
from models.weights import Dtype, place

__all__ = ["GenericCaptioner", "architecture_of"]

CHAT_PROMPT = "Provide a brief description of the given image."
"""What a chat model is asked for a caption (LLaVA, arXiv 2304.08485, table 11)."""


def architecture_of(model: str, revision: str | None = None) -> str:
    """The `model_type` in the config of a model folder or hub model: blip, blip-2, llava, ..."""
    kind: str = AutoConfig.from_pretrained(
        model, revision=revision, trust_remote_code=False
    ).model_type
    return kind


class GenericCaptioner:
    """Writes captions of images with an AutoModelForImageTextToText.

    Attributes:
        is_chat: Whether the model has a chat template. Such a model answers the prompt; any other
            model continues it.
    """

    def __init__(self, model: Any, processor: Any, threads: int = 4) -> None:
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.is_chat = getattr(processor, "chat_template", None) is not None
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
        prompt: str | Sequence[str] | None = None,
        continue_from: int = 0,
        batch_size: int | None = None,
    ) -> list[list[Caption]]:
        """Write captions of each image.

        Args:
            images: n encoded images.
            seeds: n seeds; 64 bits are used.
            settings: How captions are decoded. A chat model writes at most `max_tokens`. For any
                other model, both lengths include the prompt, but not the tokens of the image.
            prompt: The prompt of a chat model, one for all images or one for each. Any other model
                takes one prompt and continues it; the prompt is not part of the captions.
            continue_from: Captions of at most this many tokens are continued once, as MiniGPT-4
                does up to 80 (arXiv:2304.10592); 0 continues none.
            batch_size: Images at a time; see `BatchRunner.map`.

        Returns:
            The captions of each image, best first for beam; an empty list for an image that cannot
            be decoded.

        Raises:
            ValueError: An argument is not allowed.
        """
        settings = settings or Settings()
        check_one_each(images, seeds, "seed")
        prompts = [prompt or ""] * len(images) if isinstance(prompt, str | None) else list(prompt)
        check_one_each(images, prompts, "prompt")
        num_asked = 0 if self.is_chat else self._num_asked(prompts, settings)

        def write(positions: list[int], opened: list[Image.Image]) -> list[list[Caption]]:
            some = [seeds[position] for position in positions]
            asked = [_Asked(prompts[p], image) for p, image in zip(positions, opened, strict=True)]
            captions_of = self._generate(asked, some, settings, num_asked)
            if continue_from:
                self._continue(asked, some, captions_of, settings, continue_from)
            return captions_of

        return [captions or [] for captions in self.batches.map(images, write, batch_size)]

    def write_captions(
        self, images: Sequence[bytes], settings: Settings, batch_size: int | None = None
    ) -> list[str]:
        """The best caption of each image; see `Writes`.

        The prompt is `caption_prompt` of the model's config, which the lengths do not count.
        Without it a chat model is asked what LLaVA's captions answer, and any other model begins
        by itself.

        Raises:
            ImageError: An image cannot be decoded.
        """
        prompt = getattr(self.model.config, "caption_prompt", CHAT_PROMPT if self.is_chat else "")
        if not self.is_chat:  # whose lengths count the prompt
            number = len(self.tokenizer(prompt, add_special_tokens=False)["input_ids"])
            settings = dataclasses.replace(
                settings,
                max_length=settings.max_length + number,
                min_length=settings.min_length + number,
            )
        written = self.caption(
            images, [0] * len(images), settings, prompt=prompt, batch_size=batch_size
        )
        for image, captions in zip(images, written, strict=True):
            if not captions:
                open_rgb(image)  # raises what is wrong with it
        return [captions[0].text for captions in written]

    def _num_asked(self, prompts: Sequence[str], settings: Settings) -> int:
        """The number of tokens of the prompt, for a model without a chat template."""
        if len(set(prompts)) > 1:
            raise ValueError("a model without a chat template takes one prompt for all images")
        prompt = prompts[0] if prompts else ""
        number = len(self.tokenizer(prompt, add_special_tokens=False)["input_ids"])
        if number >= settings.max_length:
            raise ValueError(
                f"max_length includes the {number} tokens of the prompt and must be higher, got "
                f"{settings.max_length}"
            )
        return number

    def _inputs(self, asked: Sequence[_Asked]) -> Any:
        """The inputs of the model: images, prompts, and answers to continue."""
        if self.is_chat:
            return self.processor.apply_chat_template(
                [one.turns() for one in asked],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True},
            )
        texts = [one.text() for one in asked]
        if self.model.config.model_type == "llava":  # its text must say where the image stands
            texts = [f"{self.processor.image_token}{text}" for text in texts]
        # Without a prompt no text is passed, because most processors refuse an empty text.
        given = {"text": texts} if any(texts) else {}
        images = [one.image for one in asked]
        return self.processor(images=images, **given, return_tensors="pt", padding=True)

    def _generate(
        self,
        asked: Sequence[_Asked],
        seeds: Sequence[int],
        settings: Settings,
        num_asked: int,
    ) -> list[list[Caption]]:
        inputs = self._inputs(asked).to(self.device, self.model.dtype)
        most = settings.max_tokens if self.is_chat else settings.max_length - num_asked
        least = 0 if self.is_chat else max(0, settings.min_length - num_asked)
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
            min_new_tokens=least,
        )
        captions = [self._caption(row) for row in self._new(inputs, ids).tolist()]
        return [
            captions[start : start + settings.num_captions]
            for start in range(0, len(captions), settings.num_captions)
        ]

    def _continue(
        self,
        asked: Sequence[_Asked],
        seeds: Sequence[int],
        captions: list[list[Caption]],
        settings: Settings,
        longest: int,
    ) -> None:
        """Continue short captions once and replace them."""
        once = dataclasses.replace(settings, num_captions=1, min_length=0)
        short = [
            (image, k)
            for image, some in enumerate(captions)
            for k, caption in enumerate(some)
            if caption.text and len(self.tokenizer(caption.text)["input_ids"]) <= longest
        ]
        if not short:
            return
        more = self._generate(
            [asked[image]._replace(answer=captions[image][k].text) for image, k in short],
            # Other seeds, so that a continuation does not repeat its caption's random numbers.
            [(seeds[image] + (k + 1) * 0x9E3779B97F4A7C15) % 2**64 for image, k in short],
            once,
            0,
        )
        for (image, k), [added] in zip(short, more, strict=True):
            text = f"{captions[image][k].text} {added.text}".strip()
            captions[image][k] = Caption(text, added.truncated)

    def _new(self, inputs: Any, ids: Tensor) -> Tensor:
        """The tokens after the prompt; only some models return the prompt too."""
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


class _Asked(NamedTuple):
    """An image, its prompt, and an answer to continue, if any."""

    prompt: str
    image: Image.Image
    answer: str | None = None

    def text(self) -> str:
        """The text that a model without a chat template continues."""
        return self.prompt if self.answer is None else f"{self.prompt} {self.answer}".strip()

    def turns(self) -> list[dict[str, Any]]:
        """The turns of the conversation for a chat model."""
        question = [_text(self.prompt)] if self.prompt else []
        turns = [_turn("user", {"type": "image", "image": self.image}, *question)]
        if self.answer is not None:
            turns += [_turn("assistant", _text(self.answer)), _turn("user", _text("Continue"))]
        return turns


class _Chosen(LogitsProcessor):
    """Makes `generate` choose the token that the caption's own random numbers select.

    Args:
        chances: (rows, t, 2) random numbers of each caption and step.
        settings: The nucleus.
    """

    def __init__(self, chances: Tensor, settings: Settings) -> None:
        self.steps = iter(chances.unbind(1))
        self.settings = settings

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (rows, V) that are finite only for the chosen token."""
        settings = self.settings
        tokens = from_nucleus(
            scores.float(),
            next(self.steps),
            settings.top_p,
            settings.top_k,
            settings.temperature,
        )
        only = torch.full_like(scores, -torch.inf)
        return only.scatter_(1, tokens[:, None], 0.0)


def _listed(images: list[Any], pin: bool) -> list[Any]:
    return images


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _turn(role: str, *content: dict[str, Any]) -> dict[str, Any]:
    return {"role": role, "content": list(content)}
