"""Carry out a run of very many rows, models included, and watch what it holds on to.

    python -m benchmarks.soak_run --rows 10000 --seconds 900

Photos with captions go through download, clean, dedup, select, caption, filter and export on one
worker; captioner and filter are of the real architecture with random weights of size `tiny`. Every
two seconds the memory, open files and threads of the command and of all processes below it, what
they hold of /dev/shm, and the files under the temporary directory are read. They are flat if the
last quarter of the time in which rows are captioned holds no more than the second. After the given
seconds the command is told to end (SIGTERM), and the rows that it came to are counted.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from benchmarks.chaos import ROOT, World, descendants, verified

SHARD = 250
PAGE = os.sysconf("SC_PAGE_SIZE")
COLOURS = ("red", "green", "blue", "white", "black", "grey", "brown", "yellow", "pale", "dark")
THINGS = ("dog", "house", "river", "train", "garden", "window", "bridge", "boat", "kite", "tree")
NAMES = ("MiB of memory", "MiB of a worker", "open files", "MiB of /dev/shm", "temporary files")


def state(pid: int, temporary: Path) -> tuple[float, ...]:
    """What the processes from a command down hold: one number for each of `NAMES`."""
    memory = worker = handles = 0
    shared: dict[tuple[int, int], int] = {}
    for process, title in {pid: "", **descendants(pid)}.items():
        with contextlib.suppress(OSError):
            pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
            held = list(os.scandir(f"/proc/{process}/fd"))
            memory, handles = memory + pages, handles + len(held)
            worker = max(worker, pages if title.startswith("ray::Worker") else 0)
            for entry in held:
                with contextlib.suppress(OSError):
                    if os.readlink(entry.path).startswith("/dev/shm/"):
                        found = os.stat(entry.path)
                        shared[found.st_dev, found.st_ino] = found.st_blocks * 512
    files = sum(len(names) for _, _, names in os.walk(temporary))
    mib = 2**20
    return memory * PAGE / mib, worker * PAGE / mib, handles, sum(shared.values()) / mib, files


def write_captions(photos: Path) -> None:
    """Give each photo a caption whose words, not a number alone, tell it from the others."""
    places = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
    for index, path in enumerate(sorted(photos.glob("*.txt"))):
        mixed = index * 61_803 % 1_000_000  # another one for each of a million
        one, other, third = (places[mixed // 100**digit % 100] for digit in range(3))
        path.write_text(f"A {one} stands beside the {other}, not far from a {third}")


def rows_of(run: Path) -> dict[str, int]:
    """The rows of the files of each stage, the images that have captions, and the pairs."""
    found: dict[str, int] = {}
    places = ("pool/0*.parquet", "annotations/*/0*.parquet", "curated/0*.parquet")
    for path in (path for place in places for path in sorted(run.glob(place))):
        name, file = path.parent.name.split("-")[0], pq.ParquetFile(path)
        found[name] = found.get(name, 0) + file.metadata.num_rows
        if name == "caption":
            captions = file.read(columns=["synthetic"])["synthetic"]
            found["captioned"] = found.get("captioned", 0) + len(captions) - captions.null_count
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=900)
    options = parser.parse_args()
    from helpers import fakes

    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder, run = Path(name), Path(name) / "run"
        world = World.make(folder)
        write_captions(fakes.photo_folder(folder / "photos", options.rows))
        manifest = world.manifest(run, "caption")
        content = yaml.safe_load(manifest.read_text())
        content["stages"]["download"] |= {"shard_size": SHARD, "image_size": 96}
        content["stages"]["export"] = {"shard_size": SHARD}
        manifest.write_text(yaml.safe_dump(content, sort_keys=False))
        temporary = folder / "tmp"
        temporary.mkdir()
        command = ["-m", "pipeline.cli", "run", str(manifest), "--until", "export", "--workers"]
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *command, "1", "--quiet"],
            cwd=ROOT,
            env={**world.environment, "TMPDIR": str(temporary), "RAY_TMPDIR": "/tmp"},
            start_new_session=True,
        )
        states: dict[str, list[tuple[float, ...]]] = {}
        while process.poll() is None:
            stage = "caption" if list(run.glob("annotations/caption-*/0*.parquet")) else "before"
            if list(run.glob("annotations/filter-*/0*.parquet")):
                stage = "filter"
            states.setdefault(stage, []).append(state(process.pid, temporary))
            time.sleep(2)
            if time.monotonic() - began > options.seconds:
                process.send_signal(signal.SIGTERM)
                process.wait(60)
        print(f"status {process.returncode} after {time.monotonic() - began:.0f} s; rows by stage:")
        print("  ", rows_of(run), "faults:", list(map(str, verified(run))))
        for stage, found in states.items():
            print(f"{stage}, {len(found)} readings: at most, in each quarter of them")
            ends = [len(found) * number // 4 for number in range(5)]
            for index, what in enumerate(NAMES):
                most = (
                    max((one[index] for one in found[first:last]), default=0)
                    for first, last in itertools.pairwise(ends)
                )
                print(f"   {what:16} " + " ".join(f"{value:8.0f}" for value in most))
    return int(process.returncode not in (0, 143))


if __name__ == "__main__":
    sys.exit(main())
