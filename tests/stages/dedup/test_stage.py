from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
from helpers.duplicates import PAINTINGS, annotated, jpeg, pool, reasons, row, summarized
from helpers.fakes import painting
from helpers.runs import with_nulls
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.clean import CleanConfig, CleanStage
from stages.dedup import DedupConfig, DedupStage
from stages.image_prints import PRINTS


def test_one_row_of_each_image_stays_and_the_others_say_why() -> None:
    copy = jpeg(painting(0), quality=70, scale=0.8)
    small = {"original_width": 320, "original_height": 240}
    found = summarized(
        pool(
            row(PAINTINGS[0], "http://a/0"),
            row(PAINTINGS[0], "http://a/0", "a caption", original_width=1),
            row(PAINTINGS[0], "http://a/1", **small),
            row(copy, "http://a/2", **small),
            row(PAINTINGS[1], "http://a/3"),
        ),
    )
    kept = found[1]["uid"]
    assert [one["reason"] for one in found] == [
        "duplicate_url",
        None,
        "duplicate_image",
        "near_duplicate_image",
        None,
    ]
    assert [one["image_cluster"] for one in found] == [kept] * 4 + [found[4]["uid"]]
    assert [one["image_distance"] for one in found] == [
        0,
        None,
        0,
        found[3]["image_distance"],
        None,
    ]
    assert found[3]["image_distance"] <= 6


def test_the_largest_original_is_kept_then_the_longest_caption_then_the_smallest_uid() -> None:
    image = PAINTINGS[0]
    assert reasons(
        row(image, "http://a/0", "a much longer caption than that"),
        row(image, "http://a/1", "a caption", original_width=641),
    ) == ["duplicate_image", None]
    assert reasons(
        row(image, "http://a/0", "a caption"), row(image, "http://a/1", "a longer caption")
    ) == ["duplicate_image", None]
    assert reasons(
        row(image, "http://a/0", "a caption"), row(image, "http://a/1", original_width=9999)
    ) == [None, "duplicate_image"]
    twins = [row(image, f"http://a/{i}", "a caption") for i in range(5)]
    found = summarized(pool(*twins))
    assert [one["uid"] for one in found if one["reason"] is None] == [min(t["uid"] for t in twins)]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 4), st.sampled_from([1.0, 0.7])), max_size=16
    )
)
def test_what_is_told_a_duplicate_is_one_of_what_is_kept(
    kinds: list[tuple[int, int, float]],
) -> None:
    rows = [
        row(jpeg(painting(image), 90, scale), f"http://a/{url}", f"caption {i}")
        for i, (image, url, scale) in enumerate(kinds)
    ]
    found = summarized(pool(*rows))
    files = {
        one["image_cluster"]: given_row["image"]
        for one, given_row in zip(found, rows, strict=True)
        if one["image_cluster"] == one["uid"]
    }
    urls = {given_row["uid"]: given_row["url"] for given_row in rows}
    shows = {given_row["uid"]: kind[0] for given_row, kind in zip(rows, kinds, strict=True)}
    texts = {given_row["caption"]: kind[0] for given_row, kind in zip(rows, kinds, strict=True)}
    for one, given_row in zip(found, rows, strict=True):
        if one["reason"] in ("duplicate_url", "duplicate_image"):
            assert files[one["image_cluster"]] == given_row["image"]
        if one["reason"] == "duplicate_url":
            assert urls[one["image_cluster"]] == given_row["url"]
        assert shows[one["image_cluster"]] == shows[one["uid"]]
        assert all(texts[text] == shows[one["uid"]] for text in one["further_captions"] or ())


def test_an_image_that_cannot_be_opened_is_measured_as_such() -> None:
    rows = pool(
        row(b"junk", "http://a/0"), row(None, "http://a/1"), row(PAINTINGS[0], "http://a/2")
    )
    stage = DedupStage(DedupConfig())
    found = annotated(stage, rows)
    assert found["image_phash"].is_null().to_pylist() == [True, True, False]
    assert found["image_colours"].is_null().to_pylist() == [True, True, False]
    assert [one["reason"] for one in summarized(rows)] == [None, None, None]


def test_no_rows_have_an_empty_summary() -> None:
    stage = DedupStage(DedupConfig())
    assert len(stage.summarize(iter([]))) == 0
    assert len(stage.summarize(iter([annotated(stage, pool())]))) == 0


def test_a_row_is_measured_alike_in_any_company() -> None:
    rows = pool(
        *(row(PAINTINGS[i], f"http://a/{i}", None if i == 3 else f"caption {i}") for i in range(6)),
        row(b"junk", "http://a/junk"),
    )
    stage = DedupStage(DedupConfig())
    alone = pa.concat_tables(annotated(stage, rows[i : i + 1]) for i in range(len(rows)))
    assert alone.equals(annotated(stage, rows))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), max_size=20), st.randoms())
def test_nothing_depends_on_the_order_of_rows_or_on_shards(
    kinds: list[tuple[int, int]], rng: random.Random
) -> None:
    drawn = [
        row(PAINTINGS[image], f"http://a/{url}", f"caption {i % 4}", original_width=image)
        for i, (image, url) in enumerate(kinds)
    ]
    rows = pool(*{one["uid"]: one for one in drawn}.values())
    stage = DedupStage(DedupConfig(max_images_per_caption=2))
    annotations = annotated(stage, rows)
    expected = {one["uid"]: one for one in stage.summarize(iter([annotations])).to_pylist()}
    order = list(range(len(rows)))
    rng.shuffle(order)
    shuffled = annotations.take(pa.array(order, pa.int64()))
    cut = len(rows) // 3
    parts = [shuffled[:cut], shuffled[cut:]]
    assert {one["uid"]: one for one in stage.summarize(iter(parts)).to_pylist()} == expected


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), min_size=1, max_size=20))
def test_every_cluster_keeps_its_representative_and_only_it(kinds: list[tuple[int, int]]) -> None:
    found = summarized(
        pool(
            *(
                row(PAINTINGS[image], f"http://a/{url}", f"caption {i}")
                for i, (image, url) in enumerate(kinds)
            )
        )
    )
    for one in found:
        is_kept = one["image_cluster"] == one["uid"]
        if one["image_placeholder"]:
            assert one["reason"] == "shared_placeholder"
        else:
            assert (one["reason"] is None) == is_kept
    kept = {one["uid"] for one in found if one["image_duplicate"] is None}
    assert {one["image_cluster"] for one in found} == kept


def test_shards_added_to_a_finished_pool_need_no_new_fingerprints_of_the_old() -> None:
    rows = pool(
        *(row(PAINTINGS[i % 7], f"http://a/{i % 9}", f"caption {i % 4} {i}") for i in range(30))
    )
    stage = DedupStage(DedupConfig())
    old, new = annotated(stage, rows[:20]), annotated(stage, rows[20:])
    whole = annotated(stage, rows)
    assert stage.summarize(iter([old, new])).equals(stage.summarize(iter([whole])))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), min_size=1, max_size=15))
def test_further_rows_change_nothing_of_what_stands_apart_from_them(
    kinds: list[tuple[int, int]],
) -> None:
    rows = [
        row(PAINTINGS[image], f"http://a/{image}/{url}", f"caption {i}", original_width=900)
        for i, (image, url) in enumerate(kinds)
    ]
    others = [row(PAINTINGS[20 + i], f"http://b/{i}", f"other {i}") for i in range(5)]
    copies = [row(PAINTINGS[image], f"http://c/{image}", "x") for image, _ in kinds]
    alone = summarized(pool(*rows))
    assert summarized(pool(*rows, *others))[: len(rows)] == alone
    unique = {one["uid"]: one for one in copies}.values()
    with_copies = summarized(pool(*rows, *unique))
    assert [one["reason"] for one in with_copies[: len(rows)]] == [one["reason"] for one in alone]
    assert all(one["reason"] is not None for one in with_copies[len(rows) :])


def test_what_clean_saw_of_an_image_is_not_decoded_again() -> None:
    rows = pool(*(row(PAINTINGS[i], f"http://a/{i}", f"caption number {i}") for i in range(4)))
    stage = DedupStage(DedupConfig())
    whole = stage.annotate(rows)
    seen = rows
    for name in PRINTS:
        seen = seen.append_column(name, whole[name])
    blind = seen.set_column(
        seen.schema.get_field_index("image"), "image", pa.array([b"junk"] * 4, pa.binary())
    )
    assert stage.annotate(blind).equals(whole)


def test_clean_and_dedup_see_the_same_image() -> None:
    rows = pool(*(row(PAINTINGS[i], f"http://a/{i}", f"caption number {i}") for i in range(4)))
    clean = CleanStage(CleanConfig())
    clean.load()
    cleaned = clean.annotate(rows)
    alone = DedupStage(DedupConfig()).annotate(rows)
    assert [cleaned[name].to_pylist() for name in PRINTS] == [
        alone[name].to_pylist() for name in PRINTS
    ]


def test_a_distance_counts_of_copies_alone() -> None:
    stage = DedupStage(DedupConfig())
    columns = {"image_distance": [0, 3], "image_duplicate": [None, "near_duplicate_image"]}
    schema = pa.schema([*stage.writes, *stage.summary])
    cutoffs = {one.reason: one for one in stage.cutoffs(with_nulls(schema, 2, **columns))}
    near = cutoffs["near_duplicate_image"]
    assert near.limit == 6
    np.testing.assert_array_equal(near.values, [np.nan, 3])
    np.testing.assert_array_equal(cutoffs["in_evaluation_set"].values, [np.nan, np.nan])
