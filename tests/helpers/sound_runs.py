"""A small run of every kind of file, to be damaged."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from pipeline.execution.progress import Progress
from pipeline.execution.session import Session
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
from pipeline.storage.run import Run
from stages.formats import FORMATS


def manifest(place, run):
    content = {
        "name": "small",
        "run": str(run),
        "stages": {
            "download": {"source": str(place / "photos"), "image_size": 32, "shard_size": 6},
            "clean": {"min_side": 16},
            "dedup": {},
            "export": {
                "human": [str(place / "people.jsonl")],
                "validation": 0.3,
                "shard_size": 8,
            },
        },
        "exports": {name: {"format": name} for name in FORMATS if name != "parquet"},
        "train": {
            "new": {
                "objective": "pretrain",
                "model": "tiny",
                "tokenizer": str(place / "tokenizer"),
                "data": ["curated"],
                "steps": 1,
                "batch_size": 4,
                "queue_size": 4,
                "image_size": 32,
                "threads": 1,
            },
        },
    }
    return Manifest.parse(content)


def carry_out(made):
    """All but training, which takes seconds to start in a process of its own."""
    progress = Progress(Console(quiet=True), quiet=True)
    with Session(made, workers=1, progress=progress) as session:
        session.run("review")
        session.export()
    return Run(made.run), Plan(made)


def files_of(run):
    return [p for p in sorted(Path(run.path).rglob("*")) if p.is_file() and p.name != "run.lock"]


def flip(run, *parts, at=None):
    """Change a bit in the middle of a file; the path of it."""
    content = bytearray(run.read(*parts))
    content[len(content) // 2 if at is None else at] ^= 1
    run.write(bytes(content), *parts)
    return run.at(*parts)


def run_again(place, run):
    """What `capfilt run` does on a run, and what it says."""
    made = manifest(place, run.root)
    told = io.StringIO()
    progress = Progress(Console(file=told, width=1000, soft_wrap=True))
    with Session(made, workers=1, progress=progress) as session:
        session.run()
        session.report()
    return told.getvalue()


def digests(run):
    return {
        str(path.relative_to(run.path)): path.read_bytes()
        for path in files_of(run)
        if path.suffix == ".parquet" or path.parent.name == "new"
    }
