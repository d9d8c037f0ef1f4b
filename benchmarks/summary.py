"""The summary of a large pool in parts, beside one process: CPU seconds and memory of each step.

    OMP_NUM_THREADS=1 python -m benchmarks.summary --rows 10000000 --folder DIR

Makes the annotations of dedup, select and select's top_fraction of so many rows (10 GB for ten
million), or of those named by --only: semantic copies, density and sample too, with embeddings of
64 numbers in threes of a scene. Then it carries out each task of
`pipeline.execution.map_reduce.PartitionedSummary` in a process of its own, one at a time, so that
its memory is known. With --whole one process does all
first, and the answers are compared. With --only some are done. With --seconds it ends after so long
and goes on when called again. --rows below a part are done in parts of a fifth.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.util.metrics  # noqa: F401  (as every worker has it)
from scipy.special import ndtri

from models.random import splitmix
from pipeline.execution import map_reduce
from pipeline.execution.map_reduce import PartitionedSummary
from pipeline.execution.worker import Worker
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
from pipeline.results.verdicts import Results
from pipeline.storage.run import Run
from stages.dedup.digests import from_binary, to_hex
from stages.dedup.fingerprints import NUM_PERM, WRITES
from stages.embed import EmbedStage
from stages.image_prints import COLOURS, LUMA
from stages.schema import POOL
from stages.select import SelectStage

SHARD = 100_000
STAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "dedup": ("dedup", {}),
    "select": ("select", {}),
    "top_fraction": (
        "select",
        {"method": "top_fraction", "fraction": 0.3, "score": "original_bytes"},
    ),
    "semantic": ("dedup", {"semantic": 0.95}),
    "density": ("select", {"method": "density", "fraction": 0.3}),
    "sample": ("select", {"method": "sample", "fraction": 0.3, "score": "original_bytes"}),
}
"""A stage and its settings, by the name that the table gives them."""

EMBEDDED = {"semantic", "density"}
"""The names in `STAGES` whose stage compares embeddings."""

SIZE = 64
"""Numbers of an embedding."""


def phrases(rows: int, start: int) -> pa.Table:
    """One to five phrases of a row out of 20 million, drawn by Zipf's law."""
    rng = np.random.default_rng(start)
    lengths = rng.integers(1, 6, rows)
    ranks = np.exp(rng.random(lengths.sum()) * np.log(20_000_000)).astype(np.int64)
    texts = pa.array(np.char.add("the noun phrase ", ranks.astype(str)), pa.string())
    offsets: Any = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), texts)
    found = {"noun_phrases": lists, "score": pa.nulls(rows, pa.float64())}
    return pa.table(found, SelectStage.writes)


def scores(rows: int, start: int) -> pa.Table:
    """A score for nearly all rows."""
    rng = np.random.default_rng(start)
    score = pa.array(rng.normal(0.25, 0.05, rows), mask=rng.random(rows) < 0.02)
    nothing = pa.nulls(rows, SelectStage.writes.field("noun_phrases").type)
    return pa.table({"noun_phrases": nothing, "score": score}, SelectStage.writes)


def digests(numbers: Any) -> Any:
    """16 bytes for each number, as pa.binary(16)."""
    halves = np.stack([splitmix(numbers), splitmix(~numbers)], axis=1)
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(16), len(numbers), [None, pa.py_buffer(halves.tobytes())]
    )


def prints(rows: int, start: int) -> pa.Table:
    """What dedup measures, digests in the place of what they are of.

    A fifth of the images are near copies of others, a twentieth exact ones, a sixth of the captions
    are shared by others and a twentieth nearly those of another row.
    """
    rng = np.random.default_rng(start)
    number = np.arange(start, start + rows, dtype=np.uint64)
    image, caption = number.copy(), number.copy()
    is_copy, is_common = rng.random(rows) < 0.2, rng.random(rows) < 0.15
    image[is_copy] = rng.integers(0, start + rows, int(is_copy.sum()))
    caption[is_common] = (100_000 * rng.random(int(is_common.sum())) ** 2).astype(np.uint64)
    phash = splitmix(image)
    for _ in range(3):
        bit = np.uint64(1) << rng.integers(0, 64, rows).astype(np.uint64)
        phash = np.where(is_copy, phash ^ bit, phash)
    grey = (image % np.uint64(200)).astype(np.uint8)
    values = splitmix(caption[:, None] * np.uint64(NUM_PERM) + np.arange(NUM_PERM, dtype=np.uint64))
    signatures = values.astype(np.uint32)
    is_near = (rng.random(rows) < 0.05) & ~is_common
    near = np.flatnonzero(is_near & (np.arange(rows) > 7))
    signatures[near, :100] = signatures[near - 7, :100]
    texts = [f"a caption of some words about number {one} and a shop" for one in caption.tolist()]
    sha256 = np.where(rng.random(rows) < 0.05, image, number)

    def binary(content: bytes, width: int) -> Any:
        return pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(width), rows, [None, pa.py_buffer(content)]
        )

    found: dict[str, Any] = {
        "image_url": digests(number),
        "image_sha256": digests(sha256),
        "image_area": pa.array(rng.integers(10_000, 1_000_000, rows)),
        "image_phash": pa.array(phash.view(np.int64)),
        "image_contrast": pa.array(np.full(rows, 50, np.float32)),
        "image_colours": binary(np.repeat(grey, COLOURS).tobytes(), COLOURS),
        "image_luma": binary(np.repeat(grey, LUMA).tobytes(), LUMA),
        "caption_text": pa.array(texts),
        "caption_key": digests(caption),
        "caption_words": pa.array(np.full(rows, 11, np.int32)),
        "caption_minhash": binary(signatures.astype("<u4").tobytes(), 4 * NUM_PERM),
    }
    return pa.table(found, WRITES)


def embeddings(rows: int, start: int) -> pa.Table:
    """Embeddings around 2,000 concepts; three rows next to each other show one scene."""
    number = np.arange(start, start + rows, dtype=np.uint64)
    scene = (number // np.uint64(3))[:, None] * np.uint64(SIZE) + np.arange(SIZE, dtype=np.uint64)
    concept = splitmix(scene // np.uint64(SIZE)) % np.uint64(2000) * np.uint64(SIZE)
    concept = concept + np.arange(SIZE, dtype=np.uint64)
    noise = np.random.default_rng(start).normal(size=(rows, SIZE))
    found = normals(concept + np.uint64(10**12)) + 0.8 * normals(scene) + 0.2 * noise
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    offsets: Any = np.arange(rows + 1, dtype=np.int32) * SIZE
    flat = pa.array(found.astype(np.float16).ravel())
    nulls: dict[str, Any] = {f.name: pa.nulls(rows, f.type) for f in EmbedStage.writes}
    lists = pa.ListArray.from_arrays(pa.array(offsets), flat)
    return pa.table(
        {**nulls, "image_embedding": lists, "embedded": pa.array(np.ones(rows, bool))},
        EmbedStage.writes,
    )


def normals(numbers: Any) -> Any:
    """A number drawn from the normal distribution for each number."""
    return ndtri(((splitmix(numbers) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)


def unscored(rows: int, start: int) -> pa.Table:
    """The columns of select, all null: its method reads embeddings and measures nothing else."""
    return pa.table([pa.nulls(rows, f.type) for f in SelectStage.writes], SelectStage.writes)


MAKE = {
    "dedup": prints,
    "select": phrases,
    "top_fraction": scores,
    "semantic": prints,
    "density": unscored,
    "sample": scores,
    "embed": embeddings,
}


def make(folder: Path, rows: int, index: int, names: Sequence[str]) -> None:
    """The pool and the annotations of one shard."""
    run, plans = opened(folder, rows)
    file = f"{index:05d}.parquet"
    number = min(SHARD, rows - index * SHARD)
    start = index * SHARD
    uid = to_hex(from_binary(digests(np.arange(start, start + number, dtype=np.uint64))))
    measured = pa.array(np.ones(number, bool))
    pool = {field.name: pa.nulls(number, field.type) for field in POOL}
    if not run.exists("pool", file):
        run.write_table(pa.table({**pool, "uid": uid}), "pool", file)
    made = {name: plans[name].folder(STAGES[name][0]) for name in names}
    if embedded := EMBEDDED & set(names):
        made["embed"] = plans[min(embedded)].folder("embed")
    for name, own in made.items():
        path = (*own, file)
        if not run.exists(*path):
            table = MAKE[name](number, start)
            columns = {column: table[column] for column in table.column_names}
            whole = pa.table({"uid": uid, "measured": measured, **columns})
            run.write_table(whole, *path)


def opened(folder: Path, rows: int) -> tuple[Run, dict[str, Plan]]:
    """The run and a plan for each of `STAGES`."""
    (folder / "pipeline").mkdir(parents=True, exist_ok=True)
    (folder / "model").mkdir(exist_ok=True)
    if not (folder / "model" / "model.safetensors").exists():
        (folder / "model" / "model.safetensors").write_bytes(b"weights")
    plans = {}
    for name, (stage, settings) in STAGES.items():
        model = {"model": str(folder / "pipeline")} if stage == "select" else {}
        embed = {"embed": {"model": str(folder / "model")}} if name in EMBEDDED else {}
        download = {"source": "x", "shard_size": SHARD}
        stages = {"download": download, **embed, stage: {**model, **settings}}
        content = {"name": "x", "run": str(folder / f"{rows}"), "stages": stages}
        plans[name] = Plan(Manifest.parse(content))
    return Run(str(folder / f"{rows}")), plans


def alone(call: Callable[..., Any], *arguments: Any) -> tuple[float, float]:
    """CPU seconds and GiB that a call takes in a process of its own."""
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=None) as pool:
        return pool.submit(_measured, call, *arguments).result()


def _measured(call: Callable[..., Any], *arguments: Any) -> tuple[float, float]:
    started = time.process_time()
    call(*arguments)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return time.process_time() - started, memory


def in_one(folder: Path, rows: int, name: str) -> None:
    run, plans = opened(folder, rows)
    Worker(plans[name].manifest).summarize(STAGES[name][0], run.shards("pool"))


def in_part(folder: Path, rows: int, name: str, task: str) -> None:
    _, plans = opened(folder, rows)
    Worker(plans[name].manifest).work(STAGES[name][0], task)


def digest(run: Run, plan: Plan, name: str) -> list[str]:
    folder = plan.summary_folder(STAGES[name][0])
    return [run.sha256(*folder, f"{shard}.parquet") for shard in run.shards(*folder)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("runs/summary"))
    parser.add_argument("--whole", action="store_true", help="one process first")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES)[:3])
    parser.add_argument("--seconds", type=float, default=float("inf"))
    options = parser.parse_args()
    ends = time.monotonic() + options.seconds
    folder, rows = options.folder.resolve(), options.rows
    run, plans = opened(folder, rows)
    told = folder / f"{rows}.json"
    results = defaultdict(dict, json.loads(told.read_text()) if told.exists() else {})
    for index in range(-(-rows // SHARD)):
        make(folder, rows, index, options.only)
        if time.monotonic() > ends:
            sys.exit(3)
    if rows <= map_reduce.PART_ROWS:
        map_reduce.PART_ROWS = -(-rows // 5)
    shards = run.shards("pool")
    for name in options.only:
        stage, found = STAGES[name][0], results[name]
        if "done" in found:
            continue
        if options.whole and "whole" not in found:
            found["whole"] = [*alone(in_one, folder, rows, name), 1]
            found["digest"] = digest(run, plans[name], name)
            run.remove(*plans[name].summary_folder(stage))
            told.write_text(json.dumps(results))
        parts = PartitionedSummary.begin(Results(run, plans[name]), stage, shards, "now")
        assert parts is not None
        for step, left in parts.steps():
            for task in left:
                seconds, memory = alone(in_part, folder, rows, name, task)
                before = found.get(step, [0.0, 0.0, 0])
                found[step] = [before[0] + seconds, max(before[1], memory), before[2] + 1]
                told.write_text(json.dumps(results))
                if time.monotonic() > ends:
                    sys.exit(3)
        parts.remove()
        found["same"] = found.get("digest") in (None, digest(run, plans[name], name))
        found["done"] = True
        told.write_text(json.dumps(results))
    print(f"{rows:,} rows, parts of {map_reduce.PART_ROWS:,}")
    for name in options.only:
        found = results[name]
        steps = {s: v for s, v in found.items() if s not in ("done", "same", "digest")}
        for step, (seconds, memory, tasks) in steps.items():
            print(f"{name:12} {step:10} {tasks:4} tasks {seconds:8.1f} CPU-s {memory:6.2f} GiB")
        parts_only = [v for s, v in steps.items() if s != "whole"]
        total, most = sum(v[0] for v in parts_only), max(v[1] for v in parts_only)
        same = "" if "digest" not in found else f", same answer: {'yes' if found['same'] else 'NO'}"
        print(f"{name:12} in parts {total:.1f} CPU-s, at most {most:.2f} GiB a process{same}")


if __name__ == "__main__":
    main()
