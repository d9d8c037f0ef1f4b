"""Watching a run until it is done."""

import json
import os

import pytest

from pipeline.cli.main import main
from pipeline.cli.watch import speed_of
from pipeline.storage.run import Run


def stage(name, rows, left):
    return {"name": name, "rows": rows, "not_measured": left}


def test_the_speed_is_that_of_the_stage_that_measured_rows():
    before = {"stages": [stage("clean", 100, 0), stage("caption", 90, 90)]}
    after = {"stages": [stage("clean", 100, 0), stage("caption", 90, 70)]}
    assert speed_of(before, after, 4.0) == "caption: 5 rows/s, 14 s left"
    after["stages"][1]["not_measured"] = 89
    assert speed_of(before, after, 4.0) == "caption: 0 rows/s, 6 min left"
    assert speed_of(None, after, 4.0) == speed_of(after, after, 4.0) == ""


@pytest.fixture
def finished(tmp_path):
    """A run of one finished stage."""
    content = {"name": "m", "run": str(tmp_path), "stages": {"download": {"source": "x"}}}
    run = Run(str(tmp_path))
    run.write_json({"manifest": content}, "run.json")
    from stages.schema import POOL

    run.write_table(POOL.empty_table(), "pool", "00000.parquet")
    run.write_json({"seconds": 1.5}, "pool", "_stage.json")
    return tmp_path


def test_a_status_tells_who_is_at_work(finished, capsys):
    def status():
        assert main(["status", str(finished)]) == 0
        told = capsys.readouterr().out
        assert main(["status", str(finished), "--json"]) == 0
        return told, json.loads(capsys.readouterr().out)["holder"]

    lock = finished / "run.lock"
    with Run(str(finished)).lock():
        told, holder = status()
        content = json.loads(lock.read_text())
    assert f"process {os.getpid()} on {content['host'][:40]} has been working on it since" in told
    assert holder == {**{key: content[key] for key in ("pid", "since")}, "host": holder["host"]}
    lock.write_text(json.dumps({**content, "born": "0"}))  # a process that is gone
    told, holder = status()
    assert holder is None and "no process is working on it" in told


def test_a_watch_ends_when_all_is_done(finished, capsys):
    assert main(["status", str(finished), "--watch"]) == 0
    assert "download  done" in capsys.readouterr().out
    assert main(["status", str(finished), "--watch", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["stages"][0]["state"] == "done"
