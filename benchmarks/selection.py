"""Noun phrases a second beside plain spaCy with the same pipeline, and select over many rows.

    export OMP_NUM_THREADS=1
    python -m benchmarks.selection DATA --model PIPELINE
    python -m benchmarks.selection --rows 10000000

The first reads `alttext/*.parquet` and `multi30k/train.1.en.gz` in DATA; `plain` is
`nlp.pipe` with its defaults and `doc.noun_chunks`. With one thread, seconds and CPU-seconds are
near. The second draws rows whose phrases follow Zipf's law and chooses among them
in this process.
"""

from __future__ import annotations

import argparse
import gzip
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import spacy

from models.text.noun_phrases import NounPhrases
from stages.select import SelectConfig, SelectStage

SHARD = 10_000
ROUNDS = 3


def captions(folder: Path, number: int) -> dict[str, list[str]]:
    """Raw alt-text of the web, and clean captions that people wrote."""
    table = pq.read_table(next((folder / "alttext").glob("*.parquet")), columns=["TEXT"])
    web = [text for text in table["TEXT"].to_pylist() if text]
    with gzip.open(folder / "multi30k" / "train.1.en.gz", "rt", encoding="utf-8") as file:
        human = [line.strip() for line in file]
    return {"alt-text": web[:number], "captions": human[:number]}


def compare(model: str, folder: Path, number: int) -> None:
    nlp = spacy.load(model)

    def plain(texts: list[str]) -> list[list[str]]:
        return [
            list(dict.fromkeys(" ".join(chunk.text.split()).lower() for chunk in doc.noun_chunks))
            for doc in nlp.pipe(texts)
        ]

    extract = NounPhrases(model)
    contenders: dict[str, Callable[[list[str]], list[list[str]]]] = {
        "plain": plain,
        "capfilt": extract,
    }
    print(f"plain runs {', '.join(nlp.pipe_names)}; capfilt {', '.join(extract.nlp.pipe_names)}")
    for kind, texts in captions(folder, number).items():
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
        found: dict[str, Any] = {}
        for call in contenders.values():
            call(texts[:200])
        for _ in range(ROUNDS):
            for name, call in contenders.items():
                wall, cpu = time.perf_counter(), time.process_time()
                found[name] = call(texts)
                seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        differ = sum(a != b for a, b in zip(found["plain"], found["capfilt"], strict=True))
        print(f"{kind}: {len(texts)} of them, {len(set(texts))} distinct; {differ} outputs differ")
        median = {
            name: [statistics.median(column) for column in zip(*rounds, strict=True)]
            for name, rounds in seconds.items()
        }
        for name, (wall, cpu) in median.items():
            rates = f"{len(texts) / wall:8.0f} a second {len(texts) / cpu:8.0f} a CPU-second"
            print(f"  {name:8} {rates}   x{median['plain'][1] / cpu:.2f} a CPU-second")


def shards(rows: int, phrases: int) -> Iterator[pa.Table]:
    """Rows of one to five phrases out of many, drawn by Zipf's law, as select measures them."""
    rng = np.random.default_rng(0)
    for start in range(0, rows, SHARD):
        n = min(SHARD, rows - start)
        lengths = rng.integers(1, 6, n)
        # The continuous law of exponent 1 over ranks 1 to `phrases`, rank by rank.
        ranks = np.exp(rng.random(lengths.sum()) * np.log(phrases)).astype(np.int64)
        texts = pa.array(np.char.add("the noun phrase ", ranks.astype(str)), pa.string())
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        lists = pa.ListArray.from_arrays(offsets, texts)
        uids = [f"{a:016x}{b:016x}" for a, b in rng.integers(0, 2**63, (n, 2)).tolist()]
        yield pa.table({"uid": uids, "noun_phrases": lists, "score": rng.random(n)})


def scale(rows: int, phrases: int, method: str) -> None:
    sizes: dict[str, Any] = {"random": {"fraction": 0.1}, "top_fraction": {"fraction": 0.1}}
    if method == "top_fraction":
        sizes["top_fraction"]["score"] = "itm_web"
    stage = SelectStage(SelectConfig(method=method, **sizes.get(method, {})))  # type: ignore[arg-type]
    drawing = 0.0

    def timed() -> Iterator[pa.Table]:
        nonlocal drawing
        tables = shards(rows, phrases)
        while True:
            started = time.perf_counter()
            table = next(tables, None)
            drawing += time.perf_counter() - started
            if table is None:
                return
            yield table

    started = time.perf_counter()
    summary = stage.summarize(timed())
    seconds = time.perf_counter() - started - drawing
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    chosen = summary["selected"].to_numpy().sum()
    print(f"{method}: {rows:,} rows, {chosen:,} chosen, {seconds:.1f} s, peak {peak:.2f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--model", default="en_core_web_sm")
    parser.add_argument("--captions", type=int, default=5000, help="of each kind")
    parser.add_argument("--rows", type=int, help="choose among this many rows")
    parser.add_argument("--phrases", type=int, default=20_000_000, help="to draw from")
    parser.add_argument("--method", default="noun_phrases")
    options = parser.parse_args()
    versions = ("spacy", "thinc", "blis", "numpy", "pyarrow")
    print(", ".join(f"{name} {metadata.version(name)}" for name in versions))
    if options.rows is not None:
        scale(options.rows, options.phrases, options.method)
    if options.folder is not None:
        compare(options.model, options.folder, options.captions)


if __name__ == "__main__":
    main()
