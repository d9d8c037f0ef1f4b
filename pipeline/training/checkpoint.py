"""The checkpoint that a training resumes from: one safetensors file, checked by a digest."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.errors import DamagedError
from models.objectives.base import Objective
from pipeline.storage.checksum import CHANGED

__all__ = ["Checkpoint", "cut_log", "flush"]

logger = logging.getLogger(__name__)

FORMAT = 2
"""The version of the format; raise it when the tensors or the state in a checkpoint change."""


class Checkpoint:
    """The checkpoint of a training.

    It holds the trained parameters, the objective's `memory()` and the state of the optimiser, but
    no frozen parameters. A weight that two parts of the model share is written once.

    Args:
        path: The path of the file.
        identity: The digest of the training's settings, data and start. A checkpoint with another
            identity or format is ignored.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self.identity = identity

    def save(self, objective: Objective, optimizer: torch.optim.Optimizer, **state: Any) -> None:
        """Write a checkpoint; it replaces the previous one when it is complete.

        Args:
            objective: The model.
            optimizer: Its optimiser.
            state: JSON-able values that `read` returns.
        """
        named = _tensors(objective, optimizer)
        tensors = {name: value.detach().cpu().contiguous() for name, value in named.items()}
        whole: dict[str, Any] = {"identity": self.identity, "format": FORMAT, **state}
        whole["sha256"] = _sha256(whole, sorted(tensors.items()))
        partial = self.path.with_name(self.path.name + ".partial")
        save_file(tensors, partial, metadata={"state": json.dumps(whole)})
        flush(partial)
        partial.replace(self.path)

    def read(self) -> dict[str, Any]:
        """Read the state of the checkpoint; empty if this training has none.

        Raises:
            DamagedError: The file is damaged.
        """
        if not self.path.exists():
            return {}
        try:
            with safe_open(self.path, "pt") as file:
                state: dict[str, Any] = json.loads(file.metadata()["state"])
            is_own = (state["identity"], state.get("format")) == (self.identity, FORMAT)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(error) from error
        if not is_own:
            logger.warning("%s is of another training or version and is ignored", self.path)
            return {}
        return state

    @torch.no_grad()
    def restore(
        self, objective: Objective, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
    ) -> None:
        """Copy the tensors of the checkpoint into a model and its optimiser.

        Args:
            objective: The model, built as it was for the training.
            optimizer: A new optimiser.
            state: The state that `read` returned.

        Raises:
            DamagedError: The file is damaged, or its tensors are not those of the model.
        """
        whole = dict(state)
        trained = objective.trained()
        with safe_open(self.path, "pt") as file:
            keys = sorted(file.keys())
            saved = ((key, file.get_tensor(key)) for key in keys)
            if whole.pop("sha256", None) != _sha256(whole, saved):
                raise self._damaged(CHANGED)
            for key in keys:
                kind, _, name = key.partition(".")
                if kind == "optimizer":
                    slot, _, name = name.partition(".")
                    if name in trained:
                        value = file.get_tensor(key).to(trained[name].device)
                        optimizer.state[trained[name]][slot] = value
            tensors = _tensors(objective, optimizer)
            if other := tensors.keys() ^ set(keys):
                raise self._damaged(f"only one of it and the model has {min(other)}")
            for key, tensor in tensors.items():
                if not key.startswith("optimizer."):
                    tensor.copy_(file.get_tensor(key))

    def _damaged(self, why: object) -> DamagedError:
        return DamagedError(f"{self.path}: damaged: {why}. Remove it to restart the training")


def cut_log(log: Path, step: int) -> None:
    """Remove the rows of a log after a step, and an incomplete last row."""
    if not log.exists():
        return
    rows = log.read_text(encoding="utf-8").split("\n")
    kept = [row for row in rows if row.endswith("}") and json.loads(row)["step"] <= step]
    partial = log.with_name(log.name + ".partial")
    partial.write_text("".join(row + "\n" for row in kept), encoding="utf-8")
    partial.replace(log)


def flush(path: Path) -> None:
    """Sync a file to the disk, so that a rename after it survives a loss of power."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _tensors(objective: Objective, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors that a training step changes, by name."""
    trained = objective.trained()
    tensors: dict[str, Tensor] = {f"model.{name}": p for name, p in trained.items()}
    tensors |= {f"memory.{name}": value for name, value in objective.memory().items()}
    for name, parameter in trained.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    return tensors


def _sha256(state: Mapping[str, Any], tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The SHA-256 of a state and of the names, dtypes, shapes and values of tensors."""
    sha256 = hashlib.sha256(json.dumps(state).encode())
    for name, tensor in tensors:
        sha256.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()
