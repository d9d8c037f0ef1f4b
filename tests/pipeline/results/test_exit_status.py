"""Which exit status each command gives for each damage of a run, in one table."""

import os
import shutil

import pytest
from helpers import runs

from pipeline.cli.main import main
from pipeline.manifest.plan import Plan
from pipeline.storage.run import Run

COMMANDS = ("verify", "status", "report", "verdicts", "show", "push")

TABLE = {
    #                               verify, status, report, verdicts, show, push --dry-run
    "nothing": (0, 0, 0, 0, 0, 0),
    "a byte of run.json": (3, 3, 3, 3, 3, 3),
    "a byte of an image": (3, 0, 3, 0, 3, 0),
    "a byte of the pool's end": (3, 3, 3, 3, 3, 0),
    "a byte of clean": (3, 3, 3, 3, 3, 0),
    "a byte of filter": (3, 3, 3, 3, 3, 0),
    "a byte of dedup's summary": (3, 3, 3, 3, 3, 0),
    "a byte of clean's record": (3, 0, 0, 0, 0, 0),
    "a byte of the export's record": (3, 3, 3, 0, 0, 3),
    "a byte of the export": (3, 0, 0, 0, 0, 0),
    "half of clean": (3, 3, 3, 3, 3, 0),
    "rows of clean in another order": (3, 3, 3, 3, 3, 0),
    "clean's file is a folder": (1, 1, 1, 1, 1, 0),
    "a folder without a run": (2, 2, 2, 2, 2, 2),
}
"""The exit status of each of `COMMANDS` for each damage: 0 where it does not read the file, 1 where
a file cannot be read, 2 where the input is wrong, 3 where a file is damaged."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole") / "run"
    plan = Plan(runs.manifest(root))
    run = runs.make_run(root, plan, shards=2, number=12)
    for name in ("dedup", "select"):
        run.write_json({"seconds": 1.0}, *plan.summary_folder(name), "_summary.json")
    return run, plan


def damage(run, plan, what):
    """Do to a run what a line of the table says."""
    clean = (*plan.folder("clean"), "00001.parquet")
    place = {
        "run.json": ("run.json",),
        "an image": ("pool", "00001.parquet"),
        "the pool's end": ("pool", "00001.parquet"),
        "clean": clean,
        "filter": (*plan.folder("filter"), "00001.parquet"),
        "dedup's summary": (*plan.summary_folder("dedup"), "00001.parquet"),
        "clean's record": (*plan.folder("clean"), "_stage.json"),
        "the export's record": ("curated", "manifest.json"),
        "the export": ("curated", "00001.parquet"),
    }
    if what.startswith("a byte of "):
        parts = place[what.removeprefix("a byte of ")]
        content = bytearray(run.read(*parts))
        content[-5 if what.endswith("end") else len(content) // 3] ^= 1
        run.write(bytes(content), *parts)
    elif what == "half of clean":
        content = run.read(*clean)
        run.write(content[: len(content) // 2], *clean)
    elif what == "rows of clean in another order":
        table = run.read_table(*clean)
        run.write_table(table.take(list(range(table.num_rows))[::-1]), *clean)
    elif what == "clean's file is a folder":
        run.remove(*clean)
        os.mkdir(run.at(*clean))
    elif what == "a folder without a run":
        shutil.rmtree(run.path)


@pytest.mark.parametrize("what", TABLE)
def test_one_damage_has_one_exit_status(whole, tmp_path, capsys, what):
    original, plan = whole
    found = {}
    uid = original.read_table("pool", "00001.parquet", columns=["uid"])["uid"][1].as_py()
    more = {
        "verdicts": ["--out", str(tmp_path / "verdicts.csv")],
        "show": [uid],
        "push": ["--repo", "org/birds", "--dry-run"],
    }
    for command in COMMANDS:
        folder = tmp_path / command
        shutil.copytree(original.path, folder)
        damage(Run(str(folder)), plan, what)
        found[command] = main([command, str(folder), *more.get(command, [])])
        told = capsys.readouterr()
        assert "Traceback" not in told.err + told.out
        if found[command]:
            assert str(folder) in told.err + told.out
    assert found == dict(zip(COMMANDS, TABLE[what], strict=True))
