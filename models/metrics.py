"""Metrics of retrieval, captioning and matching."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

__all__ = [
    "bleu_counts",
    "bleu_of",
    "bootstrap",
    "cider_scores",
    "retrieval_hits",
    "roc_auc",
    "words_of",
]

Ngrams = Counter[tuple[str, ...]]
Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]

MAX_ORDER = 4

CIDER_SIGMA = 6.0
"""Standard deviation, in words, of CIDEr-D's penalty on a difference in length."""


def words_of(caption: str) -> list[str]:
    """Return the lower-case words of a caption without punctuation; apostrophes in words stay."""
    return re.findall(r"\w+(?:'\w+)*", caption.lower())


def _ngrams(words: Sequence[str], order: int) -> Ngrams:
    return Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))


def bleu_counts(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> npt.NDArray[np.int64]:
    """Count the n-grams of each image; `bleu_of` computes BLEU@4 from their sum.

    Args:
        candidates: One caption per image.
        references: The true captions of each image.

    Returns:
        (images, 10): matching n-grams for n = 1 to 4, clipped to the maximum in one reference;
        n-grams of the candidate for n = 1 to 4; words of the candidate; words of the reference
        closest in length (the shorter one in a tie).
    """
    rows = []
    for candidate, truths in zip(candidates, references, strict=True):
        words = words_of(candidate)
        split = [words_of(truth) for truth in truths]
        matched, proposed = [], []
        for order in range(1, MAX_ORDER + 1):
            grams = _ngrams(words, order)
            max_counts: Ngrams = Counter()
            for truth in split:
                max_counts |= _ngrams(truth, order)
            matched.append(sum((grams & max_counts).values()))
            proposed.append(sum(grams.values()))
        closest = min((abs(len(t) - len(words)), len(t)) for t in split)[1]
        rows.append([*matched, *proposed, len(words), closest])
    return np.array(rows, np.int64)


def bleu_of(counts: npt.NDArray[np.number]) -> float:
    """Compute BLEU@4 of a corpus (Papineni et al., 2002), without smoothing, from 0 to 1.

    This is the geometric mean of the n-gram precisions of the corpus for n = 1 to 4, times the
    brevity penalty.

    Args:
        counts: The sum of `bleu_counts` over the images, (10,).
    """
    matched, proposed = counts[:MAX_ORDER], counts[MAX_ORDER : 2 * MAX_ORDER]
    length, reference_length = counts[-2:]
    if not matched.all():
        return 0.0
    brevity = min(0.0, 1 - reference_length / length)
    return math.exp(brevity + float(np.log(matched / proposed).mean()))


def cider_scores(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> npt.NDArray[np.float64]:
    """Compute CIDEr-D of each image (Vedantam et al., arXiv:1411.5726), from 0 to 10.

    As in COCO's evaluation, this is the mean over n = 1 to 4 and the references of the clipped
    tf-idf cosine, times a Gaussian penalty on the difference in length, times 10. Document
    frequencies count the images whose references contain an n-gram. COCO's tables show 100 times
    the value. Words are not stemmed, and the tokenizer is `words_of` instead of COCO's PTB
    tokenizer.

    Args:
        candidates: One caption per image.
        references: The true captions of each image.
    """
    frequency: Counter[tuple[str, ...]] = Counter()
    for truths in references:
        seen: set[tuple[str, ...]] = set()
        for truth in truths:
            for order in range(1, MAX_ORDER + 1):
                seen.update(_ngrams(words_of(truth), order))
        frequency.update(seen)
    documents = math.log(len(references))

    def weigh(words: list[str], order: int) -> dict[tuple[str, ...], float]:
        return {
            gram: count * (documents - math.log(max(1, frequency[gram])))
            for gram, count in _ngrams(words, order).items()
        }

    scores = []
    for candidate, truths in zip(candidates, references, strict=True):
        words = words_of(candidate)
        total = 0.0
        for truth in truths:
            reference = words_of(truth)
            # COCO's code takes the number of bigrams as length; the difference is the same as for
            # words, except for empty texts.
            penalty = math.exp(-((len(words) - len(reference)) ** 2) / (2 * CIDER_SIGMA**2))
            for order in range(1, MAX_ORDER + 1):
                own, other = weigh(words, order), weigh(reference, order)
                norm = math.hypot(*own.values()) * math.hypot(*other.values())
                if norm:
                    dot = sum(min(own[g], other[g]) * other[g] for g in own.keys() & other.keys())
                    total += penalty * dot / norm
        scores.append(10 * total / MAX_ORDER / len(truths))
    return np.array(scores)


def retrieval_hits(
    similarity: Floats, owners: Sequence[int], ks: Sequence[int] = (1, 5, 10)
) -> tuple[dict[int, Bools], dict[int, Bools]]:
    """Find the images with one of their texts among the k best, and the texts with their image.

    The means are the recalls of text retrieval (TR@k) and image retrieval (IR@k). In a tie the true
    match ranks last.

    Args:
        similarity: (images, texts).
        owners: Row of the image of each text; every image has a text.
        ks: Values of k.

    Returns:
        Two mappings from k, to bool (images,) and to bool (texts,).
    """
    own = np.asarray(owners)
    columns = np.arange(len(own))
    theirs = own[None, :] == np.arange(len(similarity))[:, None]
    best = np.where(theirs, similarity, -np.inf).max(axis=1)
    text_ranks = ((similarity >= best[:, None]) & ~theirs).sum(axis=1)
    image_ranks = (similarity >= similarity[own, columns][None, :]).sum(axis=0) - 1
    return {k: text_ranks < k for k in ks}, {k: image_ranks < k for k in ks}


def roc_auc(
    positive: Floats,
    negative: Floats,
    positive_weights: Floats | None = None,
    negative_weights: Floats | None = None,
) -> float:
    """Compute the probability that a positive scores above a negative; a tie counts half.

    Args:
        positive: Scores of the matching pairs.
        negative: Scores of the other pairs.
        positive_weights: Weight of each positive, 1 by default.
        negative_weights: Weight of each negative, 1 by default.
    """
    if positive_weights is None:
        positive_weights = np.ones(len(positive))
    if negative_weights is None:
        negative_weights = np.ones(len(negative))
    order = np.argsort(negative, kind="stable")
    mass = np.concatenate([[0.0], np.cumsum(negative_weights[order])])
    below = mass[np.searchsorted(negative[order], positive, side="left")]
    upto = mass[np.searchsorted(negative[order], positive, side="right")]
    total = 2 * mass[-1] * positive_weights.sum()
    return float(((below + upto) * positive_weights).sum() / total)


def bootstrap(
    statistic: Callable[[npt.NDArray[np.float64]], dict[str, float]],
    num_images: int,
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, tuple[float, float]]:
    """Compute 95 % percentile bootstrap intervals over the test images (Efron, 1979).

    Retrieval still searches all images; only the weights of the images change.

    Args:
        statistic: Computes the metrics if image i counts weights[i] times.
        num_images: Number of images.
        seed: Seed of the resampling.
        resamples: Number of resamples.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        chosen = rng.integers(num_images, size=num_images)
        drawn.append(statistic(np.bincount(chosen, minlength=num_images).astype(np.float64)))
    bounds = {name: np.percentile([row[name] for row in drawn], (2.5, 97.5)) for name in drawn[0]}
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}
