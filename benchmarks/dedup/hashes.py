"""Pairs of near hashes, and hashes of images, beside faiss, imagededup and ImageHash."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.dedup.timing import installed, timed
from models.image.hamming import near_pairs
from models.image.perceptual_hash import hamming
from stages.image_prints import ImagePrints


def random_hashes(number: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A fifth of them three flipped bits from another."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, number - number // 5, np.uint64, endpoint=False)
    near = rng.choice(hashes, number // 5)
    for _ in range(3):
        near = near ^ (np.uint64(1) << rng.integers(0, 64, len(near)).astype(np.uint64))
    return rng.permutation(np.concatenate((hashes, near)))


def our_pairs(hashes: Any, radius: int) -> Any:
    found = [np.zeros(0, np.int64)]
    for i, j in near_pairs(hashes, radius):
        found.append(i * len(hashes) + j)
    return np.unique(np.concatenate(found))


def every_pair(hashes: Any, radius: int) -> Any:
    found = [np.zeros(0, np.int64)]
    for i in range(len(hashes)):
        near = np.flatnonzero(hamming(hashes[i + 1 :], hashes[i]) <= radius)
        found.append(i * len(hashes) + i + 1 + near)
    return np.concatenate(found)


def faiss_pairs(hashes: Any, radius: int) -> Any:
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexBinaryMultiHash(64, radius + 1, 64 // (radius + 1))
    codes = hashes.view(np.uint8).reshape(-1, 8)
    index.add(codes)
    ends, _, near = index.range_search(codes, radius + 1)
    i = np.repeat(np.arange(len(hashes)), np.diff(ends.astype(np.int64)))
    return np.unique(i[i < near] * len(hashes) + near[i < near])


def imagededup_pairs(hashes: Any, radius: int) -> Any:
    """The search of its `find_duplicates`, without the models that importing that loads."""
    from imagededup.handlers.search.brute_force_cython import BruteForceCython

    names = {str(i): f"{one:016x}" for i, one in enumerate(hashes.tolist())}
    search = BruteForceCython(names, None)
    found = []
    for i, text in names.items():
        found += [(int(i), int(j)) for j, _ in search.search(text, radius) if int(i) < int(j)]
    return np.array(sorted(i * len(hashes) + j for i, j in found))


def compare_hashes(radius: int, repeats: int) -> None:
    print(f"\npairs of 64-bit hashes within {radius} bits")
    print(f"{'tool':34} {'hashes':>9} {'CPU-s':>8} {'recall':>7} {'precision':>9}")
    tools: list[tuple[str, Callable[[Any, int], Any], tuple[int, ...]]] = [
        ("capfilt", our_pairs, (20_000, 1_000_000)),
        ("every pair, numpy", every_pair, (20_000,)),
    ]
    if installed("faiss-cpu"):
        tools.append(("faiss IndexBinaryMultiHash", faiss_pairs, (20_000,)))
    if installed("imagededup"):
        tools.append(("imagededup", imagededup_pairs, (2_000, 8_000)))
    for name, tool, sizes in tools:
        for size in sizes:
            hashes = random_hashes(size)
            seconds, found = timed(functools.partial(tool, hashes, radius), repeats)
            quality = f"{'':>7} {'':>9}"
            if size <= 20_000:
                truth = every_pair(hashes, radius)
                right = len(np.intersect1d(found, truth))
                quality = f"{right / len(truth):7.3f} {right / max(len(found), 1):9.3f}"
            print(f"{name:34} {size:9,} {seconds:8.2f} {quality}")


def photographs(number: int) -> list[bytes]:
    """JPEGs of 640 x 480 with the detail of a photograph."""
    found = []
    for seed in range(number):
        rng = np.random.default_rng(seed)
        cells = Image.fromarray(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8))
        pixels = np.asarray(cells.resize((640, 480), Image.Resampling.BICUBIC), np.int16)
        pixels = (pixels + rng.integers(-12, 13, pixels.shape)).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


def compare_fingerprints(repeats: int) -> None:
    images = photographs(200)
    print("\nimages a CPU-second, 640 x 480 JPEG to hash")
    seconds, prints = timed(lambda: ImagePrints.of(images), repeats)
    print(f"{'capfilt (hash, contrast, colours)':34} {len(images) / seconds:9,.0f}")
    if not installed("ImageHash"):
        return
    import imagehash

    seconds, texts = timed(
        lambda: [str(imagehash.phash(Image.open(io.BytesIO(one)))) for one in images], repeats
    )
    bits = hamming(prints.phash, np.array([int(text, 16) for text in texts], np.uint64))
    print(f"{'ImageHash phash, whole decode':34} {len(images) / seconds:9,.0f}")
    print(f"bits that the reduced decode changes: mean {bits.mean():.2f}, most {bits.max()}")
