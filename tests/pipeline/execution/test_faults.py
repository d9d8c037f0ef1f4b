"""Workers that crash, run out of memory or stall in the middle of a run."""

from __future__ import annotations

import io
import os
import random
import re
import resource
import shutil
import signal
import sys
import threading
import time

import pytest
import ray
from helpers import fakes
from helpers.faulty_runs import (
    carry_out,
    digests,
    manifest,
    uids,
)
from rich.console import Console

from models.errors import StageError
from pipeline.execution import worker_pool
from pipeline.execution.cluster import ROOM_SECONDS
from pipeline.execution.progress import Progress
from pipeline.execution.session import Session
from pipeline.execution.worker import Worker
from pipeline.manifest.plan import Plan
from pipeline.results.funnel import funnel
from pipeline.results.history import sample_history
from pipeline.results.verdicts import Results
from pipeline.results.verify import verify
from pipeline.storage.run import Run

pytestmark = pytest.mark.slow


def poisoned(stage_name, rows, how):
    """A worker whose process ends over some rows of a stage; a class that Ray ships by value."""

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

    class Poisoned(Worker):
        def _stage(self, name):
            stage = super()._stage(name)
            annotate = type(stage).annotate

            def decode(given):
                if name == stage_name and set(given["uid"].to_pylist()) & rows:
                    how()
                return annotate(stage, given)

            stage.annotate = decode
            return stage

    return Poisoned


def segfault():
    os.kill(os.getpid(), signal.SIGSEGV)


@pytest.mark.parametrize(
    ("name", "numbers"), [("download", [1]), ("clean", [1, 3, 17]), ("dedup", [12])]
)
def test_rows_that_crash_their_worker_are_isolated_and_the_rest_is_saved(
    done, photos, tmp_path, monkeypatch, name, numbers
):
    whole, _ = done
    bad = uids(whole, *numbers)
    how = os.abort if name == "clean" else segfault
    monkeypatch.setattr(worker_pool, "Worker", poisoned(name, bad, how))
    made = manifest(photos, tmp_path / "r")
    run, plan = carry_out(made)
    stages = {stage["name"]: stage for stage in funnel(Results(run, plan))["stages"]}
    assert stages[name]["reasons"] == {"crashed": len(bad)}
    assert all(stage["not_measured"] == 0 for stage in stages.values())
    assert stages["export"]["pairs"] == {"web": 20 - len(bad)}
    assert list(verify(run)) == []
    for uid in bad:
        assert sample_history(Results(run, plan), uid).verdict == f"{name}: crashed"

    carry_out(made)  # they are not tried again: another try would crash
    assert funnel(Results(run, plan))["stages"] == list(stages.values())
    if name != "download":
        return
    monkeypatch.undo()
    with Session(made, workers=2, progress=Progress(Console(quiet=True), quiet=True)) as session:
        session.retry(["crashed"])
        session.run()
    for shard in whole.shards("pool"):
        expected = whole.read_table("pool", f"{shard}.parquet")
        assert run.read_table("pool", f"{shard}.parquet").equals(expected)
    assert digests(run) == digests(whole)


def test_a_stage_that_crashes_on_every_row_ends_with_an_error_and_marks_none(
    done, photos, tmp_path, monkeypatch
):
    whole, _ = done
    made = manifest(photos, tmp_path / "r")
    monkeypatch.setattr(worker_pool, "Worker", poisoned("clean", uids(whole, *range(20)), segfault))
    monkeypatch.setattr("pipeline.execution.crash_search.MOST_CRASHES", 1)
    with pytest.raises(StageError, match=r"clean: shard 0000\d: more than 1 of its rows end"):
        carry_out(made)
    run, plan = Run(made.run), Plan(made)
    assert run.shards(*plan.folder("clean")) == []
    monkeypatch.undo()
    carry_out(made)
    assert digests(run) == digests(whole)


def test_a_worker_that_runs_out_of_memory_once_does_no_harm(done, photos, tmp_path, monkeypatch):
    whole, _ = done
    once = tmp_path / "once"

    def exhaust():
        if not once.exists():
            once.touch()
            resource.setrlimit(resource.RLIMIT_AS, (1 << 32, resource.RLIM_INFINITY))
            bytearray(1 << 40)

    monkeypatch.setattr(worker_pool, "Worker", poisoned("clean", uids(whole, 3), exhaust))
    run, plan = carry_out(manifest(photos, tmp_path / "r"))
    assert once.exists() and digests(run) == digests(whole)
    assert funnel(Results(run, plan))["stages"][1]["reasons"] == {}


def test_a_stage_that_needs_more_memory_than_there_is_says_what_to_lower(
    done, photos, tmp_path, monkeypatch
):
    whole, _ = done

    def exhaust():
        raise MemoryError("cannot allocate 1 TiB")

    monkeypatch.setattr(worker_pool, "Worker", poisoned("download", uids(whole, 3), exhaust))
    with pytest.raises(StageError) as told:
        carry_out(manifest(photos, tmp_path / "r"))
    assert "1 of 4 shards failed (00000)" in str(told.value)
    assert "out of memory 2 times: give fewer --workers" in str(told.value)
    assert "lower download.threads, or lower download.shard_size" in str(told.value)


def test_a_clock_that_jumps_decides_nothing(done, photos, tmp_path, monkeypatch):
    chance, real = random.Random(3), time.time
    monkeypatch.setattr(time, "time", lambda: real() + chance.uniform(-1e8, 1e8))
    run, plan = carry_out(manifest(photos, tmp_path / "r"))
    assert digests(run) == digests(done[0])
    assert all(0 < stage["seconds"] < 1e6 for stage in funnel(Results(run, plan))["stages"])


def _measured(worker, due):
    return worker.measure(due.name, due.shard, (), due.rows.tolist())


def test_a_worker_that_outlives_its_driver_writes_what_is_there_already(done, photos, tmp_path):
    whole, _ = done
    made = manifest(photos, tmp_path / "r")
    carry_out(made, until="download")
    orphan, run = Worker(made), Run(made.run)
    dues = {
        shard: (due := orphan._due("clean", shard), _measured(orphan, due))
        for shard in run.shards("pool")
    }
    carry_out(made)
    for due, found in dues.values():
        orphan._commit(due, found)
    carry_out(made)
    assert digests(run) == digests(whole) and list(verify(run)) == []


def test_a_worker_that_fits_on_no_node_is_told_at_once(photos, tmp_path, ray_here):
    model = str(fakes.tiny_blip(tmp_path / "blip") / "captioner")
    made = manifest(photos, tmp_path / "r", caption={"model": model, "device": "cuda"})
    with pytest.raises(StageError, match="caption: a worker takes 1 CPU, 1 GPU, and the largest"):
        carry_out(made)


def unsummarized(done, photos, folder):
    """A copy of a finished run whose summary is to be made anew."""
    whole, _ = done
    made = manifest(photos, folder)
    shutil.copytree(whole.path, made.run)
    run, plan = Run(made.run), Plan(made)
    run.remove(*plan.summary_folder("dedup"))
    return made


@pytest.mark.parametrize(
    ("is_memory", "told"),
    [
        (False, r"dedup: workers die in summarize \(its process ended without an exception"),
        (True, r"dedup: workers die in summarize \(cannot allocate.*\): give fewer --workers"),
    ],
    ids=["crash", "memory"],
)
def test_a_summary_that_ends_its_worker_is_tried_once_more(
    done, photos, tmp_path, monkeypatch, is_memory, told
):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    made, log = unsummarized(done, photos, tmp_path / "r"), tmp_path / "log"

    class Poisoned(Worker):
        def summarize(self, name, shards):
            with log.open("a") as file:
                file.write("x")
            if is_memory:
                raise MemoryError("cannot allocate 1 TiB")
            segfault()

    monkeypatch.setattr(worker_pool, "Worker", Poisoned)
    with pytest.raises(StageError, match=told):
        carry_out(made)
    assert log.read_text() == "xx"


def test_a_place_that_never_comes_free_is_told_after_the_stall(done, photos, tmp_path, ray_here):
    @ray.remote(num_cpus=1)
    class Holder:
        def hold(self):
            return True

    holders = [Holder.remote() for _ in range(int(ray.cluster_resources()["CPU"]))]
    ray.get([holder.hold.remote() for holder in holders])
    try:
        told = r"no shard has finished for \d+ s; waiting for room for a worker, to do 00000"
        with pytest.raises(StageError, match=told):
            carry_out(manifest(photos, tmp_path / "r"), room_seconds=2.0)
        made = unsummarized(done, photos, tmp_path / "s")
        told = "dedup: no worker has begun for 2 s; waiting for room for one"
        with pytest.raises(StageError, match=told):
            carry_out(made, room_seconds=2.0)
    finally:
        for holder in holders:
            ray.kill(holder)


def test_a_shard_that_takes_long_is_told_and_given_up_only_where_that_is_asked_for(
    done, photos, tmp_path, monkeypatch, ray_here
):
    whole, plan = done
    begun, release = tmp_path / "begun", tmp_path / "release"

    class Slow(Worker):
        def work(self, name, shard, retry=()):
            begun.touch()
            while name == "clean" and not release.exists():
                time.sleep(0.05)
            return super().work(name, shard, retry)

    class Log(io.StringIO):
        def write(self, text):
            if "in flight: 00002" in text:
                session.cluster.room_seconds = ROOM_SECONDS
                release.touch()
            return super().write(text)

    def hurry():  # once the worker has begun: until then it waits for room
        while not begun.exists():
            time.sleep(0.05)
        session.cluster.room_seconds = 2.0

    monkeypatch.setattr(worker_pool, "Worker", Slow)
    made = manifest(photos, tmp_path / "r")
    shutil.copytree(whole.path, made.run)
    run = Run(made.run)
    run.remove(*plan.folder("clean"), "00002.parquet")
    run.remove("curated")
    with pytest.raises(
        StageError, match=r"clean: no shard has finished for \d+ s; waiting for 00002\..* resumes"
    ):
        carry_out(made, stall_seconds=2.0)
    begun.unlink()
    console = Console(file=Log(), width=200)
    with Session(made, workers=2, progress=Progress(console)) as session:
        threading.Thread(target=hurry, daemon=True).start()
        session.run()
    told = r"clean: no shard has finished for \d+ s; in flight: 00002"
    assert re.search(told, console.file.getvalue())
    assert digests(run) == digests(whole)
