from __future__ import annotations

import gzip
import hashlib
import io
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.fakes import painting
from helpers.graphics import FAMILIES, drawn, encoded, resized
from helpers.runs import with_nulls
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from models.image import hamming
from stages.clean import CleanConfig, CleanStage
from stages.dedup import DedupConfig, DedupStage
from stages.dedup_fingerprints import PRINTS
from stages.schema import POOL, uid_of

SHARED = Path(__file__).resolve().parents[2] / "../shared"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is absent")


def jpeg(image: Image.Image, quality: int = 90, scale: float = 1.0) -> bytes:
    file = io.BytesIO()
    size = round(image.width * scale), round(image.height * scale)
    image.resize(size).save(file, "JPEG", quality=quality)
    return file.getvalue()


PAINTINGS = [jpeg(painting(seed)) for seed in range(40)]


def row(
    image: bytes | None, url: str, caption: str | None = None, **columns: Any
) -> dict[str, Any]:
    return {
        "uid": uid_of(url, caption),
        "source": "test",
        "url": url,
        "caption": caption,
        "repeats": 0,
        "status": "success",
        "image": image,
        "width": 160,
        "height": 120,
        "original_width": 640,
        "original_height": 480,
        "sha256": hashlib.sha256(image or b"").hexdigest(),
        **columns,
    }


def pool(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=POOL)


def annotated(stage: DedupStage, rows: pa.Table) -> pa.Table:
    annotations = stage.annotate(rows)
    assert annotations.schema.equals(stage.writes)
    return annotations.add_column(0, "uid", rows["uid"])


def summarized(rows: pa.Table, **settings: Any) -> list[dict[str, Any]]:
    """The summary of each row, with its verdict as `reason`."""
    stage = DedupStage(DedupConfig(**settings))
    annotations = annotated(stage, rows)
    summary = stage.summarize(iter([annotations]))
    assert summary["uid"].equals(rows["uid"])
    assert summary.drop_columns("uid").schema.equals(stage.summary)
    for name in stage.summary.names:
        annotations = annotations.append_column(name, summary[name])
    verdicts = stage.judge(annotations)
    assert set(verdicts.to_pylist()) <= {None, *stage.reasons}
    return summary.append_column("reason", verdicts).to_pylist()


def reasons(*rows: dict[str, Any], **settings: Any) -> list[str | None]:
    return [one["reason"] for one in summarized(pool(*rows), **settings)]


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


def test_a_url_that_gave_two_images_makes_them_neither_one_nor_shares_their_captions() -> None:
    found = summarized(
        pool(
            row(PAINTINGS[0], "http://a/0", "first caption"),
            row(PAINTINGS[1], "http://a/0", "second longer caption"),
            row(PAINTINGS[1], "http://a/1", "third", original_width=600),
        )
    )
    assert [one["reason"] for one in found] == [None, "duplicate_image", None]
    assert [one["further_captions"] for one in found] == [[], None, []]
    assert [one["image_urls"] for one in found] == [1, 2, 2]


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.integers(1, 3), st.booleans(), st.randoms())
def test_a_placeholder_that_urls_give_now_and_then_takes_no_image_nor_caption(
    photos: int, times: int, is_encoded_anew: bool, rng: random.Random
) -> None:
    blank = painting(39)
    rows = []
    for number in range(photos):
        url = f"http://host/{number}"
        for time in range(times):
            rows.append(row(PAINTINGS[number], url, f"photo {number} for the time {time}"))
            quality = rng.randrange(60, 95) if is_encoded_anew else 80
            rows.append(row(jpeg(blank, quality), url, f"blank {number} for the time {time}"))
    rng.shuffle(rows)
    found = summarized(pool(*rows))
    kept = [i for i, one in enumerate(found) if one["reason"] is None]
    assert {rows[i]["image"] for i in kept} == set(PAINTINGS[:photos]) and len(kept) == photos
    for one, given_row in zip(found, rows, strict=True):
        is_photo = given_row["image"] in PAINTINGS[:photos]
        assert one["image_placeholder"] != is_photo
        assert is_photo or one["reason"] == "shared_placeholder"
        assert not one["further_captions"]  # nobody knows which image the URL is of


def test_one_file_under_many_urls_and_captions_is_a_placeholder() -> None:
    rows = [row(PAINTINGS[0], f"http://a/{i}", f"thing {i} of many") for i in range(11)]
    copy = row(jpeg(painting(0), 70, 0.8), "http://b", "its copy")
    found = summarized(pool(*rows, copy, row(PAINTINGS[1], "http://c", "another")))
    assert [one["reason"] for one in found] == ["shared_placeholder"] * 12 + [None]
    assert Counter(reasons(*rows[:10]))[None] == 1
    assert Counter(reasons(*rows, max_urls_per_image=11))[None] == 1
    same = [row(PAINTINGS[0], f"http://a/{i}", "one picture of one thing") for i in range(30)]
    assert Counter(reasons(*same)) == {None: 1, "duplicate_image": 29}
    once = [row(PAINTINGS[0], "http://a", f"caption {i}") for i in range(30)]
    assert Counter(reasons(*once)) == {None: 1, "duplicate_url": 29}


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


@pytest.mark.parametrize("family", FAMILIES)
def test_different_graphics_of_one_design_stay_apart(family: str) -> None:
    images = list(drawn(family, 60))
    rows = [
        row(encoded(image), f"http://a/{i}", f"number {i} of its kind", width=image.width)
        for i, image in enumerate(images)
    ]
    small = [
        row(encoded(resized(image, 0.6), 75), f"http://b/{i}", f"copy {i} of it", original_width=9)
        for i, image in enumerate(images[:12])
    ]
    found = summarized(pool(*rows, *small))
    assert Counter(one["reason"] for one in found[:60]) == {None: 60}
    assert [one["reason"] for one in found[60:]] == ["near_duplicate_image"] * 12
    uids = [one["uid"] for one in found[:60]]
    assert [one["image_cluster"] for one in found[60:]] == uids[:12]
    assert [one["further_captions"] for one in found[:12]] == [
        [f"copy {i} of it"] for i in range(12)
    ]
    loose = Counter(reasons(*rows, tolerance=100))
    assert loose["near_duplicate_image"] > 2  # what a hash and colours alone would join


def test_more_prints_of_a_design_than_are_compared_lose_no_plain_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hamming, "WINDOW", 8)
    monkeypatch.setattr(hamming, "ROUNDS", 2)
    images = list(drawn("shirts", 60, seed=1))
    rows = [row(encoded(image), f"http://a/{i}") for i, image in enumerate(images)]
    copies = [row(encoded(image, 75), f"http://b/{i}") for i, image in enumerate(images)]
    found = Counter(reasons(*rows, *copies))
    assert found == {None: 60, "near_duplicate_image": 60}


def test_flat_images_are_the_same_only_by_their_bytes() -> None:
    grey = Image.new("RGB", (160, 120), (120, 120, 120))
    one, other = jpeg(grey, quality=90), jpeg(grey, quality=80)
    rows = [row(image, f"http://a/{i}") for i, image in enumerate((one, other, one))]
    assert Counter(reasons(*rows)) == {None: 2, "duplicate_image": 1}
    assert Counter(reasons(*rows[:2], min_contrast=0)) == {None: 1, "near_duplicate_image": 1}


def test_an_image_that_cannot_be_opened_is_measured_as_such() -> None:
    rows = pool(
        row(b"junk", "http://a/0"), row(None, "http://a/1"), row(PAINTINGS[0], "http://a/2")
    )
    stage = DedupStage(DedupConfig())
    found = annotated(stage, rows)
    assert found["image_phash"].is_null().to_pylist() == [True, True, False]
    assert found["image_colours"].is_null().to_pylist() == [True, True, False]
    assert [one["reason"] for one in summarized(rows)] == [None, None, None]


def test_a_caption_on_too_many_images_is_boilerplate_wherever_it_stands() -> None:
    text = "the best of all shops in town"
    rows = [row(PAINTINGS[i], f"http://a/{i}", text) for i in range(11)]
    found = summarized(pool(*rows, row(PAINTINGS[20], "http://a/20", "the best of all pictures")))
    assert [one["reason"] for one in found] == ["boilerplate_caption"] * 11 + [None]
    assert [one["caption_images"] for one in found] == [11] * 11 + [1]
    assert len({one["caption_cluster"] for one in found[:11]}) == 1
    assert reasons(*rows[:10]) == [None] * 10
    assert reasons(*rows, max_images_per_caption=11) == [None] * 11


def test_copies_of_one_image_count_once_for_a_caption() -> None:
    rows = [row(PAINTINGS[i % 3], f"http://a/{i}", "one and the same caption") for i in range(30)]
    found = summarized(pool(*rows))
    assert {one["caption_images"] for one in found} == {3}
    assert Counter(one["reason"] for one in found) == {None: 3, "duplicate_image": 27}


def test_case_and_punctuation_do_not_hide_a_boilerplate_caption() -> None:
    texts = ["Shop Now, and Save!", "shop now and save", "SHOP NOW AND SAVE..."]
    rows = [row(PAINTINGS[i], f"http://a/{i}", texts[i % 3]) for i in range(12)]
    assert reasons(*rows) == ["boilerplate_caption"] * 12


def test_long_boilerplate_with_a_changing_word_is_found() -> None:
    words = [f"word{i}" for i in range(80)]
    rows = [
        row(PAINTINGS[i], f"http://a/{i}", " ".join([*words[:40], f"number{i}", *words[41:]]))
        for i in range(12)
    ]
    assert reasons(*rows) == ["boilerplate_caption"] * 12
    assert reasons(*rows, min_jaccard=0.95, min_template=0) == [None] * 12


def test_an_image_is_represented_by_a_caption_that_can_be_used() -> None:
    text = "a shop's own words on every picture"
    rows = [row(PAINTINGS[i], f"http://a/{i}", text, original_width=9000) for i in range(12)]
    honest = row(PAINTINGS[0], "http://a/honest", "a red house by the sea")
    found = summarized(pool(*rows, honest))
    assert found[-1]["reason"] is None
    assert found[0]["reason"] == "boilerplate_caption"
    assert found[0]["image_cluster"] == found[-1]["uid"]


def test_a_caption_of_its_own_represents_an_image_before_one_that_others_share() -> None:
    shared = "find the best deals on home decor and more in our store"
    found = reasons(
        row(PAINTINGS[0], "http://a/0", shared),
        row(PAINTINGS[0], "http://a/1", "a red house by the sea"),
        row(PAINTINGS[1], "http://a/2", shared),
    )
    assert found == ["duplicate_image", None, None]


def test_rows_without_captions_have_no_caption_cluster() -> None:
    found = summarized(pool(*(row(PAINTINGS[i], f"http://a/{i}") for i in range(15))))
    assert {one["caption_cluster"] for one in found} == {None}
    assert {one["caption_images"] for one in found} == {None}
    assert {one["reason"] for one in found} == {None}


def test_the_normalised_caption_is_the_one_that_counts() -> None:
    rows = pool(*(row(PAINTINGS[i], f"http://a/{i}", f"caption {i}") for i in range(12)))
    rows = rows.append_column("text", pa.array(["the same text"] * 12))
    assert {one["reason"] for one in summarized(rows)} == {"boilerplate_caption"}


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


SHOP = "the best of all shops in town"


def test_the_captions_of_copies_are_offered_to_the_one_that_stays() -> None:
    image = PAINTINGS[0]
    rows = [
        row(image, "http://a/0", "A red house", original_width=900),
        row(image, "http://a/1", "a red HOUSE!", original_width=800),
        row(image, "http://a/2", "a house by the sea", original_width=700),
        row(image, "http://a/3", "A House by the Sea.", original_width=701),
        row(image, "http://a/4", original_width=600),
        row(image, "http://a/5", SHOP),
        row(image, "http://a/6", "three words here", original_width=500),
        *(row(PAINTINGS[i], f"http://b/{i}", SHOP) for i in range(1, 11)),
    ]
    found = summarized(pool(*rows))
    assert found[0]["further_captions"] == ["A House by the Sea.", "three words here"]
    assert found[0]["image_captions"] == 4
    assert [one["further_captions"] for one in found[1:7]] == [None] * 6
    assert [one["further_captions"] for one in found[7:]] == [[]] * 10
    first = summarized(pool(*rows), max_further_captions=1)[0]
    assert first["further_captions"] == ["A House by the Sea."]
    assert summarized(pool(*rows), max_further_captions=0)[0]["further_captions"] == []


def test_the_further_captions_are_the_normalised_ones() -> None:
    rows = pool(
        row(PAINTINGS[0], "http://a/0", "A red house | Stock Photo", original_width=900),
        row(PAINTINGS[0], "http://a/1", "By the sea &amp; sand"),
    )
    rows = rows.append_column("text", pa.array(["A red house", "By the sea & sand"]))
    assert summarized(rows)[0]["further_captions"] == ["By the sea & sand"]


def test_an_image_with_too_many_captions_is_out_with_all_its_copies() -> None:
    rows = [row(PAINTINGS[0], f"http://a/{i}", f"caption {i}") for i in range(4)]
    rows += [row(PAINTINGS[0], "http://a/4", "Caption 3"), row(PAINTINGS[1], "http://b", "one")]
    found = summarized(pool(*rows), max_captions_per_image=3)
    assert [one["reason"] for one in found] == ["too_many_captions"] * 5 + [None]
    assert [one["image_captions"] for one in found] == [4] * 5 + [1]
    kept = Counter(reasons(*rows, max_captions_per_image=4))
    assert kept == {None: 2, "duplicate_image": 4}


def test_distinct_captions_of_one_to_four_words_are_neither_merged_nor_lost() -> None:
    texts = ["dog", "dogs", "red dog", "dog red", "a red dog", "the red dog", "a red dog runs"]
    rows = [row(PAINTINGS[i], f"http://a/{i}", text) for i, text in enumerate(texts)]
    found = summarized(pool(*rows), max_images_per_caption=1, min_jaccard=0.1)
    assert [one["reason"] for one in found] == [None] * len(texts)
    assert len({one["caption_cluster"] for one in found}) == len(texts)


def evaluation_set(folder: Path, **images: bytes) -> str:
    folder.mkdir(exist_ok=True)
    for name, data in images.items():
        (folder / f"{name}.jpg").write_bytes(data)
    return str(folder)


def test_images_of_an_evaluation_set_are_out_and_say_which(tmp_path: Path) -> None:
    grey = Image.new("RGB", (160, 120), (120, 120, 120))
    near = jpeg(painting(0), quality=70, scale=0.8)
    photos = evaluation_set(
        tmp_path / "photos", one=PAINTINGS[1], zero=PAINTINGS[0], broken=b"junk", flat=jpeg(grey)
    )
    parquet = str(tmp_path / "set.parquet")
    image = {"bytes": PAINTINGS[2], "path": "two.jpg"}
    pq.write_table(pa.table({"image": [image, {"bytes": PAINTINGS[3]}]}), parquet)
    found = summarized(
        pool(
            row(near, "http://a/0"),
            row(PAINTINGS[2], "http://a/1"),
            row(PAINTINGS[3], "http://a/2"),
            row(PAINTINGS[4], "http://a/3"),
            row(jpeg(grey), "http://a/4"),
            row(jpeg(grey, quality=80), "http://a/5"),
            row(b"junk", "http://a/6"),
        ),
        against=(photos, parquet),
    )
    assert [(one["evaluation_set"], one["evaluation_image"]) for one in found] == [
        (photos, "zero.jpg"),
        (parquet, "set.parquet/0"),
        (parquet, "set.parquet/1"),
        (None, None),
        (photos, "flat.jpg"),
        (None, None),
        (photos, "broken.jpg"),
    ]
    assert [one["reason"] for one in found] == [
        *["in_evaluation_set"] * 3,
        None,
        "in_evaluation_set",
        None,
        "in_evaluation_set",
    ]
    assert found[0]["evaluation_distance"] <= 6
    assert [one["evaluation_distance"] for one in found[1:]] == [0, 0, None, 0, None, None]


def test_colour_tells_an_image_from_that_of_an_evaluation_set(tmp_path: Path) -> None:
    red, blue = (
        jpeg(Image.merge("RGB", [painting(0).convert("L").point(lambda v, k=k: v * k) for k in ks]))
        for ks in ((1, 0.6, 0.6), (0.6, 0.6, 1))
    )
    against = (evaluation_set(tmp_path / "set", red=red),)
    assert reasons(row(blue, "http://a/0"), against=against) == [None]
    assert reasons(row(blue, "http://a/0"), against=against, max_colour_distance=255) == [
        "in_evaluation_set"
    ]


def test_every_copy_of_an_image_of_an_evaluation_set_is_out(tmp_path: Path) -> None:
    against = (evaluation_set(tmp_path / "set", zero=PAINTINGS[0]),)
    found = summarized(
        pool(
            row(PAINTINGS[0], "http://a/0"),
            row(PAINTINGS[0], "http://a/1", "another address of it"),
            row(jpeg(painting(0), 70, 0.8), "http://a/2"),
            row(PAINTINGS[2], "http://a/0"),
        ),
        against=against,
    )
    assert [one["reason"] for one in found] == ["in_evaluation_set"] * 3 + [None]
    assert {one["evaluation_image"] for one in found[:3]} == {"zero.jpg"}
    assert found[0]["evaluation_distance"] == 0


def test_what_evaluation_sets_hold_is_part_of_the_settings(tmp_path: Path) -> None:
    against = evaluation_set(tmp_path / "set", zero=PAINTINGS[0])

    def now() -> dict[str, Any]:
        return DedupConfig(against=(against,)).settings()

    before = now()
    assert now() == before and DedupConfig(against=(against,)).measurement() == {}
    evaluation_set(tmp_path / "set", zero=PAINTINGS[1])
    changed = now()
    assert changed != before
    evaluation_set(tmp_path / "set", one=PAINTINGS[1])
    assert now() not in (before, changed)
    evaluation_set(tmp_path / "moved", zero=PAINTINGS[1], one=PAINTINGS[1])
    moved = DedupConfig(against=(str(tmp_path / "moved"),)).settings()
    assert moved["against_content"] == now()["against_content"]
    with pytest.raises(ValueError, match=r"dedup\.against has no such list or images: .*/gone"):
        DedupConfig(against=(str(tmp_path / "gone"),)).settings()
    (tmp_path / "empty").mkdir()
    stage = DedupStage(DedupConfig(against=(str(tmp_path / "empty"),)))
    with pytest.raises(ValueError, match=r"dedup\.against holds neither .*/empty"):
        stage.summarize(iter([]))


def test_a_parquet_file_without_images_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "set.parquet")
    pq.write_table(pa.table({"picture": [PAINTINGS[0]]}), path)
    with pytest.raises(ValueError, match=r"set\.parquet names no images"):
        DedupStage(DedupConfig(against=(path,))).summarize(iter([]))


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


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dedup\.max_hamming must be from 0 to 16, got 20"):
        DedupConfig(max_hamming=20)
    with pytest.raises(ValueError, match=r"dedup\.bands x dedup\.rows must be at most 128"):
        DedupConfig(bands=32, rows=8)
    with pytest.raises(ValueError, match=r"dedup\.min_jaccard"):
        DedupConfig(min_jaccard=1.5)
    with pytest.raises(ValidationError):
        TypeAdapter(DedupConfig).validate_python({"threshold": 3})
    assert TypeAdapter(DedupConfig).validate_python({}) == DedupConfig()
    assert DedupConfig(max_hamming=1).measurement() == DedupConfig().measurement() == {}


@needs_shared
def test_the_paraphrases_of_an_image_stay_apart() -> None:
    lines = []
    for k in range(1, 6):
        with gzip.open(SHARED / f"data/multi30k/train.{k}.en.gz", "rt", encoding="utf8") as file:
            lines += [file.readline().strip() for _ in range(300)]
    rows = pool(*(row(None, f"http://a/{i}", c, sha256=None) for i, c in enumerate(lines)))
    found = summarized(rows)
    assert len({one["caption_cluster"] for one in found}) >= 0.998 * len(lines)
    assert {one["reason"] for one in found} == {None}


@needs_shared
def test_copies_that_a_public_image_set_holds_are_found() -> None:
    folder = SHARED / "data/datajuicer_images"
    files = sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".png"))
    rows = pool(*(row(path.read_bytes(), path.name) for path in files))
    found = summarized(rows)
    groups = Counter(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)
    exact = sum(one["reason"] == "duplicate_image" for one in found)
    assert exact == sum(n - 1 for n in groups.values()) > 0


@needs_shared
def test_one_photo_in_many_formats_is_one_image_and_other_photos_are_not() -> None:
    folder = SHARED / "data/imagededup_fixtures"
    formats = sorted((folder / "formats_images").glob("ukbench09380.*"))
    formats = [path for path in formats if path.suffix != ".svg"]
    others = sorted(path for path in (folder / "base_images").iterdir() if "09380" not in path.name)
    found = summarized(
        pool(*(row(path.read_bytes(), path.as_uri()) for path in (*formats, *others)))
    )
    assert len(formats) == 4
    assert len({one["image_cluster"] for one in found[:4]}) == 1
    assert len({one["image_cluster"] for one in found}) == 1 + len(others)
    assert sum(one["reason"] is None for one in found[:4]) == 1


@needs_shared
def test_exactly_one_variant_of_every_photograph_survives() -> None:
    def saved(image: Image.Image, kind: str, **how: Any) -> bytes:
        file = io.BytesIO()
        image.save(file, kind, **how)
        return file.getvalue()

    photos, rows = sorted((SHARED / "data/flickr8k/images").iterdir())[:40], []
    for number, path in enumerate(photos):
        photo = Image.open(path)
        turned = Image.Exif()
        turned[274] = 6
        rows += [
            row(path.read_bytes(), f"http://{number}/jpeg"),
            row(saved(photo, "WEBP"), f"http://{number}/webp"),
            row(saved(photo.convert("RGBA"), "PNG"), f"http://{number}/alpha"),
            row(saved(photo.convert("CMYK"), "JPEG"), f"http://{number}/cmyk"),
            row(saved(photo.convert("P"), "GIF"), f"http://{number}/gif"),
            row(saved(photo.rotate(90, expand=True), "JPEG", exif=turned), f"http://{number}/exif"),
            row(jpeg(photo, quality=60, scale=0.55), f"http://{number}/small"),
        ]
    found = summarized(pool(*rows))
    survivors = [i // 7 for i, one in enumerate(found) if one["reason"] is None]
    assert sorted(survivors) == list(range(len(photos)))


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
