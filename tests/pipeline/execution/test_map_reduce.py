"""A summary in parts is the summary of one process, for any rows, parts and groups."""

import random
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers import fakes
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from models.embedding import copies
from pipeline.execution import comparison, map_reduce
from pipeline.execution.map_reduce import PartitionedSummary
from pipeline.execution.progress import Progress
from pipeline.execution.session import Session
from pipeline.execution.worker import Worker
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
from pipeline.results.verdicts import Results
from pipeline.results.verify import verify
from pipeline.storage.run import Run
from stages.base import CRASHED
from stages.dedup import DedupConfig, DedupStage
from stages.embed import EMBEDDING, EmbedStage
from stages.schema import POOL, uid_of
from stages.select import SelectConfig, SelectStage

SHARD = 6
WORDS = ("a", "red", "old", "dog", "cat", "house", "boat", "near", "under", "the", "lake", "runs")


def prints(rng):
    """An image like a few others: a hash near one of four, one of two colours."""
    if rng.random() < 0.1:
        return None, None, None, None
    phash = int(np.random.default_rng(rng.randrange(4)).integers(0, 2**64, dtype=np.uint64))
    for _ in range(rng.randrange(5)):
        phash ^= 1 << rng.randrange(64)
    if rng.random() < 0.4:
        phash = rng.getrandbits(64)
    grey = rng.choice((40, 60, 200))
    luma = bytes(
        rng.choice((0, 0, 90)) if 20 < cell % 32 < 30 else cell % 32 for cell in range(1024)
    )
    contrast = rng.choice((1.0, 30.0))
    return np.uint64(phash).astype(np.int64), contrast, bytes([grey]) * 192, luma


def dedup_rows(rng, number):
    """Measures of rows of which many are alike in one way or another."""
    sentences = [" ".join(rng.choices(WORDS, k=rng.randrange(1, 12))) for _ in range(8)]
    rows = []
    for index in range(number):
        words = rng.choice(sentences).split(" ")
        if rng.random() < 0.3:
            words[rng.randrange(len(words))] = rng.choice(WORDS)
        url = f"https://example.com/{index if rng.random() < 0.7 else rng.randrange(number)}"
        caption = None if rng.random() < 0.1 else " ".join(words)
        rows.append(
            {
                "uid": uid_of(url, f"{caption} {index}"),
                "url": url,
                "caption": caption,
                "sha256": f"{index if rng.random() < 0.8 else rng.randrange(9):064x}",
                "original_width": rng.choice((100, 200)),
                "original_height": 100,
                **dict(
                    zip(
                        ("image_phash", "image_contrast", "image_colours", "image_luma"),
                        prints(rng),
                        strict=True,
                    )
                ),
            }
        )
    types = {name: POOL.field(name).type for name in rows[0] if name in POOL.names}
    types |= {
        "image_phash": pa.int64(),
        "image_contrast": pa.float32(),
        "image_colours": pa.binary(192),
        "image_luma": pa.binary(1024),
    }
    table = pa.Table.from_pylist(rows, schema=pa.schema(types))
    return table["uid"], DedupStage(DedupConfig()).annotate(table)


def select_rows(rng, number):
    """Phrases of rows, a few of them in most, some in none."""
    lists = [
        None
        if rng.random() < 0.1
        else list({f"phrase {int(12 * rng.random() ** 2)}" for _ in range(rng.randrange(4))})
        for _ in range(number)
    ]
    uids = pa.chunked_array([[uid_of(f"https://example.com/{i}", "x") for i in range(number)]])
    found = {"noun_phrases": lists, "score": [None] * number}
    return uids, pa.table(found, schema=SelectStage.writes)


def make(root, name, config, rows, embeddings=None):
    """A run with the measures of a global stage; one row in ten has failed to download.

    With embeddings of images and texts, the stage embed stands before it, and has made these.
    """
    stages = {"download": {"source": "x", "shard_size": SHARD}, name: config}
    if embeddings is not None:
        model = root.parent / "model"
        model.mkdir()
        (model / "model.safetensors").write_bytes(b"weights")
        stages = {"download": stages["download"], "embed": {"model": str(model)}, name: config}
    manifest = Manifest.parse({"name": "x", "run": str(root), "stages": stages})
    plan, run = Plan(manifest), Run(str(root))
    uids, measured = rows
    for index in range(0, len(measured), SHARD):
        part = measured.slice(index, SHARD)
        some = uids.slice(index, SHARD)
        failed = [int(uid[:2], 16) < 26 for uid in some.to_pylist()]
        pool = {
            field.name: pa.nulls(len(part), field.type)
            for field in POOL
            if field.name not in ("uid", "error")
        }
        errors = pa.array(["timeout" if bad else None for bad in failed], pa.string())
        pool |= {"uid": some, "error": errors}
        file = f"{index // SHARD:05d}.parquet"
        table = pa.table({field.name: pool[field.name] for field in POOL})
        run.write_table(table, "pool", file)
        columns = {column: part[column] for column in part.column_names}
        live = pa.array([not bad for bad in failed])
        run.write_table(
            pa.table({"uid": some, "measured": live, **columns}), *plan.folder(name), file
        )
        if embeddings is not None:
            found = [column.slice(index, SHARD) for column in embeddings]
            nulls = {f.name: pa.nulls(len(part), f.type) for f in EmbedStage.writes}
            given = dict(zip(("image_embedding", "text_embedding"), found, strict=True))
            given["embedded"] = pa.array([True] * len(part))
            embed = pa.table({"uid": some, "measured": live, **nulls, **given})
            run.write_table(embed, *plan.folder("embed"), file)
    return run, plan


def tables(run, plan, name):
    folder = plan.summary_folder(name)
    return [run.read_table(*folder, f"{shard}.parquet") for shard in run.shards(*folder)]


def crash(run, plan, name):
    """Let every fifth row of the first shard be one that crashes."""
    path = (*plan.folder(name), "00000.parquet")
    table = run.read_table(*path)
    crashed = np.arange(len(table)) % 5 == 0
    kept = pa.array(np.arange(len(table)), mask=crashed)
    for position, column in enumerate(table.schema.names):
        if column not in ("uid", "measured"):
            table = table.set_column(position, column, table[column].combine_chunks().take(kept))
    run.write_table(table.append_column(CRASHED, pa.array(crashed)), *path)


def both_ways(name, config, rows, part_rows, group_rows, crashes=False, embeddings=None):
    """The summary of one process, and the one in parts."""
    root = Path(tempfile.mkdtemp(prefix="summary-"))
    try:
        (root / "pipeline").mkdir()
        if name == "select":
            config = {"model": str(root / "pipeline"), **config}
        run, plan = make(root / "run", name, config, rows, embeddings)
        shards = run.shards("pool")
        if crashes:
            crash(run, plan, name)
        worker = Worker(plan.manifest, threads=None)
        whole = worker.summarize(name, shards)
        expected = tables(run, plan, name)
        run.remove(*plan.summary_folder(name))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(map_reduce, "PART_ROWS", part_rows)
            patch.setattr(map_reduce, "GROUP_ROWS", group_rows)
            parts = PartitionedSummary.begin(Results(run, plan), name, shards, "now")
        assert parts is not None
        for _, left in parts.steps():
            for task in random.Random(0).sample(left, len(left)):
                worker.work(name, task)
        assert parts.rows() == whole["rows"]
        parts.remove()
        assert run.names(*plan.summary_folder(name)) == [f"{shard}.parquet" for shard in shards]
        return expected, tables(run, plan, name)
    finally:
        shutil.rmtree(root)


POOLS = {
    "seed": st.integers(0, 2**32),
    "number": st.integers(SHARD + 1, 60),
    "part_rows": st.integers(1, SHARD),
    "group_rows": st.integers(1, 30),
    "crashes": st.booleans(),
}


@settings(max_examples=15, deadline=None)
@given(
    **POOLS,
    most=st.sampled_from((1, 10)),
)
def test_dedup_in_parts(seed, number, part_rows, group_rows, most, crashes):
    rows = dedup_rows(random.Random(seed), number)
    config = {"max_images_per_caption": most, "max_captions_per_image": 2}
    whole, parts = both_ways("dedup", config, rows, part_rows, group_rows, crashes)
    assert parts == whole


def embedded(seed, number):
    """Embeddings of rows around a few scenes, one in eight missing."""
    rng = np.random.default_rng(seed)
    scenes = rng.normal(size=(max(number // 5, 1), 16))
    rows = scenes[rng.integers(0, len(scenes), number)] + 0.6 * rng.normal(size=(number, 16))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    lists = [None if rng.random() < 1 / 8 else list(row) for row in rows]
    return pa.array(lists, EMBEDDING)


@settings(max_examples=6, deadline=None)
@given(
    **POOLS,
    exact=st.sampled_from((4, 10**6)),
    bin_rows=st.integers(1, 200),
    least=st.sampled_from((0.3, 0.6, 0.8)),
)
def test_semantic_copies_in_parts(
    seed, number, part_rows, group_rows, crashes, exact, bin_rows, least
):
    rows = dedup_rows(random.Random(seed), number)
    embeddings = embedded(seed, number), embedded(seed + 1, number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "EXACT", exact)
        patch.setattr(comparison, "BIN_ROWS", bin_rows)
        config = {"semantic": least, "max_hamming": 0}
        whole, parts = both_ways("dedup", config, rows, part_rows, group_rows, crashes, embeddings)
    for one, other in zip(whole, parts, strict=True):
        cosines = (np.array(t["semantic_cosine"].to_pylist(), float) for t in (one, other))
        np.testing.assert_allclose(*cosines, atol=1e-6)
        assert one.drop_columns("semantic_cosine") == other.drop_columns("semantic_cosine")


@settings(max_examples=15, deadline=None)
@given(
    **POOLS,
    most=st.integers(1, 5),
)
def test_select_in_parts(seed, number, part_rows, group_rows, most, crashes):
    rows = select_rows(random.Random(seed), number)
    config = {"max_per_phrase": most, "min_frequency": 2}
    whole, parts = both_ways("select", config, rows, part_rows, group_rows, crashes)
    assert parts == whole


SHARES = (
    {"method": "random", "fraction": 0.4},
    {"method": "random", "number": 7},
    {"method": "random", "number": 10**6},
    {"method": "top_fraction", "score": "width", "fraction": 0.3},
    {"method": "top_fraction", "score": "width", "number": 9},
    {"method": "sample", "score": "width", "fraction": 0.8, "batch_size": 5},
    {"method": "sample", "score": "width", "number": 90, "penalty": 3.0},
)


@settings(max_examples=15, deadline=None)
@given(
    **POOLS,
    share=st.sampled_from(SHARES),
    sample_rows=st.integers(1, 9),
)
def test_a_share_in_parts(seed, number, part_rows, group_rows, share, sample_rows, crashes):
    uids, rows = select_rows(random.Random(seed), number)
    drawn = random.Random(seed).choices((None, -0.0, 0.0, 0.25, 1e300, float("-inf")), k=number)
    rows = rows.set_column(1, "score", pa.array(drawn, pa.float64()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(map_reduce, "SAMPLE_ROWS", sample_rows)
        whole, parts = both_ways("select", share, (uids, rows), part_rows, group_rows, crashes)
    assert parts == whole


@settings(max_examples=6, deadline=None)
@given(
    **POOLS,
    select=st.sampled_from(
        (
            {"method": "target", "norm": "pool", "fraction": 0.4},
            {"method": "neg_clip_loss", "number": 9, "batch_size": 7, "temperature": 0.1},
            {"method": "neg_clip_loss", "fraction": 0.3, "shuffles": 2},
            {"method": "density", "fraction": 0.4, "clusters": 4},
            {"method": "density", "number": 9, "temperature": 0.01},
        )
    ),
)
def test_scores_of_the_pool_in_parts(seed, number, part_rows, group_rows, crashes, select):
    uids, rows = select_rows(random.Random(seed), number)
    embeddings = embedded(seed, number), embedded(seed + 1, number)
    given = "select", select, (uids, rows), part_rows, group_rows, crashes, embeddings
    for one, other in zip(*both_ways(*given), strict=True):
        scores = (np.array(t["selection_score"].to_pylist(), float) for t in (one, other))
        np.testing.assert_allclose(*scores, rtol=1e-6)
        assert one.drop_columns("selection_score") == other.drop_columns("selection_score")


def test_parts_are_not_made_where_one_process_can_or_must(tmp_path, monkeypatch):
    rows = select_rows(random.Random(0), 20)
    (tmp_path / "pipeline").mkdir()
    config = {"model": str(tmp_path / "pipeline")}
    run, plan = make(tmp_path / "run", "select", config, rows)
    results, shards = Results(run, plan), run.shards("pool")
    assert PartitionedSummary.begin(results, "select", shards, "now") is None
    monkeypatch.setattr(map_reduce, "PART_ROWS", 3)
    assert PartitionedSummary.begin(results, "select", shards, "now") is not None
    config["method"] = "balance"
    run, plan = make(tmp_path / "other", "select", config, rows)
    results, shards = Results(run, plan), run.shards("pool")
    assert PartitionedSummary.begin(results, "select", shards, "now") is None
    assert not SelectStage(SelectConfig(model="x", variant="quota")).in_parts


def test_what_a_killed_summary_left_is_not_done_again(tmp_path, monkeypatch):
    monkeypatch.setattr(map_reduce, "PART_ROWS", 10)
    monkeypatch.setattr(map_reduce, "GROUP_ROWS", 10)
    run, plan = make(tmp_path, "dedup", {}, dedup_rows(random.Random(1), 40))
    shards = run.shards("pool")
    begun = PartitionedSummary.begin(Results(run, plan), "dedup", shards, "now")
    steps = begun.steps()
    step, left = next(steps)
    assert step == "ties" and len(left) == len(begun.groups)
    for task in left[1:]:
        begun.work(task)
    again = PartitionedSummary.begin(Results(run, plan), "dedup", shards, "now")
    assert next(again.steps()) == ("ties", left[:1])
    other = PartitionedSummary.begin(Results(run, plan), "dedup", shards, "with other rows")
    assert next(other.steps()) == ("ties", left)
    begun.work(left[0])  # as a worker does that outlives its driver
    assert next(other.steps()) == ("ties", left)
    other.remove()
    assert run.names(*plan.summary_folder("dedup")) == []


def test_a_run_in_parts_exports_the_same(tmp_path, ray_here, monkeypatch):
    source = fakes.photo_folder(tmp_path / "photos", 30)
    (source / "copy.jpg").write_bytes((source / "0003.jpg").read_bytes())
    digests = []
    for part_rows in (map_reduce.PART_ROWS, 8):
        monkeypatch.setattr(map_reduce, "PART_ROWS", part_rows)
        stages = {
            "download": {"source": str(source), "image_size": 64, "shard_size": 4},
            **{name: {} for name in ("clean", "dedup", "export")},
        }
        root = str(tmp_path / f"run-{part_rows}")
        manifest = Manifest.parse({"name": "x", "run": root, "stages": stages})
        quiet = Progress(Console(quiet=True), quiet=True)
        with Session(manifest, workers=2, progress=quiet) as session:
            session.run()
        run, plan = Run(root), Plan(manifest)
        mark = run.read_json(*plan.summary_folder("dedup"), "_summary.json")
        assert mark.get("parts") == (16 if part_rows == 8 else None)
        assert list(verify(run)) == []
        digests.append(
            [file["sha256"] for file in run.read_json("curated", "manifest.json")["files"]]
        )
    assert digests[0] == digests[1]
