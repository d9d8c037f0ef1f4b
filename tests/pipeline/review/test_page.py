"""The page in a browser."""

import os

import pytest
from helpers.browser import CHROMIUM, Browser
from helpers.reviews import BIDI, SCRIPT, serving

from pipeline.results.open_run import open_plan
from stages.review import Decision, read_decisions


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_keys_decide_in_a_browser(run, tmp_path):
    with serving(run, "any") as server, Browser(tmp_path / "profile") as browser:
        texts = [pair.caption for pair in server.pairs]
        hostile = [texts.index(SCRIPT), texts.index(BIDI)]
        browser.open(server.url)
        browser.wait("!document.querySelector('#one').hidden && image.complete")
        shown = "document.querySelector('#caption').textContent"
        place = "document.querySelector('#number').textContent"
        number = len(texts)
        assert browser.value(shown) == visible(texts[0])
        browser.picture(tmp_path / "one.png")
        browser.press("a")
        browser.press("r")
        assert browser.value(place) == f"3 of {number}"
        browser.press("f")
        assert browser.value("document.activeElement.id") == "text"
        browser.press("a")  # a letter, within the caption
        browser.type(" caption by hand")
        browser.picture(tmp_path / "fix.png")
        browser.press("Enter")
        browser.press("f")
        browser.press("Escape")
        assert browser.value("form.hidden && fix === document.activeElement")
        browser.press("ArrowLeft")
        browser.press("ArrowLeft")
        browser.press("u")
        browser.press("ArrowLeft")
        browser.wait("saving.then(() => true)")
        assert browser.value(place) == f"1 of {number}"
        assert read_decisions(server.ledger._file) == {
            server.pairs[0].key: Decision("accept"),
            server.pairs[2].key: Decision("fix", "a caption by hand"),
        }
        for index in hostile:
            while browser.value("current") < index:
                browser.press("ArrowRight")
            while browser.value("current") > index:
                browser.press("ArrowLeft")
            assert browser.value(shown) == visible(texts[index])
            assert browser.value("document.querySelectorAll('#caption *').length") == 0
            assert browser.value("getComputedStyle(caption).unicodeBidi") == "isolate"
        browser.press("g")
        browser.wait("document.querySelectorAll('#grid li').length === pairs.length")
        browser.wait(
            "[...document.querySelectorAll('#grid img')].slice(0, 8).every((i) => i.complete)"
        )
        browser.picture(tmp_path / "grid.png")
        browser.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark"}],
        )
        browser.press("g")
        browser.picture(tmp_path / "dark.png")
        assert "pwned" not in browser.value("document.title")
        assert browser.value("[...document.images].every((image) => image.alt)")
        browser.value("done()")
        browser.wait("document.querySelector('#finished') !== null")
        sent = [told["request"]["url"] for told in browser.told("Network.requestWillBeSent")]
        assert server.url in sent
        assert all(url.startswith(server.url) or url == "data:," for url in sent)
        assert not browser.told("Runtime.exceptionThrown")
        entries = [told["entry"] for told in browser.told("Log.entryAdded")]
        assert not [e for e in entries if not e.get("url", "").endswith(broken(server))]
        assert not browser.told("Runtime.consoleAPICalled")


def visible(text):
    return text.replace("\x1b", "\ufffd").replace("\u202e", "\ufffd")


def broken(server):
    """The end of the address of the image that cannot be decoded."""
    places = [n for n, pair in enumerate(server.pairs) if pair.url.endswith("/7")]
    return tuple(f"/images/{place}" for place in places)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_decision_that_is_not_saved_is_told_and_taken_back(run, tmp_path):
    with Browser(tmp_path / "profile", (390, 844)) as browser, serving(run, "kept") as server:
        browser.open(server.url)
        browser.wait("!document.querySelector('#one').hidden && image.complete")
        browser.picture(tmp_path / "phone.png")
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
        os.mkdir(open_plan(run).manifest.reviews)  # nothing can be renamed onto a folder
        browser.press("r")
        browser.wait("saving.then(() => true)")
        assert not browser.value("document.querySelector('#trouble').hidden")
        assert browser.value("current") == 0
        assert browser.value("pairs[0].decision") is None
