"""The logs of a training: a line of numbers a step, and captions that the model writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch

from models.objectives.base import Objective
from pipeline.training.checkpoint import cut_log
from pipeline.training.flops import peak_of
from pipeline.training.loader import Loaded

__all__ = ["Log", "rounded", "timing"]

SAMPLES = 4

NO_NUMBERS = ("step", "changed", "validation")
"""What a line holds that TensorBoard shows otherwise or not."""


class Log:
    """The logs in the folder of an unfinished training.

    Attributes:
        metrics: A line of JSON for each step.
        samples: Captions written on the way.

    Args:
        partial: The folder.
        tensorboard: Whether TensorBoard's events are written, too.
    """

    def __init__(self, partial: Path, tensorboard: bool) -> None:
        self.metrics = partial / "metrics.jsonl"
        self.samples = partial / "samples.jsonl"
        self.tensorboard = tensorboard
        self._file: Any = None
        self._events: Any = None

    def open(self, step: int) -> Self:
        """Go on behind a step; lines behind it are removed.

        Raises:
            ValueError: A package is missing.
        """
        for path in (self.metrics, self.samples):
            cut_log(path, step)
        self._file = self.metrics.open("a", encoding="utf-8")
        if self.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise ValueError(
                    "train.tensorboard needs a package: pip install 'capfilt[tensorboard]'"
                ) from None
            folder = str(self.metrics.with_name("tensorboard"))
            self._events = SummaryWriter(folder, purge_step=step + 1)
        return self

    def write(self, row: Mapping[str, Any]) -> None:
        """Write the line of a step."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._events is None:
            return
        numbers = {name: value for name, value in row.items() if name not in NO_NUMBERS}
        measured = row.get("validation", {})
        numbers |= {f"validation/{name}": value for name, value in measured.items()}
        for name, value in numbers.items():
            self._events.add_scalar(name, value, row["step"])

    @torch.no_grad()
    def sample(self, model: Objective, loaded: Loaded, step: int) -> None:
        """Write what a model says of the first images of a batch, if it writes captions."""
        device = next(model.parameters()).device
        halves = any(p.dtype == torch.bfloat16 for p in model.parameters())
        model.eval()
        with torch.autocast(device.type, torch.bfloat16, enabled=halves):
            texts = model.sample(loaded.on(device, model)[0].pixels[:SAMPLES])
        model.train()
        if not texts:
            return
        with self.samples.open("a", encoding="utf-8") as file:
            for caption, text in zip(loaded.captions, texts, strict=False):
                row = {"step": step, "caption": caption, "written": text}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Close the files."""
        for opened in (self._file, self._events):
            if opened is not None:
                opened.close()


def timing(
    images: int, flops: float, waited: float, seconds: float, device: torch.device
) -> dict[str, float]:
    """What a line says of the time of a step.

    Args:
        images: Of the step, on all ranks.
        flops: Operations of the step on this rank; see `pipeline.training.flops`.
        waited: Seconds until the batch was there.
        seconds: Of the whole step.
        device: Whose peak `mfu` is a share of, where it is known.
    """
    computed = seconds - waited
    found = {
        "images_per_second": round(images / seconds, 1),
        "wait_seconds": round(waited, 4),
        "compute_seconds": round(computed, 4),
        "tflops": round(flops / computed / 1e12, 4),
    }
    if (peak := peak_of(device)) is not None:
        found["mfu"] = round(flops / computed / peak, 4)
    return found


def rounded(values: Mapping[str, float], names: Sequence[str] | None = None) -> dict[str, float]:
    """Some values as a line has them, those of `names` or all."""
    return {name: round(values[name], 6) for name in (values if names is None else names)}
