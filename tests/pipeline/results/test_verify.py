"""What `capfilt verify` finds."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import random
import shutil
import struct
from pathlib import Path

import pyarrow as pa
import pytest
from helpers.sound_runs import digests, files_of, flip, manifest, run_again
from rich.console import Console

from pipeline.cli.main import main
from pipeline.execution.progress import Progress
from pipeline.execution.session import Session
from pipeline.manifest.plan import Plan
from pipeline.results.funnel import funnel
from pipeline.results.verdicts import Results
from pipeline.results.verify import verify
from pipeline.storage.run import Run
from pipeline.training.job import TrainingJob
from stages.review import read_decisions


def test_a_finished_run_is_sound(done):
    assert list(verify(done)) == []


def test_each_of_a_hundred_flipped_bytes_is_found_by_name(copy):
    chance = random.Random(5)
    files = files_of(copy)
    sizes = [path.stat().st_size for path in files]
    chosen = chance.choices(files, sizes, k=50) + chance.choices(files, k=50)
    missed = []
    for path in chosen:
        content = path.read_bytes()
        at = chance.randrange(len(content))
        hurt = bytearray(content)
        hurt[at] ^= 1 << chance.randrange(8)
        path.write_bytes(hurt)
        faults = list(map(str, verify(copy)))
        if not any(is_named(copy, path, fault) for fault in faults):
            missed.append((str(path), at, faults))
        path.write_bytes(content)
    assert missed == []
    assert list(verify(copy)) == []


def is_named(run, path, fault):
    """Whether a fault is of a file, or of the folder that an export digests as one."""
    name = fault.removeprefix("review.file: ").split(": ")[0]
    return name == str(path) or (f"{run.path}/exports/" in name and name == str(path.parent))


def test_all_faults_are_told_at_once_with_the_status_of_damage(copy, capsys):
    hurt = [
        flip(copy, "run.json"),
        flip(copy, "pool", "00001.parquet"),
        flip(copy, "list", "_list.json"),
        flip(copy, "curated", "README.md"),
        flip(copy, "models", "new", "captioner", "model.safetensors"),
        flip(copy, "report", "index.html"),
    ]
    folder = next(Path(copy.at("annotations")).glob("clean-*"))
    (folder / "00000.parquet").write_text("no Parquet")
    (folder / "00077.parquet").write_bytes((folder / "00001.parquet").read_bytes())
    Path(copy.at("exports", "urls", "stray.parquet")).write_bytes(b"")
    assert main(["verify", copy.root]) == 3
    lines = capsys.readouterr().out.splitlines()
    for path in (*hurt, folder / "00000.parquet", copy.at("exports", "urls", "stray.parquet")):
        assert any(line.startswith(f"{path}: ") for line in lines), path
    copy.write(b"", "run.json")
    assert main(["status", copy.root]) == 3
    assert "run.json: damaged" in capsys.readouterr().err


def test_the_files_of_each_kind_that_are_missing_or_too_many_are_told(copy, place):
    plan = Plan(manifest(place, copy.root))
    summary = plan.summary_folder("dedup")
    for parts in (
        ("pool", "00002.parquet"),
        (*summary, "00001.parquet"),
        ("curated", "README.md"),
        ("models", "new", "README.md"),
        ("list", "00000.parquet"),
    ):
        copy.remove(*parts)
    Path(copy.at(*plan.folder("clean"), "00009.parquet")).write_bytes(b"")
    shutil.copy(copy.at("run.json"), copy.at("models", "new", "more.json"))
    faults = "\n".join(map(str, verify(copy)))
    for text in (
        "pool/00002.parquet: missing. Run again: it is downloaded anew, and measured anew",
        f"{summary[-1]}/00001.parquet: missing",
        "curated/README.md: damaged: it is missing",
        "models/new/README.md: damaged: it is missing",
        "list/00000.parquet: damaged: it does not go with _list.json",
        "more.json: the training did not write it",
        "00009.parquet: the pool has no such shard. Remove it",
    ):
        assert text in faults
    assert "00002.parquet: the pool has no" not in faults and "Errno" not in faults


@contextlib.contextmanager
def plain_rights():
    """Let modes count for this thread, also where it is root's: no CAP_DAC_OVERRIDE, nor _READ."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("Ii", 0x20080522, 0)
    held = ctypes.create_string_buffer(24)
    assert libc.capget(header, held) == 0
    effective, *others = struct.unpack("6I", held.raw)
    assert libc.capset(header, struct.pack("6I", effective & ~0b110, *others)) == 0
    try:
        yield
    finally:
        assert libc.capset(header, held.raw) == 0


def test_what_cannot_be_read_is_told_and_holds_up_nothing_else(copy, place, capsys):
    plan = Plan(manifest(place, copy.root))
    closed = [
        copy.at("curated", f"{copy.shards('curated')[0]}.parquet"),
        copy.at("exports", "urls", "manifest.json"),
        copy.at("list", "00000.parquet"),
        copy.at("pool", "00000.parquet"),
        copy.at(*plan.folder("clean"), "00001.parquet"),
        copy.at(*plan.folder("clean"), "_stage.json"),
        copy.at(*plan.summary_folder("dedup"), "00001.parquet"),
        copy.at("models", "new", "README.md"),
        copy.at("report", "index.html"),
        copy.at("reviews.jsonl"),
        copy.at("exports", "llava"),
    ]
    hurt = [flip(copy, "pool", "00001.parquet"), flip(copy, "curated", "README.md")]
    for path in closed:
        os.chmod(path, 0)
    try:
        with plain_rights():
            assert main(["verify", copy.root]) == 3
    finally:
        os.chmod(copy.at("exports", "llava"), 0o700)
    told = capsys.readouterr()
    lines = told.out.splitlines()
    for path in closed:
        assert f"{path}: cannot be read: Permission denied" in lines
    assert not told.err
    for path in hurt:
        assert any(line.startswith(f"{path}: damaged: ") for line in lines)
    assert {line.split(": ")[0] for line in lines} == {*closed, *hurt, "review"}


@pytest.mark.parametrize("name", ["run.json", "models/new.json", "list/_list.json"])
def test_marks_that_cannot_be_read_hold_up_nothing_else(copy, name):
    hurt = flip(copy, "pool", "00001.parquet")
    os.chmod(copy.at(name), 0)
    with plain_rights():
        faults = list(map(str, verify(copy)))
    assert f"{copy.at(name)}: cannot be read: Permission denied" in faults
    assert any(fault.startswith(f"{hurt}: damaged") for fault in faults)


def test_hostile_shards_are_told(copy, place):
    plan = Plan(manifest(place, copy.root))
    first = copy.read_table("pool", "00000.parquet")
    second = copy.read_table("pool", "00001.parquet")
    third = copy.read_table("pool", "00002.parquet")
    uids = third["uid"].to_pylist()
    copy.write_table(first.take(pa.array([1, 0, 2, 3, 4, 5])), "pool", "00000.parquet")
    copy.write_table(second.drop_columns("sha256"), "pool", "00001.parquet")
    copy.write_table(
        third.set_column(0, "uid", pa.array([first["uid"][3].as_py(), *uids[1:]])),
        *("pool", "00002.parquet"),
    )
    clean = copy.read_table(*plan.folder("clean"), "00001.parquet")
    copy.write_table(
        clean.set_column(1, "measured", clean["measured"].cast(pa.int8())),
        *(*plan.folder("clean"), "00001.parquet"),
    )
    faults = "\n".join(map(str, verify(copy)))
    for text in (
        "pool/00000.parquet: damaged: its rows are not those of the list",
        "pool/00001.parquet: damaged: its columns are not those of a pool",
        "pool/00000.parquet: damaged: 1 uids stand more than once in the pool",
        "pool/00002.parquet: damaged: 1 uids stand more than once in the pool",
        "00000.parquet: damaged: its rows are not aligned with the pool",
        "00001.parquet: damaged: its column measured is int8, not bool",
    ):
        assert text in faults


def test_decisions_on_object_storage_are_checked():
    run = Run("memory://reviewed")
    run.write(b"", "run.json")
    run.write(b"none\n", "reviews.jsonl")
    assert any(
        "memory:///reviewed/reviews.jsonl:1: not a decision" in fault
        for fault in map(str, verify(run))
    )


def test_what_is_removed_on_object_storage_is_told_by_its_url(tmp_path):
    made, shown = manifest(tmp_path, "memory://dropped"), io.StringIO()
    with Session(made, progress=Progress(Console(file=shown, width=200))) as session:
        run = session.runner.run
        assert session.runner.drop(run.damaged("changed", "annotations", "clean-1", "x.parquet"))
    told = "memory:///dropped/annotations/clean-1/x.parquet is damaged; it is removed"
    assert told in shown.getvalue()


def test_a_uid_that_is_none_is_told(copy):
    pool = copy.read_table("pool", "00002.parquet")
    for uid in (None, "0" * 31, "G" * 32, "../" * 8):
        changed = pa.array([uid, *pool["uid"].to_pylist()[1:]], pa.string())
        copy.write_table(pool.set_column(0, "uid", changed), "pool", "00002.parquet")
        assert "00002.parquet: damaged: it has uids that are not 32 hex" in "".join(
            map(str, verify(copy))
        )


def test_rows_that_are_called_measured_and_are_not_are_told(copy, place):
    plan = Plan(manifest(place, copy.root))
    path = (*plan.folder("dedup"), "00001.parquet")
    table = copy.read_table(*path)
    nothing = pa.array([False] * table.num_rows)
    copy.write_table(table.set_column(1, "measured", nothing), *path)
    (fault,) = map(str, verify(copy))
    assert "_stage.json: damaged: it calls 6 rows measured that are not. Remove it" in fault


def test_every_missing_record_is_named_and_written_anew(copy, done, place, capsys):
    plan = Plan(manifest(place, copy.root).with_reviews())
    marks = [
        ("list", "_list.json"),
        ("pool", "_stage.json"),
        *((*plan.folder(name), "_stage.json") for name in ("clean", "dedup")),
        (*plan.summary_folder("dedup"), "_summary.json"),
        ("curated", "manifest.json"),
        ("curated", "_export.json"),
        ("exports", "llava", "manifest.json"),
        ("models", "new.json"),
    ]
    for mark in marks:
        content = copy.read(*mark)
        copy.remove(*mark)
        faults = list(verify(copy))
        told = f"{copy.at(*mark)}: missing. Run again: it is written anew"
        assert told in map(str, faults), mark
        assert {fault.exit_status for fault in faults} == {3}
        copy.write(content, *mark)
    for mark in marks[:-1]:
        copy.remove(*mark)
    run_again(place, copy)
    copy.remove(*marks[-1])
    TrainingJob(plan.manifest, "new").carry_out()  # the model stands, and is not trained anew
    assert list(verify(copy)) == [] and digests(copy) == digests(done)
    assert main(["verify", copy.root]) == 0
    assert "not looked at" not in capsys.readouterr().out
    for path in ("notes.txt", "failures/x.txt", "curated.partial/x", "models/mine/config.json"):
        copy.write(b"{}", *path.split("/"))
    assert main(["verify", copy.root]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "not looked at" in line]
    assert line == "not looked at: curated.partial, failures, notes.txt, models/mine"


@pytest.mark.parametrize(
    "name", ["../../../../etc/passwd", "/dev/zero", "/etc/passwd", "x/../../run.json", "", "a//b"]
)
def test_a_mark_names_nothing_outside_its_folder(copy, name):
    for parts, change in (
        (("curated", "manifest.json"), lambda mark: mark["files"][0].update(name=name)),
        (("models", "new.json"), lambda mark: mark["files"].update({name: "0" * 64})),
    ):
        mark = copy.read_json(*parts)
        change(mark)
        copy.write_json(mark, *parts)
        (fault,) = map(str, verify(copy))
        assert fault.startswith(f"{copy.at(*parts)}: damaged: ")
        assert "no path inside the folder" in fault
        copy.remove(*parts)
        copy.remove(*parts[:-1])


def test_only_regular_files_are_opened_wherever_they_lie(copy, place, tmp_path):
    plan = Plan(manifest(place, copy.root).with_reviews())
    shard, other = copy.at("pool", "00001.parquet"), tmp_path / "other.parquet"
    shutil.move(shard, other)
    os.symlink(other, shard)
    assert list(verify(copy)) == []
    strange = (
        copy.at(*plan.folder("clean"), "00000.parquet"),
        copy.at("report", "pipe.html"),
        copy.at("curated", "_layout.json"),
        copy.at("models", "new", "README.md"),
        copy.at("reviews.jsonl"),
    )
    for path in strange:
        Path(path).unlink(missing_ok=True)
        os.mkfifo(path)
    faults = list(map(str, verify(copy)))
    for path in strange:
        assert f"{path}: cannot be read: not a regular file" in faults
    assert {fault.split(": ")[0] for fault in faults} == {*strange, "review"}
    with pytest.raises(ValueError, match=r"reviews\.jsonl: not a regular file"):
        read_decisions(copy.at("reviews.jsonl"))
    with pytest.raises((OSError, ValueError), match="not a regular file"):
        funnel(Results(copy, plan))
