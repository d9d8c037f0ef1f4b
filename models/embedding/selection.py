"""Rules that choose rows of a pool by their embeddings, or by a score with repetition.

Apart from rounding, no result depends on the order of the rows: all random numbers are made from
the lot of a row, such as a hash of its uid.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.embedding.cells import Cells
from models.embedding.vectors import Float16s, blocks
from models.random import splitmix

__all__ = [
    "BATCH_SIZE",
    "CLIP_TEMPERATURE",
    "DENSITY_TEMPERATURE",
    "batch_loss",
    "cell_quotas",
    "density",
    "gram",
    "neg_clip_loss",
    "norms",
    "pool_norm",
    "quotas",
    "soft_cap_draws",
    "tally",
]

Bools = npt.NDArray[np.bool_]
Float64s = npt.NDArray[np.float64]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

NEIGHBOURS = 20
"""Number of nearest centres over which the distance of a centre is averaged (2401.04578)."""

ROWS = 2048

DISTANCE = 2.0**-30
"""The unit in which distances are summed, so that sums do not depend on the order of the rows."""

DRAWN_ROWS = 2**17
"""Rows of which `soft_cap_draws` holds the keys, beside those that it draws."""

CLIP_TEMPERATURE = 0.01
"""The temperature of OpenAI's CLIP."""

DENSITY_TEMPERATURE = 0.1
"""The temperature of the softmax of `density` (arXiv:2401.04578)."""

BATCH_SIZE = 32_768
"""The most pairs of a batch of `neg_clip_loss` (arXiv:2405.19547)."""


def neg_clip_loss(
    images: Float16s,
    texts: Float16s,
    lots: UInt64s,
    *,
    temperature: float = CLIP_TEMPERATURE,
    batch_size: int = BATCH_SIZE,
    shuffles: int = 5,
) -> Float64s:
    """The negative CLIP loss of each pair (negCLIPLoss, arXiv:2405.19547).

    In a random batch, the cosine of a pair minus T/2 times the sum of two log-sum-exps: over the
    cosines / T of its image with all texts of the batch, and of its text with all images. A pair
    that stands out in its batch scores near 0; one that matches everything, or nothing, far less.

    Args:
        images: (n, d) unit vectors.
        texts: (n, d) unit vectors, of the same pairs.
        lots: (n,) a random number of each pair, which decides the batches.
        temperature: T; 0.01 for OpenAI's CLIP.
        batch_size: Maximum number of pairs in a batch. All batches have about the same size.
        shuffles: Number of divisions of the pool into batches; the scores are averaged.

    Returns:
        (n,) the score of each pair, the highest best.
    """
    scores = np.zeros(len(images))
    for shuffle in range(shuffles):
        order = np.argsort(splitmix(lots ^ splitmix(shuffle)), kind="stable")
        for batch in np.array_split(order, max(-(-len(order) // batch_size), 1)):
            if len(batch):
                scores[batch] += batch_loss(images[batch], texts[batch], temperature)
    return scores / shuffles


def batch_loss(images: Float16s, texts: Float16s, temperature: float) -> Float64s:
    """The negative CLIP loss of the n pairs of one batch; see `neg_clip_loss`."""
    left, right = images.astype(np.float32), texts.astype(np.float32)
    scale = np.float32(1 / temperature)
    of_images, of_texts = np.empty(len(left)), np.full(len(left), -np.inf)
    for part in blocks(len(left), ROWS):
        logits = (left[part] @ right.T) * scale
        of_images[part] = _log_sum_exp(logits, 1)
        of_texts = np.logaddexp(of_texts, _log_sum_exp(logits, 0))
    own: Float64s = (left.astype(np.float64) * right).sum(axis=1)
    found: Float64s = own - temperature / 2 * (of_images + of_texts)
    return found


def _log_sum_exp(logits: npt.NDArray[np.float32], axis: int) -> Float64s:
    most = logits.max(axis=axis, keepdims=True)
    total = np.exp(logits - most).sum(axis=axis, dtype=np.float64)
    found: Float64s = np.log(total) + most.squeeze(axis)
    return found


def pool_norm(embeddings: Float16s) -> Float64s:
    """The L2 norm of each row's cosines with all rows (NormSim with p = 2, arXiv:2405.19547).

    It is sqrt(x' G x) with the (d, d) matrix G of `gram`, so that no pair is compared.
    """
    return norms(embeddings, gram(embeddings))


def gram(embeddings: Float16s) -> Float64s:
    """The sum of the outer products of n embeddings with themselves, (d, d)."""
    size = embeddings.shape[1]
    total = np.zeros((size, size))
    for part in blocks(len(embeddings)):
        own = embeddings[part].astype(np.float64)
        total += own.T @ own
    return total


def norms(embeddings: Float16s, total: Float64s) -> Float64s:
    """The L2 norm of the cosines of n embeddings with all rows of which `total` is the `gram`."""
    squares = np.empty(len(embeddings))
    for part in blocks(len(embeddings)):
        own = embeddings[part].astype(np.float64)
        squares[part] = ((own @ total) * own).sum(axis=1)
    return np.sqrt(squares)


def density(
    embeddings: Float16s,
    lots: UInt64s,
    number: int,
    *,
    clusters: int = 500,
    temperature: float = DENSITY_TEMPERATURE,
) -> tuple[Bools, Float64s]:
    """Choose rows by quotas of k-means clusters (density-based pruning, arXiv:2401.04578).

    A cluster is worth the mean cosine distance of its rows from its centre, times that of its
    centre from the 20 nearest other centres. Its share of the rows is the softmax of that over the
    temperature. `quotas` makes the shares possible. In a cluster, the rows farthest from the centre
    are chosen.

    Args:
        embeddings: (n, d) unit vectors, without semantic copies.
        lots: (n,) a random number of each row, which decides the clusters and ties.
        number: Rows to choose.
        clusters: Maximum number of clusters.
        temperature: Temperature of the softmax.

    Returns:
        (n,) whether each row is chosen; and (n,) its distance from the centre of its cluster.
    """
    n = len(embeddings)
    if not n:
        return np.zeros(0, bool), np.zeros(0)
    cells = Cells.train(embeddings, min(clusters, n), lots)
    cell, distance = cells.placed(embeddings)
    sizes, sums = tally(cell, distance, len(cells.centres))
    wanted = cell_quotas(cells, sizes, sums, number, temperature)
    order = np.lexsort((lots, -distance, cell))
    starts = np.cumsum(sizes) - sizes
    rank = np.arange(n) - starts[cell[order]]
    chosen = np.zeros(n, bool)
    chosen[order[rank < wanted[cell[order]]]] = True
    return chosen, distance


def tally(cell: Int64s, distance: Float64s, number: int) -> Int64s:
    """Count the rows of each cell and sum their distances from its centre.

    Args:
        cell: (n,) the cell of each row.
        distance: (n,) its distance.
        number: The number of cells.

    Returns:
        (2, number) the rows, and the sums in units of `DISTANCE`.
    """
    units = np.rint(distance / DISTANCE)
    sums = np.bincount(cell, units, number).astype(np.int64)
    return np.stack([np.bincount(cell, minlength=number), sums])


def cell_quotas(
    cells: Cells, sizes: Int64s, sums: Int64s, number: int, temperature: float
) -> Int64s:
    """The rows that density-based pruning takes of each of k cells; see `density`.

    Args:
        cells: The cells.
        sizes: (k,) the rows of each.
        sums: (k,) the sum of their distances, as of `tally`.
        number: Rows to choose in all.
        temperature: Temperature of the softmax.
    """
    rows = int(sizes.sum())
    if not rows:
        return np.zeros_like(sizes)
    intra = sums * DISTANCE / np.maximum(sizes, 1)
    between = np.sort(1 - cells.centres.astype(np.float64) @ cells.centres.T, axis=1)[:, 1:]
    inter = between[:, :NEIGHBOURS].mean(axis=1) if between.size else np.ones(len(sizes))
    worth = np.where(sizes > 0, intra * inter / temperature, -np.inf)
    shares = np.exp(worth - worth.max())
    return quotas(shares / shares.sum() * min(number, rows), sizes, min(number, rows))


def quotas(wanted: Float64s, sizes: Int64s, number: int) -> Int64s:
    """The whole numbers nearest to the wanted ones, from 1 to the size of each cluster.

    They have the least squared distance under these bounds: the same amount is added to all numbers
    that are inside them. Fractions are rounded by the largest remainder.

    Args:
        wanted: (k,) the wanted numbers, of any sum.
        sizes: (k,) the rows of each cluster; an empty one gets none.
        number: Sum of the result, at most the sum of the sizes.
    """
    low = np.minimum(sizes, 1) if number >= (sizes > 0).sum() else np.zeros_like(sizes)
    # The sum grows with what is added, so the right addition is found by bisection.
    down = float((low - wanted).min(initial=0)) - 1
    up = float((sizes - wanted).max(initial=0)) + 1
    for _ in range(200):
        middle = (down + up) / 2
        if np.clip(wanted + middle, low, sizes).sum() < number:
            down = middle
        else:
            up = middle
    exact = np.clip(wanted + up, low, sizes)
    whole = np.floor(exact + 1e-9).astype(np.int64)
    left = number - int(whole.sum())
    room = whole < sizes
    order = np.lexsort((np.arange(len(sizes)), whole - exact))
    whole[order[room[order]][: max(left, 0)]] += 1
    return whole


def soft_cap_draws(
    scores: Float64s,
    lots: UInt64s,
    number: int,
    *,
    temperature: float = 1.0,
    batch_size: int = 100_000,
    penalty: float = 0.15,
) -> Int32s:
    """Draw rows with repetition (soft cap sampling, FLYT, arXiv:2503.08805).

    Batches are drawn one after the other, each without repetition, by the softmax of the scores
    over the temperature. After each batch, the scores of its rows are lowered by the penalty. A
    batch without repetition is drawn by adding Gumbel noise and taking the highest. Each batch
    takes a pass over all rows, of which a block is in memory.

    Args:
        scores: (n,), none of them NaN; may be mapped from a file.
        lots: (n,) a random number of each row, from which the noise is made; may be mapped.
        number: Draws in all.
        temperature: Temperature of the softmax.
        batch_size: Draws between two changes of the scores; at most the number of rows.
        penalty: Subtracted from a score divided by the temperature, at each draw of the row.

    Returns:
        (n,) how often each row was drawn.
    """
    draws = np.zeros(len(scores), np.int32)
    size = min(batch_size, len(scores))
    left, batch = (number if size else 0), 0
    while left > 0:
        taken = min(size, left)
        rows, keys, least = np.zeros(0, np.int64), np.zeros(0), -np.inf
        for part in blocks(len(scores), DRAWN_ROWS):
            noise = (splitmix(lots[part] ^ splitmix(batch)) >> np.uint64(11)).astype(np.float64)
            gumbel = -np.log(-np.log((noise + 0.5) * 2.0**-53))
            found = scores[part] / temperature - penalty * draws[part] + gumbel
            some = np.flatnonzero(found >= least)
            rows = np.concatenate([rows, some + part.start])
            keys = np.concatenate([keys, found[some]])
            if len(rows) >= 2 * taken or part.stop == len(scores):
                highest = _highest(keys, lots[rows], taken)
                rows, keys = rows[highest], keys[highest]
                least = keys.min() if len(keys) == taken else least
        draws[rows] += 1
        left, batch = left - size, batch + 1
    return draws


def _highest(keys: Float64s, lots: UInt64s, number: int) -> Int64s:
    """The positions of the highest keys; of equal ones, those with the least lots."""
    if len(keys) <= number:
        return np.arange(len(keys))
    least = np.partition(keys, len(keys) - number)[len(keys) - number]
    above, equal = np.flatnonzero(keys > least), np.flatnonzero(keys == least)
    equal = equal[np.argsort(lots[equal], kind="stable")]
    return np.concatenate([above, equal[: number - len(above)]])
