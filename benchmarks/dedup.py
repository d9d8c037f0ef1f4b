"""Near-identical captions and images found a CPU-second, beside the peers that are installed.

    python -m benchmarks.dedup                       # captions, hashes, fingerprints
    python -m benchmarks.dedup --rows 1000000        # and that many rows through the whole summary

Captions: web captions (drawn sentences where there are none), a tenth of them variants of
others in one word, short ones too. All tools get the same strings, shingles, permutations, bands
and threshold, and put captions into stars in the same order; the truth is that loop with every pair
compared. Hashes: the pairs within a radius among uniform 64-bit hashes of which a fifth is near
another. Peers that are not installed are left out: datasketch, rensa, faiss-cpu, imagededup,
ImageHash.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import io
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasketch import MinHash, MinHashLSH
from PIL import Image
from scipy.sparse import csr_matrix

from models.hashing import hamming
from models.minhash import band_keys, caption_centres, minhash, shingles
from models.neighbours import near_pairs
from models.text import caption_key
from stages.dedup import DedupConfig, DedupStage
from stages.fingerprints import LUMA, WRITES, ImagePrints
from stages.schema import POOL, uid_of

ALTTEXT = Path(__file__).resolve().parents[2] / "shared/data/alttext/laion_10k.parquet"
BANDS, ROWS = 18, 7


def timed(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Median CPU-seconds of some runs, and the result of the last."""
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        result = work()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds), result


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


def shards(rows: int, size: int = 100_000) -> Iterator[pa.Table]:
    """Annotations of many rows, a fifth of the images copies and a fifth of the captions near."""
    stage = DedupStage(DedupConfig())
    words = np.array([f"word{i}" for i in range(20_000)])
    for start in range(0, rows, size):
        rng = np.random.default_rng(start)
        number = min(size, rows - start)
        lengths = rng.integers(1, 22, number)
        drawn = words[(20_000 * rng.random((number, 22)) ** 3).astype(int)]
        texts = [" ".join(line[:length]) for line, length in zip(drawn, lengths, strict=True)]
        for i in np.flatnonzero(rng.random(number) < 0.15):
            texts[i] = f"common caption number {int(100_000 * rng.random() ** 2)} of a shop"
        for i in np.flatnonzero(rng.random(number) < 0.05):
            texts[i] = " ".join([*texts[i - 7].split(" ")[:-1], "end"])
        urls = [f"http://example.com/{start + i}" for i in range(number)]
        pool: dict[str, Any] = {
            "uid": [uid_of(url, text) for url, text in zip(urls, texts, strict=True)],
            "url": urls,
            "caption": texts,
        }
        table = pa.table(
            [
                pa.array(pool.get(name, [None] * number), POOL.field(name).type)
                for name in POOL.names
            ],
            names=POOL.names,
        )
        found = stage.annotate(table)
        image = np.arange(start, start + number, dtype=np.uint64)
        is_copy = rng.random(number) < 0.2
        image[is_copy] = rng.integers(0, start + number, int(is_copy.sum()))
        phash = (image + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        phash ^= phash >> np.uint64(29)
        phash *= np.uint64(0xBF58476D1CE4E5B9)
        for _ in range(3):
            bit = np.uint64(1) << rng.integers(0, 64, number).astype(np.uint64)
            phash = np.where(is_copy, phash ^ bit, phash)
        colours = pa.array([bytes([int(i) % 200]) * 192 for i in image], pa.binary(192))
        luma = pa.array([bytes([int(i) % 200]) * LUMA for i in image], pa.binary(LUMA))
        for name, values in {
            "image_area": pa.array(rng.integers(10_000, 1_000_000, number)),
            "image_phash": pa.array(phash.view(np.int64)),
            "image_contrast": pa.array(np.full(number, 50, np.float32)),
            "image_colours": colours,
            "image_luma": luma,
        }.items():
            found = found.set_column(WRITES.get_field_index(name), name, values)
        yield found.add_column(0, "uid", table["uid"])


def summarize(rows: int) -> None:
    making = 0.0

    def measured() -> Iterator[pa.Table]:
        nonlocal making
        tables = shards(rows)
        while True:
            started = time.process_time()
            table = next(tables, None)
            making += time.process_time() - started
            if table is None:
                return
            yield table

    started = time.process_time()
    found = DedupStage(DedupConfig()).summarize(measured())
    seconds = time.process_time() - started - making
    kept = found["image_duplicate"].null_count
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"\n{rows:,} rows through dedup.summarize: {seconds:.1f} CPU-s, at most {memory:.2f} GiB "
        f"resident, {kept:,} images kept"
    )


def installed(package: str) -> bool:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return bool(importlib.metadata.version(package))
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--captions", type=int, default=20_000)
    parser.add_argument("--radius", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=0)
    options = parser.parse_args()
    packages = ("numpy", "pillow", "datasketch", "rensa", "faiss-cpu", "imagededup", "ImageHash")
    print(*(f"{p} {importlib.metadata.version(p)}" for p in packages if installed(p)), sep=", ")
    compare_captions(options.captions, options.repeats)
    compare_hashes(options.radius, options.repeats)
    compare_fingerprints(options.repeats)
    if options.rows:
        summarize(options.rows)


if __name__ == "__main__":
    main()
