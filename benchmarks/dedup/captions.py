"""Captions that are near duplicates: ours beside the LSH of datasketch and rensa."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from datasketch import MinHash, MinHashLSH
from scipy.sparse import csr_matrix

from benchmarks.dedup.timing import installed, timed
from models.text.captions import caption_key
from models.text.minhash import band_keys, caption_centres, minhash, shingles

ALTTEXT = Path(__file__).resolve().parents[3] / "shared/data/alttext/laion_10k.parquet"
DATA = ALTTEXT.parents[1]
BANDS, ROWS = 21, 6


def captions(number: int) -> list[str]:
    """Distinct caption keys, near-identical ones among them."""
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(5000)]
    if ALTTEXT.exists():
        found = [str(text) for text in pq.read_table(ALTTEXT)["TEXT"].to_pylist() if text]
    else:
        found = []
    while len(found) < number:
        size = int(rng.integers(1, 22))
        found.append(" ".join(words[int(5000 * u**3)] for u in rng.random(size)))
    keys = [caption_key(text) for text in found[: number * 9 // 10]]
    for key in rng.choice(np.array(keys, object), number - len(keys)):
        tokens = key.split(" ")
        other = words[int(rng.integers(5000))]
        if rng.random() < 0.5:
            tokens[int(rng.integers(len(tokens)))] = other
        else:
            tokens.append(other)
        keys.append(" ".join(tokens))
    return list(dict.fromkeys(keys))


def similarities(keys: list[str]) -> Any:
    """The Jaccard similarity of every pair of captions that share a shingle, (n, n) sparse."""
    numbers: dict[bytes, int] = {}
    sets = [[numbers.setdefault(one, len(numbers)) for one in shingles(key)] for key in keys]
    sizes = np.array([len(one) for one in sets])
    ends = np.append(0, np.cumsum(sizes))
    flat = np.concatenate([np.array(one) for one in sets])
    holds = csr_matrix((np.ones(len(flat), np.int32), flat, ends), shape=(len(keys), len(numbers)))
    both = (holds @ holds.T).tocoo()
    values = both.data / (sizes[both.row] + sizes[both.col] - both.data)
    return csr_matrix((values, (both.row, both.col)), shape=both.shape)


def ours(keys: list[str], similar: float) -> list[int]:
    signatures = minhash([shingles(key) for key in keys])
    bands = band_keys(signatures, BANDS, ROWS)
    found = caption_centres(bands, keys.__getitem__, len(keys), min_jaccard=similar)
    return [int(one) for one in found]


def by_datasketch(keys: list[str], params: tuple[int, int] | None, similar: float) -> list[int]:
    """Its bulk sketches and its index, candidates taken as they come."""
    index = MinHashLSH(threshold=similar, num_perm=128, params=params)
    found = []
    for position, sketch in enumerate(MinHash.bulk([shingles(key) for key in keys], num_perm=128)):
        near = index.query(sketch)
        found.append(min(near, default=position))
        if not near:
            index.insert(position, sketch, check_duplication=False)
    return found


def by_rensa(keys: list[str], similar: float) -> list[int]:
    import rensa

    index = rensa.RMinHashLSH(similar, BANDS * ROWS, BANDS)
    found = []
    sets = [shingles(key) for key in keys]
    sketches = rensa.RMinHash.from_token_sets(sets, BANDS * ROWS, 1)
    for position, sketch in enumerate(sketches):
        near = index.query(sketch)
        found.append(min(near, default=position))
        if not near:
            index.insert(position, sketch)
    return found


def compare_captions(number: int, repeats: int, similar: float = 0.8) -> None:
    keys = captions(number)
    jaccard = similarities(keys)
    truth: list[bool] = []
    for position in range(len(keys)):
        row = slice(jaccard.indptr[position], jaccard.indptr[position + 1])
        near = jaccard.indices[row][jaccard.data[row] >= similar]
        truth.append(any(not truth[i] for i in near if i < position))
    print(
        f"\n{len(keys):,} captions, {sum(truth):,} with a Jaccard similarity of {similar} to a "
        f"better-ranked one; 128 permutations, {BANDS} x {ROWS} bands"
    )
    print(f"{'tool':34} {'captions/CPU-s':>14} {'recall':>7} {'precision':>9}")
    tools: dict[str, Callable[[], list[int]]] = {
        "capfilt": lambda: ours(keys, similar),
        f"datasketch bulk + LSH {BANDS} x {ROWS}": lambda: by_datasketch(
            keys, (BANDS, ROWS), similar
        ),
        "datasketch bulk + LSH, its default": lambda: by_datasketch(keys, None, similar),
    }
    if installed("rensa"):
        tools[f"rensa LSH {BANDS} x {ROWS}"] = lambda: by_rensa(keys, similar)
    for name, tool in tools.items():
        seconds, found = timed(tool, repeats)
        merged = [(i, centre) for i, centre in enumerate(found) if centre != i]
        right = sum(jaccard[i, centre] >= similar for i, centre in merged)
        recall = sum(truth[i] for i, _ in merged) / max(sum(truth), 1)
        print(
            f"{name:34} {len(keys) / seconds:14,.0f} {recall:7.3f} "
            f"{right / max(len(merged), 1):9.3f}"
        )
