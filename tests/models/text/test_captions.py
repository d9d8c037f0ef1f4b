from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.text.captions import HINTS, SUFFIX, LanguageDetector, caption_key, measure, normalize


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
        ("A dog runs | Shutterstock .eps vector #93891250", "A dog runs"),
        ("A dog runs - Getty Images", "A dog runs"),
        ("A dog runs | Flickr", "A dog runs"),
        ("A dog runs Stock Image - Image: 24840161", "A dog runs"),
        ("A dog runs Stock photo \u00a9 lunamarina", "A dog runs"),
        ("A dog runs \u2014 Vetorial Stock", "A dog runs"),
        ("A dog runs - Stockvectorbeeld", "A dog runs"),
        ("A dog runs \u2014 Foto Stock #3359431", "A dog runs"),
        ("A dog runs - screenshot thumbnail", "A dog runs"),
        ("A dog runs - jpg", "A dog runs"),
        ("A dog runs - click to enlarge picture", "A dog runs"),
        ("A dog runs. Click to enlarge", "A dog runs"),
        ("Click to view larger image of a dog", "a dog"),
        ("Stock Video Footage of a dog", "a dog"),
        ("Free Stock Photo: A dog runs", "A dog runs"),
        ("Thumbnail for a dog", "a dog"),
        ("Load image into Gallery viewer, valentine&#39;s day roses", "valentine's day roses"),
        ("Stock Photo", "Stock Photo"),
        ("Photo | Stock Photo", "Stock Photo"),
        ("people click to take photos of a stock", "people click to take photos of a stock"),
        ("family photos by Getty Images", "family photos by Getty Images"),
        ("salt &amp;amp;amp;amp;amp;amp; pepper", "salt & pepper"),
        ("a &unknown; dog", "a &unknown; dog"),
        ("a<b<i>>dog", "a dog"),
        ("dog\U000e0041\u202e\ud800 runs", "dog runs"),
        ("   ", ""),
    ],
)
def test_a_caption_loses_its_markup_and_its_frame(caption: str, text: str) -> None:
    assert normalize(caption) == text


# Pieces of what sites write around captions, and of what attackers do.
PIECES = (
    "a dog", " ", "\n", ": ", " | ", " - ", "photo", "Stock Photo", "royalty free", "of ",
    "click to", " enlarge", "(click here)", "&", "amp;", "&lt;", "&#8203;", "<", "b>", ">", '"',
    "\u201c", "\u201d", "\u200f", "e\u0301", "\u00a0", "\ud800", "\x00", "!", "12345", "http://",
    "Getty Images",
)  # fmt: skip
CAPTIONS = st.text(st.characters(), max_size=80) | st.lists(
    st.sampled_from(PIECES), max_size=12
).map("".join)


@settings(max_examples=500)
@given(CAPTIONS)
def test_a_normalised_caption_stays_as_it_is_and_never_grows(caption: str) -> None:
    text = normalize(caption)
    assert normalize(text) == text
    assert text == " ".join(text.split())
    assert len(text) <= len(caption) * 3  # NFC makes a few characters three
    text.encode()  # no lone surrogate is left


@given(CAPTIONS)
def test_a_caption_with_a_word_outside_markup_keeps_one(caption: str) -> None:
    assert normalize(f"{caption}> dogs").strip()


def test_a_fraction_is_a_word() -> None:
    assert measure("½ cup").words == 2


@settings(max_examples=300)
@given(CAPTIONS)
@example("²")
def test_any_text_can_be_measured(text: str) -> None:
    found = measure(text)
    assert found.characters == len(text)
    assert 0 <= found.repeats <= found.words <= found.characters
    for share in (found.repeat_share, found.unique_share, found.letters, found.capitals):
        assert 0 <= share <= 1
    if text and not text.isspace() and normalize(text) == text:
        assert found.letters + found.digits + found.symbols == pytest.approx(1)


@given(st.text(st.characters(max_codepoint=127), max_size=60))
def test_ascii_is_counted_as_any_text_is(text: str) -> None:
    plain, other = measure(text), measure(text + "\u2014")
    assert plain.characters + 1 == other.characters
    visible = len(text) - text.count(" ")
    if visible:
        for name in ("letters", "digits"):
            share = getattr(other, name) * (visible + 1) / visible
            assert getattr(plain, name) == pytest.approx(share)
    assert (plain.capitals, plain.capitalised) == (other.capitals, other.capitalised)


@pytest.mark.parametrize("hint", HINTS)
def test_every_hint_of_a_frame_is_lower_case(hint: str) -> None:
    assert hint == hint.lower()


@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
def test_no_frame_lacks_its_hint(text: str) -> None:
    if SUFFIX.search(text):
        assert any(hint in text.lower() for hint in HINTS)


@pytest.mark.parametrize(
    "text",
    [
        "photo: " * 150_000,
        " | stock photo" * 80_000,
        "!" * 500_000 + " | stock photo" * 40_000,
        "&" + "amp;" * 250_000,
        "<b" * 300_000 + ">" * 300_000,
        '"' * 1_000_000,
        "1-" * 500_000,
        "a@" * 500_000,
        "\u0301" * 1_000_000,
        "\u202e" * 1_000_000,
        "photo: " * 20_000 + "<a" * 20_000 + " &amp;" * 20_000 + "stock photo 1" * 9999,
    ],
    ids=lambda text: ascii(text[:8]),
)
def test_a_hostile_megabyte_is_a_text_like_any_other(text: str) -> None:
    assert measure(normalize(text)).characters <= len(text)


def test_keys_ignore_case_punctuation_and_spacing() -> None:
    assert caption_key("A Dog's  life, (2020)!") == caption_key("a dog's life 2020")
    assert caption_key("a red car") != caption_key("a red cart")
    assert caption_key("!!!") != caption_key("???")


@given(st.text(st.characters(categories=["Lu", "Ll", "Lo", "Lm", "Mn", "Mc"]), max_size=30))
def test_one_spelling_of_a_word_has_one_key(text: str) -> None:
    key = caption_key(text)
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert caption_key(unicodedata.normalize(form, text)) == key
    assert caption_key(key) == key


@given(
    st.text(st.characters(min_codepoint=0x915, max_codepoint=0x939), min_size=1, max_size=8),
    st.integers(0, 7),
    st.sampled_from("\u093e\u093f\u0940\u0941\u0942\u0947\u0948\u094b\u094c\u094d\u0902"),
)
def test_a_vowel_sign_makes_another_word(text: str, place: int, sign: str) -> None:
    other = text[: place % len(text) + 1] + sign + text[place % len(text) + 1 :]
    assert caption_key(f"a {text} b") != caption_key(f"a {other} b")
    assert caption_key(f"a {other} b") == f"a {other} b"
    assert measure(other).words == 1 and measure(other).symbols == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Women's shoe", "Women\u2019s shoe"),
        ("rock \u2018n\u2019 roll", "rock 'n' roll"),
        ("rock\u02bcn\u02bcroll", "Rock\uff07n`ROLL"),
        ("\uff21 \uff32\uff25\uff24 \uff24\uff2f\uff27 \uff11", "a red dog 1"),
        ("\uff76\uff9e\uff97\uff7d", "\u30ac\u30e9\u30b9"),
        (
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
            "\u0645\u06cc\u062e\u0648\u0627\u0647\u0645",
        ),
        ("stra\u00dfe", "STRASSE"),
        ("\ufb01sh", "fish"),
    ],
    ids=ascii,
)
def test_ways_to_write_one_caption_have_one_key(one: str, other: str) -> None:
    assert caption_key(one) == caption_key(other) == caption_key(normalize(other))


def test_faces_without_words_are_their_own_keys() -> None:
    assert len(set(map(caption_key, ("\U0001f600", "\U0001f602", "\u2764")))) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\u4e00\u53ea\u7ea2\u8272\u7684\u9e1f\uff0c\u5728\u96ea\u4e2d\u3002", 9),
        ("\u96ea\u306e\u4e2d\u306e\u30b3\u30fc\u30d2\u30fc", 8),
        ("\u0e2b\u0e21\u0e32\u0e27\u0e34\u0e48\u0e07", 5),
        ("\ube68\uac04 \uc0c8\uac00 \ub208 \uc18d\uc5d0", 4),
        ("\u092f\u0939 \u090f\u0915 \u092e\u093e\u0932\u093e \u0939\u0948", 4),
        ("iPhone 15 \u624b\u673a\u58f3", 5),
        ("caf\u00e9 \u2013 bar", 2),
    ],
    ids=ascii,
)
def test_words_are_counted_as_their_script_has_them(text: str, words: int) -> None:
    assert measure(text).words == words
    found = measure(" ".join([text] * 2))
    assert found.words == 2 * words


def test_repetition_is_told_in_scripts_without_blanks() -> None:
    assert measure("\u54c8" * 9).repeat_share == 1
    red = "\u7ea2\u8272\u7684\u5927\u7684\u5706\u7684\u7403\u7684\u56fe"
    assert measure(red).repeats == 1 and measure(red).unique_share == 1


def test_full_width_letters_are_shown_as_plain_ones() -> None:
    assert normalize("\uff2c\uff25\uff24 \u706f\uff0c\uff11\uff10\uff37") == "LED \u706f\uff0c10W"
    assert normalize("5 m\u00b2 \u00bd") == "5 m\u00b2 \u00bd"


def test_what_can_be_counted_is_counted() -> None:
    found = measure("A dog, a DOG and a dog - 2 cats")
    assert (found.characters, found.words, found.repeats) == (31, 9, 3)
    assert found.repeat_share == pytest.approx(3 / 9)
    assert found.unique_share == pytest.approx(5 / 9)
    assert found.letters == pytest.approx(19 / 22)
    assert found.digits == pytest.approx(1 / 22)
    assert found.symbols == pytest.approx(2 / 22)
    assert found.capitals == pytest.approx(4 / 19)
    assert found.capitalised


def test_the_first_letter_decides_whether_a_caption_is_capitalised() -> None:
    assert measure('"12 Dogs').capitalised
    assert measure("\u00c9t\u00e9").capitalised
    assert not measure("a DOG").capitalised
    assert not measure("12 !").capitalised
    assert not measure("\u96ea").capitalised  # without case


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("mail me at jo.doe+x@example.com now", True),
        ("call (555) 123-4567", True),
        ("call 1-800-555-0199 today", True),
        ("+44 20 7946 0958", True),
        ("on 2018-06-03 at 10:30", False),
        ("ISBN 978-0-340-82975-2", False),
        ("1920 x 1080, 100 200 300", False),
        ("code 400-04986850", False),
        ("@example on a sign", False),
    ],
)
def test_addresses_and_telephone_numbers_are_recognised(text: str, holds: bool) -> None:
    assert measure(text).contact == holds


def test_what_is_left_of_an_entity_is_recognised() -> None:
    assert measure("a &unknown; dog").entity
    assert not measure("salt & pepper; more").entity


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
