"""The table of verdicts: every row of the pool with the stage and the reason that rejected it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq

from pipeline.results.verdicts import KEPT, Judgement, Results
from stages.clean import CleanStage
from stages.filter import KINDS, FilterConfig, FilterStage

__all__ = ["verdict_tables", "write_verdicts"]

FIRED = pa.field("clean_fired", pa.int64(), metadata={"bits": ",".join(CleanStage.reasons)})


def verdict_tables(results: Results, shards: Sequence[str]) -> Iterator[pa.Table]:
    """Yield the verdict on every row, one table for each shard.

    Yields:
        uid, source, url, caption, stage (the first that rejected the row, or `kept`), reason; if
        clean is a stage, also clean_fired, the rules of clean that fired on the row as a bitmask:
        bit i is the i-th reason of clean, as listed in the field's metadata. If the filter judges
        sentences, also filter_sentences, a JSON list of the sentences of the row: source (web,
        further or synthetic), text (its number among those of the source), sentence, itm, clip,
        kept; null if every text was judged as a whole.
    """
    names = results.plan.names
    for shard in shards:
        judgement = results.judge(shard)
        table = results.run.read_table(
            "pool", f"{shard}.parquet", columns=["uid", "source", "url", "caption"]
        )
        stages = np.full(len(judgement.uids), KEPT, dtype=object)
        reasons: Any = pa.nulls(len(judgement.uids), pa.string())
        for name in names:
            rejected = judgement.reasons[name].is_valid().to_numpy(zero_copy_only=False)
            stages[rejected] = name
            reasons = pc.coalesce(reasons, judgement.reasons[name])
        table = table.append_column("stage", pa.array(stages, pa.string()))
        table = table.append_column("reason", reasons)
        if CleanStage.name in names:
            table = table.append_column(FIRED, _fired(results, judgement))
        config = results.plan.manifest.stages.get(FilterStage.name)
        if isinstance(config, FilterConfig) and config.unit == "sentence":
            table = table.append_column("filter_sentences", _sentences(results, judgement))
        yield table


def _fired(results: Results, judgement: Judgement) -> Any:
    """The rules of clean that fired on each of n rows, null for rows that it has not measured."""
    measured = judgement.measured[CleanStage.name]
    table = judgement.tables.get(CleanStage.name)
    if table is None:
        return pa.nulls(len(measured), pa.int64())
    stage: Any = results.plan.stage(CleanStage.name)
    bits = pa.array(stage.fired(table.filter(pa.array(measured))), pa.int64())
    return bits.take(pa.array(np.cumsum(measured) - 1, mask=~measured))


def _sentences(results: Results, judgement: Judgement) -> Any:
    """The sentences of each of n rows that the filter judged, as JSON; null for rows without."""
    measured = judgement.measured[FilterStage.name]
    table = judgement.tables.get(FilterStage.name)
    entries: list[list[dict[str, Any]]] = [[] for _ in measured]
    if table is not None:
        table = table.filter(pa.array(measured))
        keeps = results.kept_texts(table)
        rows = np.flatnonzero(measured).tolist()
        for kind in KINDS:
            sentences = table[f"sentences_{kind}"].to_pylist()
            kept = keeps[f"sentences_kept_{kind}"].to_pylist()
            for row, own, flags in zip(rows, sentences, kept, strict=True):
                texts = (
                    [(own, flags)] if kind == "web" else zip(own or (), flags or (), strict=True)
                )
                entries[row] += [
                    {
                        "source": kind,
                        "text": number,
                        "sentence": sentence["text"].strip(),
                        "itm": sentence["itm"],
                        "clip": sentence["clip"],
                        "kept": is_kept,
                    }
                    for number, (parts, parts_kept) in enumerate(texts)
                    for sentence, is_kept in zip(parts or (), parts_kept or (), strict=True)
                ]
    lists = [json.dumps(own, ensure_ascii=False) if own else None for own in entries]
    return pa.array(lists, pa.string())


def write_verdicts(results: Results, out: str) -> int:
    """Write the tables of `verdict_tables` for the whole pool into one file.

    URLs are written whole, so that they can be fetched. In csv, a text that a spreadsheet would
    run as a formula gets a ' in front.

    Args:
        results: The results of a run.
        out: A local file; its ending selects parquet, csv or jsonl.

    Returns:
        The number of rows.

    Raises:
        ValueError: The ending is none of these, or the run has no pool.
    """
    kind = out.rsplit(".", 1)[-1]
    if kind not in ("parquet", "csv", "jsonl"):
        raise ValueError(f"--out {out}: end the name in .parquet, .csv or .jsonl")
    shards = results.run.shards("pool")
    if not shards:
        raise ValueError(f"{results.run.root}: nothing is downloaded yet; `capfilt run` it first")
    rows = 0
    writer: Any = None
    with open(out, "wb") as file:
        for table in verdict_tables(results, shards):
            rows += table.num_rows
            if kind == "jsonl":
                for row in table.to_pylist():
                    file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
                continue
            if writer is None:
                make = pq.ParquetWriter if kind == "parquet" else pc_csv.CSVWriter
                writer = make(file, table.schema)
            writer.write_table(_without_formulas(table) if kind == "csv" else table)
        if writer is not None:
            writer.close()
    return rows


def _without_formulas(table: pa.Table) -> pa.Table:
    """Prefix with ' the texts that a spreadsheet would run as formulas (CWE-1236)."""
    for index, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            texts: Any = pc.replace_substring_regex(
                table.column(index),
                pattern="^([=+@\\t\\r\\n\uff1d\uff0b\uff0d\uff20-])",
                replacement=r"'\1",
            )
            table = table.set_column(index, field, texts)
    return table
