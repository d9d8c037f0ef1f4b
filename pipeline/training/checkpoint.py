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
from pipeline.storage.checksum import CHANGED

__all__ = ["Checkpoint", "cut_log", "flush"]

logger = logging.getLogger(__name__)


class Checkpoint:
    """The checkpoint of one training.

    It holds the model's parameters, the tensors of its momentum encoders' queue and the state of
    the optimiser. A weight that two parts of the model share is written once.

    Args:
        path: The file.
        identity: The digest of what the training depends on. A checkpoint of another identity is
            ignored.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self.identity = identity

    def save(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, **state: Any) -> None:
        """Write a checkpoint; the one before stays until the new one is whole.

        Args:
            model: The model.
            optimizer: Its optimiser.
            state: JSON-able values that `read` returns.
        """
        named = _tensors(model, optimizer)
        tensors = {name: value.detach().cpu().contiguous() for name, value in named.items()}
        whole: dict[str, Any] = {"identity": self.identity, **state}
        whole["sha256"] = _sha256(whole, sorted(tensors.items()))
        partial = self.path.with_name(self.path.name + ".partial")
        save_file(tensors, partial, metadata={"state": json.dumps(whole)})
        flush(partial)
        partial.replace(self.path)

    def read(self) -> dict[str, Any]:
        """Read the state of the checkpoint; empty where there is none of this training.

        Raises:
            DamagedError: The file is damaged.
        """
        if not self.path.exists():
            return {}
        try:
            with safe_open(self.path, "pt") as file:
                state: dict[str, Any] = json.loads(file.metadata()["state"])
            if state["identity"] != self.identity:
                logger.warning("%s is of another training and is ignored", self.path)
                return {}
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(error) from error
        return state

    @torch.no_grad()
    def restore(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        state: Mapping[str, Any],
    ) -> None:
        """Put the tensors of the checkpoint into a model and its optimiser.

        Args:
            model: The model, built as it was for the training.
            optimizer: A new optimiser.
            state: What `read` returned.

        Raises:
            DamagedError: The file is damaged.
        """
        whole = dict(state)
        named = dict(model.named_parameters())
        with safe_open(self.path, "pt") as file:
            keys = sorted(file.keys())
            saved = ((key, file.get_tensor(key)) for key in keys)
            if whole.pop("sha256", None) != _sha256(whole, saved):
                raise self._damaged(CHANGED)
            for key in keys:
                kind, _, name = key.partition(".")
                if kind == "optimizer":
                    slot, _, name = name.partition(".")
                    value = file.get_tensor(key).to(named[name].device)
                    optimizer.state[named[name]][slot] = value
            for key, tensor in _tensors(model, optimizer).items():
                if not key.startswith("optimizer."):
                    tensor.copy_(file.get_tensor(key))

    def _damaged(self, why: object) -> DamagedError:
        return DamagedError(f"{self.path}: damaged: {why}. Remove it, and the training starts over")


def cut_log(log: Path, step: int) -> None:
    """Remove the lines of a log that come after a step, and a last line that is cut off."""
    if not log.exists():
        return
    rows = log.read_text(encoding="utf-8").split("\n")
    kept = [row for row in rows if row.endswith("}") and json.loads(row)["step"] <= step]
    partial = log.with_name(log.name + ".partial")
    partial.write_text("".join(row + "\n" for row in kept), encoding="utf-8")
    partial.replace(log)


def flush(path: Path) -> None:
    """Write a file through to the disk, so that a rename after it survives a loss of power."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors that a step changes, by name."""
    named = dict(model.named_parameters())
    tensors: dict[str, Tensor] = {f"model.{name}": p for name, p in named.items()}
    momentum = getattr(model, "momentum", None)
    if momentum is not None:
        buffers = momentum.named_buffers()
        tensors |= {f"queue.{name}": value for name, value in buffers if "." not in name}
    for name, parameter in named.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    return tensors


def _sha256(state: Mapping[str, Any], tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The digest of a state and of the names, types, shapes and values of tensors."""
    found = hashlib.sha256(json.dumps(state).encode())
    for name, tensor in tensors:
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
