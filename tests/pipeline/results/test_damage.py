"""What a run does with files that are not as they were written."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import runs
from helpers.sound_runs import digests, flip, manifest, run_again
from rich.console import Console

from models.errors import DamagedError
from pipeline.cli.main import main
from pipeline.execution.progress import Progress
from pipeline.execution.session import Session
from pipeline.manifest.plan import Plan
from pipeline.results.funnel import funnel
from pipeline.results.verdicts import Results
from pipeline.results.verify import verify
from pipeline.storage.run import Run
from pipeline.training.job import TrainingJob


@pytest.mark.parametrize(
    ("parts", "commands"),
    [
        (("run.json",), ("status", "report", "show", "verdicts")),
        (("list", "_list.json"), ("status", "report")),
        (("pool", "00000.parquet"), ("status", "report", "show", "verdicts")),
        (("clean", "00000.parquet"), ("status", "report", "show", "verdicts")),
        (("curated", "manifest.json"), ("status", "report")),
        (("evaluation.json",), ("report",)),
    ],
)
def test_one_damage_has_one_status_whichever_command_meets_it(tmp_path, parts, commands, capsys):
    plan = Plan(runs.manifest(tmp_path / "run", ("download", "clean")))
    run = runs.make_run(tmp_path / "run", plan, shards=1, number=20)
    record = {"fingerprint": "x", "measurement": {}, "identity": None, "content": None}
    run.write_json({"rows": 20, "repeats": 0, "shards": 1, **record}, "list", "_list.json")
    run.write_json(runs.EVALUATION, "evaluation.json")
    more = {"verdicts": ["--out", str(tmp_path / "v.csv")]}
    more["show"] = [str(run.read_table("pool", "00000.parquet")["uid"][0])]
    if parts[0] == "clean":
        parts = (*plan.folder("clean"), parts[1])
    path = flip(run, *parts, at=20)  # of a shard, in the column uid, which all of them read
    for command in ("verify", *commands):
        assert main([command, run.root, *more.get(command, [])]) == 3, command
        shown = capsys.readouterr()
        assert path in shown.out + shown.err


def test_an_error_amid_a_file_names_it(tmp_path):
    run = Run(str(tmp_path))
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "x").symlink_to("/proc/self/mem")  # a file that opens and cannot be read
    with pytest.raises(OSError, match=r"x'$") as told:
        run.sha256("pool", "x")
    assert told.value.filename == run.at("pool", "x")


def test_damaged_annotations_and_summaries_are_made_anew_just_as_they_were(copy, done, place):
    plan = Plan(manifest(place, copy.root))
    clean, summary = plan.folder("clean"), plan.summary_folder("dedup")
    whole = copy.read(*clean, "00000.parquet")
    copy.write(whole[: len(whole) // 2], *clean, "00000.parquet")
    copy.write(b"", *clean, "00001.parquet")
    copy.write(b"uid,measured\n", *clean, "00002.parquet")
    table = copy.read_table(*summary, "00000.parquet")
    copy.write_table(table.take(pa.array([5, 4, 3, 2, 1, 0])), *summary, "00000.parquet")
    copy.write_table(table.drop_columns("summarized"), *summary, "00001.parquet")
    flip(copy, *plan.folder("dedup"), "00002.parquet")
    assert len(list(verify(copy))) == 6
    told = run_again(place, copy)
    # A summary is made anew for all shards: the second damaged one with the first.
    assert told.count("is damaged; it is removed and made anew") == 5
    assert digests(copy) == digests(done)
    assert list(verify(copy)) == []


def test_what_is_made_anew_as_a_whole_is_removed_as_a_whole_and_once(tmp_path):
    made = manifest(tmp_path, tmp_path / "run")
    run = Run(made.run)
    for parts, left in (
        (("annotations", "dedup-1", "summary-2", "parts-3", "bins.json"), "00000.parquet"),
        (("annotations", "dedup-1", "summary-2", "00001.parquet"), "00000.parquet"),
        (("exports", "former", "images", "00000", "x.jpg"), None),
        (("curated.partial", "_layout.json"), None),
    ):
        keep = (*parts[:3], "00000.parquet") if left else ("exports", "blip", "a.json")
        run.write(b"x", *parts)
        run.write(b"x", *keep)
        with Session(made, progress=Progress(Console(quiet=True))) as session:
            assert session.runner.drop(run.damaged("changed", *parts))
            assert not run.exists(*parts) and run.exists(*keep)
            assert not session.runner.drop(run.damaged("changed", *parts))
    assert not run.exists("exports", "former") and not run.exists("curated.partial")
    for parts in (("exports", "llava", "train.json"), ("curated", "manifest.json")):
        run.write(b"x", *parts)  # an export of the manifest stays until its successor is there
        with Session(made, progress=Progress(Console(quiet=True))) as session:
            assert session.runner.drop(run.damaged("changed", *parts)) and run.exists(*parts)
            assert not session.runner.drop(run.damaged("changed", *parts))
    with Session(made, progress=Progress(Console(quiet=True))) as session:
        assert not session.runner.drop(run.damaged("changed", "pool", "00000.parquet"))


def test_a_damaged_mark_is_taken_for_absent(copy, done, place, caplog):
    plan = Plan(manifest(place, copy.root))
    for parts in (
        ("run.json",),
        (*plan.folder("clean"), "_stage.json"),
        (*plan.summary_folder("dedup"), "_summary.json"),
        ("curated", "_export.json"),
        ("exports", "llava", "manifest.json"),
    ):
        flip(copy, *parts)
    run_again(place, copy)
    assert "_stage.json is damaged and taken for absent" in caplog.text
    assert digests(copy) == digests(done)
    assert list(verify(copy)) == []


def test_a_damaged_shard_of_the_pool_is_refused_and_downloaded_anew_once_removed(copy, done, place):
    plan = Plan(manifest(place, copy.root))
    path = flip(copy, "pool", "00001.parquet")
    times = [os.stat(copy.at(*plan.folder("clean"), f"0000{n}.parquet")).st_mtime_ns for n in "012"]
    copy.remove("curated")
    with pytest.raises(
        RuntimeError, match="its rows are downloaded anew, and measured anew"
    ) as told:
        run_again(place, copy)
    assert path in str(told.value) and told.value.exit_status == DamagedError.exit_status
    os.unlink(path)
    run_again(place, copy)
    assert digests(copy) == digests(done)
    assert list(verify(copy)) == []
    now = [os.stat(copy.at(*plan.folder("clean"), f"0000{n}.parquet")).st_mtime_ns for n in "012"]
    assert [old == new for old, new in zip(times, now, strict=True)] == [True, False, True]


def test_a_damaged_list_is_refused_and_cut_anew_once_removed(copy, done, place, tmp_path):
    path = flip(copy, "list", "_list.json")
    with pytest.raises(ValueError, match=f"{path}: damaged: .* Remove the folder .*/list and"):
        run_again(place, copy)
    copy.remove("list")
    run_again(place, copy)
    assert digests(copy) == digests(done)
    pool = copy.read_table("pool", "00000.parquet")
    copy.write_table(pool.take(pa.array([1, 0, 2, 3, 4, 5])), "pool", "00000.parquet")
    copy.remove("list")
    with pytest.raises(ValueError, match=r"shard 00000 of the pool .* is made from another list"):
        run_again(place, copy)


def test_a_damaged_model_is_not_taken_for_done(copy, place):
    training = TrainingJob(manifest(place, copy.root), "new")
    assert training.is_done
    path = flip(copy, "models", "new", "matcher", "model.safetensors")
    with pytest.raises(ValueError, match=f"{path}: damaged: .* remove .*models/new.json and"):
        _ = training.is_done


def test_training_refuses_a_damaged_export(copy, place):
    training = TrainingJob(manifest(place, copy.root), "new")
    shard = copy.shards("curated")[0]
    path = flip(copy, "curated", f"{shard}.parquet", at=400)  # among the images, which it reads
    copy.remove("models")
    with pytest.raises(ValueError, match=f"{path}: its bytes are not those that were written"):
        training.carry_out()


def test_a_pool_of_the_wrong_types_is_refused(copy, place):
    pool = copy.read_table("pool", "00000.parquet")
    index = pool.column_names.index("image")
    hostile = pool.set_column(index, "image", pa.array(["x"] * pool.num_rows))
    copy.write_table(hostile, "pool", "00000.parquet")
    copy.remove("annotations")
    with pytest.raises(RuntimeError, match=r"00000\.parquet: damaged: its column image is string"):
        run_again(place, copy)


def test_any_reader_reads_what_is_sealed(done):
    for folder in ("pool", "curated", "list"):
        paths = sorted(Path(done.at(folder)).glob("*.parquet"))
        rows = [pq.read_table(path).num_rows for path in paths]
        assert sum(rows) == pq.ParquetDataset([str(path) for path in paths]).read().num_rows
        for path in paths:
            assert pq.read_table(path).equals(done.read_table(folder, path.name))


def test_a_run_whose_summaries_were_removed_has_a_status(tmp_path):
    plan = Plan(runs.manifest(tmp_path / "run"))
    run = runs.make_run(tmp_path / "run", plan, shards=1, number=20)
    assert {stage["state"] for stage in funnel(Results(run, plan))["stages"]} == {"done"}
    for name in ("dedup", "select"):
        run.remove(*plan.summary_folder(name))
    states = {stage["name"]: stage["state"] for stage in funnel(Results(run, plan))["stages"]}
    assert states["clean"] == "done" and states["dedup"] == states["select"] == "waiting"
