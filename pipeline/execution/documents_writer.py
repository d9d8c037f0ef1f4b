"""Writing interleaved documents: sequences as JSON Lines, their images as Parquet.

documents/00000.jsonl            uid, url, text with <image> and <EOC>, images (uids), tokens
documents/images-00000.parquet   uid, image, width, height of the images that this shard names
documents/verdicts.parquet       uid, url, images, live_images, reason for each line of the lists
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from models.errors import ConservationError
from pipeline.results.verdicts import Results
from pipeline.storage.records import DocumentsRecord
from stages import sources
from stages.documents import Document, Documents, Excerpt
from stages.download import DownloadStage
from stages.redaction import redacted
from stages.schema import PAIRS, uid_of

__all__ = ["write"]

ROWS_A_GROUP = 100
"""Images of a row group, so that a training reads some of a file and not the whole."""

IMAGES = pa.schema([PAIRS.field(name) for name in ("uid", "image", "width", "height")])
_VERDICTS: dict[str, pa.DataType] = {
    "uid": pa.string(),
    "url": pa.string(),
    "images": pa.int32(),
    "live_images": pa.int32(),
    "reason": pa.string(),
}
VERDICTS = pa.schema(_VERDICTS)


def write(results: Results, name: str, shards: Sequence[str], at: Sequence[str]) -> DocumentsRecord:
    """Write the documents of an export.

    Memory holds 24 bytes for each live image of the pool, and one shard of documents with images.

    Args:
        results: The results of the run.
        name: The export.
        shards: The shards of the pool.
        at: The folder that the export is written in.

    Returns:
        The record for the export's manifest. `rows = kept + sum(reasons)`.
    """
    run, plan = results.run, results.plan
    config = plan.export(name).config.documents
    if config is None:
        raise ValueError(f"{name}: the manifest asks for no documents")
    source: Any = plan.manifest.stages[DownloadStage.name]
    judged, images = Documents(config), _Images(results, name, shards)
    folder = (*at, "documents")
    reasons: Counter[str] = Counter()
    verdicts: list[dict[str, Any]] = []
    waiting: list[tuple[Document, Excerpt]] = []
    files: dict[str, str] = {}

    def flush() -> None:
        if not waiting:
            return
        lines, number = [], f"{len(files) // 2:05d}"  # each shard is two files
        for document, excerpt in waiting:
            line = {
                "uid": document.uid,
                "url": redacted(document.url),
                "text": excerpt.text,
                "images": excerpt.images,
                "tokens": excerpt.tokens,
            }
            lines.append(json.dumps(line, ensure_ascii=False))
        uids = dict.fromkeys(uid for _, excerpt in waiting for uid in excerpt.images)
        beside = f"images-{number}.parquet"
        run.write_table(images.table(list(uids)), *folder, beside, rows_a_group=ROWS_A_GROUP)
        files[beside] = run.sha256(*folder, beside)
        content = ("\n".join(lines) + "\n").encode()
        run.write(content, *folder, f"{number}.jsonl")
        files[f"{number}.jsonl"] = hashlib.sha256(content).hexdigest()
        waiting.clear()

    for document in sources.pages(source):
        urls = document.images if document else []
        live = {url: images.live(url) for url in urls}.get
        reason = judged.judge(document, live)
        verdicts.append(
            {
                "uid": document.uid if document else None,
                "url": redacted(document.url) if document else None,
                "images": len(urls),
                "live_images": sum(live(url) is not None for url in urls),
                "reason": reason,
            }
        )
        if document is None or reason is not None:
            reasons[str(reason)] += 1
            continue
        waiting.append((document, judged.cut(document, live)))
        if len(waiting) == config.shard_size:
            flush()
    flush()
    run.write_table(pa.Table.from_pylist(verdicts, VERDICTS), *folder, "verdicts.parquet")
    return DocumentsRecord(
        rows=len(verdicts),
        kept=len(verdicts) - reasons.total(),
        reasons=dict(reasons.most_common()),
        files=files,
    )


class _Images:
    """The images of the pool that no stage rejected, found by the uid of their row."""

    def __init__(self, results: Results, name: str, shards: Sequence[str]) -> None:
        self.run = results.run
        self.shards = list(shards)
        uids: list[bytes] = []
        positions: list[tuple[int, int]] = []
        for number, shard in enumerate(shards):
            judgement = results.judge(shard, results.plan.judges(name))
            for row in np.flatnonzero(judgement.live):
                uids.append(bytes.fromhex(str(judgement.uids[int(row)])))
                positions.append((number, int(row)))
        keys = np.array(uids, "S16") if uids else np.zeros(0, "S16")
        order = np.argsort(keys)
        self._keys = keys[order]
        self._positions = np.array(positions, np.int32).reshape(-1, 2)[order]
        self._shard = functools.lru_cache(maxsize=4)(self._read)

    def live(self, url: str) -> str | None:
        """The uid of the live row with the URL of an image; None if there is none."""
        uid = uid_of(url, None)
        return None if self._find(uid) is None else uid

    def table(self, uids: Sequence[str]) -> pa.Table:
        """Read images as rows of `IMAGES`."""
        return pa.Table.from_pylist(list(self._rows(uids)), IMAGES)

    def _rows(self, uids: Sequence[str]) -> Iterator[dict[str, Any]]:
        for uid in uids:
            if (position := self._find(uid)) is None:
                raise ConservationError(f"documents: no row of the pool has the uid {uid}")
            shard, row = position
            values = self._shard(shard).slice(row, 1).to_pylist()[0]
            image = {"bytes": values.pop("image"), "path": None}
            yield {"uid": uid, "image": image, **values}

    def _read(self, shard: int) -> pa.Table:
        columns = ["image", "width", "height"]
        return self.run.read_table("pool", f"{self.shards[shard]}.parquet", columns=columns)

    def _find(self, uid: str) -> tuple[int, int] | None:
        """The number of the shard of a live row, and its index there; None if it is not live."""
        key = bytes.fromhex(uid)
        at = int(np.searchsorted(self._keys, np.bytes_(key)))
        # numpy drops zero bytes at the end of what it returns.
        if at == len(self._keys) or self._keys[at].ljust(len(key), b"\0") != key:
            return None
        shard, row = self._positions[at]
        return int(shard), int(row)
