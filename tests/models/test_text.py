from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.text import LanguageDetector, caption_key, measure, normalize


@pytest.mark.parametrize(
    ("caption", "text"),
    [
        ("  a dog\n runs\t ", "a dog runs"),
        ("salt &amp; pepper", "salt & pepper"),
        ("front &amp;amp; back", "front & back"),
        ("a <b>red</b> car<br />", "a red car"),
        ("&lt;i&gt;a red car&lt;/i&gt;", "a red car"),
        ("cafe\u0301 in Paris", "caf\u00e9 in Paris"),
        ("a\u200b dog\u00ad with\x00 a ball", "a dog with a ball"),
        ("A dog runs | Stock Photo", "A dog runs"),
        ("A dog runs - Stock Image", "A dog runs"),
        ("A dog runs \u2014 Foto de Stock", "A dog runs"),
        ("A dog runs Royalty Free Stock Photography", "A dog runs"),
        ("A dog runs, stock photo #8518266", "A dog runs"),
        ("Stock photo of a dog", "a dog"),
        ("Photo: A dog runs", "A dog runs"),
        ("Stock Photo: Image: A dog runs | Photo 2", "A dog runs"),
        ("A dog runs (click to enlarge)", "A dog runs"),
        ("A dog runs | Free Download", "A dog runs"),
        ('"A dog runs"', "A dog runs"),
        ('"A dog" and "a cat"', '"A dog" and "a cat"'),
        ("a photo of a dog", "a photo of a dog"),
        ("a photo-realistic dog", "a photo-realistic dog"),
        ("Photography of birds - a guide", "Photography of birds - a guide"),
        ("Stock Photo", "Stock Photo"),
        ("   ", ""),
    ],
)
def test_a_caption_loses_its_markup_and_its_frame(caption: str, text: str) -> None:
    assert normalize(caption) == text


@given(st.text(max_size=200))
def test_no_caption_comes_out_longer_or_with_stray_whitespace(caption: str) -> None:
    text = normalize(caption)
    assert text == " ".join(text.split())
    assert len(text) <= len(caption) * 3  # NFC makes a few characters three


def test_a_hostile_caption_takes_no_time() -> None:
    text = normalize(
        "photo: " * 20_000 + "<a" * 20_000 + " &amp;" * 20_000 + "stock photo 1" * 9999
    )
    assert measure(text).words > 0


def test_keys_ignore_case_punctuation_and_spacing() -> None:
    assert caption_key("A Dog's  life, (2020)!") == caption_key("a dog's life 2020")
    assert caption_key("a red car") != caption_key("a red cart")
    assert caption_key("!!!") != caption_key("???")


def test_what_can_be_counted_is_counted() -> None:
    found = measure("A dog, a DOG and a dog - 2 cats")
    assert (found.characters, found.words, found.repeats) == (31, 9, 3)
    assert found.repeat_share == pytest.approx(3 / 9)
    assert found.unique_share == pytest.approx(5 / 9)
    assert found.letters == pytest.approx(19 / 22)


@pytest.mark.parametrize(
    "text",
    [
        "IMG_2034.JPG",
        "DSC04321",
        "4321.jpg",
        "old us41 bridge.jpg",
        "slide_3_of_12",
        "Image (12)",
        "wp-content/uploads/4321",
        "Screenshot 2020",
        "sf-pride_062611_-_23.jpg",
    ],
)
def test_names_of_files_are_recognised(text: str) -> None:
    assert measure(text).filename


@pytest.mark.parametrize(
    "text",
    [
        "photo",
        "Untitled",
        "null",
        "Stock Photo",
        "image 12",
        "no image available",
        "click to enlarge picture",
        "Image result for red cars",
        "this image may contain a person",
    ],
)
def test_placeholders_and_phrases_of_the_site_are_recognised(text: str) -> None:
    assert measure(text).boilerplate


@pytest.mark.parametrize(
    "text",
    [
        "a man takes a photo of his image in a window",
        "a sign says click and collect",
        "a logo on a t-shirt",
        "4x4 truck on a dirt road",
        "two red circles on a green field",
        "a and/or b gate diagram",
    ],
)
def test_captions_are_no_junk(text: str) -> None:
    found = measure(text)
    assert not (found.filename or found.url or found.boilerplate)
    assert found.repeats <= 2 and found.letters > 0.5


def test_urls_are_recognised() -> None:
    assert measure("see https://example.com/a.png").url
    assert measure("favors from WWW.example.com").url
    assert not measure("Astropad review on CreativePro.com").url


@pytest.mark.parametrize(
    "text",
    [
        "two red circles on a green field",
        "A SMALL RED STAR ABOVE A BIG BLUE HOUSE",
        "Three Little White Balls On The Beach",
        "a black dog jumps down a snowy hill",
    ],
)
def test_short_english_captions_are_english(text: str) -> None:
    language, score = LanguageDetector(("en",))(text)
    assert language == "en" or score > 0.05


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Ein kleiner roter Ball liegt auf der gr\u00fcnen Wiese", "de"),
        ("Une grande maison blanche au bord de la mer", "fr"),
        ("\u96ea\u306e\u4e2d\u3092\u8d70\u308b\u8336\u8272\u306e\u72ac", "ja"),
    ],
)
def test_foreign_captions_are_foreign_until_their_language_is_wanted(
    text: str, language: str
) -> None:
    found, score = LanguageDetector(("en",))(text)
    assert found == language and score < 0.05
    _, wanted = LanguageDetector(("en", language))(text)
    assert wanted > 0.5


def test_a_text_of_nothing_has_some_language_and_raises_nothing() -> None:
    for text in ("", "...", "\U0001f600", "a" * 100_000):
        language, score = LanguageDetector(("en",))(text)
        assert language and 0 <= score <= 1
