"""A tiny chat model that sees, with random weights, and `transformers serve` around it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from helpers.blips import WORDS, image_tokenizer, random_model
from helpers.web import free_port

TEMPLATE = (
    "{% for m in messages %}{{ m.role }} : {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{{ '<image>' if c.type == 'image' else c.text }} {% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)
SPECIAL = ["<pad>", "</s>", "<unk>", "<image>"]


def save_llava(folder: Path, seed: int = 0, width: int = 32) -> str:
    """A tiny LLaVA of random weights with a chat template, as `save_pretrained` leaves it."""
    words = [*SPECIAL, "user", "assistant", ":", *WORDS.split(), "Describe", "this", "image"]
    words = list(dict.fromkeys(words))
    tokenizer = image_tokenizer(words)
    small = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            **small,
            "intermediate_size": 64,
            "image_size": 32,
            "patch_size": 16,
            "projection_dim": 16,
        },
        text_config={
            "model_type": "llama",
            **small,
            "num_key_value_heads": 2,
            "intermediate_size": 64,
            "vocab_size": len(words),
            "max_position_embeddings": 512,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 1,
        },
        image_token_index=3,
    )
    model = random_model(LlavaForConditionalGeneration, config, spread=2.0, seed=seed)
    model.generation_config.eos_token_id = 1
    model.generation_config.pad_token_id = 0
    model.generation_config.do_sample = True  # or `transformers serve` never samples
    model.save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return str(folder)


def save_released_llava(folder: Path, width: int) -> str:
    """A tiny LLaVA whose weights have the names of the released ones, which vLLM reads."""
    save_llava(folder, width=width)
    weights = load_file(folder / "model.safetensors")
    released = {
        name.replace("vision_tower.", "vision_tower.vision_model."): tensor
        for name, tensor in weights.items()
    }
    save_file(released, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def transformers_serve(model: str, log: Path) -> contextlib.AbstractContextManager[str]:
    """Serve a model by `transformers serve` on loopback; gives the URL of its API."""
    arguments = ["transformers.cli.transformers", "serve", model, "--device", "cpu"]
    return _served(arguments, log, {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})


def vllm_serve(model: str, log: Path) -> contextlib.AbstractContextManager[str]:
    """Serve a model as `llava` by vLLM on loopback; gives the URL of its API."""
    arguments = ["vllm.entrypoints.openai.api_server", "--model", model, "--dtype", "float32"]
    return _served([*arguments, "--served-model-name", "llava"], log, {})


@contextlib.contextmanager
def _served(arguments: list[str], log: Path, variables: dict[str, str]) -> Iterator[str]:
    """Run a module that serves OpenAI's API; gives its URL once it answers.

    Args:
        arguments: The module and its arguments.
        log: Where its output goes.
        variables: Of the environment, beside those that are set.
    """
    port = free_port()
    command = [sys.executable, "-m", *arguments, "--port", str(port), "--host", "127.0.0.1"]
    url = f"http://127.0.0.1:{port}/v1"
    with (
        log.open("wb") as out,
        subprocess.Popen(
            command, env={**os.environ, **variables}, stdout=out, stderr=out
        ) as server,
    ):
        try:
            while not _answers(f"{url}/models"):
                if server.poll() is not None:
                    raise RuntimeError(f"{arguments[0]}: {log.read_text()[-2000:]}")
                time.sleep(0.2)
            yield url
        finally:
            server.terminate()


def _answers(url: str) -> bool:
    """Whether a URL is served."""
    try:
        urllib.request.urlopen(url, timeout=60).close()
    except (urllib.error.URLError, ConnectionError):
        return False
    return True
