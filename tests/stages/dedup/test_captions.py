from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from helpers.duplicates import PAINTINGS, pool, reasons, row, summarized

SHARED = Path(__file__).resolve().parents[3] / "../shared"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is absent")


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
