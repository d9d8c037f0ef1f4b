from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers import runs
from helpers.fakes import painting

from models.errors import ManifestError
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
from pipeline.results.verdicts import Results
from stages.dedup import DedupConfig, DedupStage
from stages.dedup.semantic import SUMMARY
from stages.embed import EMBEDDING
from stages.schema import POOL, uid_of


def picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    painting(seed).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = [picture(seed) for seed in range(6)]


def at(degrees: float) -> list[float]:
    """A unit vector in the plane."""
    return [float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees)))]


def table(rows: Sequence[tuple[int, float | None, str, int]], **settings: Any) -> pa.Table:
    """The verdicts on rows of (picture, angle of its embedding, caption, width)."""
    pool = pa.Table.from_pylist(
        [
            {
                **dict.fromkeys(POOL.names),
                "uid": uid_of(f"http://a/{number}", caption),
                "source": "web",
                "url": f"http://a/{number}",
                "caption": caption,
                "repeats": 0,
                "status": "success",
                "image": PICTURES[picture],
                "original_width": width,
                "original_height": 100,
                "sha256": f"{picture + 1:x}" * 64,
            }
            for number, (picture, _, caption, width) in enumerate(rows)
        ],
        schema=POOL,
    )
    stage = DedupStage(DedupConfig(**settings))
    found = stage.annotate(pool).add_column(0, "uid", pool["uid"])
    given = found
    if stage.config.pooled:
        angles = [None if angle is None else at(angle) for _, angle, _, _ in rows]
        given = found.append_column("image_embedding", pa.array(angles, EMBEDDING))
    cut = len(rows) // 2
    summary = stage.summarize(iter([given[:cut], given[cut:]]))
    assert summary["uid"].equals(pool["uid"])
    assert summary.drop_columns("uid").schema.equals(stage.summary)
    for name in stage.summary.names:
        found = found.append_column(name, summary[name])
    return found.append_column("reason", stage.judge(found))


def test_the_best_row_of_each_scene_stays_and_the_others_name_it() -> None:
    found = table(
        [
            (0, 0.0, "a kite over the sea", 300),
            (1, 10.0, "the same kite once more", 900),
            (2, 25.0, "a kite that comes down", 200),
            (3, 90.0, "a house", 100),
        ],
        semantic=float(np.cos(np.radians(16))),
    )
    # The second is the largest. The third is near it, the first too; in no chain.
    assert found["reason"].to_pylist() == ["semantic_copy", None, "semantic_copy", None]
    uids = found["uid"].to_pylist()
    assert found["semantic_nearest"].to_pylist() == [uids[1], None, uids[1], uids[1]]
    cosines = np.cos(np.radians([10, 15, 80]))
    assert found["semantic_cosine"].drop_null().to_pylist() == pytest.approx(cosines, abs=2e-3)
    assert found["semantic_copy"].to_pylist() == [True, False, True, False]
    assert found["further_captions"].to_pylist()[1] == []


def test_no_chains_form() -> None:
    found = table(
        [(0, 0.0, "one", 900), (1, 12.0, "two", 800), (2, 24.0, "three", 700)],
        semantic=float(np.cos(np.radians(16))),
    )
    assert found["reason"].to_pylist() == [None, "semantic_copy", None]


def test_a_row_that_is_rejected_otherwise_makes_no_copy_of_another() -> None:
    rows: list[tuple[int, float | None, str, int]] = [
        (0, 0.0, "buy now", 900),
        (1, 90.0, "buy now", 900),
        (2, 0.0, "a kite over the sea", 100),
        (3, None, "no embedding", 100),
        (4, 1.0, "a kite over the sea again", 50),
        (4, 1.0, "the same file", 40),
    ]
    found = table(rows, semantic=0.99, max_images_per_caption=1)
    assert found["reason"].to_pylist() == [
        "boilerplate_caption",
        "boilerplate_caption",
        None,
        None,
        "semantic_copy",
        "duplicate_image",
    ]
    assert found["semantic_copy"].to_pylist() == [None, None, False, None, True, None]


def test_without_it_nothing_is_compared_and_no_setting_has_changed() -> None:
    found = table([(0, 0.0, "one", 900), (1, 0.0, "two", 800)])
    assert found["reason"].to_pylist() == [None, None]
    assert all(found[name].null_count == 2 for name in SUMMARY)
    assert "semantic" not in DedupConfig().settings()
    assert DedupConfig(semantic=0.9).settings()["semantic"] == 0.9
    assert DedupConfig(semantic=0.9).measurement() == DedupConfig().measurement()
    assert DedupStage(DedupConfig()).min_cosine is None
    assert DedupStage(DedupConfig(semantic=0.9)).min_cosine == 0.9


def test_the_nearest_rows_to_the_threshold_are_known() -> None:
    found = table([(0, 0.0, "one", 900), (1, 30.0, "two", 800)], semantic=0.95)
    stage = DedupStage(DedupConfig(semantic=0.95))
    cutoff = {one.reason: one for one in stage.cutoffs(found)}["semantic_copy"]
    assert cutoff.limit == 0.95 and np.isnan(cutoff.values[0])
    assert cutoff.values[1] == pytest.approx(np.cos(np.radians(30)), abs=2e-3)


def test_summaries_of_older_versions_are_read_without_these_columns(tmp_path: Path) -> None:
    plan = Plan(runs.manifest(tmp_path, ("download", "clean", "dedup"), export=False))
    run = runs.make_run(tmp_path, plan, shards=1)
    results = Results(run, plan)
    before = results.count(plan.names, ["00000"])
    path = (*plan.summary_folder("dedup"), "00000.parquet")
    run.write_table(run.read_table(*path).drop_columns(list(SUMMARY)), *path)
    assert results.count(plan.names, ["00000"]) == before
    judged = results.judge("00000").tables["dedup"]
    assert all(judged[name].null_count == judged.num_rows for name in SUMMARY)


def manifest(*names: str) -> Manifest:
    fields: dict[str, dict[str, Any]] = {
        "download": {"source": "x"},
        "embed": {},
        "dedup": {"semantic": 0.95},
    }
    stages = {name: fields[name] for name in names}
    return Manifest.parse({"name": "small", "stages": stages})


def test_it_needs_embeddings_and_measures_nothing_anew_for_them() -> None:
    plan = Plan(manifest("download", "embed", "dedup"))
    assert "image_embedding" not in plan.inputs("dedup")  # the summary takes it
    assert plan.origin("dedup", "image_embedding") == "embed"
    with pytest.raises(ManifestError, match=r"dedup.semantic needs the stage embed before dedup"):
        manifest("download", "dedup")
