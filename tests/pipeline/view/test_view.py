"""The page of all rows: what it may answer, and what a browser makes of it."""

import contextlib
import json
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
from helpers.browser import CHROMIUM, Browser
from helpers.runs import HOSTILE, make_run, manifest

from pipeline.manifest.plan import Plan
from pipeline.results.verdict_table import verdict_tables
from pipeline.results.verdicts import Results
from pipeline.view.rows import Query, RowIndex
from pipeline.view.server import PAGE, ViewServer


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    plan = Plan(manifest(root))
    return Results(make_run(root, plan), plan)


@pytest.fixture(scope="module")
def index(results):
    return RowIndex(results)


@pytest.fixture(scope="module")
def verdicts(results):
    shards = results.run.shards("pool")
    return [row for table in verdict_tables(results, shards) for row in table.to_pylist()]


@contextlib.contextmanager
def serving(results):
    with ViewServer(results) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server, path):
    with urllib.request.urlopen(server.url + path, timeout=60) as answer:
        return answer.read()


def test_every_row_is_there_with_its_verdict(index, verdicts):
    rows = index.rows(range(len(verdicts)))
    assert [row["uid"] for row in rows] == [row["uid"] for row in verdicts]
    assert [row["reason"] for row in rows] == [row["reason"] for row in verdicts]
    facts = index.facts()
    assert facts["rows"] == len(verdicts)
    assert facts["kept"] == sum(row["stage"] == "kept" for row in verdicts)
    assert sum(one["rows"] for one in facts["reasons"]) == facts["rows"] - facts["kept"]


def test_filters_choose_what_they_say(index, verdicts):
    def chosen(**fields):
        return index.select(Query(**fields))[0].tolist()

    every = range(len(verdicts))
    assert chosen() == [*every]
    assert chosen(fate="kept") == [i for i in every if verdicts[i]["stage"] == "kept"]
    assert chosen(stage="filter", reason="unmatched") == [
        i for i in every if verdicts[i]["reason"] == "unmatched"
    ]
    assert chosen(text="RED ball") == [i for i in every if {"red", "ball"} <= words_of(index, i)]
    assert chosen(text=verdicts[7]["uid"]) == [7]
    assert chosen(text="no such text anywhere") == []


def test_a_moved_threshold_shows_what_it_would_take(index):
    column = "filter.min_itm"
    assert index.limits[column] == 0.5
    whole, counts = index.select(Query(column=column))
    assert sum(counts["rows"]) == np.isfinite(index.numbers[column]).sum()
    low, same = index.select(Query(column=column, low=0.8, sort="down"))
    values = index.numbers[column][low]
    assert same == counts and 0 < len(low) < len(whole)
    assert (values >= 0.8).all() and (np.diff(values) <= 0).all()
    stages, reasons = (index.table[name].to_pylist() for name in ("stage", "reason"))
    for least in (0.8, 0.4, 0.0):
        rows, _ = index.select(Query(column=column, low=least))
        found = index.tally(rows, column)
        unmatched = [i for i in rows if (stages[i], reasons[i]) == ("filter", "unmatched")]
        assert found["reason"] == "unmatched" and found["rejected"] == len(unmatched)
        assert found["kept"] == sum(stages[i] == "kept" for i in rows)
        assert bool(unmatched) == (least < 0.5)
    with pytest.raises(ValueError, match="no column"):
        index.select(Query(column="x"))


def test_rows_without_a_value_come_last_and_none_is_lost(index):
    for sort in ("up", "down"):
        rows, _ = index.select(Query(column="filter.itm_web", sort=sort))
        assert sorted(rows.tolist()) == [*range(index.table.num_rows)]
        missing = np.isnan(index.numbers["filter.itm_web"][rows])
        assert missing.any() and (np.diff(missing.astype(int)) >= 0).all()


def test_dark_and_blurred_images_can_be_found(index):
    assert {"image.brightness", "image.sharpness", "image.aspect"} <= set(index.numbers)
    assert "dedup.image_distance" in index.numbers


def test_pages_hold_all_rows_once(results, index):
    with serving(results) as server:
        first = json.loads(get(server, "rows"))
        seen = [
            row["index"]
            for page in range(first["pages"])
            for row in json.loads(get(server, f"rows?page={page}"))["rows"]
        ]
        assert seen == [*range(index.table.num_rows)]
        assert first["total"] == len(seen) and len(first["rows"]) == PAGE
        assert get(server, "images/0")[:2] == get(server, "thumbs/0")[:2] == b"\xff\xd8"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("rows?low=nan&column=filter.itm_web", 400),
        ("rows?low=much", 400),
        ("rows?page=-1", 400),
        ("rows?colour=red", 400),
        ("rows?column=x", 400),
        ("images/999999", 404),
        ("images/../facts", 404),
        ("pairs", 404),
    ],
)
def test_what_cannot_be_answered_is_refused(results, path, status):
    with serving(results) as server:
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(server, path)
        assert refused.value.code == status
        token, server.token = server.token, "other"
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://{server.hosts[0]}/{token}/facts", timeout=60)
        assert refused.value.code == 403


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_person_searches_filters_sorts_and_looks_close(results, tmp_path):
    shown = "document.querySelectorAll('#rows .row').length"
    told = "document.querySelector('#told').textContent"
    with serving(results) as server, Browser(tmp_path / "profile") as browser:
        browser.open(server.url)
        browser.wait(f"{shown} === {PAGE}")
        assert browser.value(told) == "120 of 120 rows"

        def set_to(name, value):
            browser.value(
                f"(e => (e.value = {value!r}, e.dispatchEvent(new Event('input', "
                f"{{bubbles: true}}))))(document.querySelector('#query').elements.{name})"
            )

        browser.wait(
            "[...document.querySelectorAll('#rows img')].slice(0, 4).every(i => i.complete)"
        )
        assert "document.title='pwned'" in browser.value("document.body.innerText")
        assert browser.value("document.title") == "hostile <b>run \u00b7 capfilt view"
        assert len(HOSTILE) > 3 and browser.value("document.scripts.length") == 1
        browser.value("document.querySelector('#after').click()")
        browser.wait("document.querySelector('#page').textContent === '2 of 5'")
        set_to("reason", "unmatched")
        browser.wait(f"{told}.startsWith('{unmatched(results)} of')")
        assert browser.value("document.querySelector('#page').textContent[0]") == "1"
        assert browser.value(
            "[...document.querySelectorAll('.verdict')].every(v => v.textContent === "
            "'filter: unmatched')"
        )
        set_to("reason", "")
        set_to("column", "filter.min_itm")
        browser.wait("!document.querySelector('#measure').hidden")
        assert browser.value("document.querySelectorAll('#histogram .limit').length") == 1
        assert browser.value("document.querySelector('#limits').textContent").endswith("0.5")
        set_to("sort", "down")
        set_to("low", "0.9")
        browser.wait("/are within: .* kept now, 0 rej.* as unmatched/.test(would.textContent)")
        address = browser.value("location.href")
        browser.call("Page.navigate", url="about:blank")
        browser.open(address)
        browser.wait("document.querySelector('#would').textContent.includes('are within')")
        browser.value("document.querySelector('.picture').click()")
        browser.wait("document.querySelector('#large-image').naturalWidth > 0")
        assert "capfilt show" in browser.value("document.querySelector('#large').innerText")
        browser.picture(tmp_path / "large.png")
        foreign = "document.querySelector('#rows a')"
        assert browser.value(f"{foreign}.rel") == "noreferrer noopener"
        assert browser.value(f"{foreign}.textContent").endswith("\u2197")
        for width in (390, 1280):
            browser.call(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=900,
                deviceScaleFactor=1,
                mobile=False,
            )
            assert browser.value("document.documentElement.scrollWidth") <= width


def words_of(index, row):
    """Which of the words are somewhere in what is searched of a row."""
    whole = index.table["texts"][row].as_py().lower()
    return {word for word in ("red", "ball") if word in whole}


def unmatched(results):
    shards = results.run.shards("pool")
    tables = verdict_tables(results, shards)
    return sum(reason == "unmatched" for t in tables for reason in t["reason"].to_pylist())
