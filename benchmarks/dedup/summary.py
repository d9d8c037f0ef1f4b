"""Many rows through the whole summary of dedup."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from stages.dedup import DedupConfig, DedupStage
from stages.dedup.fingerprints import WRITES
from stages.image_prints import LUMA
from stages.schema import POOL, uid_of


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
