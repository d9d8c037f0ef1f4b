"""Captions by a chat model that runs in vLLM, inside this process and on its accelerator.

    captioner = VllmCaptioner.from_pretrained("Qwen/Qwen3-VL-4B-Instruct")
    [[caption]] = captioner.caption([jpeg], [0], Settings(), prompt=["Describe this image."])

vLLM is an extra: `pip install "capfilt[vllm]"`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

from models.image.data_url import data_url
from models.image.decode import ImageError
from models.inference.decoding import Caption, Settings
from models.random import seed_of
from models.weights import Dtype

__all__ = ["VllmCaptioner"]

logger = logging.getLogger(__name__)


class VllmCaptioner:
    """Writes captions of images with `vllm.LLM`, which batches the requests itself.

    Args:
        llm: The model in vLLM.
        image_size: The longer side, in pixels, to which larger images are resized.
        threads: Threads that decode and resize images.
    """

    def __init__(self, llm: Any, image_size: int = 1024, threads: int = 4) -> None:
        self.llm = llm
        self.image_size = image_size
        self.threads = threads

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        revision: str | None = None,
        dtype: Dtype = "auto",
        image_size: int = 1024,
        threads: int = 4,
    ) -> Self:
        """Load a model from a folder or the hub; only safetensors, and no code from the hub."""
        llm = LLM(
            model=model,
            revision=revision,
            tokenizer_revision=revision,
            dtype=dtype,
            trust_remote_code=False,
            load_format="safetensors",
            limit_mm_per_prompt={"image": 1},
        )
        return cls(llm, image_size, threads)

    def caption(
        self,
        images: Sequence[bytes],
        seeds: Sequence[int],
        settings: Settings,
        *,
        prompt: Sequence[str],
        batch_size: int | None = None,
    ) -> list[list[Caption]]:
        """Write captions of each image; see `ChatCaptioner.caption`."""
        with ThreadPoolExecutor(self.threads) as threads:
            urls = list(threads.map(self._url, images))
        asked = [
            (image, k)
            for image, url in enumerate(urls)
            if url is not None
            for k in range(settings.num_captions)
        ]
        captions: list[list[Caption]] = [[] for _ in images]
        if not asked:
            return captions
        answers = self.llm.chat(
            [_conversation(str(urls[image]), prompt[image]) for image, _ in asked],
            [_sampling(settings, seed_of(seeds[image], k, bits=31)) for image, k in asked],
            use_tqdm=False,
        )
        for (image, _), answer in zip(asked, answers, strict=True):
            [output] = answer.outputs
            text = " ".join(output.text.split())
            captions[image].append(Caption(text, output.finish_reason == "length"))
        return captions

    def _url(self, image: bytes) -> str | None:
        try:
            return data_url(image, self.image_size)
        except ImageError as error:
            logger.debug("an image cannot be decoded: %s", error)
            return None


def _conversation(url: str, prompt: str) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}}]
    if prompt:
        content.append({"type": "text", "text": prompt})
    return [{"role": "user", "content": content}]


def _sampling(settings: Settings, seed: int) -> Any:
    is_greedy = settings.decoding == "greedy"
    return SamplingParams(
        temperature=0.0 if is_greedy else settings.temperature,
        top_p=1.0 if is_greedy else settings.top_p,
        top_k=0 if is_greedy else settings.top_k,
        repetition_penalty=settings.repetition_penalty,
        max_tokens=settings.max_tokens,
        seed=seed,
    )
