"""What retrieval, captioning and matching are measured by, as the literature computes it."""

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
"""The width, in words, of CIDEr-D's penalty on a difference in length."""


def words_of(caption: str) -> list[str]:
    """Lower-case words without punctuation; an apostrophe stays within its word."""
    return re.findall(r"\w+(?:'\w+)*", caption.lower())


def _ngrams(words: Sequence[str], order: int) -> Ngrams:
    return Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))


def bleu_counts(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> npt.NDArray[np.int64]:
    """The counts of each image that BLEU@4 of a corpus is computed from, by `bleu_of`.

    Args:
        candidates: One caption an image.
        references: The true captions of each image.

    Returns:
        (images, 10): the n-grams that match for n = 1 to 4, clipped to the most in one reference;
        the n-grams of the candidate for n = 1 to 4; its words; the words of the reference that is
        closest in length, the shorter one in a tie.
    """
    rows = []
    for candidate, truths in zip(candidates, references, strict=True):
        words = words_of(candidate)
        split = [words_of(truth) for truth in truths]
        matched, proposed = [], []
        for order in range(1, MAX_ORDER + 1):
            found = _ngrams(words, order)
            most: Ngrams = Counter()
            for truth in split:
                most |= _ngrams(truth, order)
            matched.append(sum((found & most).values()))
            proposed.append(sum(found.values()))
        closest = min((abs(len(t) - len(words)), len(t)) for t in split)[1]
        rows.append([*matched, *proposed, len(words), closest])
    return np.array(rows, np.int64)


def bleu_of(counts: npt.NDArray[np.number]) -> float:
    """BLEU@4 of a corpus (Papineni et al., 2002), without smoothing, 0 to 1.

    The geometric mean of the n-gram precisions of the whole corpus over n = 1 to 4, times the
    brevity penalty.

    Args:
        counts: The sum over the images of `bleu_counts`, (10,).
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
    """CIDEr-D of each image (Vedantam et al., arXiv:1411.5726), as COCO's evaluation, 0 to 10.

    The mean over n = 1 to 4 and the references of the clipped tf-idf cosine, times a Gaussian
    penalty on the difference in length, times 10. Document frequencies are those of the
    references, an image a document. COCO's tables show 100 times the value. Words are not
    stemmed. The tokenizer is `words_of`, not the PTB tokenizer of COCO's Java.

    Args:
        candidates: One caption an image.
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
            # COCO's code takes the number of bigrams for the length; a difference of one text's
            # words is the same, except for empty texts.
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
    """Which images find a text of theirs among the k best, and which texts their image.

    Their means are the recalls of text retrieval (TR@k) and of image retrieval (IR@k). A tie
    counts against the truth.

    Args:
        similarity: (images, texts).
        owners: For each text the row of its image; every image has a text.
        ks: Cut-offs.

    Returns:
        For each k, (images,) and (texts,).
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
    """The chance that a positive scores above a negative, a tie counted half.

    Args:
        positive: Scores of the true pairs.
        negative: Scores of the others.
        positive_weights: How often each counts, once by default.
        negative_weights: The same.
    """
    if positive_weights is None:
        positive_weights = np.ones(len(positive))
    if negative_weights is None:
        negative_weights = np.ones(len(negative))
    order = np.argsort(negative, kind="stable")
    mass = np.concatenate([[0.0], np.cumsum(negative_weights[order])])
    below = mass[np.searchsorted(negative[order], positive, side="left")]
    upto = mass[np.searchsorted(negative[order], positive, side="right")]
    whole = 2 * mass[-1] * positive_weights.sum()
    return float(((below + upto) * positive_weights).sum() / whole)


def bootstrap(
    statistic: Callable[[npt.NDArray[np.float64]], dict[str, float]],
    num_images: int,
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals over the choice of the test images (Efron, 1979).

    The images that are searched stay the same; what is drawn anew is which of them count.

    Args:
        statistic: The metrics where image i counts weights[i] times.
        num_images: n.
        seed: Of the draws.
        resamples: How many.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        chosen = rng.integers(num_images, size=num_images)
        drawn.append(statistic(np.bincount(chosen, minlength=num_images).astype(np.float64)))
    bounds = {name: np.percentile([row[name] for row in drawn], (2.5, 97.5)) for name in drawn[0]}
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}
