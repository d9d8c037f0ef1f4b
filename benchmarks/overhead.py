"""What the runner adds to the work of its stages, and how long a run takes to its first row.

    python -m benchmarks.overhead --rows 4000

Photos with captions in shards of 1,000 rows through stages on one worker that is ready. Of each
stage: the seconds that its own `annotate` took, those of its whole shards (gathering what it reads,
laying out and committing what it found), and those from its first shard given out to its last taken
in. Clean gives dedup the fingerprints of the images; without clean, dedup takes them itself. The
start is that of `capfilt run` from nothing to the first shard of the pool.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import yaml
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

SIDES = (640, 480)
"""Of a photo, in pixels: about 35 kB."""


CHAINS = (("clean", "dedup"), ("dedup",))
"""What comes after download."""


def content(folder: Path, run: Path, shard_size: int, names: tuple[str, ...]) -> dict[str, object]:
    download = {"source": str(folder), "shard_size": shard_size}
    stages = {"download": download, **{name: {} for name in names}, "export": {}}
    return {"name": "overhead", "run": str(run), "stages": stages}


def photos(folder: Path, rows: int) -> None:
    from helpers import fakes

    folder.mkdir()
    for number in range(rows):
        (folder / f"{number:06d}.jpg").write_bytes(fakes.jpeg(number, SIDES))
        text = f"The old house number {number} stands beside the river in the morning"
        (folder / f"{number:06d}.txt").write_text(text)


def overhead(folder: Path, run: Path, names: tuple[str, ...]) -> None:
    import ray

    from pipeline.execution.progress import Progress
    from pipeline.execution.session import Session
    from pipeline.manifest.manifest import Manifest

    class Watch(Progress):
        """Keeps what each shard took."""

        def __init__(self) -> None:
            super().__init__(Console(quiet=True), quiet=True)
            self.seen: dict[str, list[dict[str, float]]] = defaultdict(list)
            self.walls: dict[str, float] = {}

        def start(self, name: str, shards: int) -> None:
            super().start(name, shards)
            self.label, self.first = name, time.perf_counter()

        def advance(self, result) -> None:  # type: ignore[no-untyped-def]
            super().advance(result)
            self.seen[self.label].append(dict(result))

        def finish(self) -> None:
            super().finish()
            self.walls[self.label] = time.perf_counter() - self.first

    watch = Watch()
    made = Manifest.parse(content(folder, run, 1000, names))
    with Session(made, workers=1, progress=watch) as session:
        resources = session.runner.resources("download")
        ray.get([one.ready.remote() for one in session.runner.pool.hold("download", resources, 1)])
        session.run()
    print("| stage | shards | its own s | in the worker s | in all s | worker adds | runner adds |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    told: list[tuple[str, int, float, float, float]] = []
    for name, done in watch.seen.items():
        own = sum(shard.get("stage_seconds", 0.0) for shard in done)
        inside = sum(shard["seconds"] for shard in done)
        if own:
            told.append((name, len(done), own, inside, watch.walls[name]))
    whole = [sum(part[index] for part in told) for index in (2, 3, 4)]
    for name, shards, own, inside, wall in [*told, ("all", told[0][1], *whole)]:
        print(
            f"| {name} | {shards} | {own:.2f} | {inside:.2f} | {wall:.2f} | "
            f"{(inside - own) / own:.1%} | {(wall - inside) / own:.1%} |"
        )


def first_row(folder: Path, run: Path) -> float:
    """Seconds from the start of the command to the first shard of the pool."""
    manifest = run.with_suffix(".yaml")
    manifest.write_text(yaml.safe_dump(content(folder, run, 8, CHAINS[0]), sort_keys=False))
    began = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "pipeline.cli",
        "run",
        str(manifest),
        "--until",
        "download",
    ]
    process = subprocess.Popen([*command, "--quiet"], cwd=ROOT)
    while not list((run / "pool").glob("0*.parquet")) and process.poll() is None:
        time.sleep(0.01)
    seconds = time.perf_counter() - began
    process.wait()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="overhead-") as temporary:
        folder = Path(temporary)
        photos(folder / "few", 16)
        starts = [first_row(folder / "few", folder / f"start{n}") for n in range(options.repeats)]
        told = ", ".join(f"{seconds:.1f}" for seconds in starts)
        print(f"first row after {statistics.median(starts):.1f} s ({told})")
        photos(folder / "many", options.rows)
        for names in CHAINS:
            overhead(folder / "many", folder / f"run-{len(names)}", names)


if __name__ == "__main__":
    main()
