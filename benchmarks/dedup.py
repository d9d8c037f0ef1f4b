"""Near-identical captions and images found a CPU-second, beside the peers that are installed.

    python -m benchmarks.dedup                       # captions, hashes, fingerprints
    python -m benchmarks.dedup --rows 1000000        # and that many rows through the whole summary
    python -m benchmarks.dedup --only pictures --plot docs/dedup.svg
    python -m benchmarks.dedup --only templates

Pictures: 200 different ones of each family that `tests/helpers/graphics.py` draws, and 200
photographs where there are some, none of which may be merged with another; and copies of them,
which must be. Templates: captions that a site fills in, and captions that are no template of one
another.

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
import gzip
import importlib.metadata
import io
import itertools
import resource
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasketch import MinHash, MinHashLSH
from helpers.graphics import COPIES, FAMILIES, drawn, encoded
from PIL import Image
from scipy.sparse import csr_matrix

from models.image.copies import are_copies
from models.image.hamming import Near, image_centres, near_pairs
from models.image.perceptual_hash import SIDE, colour_distance, hamming
from models.text.captions import caption_key, normalize
from models.text.minhash import band_keys, caption_centres, minhash, shingles
from stages.dedup import DedupConfig, DedupStage
from stages.dedup.fingerprints import WRITES
from stages.image_prints import LUMA, ImagePrints
from stages.schema import POOL, uid_of

ALTTEXT = Path(__file__).resolve().parents[2] / "shared/data/alttext/laion_10k.parquet"
DATA = ALTTEXT.parents[1]
BANDS, ROWS = 21, 6
DRAWN_COPIES = 40
"""Pictures of each drawn family of which copies are made."""


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


def families(number: int) -> Iterator[tuple[str, list[Image.Image], int]]:
    """The name of each, different pictures of it, and how many of them are copied."""
    for name in FAMILIES:
        yield name, list(drawn(name, number)), DRAWN_COPIES
    photos = sorted((DATA / "flickr8k/images").glob("*"))[:number]
    if photos:
        yield "photographs", [Image.open(path).convert("RGB") for path in photos], number


def looks_alike(a: ImagePrints, b: ImagePrints, i: Any, j: Any) -> Any:
    """Whether hash and colours agree, as dedup's defaults have it."""
    near = hamming(a.phash[i], b.phash[j]) <= DedupConfig().max_hamming
    colours = colour_distance(a.colours[i], b.colours[j])
    return near & (colours <= DedupConfig().max_colour_distance)


def confirmed(a: ImagePrints, b: ImagePrints, i: Any, j: Any, tolerance: float) -> Any:
    found = np.zeros(len(i), bool)
    alike = np.flatnonzero(looks_alike(a, b, i, j))
    ours, theirs = (one.luma[at[alike]].reshape(-1, SIDE, SIDE) for one, at in ((a, i), (b, j)))
    found[alike] = are_copies(ours, theirs, tolerance)
    return found


def merged(prints: ImagePrints, near: Near) -> int:
    """How many pictures dedup would drop."""
    found = image_centres(
        prints.phash,
        near,
        max_hamming=DedupConfig().max_hamming,
        lightness=prints.luma.sum(axis=1, dtype=np.int64),
    )
    return int((found != np.arange(len(found))).sum())


def compare_pictures(number: int, plot: Path | None) -> None:
    tolerances = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0) if plot else (1.0,)
    lost: dict[str, list[float]] = {}
    kept: dict[str, list[float]] = {}
    print(f"\n{number} different pictures of each family: how many are merged; copies: recall")
    for name, images, copied in families(number):
        prints = ImagePrints.of(map(encoded, images))
        every = np.arange(copied)
        copies = {
            kind: ImagePrints.of(make(image) for image in images[:copied])
            for kind, make in COPIES.items()
        }

        def alike(i: Any, j: Any, of: ImagePrints = prints) -> Any:
            return looks_alike(of, of, i, j)

        def same(tolerance: float, of: ImagePrints = prints) -> Near:
            return lambda i, j: confirmed(of, of, i, j, tolerance)

        new = {tolerance: merged(prints, same(tolerance)) for tolerance in tolerances}
        print(f"{name:12} by hash and colours {merged(prints, alike):4}, confirmed {new[1.0]:4}")
        recalls: dict[str, list[float]] = {}
        for kind, found in copies.items():
            old = looks_alike(prints, found, every, every).mean()
            recalls[kind] = [
                float(confirmed(prints, found, every, every, one).mean()) for one in tolerances
            ]
            at = recalls[kind][tolerances.index(1.0)]
            if min(old, at) < 1:
                print(f"{'':12} {kind:24} by hash and colours {old:.3f}, confirmed {at:.3f}")
        lost[name] = [100 * new[one] / number for one in tolerances]
        plain = [
            found for kind, found in recalls.items() if " 2% " not in kind and "3%" not in kind
        ]
        kept[name] = [100 * float(np.mean(column)) for column in zip(*plain, strict=True)]
    if plot:
        plot.write_text(drawing(tolerances, lost, kept), encoding="utf-8")
        print(f"wrote {plot}")


COLOURS = ("#c2410c", "#d4a017", "#4d7c0f", "#0e7490", "#6d28d9", "#be185d", "#111827")


def drawing(
    tolerances: tuple[float, ...], lost: dict[str, list[float]], kept: dict[str, list[float]]
) -> str:
    """An SVG of what a tolerance merges wrongly, and what it finds of copies."""
    width, height, left, top, wide, high = 760, 330, 60, 40, 240, 230
    low, most = np.log10(tolerances[0]), np.log10(tolerances[-1])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#444">',
        "<title>What dedup merges wrongly and what it finds, over its tolerance</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    panels = (
        ("different pictures that are merged, %", lost, left),
        ("copies that are found, %", kept, left + wide + 60),
    )
    for title, lines, start in panels:
        parts.append(f'<text x="{start}" y="{top - 16}" font-weight="600">{title}</text>')
        for percent in range(0, 101, 25):
            y = top + high - high * percent / 100
            parts.append(f'<path d="M{start} {y}h{wide}" stroke="#e2e5e9"/>')
            parts.append(f'<text x="{start - 6}" y="{y + 4}" text-anchor="end">{percent}</text>')
        for one in tolerances:
            x = start + wide * (np.log10(one) - low) / (most - low)
            colour = "#9ca3af" if one == 1 else "#f1f3f5"
            parts.append(f'<path d="M{x:.1f} {top}v{high}" stroke="{colour}"/>')
            if one in (0.1, 0.25, 0.5, 1, 2, 5, 10):
                y = top + high + 18
                parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{one:g}</text>')
        parts.append(
            f'<text x="{start + wide / 2}" y="{top + high + 40}" text-anchor="middle">'
            "tolerance (1 is the default)</text>"
        )
        for (name, values), colour in zip(lines.items(), COLOURS, strict=False):
            points = " ".join(
                f"{start + wide * (np.log10(one) - low) / (most - low):.1f},"
                f"{top + high - high * value / 100:.1f}"
                for one, value in zip(tolerances, values, strict=True)
            )
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2">'
                f"<title>{name}</title></polyline>"
            )
    for row, (name, colour) in enumerate(zip(lost, COLOURS, strict=False)):
        y = top + 14 + 20 * row
        x = left + 2 * wide + 84
        parts.append(f'<path d="M{x} {y - 4}h18" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{x + 26}" y="{y}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


PLACES = ("Lisbon", "Oslo", "San Marino", "Quito", "Cape Town", "Hanoi", "Bern", "New Delhi")


def planted() -> tuple[list[str], list[int]]:
    """Captions, and the template of each; -1 for what is no template of another."""
    rng = np.random.default_rng(0)
    vocabulary = [f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in "nrst"]
    texts: list[str] = []
    kinds: list[int] = []
    for kind in range(60):
        size = (8, 12, 20, 20, 20, 45)[kind % 6]
        words = rng.choice(vocabulary, size).tolist()
        place = int(rng.integers(1, size - 1))
        for number in range(16):
            filled = list(words)
            if kind % 6 in (0, 1, 2):
                filled[place] = str(100 + number)
            elif kind % 6 == 3:
                filled[place] = PLACES[number % 8] + ("" if number < 8 else " old town")
            elif kind % 6 == 4:
                filled[place], filled[0] = PLACES[number % 8], str(number)
            else:
                filled[place] = vocabulary[number]
            texts.append(" ".join(filled))
            kinds.append(kind)
    colours, things = ("red", "blue", "green", "white"), ("dog", "cat", "boat", "car")
    for first in colours:
        for second in colours:
            for thing in things:
                texts.append(f"a {first} {thing} beside a {second} ball on the old wooden table")
                kinds.append(-1)
    for year in range(1950, 1990):
        texts.append(f"{year} yearbook of our school")
        kinds.append(-1)
    return texts, kinds


def real_captions() -> list[str]:
    """Alt-texts, and human captions of which up to five are of one image."""
    found: list[str] = []
    if ALTTEXT.exists():
        found += [str(one) for one in pq.read_table(ALTTEXT)["TEXT"].to_pylist() if one]
    for path in sorted((DATA / "multi30k").glob("train.*.en.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            found += [line.strip() for line in itertools.islice(file, 6000)]
    if (captions_tsv := DATA / "coco/captions.tsv").exists():
        lines = captions_tsv.read_text(encoding="utf-8").splitlines()[1:]
        found += [line.split("\t")[1] for line in lines]
    if (shard := DATA / "cc12m/cc12m-train-0000.tar").exists():
        with tarfile.open(shard) as tar:
            texts = (tar.extractfile(one) for one in tar if one.name.endswith(".txt"))
            found += [file.read().decode() for file in texts if file is not None]
    return found


def plain_shingles(key: str) -> list[bytes]:
    """The trigrams of a key itself, numbers and all."""
    words = key.split(" ")
    return [" ".join(words[i : i + 3]).encode() for i in range(max(len(words) - 2, 1))]


def stars_by_datasketch(keys: list[str], similar: float) -> list[int]:
    """The cluster of each caption by datasketch's LSH index alone.

    A caption joins the first one that the index returns for it; its similarity is not checked.
    """
    index = MinHashLSH(threshold=similar, num_perm=128)
    found = []
    sets = [plain_shingles(key) for key in keys]
    for position, sketch in enumerate(MinHash.bulk(sets, num_perm=128)):
        near = index.query(sketch)
        found.append(min(near, default=position))
        if not near:
            index.insert(position, sketch, check_duplication=False)
    return found


def stars(keys: list[str], template: int | None) -> list[int]:
    signatures = minhash([shingles(key) for key in keys])
    bands = band_keys(signatures, BANDS, ROWS)
    found = caption_centres(
        bands, keys.__getitem__, len(keys), min_jaccard=0.9, min_template=template
    )
    return [int(one) for one in found]


def compare_templates() -> None:
    texts, kinds = planted()
    keys = [caption_key(text) for text in texts]
    real = list(dict.fromkeys(caption_key(normalize(text)) for text in real_captions()))
    tools: dict[str, Callable[[list[str]], list[int]]] = {
        "capfilt": lambda some: stars(some, DedupConfig().min_template),
        "capfilt, min_template: 12": lambda some: stars(some, 12),
        "capfilt, min_template: 0": lambda some: stars(some, None),
        "datasketch at 0.9": lambda some: stars_by_datasketch(some, 0.9),
        "datasketch at 0.7": lambda some: stars_by_datasketch(some, 0.7),
        "datasketch at 0.5": lambda some: stars_by_datasketch(some, 0.5),
    }
    print(
        f"\n{len(keys)} planted captions, {sum(kind >= 0 for kind in kinds)} of them of 60 "
        f"templates; {len(real):,} distinct real ones"
    )
    print(f"{'rule':26} {'recall':>7} {'precision':>9} {'whole':>6} {'joined of the real':>19}")
    joined: list[tuple[int, int]] = []
    for name, tool in tools.items():
        found = tool(keys)
        pairs = [(i, one) for i, one in enumerate(found) if i != one]
        right = sum(kinds[i] == kinds[j] >= 0 for i, j in pairs)
        possible = sum(kind >= 0 for kind in kinds) - len({kind for kind in kinds if kind >= 0})
        whole = sum(
            len({found[i] for i, kind in enumerate(kinds) if kind == one}) == 1 for one in range(60)
        )
        of_real = [(i, one) for i, one in enumerate(tool(real)) if i != one]
        joined = joined or of_real
        print(
            f"{name:26} {right / possible:7.3f} {right / max(len(pairs), 1):9.3f} {whole:6} "
            f"{len(of_real):19,}"
        )
    for i, j in joined:
        print(f"  joined: {real[i]}\n     with: {real[j]}")


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
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--only", choices=("pictures", "templates"))
    options = parser.parse_args()
    packages = ("numpy", "pillow", "datasketch", "rensa", "faiss-cpu", "imagededup", "ImageHash")
    print(*(f"{p} {importlib.metadata.version(p)}" for p in packages if installed(p)), sep=", ")
    if options.only != "templates":
        compare_pictures(options.pictures, options.plot)
    if options.only != "pictures":
        compare_templates()
    if options.only:
        return
    compare_captions(options.captions, options.repeats)
    compare_hashes(options.radius, options.repeats)
    compare_fingerprints(options.repeats)
    if options.rows:
        summarize(options.rows)


if __name__ == "__main__":
    main()
