"""A small run of photos, for faults in its midst."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.execution.progress import Progress
from pipeline.execution.session import Session
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
from pipeline.storage.run import Run

ROOT = Path(__file__).parents[2]


def content(folder, run, **stages):
    return {
        "name": "faults",
        "run": str(run),
        "stages": {
            "download": {"source": str(folder), "image_size": 48, "shard_size": 5},
            "clean": {"min_side": 16},
            "dedup": {},
            **stages,
            "export": {},
        },
    }


def manifest(folder, run, **stages):
    return Manifest.parse(content(folder, run, **stages))


def carry_out(made, until=None, **fields):
    quiet = Progress(Console(quiet=True), quiet=True)
    with Session(made, workers=2, progress=quiet) as session:
        for name, value in fields.items():
            setattr(session.cluster, name, value)
        session.run(until)
    return Run(made.run), Plan(made)


def digests(run):
    return {f["name"]: f["sha256"] for f in run.read_json("curated", "manifest.json")["files"]}


def uids(run, *numbers):
    """The uids of some photos, by their place in the pool."""
    all_ = [u for s in run.shards("list") for u in run.read_table("list", f"{s}.parquet")["uid"]]
    return {all_[number].as_py() for number in numbers}


def children(pid):
    """The processes that a process started, by name."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            found[Path(f"/proc/{child}/comm").read_text().strip()] = int(child)
    return found


def start(path, **fields):
    command = [sys.executable, "-m", "pipeline.cli", "run", str(path), "--workers", "2"]
    return subprocess.Popen(command, cwd=ROOT, text=True, **{"stderr": subprocess.PIPE, **fields})


def wait_for(process, folder, wanted):
    deadline = time.monotonic() + 600
    while not list(folder.glob(wanted)) and process.poll() is None:
        assert time.monotonic() < deadline, f"{wanted} never came"
        time.sleep(0.01)
    assert process.poll() is None, process.stderr and process.stderr.read()


@contextlib.contextmanager
def small_disk(path, size):
    """A tmpfs of some bytes."""
    path.mkdir()
    told = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True
    )
    if told.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {told.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
