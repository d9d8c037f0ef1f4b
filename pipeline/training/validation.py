"""Measuring a model while it is trained: the curve, the best one, and when to stop."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from models.objectives.base import Objective
from models.random import seed_of
from pipeline.manifest.train_config import TrainConfig
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.evaluate import evaluate
from pipeline.training.optim import Average
from pipeline.training.placing import CHECKPOINT

__all__ = ["is_in_progress", "measure", "model_in_progress"]


def measure(
    model: Objective, folder: Path, data: str, metric: str = "", average: Average | None = None
) -> dict[str, float]:
    """Write a model into a folder and measure it there, as `capfilt evaluate` does.

    Near misses are left out: they take as long as all the rest.

    Args:
        model: The model; its weights and mode stay as they are.
        folder: Replaced. It holds the model afterwards, as stock classes load it.
        data: Held-out images; see `evaluate`.
        metric: One that the caller needs.
        average: Weights in place of the model's.

    Returns:
        The metrics, such as `retrieval.itc.TR@1`, and the `seconds` that they took.

    Raises:
        ValueError: They do not have `metric`.
    """
    began = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write(model, folder, average)
    found = dict(_numbers(evaluate(str(folder), data, tagger=None, resamples=0)))
    if metric and metric not in found:
        raise ValueError(
            f"train.keep: the validations have no {metric}; they have {', '.join(found)}"
        )
    return {**found, "seconds": round(time.monotonic() - began, 1)}


def write(model: Objective, folder: Path, average: Average | None = None) -> None:
    """Write a model in float32; its frozen parts go on in their own dtype.

    Args:
        model: The model.
        folder: Where.
        average: Weights in place of the model's.
    """
    dtypes = {name: weight.dtype for name, weight in model.named_parameters()}
    with average.in_place() if average else contextlib.nullcontext():
        model.float().write(folder)
    for name, weight in model.named_parameters():
        weight.data = weight.data.to(dtypes[name])


def is_in_progress(model: str) -> bool:
    """Whether a folder is that of a training that goes on, or will be that of its model."""
    is_partial = model.endswith(".partial")
    return (is_partial or not os.path.isdir(model)) and _checkpoint_of(model).exists()


def _checkpoint_of(model: str) -> Path:
    partial = model if model.endswith(".partial") else f"{model.rstrip('/')}.partial"
    return Path(partial, CHECKPOINT)


@contextlib.contextmanager
def model_in_progress(model: str) -> Iterator[tuple[str, int]]:
    """The model of a training's last checkpoint, in a temporary folder, and the step that it is of.

    Args:
        model: The folder that the model will have, or that with `.partial`, where it is trained.

    Raises:
        FileNotFoundError: There is no checkpoint.
        ValueError: The checkpoint does not say what it is of.
    """
    made = _checkpoint_of(model)
    with tempfile.TemporaryDirectory(prefix="capfilt-") as top:
        path = Path(top, CHECKPOINT)
        shutil.copyfile(made, path)  # the training may replace it meanwhile
        checkpoint = Checkpoint(path, "")
        state = checkpoint.read()
        if "settings" not in state:
            raise ValueError(f"{made} is of another version of capfilt")
        config = TrainConfig.from_settings(state["settings"])
        with torch.random.fork_rng(devices=[]):
            # As the training built it: frozen weights may be new ones.
            torch.manual_seed(seed_of(config.seed, "weights"))
            built = config.objective.build()
        if config.objective.freeze:
            built.freeze_parts(config.objective.freeze, torch.float32)
        checkpoint.restore_model(built, state)
        folder = Path(top, "model")
        folder.mkdir()
        write(built, folder)
        yield str(folder), int(state["step"])


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            yield f"{prefix}{name}", value
