"""Captions written token by token: greedily, by beam search, or sampled from the nucleus.

Shapes: n images, k captions of an image, t tokens, V vocabulary. The model is whatever gives
logits for the next token; everything here is the same for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from models.random import splitmix

__all__ = ["Next", "Rules", "beam_search", "draw", "from_nucleus", "uniforms"]

NEVER = -1.0e9  # what transformers adds to the score of a beam that may not be chosen

DRAWS = 2
"""Random numbers of a token."""


class Next(Protocol):
    """A text decoder over n images that keeps what it has read."""

    def prompt(self, ids: Tensor, num_captions: int) -> Tensor:
        """Read a prompt (t,) for each image; logits (n, k, V), float32, k alike."""

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token of each caption (n, k); logits (n, k, V), float32."""

    def follow(self, beams: Tensor) -> None:
        """Let caption j of each image go on from caption beams[:, j], (n, k)."""


class Rules:
    """What logits must obey whatever the decoding: no early end, no repetition unpunished."""

    def __init__(self, end: int, min_length: int, repetition_penalty: float) -> None:
        self.end = end
        self.min_length = min_length
        self.repetition_penalty = repetition_penalty

    def __call__(self, logits: Tensor, ids: Tensor) -> Tensor:
        """New logits (n, k, V) after tokens (n, k, t)."""
        early = ids.shape[2] < self.min_length
        if self.repetition_penalty == 1 and not early:
            return logits
        logits = logits.clone()
        if self.repetition_penalty != 1:
            said = logits.gather(2, ids)
            penalty = self.repetition_penalty
            logits.scatter_(2, ids, torch.where(said < 0, said * penalty, said / penalty))
        if early:
            logits[:, :, self.end] = -torch.inf
        return logits


def draw(
    decoder: Next,
    rules: Rules,
    begun: Tensor,
    num_captions: int,
    max_length: int,
    pad: int,
    choose: Callable[[Tensor], Tensor],
) -> Tensor:
    """Captions (n, k, t), token by token; `choose` takes logits (n, k, V), gives (n, k)."""
    logits = decoder.prompt(begun, num_captions)
    ids = begun.expand(*logits.shape[:2], -1)
    ended = torch.zeros(logits.shape[:2], dtype=torch.bool, device=begun.device)
    while True:
        tokens = choose(rules(logits, ids)).masked_fill(ended, pad)
        ids = torch.cat([ids, tokens[:, :, None]], 2)
        ended = ended | (tokens == rules.end)
        if ids.shape[2] == max_length or bool(ended.all()):
            return ids
        logits = decoder.step(tokens)


def beam_search(
    decoder: Next, rules: Rules, begun: Tensor, num_beams: int, max_length: int, pad: int
) -> Tensor:
    """Captions (n, k, t), best first, found as transformers' `generate` finds them.

    Each image keeps k running beams and its k best finished captions, scored by the mean
    log-probability of their tokens; an image is done when its best running beam could not
    beat its worst finished caption, even if the search goes on for others of the batch.
    """
    logits = decoder.prompt(begun, num_beams)
    device = logits.device
    size, _, vocabulary = logits.shape
    first, written = len(begun), len(begun)
    running = torch.full((size, num_beams, max_length), pad, device=device)
    running[:, :, :first] = begun
    scores = torch.zeros(size, num_beams, device=device)
    scores[:, 1:] = NEVER  # the beams begin alike: only the first may branch
    finished, finished_scores = running.clone(), torch.full_like(scores, NEVER)
    is_finished = torch.zeros_like(scores, dtype=torch.bool)
    may_improve = torch.ones(size, 1, dtype=torch.bool, device=device)
    leading = torch.arange(2 * num_beams, device=device) < num_beams
    while True:
        chances = rules(functional.log_softmax(logits, -1), running[:, :, :written])
        total = (chances + scores[:, :, None]).flatten(1)
        best, where = total.topk(2 * num_beams)
        beams = where.div(vocabulary, rounding_mode="floor")
        longer = _pick(running, beams)
        longer[:, :, written] = where % vocabulary
        written += 1
        ends = (longer[:, :, written - 1] == rules.end) | (written == max_length)

        ended = ends & leading
        mean = best / (written - first) + (~may_improve + 0.0) * NEVER + (~ended + 0.0) * NEVER
        finished_scores, chosen = torch.cat([finished_scores, mean], 1).topk(num_beams)
        finished = _pick(torch.cat([finished, longer], 1), chosen)
        is_finished = torch.cat([is_finished, ended], 1).gather(1, chosen)

        scores, chosen = (best + ends * NEVER).topk(num_beams)
        running, beams = _pick(longer, chosen), beams.gather(1, chosen)
        worst = finished_scores.min(1, keepdim=True).values.where(is_finished, NEVER)
        promising = scores[:, :1] / (written - first) > worst
        may_improve = may_improve & promising.any(1, keepdim=True)
        if written == max_length or not bool(may_improve.any()):
            return finished
        decoder.follow(beams)
        logits = decoder.step(running[:, :, written - 1])


def _pick(captions: Tensor, beams: Tensor) -> Tensor:
    """Captions (n, k, t) by their position (n, j), as (n, j, t)."""
    return captions.gather(1, beams[:, :, None].expand(-1, -1, captions.shape[2]))


def from_nucleus(
    logits: Tensor, chances: Tensor, top_p: float, top_k: int = 0, temperature: float = 1.0
) -> Tensor:
    """Sample a token of each row's nucleus (arXiv:1904.09751).

    A token drawn from the whole distribution stands if it is in the nucleus: the tokens likelier
    than it weigh less than `top_p`. Otherwise one is drawn from the nucleus itself, for which
    alone the vocabulary is sorted. Either is the token, in the order of the vocabulary, where
    the cumulative probability passes a chance.

    Args:
        logits: (..., V).
        chances: (..., 2), in [0, 1).
        top_p: The mass of the nucleus.
        top_k: The tokens that may be in it; 0 is all.
        temperature: Divides the logits first.

    Returns:
        int64 (...).
    """
    probabilities = logits.flatten(0, -2).div(temperature).softmax(-1)
    numbers = chances.flatten(0, -2)
    if 0 < top_k < logits.shape[-1]:
        least = probabilities.topk(top_k).values[:, -1:]
        probabilities = probabilities.where(probabilities >= least, 0)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    tokens = _at(probabilities, numbers[:, 0])
    if top_p < 1:
        likelier = probabilities > probabilities.gather(1, tokens[:, None])
        outside = probabilities.where(likelier, 0).sum(-1) >= top_p
        if bool(outside.any()):
            rest = probabilities[outside]
            ascending = _sorted(rest)
            mass = ascending.double().cumsum(-1)
            edge = torch.searchsorted(mass, mass[:, -1:] - top_p, right=True)
            rest = rest.where(rest >= ascending.gather(1, edge), 0)
            tokens[outside] = _at(rest, numbers[outside, 1])
    return tokens.view(logits.shape[:-1])


def _at(weights: Tensor, chances: Tensor) -> Tensor:
    """Where the cumulative weight of each row passes its chance: (rows,) of (rows, V)."""
    mass = weights.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(mass, chances[:, None] * mass[:, -1:], right=True).squeeze(1)


def _sorted(values: Tensor) -> Tensor:
    """Ascending along the last axis; on a CPU by numpy, which is thirty times as fast."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), -1))
    return values.sort(-1).values


def uniforms(seeds: Sequence[int], num_captions: int, num_steps: int) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1), (n, k, t, 2), each a function of its own (seed, k, t, which) alone.

    A chain of splitmix64's finaliser over the four counters.
    """
    state = splitmix(np.array([seed % 2**64 for seed in seeds], np.uint64)[:, None, None, None])
    state = splitmix(state ^ np.arange(num_captions, dtype=np.uint64)[:, None, None])
    state = splitmix(state ^ np.arange(num_steps, dtype=np.uint64)[:, None])
    state = splitmix(state ^ np.arange(DRAWS, dtype=np.uint64))
    # 52 bits, so that rounding never takes the largest number times a mass up to that mass.
    return (state >> np.uint64(12)).astype(np.float64) * 2.0**-52
