"""Trainings that fail or lose a worker, and models that cannot be loaded."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import yaml
from helpers import fakes
from helpers.faulty_runs import (
    carry_out,
    children,
    content,
    manifest,
    small_disk,
)
from rich.console import Console

from pipeline.cli.main import main
from pipeline.execution.progress import Progress
from pipeline.execution.session import Session
from pipeline.manifest.manifest import Manifest
from pipeline.storage.run import Run

pytestmark = pytest.mark.slow


def busy(title):
    """The workers of this process's own Ray that are at some work."""
    raylet = children(os.getpid())["raylet"]
    for path in Path(f"/proc/{raylet}/task").glob("*/children"):
        for pid in path.read_text().split():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(title.encode()):
                    yield int(pid)


def training(folder, run, **fields):
    """A manifest that trains a captioner on 8 pairs, drawn in a folder."""
    fakes.tiny_blip(folder / "blip")
    photos = fakes.photo_folder(folder / "photos", 8)
    lines = (json.dumps({"image": f"{n:04d}.jpg", "caption": f"thing {n}"}) for n in range(8))
    (photos / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    captioner = {
        "objective": "captioner",
        "data": [str(photos / "pairs.jsonl")],
        "model": "tiny",
        "tokenizer": str(folder / "blip" / "tokenizer"),
        "image_size": 32,
        "batch_size": 4,
        "steps": 40,
        "checkpoint_every": 1,
        "max_text_tokens": 12,
        "prompt": "",
        "augment": "none",
        "threads": 1,
        **fields,
    }
    return {**content(photos, run), "train": {"captioner": captioner}}


def test_what_fails_a_training_is_told_in_a_line_and_its_trace_kept(tmp_path, capsys, ray_here):
    disk, path = tmp_path / "disk", tmp_path / "m.yaml"
    made = training(tmp_path, tmp_path / "r", batch_size=64)
    path.write_text(yaml.safe_dump(made, sort_keys=False))
    capsys.readouterr()
    assert main(["train", str(path), "--quiet"]) == 1
    first, *rest = capsys.readouterr().err.splitlines()
    assert "train.captioner: ValueError: train.batch_size is 64, but an epoch has" in first
    assert "it resumes from its checkpoint" in "".join(rest) and len(rest) == 1
    trace = tmp_path / "r" / "failures" / "train-captioner.txt"
    assert str(trace) in first
    assert "loop.py" in trace.read_text() and "\x1b" not in trace.read_text()

    made["train"]["captioner"]["batch_size"] = 4
    path.write_text(yaml.safe_dump({**made, "run": str(disk / "r")}, sort_keys=False))
    with small_disk(disk, "400k"):
        assert main(["train", str(path), "--quiet"]) == 1
        first, *rest = capsys.readouterr().err.splitlines()
    told = "no space left on device. Make room there"
    assert re.search(rf"train\.captioner: {disk}/r/models/captioner\S*: {told}$", first)
    assert len(rest) == 1


def test_a_training_whose_worker_is_killed_goes_on_from_its_checkpoint(tmp_path, ray_here):
    content_of = training(tmp_path, "")
    weights = {}
    for name in ("whole", "killed"):
        made = Manifest.parse({**content_of, "run": str(tmp_path / name)})
        log = tmp_path / name / "models" / "captioner.partial" / "metrics.jsonl"

        def kill(log=log):
            while not (log.exists() and log.read_bytes().count(b"\n") > 2):
                time.sleep(0.005)
            for pid in busy("ray::_carry_out"):
                os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill, daemon=True)
        if name == "killed":
            killer.start()
        with Session(made, progress=Progress(Console(quiet=True), quiet=True)) as session:
            session.train()
        run = Run(made.run)
        weights[name] = run.sha256("models", "captioner", "model.safetensors")
        result = run.read_json("models", "captioner.json")["result"]
        assert (result["resumed_from"] > 0) == (name == "killed") and result["steps"] == 40
    assert weights["killed"] == weights["whole"]


@pytest.mark.parametrize("fault", ["missing", "truncated", "config", "weightless"])
def test_a_model_that_cannot_be_loaded_is_told_before_any_work(photos, tmp_path, fault):
    models = fakes.tiny_blip(tmp_path / "blip")
    weights = models / "captioner" / "model.safetensors"
    if fault == "missing":
        shutil.rmtree(models / "captioner")
    elif fault == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif fault == "config":
        (models / "captioner" / "config.json").write_text('{"model_type": ')
    else:
        weights.unlink()
    named = {"truncated": "model.safetensors is damaged", "config": "config.json is damaged"}
    made = manifest(photos, tmp_path / "r", caption={"model": str(models / "captioner")})
    with pytest.raises(
        (ValueError, FileNotFoundError), match=f"caption.model: .*{named.get(fault, 'captioner')}"
    ):
        carry_out(made)
    assert os.listdir(tmp_path / "r") == []
