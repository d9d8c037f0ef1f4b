"""Changes of course: a training that goes on from a checkpoint of other settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.manifest.train_config import TrainConfig, start_of
from pipeline.training.checkpoint import FORMAT
from pipeline.training.data import Position, Stream
from stages.base import digest

__all__ = ["Turn", "changed_settings", "check_same_course", "identity_of", "shift_of", "turned"]

WITHOUT_NOTE = ("data", "tokenizer", "checkpoint_every", "sample_every", "tensorboard")
"""Settings that are not compared: data by its content, and those that no tensor depends on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """A change of course.

    Attributes:
        step: The step of the checkpoint that the training went on from.
        changed: The settings that changed, each with what it was and what it is.
    """

    step: int
    changed: Mapping[str, Sequence[Any]]

    def __str__(self) -> str:
        if not self.changed:
            return f"from step {self.step} with another version of capfilt"
        named = ", ".join(f"{name} {was} -> {now}" for name, (was, now) in self.changed.items())
        return f"from step {self.step} with {named}"


def identity_of(config: TrainConfig, start: Sequence[str], content: Sequence[Any]) -> str:
    """The digest of everything that the result of a training depends on.

    Args:
        config: The config of the training.
        start: Revisions of the weights from which it starts.
        content: The weight and sha256 of each source.
    """
    settings = config.measurement() | {"tokenizer": None, "data": ()}
    for field, model in config.objective.models().items():
        if start_of(model):  # the revisions identify the weights, wherever the folder is
            name, _, part = field.partition(".")
            settings[name] = {**settings[name], part: None} if part else None
    return digest([settings, list(start), content])


def changed_settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The settings that differ, each with both values; null where one has no such setting."""
    names = dict.fromkeys((*before, *after))
    return {
        name: [before.get(name), after.get(name)]
        for name in names
        if name not in WITHOUT_NOTE and before.get(name) != after.get(name)
    }


def check_same_course(state: Mapping[str, Any], basis: Mapping[str, Any], path: object) -> None:
    """Refuse a checkpoint whose tensors mean something else in this training.

    Args:
        state: Of the checkpoint.
        basis: Of this training: its objective, the content of its data, the revisions of the
            weights that it starts from.
        path: Of the checkpoint, for messages.

    Raises:
        ValueError: The message says what differs.
    """
    before = state.get("basis")
    if before is None or state["format"] != FORMAT:
        raise ValueError(
            f"{path} was written by another version of capfilt, and cannot go on with other "
            "settings: leave out --continue, and the training starts over; the checkpoint is set "
            "aside"
        )
    differing = [name for name in basis if before.get(name) != basis[name]]
    if differing:
        raise ValueError(
            f"{path} is of a training with other {' and '.join(differing)}, and cannot go on here: "
            "leave out --continue, and the training starts over; the checkpoint is set aside"
        )


def shift_of(state: Mapping[str, Any], field: str, batch_size: int) -> int:
    """What is added to the number of a step so that epochs are counted in batches of a new size.

    Args:
        state: Of the checkpoint.
        field: The setting that says how large a batch is.
        batch_size: The new size.
    """
    step, batches = int(state["step"]), int(state["step"] + state["shift"])
    return round(batches * int(state["settings"][field]) / batch_size) - step


def turned(
    streams: Sequence[Stream[Any]], state: Mapping[str, Any], config: TrainConfig
) -> list[Position]:
    """Where each stream goes on that the positions of a checkpoint are of other streams for.

    The new streams begin where the old ones together had come to. Within the epoch some images are
    met twice and others not at all; from the next epoch on all are met again.

    Args:
        streams: The new streams, kind by kind.
        state: Of the checkpoint.
        config: The training as it is now.
    """
    before, whole = state["settings"], positions_of(state)
    share = config.streams // config.workers
    each = len(whole) * share // len(streams)
    return [
        position
        for kind in range(len(streams) // share)
        for position in _turned(
            streams[kind * share :][:share], whole[kind * each :][:each], before, config
        )
    ]


def _turned(
    streams: Sequence[Stream[Any]],
    positions: Sequence[Position],
    before: Mapping[str, Any],
    config: TrainConfig,
) -> list[Position]:
    """The same for the streams of one kind."""
    dealing = ("streams", "shuffle_buffer", "seed")
    if all(before[name] == getattr(config, name) for name in dealing):
        return [positions[stream.stream] for stream in streams]
    done = 0.0
    for number, position in enumerate(positions):
        old = streams[0].like(
            stream=number,
            num_streams=before["streams"],
            shuffle_buffer=before["shuffle_buffer"],
            seed=before["seed"],
        )
        done += old.epochs_before(position) / len(positions)
    return [stream.position_after(done) for stream in streams]


def positions_of(state: Mapping[str, Any]) -> list[Position]:
    """Where each stream of a checkpoint stands."""
    return [Position(epoch=e, block=b, offset=o) for e, b, o, _ in state["streams"]]
