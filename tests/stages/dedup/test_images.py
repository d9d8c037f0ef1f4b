from __future__ import annotations

import hashlib
import io
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers.duplicates import PAINTINGS, jpeg, pool, reasons, row, summarized
from helpers.fakes import painting
from helpers.graphics import FAMILIES, drawn, encoded, resized
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.image import hamming

SHARED = Path(__file__).resolve().parents[3] / "../shared"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is absent")


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
