"""Writes captions token by token: greedy, beam search, or sampling from the nucleus.

It works with any decoder that gives logits for the next token.

Shapes: n images, k captions of an image, t tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from models.inference.decoding import Settings
from models.random import splitmix

__all__ = [
    "Next",
    "Reread",
    "Rules",
    "beam_search",
    "draw",
    "from_nucleus",
    "uniforms",
    "write",
]

NEVER = -1.0e9  # transformers adds this to the score of a beam that must not be chosen

DRAWS = 2
"""Random numbers for each token."""


class Next(Protocol):
    """A text decoder for n images that caches the tokens it has read."""

    def prompt(self, ids: Tensor, num_captions: int) -> Tensor:
        """Read a prompt (t,) for each image; float32 logits (n, k, V), equal over k."""

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token of each caption (n, k); float32 logits (n, k, V)."""

    def follow(self, beams: Tensor) -> None:
        """Make caption j of each image continue caption beams[:, j]; beams is (n, k)."""


class Rules:
    """Rules for logits in every decoding: a minimum length and a penalty on repetition."""

    def __init__(self, end: int, min_length: int, repetition_penalty: float) -> None:
        self.end = end
        self.min_length = min_length
        self.repetition_penalty = repetition_penalty

    def __call__(self, logits: Tensor, ids: Tensor) -> Tensor:
        """Apply the rules to the logits (n, k, V) that follow the tokens (n, k, t)."""
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


class Reread:
    """A decoder that keeps no keys and values: each step reads all tokens again.

    That is slower than a decoder with a cache by about the length of a caption, and needs nothing
    of a model but the logits of the next token.

    Args:
        next_logits: Logits (rows, V) after tokens (rows, t) beside the memory (rows, ...).
        memory: Of n images, (n, ...).
    """

    def __init__(self, next_logits: Callable[[Tensor, Tensor], Tensor], memory: Tensor) -> None:
        self.next_logits = next_logits
        self.memory = memory
        self.ids = torch.empty(0)

    def prompt(self, ids: Tensor, num_captions: int) -> Tensor:
        """See `Next.prompt`."""
        size = len(self.memory)
        logits = self.next_logits(self.memory, ids.expand(size, -1))
        self.memory = self.memory.repeat_interleave(num_captions, 0)
        self.ids = ids.expand(size, num_captions, -1)
        return logits[:, None].expand(-1, num_captions, -1)

    def step(self, tokens: Tensor) -> Tensor:
        """See `Next.step`."""
        self.ids = torch.cat([self.ids, tokens[:, :, None]], 2)
        return self.next_logits(self.memory, self.ids.flatten(0, 1)).view(*tokens.shape, -1)

    def follow(self, beams: Tensor) -> None:
        """See `Next.follow`."""
        self.ids = _pick(self.ids, beams)


def write(
    decoder: Next,
    begun: Tensor,
    seeds: Sequence[int],
    settings: Settings,
    *,
    end: int,
    pad: int,
) -> Tensor:
    """Tokens (n, k, t) of captions as the settings say, best first for beam.

    Args:
        decoder: Over n images.
        begun: (t,) what every caption goes on from.
        seeds: Of each image.
        settings: How captions are decoded; both lengths count `begun`.
        end: The token that ends a caption.
        pad: What follows it.
    """
    rules = Rules(end, settings.min_length, settings.repetition_penalty)
    number, longest = settings.num_captions, settings.max_length
    if settings.decoding == "beam":
        return beam_search(decoder, rules, begun, settings.num_beams, longest, pad)[:, :number]
    if settings.decoding == "greedy":
        return draw(decoder, rules, begun, 1, longest, pad, _likeliest)
    chances = torch.from_numpy(uniforms(seeds, number, longest - len(begun)))
    drawn = iter(chances.to(begun.device).unbind(2))

    def choose(logits: Tensor) -> Tensor:
        return from_nucleus(
            logits, next(drawn), settings.top_p, settings.top_k, settings.temperature
        )

    return draw(decoder, rules, begun, number, longest, pad, choose)


def _likeliest(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


def draw(
    decoder: Next,
    rules: Rules,
    begun: Tensor,
    num_captions: int,
    max_length: int,
    pad: int,
    choose: Callable[[Tensor], Tensor],
) -> Tensor:
    """Write captions (n, k, t); `choose` returns tokens (n, k) for logits (n, k, V)."""
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
    """Captions (n, k, t), best first, by the beam search of transformers' `generate`.

    Each image keeps k running beams and its k best finished captions, scored by the mean
    log-probability of their tokens. An image is done when its best running beam cannot beat its
    worst finished caption, even if the search continues for other images of the batch.
    """
    logits = decoder.prompt(begun, num_beams)
    device = logits.device
    size, _, vocabulary = logits.shape
    first, written = len(begun), len(begun)
    running = torch.full((size, num_beams, max_length), pad, device=device)
    running[:, :, :first] = begun
    scores = torch.zeros(size, num_beams, device=device)
    scores[:, 1:] = NEVER  # all beams are equal at the start: only the first may branch
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
    """Select captions from (n, k, t) by their indices (n, j), as (n, j, t)."""
    return captions.gather(1, beams[:, :, None].expand(-1, -1, captions.shape[2]))


def from_nucleus(
    logits: Tensor, chances: Tensor, top_p: float, top_k: int = 0, temperature: float = 1.0
) -> Tensor:
    """Sample a token of each row's nucleus (arXiv:1904.09751).

    A token is drawn from the whole distribution first. It is accepted if it is in the nucleus,
    that is, if the more likely tokens have a mass below `top_p`. Otherwise a token is drawn from
    the nucleus, and only then the vocabulary is sorted. The drawn token is the first, in the order
    of the vocabulary, at which the cumulative probability exceeds the random number.

    Args:
        logits: (..., V).
        chances: (..., 2), random numbers in [0, 1).
        top_p: The mass of the nucleus.
        top_k: The most tokens in the nucleus; 0 sets no limit.
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
    """(rows,) the index at which the cumulative weight (rows, V) of a row exceeds its chance."""
    mass = weights.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(mass, chances[:, None] * mass[:, -1:], right=True).squeeze(1)


def _sorted(values: Tensor) -> Tensor:
    """Sort along the last axis, ascending; on a CPU with numpy, which is 30 times as fast."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), -1))
    return values.sort(-1).values


def uniforms(seeds: Sequence[int], num_captions: int, num_steps: int) -> npt.NDArray[np.float64]:
    """Random numbers in [0, 1), (n, k, t, 2); each depends only on its seed and its indices.

    They are made by a chain of splitmix64's finaliser over the four indices.
    """
    state = splitmix(np.array([seed % 2**64 for seed in seeds], np.uint64)[:, None, None, None])
    state = splitmix(state ^ np.arange(num_captions, dtype=np.uint64)[:, None, None])
    state = splitmix(state ^ np.arange(num_steps, dtype=np.uint64)[:, None])
    state = splitmix(state ^ np.arange(DRAWS, dtype=np.uint64))
    # 52 bits, so that the largest number times a mass never rounds up to the mass itself.
    return (state >> np.uint64(12)).astype(np.float64) * 2.0**-52
