"""Numbers that set an image apart from the others: its light, sharpness, shape and distance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.embedding.vectors import Float32s, blocks
from pipeline.results.sampling import RowLocation
from pipeline.results.verdicts import Results
from stages.base import Floats, floats
from stages.embed import EmbedStage, vectors

__all__ = ["ISOLATION", "MOST", "image_numbers", "isolation"]

LUMA_SIDE = 32
"""Side of the grid of brightness that clean and dedup store of each image."""

ISOLATION = "isolation"

MOST = 10_000
"""Images among which neighbours are looked for; of a larger run, so many drawn by the seed."""

ROWS = 2048
"""Images that are compared with all others at a time."""


def image_numbers(pool: pa.Table, tables: Mapping[str, pa.Table]) -> dict[str, Floats]:
    """The numbers of n images, NaN where one is not known.

    Args:
        pool: n rows with original_width and original_height.
        tables: What the stages measured of these rows, by stage.

    Returns:
        aspect, the width divided by the height; and where clean or dedup has measured brightness,
        the mean of 0 to 255, and sharpness, the variance of the Laplacian of a 32 x 32 thumbnail.
    """
    width, height = (floats(pool[f"original_{side}"]) for side in ("width", "height"))
    with np.errstate(divide="ignore", invalid="ignore"):
        aspect = np.where(height > 0, width / height, np.nan)
    numbers = {"aspect": aspect}
    for table in tables.values():
        if "image_luma" in table.column_names:
            for name, values in _light(table["image_luma"]).items():
                numbers[name] = np.fmax(numbers.get(name, values), values)
    return numbers


def _light(column: Any) -> dict[str, Floats]:
    grids = column.combine_chunks()
    there = np.asarray(grids.is_valid())
    luma = np.frombuffer(b"".join(grids.drop_null().to_pylist()), np.uint8).astype(np.float64)
    luma = luma.reshape(-1, LUMA_SIDE, LUMA_SIDE)
    around = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
    laplacian = around - 4 * luma[:, 1:-1, 1:-1]
    numbers = {"brightness": luma.mean((1, 2)), "sharpness": laplacian.var((1, 2))}
    found = {name: np.full(len(there), np.nan) for name in numbers}
    for name, values in numbers.items():
        found[name][there] = values
    return found


def isolation(results: Results, locations: Iterable[RowLocation]) -> dict[RowLocation, float]:
    """How far each image is from the nearest other one, as 1 minus the cosine of embeddings.

    Args:
        results: The results of a run.
        locations: The images to compare, each with all others.

    Returns:
        The distance, from 0 for a copy to 2; without the rows that have no embedding, and empty if
        the run has none or there is no other image.
    """
    by_shard: defaultdict[str, list[int]] = defaultdict(list)
    for location in locations:
        by_shard[location.shard].append(location.row)
    places: list[RowLocation] = []
    parts: list[Float32s] = []
    for shard, wanted in sorted(by_shard.items()):
        embeddings, has = _embeddings(results, shard)
        position = np.cumsum(has) - 1
        rows = [row for row in sorted(wanted) if row < len(has) and has[row]]
        if rows:
            places += [RowLocation(shard, row) for row in rows]
            parts.append(embeddings[position[rows]].astype(np.float32))
    if len(places) < 2:
        return {}
    units = np.concatenate(parts)
    units /= np.maximum(np.linalg.norm(units, axis=1, keepdims=True), 1e-12)
    nearest = np.empty(len(units), np.float32)
    for part in blocks(len(units), ROWS):
        cosines = units[part] @ units.T
        own = np.arange(part.start, part.stop)
        cosines[own - part.start, own] = -np.inf
        nearest[part] = cosines.max(axis=1)
    distances = np.maximum(1 - nearest, 0)
    return dict(zip(places, distances.tolist(), strict=True))


def _embeddings(
    results: Results, shard: str
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.bool_]]:
    """The embeddings of the images of a shard, and which of its rows have one."""
    nothing = np.zeros((0, 1), np.float16), np.zeros(0, bool)
    plan = results.plan
    if EmbedStage.name not in plan.names:
        return nothing
    path = (*plan.folder(EmbedStage.name), f"{shard}.parquet")
    if not results.run.exists(*path):
        return nothing
    return vectors(results.run.read_table(*path, columns=["image_embedding"])["image_embedding"])
