"""What retrieval, captioning and matching are measured by, as the literature computes it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["bleu", "cider", "retrieval_recall", "roc_auc", "words_of"]

Ngrams = Counter[tuple[str, ...]]
Floats = npt.NDArray[np.floating]

MAX_ORDER = 4

CIDER_SIGMA = 6.0
"""The width, in words, of CIDEr-D's penalty on a difference in length."""


def words_of(caption: str) -> list[str]:
    """Lower-case words without punctuation; an apostrophe stays within its word."""
    return re.findall(r"\w+(?:'\w+)*", caption.lower())


def _ngrams(words: Sequence[str], order: int) -> Ngrams:
    return Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU@4 of a corpus (Papineni et al., 2002), without smoothing, 0 to 1.

    Clipped n-gram precisions of the whole corpus, their geometric mean over n = 1 to 4, and the
    brevity penalty against the reference that is closest in length, the shorter one in a tie.

    Args:
        candidates: One caption an image.
        references: The true captions of each image.
    """
    matched = [0] * MAX_ORDER
    proposed = [0] * MAX_ORDER
    length = reference_length = 0
    for candidate, truths in zip(candidates, references, strict=True):
        words = words_of(candidate)
        split = [words_of(truth) for truth in truths]
        length += len(words)
        reference_length += min((abs(len(t) - len(words)), len(t)) for t in split)[1]
        for order in range(1, MAX_ORDER + 1):
            found = _ngrams(words, order)
            most: Ngrams = Counter()
            for truth in split:
                most |= _ngrams(truth, order)
            matched[order - 1] += sum((found & most).values())
            proposed[order - 1] += sum(found.values())
    if not all(matched):
        return 0.0
    precisions = [m / p for m, p in zip(matched, proposed, strict=True)]
    brevity = min(0.0, 1 - reference_length / length)
    return math.exp(brevity + sum(math.log(p) for p in precisions) / MAX_ORDER)


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D (Vedantam et al., arXiv 1411.5726), as COCO's evaluation reports it, 0 to 10.

    The mean over n = 1 to 4, references and images of the clipped tf-idf cosine, times a Gaussian
    penalty on the difference in length, times 10. Document frequencies are those of the
    references, an image a document; COCO's tables show 100 times the value. Words are not
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
    return sum(scores) / len(scores)


def retrieval_recall(
    similarity: Floats, owners: Sequence[int], ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Recall of text retrieval (TR) and image retrieval (IR) at each k, 0 to 1.

    TR@k is the share of images with at least one of their texts among the k best; IR@k the share
    of texts whose image is among the k best. A tie counts against the truth.

    Args:
        similarity: (images, texts).
        owners: For each text the row of its image; every image has a text.
        ks: Cut-offs.
    """
    own = np.asarray(owners)
    columns = np.arange(len(own))
    theirs = own[None, :] == np.arange(len(similarity))[:, None]
    best = np.where(theirs, similarity, -np.inf).max(axis=1)
    text_ranks = ((similarity >= best[:, None]) & ~theirs).sum(axis=1)
    image_ranks = (similarity >= similarity[own, columns][None, :]).sum(axis=0) - 1
    return {
        **{f"TR@{k}": float((text_ranks < k).mean()) for k in ks},
        **{f"IR@{k}": float((image_ranks < k).mean()) for k in ks},
    }


def roc_auc(positive: Floats, negative: Floats) -> float:
    """The chance that a positive scores above a negative, a tie counted half."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left")
    upto = np.searchsorted(ordered, positive, side="right")
    return float((below + upto).mean() / (2 * len(ordered)))
