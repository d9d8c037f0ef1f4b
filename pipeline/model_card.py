"""The model card that a training leaves as README.md beside the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from pipeline.markdown import code, front_matter, yaml_block
from pipeline.objective import TrainConfig

__all__ = ["text"]

LOADED_BY = {
    "captioner": "BlipForConditionalGeneration",
    "filter": "BlipForImageTextRetrieval",
    "clip": "CLIPModel",
}

TASKS = {"captioner": "image-to-text", "clip": "zero-shot-image-classification"}


def text(
    config: TrainConfig,
    data: Sequence[Mapping[str, Any]],
    start: Sequence[str],
    steps: int,
    identity: str,
) -> str:
    """A card with front matter that Hugging Face reads.

    Args:
        config: What was asked for.
        data: Of each source its path, weight, images and sha256.
        start: Revisions of the folders it started from.
        steps: Optimiser steps.
        identity: The digest of settings, start and data.
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
