import json

import pytest
from helpers import fakes
from hypothesis import given
from hypothesis import strategies as st

from pipeline.demo.tokenizer import write_tokenizer
from stages.documents import EOC, IMAGE, Document, Documents, DocumentsConfig, parse

PROSE = (
    "The old harbour lies to the north of the town and has been there for ages.",
    "Boats of all sizes come to it every morning with fish that people have waited for.",
    "In winter the quay is quiet, but in summer visitors fill each bench along the water.",
    "A small museum tells how the lighthouse was built and who kept its lamp burning.",
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return str(folder)


@pytest.fixture(scope="module")
def documents(tokenizer):
    return Documents(DocumentsConfig(tokenizer=tokenizer, max_tokens=40, min_words=20))


def document(*parts):
    return Document("0" * 32, "http://example.org/", parts)


def page(*images):
    texts = [("text", text) for text in PROSE]
    return document(*(("image", url) for url in images), *texts)


def test_mmc4_images_stand_before_the_text_they_were_matched_to():
    found = parse(
        {
            "url": "http://example.org/",
            "text_list": ["one", "two"],
            "image_info": [
                {"raw_url": "http://a/2.jpg", "matched_text_index": 1},
                {"raw_url": "http://a/1.jpg", "matched_text_index": 0},
                {"raw_url": "http://a/3.jpg", "matched_text_index": 9},
            ],
        }
    )
    assert found is not None and found.parts == (
        ("image", "http://a/1.jpg"),
        ("text", "one"),
        ("image", "http://a/2.jpg"),
        ("text", "two"),
        ("image", "http://a/3.jpg"),
    )


def test_obelics_keeps_its_order():
    found = parse({"texts": [None, "one", None], "images": ["http://a/1", None, "http://a/2"]})
    assert found is not None and found.parts == (
        ("image", "http://a/1"),
        ("text", "one"),
        ("image", "http://a/2"),
    )
    assert parse({"texts": ["one"], "images": []}) is None
    assert parse({"url": "http://a/1.jpg", "caption": "one"}) is None


def test_each_rule_rejects_what_it_is_for(documents):
    live = lambda url: url  # noqa: E731
    text = [("text", one) for one in PROSE]
    image = ("image", "http://a/1")
    german = "Der alte Hafen liegt im Norden der Stadt und ist seit langer Zeit dort zu finden."
    cases = {
        "unreadable": None,
        "not_english": document(image, *(("text", german),) * 3),
        "no_image": document(*text),
        "too_few_words": document(image, text[0]),
        "repetitive": document(image, *text, *text),
        "symbols": document(image, *text, ("text", "The boats # # # # # # # # of # # # the town")),
        "ellipses": document(image, *((kind, value + "...") for kind, value in text)),
    }
    assert {name: documents.judge(one, live) for name, one in cases.items()} == {
        name: name for name in cases
    }
    assert documents.judge(page("http://a/1"), live) is None
    assert documents.judge(page("http://a/1"), lambda url: None) == "no_image_left"


def test_a_short_document_comes_whole(tokenizer):
    documents = Documents(DocumentsConfig(tokenizer=tokenizer))
    found = documents.cut(
        document(
            ("image", "one"), ("text", " A  first text. "), ("image", "two"), ("text", "The end")
        ),
        {"one": "uid1", "two": "uid2"}.get,
    )
    assert found.text == f"{EOC}{IMAGE}A first text. {EOC}{IMAGE}The end {EOC}"
    assert found.images == ("uid1", "uid2")


def test_lost_images_and_those_after_the_last_wanted_leave_no_tag(tokenizer):
    documents = Documents(DocumentsConfig(tokenizer=tokenizer, max_images=2))
    parts = [part for i in range(4) for part in (("image", str(i)), ("text", f"text {i}"))]
    found = documents.cut(document(*parts), lambda url: None if url == "1" else f"u{url}")
    assert found.images == ("u0", "u2")
    assert found.text == f"{EOC}{IMAGE}text 0 text 1 {EOC}{IMAGE}text 2 text 3 {EOC}"


def test_what_a_page_says_cannot_pass_for_a_tag(tokenizer):
    documents = Documents(DocumentsConfig(tokenizer=tokenizer))
    found = documents.cut(document(("image", "0"), ("text", f"a {IMAGE} b {EOC}")), str)
    assert found.text.count(IMAGE) == 1 and found.text.count(EOC) == 2


@given(st.lists(st.one_of(st.just(("image", "u")), st.sampled_from(PROSE)), max_size=12), st.data())
def test_a_sequence_is_short_and_every_tag_has_its_image(documents, parts, data):
    seed = data.draw(st.integers(0, 2**64))
    parts = [part if isinstance(part, tuple) else ("text", part) for part in parts]
    found = documents.cut(Document(f"{seed:032x}", "", (("image", "u"), *parts)), lambda url: url)
    assert found.tokens <= 40
    assert found.text.count(IMAGE) == len(found.images)
    assert 1 <= len(found.images) <= 5
    assert found.text.count(EOC + IMAGE) == len(found.images)


@pytest.mark.skipif(not (fakes.SHARED / "data/mmc4").exists(), reason="needs ../shared/data/mmc4")
def test_real_documents_are_read_and_most_spam_is_seen(documents):
    file = fakes.SHARED / "data" / "mmc4" / "docs_first54.jsonl"
    found = [parse(json.loads(line)) for line in file.read_text().splitlines()]
    assert len(found) == 54 and all(one is not None and one.images for one in found)
    reasons = [documents.judge(one, lambda url: url) for one in found]
    assert 10 < reasons.count(None) < 54
    for one, reason in zip(found, reasons, strict=True):
        if reason is None:
            assert one is not None
            cut = documents.cut(one, lambda url: url)
            assert cut.tokens <= 40 and 1 <= len(cut.images) <= 5
