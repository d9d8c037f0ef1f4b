"""What a worker does on a pool that stands, without Ray."""

import fakes
import pyarrow as pa

from pipeline.manifest import Manifest
from pipeline.store import Run
from pipeline.verdicts import judge
from pipeline.worker import Worker
from stages.schema import POOL, uid_of


def test_a_score_of_an_earlier_stage_reaches_select_of_live_rows_alone(tmp_path):
    captions = ["A dog", "", *(f"The old dog runs{' far' * n} on a beach" for n in range(8))]
    rows = [
        {
            **dict.fromkeys(POOL.names),
            "uid": uid_of(str(n), caption),
            "source": "web",
            "url": str(n),
            "caption": caption,
            "repeats": 0,
            "status": "success",
            "image": fakes.jpeg(n, (300, 260)),
            **dict.fromkeys(("width", "original_width"), 300),
            **dict.fromkeys(("height", "original_height"), 260),
            "original_bytes": 9000,
            "sha256": f"{n:064x}",
        }
        for n, caption in enumerate(captions)
    ]
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
    found = [judge(run, worker.plan, shard, worker.plan.names) for shard in shards]
    words = pa.concat_tables(
        run.read_table(*worker.plan.folder("clean"), f"{shard}.parquet") for shard in shards
    )["text_words"].to_pylist()
    kept = [bool(live) for one in found for live in one.live]
    live = [reason is None for one in found for reason in one.reasons["clean"].to_pylist()]
    least = sorted(n for n, is_live in zip(words, live, strict=True) if is_live)[-3]
    assert kept == [ok and n >= least for n, ok in zip(words, live, strict=True)]
    assert sum(kept) == 3 and not all(live)
