"""What befalls a machine in the middle of a run, and what the run makes of it."""

import contextlib
import errno
import fcntl
import io
import json
import multiprocessing
import os
import pty
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
import ray
import yaml
from helpers import fakes
from rich.console import Console

from models.errors import StageError
from pipeline.cli.main import main
from pipeline.execution import worker_pool
from pipeline.execution.cluster import ROOM_SECONDS
from pipeline.execution.progress import Progress
from pipeline.execution.session import Session
from pipeline.execution.worker import Worker
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
from pipeline.results.funnel import funnel
from pipeline.results.history import sample_history
from pipeline.results.verdicts import Results
from pipeline.results.verify import verify
from pipeline.storage.lock import is_alive
from pipeline.storage.run import Run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


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


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return fakes.photo_folder(tmp_path_factory.mktemp("photos"), 20)


@pytest.fixture(scope="module")
def done(photos, tmp_path_factory, ray_here):
    return carry_out(manifest(photos, tmp_path_factory.mktemp("run") / "r"))


def uids(run, *numbers):
    """The uids of some photos, by their place in the pool."""
    all_ = [u for s in run.shards("list") for u in run.read_table("list", f"{s}.parquet")["uid"]]
    return {all_[number].as_py() for number in numbers}


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


def remount(path, options):
    subprocess.run(["mount", "-o", f"remount,{options}", str(path)], check=True)


def test_a_full_disk_ends_the_stage_and_the_run_goes_on_with_more_room(done, photos, tmp_path):
    whole, _ = done
    disk = tmp_path / "disk"
    with small_disk(disk, "80k"):
        made = manifest(photos, disk / "r")
        told = (
            rf"download: {made.run}/pool/0\d+\.parquet: no space left on device\. Make room there"
        )
        with pytest.raises(StageError, match=f"{told}, and"):
            carry_out(made)
        run = Run(made.run)
        assert not list(disk.rglob("*.partial"))
        there = {shard: run.sha256("pool", f"{shard}.parquet") for shard in run.shards("pool")}
        assert set() < set(there) < set(run.shards("list"))
        remount(disk, "size=20m")
        carry_out(made)
        assert {shard: run.sha256("pool", f"{shard}.parquet") for shard in there} == there
        assert digests(run) == digests(whole) and list(verify(run)) == []


def fill(disk, room):
    """Leave some bytes free on a disk."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "ballast").write_bytes(bytes(max(free - room, 0)))


FULL = [
    ("run", 0, "r/run.lock"),
    ("run", 4096, "r/annotations/dedup-"),
    ("export", 4096, "r/curated.partial/"),
    ("report", 0, "r/report.partial/"),
    ("compare", 0, "r/report/compare."),
]
"""Commands, the bytes that the disk has for them, and what of it they name."""


@pytest.mark.parametrize(("command", "room", "file"), FULL)
def test_a_full_disk_is_told_by_every_command_with_the_file(
    done, photos, tmp_path, capsys, command, room, file
):
    whole, plan = done
    disk, path = tmp_path / "disk", tmp_path / "m.yaml"
    with small_disk(disk, "20m"):
        shutil.copytree(whole.path, disk / "r")
        made = content(photos, disk / "r")
        path.write_text(yaml.safe_dump(made, sort_keys=False))
        run = Run(str(disk / "r"))
        run.remove("report")
        run.remove(*plan.summary_folder("dedup") if command == "run" else ("curated",))
        run.write_json({**run.read_json("run.json"), "manifest": made}, "run.json")
        arguments = {
            "report": ["report", str(disk / "r")],
            "compare": ["compare", whole.path, str(disk / "r")],
        }.get(command, [command, str(path), "--quiet"])
        fill(disk, room)
        assert main(arguments) == 1
        told = capsys.readouterr().err
        assert f"{disk}/{file}" in told and told.count("\n") == 1
        assert "no space left on device. Make room there, and run the same command again" in told
        assert not [path for path in disk.rglob("*.partial") if path.is_file()]
        if command in ("export", "report"):  # what replaces a folder is finished beside it
            (disk / "ballast").unlink()
            assert main(arguments) == 0
            assert not list(disk.rglob("*.partial"))


def test_a_disk_with_room_for_no_more_files_is_told_as_that(done, photos, tmp_path, capsys):
    whole, plan = done
    disk, path = tmp_path / "disk", tmp_path / "m.yaml"
    with small_disk(disk, "20m"):
        shutil.copytree(whole.path, disk / "r")
        path.write_text(yaml.safe_dump(content(photos, disk / "r"), sort_keys=False))
        run = Run(str(disk / "r"))
        run.remove(*plan.folder("clean"))
        run.remove("curated")
        used = os.statvfs(disk).f_files - os.statvfs(disk).f_ffree
        for free in (0, 3):  # for the lock; for the folder, the lock and a shard that is begun
            remount(disk, f"nr_inodes={used + free}")
            assert main(["run", str(path), "--quiet", "--workers", "2", "--until", "export"]) == 1
            told = capsys.readouterr().err
            assert f"{disk}/r/" in told and told.count("\n") == 1
            assert "no space left on device. Remove some files there" in told
            assert not list(disk.rglob("*.partial"))
        remount(disk, f"nr_inodes={used + 1000}")
        assert main(["run", str(path), "--quiet", "--workers", "2", "--until", "export"]) == 0
        assert digests(run) == digests(whole) and list(verify(run)) == []


def test_a_disk_that_turns_read_only_is_told_by_the_command(done, photos, tmp_path, capsys):
    disk, path = tmp_path / "disk", tmp_path / "m.yaml"
    with small_disk(disk, "20m"):
        made = manifest(photos, disk / "r")
        carry_out(made, until="download")
        path.write_text(yaml.safe_dump(content(photos, disk / "r"), sort_keys=False))
        remount(disk, "ro")
        assert main(["run", str(path), "--quiet", "--workers", "2"]) == 1
        assert "run.lock" in (told := capsys.readouterr().err) and "read-only file system" in told


def as_nobody(folder, queue):
    os.setgid(65534)
    os.setuid(65534)
    run = Run(str(folder))
    for act in (lambda: run.write(b"x", "pool", "a"), lambda: run.lock().__enter__()):
        try:
            act()
            queue.put("written")
        except OSError as error:
            queue.put(errno.errorcode[error.errno])


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_folder_that_may_not_be_written_to_is_an_error_and_not_a_wait():
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=as_nobody, args=("/proc/1/nowhere", queue))
    process.start()
    assert {queue.get(timeout=600), queue.get(timeout=600)} <= {"EACCES", "ENOENT", "EPERM"}
    process.join()


def test_a_file_that_may_not_grow_leaves_the_old_one(tmp_path):
    code = """
import resource, sys
from pipeline.storage.run import Run
run = Run(sys.argv[1])
run.write(b"old", "pool", "a")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    run.write(b"x" * 5000, "pool", "a")
except OSError as error:
    print(error.errno, run.read("pool", "a"), run.fs.ls(run.at("pool"), detail=False))
"""
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert told.stdout == f"{errno.EFBIG} b'old' ['{tmp_path}/pool/a']\n", told.stderr


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


def test_half_written_files_are_never_read(done, photos, tmp_path):
    whole, plan = done
    made = manifest(photos, tmp_path / "r")
    shutil.copytree(whole.path, made.run)
    run = Run(made.run)
    for folder in (("list",), ("pool",), plan.folder("clean"), ("curated",)):
        for name in ("00001.parquet", "_stage.json"):
            Path(run.at(*folder, f"{name}.{os.getpid()}-aa.partial")).write_bytes(b"PAR1 torn")
    run.remove("curated", "manifest.json")
    run.remove(*plan.folder("dedup"), "00001.parquet")
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


def test_a_second_command_is_told_who_holds_the_run(photos, tmp_path, capsys):
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump(content(photos, tmp_path / "r"), sort_keys=False))
    with Run(str(tmp_path / "r")).lock():
        assert main(["run", str(path), "--quiet"]) == 1
    assert f"is in use by process {os.getpid()} on" in capsys.readouterr().err


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


@pytest.mark.parametrize(("end", "status"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_ctrl_c_and_a_batch_system_end_a_run_that_goes_on(photos, tmp_path, end, status):
    folder, path = tmp_path / "r", tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump(content(photos, folder), sort_keys=False))
    process = start(path, stdout=subprocess.PIPE, start_new_session=True)
    wait_for(process, folder, "pool/0*.parquet")
    raylet = children(process.pid)["raylet"]
    os.killpg(process.pid, end)  # as a terminal and Slurm do: to all of its processes
    out, error = process.communicate(timeout=600)
    assert process.returncode == status and error == "stopped; the same command resumes\n"
    assert "Ctrl-C again stops at once" in out
    assert not (folder / "run.lock").exists() and not is_alive(raylet)


def test_a_terminal_that_closes_ends_a_run_that_goes_on(photos, tmp_path):
    folder, path = tmp_path / "r", tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump(content(photos, folder), sort_keys=False))
    terminal, inner = pty.openpty()

    def enter():
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = start(path, stdin=inner, stdout=inner, stderr=inner, preexec_fn=enter)
    os.close(inner)
    wait_for(process, folder, "pool/0*.parquet")
    raylet = children(process.pid)["raylet"]
    os.close(terminal)
    assert process.wait(600) == 129
    assert not (folder / "run.lock").exists() and not is_alive(raylet)


def test_the_death_of_ray_leaves_a_run_that_goes_on(done, photos, tmp_path):
    whole, _ = done
    folder, path = tmp_path / "r", tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump(content(photos, folder), sort_keys=False))
    quick = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "3"}
    process = start(path, env={**os.environ, **quick}, stdout=subprocess.DEVNULL)
    wait_for(process, folder, "annotations/*/0*.parquet")
    os.kill(children(process.pid)["raylet"], signal.SIGKILL)
    _, error = process.communicate(timeout=600)
    if process.returncode:  # workers go on for seconds, and may have done all that was left
        assert process.returncode == 1 and "Ray " in error and "same command" in error
    carry_out(manifest(photos, folder))
    assert digests(Run(str(folder))) == digests(whole)
