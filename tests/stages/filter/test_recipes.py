from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.blips import drawn
from helpers.filters import FURTHER, recipe_of
from helpers.runs import with_nulls
from hypothesis import given
from hypothesis import strategies as st

from models.inference.dual_encoder import DualEncoder
from stages.filter import FilterConfig, FilterStage
from stages.filter.stage import LISTS


def annotations(rows: list[tuple[float | None, list[float | None], bool]]) -> pa.Table:
    columns = [
        {
            "itm_web": web,
            "itm_synthetic": synthetic,
            "itc_web": web,
            "itc_synthetic": synthetic,
            "itm_decoded": decoded,
        }
        for web, synthetic, decoded in rows
    ]
    return pa.Table.from_pylist(columns, schema=FilterStage.writes)


def test_an_image_keeps_none_one_or_all_of_its_texts() -> None:
    stage = FilterStage(FilterConfig())
    table = annotations(
        [
            (0.9, [0.8], True),
            (0.9, [0.1, 0.7], True),
            (0.1, [0.5], True),
            (0.4999, [0.2], True),
            (None, [], True),
            (None, [None], True),
            (None, [None], False),
        ]
    )
    assert stage.judge(table).to_pylist() == [
        None,
        None,
        None,
        "unmatched",
        "no_text",
        "no_text",
        "undecodable",
    ]
    keeps = stage.keep_texts(table)
    assert keeps["keep_further"].to_pylist() == [[]] * 7
    assert keeps["keep_web"].to_pylist() == [True, True, False, False, False, False, False]
    assert keeps["keep_synthetic"].to_pylist() == [
        [True],
        [False, True],
        [True],
        [False],
        [],
        [False],
        [False],
    ]


def test_a_further_caption_alone_keeps_its_image() -> None:
    only = annotations([(0.1, [0.2], True)])
    place = only.schema.get_field_index("itm_further")
    only = only.set_column(place, "itm_further", pa.array([[0.9]], LISTS))
    assert FilterStage(FilterConfig()).judge(only).to_pylist() == [None]


score = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.7, 1.0]), st.floats(0, 1, width=32))
row = st.tuples(score, st.lists(score, max_size=4), st.just(True))


@given(st.lists(row, max_size=12), st.sampled_from([0.0, 0.25, 0.5, 0.7, 1.0]), st.integers(0, 12))
def test_a_row_is_kept_if_and_only_if_a_text_of_it_is(
    rows: list[Any], least: float, cut: int
) -> None:
    stage = FilterStage(FilterConfig(min_itm=least))
    table = annotations(rows)
    table = pa.concat_tables([table.slice(0, cut), table.slice(cut)])  # chunks and offsets
    keeps, reasons = stage.keep_texts(table), stage.judge(table).to_pylist()
    assert len(keeps) == len(reasons) == len(rows)
    for (web, synthetic, _), keep, reason in zip(rows, keeps.to_pylist(), reasons, strict=True):
        floor = np.float32(least)
        assert keep["keep_web"] == (web is not None and np.float32(web) >= floor)
        assert keep["keep_synthetic"] == [
            s is not None and bool(np.float32(s) >= floor) for s in synthetic
        ]
        assert (reason is None) == (keep["keep_web"] or any(keep["keep_synthetic"]))
        if reason is not None:
            scored = web is not None or any(s is not None for s in synthetic)
            assert reason == ("unmatched" if scored else "no_text")


def test_a_recipe_loads_what_it_needs_alone(model: str, clips: tuple[str, str]) -> None:
    def loaded(stage: FilterStage) -> list[bool]:
        models = stage._matcher, stage._clip, stage._second_clip
        return [model is not None for model in models]

    assert loaded(recipe_of("blip", clips, model=model)) == [True, True, False]
    assert loaded(recipe_of("clip", clips, min_clip=0.28)) == [False, True, False]
    assert loaded(recipe_of("blip2", clips)) == [False, True, False]
    assert loaded(recipe_of("laion_coco", clips)) == [False, True, True]
    blip = FilterStage(FilterConfig(model=model, device="cpu"))
    blip.load()
    assert loaded(blip) == [True, False, False]


def test_clip_measures_beside_itm_and_alone(model: str, clips: tuple[str, str]) -> None:
    both = recipe_of("blip", clips, model=model).annotate(FURTHER)
    alone = recipe_of("clip", clips, min_clip=0.0).annotate(FURTHER)
    for kind in ("web", "synthetic", "further"):
        assert both[f"clip_{kind}"].equals(alone[f"clip_{kind}"])
    assert alone["itm_web"].null_count == 6 and alone["clip_web"].null_count == 4
    assert alone["itm_synthetic"].to_pylist()[0] == [None, None]
    expected = DualEncoder.from_pretrained(clips[0]).score([drawn(0)], [["a red dog"]])
    assert alone["clip_web"][0].as_py() == pytest.approx(expected[0][0].cosine, abs=1e-2)
    web = sorted(score for score in alone["clip_web"].to_pylist() if score is not None)
    judged = FilterStage(FilterConfig(recipe="clip", min_clip=web[1]))
    assert sum(judged.keep_texts(alone)["keep_web"].to_pylist()) == 1
    beside = FilterStage(FilterConfig(clip=clips[0], min_itm=0.0, min_clip=1.0))
    assert set(beside.judge(both).to_pylist()) == {"dissimilar", "no_text", "undecodable"}
    keeps = FilterStage(FilterConfig(clip=clips[0], min_itm=1.0, min_clip=-1.0)).judge(both)
    assert "unmatched" in keeps.to_pylist()


def clip_rows(rows: list[tuple[Any, list[Any], list[Any], list[Any]]]) -> pa.Table:
    """Similarities of web, synthetic, further; and of synthetic captions by the second CLIP."""
    columns = [
        {
            "clip_web": web,
            "clip_synthetic": synthetic,
            "clip_further": further,
            "second_clip_synthetic": second,
            "itm_synthetic": [None] * len(synthetic),
            "itm_further": [None] * len(further),
            "itm_decoded": True,
        }
        for web, synthetic, further, second in rows
    ]
    return pa.Table.from_pylist(columns, schema=FilterStage.writes)


def test_blip2_keeps_the_two_most_similar_texts_whatever_they_are() -> None:
    table = clip_rows(
        [
            (0.3, [0.1, 0.2, 0.4], [], []),
            (0.1, [0.2, 0.2, 0.3], [], []),
            (0.2, [-0.1, 0.1], [0.3, 0.05], []),
            (None, [-0.9], [], []),
            (None, [None], [], []),
        ]
    )
    stage = FilterStage(FilterConfig(recipe="blip2"))
    keeps = stage.keep_texts(table)
    assert keeps["keep_web"].to_pylist() == [True, False, True, False, False]
    assert keeps["keep_synthetic"].to_pylist() == [
        [False, False, True],
        [True, False, True],
        [False, False],
        [True],
        [False],
    ]
    assert keeps["keep_further"].to_pylist() == [[], [], [True, False], [], []]
    assert stage.judge(table).to_pylist() == [None] * 4 + ["no_text"]
    floored = FilterStage(FilterConfig(recipe="blip2", min_clip=0.35))
    assert floored.judge(table).to_pylist() == [None, *["dissimilar"] * 3, "no_text"]


def test_laion_coco_ranks_synthetic_captions_to_five_and_then_to_one() -> None:
    first = [0.1, 0.6, 0.5, 0.4, 0.3, 0.2]
    table = clip_rows([(0.9, first, [0.9], [0.9, 0.1, 0.2, 0.3, 0.2, 0.1]), (0.9, [], [], [])])
    stage = FilterStage(FilterConfig(recipe="laion_coco"))
    keeps = stage.keep_texts(table)
    assert keeps["keep_synthetic"].to_pylist() == [[False] * 3 + [True] + [False] * 2, []]
    assert keeps["keep_web"].to_pylist() == [False, False]
    assert keeps["keep_further"].to_pylist() == [[False], []]


@given(st.lists(st.tuples(score, st.lists(score, max_size=5), st.lists(score, max_size=3))))
def test_blip2_keeps_no_text_less_similar_than_one_it_drops(rows: list[Any]) -> None:
    table = clip_rows([(*row, [None] * len(row[1])) for row in rows])
    keeps = FilterStage(FilterConfig(recipe="blip2")).keep_texts(table).to_pylist()
    for (web, synthetic, further), keep in zip(rows, keeps, strict=True):
        scores = [web, *synthetic, *further]
        kept = [keep["keep_web"], *keep["keep_synthetic"], *keep["keep_further"]]
        best = sorted({np.float32(s) for s in scores if s is not None})[-2:]
        found = [np.float32(s) for s, k in zip(scores, kept, strict=True) if k]
        assert sorted(found) == best


def test_a_threshold_is_compared_with_the_highest_score_of_a_row() -> None:
    scores = {
        "itm_web": [0.25, None, None],
        "itm_synthetic": [[0.75, None], [], None],
        "itm_further": [[0.5], [0.125, 0.25], []],
        "clip_web": [None, 0.5, None],
    }
    table = with_nulls(FilterStage.writes, 3, itm_decoded=[True] * 3, **scores)
    (itm,) = FilterStage(FilterConfig(min_itm=0.3)).cutoffs(table)
    assert (itm.reason, itm.name, itm.limit) == ("unmatched", "min_itm", 0.3)
    np.testing.assert_array_equal(itm.values, [0.75, 0.25, np.nan])
    _, clip = FilterStage(FilterConfig(min_clip=0.2, clip="x")).cutoffs(table)
    assert (clip.reason, clip.limit) == ("dissimilar", 0.2)
    np.testing.assert_array_equal(clip.values, [np.nan, 0.5, np.nan])
