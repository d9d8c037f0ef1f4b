"""What a worker does on a pool that stands, without Ray."""

import pyarrow as pa
import pytest
from helpers import blips, fakes, pools
from transformers import BlipForImageTextRetrieval

from pipeline.execution import map_reduce
from pipeline.execution import worker as workers
from pipeline.execution.worker import Worker
from pipeline.manifest.manifest import Manifest
from pipeline.results.verdicts import Results
from pipeline.storage.run import Run
from stages.base import CRASHED
from stages.schema import POOL


def test_a_score_of_an_earlier_stage_reaches_select_of_live_rows_alone(tmp_path):
    captions = ["A dog", "", *(f"The old dog runs{' far' * n} on a beach" for n in range(8))]
    rows = pools.pool_of(captions)
    run = Run(str(tmp_path))
    run.write_table(pa.Table.from_pylist(rows[:6], POOL), "pool", "00000.parquet")
    run.write_table(pa.Table.from_pylist(rows[6:], POOL), "pool", "00001.parquet")
    select = {"method": "top_fraction", "score": "text_words", "number": 3}
    worker = Worker(
        Manifest.parse(
            {
                "name": "m",
                "run": str(tmp_path),
                "stages": {"download": {"source": "x"}, "clean": {}, "select": select},
            }
        )
    )
    shards = ["00000", "00001"]
    for name in ("clean", "select"):
        for shard in shards:
            worker.work(name, shard)
    worker.summarize("select", shards)
    found = [Results(run, worker.plan).judge(shard, worker.plan.names) for shard in shards]
    words = pa.concat_tables(
        run.read_table(*worker.plan.folder("clean"), f"{shard}.parquet") for shard in shards
    )["text_words"].to_pylist()
    kept = [bool(live) for one in found for live in one.live]
    live = [reason is None for one in found for reason in one.reasons["clean"].to_pylist()]
    least = sorted(n for n, is_live in zip(words, live, strict=True) if is_live)[-3]
    assert kept == [ok and n >= least for n, ok in zip(words, live, strict=True)]
    assert sum(kept) == 3 and not all(live)


@pytest.fixture
def copies(tmp_path):
    """A manifest that takes over captions of copies, and a run that was made with it.

    Two URLs show each of three images; the filter is a BLIP of a few weights.
    """
    captions = [f"a {colour} dog and a house" for colour in ("red", "blue", "green")] * 2
    rows = pools.pool_of(captions)
    for row in rows:
        row["image"] = fakes.jpeg(int(row["url"]) // 2, (300, 260))
        row["sha256"] = f"{int(row['url']) // 2:064x}"
    model = blips.save(
        tmp_path / "model", BlipForImageTextRetrieval, blips.tokenizer_of(blips.WORDS.split())
    )

    def made(**dedup):
        stages = {
            "download": {"source": "x"},
            "dedup": dedup,
            "filter": {"model": model, "device": "cpu", "min_itm": 0.0},
        }
        return Manifest.parse({"name": "m", "run": str(tmp_path / "run"), "stages": stages})

    run = Run(str(tmp_path / "run"))
    run.write_table(pa.Table.from_pylist(rows, POOL), "pool", "00000.parquet")
    return made


def test_a_changed_threshold_of_copies_scores_no_text_again(copies):
    """The images are taken out of the pool after the first time, so no text can be scored."""

    def scores_of(worker):
        worker.work("dedup", "00000")
        worker.summarize("dedup", ["00000"])
        done = worker.work("filter", "00000")
        table = worker.results.annotated("filter", "00000")
        live = worker.results.judge("00000", ("download", "dedup")).live
        return done["rows"], table.filter(pa.array(live))

    first, whole = scores_of(Worker(copies()))
    further = whole["itm_further"].to_pylist()
    assert first == 3 and [len(some) for some in further] == [1, 1, 1]
    worker = Worker(copies(max_further_captions=0))
    pool = worker.run.read_table("pool", "00000.parquet")
    gone = pa.array([b"gone"] * len(pool), pa.binary())
    place = pool.column_names.index("image")
    worker.run.write_table(pool.set_column(place, "image", gone), "pool", "00000.parquet")
    second, fewer = scores_of(worker)
    assert second == 3 and fewer["itm_further"].to_pylist() == [[], [], []]
    assert fewer["itm_web"].equals(whole["itm_web"]) and not fewer["itm_web"].null_count
    third, back = scores_of(Worker(copies()))
    assert third == 3 and back["itm_further"].to_pylist() == further


class Counts:
    """What a worker counts."""

    def __init__(self, run):
        self.rows, self.rejected = {}, {}

    def count(self, stage, result, gpus):
        assert result["seconds"] > 0
        self.rows[stage] = self.rows.get(stage, 0) + result["rows"]
        for reason, number in result["reasons"].items():
            self.rejected[reason] = self.rejected.get(reason, 0) + number


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """A worker on two shards of four rows, and what it counts."""
    monkeypatch.setattr(workers, "Meter", Counts)
    rows = pools.pool_of([f"The dog number {n} runs on a beach" for n in range(8)])
    run = Run(str(tmp_path))
    for shard in range(2):
        part = pa.Table.from_pylist(rows[4 * shard : 4 * shard + 4], POOL)
        run.write_table(part, "pool", f"{shard:05d}.parquet")
    stages = {"download": {"source": "x", "shard_size": 4}, "clean": {}, "dedup": {}}
    worker = Worker(Manifest.parse({"name": "m", "run": str(tmp_path), "stages": stages}))
    return worker, worker._meter


def test_a_shard_whose_crash_was_searched_for_is_counted_and_told(counted, caplog):
    worker, found = counted
    caplog.set_level("INFO", "pipeline.execution.logs")
    part = worker.measure("clean", "00000", (), [0, 1, 3])
    assert found.rows == {}
    done = worker.commit("clean", "00000", (), [[0, 1, 3]], part)
    assert found.rows == {"clean": done["rows"]} == {"clean": 4}
    assert found.rejected[CRASHED] == 1
    (told,) = (record.fields for record in caplog.records if record.message == "shard done")
    assert told["rows"] == 4 and told["reasons"][CRASHED] == 1


def test_a_summary_in_parts_counts_no_row_again(counted, monkeypatch):
    worker, found = counted
    monkeypatch.setattr(map_reduce, "PART_ROWS", 4)
    shards = ["00000", "00001"]
    for name in ("clean", "dedup"):
        for shard in shards:
            worker.work(name, shard)
    measured = found.rows["dedup"]
    assert measured > 0
    parts = map_reduce.PartitionedSummary.begin(worker.results, "dedup", shards, "now")
    for _, left in parts.steps():
        assert sum(worker.work("dedup", task)["rows"] for task in left) >= 0
    assert parts.rows() == measured == found.rows["dedup"]


def test_the_verdicts_of_a_shard_take_one_look_at_the_pool(counted):
    class Looked(Run):
        def open(self, *parts):
            opened.append(parts)
            return super().open(*parts)

    worker, _ = counted
    worker.work("clean", "00000")
    opened: list[tuple[str, ...]] = []
    found = Results(Looked(worker.run.root), worker.plan).judge("00000", worker.plan.names)
    assert found.live.all()
    assert opened.count(("pool", "00000.parquet")) == 1
