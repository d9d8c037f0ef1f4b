"""Folders that others replace: old or new at every moment, on disks and on object storage."""

import errno
import os
import shutil

import pytest

from pipeline.storage import run as runs
from pipeline.storage import successor
from pipeline.storage.records import ExportRecord
from pipeline.storage.run import Run
from pipeline.storage.successor import Successor, put_in_place, replacing, standing


class Killed(BaseException):
    """What ends a process between two system calls."""


def record(run, at, name):
    sha256 = run.sha256(*at, name)
    files = [{"name": name, "sha256": sha256}]
    return ExportRecord(decision=name, pairs={}, images=0, files=files)


def write(run, folder, name):
    """Write an export whose one file has a name of its own, and put it in its place."""
    new = Successor(run, folder)
    new.discard()  # what an earlier one left
    new.begin()
    run.write(name.encode() * 9, *new.parts, name)
    made = record(run, new.parts, name)
    run.write_record(made, *new.parts, "manifest.json")
    new.take_place(made)


def found(run, folder):
    """The one file of the export that stands, which must be the one of its manifest."""
    at = standing(run, *folder)
    (name,) = [name for name in run.names(*at) if name != "manifest.json"]
    (file,) = run.read_record(ExportRecord, *folder, "manifest.json").files
    assert file.name == name and run.sha256(*at, name) == file.sha256
    return name


@pytest.fixture(params=["exchange", "renames", "objects"])
def run(request, tmp_path, monkeypatch):
    if request.param == "renames":
        monkeypatch.setattr(successor, "_renameat2", lambda: None)
    if request.param == "objects":
        return Run(f"memory://{tmp_path.name}")
    return Run(str(tmp_path / "run"), "rounds/2")


@pytest.mark.parametrize("folder", [("curated",), ("exports", "urls")])
def test_a_kill_at_any_step_leaves_the_old_folder_or_the_new(run, folder, monkeypatch):
    write(run, folder, "old")
    run.write(b"{}", "run.json")
    steps = [
        (successor, "_exchange"),
        (successor, "sync"),
        (os, "rename"),
        (os, "rmdir"),
        (os, "unlink"),
        (runs.Run, "remove"),
        (runs.Run, "write"),
    ]
    left, seen = 0, set()

    def counted(function):
        def step(*arguments, **options):
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            return function(*arguments, **options)

        return step

    for number in range(1, 100):
        with monkeypatch.context() as patch:
            for where, name in steps:
                patch.setattr(where, name, counted(getattr(where, name)))
            left = number
            try:
                write(run, folder, f"new{number}")
            except Killed:
                pass
            else:
                break
        with run.lock():  # as the next command begins
            seen.add(found(run, folder))
    assert "old" in seen and len(seen) > 1
    assert found(run, folder) == f"new{number}"
    assert not [path for path in run.fs.find(run.path, withdirs=True) if ".partial" in path]
    if not run.is_local:
        assert len(run.names(*folder)) == 2  # the manifest and one version


def test_a_file_system_that_cannot_exchange_names_is_told_from_one_that_fails(
    tmp_path, monkeypatch
):
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()

    def failing(number):
        def rename(*_):
            successor.ctypes.set_errno(number)
            return -1

        return lambda: rename

    monkeypatch.setattr(successor, "_renameat2", failing(errno.EACCES))
    with pytest.raises(PermissionError):
        put_in_place(str(tmp_path / "new"), str(tmp_path / "old"))
    monkeypatch.setattr(successor, "_renameat2", failing(errno.EINVAL))
    put_in_place(str(tmp_path / "new"), str(tmp_path / "old"))
    assert os.listdir(tmp_path / "old") == ["new"] and os.listdir(tmp_path / "new") == ["old"]


def test_a_folder_on_another_disk_is_replaced_there(tmp_path):
    run = Run(str(tmp_path / "run"))
    write(run, ("curated",), "old")
    shutil.move(run.at("curated"), tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", run.at("curated"))
    write(run, ("curated",), "new")
    assert found(run, ("curated",)) == "new" and os.path.islink(run.at("curated"))
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "run"]
    assert os.listdir(run.path) == ["curated"]


def test_files_are_replaced_together_and_some_stay(run):
    for number in "12":
        run.write(b"kept", "report", "compare.html")
        with replacing(run, "report", keep="compare.*") as folder:
            for name in ("index.html", "report.json"):
                run.write(number.encode(), folder, name)
        assert run.names("report") == ["compare.html", "index.html", "report.json"]
        assert run.read("report", "index.html") == run.read("report", "report.json")
    with pytest.raises(Killed), replacing(run, "report", keep="compare.*") as folder:
        run.write(b"3", folder, "other.html")
        raise Killed
    assert run.read("report", "index.html") == b"2"
