"""Captions that a site fills in, and captions that are no template of one another."""

from __future__ import annotations

import gzip
import itertools
import tarfile
from collections.abc import Callable

import numpy as np
import pyarrow.parquet as pq
from datasketch import MinHash, MinHashLSH

from benchmarks.dedup.captions import ALTTEXT, BANDS, DATA, ROWS
from models.text.captions import caption_key, normalize
from models.text.minhash import band_keys, caption_centres, minhash, shingles
from stages.dedup import DedupConfig

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
