"""Kill a command while it replaces an export, a model, a report or decisions, again and again.

    python -m benchmarks.exchange --rounds 30 --out exchange.md

Each round changes a setting of a finished run, starts the command that replaces what follows from
it, and kills the process with SIGKILL: half of the rounds at any moment after the new files have
begun to appear, half within milliseconds of the moment when they take the place of the old ones.
Then `capfilt verify` must find no fault, and what stands must be, byte for byte, the old state or
the new one. The command is given again in the end, and must give the new one.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import yaml

from benchmarks.chaos import PATIENCE, ROOT, World, finish, verified

TRAIN = """
import sys
from pipeline.manifest.manifest import Manifest
from pipeline.training.job import TrainingJob
TrainingJob(Manifest.load(sys.argv[1]), "captioner").carry_out()
"""
"""Program that trains as a worker does, without starting Ray."""


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a folder that are not partial, by their paths."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".partial" not in str(path.relative_to(folder))
    }


def steady(files: dict[str, bytes]) -> dict[str, bytes]:
    """Without what differs between two equal commands: times, and the page and facts with them."""
    # A tokenizer is saved with the length that it last cut to, if it has cut any text.
    timed = ("_export.json", "metrics.jsonl", "README.md", "tokenizer.json")
    return {name: content for name, content in files.items() if Path(name).name not in timed}


class Exchange:
    """A command that replaces an output, and the signs that the exchange begins and ends.

    Args:
        world: The files that the runs start from.
        kind: export, model or report.
        run: The folder of a finished run.
    """

    def __init__(self, world: World, kind: str, run: Path) -> None:
        self.world, self.kind, self.run = world, kind, run
        name = {"export": "curated", "model": "models/captioner", "report": "report"}[kind]
        self.folder = run / name
        self.partial = run / f"{name}.partial"
        self.ready = run / f"{name}.ready.partial"

    def manifest(self, state: int) -> Path:
        """The manifest of one of two states."""
        path = self.world.manifest(self.run, "training" if self.kind == "model" else "export")
        content = yaml.safe_load(path.read_text())
        content["stages"]["export"]["shard_size"] = (8, 5)[state]
        if self.kind == "model":
            content["train"] = {"captioner": content["train"]["captioner"]}
            content["train"]["captioner"]["steps"] = (2, 3)[state]
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    def start(self, state: int) -> subprocess.Popen[str]:
        manifest = str(self.manifest(state))
        command = {
            "export": ["-m", "pipeline.cli", "export", manifest, "--quiet", "--workers", "2"],
            "model": ["-c", TRAIN, manifest],
            "report": ["-m", "pipeline.cli", "report", str(self.run)],
        }[self.kind]
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=self.world.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def has_begun(self) -> bool:
        return self.partial.exists() or self.ready.exists()

    def is_about_to_end(self) -> bool:
        """Whether the last file of the new state is there."""
        last = {"export": "README.md", "model": "README.md", "report": "report.json"}[self.kind]
        return (self.partial / last).exists() or self.ready.exists()

    def carry_out(self, state: int) -> None:
        process = self.start(state)
        _, error = process.communicate(timeout=PATIENCE)
        if process.returncode:
            raise SystemExit(f"exchange: the command fails: {error}")

    def kill(self, state: int, chance: random.Random, *, is_late: bool) -> bool:
        """Start the command and kill it; whether it was killed before it ended."""
        process = self.start(state)
        reached: Callable[[], bool] = self.is_about_to_end if is_late else self.has_begun
        end = time.monotonic() + PATIENCE
        while process.poll() is None and not reached():
            if time.monotonic() > end:
                raise SystemExit(f"exchange: {self.kind} never began")
        time.sleep(chance.uniform(0, 0.02 if is_late else 0.5))
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        _, error = process.communicate(timeout=PATIENCE)
        if process.returncode not in (-signal.SIGKILL, 0):
            raise SystemExit(f"exchange: the command fails: {error}")
        return process.returncode != 0


def replace(exchange: Exchange, rounds: int, seed: int) -> dict[str, int]:
    """Kill one kind of exchange again and again, and count what was found."""
    tally = dict.fromkeys(("rounds", "killed", "old", "new", "neither", "faults"), 0)
    states = []
    for state in (1, 0):
        exchange.carry_out(state)
        states.insert(0, steady(files_of(exchange.folder)))
    now = 0
    for number in range(rounds):
        chance = random.Random(f"{seed} {exchange.kind} {number}")
        tally["killed"] += exchange.kill(1 - now, chance, is_late=bool(number % 2))
        from pipeline.storage.run import Run

        with Run(str(exchange.run)).lock():
            pass  # as the next command begins
        found = steady(files_of(exchange.folder))
        faults = verified(exchange.run)
        is_report = exchange.kind == "report"  # its page holds the minute it was made in
        is_old, is_new = found == states[now], found == states[1 - now]
        whole = found.keys() == states[0].keys()
        tally["rounds"] += 1
        tally["old"] += is_old and not is_report
        tally["new"] += is_new and not is_report
        tally["neither"] += not (whole if is_report else is_old or is_new)
        tally["faults"] += len(faults)
        print(f"{exchange.kind} {number + 1}: ", *faults, is_old, is_new, flush=True)
        if number % 3 == 2:  # two kills in a row before it is let through
            exchange.carry_out(1 - now)
            found = steady(files_of(exchange.folder))
            wanted = states[1 - now]
            differing = [n for n in found.keys() | wanted if found.get(n) != wanted.get(n)]
            tally["neither"] += bool(differing) and not is_report
            print(f"{exchange.kind} {number + 1}: let through,", *differing, flush=True)
            tally["faults"] += len(verified(exchange.run))
            now = 1 - now
        elif is_new and not is_report:
            now = 1 - now
    return tally


def decide(run: Path, world: World, rounds: int, seed: int) -> dict[str, int]:
    """Kill `capfilt review` while decisions are saved; those that were answered must be there."""
    tally = dict.fromkeys(("rounds", "killed", "old", "new", "neither", "faults"), 0)
    file = run / "reviews.jsonl"
    for number in range(rounds):
        chance = random.Random(f"{seed} review {number}")
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "review", str(run), "--port", "0"],
            cwd=ROOT,
            env=world.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        lines = iter(process.stdout or ())
        address = next(line.split()[1] for line in lines if line.startswith("open"))
        place = urllib.parse.urlsplit(address)
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
        end = time.monotonic() + chance.uniform(0.01, 0.4)
        answered: dict[int, str] = {}
        pending = (0, "")
        with contextlib.suppress(OSError, http.client.HTTPException):
            killer = subprocess.Popen(
                ["sh", "-c", f"sleep {end - time.monotonic():.3f}; kill -9 {process.pid}"]
            )
            for step in range(100_000):
                pending = (step % 20, chance.choice(("accept", "reject")))
                body = json.dumps({"pair": pending[0], "verdict": pending[1]})
                origin = f"http://{place.netloc}"
                headers = {"Origin": origin, "Content-Type": "application/json"}
                connection.request("POST", f"{place.path}decide", body, headers)
                if connection.getresponse().read() is not None:
                    answered[pending[0]] = pending[1]
        killer.wait()
        process.wait()
        from stages.review import read_decisions

        found = sorted(d.verdict for d in read_decisions(str(file)).values())
        old = sorted(answered.values())
        new = sorted({**answered, pending[0]: pending[1]}.values())
        tally["rounds"] += 1
        tally["killed"] += process.returncode == -signal.SIGKILL
        tally["old"] += found == old
        tally["new"] += found == new and found != old
        tally["neither"] += found not in (old, new)
        tally["faults"] += len(verified(run))
        file.unlink(missing_ok=True)
        print(f"review {number + 1}: {len(answered)} decisions", flush=True)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no kind after these")
    parser.add_argument("--kind", action="append", help="export, model, report or review")
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    options = parser.parse_args()
    lines = [
        "| what is replaced | rounds | killed before the end | old state | new state "
        "| neither | faults of `verify` |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    is_bad = False
    with tempfile.TemporaryDirectory(prefix="exchange-") as folder:
        world = World.make(Path(folder))
        for kind in options.kind or ("model", "report", "review", "export"):
            run = Path(folder) / kind
            finish(world, world.manifest(run, "export"))
            if kind == "review":
                tally = decide(run, world, options.rounds, options.seed)
            else:
                tally = replace(Exchange(world, kind, run), options.rounds, options.seed)
            lines.append(f"| {kind} | " + " | ".join(map(str, tally.values())) + " |")
            is_bad = is_bad or bool(tally["neither"] or tally["faults"])
            shutil.rmtree(run)
            print(lines[-1], flush=True)
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")
    return int(is_bad)


if __name__ == "__main__":
    sys.exit(main())
