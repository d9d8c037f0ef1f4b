import json
import multiprocessing
import os
import socket

import pyarrow as pa
import pytest

from pipeline.store import Run, RunBusyError


@pytest.fixture(params=["local", "memory"])
def run(request, tmp_path):
    if request.param == "local":
        return Run(str(tmp_path / "run"))
    return Run(f"memory://{tmp_path.name}/run")


def test_what_is_written_reads_back(run):
    table = pa.table({"uid": ["a", "b"], "n": [1, None]})
    run.write_table(table, "pool", "00000.parquet")
    run.write_json({"b": 1, "a": "é"}, "pool", "_stage.json")
    assert run.read_table("pool", "00000.parquet").equals(table)
    assert run.read_table("pool", "00000.parquet", columns=["n"]).column_names == ["n"]
    assert run.read_json("pool", "_stage.json") == {"a": "é", "b": 1}
    assert run.shards("pool") == ["00000"]
    assert run.shards("nowhere") == []


def test_equal_tables_give_equal_bytes(run):
    table = pa.table({"uid": [str(i) for i in range(1000)], "x": list(range(1000))})
    first = run.write_table(table, "a.parquet")
    second = run.write_table(pa.concat_tables([table.slice(0, 500), table.slice(500)]), "b.parquet")
    assert first == run.sha256("a.parquet")
    assert first == run.write_table(table, "c.parquet")
    assert run.read_table("b.parquet").equals(table) and second == run.sha256("b.parquet")


def test_a_partial_file_is_never_seen(tmp_path):
    run = Run(str(tmp_path))
    run.write_table(pa.table({"x": [1]}), "pool", "00000.parquet")
    (tmp_path / "pool" / "00001.parquet.77.partial").write_bytes(b"half")
    assert run.names("pool") == ["00000.parquet"]


def test_a_broken_shard_is_named_with_what_to_do(run):
    run.write(b"PAR1 not really", "pool", "00003.parquet")
    with pytest.raises(ValueError, match=r"00003\.parquet: not a readable Parquet file.*Remove it"):
        run.read_table("pool", "00003.parquet")


def test_a_run_held_by_a_live_process_is_refused(tmp_path):
    run = Run(str(tmp_path))
    with run.lock(), pytest.raises(RunBusyError, match=f"process {os.getpid()}"), run.lock():
        pass
    with run.lock():
        pass
    assert not (tmp_path / "run.lock").exists()


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join()
    holder = {"host": socket.gethostname(), "pid": process.pid, "since": 0}
    (tmp_path / "run.lock").write_text(json.dumps(holder))
    with Run(str(tmp_path)).lock():
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()


def test_the_lock_of_another_host_is_respected(tmp_path):
    (tmp_path / "run.lock").write_text(json.dumps({"host": "elsewhere", "pid": 1, "since": 0}))
    with pytest.raises(RunBusyError, match="elsewhere"), Run(str(tmp_path)).lock():
        pass
