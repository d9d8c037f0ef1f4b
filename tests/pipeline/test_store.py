import multiprocessing
import os

import pyarrow as pa
import pytest

from pipeline.store import Run


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


def test_what_a_dead_process_left_half_written_is_removed_and_what_a_live_one_writes_is_not(
    tmp_path,
):
    run = Run(str(tmp_path))
    run.write(b"whole", "pool", "00000.parquet")
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join()
    dead = [f"pool/00001.parquet.{process.pid}-0a1b2c3d.partial", f"run.json.{process.pid}.partial"]
    live = [f"pool/00002.parquet.{os.getpid()}-0a1b2c3d.partial"]
    training = ["models/captioner.partial/checkpoint.safetensors"]
    for name in (*dead, *live, *training):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    with run.lock():
        left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {"run.lock", "pool/00000.parquet", *live, *training}


def test_a_write_that_fails_leaves_nothing_behind(tmp_path):
    run = Run(str(tmp_path))
    run.write(b"old", "pool", "00000.parquet")
    (tmp_path / "pool" / "00001.parquet").mkdir()
    with pytest.raises(OSError):
        run.write(b"new", "pool", "00001.parquet")
    assert sorted(os.listdir(tmp_path / "pool")) == ["00000.parquet", "00001.parquet"]
