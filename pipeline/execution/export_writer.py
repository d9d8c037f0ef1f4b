"""Writing an export: which images make a shard, its files, and the records on the way.

    _layout.json       how many images of each split each shard of the pool has (`LayoutRecord`)
    _parts/NAME.json   a shard of the export that is whole (`PartRecord`)
    _parts/NAME.jsonl  its entries, for formats with files over all shards
    _sha256/PATH.txt   for a shard that is a folder the SHA-256 of each file, as sha256sum prints it

They are in the folder of the export until its manifest.json is written; `_sha256` stays, so that
`verify` can name a damaged image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage.checksum import CHANGED, with_checksum_parquet
from pipeline.storage.records import (
    ExportFile,
    ExportRecord,
    ExportShard,
    LayoutRecord,
    PartRecord,
)
from pipeline.storage.run import Run, digest_of_listing, listing_of, sums_of
from stages.export import ExportStage
from stages.formats import SPLITS, Format, Shard

__all__ = ["LAYOUT", "Layout", "finish", "is_whole", "tidy", "write", "write_human"]

LAYOUT = "_layout.json"
PARTS = "_parts"

Slice = tuple[str, int, int]
"""A shard of the pool, and a range of its images of a split: start and stop."""


class Layout:
    """The shards of an export, cut from the images of each split in the order of the pool.

    A split of n images has ceil(n / size) shards, whose sizes differ by one at most.

    Args:
        shards: The shards of the pool, in order.
        counts: For each split the images in each shard of the pool.
        size: The most images in a shard of the export.
        decision: A digest of what decides what is exported.
    """

    def __init__(
        self,
        shards: Sequence[str],
        counts: Mapping[str, Sequence[int]],
        size: int,
        decision: str = "",
    ) -> None:
        self.shards = list(shards)
        self.size = size
        self.decision = decision
        self._ends = {split: np.cumsum([0, *counts[split]]) for split in counts}

    @classmethod
    def read(cls, run: Run, folder: Sequence[str], size: int) -> Layout:
        """Read the layout of an export whose images are counted."""
        record = run.read_record(LayoutRecord, *folder, LAYOUT)
        return cls(record.shards, record.images, size, record.decision)

    @property
    def all(self) -> Iterator[Shard]:
        """The shards of the export, without those of human pairs."""
        for split, ends in self._ends.items():
            for number in range(-(-int(ends[-1]) // self.size)):
                yield Shard(split=split, number=number)

    def parts(self, shard: str) -> Iterator[tuple[Shard, list[Slice]]]:
        """Yield the shards of the export that begin in a shard of the pool, with their slices.

        Over all calls, each shard of the pool is read once for each split, and at most once more
        for a shard of the export that begins in an earlier one.
        """
        position = self.shards.index(shard)
        for split, ends in self._ends.items():
            total = int(ends[-1])
            number = -(-total // self.size)
            cuts = [index * total // number for index in range(number + 1)] if number else []
            first, last = np.searchsorted(cuts[:-1], ends[position : position + 2])
            for index in range(int(first), int(last)):
                slices = list(self._slices(position, ends, cuts[index], cuts[index + 1]))
                yield Shard(split=split, number=index), slices

    def _slices(self, position: int, ends: Any, start: int, stop: int) -> Iterator[Slice]:
        while start < stop:
            low, high = int(ends[position]), int(ends[position + 1])
            if start < high:
                yield self.shards[position], start - low, min(stop, high) - low
                start = min(stop, high)
            position += 1


def is_whole(run: Run, folder: Sequence[str], form: Format, shard: Shard, decision: str) -> bool:
    """Whether a shard of an unfinished export is whole and belongs to a decision."""
    part = (*folder, PARTS, f"{form.stem(shard)}.json")
    record = run.find_record(PartRecord, *part)
    return record is not None and record.decision == decision


def write(
    run: Run, folder: Sequence[str], form: Format, shard: Shard, pairs: pa.Table, decision: str
) -> ExportShard:
    """Write a shard, and last the record that says that it is whole."""
    hashes: dict[str, str] = {}
    for path, content in form.files(shard, pairs):
        if path.endswith(".parquet"):
            content = b"".join(with_checksum_parquet(content))
        run.write(content, *folder, *path.split("/"))
        hashes[path] = hashlib.sha256(content).hexdigest()
    path, stem, entries = form.path(shard), form.stem(shard), None
    is_folder = path not in hashes
    if is_folder:
        run.write(listing_of(hashes), *folder, *sums_of(path))
    written = ExportShard(
        name=path,
        split=shard.split,
        rows=pairs.num_rows,
        sha256=digest_of_listing(hashes) if is_folder else hashes[path],
        pairs=_tally(pairs["caption_source"]),
        sources=_tally(pairs["source"]),
        images=pc.count_distinct(pairs["uid"]).as_py(),
    )
    if form.has_index:
        lines = "\n".join(json.dumps(e, ensure_ascii=False) for e in form.entries(shard, pairs))
        run.write(lines.encode(), *folder, PARTS, f"{stem}.jsonl")
        entries = hashlib.sha256(lines.encode()).hexdigest()
    part = PartRecord(shard=written, entries=entries, decision=decision)
    run.write_record(part, *folder, PARTS, f"{stem}.json")
    return written


def write_human(
    run: Run, folder: Sequence[str], export: ExportStage, decision: str
) -> Iterator[Shard]:
    """Write the human pairs of an export, and yield their shards."""
    form = export.format
    for shard, pairs in export.human_pairs():
        if not is_whole(run, folder, form, shard, decision):
            write(run, folder, form, shard, pairs, decision)
        yield shard


def finish(
    run: Run,
    folder: Sequence[str],
    export: ExportStage,
    shards: Iterable[Shard],
    name: str,
    decision: str,
) -> ExportRecord:
    """Write the lists of an export whose shards are all whole.

    Args:
        run: The run.
        folder: The folder of the export.
        export: The stage.
        shards: All shards of the export.
        name: The name of the manifest.
        decision: A digest of what decides what is exported.

    Returns:
        Its manifest.json, without documents and card.
    """
    form = export.format
    names = sorted(f"{form.stem(shard)}.json" for shard in shards)
    records = run.each(lambda name: run.read_record(PartRecord, *folder, PARTS, name), names)
    parts = dict(zip(names, records, strict=True))
    written = [part.shard for part in parts.values()]
    splits = {split: sum(s.images for s in written if s.split == split) for split in SPLITS}
    files = [ExportFile(**shard.model_dump()) for shard in written]
    if form.has_index:
        entries = {
            split: [
                line
                for part_name, part in parts.items()
                if part.shard.split == split
                for line in _entries(run, (*folder, PARTS, f"{part_name}l"), part.entries)
            ]
            for split in SPLITS
        }
        there = {split: lines for split, lines in entries.items() if lines}
        for split, file, content in form.index(there):
            run.write(content, *folder, *file.split("/"))
            sha256 = hashlib.sha256(content).hexdigest()
            files.append(ExportFile(name=file, split=split, sha256=sha256))
    return ExportRecord(
        name=name,
        decision=decision,
        format=form.name,
        pairs=_sum(shard.pairs for shard in written),
        sources=_sum(shard.sources for shard in written),
        images=sum(splits.values()),
        splits={split: number for split, number in splits.items() if number},
        files=sorted(files, key=lambda file: file.name),
        notices=export.notices.lines(),
    )


def _entries(run: Run, path: Sequence[str], digest: str | None) -> list[bytes]:
    """The lines of a shard in the list of its split."""
    content = run.read(*path)
    if hashlib.sha256(content).hexdigest() != digest:
        raise run.damaged(CHANGED, *path)
    return content.split(b"\n")  # JSON escapes others


def tidy(run: Run, folder: Sequence[str]) -> None:
    """Remove what only the writing of an export needs: records, and files of killed workers."""
    if run.is_local:
        for path in run.fs.find(run.at(*folder)):
            if path.endswith(".partial"):
                run.fs.rm(path)
    run.remove(*folder, PARTS)
    run.remove(*folder, LAYOUT)


def _tally(values: Any) -> dict[str, int]:
    counts: Any = values.combine_chunks().drop_null().value_counts().to_pylist()
    return {count["values"]: count["counts"] for count in counts}


def _sum(tallies: Iterable[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for tally in tallies:
        for key, number in tally.items():
            total[key] = total.get(key, 0) + number
    return total
