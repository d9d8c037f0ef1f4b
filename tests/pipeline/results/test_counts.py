"""Counts kept from one command to the next: they save reading, and are never another answer."""

import os
import random
import shutil
import time
from pathlib import Path

import pyarrow as pa
import pytest
from helpers import runs

from models.errors import DamagedError
from pipeline.manifest.plan import Plan
from pipeline.results import counts
from pipeline.results.funnel import funnel
from pipeline.results.verdicts import Results
from pipeline.results.verify import verify
from pipeline.storage.run import COUNTS, Run

SHARDS = 5


@pytest.fixture(autouse=True)
def kept_from_the_first(monkeypatch):
    """Keep the counts of runs of a few shards too."""
    monkeypatch.setattr(counts, "WORTH_KEEPING", 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run that no test changes."""
    folder = tmp_path_factory.mktemp("made")
    runs.make_run(folder, Plan(runs.manifest(folder)), shards=SHARDS, number=24)
    return folder


@pytest.fixture
def results(made, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return Results(Run(str(tmp_path)), Plan(runs.manifest(tmp_path)))


def settle(run):
    """Make the counts old enough to be believed: as if the disk's clock had gone on."""
    later = time.time() + 60
    os.utime(run.at(COUNTS), (later, later))


@pytest.fixture
def read(monkeypatch):
    """The shards that are counted, as they are."""
    found = []
    tally = Results.tally

    def noted(self, shard, names):
        found.append(shard)
        return tally(self, shard, names)

    monkeypatch.setattr(Results, "tally", noted)
    return found


def test_what_has_not_changed_is_not_read_again(results, read):
    first = funnel(results)
    assert len(read) == SHARDS
    settle(results.run)
    read.clear()
    assert funnel(results) == first and read == []
    assert funnel(results, afresh=True) == first and len(read) == SHARDS


def test_few_new_shards_are_not_worth_a_file(results, monkeypatch):
    monkeypatch.setattr(counts, "WORTH_KEEPING", SHARDS + 1)
    funnel(results)
    assert not results.run.exists(COUNTS)


def test_files_that_changed_within_a_tick_of_the_clock_are_read_again(results, read, monkeypatch):
    monkeypatch.setattr(counts, "TICK", 10**9 * 3600)  # this machine may be slow
    first = funnel(results)
    read.clear()
    assert funnel(results) == first and len(read) == SHARDS


@pytest.mark.parametrize("place", ["download", "clean", "dedup", "summary", "filter"])
def test_a_file_that_is_damaged_is_told_although_its_size_and_time_are_as_before(results, place):
    run, plan = results.run, results.plan
    funnel(results)
    settle(run)
    folder = plan.summary_folder("dedup") if place == "summary" else plan.folder(place)
    path = run.at(*folder, "00002.parquet")
    times, content = os.stat(path), bytearray(Path(path).read_bytes())
    content[-1] ^= 1
    with open(path, "r+b") as file:
        file.write(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DamagedError, match=r"00002\.parquet"):
        funnel(results)


@pytest.mark.parametrize("seed", range(8))
def test_kept_counts_are_those_of_the_files(results, seed):
    """A shard is removed, cut, exchanged for another, or made anew; or nothing happens."""
    run, chance = results.run, random.Random(seed)
    folders = [results.plan.folder(name) for name in results.plan.names[1:]]
    for _ in range(6):
        path = (*chance.choice(folders), f"{chance.randrange(SHARDS):05d}.parquet")
        if not run.exists(*path):
            continue
        table, fault = run.read_table(*path), chance.randrange(3)
        if fault == 0:
            run.remove(*path)
        elif fault == 1:
            never = pa.array([False] * table.num_rows)
            run.write_table(table.set_column(1, "measured", never), *path)
        assert funnel(results) == funnel(results, afresh=True)
        settle(run)


def test_another_threshold_has_counts_of_its_own(results, tmp_path):
    funnel(results)
    settle(results.run)
    plan = Plan(runs.manifest(tmp_path, clean={"min_words": 30}))
    other = Results(results.run, plan)
    found = funnel(other)
    assert found == funnel(other, afresh=True) != funnel(results, afresh=True)


def test_counts_that_are_damaged_or_cannot_be_written_are_done_without(results, read):
    run, first = results.run, funnel(results)
    settle(run)
    content = bytearray(run.read(COUNTS))
    content[40] ^= 1
    Path(run.at(COUNTS)).write_bytes(content)
    assert any(f"{COUNTS}: damaged" in str(fault) for fault in verify(run))
    assert funnel(results) == first
    run.remove(COUNTS)
    os.mkdir(run.at(COUNTS))
    assert funnel(results) == first


@pytest.mark.parametrize("column", ["stage", "rows"])
def test_counts_of_somebody_else_end_no_command(results, column):
    """A table that has a right checksum, and another content."""
    run, first = results.run, funnel(results)
    table = run.read_table(COUNTS)
    wrong = pa.array(["x"] * len(table) if column == "stage" else [-1] * len(table))
    run.write_table(table.set_column(table.schema.get_field_index(column), column, wrong), COUNTS)
    settle(run)
    assert funnel(results) == first


def test_each_round_of_a_run_has_its_own(results, tmp_path):
    assert Run(str(tmp_path), "rounds/2").at(COUNTS) == str(tmp_path / "rounds" / "2" / COUNTS)
