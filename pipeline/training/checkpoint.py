"""The checkpoint that a training resumes from: one safetensors file, checked by a digest."""

from __future__ import annotations

import contextlib
import hashlib
import json
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
from models.objectives.distributed import rank
from pipeline.storage.checksum import CHANGED
from pipeline.training.sharding import part_of, whole

__all__ = ["Checkpoint", "check_finite", "cut_log", "flush"]

FORMAT = 2
"""The version of the format; raise it when the tensors or the state in a checkpoint change."""


class Checkpoint:
    """The checkpoint of a training.

    It holds the trained parameters, the objective's `memory()` and the state of the optimiser, but
    no frozen parameters. A weight that two parts of the model share is written once. `previous` is
    the path of the checkpoint before it, which is kept.

    Args:
        path: The path of the file.
        identity: The digest of the training's settings, data and start. A file with another
            identity is of another training.
        means: Running means of the trained weights, by name, if the training keeps some.
    """

    def __init__(
        self, path: Path, identity: str, means: Mapping[str, Tensor] | None = None
    ) -> None:
        self.path = path
        self.means = means or {}
        self.previous = path.with_name(f"previous-{path.name}")
        self.identity = identity

    def is_own(self, state: Mapping[str, Any]) -> bool:
        """Whether a state has this training's identity and this version's format."""
        return (state["identity"], state["format"]) == (self.identity, FORMAT)

    def save(self, objective: Objective, optimizer: torch.optim.Optimizer, **state: Any) -> None:
        """Write a checkpoint on rank 0; it replaces the previous one when it is complete.

        Every rank calls this where weights are divided, and gives its part.

        Args:
            objective: The model.
            optimizer: Its optimiser.
            state: JSON-able values that `read` returns.

        Raises:
            FloatingPointError: A tensor is not finite; nothing is written.
        """
        named = {}
        for name, value in self._tensors(objective, optimizer).items():
            complete = whole(value)
            if rank() == 0:
                named[name] = value if complete is value else complete.detach().cpu()
        if rank():
            return
        check_finite(named)
        tensors = {name: value.detach().cpu().contiguous() for name, value in named.items()}
        told: dict[str, Any] = {"identity": self.identity, "format": FORMAT, **state}
        told["sha256"] = _sha256(told, sorted(tensors.items()))
        partial = self.path.with_name(self.path.name + ".partial")
        save_file(tensors, partial, metadata={"state": json.dumps(told)})
        flush(partial)
        if self.path.exists():
            self.path.replace(self.previous)
        partial.replace(self.path)

    def read(self) -> dict[str, Any]:
        """Read the state of the checkpoint; empty if there is none.

        If the file is missing, the previous checkpoint replaces it.

        Raises:
            DamagedError: The file is damaged.
        """
        if not self.path.exists():
            if not self.previous.exists():
                return {}
            with contextlib.suppress(FileNotFoundError):  # another rank was faster
                self.previous.replace(self.path)
        try:
            with safe_open(self.path, "pt") as file:
                state: dict[str, Any] = json.loads(file.metadata()["state"])
            if not state["identity"]:
                raise ValueError("it does not say of which training it is")
            state.setdefault("format", None)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(error) from error
        return state

    def check_fit(self, objective: Objective) -> None:
        """Check that the tensors of another training fit a model.

        Raises:
            ValueError: A name or a shape differs; the message names the first one.
        """
        own = {name: list(t.shape) for name, t in self._tensors(objective).items()}
        with safe_open(self.path, "pt") as file:
            keys = [key for key in list(file.keys()) if not key.startswith("optimizer.")]
            saved = {key: file.get_slice(key).get_shape() for key in keys}
        for name in sorted(own.keys() | saved.keys()):
            if own.get(name) != saved.get(name):
                raise ValueError(
                    f"{self.path} does not fit the model: {name} is "
                    f"{saved.get(name, 'missing')} in the checkpoint and "
                    f"{own.get(name, 'missing')} in the model. Restore the setting, or leave out "
                    "--continue to restart the training; the checkpoint is then set aside"
                )

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
        trained = objective.trained()
        with safe_open(self.path, "pt") as file:
            keys = self._checked(file, state)
            for key in keys:
                kind, _, name = key.partition(".")
                if kind == "optimizer":
                    slot, _, name = name.partition(".")
                    if name in trained:
                        own = trained[name]
                        value = file.get_tensor(key).to(own.device)
                        is_like = value.shape == own.shape  # and not the number of steps
                        optimizer.state[own][slot] = part_of(value, own) if is_like else value
            tensors = self._tensors(objective, optimizer)
            if other := tensors.keys() ^ set(keys):
                raise self._damaged(f"only one of it and the model has {min(other)}")
            for key, tensor in tensors.items():
                if not key.startswith("optimizer."):
                    tensor.copy_(part_of(file.get_tensor(key).to(tensor.device), tensor))

    @torch.no_grad()
    def restore_model(self, objective: Objective, state: Mapping[str, Any]) -> None:
        """Copy only the trained parameters of the checkpoint, or their means, into a model.

        Raises:
            DamagedError: The file is damaged, or lacks a parameter of the model.
        """
        with safe_open(self.path, "pt") as file:
            keys = self._checked(file, state)
            for name, parameter in objective.trained().items():
                found = [key for key in (f"mean.{name}", f"model.{name}") if key in keys]
                if not found:
                    raise self._damaged(f"it lacks {name}")
                parameter.copy_(file.get_tensor(found[0]))

    def _checked(self, file: Any, state: Mapping[str, Any]) -> list[str]:
        """The names of the tensors in the open file, after a check of their digest."""
        whole = dict(state)
        keys = sorted(file.keys())
        saved = ((key, file.get_tensor(key)) for key in keys)
        if whole.pop("sha256", None) != _sha256(whole, saved):
            raise self._damaged(CHANGED)
        return keys

    def _tensors(
        self, objective: Objective, optimizer: torch.optim.Optimizer | None = None
    ) -> dict[str, Tensor]:
        """All tensors that a training step changes, by name; the optimiser's only if given."""
        trained = objective.trained()
        tensors: dict[str, Tensor] = {f"model.{name}": p for name, p in trained.items()}
        tensors |= {f"mean.{name}": value for name, value in self.means.items()}
        tensors |= {f"memory.{name}": value for name, value in objective.memory().items()}
        for name, parameter in trained.items():
            state = {} if optimizer is None else optimizer.state.get(parameter, {})
            for key, value in state.items():
                tensors[f"optimizer.{key}.{name}"] = value
        return tensors

    def _damaged(self, why: object) -> DamagedError:
        do = "continue from the previous one" if self.previous.exists() else "restart the training"
        return DamagedError(f"{self.path}: damaged: {why}. Remove it to {do}")


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Check that all values of tensors are finite.

    Raises:
        FloatingPointError: A value is not finite; the message names the first such tensor.
    """
    floats = {name: t for name, t in tensors.items() if t.is_floating_point()}
    norms = torch.stack([norm.float().cpu() for norm in torch._foreach_norm(list(floats.values()))])
    for (name, tensor), norm in zip(floats.items(), norms, strict=True):
        # A sum of squares may overflow where no value does.
        if not norm.isfinite() and not tensor.isfinite().all():
            raise FloatingPointError(
                f"train: {name} has values that are not finite, and is not saved: lower lr, and "
                "continue from the last checkpoint with `capfilt train MANIFEST --continue`"
            )


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


def _sha256(state: Mapping[str, Any], tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The SHA-256 of a state and of the names, dtypes, shapes and values of tensors."""
    sha256 = hashlib.sha256(json.dumps(state).encode())
    for name, tensor in tensors:
        sha256.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()
