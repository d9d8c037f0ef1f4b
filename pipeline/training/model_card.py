"""The model card that a training leaves as README.md beside the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from models.text.pre_caption import UNREAD
from pipeline.manifest.train_config import TrainConfig
from pipeline.results.markdown import code, front_matter, yaml_block

__all__ = ["text"]

LOADED_BY = {
    "captioner": "BlipForConditionalGeneration",
    "filter": "BlipForImageTextRetrieval",
    "clip": "CLIPModel",
}

PREPARED = (
    "Training read each text as `pre_caption` of capfilt prepares it: in lower case, "
    '`.!"()*#:;~` and runs of whitespace as one space.'
)

CAPTIONING = (
    "In the first place it read [DEC], where the tokenizer puts [CLS]; `generate` of stock "
    "transformers puts [DEC] there."
)

ENC = (
    "For matching, it read [ENC] in the first place; for contrast (`use_itm_head=False`) [CLS], "
    "as the tokenizer makes it. Stock transformers leaves [CLS] there in both, so that [ENC] has "
    "to be put there for matching, as below; capfilt's filter and `capfilt evaluate` do."
)

CLS = (
    "It begins with [CLS], as the tokenizer makes it. The lower half of the text layers read the "
    "text alone, and the text of contrast is read by these: stock transformers matches as below, "
    "but reads all layers for contrast (`use_itm_head=False`) and gives another cosine; capfilt's "
    "filter and `capfilt evaluate` give the one that was trained."
)

MATCHING = f"""```python
import re

from PIL import Image
from transformers import BlipForImageTextRetrieval, BlipProcessor

folder = "FOLDER"  # where its config.json lies
image, text = Image.open("image.jpg").convert("RGB"), "A caption."
model = BlipForImageTextRetrieval.from_pretrained(folder).eval()
processor = BlipProcessor.from_pretrained(folder)
text = re.sub(r'{UNREAD.pattern}', " ", text.lower()).strip()
inputs = processor(
    images=image, text=text, truncation=True, max_length=TOKENS, return_tensors="pt"
)
FIRSTmatch = model(**inputs).itm_score.softmax(-1)[0, 1]  # the probability that they match
```
"""

PUT_ENC = 'inputs["input_ids"][:, 0] = processor.tokenizer.convert_tokens_to_ids("[ENC]")\n'

TASKS = {"captioner": "image-to-text", "clip": "zero-shot-image-classification"}


def text(
    config: TrainConfig,
    data: Sequence[Mapping[str, Any]],
    start: Sequence[str],
    steps: int,
    identity: str,
    is_fused: bool = False,
) -> str:
    """A card with front matter that Hugging Face reads.

    Args:
        config: What was asked for.
        data: Of each source its path, weight, images and sha256.
        start: Revisions of the folders it started from.
        steps: Optimiser steps.
        identity: The digest of settings, start and data.
        is_fused: Whether only the upper text layers look at images, as in ALBEF.
    """
    front: dict[str, Any] = {"library_name": "transformers", "tags": ["capfilt"]}
    if config.objective in TASKS:
        front["pipeline_tag"] = TASKS[config.objective]
    kind = "matcher/ of BlipForImageTextRetrieval, captioner/ of BlipForConditionalGeneration"
    if config.albef:
        kind = LOADED_BY["filter"]
    kind = LOADED_BY.get(config.objective, kind)
    began = f"`{config.model}`" + (f" ({', '.join(start)})" if start else "")
    objective = config.objective + (" (ALBEF)" if config.albef else "")
    lines = [
        *front_matter(front),
        f"# {objective}, from {began}",
        "",
        f"Trained with capfilt for {steps:,} steps of {config.batch_size:,} pairs; loads as "
        f"{kind} of stock transformers. Fingerprint `{identity}`.",
        "",
        "## How it reads texts",
        "",
        *_reading(config, is_fused),
        "## Data",
        "",
        "| path | images | passes an epoch | SHA-256 |",
        "| --- | ---: | ---: | --- |",
        *(
            f"| {code(entry['path'])} | {entry['images']:,} | {entry['weight']:g} | "
            f"`{entry['sha256']}` |"
            for entry in data
        ),
        "",
        "Of several files it is that of the list of theirs, its first 16 characters.",
        "",
        "## Settings",
        "",
        *yaml_block(_plain(config)),
        "## Versions",
        "",
        ", ".join(f"{name} {version(name)}" for name in ("capfilt", "torch", "transformers")),
        "",
    ]
    return "\n".join(lines)


def _plain(config: TrainConfig) -> dict[str, Any]:
    settings = dataclasses.asdict(config)
    settings["data"] = list(settings["data"])
    return settings


def _reading(config: TrainConfig, is_fused: bool) -> Iterator[str]:
    """How each part is to be given a text, so that it reads what training read."""
    if config.objective == "clip":
        yield from ("As the tokenizer makes them; nothing is changed before.", "")
        return
    cut = f"Texts are cut to {config.max_text_tokens} tokens, the first and the last included."
    yield from (f"{PREPARED} {cut}", "")
    if "captioner" in config.parts:
        prompt = "No prompt stood before the captions."
        if config.prompt.strip():
            prompt = f"Captions go on from the prompt {code(config.prompt)}."
        yield from (f"**The captioner.** {CAPTIONING} {prompt}", "")
    if "matcher" in config.parts:
        yield from (f"**The matcher.** {CLS if is_fused else ENC}", "")
        lines = MATCHING.replace("FOLDER", "matcher" if len(config.parts) > 1 else ".")
        lines = lines.replace("TOKENS", str(config.max_text_tokens))
        yield lines.replace("FIRST", "" if is_fused else PUT_ENC)
