"""Writing the embeddings of exported rows, in the layout of clip-retrieval.

embeddings/img_emb/img_emb_00000.npy            (n, d) float16, a row for each image
embeddings/text_emb/text_emb_00000.npy          the same of their web captions, NaN without one
embeddings/metadata/metadata_00000.parquet      uid, url and caption of these rows
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.results.verdicts import Results
from pipeline.storage.run import Run
from stages.embed import EmbedStage, vectors
from stages.redaction import redacted

__all__ = ["FOLDER", "digests", "write"]

FOLDER = "embeddings"
"""Where they lie in the folder of an export."""

FILES = {"image_embedding": "img_emb", "text_embedding": "text_emb"}
METADATA = "metadata"


def write(results: Results, folder: Sequence[str], shard: str, uids: Any) -> None:
    """Write the embeddings of some rows of a shard of the pool, if there are any.

    Args:
        results: The results of the run.
        folder: The folder of the export.
        shard: The shard.
        uids: The rows that the export writes, in the order of the shard.
    """
    run, plan = results.run, results.plan
    path = (*plan.folder(EmbedStage.name), f"{shard}.parquet")
    table = run.read_table(*path, columns=["uid", *FILES])
    is_written = pc.is_in(table["uid"], uids.combine_chunks())
    table = table.filter(is_written)
    if not table.num_rows:
        return
    for column, name in FILES.items():
        found, has = vectors(table[column])
        if has.any():
            whole = np.full((table.num_rows, found.shape[1]), np.nan, np.float16)
            whole[has] = found
            buffer = io.BytesIO()
            np.save(buffer, whole, allow_pickle=False)
            run.write(buffer.getvalue(), *folder, FOLDER, name, f"{name}_{shard}.npy")
    pool = run.read_table("pool", f"{shard}.parquet", columns=["uid", "url", "caption"])
    pool = pool.filter(pc.is_in(pool["uid"], table["uid"].combine_chunks()))
    urls: Any = pa.array([url and redacted(url) for url in pool["url"].to_pylist()], pa.string())
    rows = pa.table({"uid": pool["uid"], "url": urls, "caption": pool["caption"]})
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, compression="zstd", compression_level=3)
    run.write(buffer.getvalue(), *folder, FOLDER, METADATA, f"{METADATA}_{shard}.parquet")


def digests(run: Run, folder: Sequence[str]) -> dict[str, str]:
    """The SHA-256 of each file of embeddings of an export, by its path under `FOLDER`."""
    paths = [path for path in run.files(*folder, FOLDER) if not path.endswith(".partial")]
    return {path: run.sha256(*folder, FOLDER, *path.split("/")) for path in sorted(paths)}
