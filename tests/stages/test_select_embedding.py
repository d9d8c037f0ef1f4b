"""The methods of select that compare embeddings, thin out phrases or draw with repetition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.embedding import selection
from models.errors import ManifestError
from models.random import splitmix, uid_hashes
from pipeline.manifest.manifest import Manifest
from stages.embed import EMBEDDING
from stages.select import SelectConfig, SelectStage

COUNT = 60
UIDS = [f"{number:032x}" for number in range(COUNT)]


def unit(seed: int, size: int = 8) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(COUNT, size))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


IMAGES, TEXTS = unit(0), unit(1)


def pool(**columns: Any) -> pa.Table:
    """Rows of which the fourth has no embedding of its text, and the fifth no score."""
    texts: list[Any] = TEXTS.tolist()
    texts[3] = None
    scores: list[float | None] = np.linspace(-1, 1, COUNT).tolist()
    scores[4] = None
    return pa.table(
        {
            "uid": UIDS,
            "noun_phrases": pa.nulls(COUNT, pa.list_(pa.string())),
            "score": pa.array(scores, pa.float64()),
            "image_embedding": pa.array(IMAGES.tolist(), EMBEDDING),
            "text_embedding": pa.array(texts, EMBEDDING),
            **columns,
        }
    )


def summarized(table: pa.Table, **settings: Any) -> pa.Table:
    """The summary and the verdicts, the same for any order and split of the rows."""
    stage = SelectStage(SelectConfig(**settings))
    taken = table.select(["uid", *stage.writes.names, *stage.config.pooled])
    whole = stage.summarize(iter([taken]))
    assert whole.drop_columns("uid").schema.equals(stage.summary)
    turn = np.random.default_rng(9).permutation(len(table))
    given = taken.take(pa.array(turn))
    again = stage.summarize(iter([given[:11], given[11:]]))
    for name in ("uid", "selected", "selected_by", "draws"):
        assert again[name].to_pylist() == whole[name].take(pa.array(turn)).to_pylist()
    judged = taken
    for name in stage.summary.names:
        judged = judged.append_column(name, whole[name])
    return whole.append_column("reason", stage.judge(judged))


def lots(rows: list[int], seed: int = 0) -> np.ndarray:
    uids = pa.chunked_array([[UIDS[row] for row in rows]])
    return splitmix(uid_hashes(uids) ^ splitmix(seed))


def test_pairs_of_the_best_neg_clip_loss_are_chosen() -> None:
    found = summarized(pool(), method="neg_clip_loss", number=20, batch_size=30, temperature=0.1)
    rows = [row for row in range(COUNT) if row != 3]
    scores = selection.neg_clip_loss(
        IMAGES[rows], TEXTS[rows], lots(rows), temperature=0.1, batch_size=30
    )
    given = found["selection_score"].drop_null().to_pylist()
    assert given == pytest.approx(scores.tolist(), abs=1e-6)
    best = {rows[place] for place in np.argsort(-scores)[:20]}
    reasons = found["reason"].to_pylist()
    assert {row for row, reason in enumerate(reasons) if reason is None} == best
    assert reasons[3] == "no_score" and reasons.count("not_selected") == COUNT - 21


def test_rows_most_like_the_pool_are_chosen() -> None:
    found = summarized(pool(), method="target", norm="pool", fraction=0.25)
    norms = np.linalg.norm(IMAGES.astype(float) @ IMAGES.astype(float).T, axis=1)
    assert found["selection_score"].to_pylist() == pytest.approx(norms.tolist(), rel=1e-6)
    chosen = np.flatnonzero(found["selected"].to_pylist()).tolist()
    assert chosen == sorted(np.argsort(-norms)[:15].tolist())


@pytest.mark.parametrize(("norm", "column"), [("max", "target_cosine"), ("l2", "target_norm")])
def test_rows_most_like_the_target_set_are_chosen(norm: Any, column: str) -> None:
    config = SelectConfig(method="target", norm=norm, fraction=0.1)
    stage = SelectStage(config)
    assert config.reads == (column,) and stage.in_parts == "ranks"
    rows = pa.table({"uid": UIDS[:4], column: pa.array([0.1, 0.9, None, 0.5], pa.float32())})
    measured = stage.annotate(rows).append_column("uid", rows["uid"])
    found = summarized(measured, method="target", norm=norm, number=2)
    assert found["reason"].to_pylist() == ["not_selected", None, "no_score", None]


def test_density_chooses_by_clusters() -> None:
    found = summarized(pool(), method="density", number=21, clusters=5, seed=3)
    rows = list(range(COUNT))
    chosen, distance = selection.density(IMAGES, lots(rows, 3), 21, clusters=5)
    assert found["selected"].to_pylist() == chosen.tolist() and chosen.sum() == 21
    assert found["selection_score"].to_pylist() == pytest.approx(distance.tolist(), abs=1e-9)


def test_rows_are_drawn_with_repetition() -> None:
    settings = {"temperature": 0.2, "batch_size": 10, "penalty": 1.0}
    found = summarized(pool(), method="sample", score="x", number=90, **settings)
    rows = [row for row in range(COUNT) if row != 4]
    scores = np.linspace(-1, 1, COUNT)[rows]
    expected = selection.soft_cap_draws(scores, lots(rows), 90, **settings)  # type: ignore[arg-type]
    draws = found["draws"].to_pylist()
    assert [draws[row] for row in rows] == expected.tolist() and sum(draws) == 90
    assert max(draws) > 1 and found["selected"].to_pylist() == [number > 0 for number in draws]
    assert found["reason"].to_pylist()[4] == "no_score"


LISTS = st.lists(
    st.none() | st.lists(st.sampled_from("abcdef"), max_size=3, unique=True), max_size=COUNT
)


def phrased(lists: list[list[str] | None]) -> pa.Table:
    return pool()[: len(lists)].set_column(
        1, "noun_phrases", pa.array(lists, pa.list_(pa.string()))
    )


@given(LISTS, st.integers(1, 4), st.integers(1, 9), st.none() | st.floats(0.05, 0.9))
def test_metadata_keeps_a_row_by_its_rarest_phrase(
    lists: list[list[str] | None], least: int, t: int, tail: float | None
) -> None:
    settings: dict[str, Any] = {"method": "metadata", "min_frequency": least, "seed": 2}
    settings |= {"max_per_phrase": t} if tail is None else {"tail": tail}
    found = summarized(phrased(lists), **settings)
    counts = {p: sum(p in (some or []) for some in lists) for p in "abcdef"}
    entries = {p: count for p, count in counts.items() if count >= max(least, 1)}
    if tail is not None and entries:
        sizes = sorted(entries.values())
        total = sum(sizes)
        t = next(n for n in sizes if sum(s for s in sizes if s <= n) >= tail * total - 1e-9)
    chances = lots(list(range(len(lists))), 2) >> np.uint64(11)
    for row, some in enumerate(lists):
        own = [(entries[p], p) for p in some or [] if p in entries]
        by = min(own)[1] if own and chances[row] < t / min(own)[0] * 2.0**53 else None
        assert found["selected_by"][row].as_py() == by
        assert found["selected"][row].as_py() == (by is not None)


def test_metadata_is_the_same_in_parts_of_phrases() -> None:
    lists: list[Any] = [["a", "b"][: 1 + row % 2] + ["c"] * (row % 5 == 0) for row in range(COUNT)]
    table = phrased(lists)
    config = SelectConfig(method="metadata", max_per_phrase=9, seed=1)
    stage = SelectStage(config)
    assert stage.in_parts == "keys"
    assert SelectStage(SelectConfig(method="metadata", tail=0.1)).in_parts is None
    lines = stage.lines(table)
    keys = np.asarray(lines["key"])
    parts = [lines.filter(pa.array(keys == key)) for key in np.unique(keys)]
    results = pa.concat_tables([stage.reduce(part) for part in parts])
    assert stage.conclude(table, results).equals(
        stage.summarize(iter([table.select(["uid", "noun_phrases"])])).cast(
            stage.conclude(table, results).schema
        )
    )


def test_given_entries_are_found_without_a_language_model(tmp_path: Path) -> None:
    path = tmp_path / "entries.txt"
    path.write_text("red kite\nsea\n")
    config = SelectConfig(method="metadata", entries=str(path), model="absent")
    stage = SelectStage(config)
    stage.load()
    rows = pa.table({"uid": UIDS[:3], "caption": ["A red kite at sea", None, "a house"]})
    measured = stage.annotate(rows)
    assert measured["noun_phrases"].to_pylist() == [["red kite", "sea"], None, []]
    found = summarized(
        measured.append_column("uid", rows["uid"]), method="metadata", entries=str(path)
    )
    assert found["reason"].to_pylist() == [None, "no_caption", "no_noun_phrase"]
    before = config.measurement()
    path.write_text("red kite\n")
    assert config.measurement() != before
    with pytest.raises(FileNotFoundError, match=r"select.entries: .*absent.txt: No such file"):
        SelectConfig(method="metadata", entries="absent.txt").measurement()


def test_settings_of_older_methods_are_as_they_were() -> None:
    new = {
        "entries",
        "tail",
        "norm",
        "temperature",
        "batch_size",
        "shuffles",
        "clusters",
        "penalty",
    }
    assert not new & SelectConfig().settings().keys()
    assert SelectConfig(method="density", number=1, clusters=9).settings()["clusters"] == 9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tail": 0.1}, "select.tail is for metadata; remove it, or change select.method"),
        ({"method": "random", "number": 1, "clusters": 3}, "select.clusters is for density"),
        ({"method": "metadata", "fraction": 0.1}, "metadata takes none of"),
        ({"method": "density"}, "density needs one of"),
        ({"method": "sample", "number": 3}, r"select\.score must name"),
        ({"method": "metadata", "tail": 1.0}, "a share between 0 and 1, got 1.0"),
        ({"method": "density", "number": 3, "temperature": 0}, "temperature must be above 0"),
        ({"method": "sample", "score": "x", "number": 3, "penalty": -1}, "penalty must be at"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelectConfig(**settings)


@pytest.mark.parametrize(
    ("select", "embed", "message"),
    [
        ({"method": "density"}, None, "select.method: density needs the stage embed before"),
        ({"method": "target"}, {}, "needs images in embed.target, or select.norm: pool"),
        ({"method": "neg_clip_loss"}, {"texts": False}, "neg_clip_loss needs embed.texts"),
        ({"method": "target", "norm": "pool"}, {}, None),
        ({"method": "target"}, {"target": ["photos"]}, None),
        ({"method": "neg_clip_loss"}, {}, None),
        (
            {"method": "top_fraction", "score": "aesthetic"},
            {"measure": {"aesthetic": "head.safetensors"}},
            None,
        ),
    ],
)
def test_a_manifest_says_what_a_method_needs(
    select: dict[str, Any], embed: dict[str, Any] | None, message: str | None
) -> None:
    stages: dict[str, Any] = {"download": {"source": "x"}}
    stages |= {} if embed is None else {"embed": embed}
    stages |= {"select": {**select, "fraction": 0.3}}
    content = {"name": "small", "stages": stages}
    if message is None:
        Manifest.parse(content)
        return
    with pytest.raises(ManifestError, match=message):
        Manifest.parse(content)


def test_neg_clip_loss_may_be_written_as_a_recipe_of_the_filter() -> None:
    def stages(**rest: Any) -> dict[str, Any]:
        recipe = {"recipe": "neg_clip_loss", "fraction": 0.3}
        return {"download": {"source": "x"}, "embed": {}, "filter": recipe, **rest}

    made = Manifest.parse({"name": "small", "stages": stages(export={})})
    select = {"method": "neg_clip_loss", "fraction": 0.3}
    plain = {"download": {"source": "x"}, "embed": {}, "select": select, "export": {}}
    assert made.stages == Manifest.parse({"name": "small", "stages": plain}).stages
    assert list(made.stages) == ["download", "embed", "select", "export"]
    with pytest.raises(ManifestError, match=r"stages\.filter\.recipe: neg_clip_loss is short for"):
        Manifest.parse({"name": "small", "stages": stages(select=select)})
