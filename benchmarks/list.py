"""Cutting a list of a million lines into shards: seconds, and peak memory of the process.

    python -m benchmarks.list

Each format is read by a process of its own, which also writes the shards as a run does. The
memory that the imports alone take is the first line.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from stages import sources
from stages.sources import Source, SourceConfig


def write(folder: Path, number: int) -> dict[str, Path]:
    """The same list in every format; one line in ten has the URL and caption of another."""
    urls = [
        f"https://images{n % 997}.example.org/photos/{n - n % 10 // 9}.jpg" for n in range(number)
    ]
    texts = [
        f"Caption number {n - n % 10 // 9}, as long as an alt-text of the web is"
        for n in range(number)
    ]
    table = pa.table({"url": urls, "text": texts, "uid": [f"{n:032x}" for n in range(number)]})
    paths = {
        kind: folder / f"list.{kind}"
        for kind in ("csv", "csv.gz", "csv.bz2", "parquet", "jsonl", "json")
    }
    pa_csv.write_csv(table, paths["csv"])
    content = paths["csv"].read_bytes()
    paths["csv.gz"].write_bytes(gzip.compress(content, 1))
    paths["csv.bz2"].write_bytes(bz2.compress(content, 1))
    pq.write_table(table, paths["parquet"])
    with paths["jsonl"].open("w") as file:
        for url, text in zip(urls, texts, strict=True):
            file.write(json.dumps({"url": url, "text": text}) + "\n")
    with paths["json"].open("w") as file:
        json.dump({"image_urls": urls, "captions": texts}, file)
    return paths


def cut(path: str, sample: int | None) -> Iterator[int]:
    source = Source(path=path, limit=sample, seed=None if sample is None else 0)
    with tempfile.TemporaryDirectory() as folder:
        for index, table in enumerate(sources.shards(SourceConfig(source=(source,)))):
            pq.write_table(table, Path(folder) / f"{index:05d}.parquet")
            yield table.num_rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--sample", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        started = time.perf_counter()
        rows = sum(cut(arguments.one, arguments.sample)) if arguments.one else 0
        # ru_maxrss would be that of the process that forked this one, where that is larger.
        status = Path("/proc/self/status").read_text()
        peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
        print(f"{rows:9,d} rows {time.perf_counter() - started:6.1f} s {peak:5.0f} MiB")
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = write(Path(folder), arguments.lines)
        runs = [("imports", "", None), *((kind, str(path), None) for kind, path in paths.items())]
        runs.append(("csv, half of it by seed", str(paths["csv"]), arguments.lines // 2))
        for name, path, sample in runs:
            command = [sys.executable, "-m", "benchmarks.list", "--one", path]
            command += [] if sample is None else ["--sample", str(sample)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            print(f"{name:24s} {done.stdout.strip()}", flush=True)


if __name__ == "__main__":
    main()
