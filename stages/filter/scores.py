"""The scores of texts: what each model found of a text and its sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.embed import vectors

__all__ = ["SCORES", "ModelScores", "compare", "measure", "parts_of"]

SCORES = ("itm", "itc", "clip", "second_clip")


@dataclass(frozen=True)
class ModelScores:
    """The scores by one model: what it was asked of each row, and the measures of each text."""

    prepare: Callable[[str], str]
    asked: list[list[str]]
    known: list[dict[str, dict[str, Any]]]

    def of(self, row: int, text: str) -> dict[str, Any]:
        """The measures of a text of a row; nothing where it has none."""
        return dict(self.known[row].get(self.prepare(text), {}))


def measure(
    scored: Mapping[str, ModelScores],
    row: int,
    text: str | None,
    sentences: Mapping[str, list[str]],
) -> dict[str, Any]:
    """The scores of a text, its sentences and how many tokens of it were not read."""
    if not text:
        return {}
    parts = []
    unread: dict[str, int] = {}
    for part in parts_of(text, sentences):
        found: dict[str, Any] = {}
        for role, scores in scored.items():
            measures = scores.of(row, part)
            unread[role] = unread.get(role, 0) + measures.pop("unread", 0)
            if "cosine" in measures:
                measures[role] = measures.pop("cosine")
            found |= measures
        parts.append(found)
    whole: dict[str, Any] = {
        name: max(values)
        for name in SCORES
        if (values := [part[name] for part in parts if name in part])
    }
    if whole:
        whole["unread"] = max(unread.values())
    if text in sentences:
        own = zip(sentences[text], parts, strict=True)
        whole["sentences"] = [{"text": sentence, **measures} for sentence, measures in own]
    return whole


def parts_of(text: str, sentences: Mapping[str, list[str]]) -> list[str]:
    """The parts of a text that the models read: the text itself, or each of its sentences."""
    return [part.strip() for part in sentences[text]] if text in sentences else [text]


def compare(model: Any, column: Any, texts: list[list[str]]) -> list[list[Any]]:
    """The similarities of the texts of each row with its image, of which there is an embedding."""
    import torch

    embeddings, has = vectors(column)
    units = torch.nn.functional.normalize(torch.from_numpy(embeddings.astype(np.float32)), dim=-1)
    some = [own for own, there in zip(texts, has, strict=True) if there]
    found = iter(model.compare(units, some))
    return [next(found) if there else [] for there in has]
