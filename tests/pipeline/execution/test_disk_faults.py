"""Disks that are full, read-only or not the user's, in the middle of a run."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.faulty_runs import (
    ROOT,
    carry_out,
    content,
    digests,
    manifest,
    small_disk,
)

from models.errors import StageError
from pipeline.cli.main import main
from pipeline.results.verify import verify
from pipeline.storage.run import Run

pytestmark = pytest.mark.slow


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
