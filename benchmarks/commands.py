"""Kill a changed manifest or a push at random moments, and give the command again.

    python -m benchmarks.commands --rounds 10 --kind push

A finished run is copied for each round. The command starts in the copy, is killed with SIGKILL
after a random part of the time that it takes undisturbed, and is given again until it ends well.
Then the SHA-256 of each Parquet file, or of each file on the hub, must be that of an undisturbed
command, and `capfilt verify` must find no fault.
"""

from __future__ import annotations

import argparse
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

import yaml

from benchmarks.chaos import PATIENCE, ROOT, World, digests, finish, verified


class Command:
    """A command that is killed, and what must come of it.

    Args:
        world: The files that the runs start from.
        kind: change or push.
        folder: The folder that the finished run lies in.
    """

    def __init__(self, world: World, kind: str, folder: Path) -> None:
        from helpers.hub_server import TOKEN, HubServer

        self.world, self.kind, self.finished = world, kind, folder / "finished"
        self.hub = HubServer() if kind == "push" else None
        self.environment = dict(world.environment)
        if self.hub:
            names = {"HF_ENDPOINT": self.hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
            self.environment |= {
                **names,
                "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1",
            }
        finish(world, self.manifest(self.finished))

    def manifest(self, run: Path) -> Path:
        return self.world.manifest(run, "export")

    def commands(self, run: Path) -> list[list[str]]:
        """The commands, of which the first is killed."""
        manifest = self.manifest(run)
        if self.kind == "push":
            return [["push", str(run), "--repo", f"org/{run.name}"]]
        again = ["run", str(manifest), "--until", "export", "--workers", "2", "--quiet"]
        content = yaml.safe_load(manifest.read_text())
        content["stages"]["clean"]["min_side"] = 33
        content["stages"]["dedup"]["max_hamming"] = 3
        content["stages"]["export"]["shard_size"] = 5
        manifest.write_text(yaml.safe_dump(content, sort_keys=False))
        return [again]

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

    def found(self, run: Path) -> dict[str, str]:
        if self.hub is None:
            return digests(run)
        files = self.hub.files(f"org/{run.name}")
        return {
            name: hashlib.sha256(content.replace(run.name.encode(), b"RUN")).hexdigest()
            for name, content in files.items()
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=("change", "push"))
    options = parser.parse_args()
    is_bad = False
    for kind in options.kind or ("change", "push"):
        with tempfile.TemporaryDirectory(prefix="commands-") as name:
            folder = Path(name)
            command = Command(World.make(folder), kind, folder)
            shutil.copytree(command.finished, whole := folder / "whole")
            began = time.monotonic()
            first, *then = command.commands(whole)
            command.carry_out(first)
            seconds = time.monotonic() - began
            for one in then:
                command.carry_out(one)
            expected, killed, wrong = command.found(whole), 0, 0
            for number in range(options.rounds):
                chance = random.Random(f"{options.seed} {kind} {number}")
                shutil.copytree(command.finished, run := folder / f"round{number:03d}")
                first, *then = command.commands(run)
                process = command.start(first)
                time.sleep(chance.uniform(0.2, 1.0) * seconds)
                os.kill(process.pid, signal.SIGKILL)
                process.communicate(timeout=PATIENCE)
                killed += process.returncode == -signal.SIGKILL
                for one in (first, *then):
                    command.carry_out(one)
                found = command.found(run)
                names = found.keys() | expected.keys()
                differing = sorted(n for n in names if found.get(n) != expected.get(n))
                faults = list(map(str, verified(run)))
                wrong += len(differing) + len(faults)
                print(f"{kind} {number + 1}:", *differing, *faults, flush=True)
                shutil.rmtree(run)
            print(
                f"| {kind} | {options.rounds} | {killed} | {len(expected)} | {wrong} |", flush=True
            )
            is_bad = is_bad or wrong > 0
    return int(is_bad)


if __name__ == "__main__":
    sys.exit(main())
