"""Search: the rows of a run whose images are most like a text or an image, by their embeddings."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from models.embedding.vectors import Float32s, top
from models.errors import InputError
from models.weights import folder_of
from pipeline.results.verdicts import KEPT, Results
from stages.download import DownloadStage
from stages.embed import EmbedConfig, EmbedStage, vectors
from stages.redaction import redacted

__all__ = ["Found", "Which", "embed_query", "search"]

Which = Literal["any", "kept", "rejected"]


@dataclass(frozen=True, kw_only=True)
class Found:
    """A row that a search found.

    Attributes:
        uid: The uid.
        cosine: Cosine of its image with the query.
        verdict: `kept`, or the stage and the reason that rejected it.
        caption: The web caption.
        url: The URL, secrets hidden.
        shard: The shard of the pool.
        row: Its position in the shard.
    """

    uid: str
    cosine: float
    verdict: str
    caption: str | None
    url: str
    shard: str
    row: int

    def plain(self) -> dict[str, Any]:
        """Convert to the values that `--json` prints."""
        return dataclasses.asdict(self)


def embed_query(results: Results, query: str) -> Float32s:
    """Embed a text, or the image at a path, by the model of the run.

    Raises:
        InputError: The run has no embeddings, the image cannot be decoded, or the model reads no
            texts.
    """
    from models.inference.protocols import Ranks
    from models.inference.vision_tower import load_image_embedder

    config = results.plan.manifest.stages.get(EmbedStage.name)
    if not isinstance(config, EmbedConfig):
        raise InputError(
            "the run has no embeddings to search; add the stage embed to the manifest and give "
            "`capfilt run` again"
        )
    model = load_image_embedder(folder_of(config.model), **config.placement())
    if Path(query).is_file():
        (found,) = model.embed_each([Path(query).read_bytes()])
        if found is None:
            raise InputError(f"{query}: no image that can be decoded")
        return np.asarray(found, np.float32)
    if not isinstance(model, Ranks):
        raise InputError(
            f"{query!r} is no file, and {config.model}, which embedded the images, reads no texts: "
            "give the path of an image"
        )
    return np.asarray(model.embed_texts([query])[0].cpu(), np.float32)


def search(results: Results, query: Float32s, number: int, which: Which = "any") -> list[Found]:
    """Find the rows most like an embedding, exactly; memory holds the embeddings of one shard.

    Args:
        results: The results of the run.
        query: (d,) a unit vector of the model of the run.
        number: Maximum number of rows.
        which: Which rows are searched: those that were kept, those that were rejected, or any.

    Returns:
        The rows with the highest cosines, the highest first.
    """
    run, plan = results.run, results.plan
    found: list[tuple[float, str, int]] = []
    for shard in run.shards(*plan.folder(EmbedStage.name)):
        path = (*plan.folder(EmbedStage.name), f"{shard}.parquet")
        embeddings, has = vectors(run.read_table(*path, columns=["image_embedding"])[0])
        if which != "any" and has.any():
            live = results.judge(shard).live
            wanted = live if which == "kept" else ~live
            embeddings, has = embeddings[wanted[has]], has & wanted
        rows = np.flatnonzero(has)
        if not len(rows):
            continue
        places, cosines = top(query, embeddings, number)
        cosine_of = zip(cosines.tolist(), rows[places].tolist(), strict=True)
        found += [(cosine, shard, row) for cosine, row in cosine_of]
        found = sorted(found, key=lambda one: (-one[0], *one[1:]))[:number]
    return [_describe(results, *one) for one in found]


def _describe(results: Results, cosine: float, shard: str, row: int) -> Found:
    columns = ["uid", "url", "caption"]
    pool = results.run.read_table("pool", f"{shard}.parquet", columns=columns)
    uid, url, caption = (pool[name][row].as_py() for name in columns)
    judgement = results.judge(shard)
    verdict = KEPT
    for name in results.plan.names:
        reason = judgement.reasons[name][row].as_py()
        if reason is not None:
            verdict = reason if name == DownloadStage.name else f"{name}: {reason}"
            break
    return Found(
        uid=uid,
        cosine=round(cosine, 4),
        verdict=verdict,
        caption=caption,
        url=redacted(url),
        shard=shard,
        row=row,
    )
