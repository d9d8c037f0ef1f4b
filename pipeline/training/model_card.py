"""The model card that a training writes as README.md beside the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from models.objectives.config import Saved
from pipeline.manifest.train_config import TrainConfig
from pipeline.results.markdown import code, front_matter, yaml_block
from pipeline.training.course import Turn
from pipeline.training.progress import Best, Progress

__all__ = ["fingerprint", "text"]


def text(
    config: TrainConfig,
    data: Sequence[Mapping[str, Any]],
    start: Sequence[str],
    progress: Progress,
    identity: str,
    usage: str,
) -> str:
    """A card with front matter that Hugging Face reads.

    Args:
        config: The config of the training.
        data: The path, kind, weight, images and sha256 of each source.
        start: Revisions of the folders from which it started.
        progress: The steps of the training, its changes of settings, and the best validation.
        identity: The digest of settings, start and data.
        usage: How a text must be prepared for the model, in Markdown.
    """
    objective, settings = config.objective, config.settings()
    front: dict[str, Any] = {"library_name": objective.library, "tags": ["capfilt"]}
    if objective.task is not None:
        front["pipeline_tag"] = objective.task
    sizes = {"pairs": objective.batch_size, "documents": objective.document_settings()[0]}
    kinds = dict.fromkeys(entry["kind"] for entry in data)
    of = " and ".join(f"{sizes[kind]:,} {kind}" for kind in kinds)
    models = ", ".join(f"`{model}`" for model in objective.models().values())
    began = models + (f" ({', '.join(start)})" if start else "")
    lines = [
        *front_matter(front),
        f"# {objective.name}, from {began}",
        "",
        f"Trained with capfilt for {progress.step:,} steps of {of}, "
        f"after {objective.paper}. Loads as {_loading(objective.written())}. "
        + fingerprint(identity),
        "",
        *_best(config, progress.best),
        *_course(progress.course),
        "## How it reads texts",
        "",
        usage,
        "",
        "## Data",
        "",
        "| path | images | passes an epoch | SHA-256 |",
        "| --- | ---: | ---: | --- |",
        *(
            f"| {code(entry['path'])} | {_number(entry)} | {entry['weight']:g} | "
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


def _number(entry: Mapping[str, Any]) -> str:
    """The number of images of a source, or of its documents."""
    number = f"{entry['images']:,}"
    return f"{number} documents" if entry["kind"] == "documents" else number


def fingerprint(identity: str) -> str:
    """The sentence of a card that identifies its training."""
    return f"Fingerprint `{identity}`."


def _best(config: TrainConfig, best: Best) -> list[str]:
    if not best.step:
        return []
    return [
        f"This is the model after step {best.step:,}, the best validation by "
        f"`{config.best_metric}`: {best.value:.4f}.",
        "",
    ]


def _course(course: Sequence[Turn]) -> list[str]:
    if not course:
        return []
    return [
        "## Changed settings",
        "",
        "A part of the training used other settings than those below. It continued",
        "",
        *(f"- {code(str(turn))}" for turn in course),
        "",
    ]


def _loading(saves: Mapping[str, Saved]) -> str:
    """The class that loads each folder of a model."""
    if "." in saves:
        return saves["."].architecture
    return ", ".join(f"{folder}/ as {saved.architecture}" for folder, saved in saves.items())
