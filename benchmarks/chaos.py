"""Kill what carries a run, again and again, and hold what comes out against a run left in peace.

    python -m benchmarks.chaos --rounds 50 --out chaos.md

A small world: photos with captions, a captioner and a filter of random weights; and, in rounds of
their own, trainings on pairs at hand and on an export. Each round takes the next fault of `FAULTS`
and the next moment of `MOMENTS`, starts `capfilt run` in a folder that holds what comes before that
moment, waits until a random shard or step of it is done and a random part of a second more, and
kills with SIGKILL, stops for 15 s with SIGSTOP, or gives the same command once more. The same
command is given again until it ends well. Then every Parquet file and every model of the run must
have the SHA-256 that the run in peace gave it.

While the driver is stopped, and in the rounds of a second command, a second command must end with
status 1 and name the process that holds the run.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

ROWS, SHARD, STEPS, WORKERS = 36, 6, 6, 2

FAULTS = {
    "driver": "kill -9 of the driver",
    "worker": "kill -9 of a Ray worker",
    "raylet": "kill -9 of the raylet",
    "stopped worker": "SIGSTOP of a Ray worker",
    "stopped driver": "SIGSTOP of the driver",
    "second command": "a second command",
}

MOMENTS = {
    "list": "list/0*.parquet",
    "download": "pool/0*.parquet",
    "clean": "annotations/clean-*/0*.parquet",
    "dedup": "annotations/dedup-*/0*.parquet",
    "dedup's summary": "annotations/dedup-*/summary-*/0*.parquet",
    "select": "annotations/select-*/0*.parquet",
    "caption": "annotations/caption-*/0*.parquet",
    "filter": "annotations/filter-*/0*.parquet",
    "export": "curated*/0*.parquet",
    "training": "models/*.partial/metrics.jsonl",
}
"""The files that show that a moment has come."""

MADE = {
    "list": ("list",),
    "download": ("pool",),
    "clean": ("annotations/clean-*",),
    "dedup": ("annotations/dedup-*",),
    "dedup's summary": ("annotations/dedup-*/summary-*", "annotations/dedup-*/_stage.json"),
    "select": ("annotations/select-*",),
    "caption": ("annotations/caption-*",),
    "filter": ("annotations/filter-*",),
    "export": ("curated", "report"),
    "training": ("models",),
}
"""What is made at each moment, in the order of a run."""

STOPPED = 15.0
"""Seconds for which a process is stopped."""

PATIENCE = 600.0
"""Seconds for any one command to end, or any one moment to come."""


def kind_of(moment: str) -> str:
    """The kind of run that a moment is of."""
    kinds = {"caption": "models", "filter": "models", "training": "training"}
    return kinds.get(moment, "curation")


@dataclass
class Tally:
    """What came of the rounds of one fault at one moment."""

    rounds: int = 0
    lost: int = 0
    doubled: int = 0
    redone: int = 0
    differing: int = 0
    restarts: int = 0
    late: int = 0
    unrefused: int = 0


@dataclass
class World:
    """The files that every round starts from."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path) -> World:
        from helpers import fakes

        fakes.photo_folder(folder / "photos", ROWS)
        fakes.photo_folder(folder / "human", 12)
        lines = (
            json.dumps({"image": f"{index:04d}.jpg", "caption": f"a thing with number {index}"})
            for index in range(12)
        )
        (folder / "human" / "human.jsonl").write_text("\n".join(lines) + "\n")
        fakes.tiny_blip(folder / "blip")
        quick = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "3"}
        return cls(folder, {**os.environ, **quick, "OMP_NUM_THREADS": "1"})

    def manifest(self, run: Path, moment: str) -> Path:
        """The manifest of the rounds of a moment, for a run in a folder."""
        download = {"source": str(self.folder / "photos"), "image_size": 32, "shard_size": SHARD}
        stages: dict[str, Any] = {
            "download": download,
            "clean": {"min_side": 16},
            "dedup": {},
            "select": {"method": "random", "fraction": 0.9},
            "caption": {
                "model": str(self.folder / "blip" / "models" / "captioner"),
                "prompt": "",
                "max_length": 8,
            },
            "filter": {"model": str(self.folder / "blip" / "models" / "matcher"), "min_itm": 0},
            "export": {"shard_size": 8},
        }
        content: dict[str, Any] = {"name": "chaos", "run": str(run), "stages": stages}
        if kind_of(moment) != "models":
            del stages["caption"], stages["filter"]
        if kind_of(moment) == "training":
            training = {
                "model": "tiny",
                "tokenizer": str(self.folder / "blip" / "tokenizer"),
                "image_size": 32,
                "batch_size": 4,
                "steps": STEPS,
                "checkpoint_every": 1,
                "max_text_tokens": 12,
                "warmup_steps": 0,
                "augment": "none",
                "threads": 1,
            }
            human = [str(self.folder / "human" / "human.jsonl")]
            content["train"] = {
                "captioner": {**training, "objective": "captioner", "data": human, "prompt": ""},
                "new": {**training, "queue_size": 8, "data": ["curated"]},
            }
        path = run.with_suffix(".yaml")
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    def start(self, manifest: Path) -> subprocess.Popen[str]:
        """The command, in a session of its own."""
        command = [sys.executable, "-m", "pipeline.cli", "run", str(manifest), "--quiet"]
        if "train:" not in manifest.read_text():
            command += ["--until", "export"]
        return subprocess.Popen(
            [*command, "--workers", str(WORKERS)],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


def descendants(pid: int) -> dict[int, str]:
    """The processes below a process, with their titles."""
    found: dict[int, str] = {}
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                with contextlib.suppress(OSError):
                    title = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ")
                    found[child] = title.decode(errors="replace").strip()
                found |= descendants(child)
    return found


def victim(process: subprocess.Popen[str], fault: str, chance: random.Random) -> int | None:
    """The process that a fault kills; None where there is none, or none yet."""
    if process.poll() is not None:
        return None
    if fault in ("driver", "stopped driver", "second command"):
        return process.pid
    below = descendants(process.pid)
    if fault == "raylet":
        return next((pid for pid, title in below.items() if "/raylet/raylet " in title), None)
    # Ray's own agents are called ray:: too, and their raylet dies with them.
    titles = ("ray::Worker", "ray::_carry_out")
    own = [pid for pid, title in below.items() if title.startswith(titles)]
    busy = [pid for pid in own if not below[pid].endswith("Worker")]
    return chance.choice(busy or own) if own else None


def lines_of(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.read_bytes().count(b"\n")
    return 0


def has_come(run: Path, moment: str, number: int) -> bool:
    """Whether a moment has come: that many shards, or steps of one of its trainings."""
    files = list(run.glob(MOMENTS[moment]))
    if MOMENTS[moment].endswith(".jsonl"):
        return any(lines_of(file) >= number for file in files)
    return len(files) >= number


def committed(run: Path) -> dict[str, tuple[int, int]]:
    """Each shard of a stage or export that stands, with what tells if it is written again."""
    found = {}
    places = ("pool/0*.parquet", "annotations/*/0*.parquet", "curated/0*.parquet")
    for path in (path for place in places for path in run.glob(place)):
        with contextlib.suppress(OSError):
            stat = path.stat()
            found[str(path.relative_to(run))] = (stat.st_ino, stat.st_mtime_ns)
    return found


def digests(run: Path) -> dict[str, str]:
    """The SHA-256 of every Parquet file and of all weights."""
    files = [*run.rglob("*.parquet"), *run.glob("models/**/*.safetensors")]
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def pairs(run: Path) -> collections.Counter[tuple[Any, ...]]:
    """How often each pair is exported."""
    import pyarrow.parquet as pq

    found: collections.Counter[tuple[Any, ...]] = collections.Counter()
    for path in sorted((run / "curated").glob("*.parquet")):
        table = pq.read_table(path, columns=["uid", "caption", "caption_source"])
        found.update(zip(*(column.to_pylist() for column in table.columns), strict=True))
    return found


def finish(world: World, manifest: Path) -> int:
    """Give the command until it ends well; how often it was given."""
    for number in range(1, 4):
        process = world.start(manifest)
        try:
            _, error = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise SystemExit(f"chaos: {manifest} hangs") from None
        if process.returncode == 0:
            return number
    raise SystemExit(f"chaos: {manifest} does not end well: {error}")


def try_second(world: World, manifest: Path, holder: subprocess.Popen[str]) -> str:
    """Give a second command on a run.

    Returns:
        `refused` if it ends with an error that names the process that holds the run; `let through`
        if it ends well, which it may only if the run was free again; else what it said.
    """
    second = world.start(manifest)
    _, error = second.communicate(timeout=PATIENCE)
    if second.returncode == 1 and f"process {holder.pid}" in error:
        return "refused"
    return f"status {second.returncode}: {error}" if second.returncode else "let through"


def befall(
    world: World, manifest: Path, process: subprocess.Popen[str], pid: int, fault: str
) -> str:
    """Do to a process what the fault says; what came of the second command, if there was one."""
    if fault == "second command":
        return try_second(world, manifest, process)
    with contextlib.suppress(ProcessLookupError):
        if not fault.startswith("stopped"):
            os.kill(pid, signal.SIGKILL)
            return ""
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    second = try_second(world, manifest, process) if fault == "stopped driver" else ""
    time.sleep(max(0.0, STOPPED - (time.monotonic() - began)))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    return second


def strike(
    world: World, run: Path, fault: str, moment: str, chance: random.Random
) -> tuple[bool, bool, dict[str, tuple[int, int]], int]:
    """Start a run and do to it what the fault says.

    Returns:
        Whether it struck, whether second commands were refused, what stood, and restarts.
    """
    manifest = world.manifest(run, moment)
    number = chance.randint(1, STEPS - 1)
    process = world.start(manifest)
    end = time.monotonic() + PATIENCE
    while process.poll() is None and not has_come(run, moment, number):
        if time.monotonic() > end:
            process.kill()
            raise SystemExit(f"chaos: {moment} never came to {run}")
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.4))
    while (pid := victim(process, fault, chance)) is None and process.poll() is None:
        time.sleep(0.005)
    stood = committed(run)
    second = "" if pid is None else befall(world, manifest, process, pid, fault)
    try:
        process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise SystemExit(f"chaos: {run} hangs after {FAULTS[fault]} in {moment}") from None
    # A process whose run was taken from it ends with an error.
    is_free = second == "let through" and process.returncode == 0
    is_refused = second in ("", "refused") or is_free
    if not is_refused:
        print(f"the second command: {second}", flush=True)
    restarts = finish(world, manifest) if process.returncode else 0
    return pid is not None, is_refused, stood, restarts


def before(peace: Path, run: Path, moment: str) -> None:
    """Make a run that has come as far as a moment."""
    shutil.copytree(peace, run)
    for made in list(MADE)[list(MADE).index(moment) :]:
        for path in (path for place in MADE[made] for path in run.glob(place)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def verified(run: Path) -> list[str]:
    from pipeline.results.verify import verify
    from pipeline.storage.run import Run

    opened = Run(str(run))
    return list(verify(opened))


COUNTS = {
    "differing": "files that differ",
    "lost": "rows lost",
    "doubled": "rows doubled",
    "redone": "committed shards redone",
}


def table(tallies: dict[tuple[str, str], Tally], files: str) -> str:
    """The tallies as Markdown: a line for each fault, with its rounds by moment."""
    moments = [moment for moment in MOMENTS if any(key[1] == moment for key in tallies)]
    head = ["fault", *moments, "rounds", *COUNTS.values()]
    lines = [head, ["---", *("---:" for _ in head[1:])]]
    whole = Tally()
    for fault in (fault for fault in FAULTS if any(key[0] == fault for key in tallies)):
        found = {moment: tallies.get((fault, moment), Tally()) for moment in moments}
        total = Tally(*(sum(values) for values in zip(*map(_numbers, found.values()), strict=True)))
        whole = Tally(*map(sum, zip(_numbers(whole), _numbers(total), strict=True)))
        rounds = [one.rounds for one in found.values()]
        counts = [getattr(total, name) for name in COUNTS]
        lines.append([FAULTS[fault], *map(str, [*rounds, total.rounds, *counts])])
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join(
        [
            *rows,
            "",
            f"{files} files compared in each round; {whole.restarts} restarts; in {whole.late} "
            "rounds the moment was over before the kill; "
            f"{whole.unrefused} second commands were not refused.",
        ]
    )


def _numbers(tally: Tally) -> list[int]:
    return list(vars(tally).values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="the number of the first round")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no round after these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fault", choices=FAULTS, action="append", help="this one alone")
    parser.add_argument("--moment", choices=MOMENTS, action="append", help="this one alone")
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    options = parser.parse_args()
    began = time.monotonic()
    faults, moments = options.fault or list(FAULTS), options.moment or list(MOMENTS)
    tallies: dict[tuple[str, str], Tally] = {}
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        world = World.make(Path(folder))
        peace = {kind_of(moment): Path(folder) / kind_of(moment) for moment in moments}
        for moment in moments:
            run = peace[kind_of(moment)]
            if not run.exists():
                finish(world, world.manifest(run, moment))
        expected = {kind: digests(run) for kind, run in peace.items()}
        expected_pairs = {kind: pairs(run) for kind, run in peace.items()}
        told = " and ".join(str(len(files)) for files in expected.values())
        print(f"in peace: {told} files in {time.monotonic() - began:.0f} s", flush=True)
        for number in range(options.first, options.first + options.rounds):
            if time.monotonic() - began > options.seconds:
                break
            chance = random.Random(f"{options.seed} {number}")
            fault = faults[number % len(faults)]
            moment = moments[number // len(faults) % len(moments)]
            run = Path(folder) / f"round{number}"
            started = time.monotonic()
            kind = kind_of(moment)
            before(peace[kind], run, moment)
            struck, refused, stood, restarts = strike(world, run, fault, moment, chance)
            found, found_pairs = digests(run), pairs(run)
            one = tallies.setdefault((fault, moment), Tally())
            one.rounds += 1
            one.late += not struck
            one.unrefused += not refused
            one.restarts += restarts
            whole = expected[kind]
            wrong = {p for p in whole.keys() | found if whole.get(p) != found.get(p)}
            one.differing += len(wrong)
            one.lost += (expected_pairs[kind] - found_pairs).total()
            one.doubled += (found_pairs - expected_pairs[kind]).total()
            now = committed(run)
            one.redone += sum(now.get(path) != mark for path, mark in stood.items())
            faulty = [*verified(run), *run.rglob("*.partial")]
            print(
                f"{number + 1}: {FAULTS[fault]} in {moment}: {restarts} restarts, "
                f"{time.monotonic() - started:.0f} s{' LATE' if not struck else ''}"
                + ("" if refused else " A SECOND COMMAND WAS NOT REFUSED"),
                *sorted(wrong),
                *faulty,
                flush=True,
            )
            one.differing += len(faulty)
            shutil.rmtree(run)
            if options.out:
                options.out.write_text(table(tallies, told) + "\n")
    print(table(tallies, told))
    return int(any(t.differing or t.lost or t.doubled or t.unrefused for t in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
