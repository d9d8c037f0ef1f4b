"""A finished model takes the place of another: old or new at every step."""

import os
import shutil
from pathlib import Path

import pytest

from pipeline.results.output_faults import model_faults
from pipeline.storage import run as runs
from pipeline.storage import successor
from pipeline.storage.records import ModelRecord
from pipeline.storage.run import Run
from pipeline.training.placing import CHECKPOINT, place_model, resume_placing


class Killed(BaseException):
    """What ends a process between two system calls."""


def train(run, content):
    """As a training does: go on from a checkpoint if there is one, place the model, record it."""
    out = run.at("models", "one")
    partial, card = f"{out}.partial", f"- fingerprint: {content}\n"
    resume_placing(Path(out), card)
    if not run.exists("models", "one") or run.read("models", "one", "README.md").decode() != card:
        if not os.path.exists(f"{partial}/{CHECKPOINT}"):
            shutil.rmtree(partial, ignore_errors=True)
        for name, text in (("README.md", card), ("w.safetensors", content), (CHECKPOINT, "x")):
            run.write(text.encode(), "models", "one.partial", name)
        run.write(b"x", "models", "one.partial", "best", "w.safetensors")
        place_model(Path(partial), Path(out))
    files = run.digests("models", "one")
    run.write_record(ModelRecord(fingerprint=content, files=files), "models", "one.json")


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_kill_at_any_step_leaves_the_old_model_or_the_new(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(successor, "_renameat2", lambda: None)
    run = Run(str(tmp_path))
    train(run, "old")
    left, seen = 0, set()

    def counted(function):
        def step(*arguments, **options):
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            return function(*arguments, **options)

        return step

    steps = [
        (successor, "_exchange"),
        (successor, "sync"),
        (os, "rename"),
        (os, "rmdir"),
        (os, "unlink"),
        (runs.Run, "write"),
    ]
    for number in range(1, 100):
        with monkeypatch.context() as patch:
            for where, name in steps:
                patch.setattr(where, name, counted(getattr(where, name)))
            left = number
            try:
                train(run, f"new{number}")
            except Killed:
                pass
            else:
                break
        with run.lock():  # as the next command begins
            assert list(model_faults(run, "one")) == []
            seen.add(run.read("models", "one", "w.safetensors").decode())
        if number % 2:  # the same training is given again; else another one
            train(run, f"new{number}")
            assert run.read("models", "one", "w.safetensors").decode() == f"new{number}"
            assert run.names("models", "one") == ["README.md", "w.safetensors"]
            assert list(model_faults(run, "one")) == []
    assert "old" in seen and f"new{number}" not in seen and len(seen) > 3
    assert sorted(os.listdir(run.at("models"))) == ["one", "one.json"]
