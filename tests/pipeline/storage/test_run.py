import io
import json
import multiprocessing
import os
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.errors import DamagedError
from pipeline.storage import checksum
from pipeline.storage.records import StageRecord, Work
from pipeline.storage.run import Run


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
    for name in ("a.parquet", "b.parquet"):
        run.write_table(table, name)
    assert run.read("a.parquet") == run.read("b.parquet")
    run.write_table(pa.concat_tables([table.slice(0, 500), table.slice(500)]), "c.parquet")
    assert run.read_table("c.parquet").equals(table)


def small(rows=9):
    return pa.table(
        {
            "uid": [f"{n:032x}" for n in range(rows)],
            "image": [bytes([n]) * 50 for n in range(rows)],
            "texts": [["a", "b" * n] for n in range(rows)],
            "sides": [{"width": n, "height": None} for n in range(rows)],
        }
    )


@pytest.mark.parametrize("rows", [0, 9])
def test_no_changed_byte_of_a_table_is_ever_read(run, rows):
    table = small(rows)
    run.write_table(table, "x.parquet")
    whole = run.read("x.parquet")
    run.check("x.parquet")
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        run.write(bytes(changed), "x.parquet")
        with pytest.raises(DamagedError):
            run.check("x.parquet")
        for columns in (["uid"], ["sides", "texts"], None):
            try:
                found = run.read_table("x.parquet", columns=columns)
            except DamagedError as error:
                assert str(error).startswith(run.url("x.parquet"))
            else:
                assert found.equals(table.select(columns or table.column_names))


def test_a_table_that_was_cut_off_is_refused(run):
    run.write_table(small(), "x.parquet")
    whole = run.read("x.parquet")
    for size in range(len(whole)):
        run.write(whole[:size], "x.parquet")
        with pytest.raises(DamagedError):
            run.read_table("x.parquet", columns=["uid"])


def test_images_are_stored_as_they_are_and_all_else_is_compressed(run):
    texts = [f"a red boat number {n % 3} on the lake" for n in range(500)]
    table = pa.table(
        {
            "uid": [f"{n:032x}" for n in range(500)],
            "image": [os.urandom(99) for _ in texts[1:]] + [None],
            "texts": [[text] * 4 for text in texts],
            "marks": [{"image": b"x" * 99, "words": [{"at": 0.5, "of": text}]} for text in texts],
        }
    )
    run.write_table(table, "x.parquet")
    assert run.read_table("x.parquet").equals(table)
    group = pq.read_metadata(io.BytesIO(run.read("x.parquet"))).row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    assert {column.path_in_schema: column.compression for column in columns} == {
        "uid": "ZSTD",
        "image": "UNCOMPRESSED",
        "texts.list.element": "ZSTD",
        "marks.image": "UNCOMPRESSED",
        "marks.words.list.element.at": "ZSTD",
        "marks.words.list.element.of": "ZSTD",
    }


def test_columns_and_row_groups_of_a_large_table_are_read_alone():
    rows = 300
    table = pa.table({"uid": [f"{n:032x}" for n in range(rows)], "image": [os.urandom(999)] * rows})
    table = table.append_column("n", pa.array(range(rows)))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=100, use_dictionary=False)
    content = bytearray(b"".join(checksum.with_checksum_parquet(buffer.getvalue())))
    group = pq.read_metadata(io.BytesIO(content)).row_group(1)
    content[group.column(1).data_page_offset + 500] ^= 1
    file = io.BytesIO(content)
    with checksum.open_parquet(file) as parquet:
        assert parquet.read(columns=["uid", "n"]).equals(table.select(["uid", "n"]))
        assert parquet.read_row_group(2).equals(table.slice(200))
        with pytest.raises(ValueError, match="its bytes are not those that were written"):
            parquet.read_row_group(1)
    file.seek(0)
    with pytest.raises(ValueError, match="its bytes are not those"):
        checksum.check_parquet(file)


def test_no_changed_byte_of_json_or_a_page_is_taken(run):
    run.write_json({"name": "é", "seal of": [1, {"seal": ""}], "none": None}, "x.json")
    whole, page = (
        run.read("x.json"),
        checksum.with_checksum_page("<!doctype html>\n<p>caf\u00e9</p>\n"),
    )
    assert json.loads(whole)["name"] == "é" and page.startswith(b"<!doctype html>")
    checksum.check_page(page)
    for content, check in ((whole, checksum.open_json), (page, checksum.check_page)):
        for at in range(len(content)):
            for bit in range(8):
                changed = bytearray(content)
                changed[at] ^= 1 << bit
                with pytest.raises(ValueError, match=r"it has no checksum|its bytes are not those"):
                    check(bytes(changed))
            with pytest.raises(ValueError, match="it has no checksum"):
                check(content[:at])


def test_a_record_that_is_not_there_is_none_and_a_damaged_one_an_error(run, caplog):
    path = ("pool", "_stage.json")
    assert run.find_record(StageRecord, *path) is None
    with pytest.raises(FileNotFoundError):
        run.read_record(StageRecord, *path)
    run.write(b'{"shards": 3}', *path)
    for read in (run.read_record, run.find_record):
        with pytest.raises(DamagedError):
            read(StageRecord, *path)
    assert run.find_record(StageRecord, *path, damaged_ok=True) is None
    assert "pool/_stage.json is damaged and taken for absent" in caplog.text


def test_a_record_is_read_as_it_was_written(run):
    record = StageRecord(stage="clean", shards=3, work=Work(rows=5, seconds=1.5), seconds=2)
    run.write_record(record, "pool", "_stage.json")
    assert run.read_record(StageRecord, "pool", "_stage.json") == record
    content = run.read_json("pool", "_stage.json")
    assert content == {
        **{"stage": "clean", "shards": 3, "seconds": 2},
        "work": {"rows": 5, "seconds": 1.5},
    }
    run.write_json({**content, "of a later version": 1}, "pool", "_stage.json")
    assert run.read_record(StageRecord, "pool", "_stage.json") == record


@pytest.mark.parametrize(
    ("name", "content", "field"),
    [
        ("pool/_stage.json", {"seconds": -1}, "seconds"),
        ("pool/_stage.json", {"shards": "3"}, "shards"),
        ("models/m.json", {"fingerprint": "x", "files": {"../x": "y"}}, "files"),
        ("run.json", {"manifest": {}, "branch": "../x"}, "branch"),
        ("evaluation.json", {"m": {"metrics": {"intervals": {"a": [1]}}}}, "m.metrics"),
    ],
)
def test_a_record_of_other_types_is_damaged_and_names_the_field(run, name, content, field):
    run.write_json(content, *name.split("/"))
    with pytest.raises(DamagedError, match=f"{name}: damaged: its field '{field}"):
        run.check_json(*name.split("/"))


def test_the_files_of_a_folder_are_listed_with_their_digests(run):
    for parts in (("m", "a.txt"), ("m", "b", "c.txt"), ("m", "d.txt.7-0a.partial"), ("x.txt",)):
        run.write(b"abc", *parts)
    run.write(b"abc", "m", "e.partial", "f.txt")
    assert run.files("m") == ["a.txt", "b/c.txt"]
    assert run.files("nowhere") == []
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert run.digests("m") == {"a.txt": abc, "b/c.txt": abc}


def test_a_partial_file_is_never_seen(tmp_path):
    run = Run(str(tmp_path))
    run.write_table(pa.table({"x": [1]}), "pool", "00000.parquet")
    (tmp_path / "pool" / "00001.parquet.77.partial").write_bytes(b"half")
    assert run.names("pool") == ["00000.parquet"]


def test_a_broken_shard_is_named_with_what_to_do(run):
    run.write(b"PAR1 not really", "pool", "00003.parquet")
    with pytest.raises(DamagedError, match=r"00003\.parquet: damaged: it has no checksum.*Remove"):
        run.read_table("pool", "00003.parquet")
    with pytest.raises(FileNotFoundError):
        run.read_table("pool", "00004.parquet")


def test_an_error_of_who_reads_a_table_is_no_damage_of_it(run):
    run.write_table(small(), "pool", "00000.parquet")
    with pytest.raises(ValueError, match="mine") as told, run.open_table("pool", "00000.parquet"):
        raise ValueError("mine")
    assert not isinstance(told.value, DamagedError)


def test_a_shard_without_the_columns_or_types_of_a_pool_is_named(run):
    run.write_table(pa.table({"uid": ["a"], "width": ["300"]}), "pool", "00000.parquet")
    with pytest.raises(DamagedError, match=r"00000\.parquet: damaged: it has no one column image"):
        run.read_table("pool", "00000.parquet", columns=["uid", "image"])
    with pytest.raises(DamagedError, match="its column width is string, not int32"):
        run.read_table("pool", "00000.parquet")
    twice = pa.table([pa.array(["a"]), pa.array(["b"])], names=["uid", "uid"])
    run.write_table(twice, "pool", "00001.parquet")
    with pytest.raises(DamagedError, match="it has no one column uid"):
        run.read_table("pool", "00001.parquet", columns=["uid"])


def test_a_damage_says_what_to_do_and_travels_between_processes(tmp_path):
    run = Run(str(tmp_path), "rounds/2")
    for parts, told, is_derived in (
        (("annotations", "clean-1", "00000.parquet"), "it is measured anew", True),
        (("pool", "00000.parquet"), "its rows are downloaded anew", False),
        (("list", "_list.json"), f"Remove the folder {tmp_path}/list and", False),
        (("curated", "images", "x"), f"Remove the folder {tmp_path}/rounds/2/curated and", True),
        (("exports", "llava", "x"), f"Remove the folder {tmp_path}/rounds/2/exports/llava", True),
        (("models", "new.json"), f"remove {tmp_path}/rounds/2/models/new.json and", False),
        (("models", "new", "a", "b"), f"remove {tmp_path}/rounds/2/models/new.json and", False),
        (("run.json",), "`capfilt run MANIFEST` writes it anew", False),
        (("report", "index.html"), "Remove it and run again", False),
    ):
        damage = pickle.loads(pickle.dumps(run.damaged("changed", *parts)))
        assert str(damage).startswith(f"{run.at(*parts)}: damaged: changed. ")
        assert told in str(damage)
        assert damage.parts == parts and damage.is_derived is is_derived


@pytest.mark.slow
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

    def left():
        return {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}

    with run.lock():
        assert left() == {"run.lock", "pool/00000.parquet", *live, *training}
        (tmp_path / dead[0]).write_bytes(b"a worker died while the run was locked")
    assert left() == {"pool/00000.parquet", *live, *training}


def test_a_write_that_fails_leaves_nothing_behind(tmp_path):
    run = Run(str(tmp_path))
    run.write(b"old", "pool", "00000.parquet")
    (tmp_path / "pool" / "00001.parquet").mkdir()
    with pytest.raises(OSError):
        run.write(b"new", "pool", "00001.parquet")
    assert sorted(os.listdir(tmp_path / "pool")) == ["00000.parquet", "00001.parquet"]
