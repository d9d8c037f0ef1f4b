"""The streams of a training: of pairs, of interleaved documents, or of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.objectives.config import ObjectiveConfig
from models.objectives.registry import OBJECTIVES
from pipeline.manifest.train_config import Source, TrainConfig
from pipeline.training.data import Pairs, Position, Stream, files_of, has_documents
from pipeline.training.interleaved import Interleaved

__all__ = ["all_positions", "open_streams", "own_positions"]


def open_streams(config: TrainConfig, sources: Sequence[Source]) -> list[Stream[Any]]:
    """The first stream of each kind, that of pairs first.

    An epoch is a pass over the first kind. The other kind starts again after its last example.

    Args:
        config: The config of the training.
        sources: Its data.

    Raises:
        ValueError: The objective does not read such data, or they do not fit its batches.
    """
    objective = config.objective
    documents = [source for source in sources if has_documents(files_of(source))]
    number, _ = objective.document_settings()
    if documents and not number:
        reading = [name for name, kind in OBJECTIVES.usable() if _reads_documents(kind)]
        raise ValueError(
            f"train.data: {documents[0].path} holds interleaved documents, which objective "
            f"{objective.name} does not read; use {' or '.join(reading)}"
        )
    if documents and number % (shares := config.streams * config.accumulate):
        raise ValueError(
            f"train.document_batch_size must be a multiple of {shares}, {config.streams} streams "
            f"times accumulate {config.accumulate}, got {number}"
        )
    settings = {
        "seed": config.seed,
        "num_streams": config.streams,
        "shuffle_buffer": config.shuffle_buffer,
    }
    streams: list[Stream[Any]] = []
    if pairs := [source for source in sources if source not in documents]:
        reads_conversations = objective.reads_conversations
        streams.append(Pairs(pairs, conversations=reads_conversations, **settings))
    if documents:
        streams.append(Interleaved(documents, **settings))
    for stream in streams:
        needed = getattr(objective, stream.field)
        if stream.images_an_epoch < needed:
            raise ValueError(
                f"train.{stream.field} is {needed}, but an epoch has only "
                f"{stream.images_an_epoch} {stream.noun}: use a smaller {stream.field}"
            )
    return streams


def _reads_documents(kind: Any) -> bool:
    return kind.document_settings is not ObjectiveConfig.document_settings


def own_positions(whole: Sequence[Position], kinds: int, rank: int, ranks: int) -> list[Position]:
    """Those positions of all streams, kind by kind, that are of a rank's streams.

    Args:
        whole: Of the streams of all ranks: the first kind, then the second.
        kinds: How many kinds there are.
        rank: The rank.
        ranks: How many there are.
    """
    each = len(whole) // (kinds * ranks)
    starts = range(rank * each, len(whole), ranks * each)
    return [position for start in starts for position in whole[start : start + each]]


def all_positions(gathered: Sequence[Any], kinds: int, ranks: int) -> list[Any]:
    """Entries of the streams of all ranks, kind by kind, out of those of one rank after another."""
    each = len(gathered) // (kinds * ranks)
    return [
        entry
        for kind in range(kinds)
        for rank in range(ranks)
        for entry in gathered[(rank * kinds + kind) * each :][:each]
    ]
