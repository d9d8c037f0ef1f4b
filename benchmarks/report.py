"""How long the report of a run of many rows takes to write and to open, and how large it is.

    PYTHONPATH=tests python -m benchmarks.report --rows 100000

The rows and what the stages said of them are drawn at random; two such runs of different filter
thresholds are also compared. Pages are opened in headless Chromium, the seconds until `load` and
until the next frame is painted; without a Chromium they are only written.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from helpers.pages import CHROMIUM, PageBrowser
from PIL import Image

from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
from pipeline.report import build, compare
from pipeline.results.funnel import funnel
from pipeline.results.verdicts import DIGEST, Results
from pipeline.storage.run import Run
from stages.base import GlobalStage
from stages.registry import STAGES
from stages.schema import POOL, uid_of

SHARD = 5_000
WORDS = (
    *("a", "the", "red", "blue", "old", "small", "large", "dog", "house", "boat", "train", "horse"),
    *("window", "garden", "kite", "bird", "on", "in", "near", "under", "city", "harbour", "rain"),
    *("morning", "standing", "two", "three", "photo", "stock", "image", "free", "best", "price"),
)
STAGE_NAMES = ("download", "clean", "dedup", "select", "caption", "filter")


def plan_of(root: Path, min_itm: float) -> Plan:
    """The plan of all stages, with models that are never loaded."""
    (root / "pipeline").mkdir(parents=True, exist_ok=True)
    fields: dict[str, dict[str, Any]] = {
        "download": {"source": "list.parquet"},
        "select": {"model": str(root / "pipeline")},
        "caption": {"revision": "0" * 40},
        "filter": {"revision": "0" * 40, "min_itm": min_itm},
    }
    stages = {name: fields.get(name, {}) for name in STAGE_NAMES}
    return Plan(Manifest.parse({"name": "many rows", "run": str(root), "stages": stages}))


def texts(rng: np.random.Generator, number: int) -> list[str]:
    """Sentences of 3 to 20 words."""
    lengths = rng.integers(3, 20, number)
    words = rng.choice(WORDS, lengths.sum())
    return [" ".join(some) for some in np.split(words, np.cumsum(lengths)[:-1])]


def pictures(rng: np.random.Generator) -> list[bytes]:
    """Encoded images with the detail of photographs, 256 pixels wide."""
    found = []
    for _ in range(64):
        coarse = Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8))
        file = io.BytesIO()
        coarse.resize((256, 192), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


def pool_of(rng: np.random.Generator, shard: int, images: list[bytes]) -> pa.Table:
    """A shard of the pool; a tenth of the downloads failed."""
    captions = texts(rng, SHARD)
    hosts = rng.zipf(1.4, SHARD).clip(max=5000)
    urls = [f"https://host-{host}.example/{shard}/{n}.jpg" for n, host in enumerate(hosts)]
    failed = rng.random(SHARD) < 0.1
    errors = rng.choice(["timeout", "http_404", "not_an_image", "too_large"], SHARD)
    sides = rng.lognormal(6.3, 0.6, (2, SHARD)).astype(np.int32) + 16
    columns: dict[str, Any] = {
        "uid": [uid_of(*pair) for pair in zip(urls, captions, strict=True)],
        "source": ["web"] * SHARD,
        "url": urls,
        "caption": captions,
        "repeats": np.zeros(SHARD, np.int32),
        "status": np.where(failed, "failed_to_download", "success"),
        "error": pa.array(errors, mask=~failed),
        "image": pa.array(
            [None if bad else images[n % 64] for n, bad in enumerate(failed)], pa.binary()
        ),
        "original_width": pa.array(sides[0], mask=failed),
        "original_height": pa.array(sides[1], mask=failed),
    }
    return filled(POOL, SHARD, columns)


def filled(schema: pa.Schema, number: int, columns: dict[str, Any]) -> pa.Table:
    """A table of a schema, null where nothing is said."""
    return pa.table(
        {
            field.name: pa.array(columns[field.name], field.type)
            if field.name in columns
            else pa.nulls(number, field.type)
            for field in schema
        },
        schema=schema,
    )


def said(rng: np.random.Generator, name: str, pool: pa.Table) -> tuple[dict[str, Any], ...]:
    """What a stage measured, and its summary."""
    if name == "clean":
        width, height = (pool[f"original_{side}"].to_numpy() for side in ("width", "height"))
        captions = pool["caption"].to_pylist()
        words = [len(caption.split()) for caption in captions]
        return (
            {
                "text": captions,
                "text_words": words,
                "caption_words": words,
                "text_characters": [len(caption) for caption in captions],
                "text_letters": rng.beta(20, 3, SHARD).astype(np.float32),
                "language": rng.choice(["en", "de", "fr"], SHARD, p=[0.9, 0.06, 0.04]),
                "language_score": rng.random(SHARD).astype(np.float32),
                "image_width": pa.array(width, pa.int32(), from_pandas=True),
                "image_height": pa.array(height, pa.int32(), from_pandas=True),
                "image_aspect": np.maximum(width / height, height / width).astype(np.float32),
                "image_single_colour": rng.random(SHARD).astype(np.float32),
            },
        )
    if name == "dedup":
        uids = pool["uid"].to_pylist()
        is_copy = rng.random(SHARD) < 0.08
        first = np.minimum(rng.zipf(1.3, SHARD) - 1, np.arange(SHARD))
        is_copy[np.unique(first)] = False
        return {}, {
            "image_cluster": [
                uids[first[n]] if copy else uid
                for n, (uid, copy) in enumerate(zip(uids, is_copy, strict=True))
            ],
            "image_distance": np.where(is_copy, rng.integers(0, 7, SHARD), 0),
            "image_duplicate": pa.array(["near_duplicate_image"] * SHARD, mask=~is_copy),
            "image_captions": rng.integers(1, 4, SHARD),
            "caption_cluster": uids,
            "caption_images": rng.zipf(3, SHARD).clip(max=30),
        }
    if name == "select":
        phrases = rng.zipf(1.2, (SHARD, 3)).clip(max=60_000)
        return (
            {"noun_phrases": [[f"thing {n}" for n in row] for row in phrases]},
            {"selected": rng.random(SHARD) < 0.8},
        )
    if name == "caption":
        return ({"synthetic": [[text] for text in texts(rng, SHARD)]},)
    web, synthetic = rng.beta(2, 1, (2, SHARD)).astype(np.float32)
    columns = {"itm_web": web, "itm_synthetic": [[score] for score in synthetic]}
    return ({**columns, "itm_decoded": np.ones(SHARD, bool)},)


def make(root: Path, rows: int, min_itm: float = 0.5) -> tuple[Run, Plan]:
    """A run of so many rows."""
    plan, run = plan_of(root, min_itm), Run(str(root))
    rng = np.random.default_rng(0)
    images = pictures(rng)
    run.write_json({"manifest": dict(plan.manifest.source)}, "run.json")
    for shard in range(rows // SHARD):
        file = f"{shard:05d}.parquet"
        pool = pool_of(rng, shard, images)
        run.write_table(pool, "pool", file)
        for name in STAGE_NAMES[1:]:
            stage = STAGES[name]
            columns, *summaries = said(rng, name, pool)
            marks = {"uid": pool["uid"], "measured": pa.array(np.ones(SHARD, bool))}
            table = filled(stage.writes, SHARD, columns)
            own = {column: table[column] for column in table.column_names}
            if (taken := Results(run, plan).summary_digest(name, f"{shard:05d}")) is not None:
                own[DIGEST] = pa.array(taken)
            run.write_table(pa.table({**marks, **own}), *plan.folder(name), file)
            if issubclass(stage, GlobalStage):
                table = filled(stage.summary, SHARD, summaries[0])
                own = {column: table[column] for column in table.column_names}
                marks = {"uid": pool["uid"], "summarized": marks["measured"]}
                run.write_table(pa.table({**marks, **own}), *plan.summary_folder(name), file)
    for name in STAGE_NAMES:
        run.write_json({"seconds": 60.0}, *plan.folder(name), "_stage.json")
    lines = (
        json.dumps({"step": n, "loss": 9 / n, "itc": 4 / n, "lm": 3 / n}) for n in range(1, 5000)
    )
    run.write("\n".join(lines).encode(), "models", "blip", "metrics.jsonl")
    return run, plan


def opened(path: str) -> str:
    """Seconds until a page has loaded and until it is painted, medians of five."""
    if CHROMIUM is None:
        return "no chromium"
    seconds = []
    frame = "new Promise(d => requestAnimationFrame(() => setTimeout(d, 0)))"
    with tempfile.TemporaryDirectory() as profile, PageBrowser(Path(profile)) as browser:
        for _ in range(5):
            loaded = browser.visit(path)
            started = time.monotonic()
            browser.value(frame)
            seconds.append((loaded, loaded + time.monotonic() - started))
    load, paint = (statistics.median(some) for some in zip(*seconds, strict=True))
    return f"loaded in {load:.2f} s, painted in {paint:.2f} s"


def spent(since: tuple[float, float]) -> str:
    """Seconds on the clock and of the CPU since then."""
    wall, cpu = time.perf_counter() - since[0], time.process_time() - since[1]
    return f"{wall:.1f} s ({cpu:.1f} CPU-s)"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            make(Path(folder) / name, options.rows, least)
            for name, least in (("a", 0.5), ("b", 0.6))
        ]
        run, plan = runs[0]
        started = time.perf_counter(), time.process_time()
        build.write(Results(run, plan), funnel(Results(run, plan)))
        print(f"{options.rows:,} rows: report in {spent(started)}, ", end="")
        page = run.at("report", "index.html")
        print(f"{Path(page).stat().st_size / 1e6:.2f} MB, {opened(page)}")
        started = time.perf_counter(), time.process_time()
        page, _ = compare.write(*(Results(run, plan) for run, plan in runs))
        print(f"compared with another in {spent(started)}, ", end="")
        print(f"{Path(page).stat().st_size / 1e6:.2f} MB, {opened(page)}")


if __name__ == "__main__":
    main()
