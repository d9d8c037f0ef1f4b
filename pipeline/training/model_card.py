"""The model card that a training writes as README.md beside the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from models.objectives.config import Saved
from pipeline.manifest.train_config import TrainConfig
from pipeline.results.markdown import code, front_matter, yaml_block

__all__ = ["text"]


def text(
    config: TrainConfig,
    data: Sequence[Mapping[str, Any]],
    start: Sequence[str],
    steps: int,
    identity: str,
    usage: str,
) -> str:
    """A card with front matter that Hugging Face reads.

    Args:
        config: The config of the training.
        data: The path, weight, images and sha256 of each source.
        start: Revisions of the folders from which it started.
        steps: Optimiser steps.
        identity: The digest of settings, start and data.
        usage: How a text must be prepared for the model, in Markdown.
    """
    front: dict[str, Any] = {"library_name": "transformers", "tags": ["capfilt"]}
    objective, settings = config.objective, config.settings()
    if objective.task is not None:
        front["pipeline_tag"] = objective.task
    models = ", ".join(f"`{model}`" for model in objective.models().values())
    began = models + (f" ({', '.join(start)})" if start else "")
    lines = [
        *front_matter(front),
        f"# {objective.name}, from {began}",
        "",
        f"Trained with capfilt for {steps:,} steps of {objective.batch_size:,} pairs, after "
        f"{objective.paper}. Loads as {_loading(objective.written())}. Fingerprint `{identity}`.",
        "",
        "## How it reads texts",
        "",
        usage,
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
        "For several files, these are the first 16 characters of a digest of their SHA-256s.",
        "",
        "## Settings",
        "",
        *yaml_block({**settings, "data": list(settings["data"])}),
        "## Versions",
        "",
        ", ".join(f"{name} {version(name)}" for name in ("capfilt", "torch", "transformers")),
        "",
    ]
    return "\n".join(lines)


def _loading(saves: Mapping[str, Saved]) -> str:
    """The class that loads each folder of a model."""
    if "." in saves:
        return saves["."].architecture
    return ", ".join(f"{folder}/ as {saved.architecture}" for folder, saved in saves.items())
