"""What seals cost: milliseconds to write and read a shard with and without, and to verify it.

    python -m benchmarks.seal

A shard of the pool has 1,000 images of 40 kB, an annotation the columns that clean writes. Writing
encodes and commits as a run does; the plain file is the same but for its seal. Files are read
from the page cache, so that the digests weigh as much as they can.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.run import Run
from stages.clean import CleanStage
from stages.schema import POOL


def pool(rows: int, image_bytes: int) -> pa.Table:
    """A shard of the pool whose images, as all that are encoded, cannot be compressed."""
    rng = random.Random(0)
    values = [
        {
            **dict.fromkeys(POOL.names),
            "uid": f"{rng.getrandbits(128):032x}",
            "source": "web",
            "url": f"https://images{n % 997}.example.org/photos/{rng.getrandbits(64):x}.jpg",
            "caption": f"Caption number {n}, as long as an alt-text of the web is",
            "repeats": 0,
            "status": "success",
            "image": rng.randbytes(image_bytes),
            **dict.fromkeys(("width", "original_width"), 512),
            **dict.fromkeys(("height", "original_height"), 384),
            "original_bytes": image_bytes,
            "sha256": f"{rng.getrandbits(256):064x}",
        }
        for n in range(rows)
    ]
    return pa.Table.from_pylist(values, POOL)


def annotation(table: pa.Table) -> pa.Table:
    """The file of clean for a shard, its numbers drawn."""
    rng = random.Random(1)
    columns = {
        field.name: pa.array([rng.random() for _ in range(table.num_rows)]).cast(field.type)
        if pa.types.is_floating(field.type)
        else pa.array([rng.randrange(100) for _ in range(table.num_rows)]).cast(field.type)
        if pa.types.is_integer(field.type)
        else table["caption"].cast(field.type)
        if pa.types.is_string(field.type)
        else pa.nulls(table.num_rows, field.type)
        for field in CleanStage.writes
    }
    return pa.table({"uid": table["uid"], "measured": [True] * table.num_rows, **columns})


def milliseconds(call: Callable[[], object], times: int) -> float:
    """The median of some calls."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        found.append(1000 * (time.perf_counter() - started))
    return statistics.median(found)


def main() -> None:
    """Print a row for each shard and each way to use it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--bytes", type=int, default=40_000, help="of an image")
    parser.add_argument("--times", type=int, default=9)
    args = parser.parse_args()
    images = pool(args.rows, args.bytes)
    print(f"{'shard':<12}{'what':<22}{'plain ms':>10}{'sealed ms':>11}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as folder:
        run = Run(folder)
        plain = os.path.join(folder, "plain.parquet")

        def write_plain(table: pa.Table) -> None:
            buffer = io.BytesIO()
            pq.write_table(table, buffer, compression="zstd", compression_level=3)
            run.write(buffer.getvalue(), "plain.parquet")

        def read_plain(columns: list[str] | None) -> None:
            with open(plain, "rb") as file, pq.ParquetFile(file) as parquet:
                parquet.read(columns=columns)

        for name, table in (("pool", images), ("annotation", annotation(images))):
            ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
                "write": (
                    lambda table=table: write_plain(table),
                    lambda table=table: run.write_table(table, "sealed.parquet"),
                ),
                "read all": (
                    lambda: read_plain(None),
                    lambda: run.read_table("sealed.parquet"),
                ),
                "read uid": (
                    lambda: read_plain(["uid"]),
                    lambda: run.read_table("sealed.parquet", columns=["uid"]),
                ),
            }
            for what, calls in ways.items():
                before, after = (milliseconds(call, args.times) for call in calls)
                print(f"{name:<12}{what:<22}{before:>10.2f}{after:>11.2f}{after / before:>8.2f}")
            size = os.path.getsize(os.path.join(folder, "sealed.parquet"))
            spent = milliseconds(lambda: run.check("sealed.parquet"), args.times)
            extra = size - os.path.getsize(plain)
            print(f"{name:<12}{'verify':<22}{'':>10}{spent:>11.2f}   {size / spent / 1e3:.0f} MB/s")
            print(f"{name:<12}{'bytes of the seal':<22}{'':>10}{extra:>11,}   of {size:,}")


if __name__ == "__main__":
    main()
