"""Kill a changed manifest, a push or a retry at random moments, and give the command again.

    python -m benchmarks.commands --rounds 10 --kind push --out commands.md

A finished run is copied for each round. The command starts in the copy and is killed with SIGKILL:
in half of the rounds at any moment of the time that it takes undisturbed, in the other half at any
moment after the first thing that it changes. `capfilt verify` must find no fault then. The command
is given again until it ends well. Then the SHA-256 of each Parquet file, or of each file on the
hub, must be that of an undisturbed command, and `capfilt verify` must find no fault again.

The list of the retries is on a server of this process, whose faults are mended before the retry.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.chaos import PATIENCE, ROOT, ROWS, World, digests, finish, verified

KINDS = {
    "change": "kill -9 of a change of manifest",
    "push": "kill -9 of `push`",
    "retry": "kill -9 of `download --retry`",
}


class Command:
    """A command that is killed, and what must come of it.

    Args:
        world: The files that the runs start from.
        kind: One of `KINDS`.
        folder: The folder that the finished run lies in.
        pictures: The server of the list of a retry.
    """

    def __init__(self, world: World, kind: str, folder: Path, pictures: Any) -> None:
        from helpers.hub_server import TOKEN, HubServer

        self.world, self.kind, self.finished = world, kind, folder / "finished"
        self.list = folder / "list.csv"
        lines = (f"{pictures.base}/{i},a thing with number {i} in the sun" for i in range(ROWS))
        self.list.write_text("\n".join(["url,caption", *lines]) + "\n")
        self.hub = HubServer() if kind == "push" else None
        self.environment = dict(world.environment)
        if self.hub:
            names = {"HF_ENDPOINT": self.hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
            self.environment |= {
                **names,
                "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1",
            }
        pictures.broken = {str(number): 503 for number in range(0, ROWS, 2)}
        finish(world, self.manifest(self.finished))
        pictures.broken = {}

    def manifest(self, run: Path) -> Path:
        path = self.world.manifest(run, "export")
        if self.kind == "retry":
            content = yaml.safe_load(path.read_text())
            content["stages"]["download"] |= {
                "source": str(self.list),
                "retries": 0,
                "requests_per_second": 10,  # so that a retry takes a second or two
                "allow_private_addresses": True,
            }
            path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    def commands(self, run: Path) -> list[list[str]]:
        """The commands, of which the first is killed."""
        manifest = self.manifest(run)
        if self.kind == "push":
            return [["push", str(run), "--repo", f"org/{run.name}"]]
        workers = ["--workers", "2", "--quiet"]
        whole = ["run", str(manifest), "--until", "export", *workers]
        if self.kind == "retry":
            return [["download", str(manifest), "--retry", "http_5xx", *workers], whole]
        content = yaml.safe_load(manifest.read_text())
        content["stages"]["clean"]["min_side"] = 33
        content["stages"]["dedup"]["max_hamming"] = 3
        content["stages"]["export"]["shard_size"] = 5
        manifest.write_text(yaml.safe_dump(content, sort_keys=False))
        return [whole]

    def mark(self, run: Path) -> object:
        """Return a value that changes when the command first changes something."""
        if self.hub:
            return f"org/{run.name}" in self.hub.repos
        with contextlib.suppress(OSError):
            return (run / "run.json").stat().st_mtime_ns, (run / "pool/_retries.json").exists()
        return None

    def start(self, arguments: Sequence[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", *arguments],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def carry_out(self, arguments: Sequence[str]) -> None:
        process = self.start(arguments)
        _, error = process.communicate(timeout=PATIENCE)
        if process.returncode:
            raise SystemExit(f"commands: {' '.join(arguments)} fails: {error}")

    def wait_for_change(self, process: subprocess.Popen[str], run: Path, mark: object) -> None:
        """Wait until the command has changed something, or has ended."""
        while process.poll() is None and self.mark(run) == mark:
            time.sleep(0.005)

    def kill(self, run: Path, chance: random.Random, until: float, *, is_late: bool) -> bool:
        """Start the first command and kill it; whether it was killed before it ended.

        Args:
            run: The run.
            chance: Where in its time it is killed.
            until: The seconds that it takes, after its first change if the kill is late.
            is_late: Whether it is killed after its first change.
        """
        mark = self.mark(run)
        process = self.start(self.commands(run)[0])
        if is_late:
            self.wait_for_change(process, run, mark)
        time.sleep(chance.uniform(0 if is_late else 0.2, 1.0) * until)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE)
        return process.returncode == -signal.SIGKILL

    def found(self, run: Path) -> dict[str, str]:
        if self.hub is None:
            return digests(run)
        files = self.hub.files(f"org/{run.name}")
        return {
            name: hashlib.sha256(content.replace(run.name.encode(), b"RUN")).hexdigest()
            for name, content in files.items()
        }


def try_kind(kind: str, rounds: int, seed: int, pictures: Any) -> tuple[int, int, int]:
    """Kill one kind of command again and again.

    Returns:
        The rounds in which it was killed before it ended, the files compared, and the files that
        differed and faults that `verify` found.
    """
    killed = wrong = 0
    with tempfile.TemporaryDirectory(prefix="commands-") as name:
        folder = Path(name)
        command = Command(World.make(folder), kind, folder, pictures)
        shutil.copytree(command.finished, whole := folder / "whole")
        began, mark = time.monotonic(), command.mark(whole)
        first, *then = command.commands(whole)
        process = command.start(first)
        command.wait_for_change(process, whole, mark)
        changed = time.monotonic()
        process.communicate(timeout=PATIENCE)
        ended = time.monotonic()
        for one in (first, *then):
            command.carry_out(one)
        expected = command.found(whole)
        for number in range(rounds):
            chance, is_late = random.Random(f"{seed} {kind} {number}"), bool(number % 2)
            shutil.copytree(command.finished, run := folder / f"round{number:03d}")
            until = ended - (changed if is_late else began)
            killed += command.kill(run, chance, until, is_late=is_late)
            faults = list(map(str, verified(run)))
            for one in command.commands(run):
                command.carry_out(one)
            found = command.found(run)
            names = found.keys() | expected.keys()
            differing = sorted(n for n in names if found.get(n) != expected.get(n))
            faults += map(str, verified(run))
            wrong += len(differing) + len(faults)
            print(f"{kind} {number + 1}:", *differing, *faults, flush=True)
            shutil.rmtree(run)
    return killed, len(expected), wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=KINDS)
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    options = parser.parse_args()
    from helpers import web

    lines = [
        "| fault | rounds | killed before the end | files compared | files that differ, faults |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    is_bad = False
    for kind in options.kind or KINDS:
        with web.Pictures() as pictures:
            killed, files, wrong = try_kind(kind, options.rounds, options.seed, pictures)
        lines.append(f"| {KINDS[kind]} | {options.rounds} | {killed} | {files} | {wrong} |")
        print(lines[-1], flush=True)
        is_bad = is_bad or wrong > 0
        if options.out:
            options.out.write_text("\n".join(lines) + "\n")
    return int(is_bad)


if __name__ == "__main__":
    sys.exit(main())
