"""Measures how often a model scores a true text above a near miss of it, by kind of change."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from models.inference.protocols import Matches, Ranks
from models.metrics import roc_auc
from models.random import seed_of
from models.text.near_misses import KINDS, Kind, NearMisses, words_of

__all__ = ["NearMissScores", "score_near_misses"]

Floats = npt.NDArray[np.float64]


@dataclass
class NearMissScores:
    """The scores of pairs of a true text and a near miss of it.

    Attributes:
        images: The image of each pair.
        true: The score of each true text.
        near: The score of its near miss.
        is_probability: Whether scores are probabilities of a match; otherwise they are cosines.
    """

    is_probability: bool
    images: list[int] = field(default_factory=list)
    true: list[float] = field(default_factory=list)
    near: list[float] = field(default_factory=list)

    def statistic(self, weights: Floats) -> dict[str, float]:
        """Measures in which each image counts as often as its weight.

        If all pairs have weight 0, which can happen in a bootstrap over few images, each counts
        once.

        Returns:
            accuracy, the share of pairs in which the true text scores higher (a tie counts half);
            roc_auc of all true texts against all near misses; and for probabilities, accepted_true
            and accepted_false, the shares of texts with a probability of at least 0.5.
        """
        each = weights[np.array(self.images, int)]
        each = each if each.any() else np.ones(len(each))
        true, near = np.array(self.true), np.array(self.near)
        total = float(each.sum())
        measures = {
            "accuracy": float(each @ ((true > near) + 0.5 * (true == near))) / total,
            "roc_auc": roc_auc(true, near, each, each),
        }
        if self.is_probability:
            measures["accepted_true"] = float(each @ (true >= 0.5)) / total
            measures["accepted_false"] = float(each @ (near >= 0.5)) / total
        return measures


def score_near_misses(
    ranker: Ranks,
    images: Sequence[bytes],
    captions: Sequence[Sequence[str]],
    make: NearMisses,
    batch_size: int,
    seed: int,
) -> dict[str, NearMissScores]:
    """Score one near miss of each kind for each image, and the true text it was made from.

    Args:
        ranker: The model; scores are match probabilities if it matches, otherwise cosines.
        images: Encoded images.
        captions: The true texts of each image.
        make: Makes near misses.
        batch_size: Images at a time.
        seed: The seed that draws the texts and the changes.

    Returns:
        The scores by kind of change; a kind without near misses is left out.
    """
    asked: list[list[str]] = [[] for _ in images]
    kinds: list[list[Kind]] = [[] for _ in images]
    for number, own in enumerate(captions):
        rng = random.Random(seed_of(seed, "near misses", number))
        known = words_of(own)
        for kind in KINDS:
            texts = rng.sample(list(own), len(own))
            misses = (make(text, rng, known=known, kind=kind) for text in texts)
            pair = next(((t, m.text) for t, m in zip(texts, misses, strict=True) if m), None)
            if pair is not None:
                kinds[number].append(kind)
                asked[number] += pair
    scores = _scores(ranker, images, asked, batch_size)
    result: dict[str, NearMissScores] = {}
    for number, (own_kinds, values) in enumerate(zip(kinds, scores, strict=True)):
        for slot, kind in enumerate(own_kinds):
            of_kind = result.setdefault(kind, NearMissScores(isinstance(ranker, Matches)))
            of_kind.images.append(number)
            of_kind.true.append(float(values[2 * slot]))
            of_kind.near.append(float(values[2 * slot + 1]))
    return {kind: result[kind] for kind in KINDS if kind in result}


def _scores(
    ranker: Ranks, images: Sequence[bytes], texts: Sequence[Sequence[str]], batch_size: int
) -> list[Floats]:
    """The scores of the texts of each image."""
    if isinstance(ranker, Matches):
        matched = ranker.match(images, texts, batch_size)
        return [logits.double().softmax(-1)[:, 1].cpu().numpy() for logits in matched]
    embedded = ranker.embed_images(images, batch_size)
    flat = ranker.embed_texts([text for own in texts for text in own])
    scores, start = [], 0
    for image, own in zip(embedded, texts, strict=True):
        cosine = flat[start : start + len(own)] @ (image.mT if image.ndim > 1 else image)
        start += len(own)
        scores.append((cosine.amax(-1) if cosine.ndim > 1 else cosine).double().cpu().numpy())
    return scores
