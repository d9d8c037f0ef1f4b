import html
import json
import re

import pyarrow as pa
import pytest
from helpers.pages import CHROMIUM, PageBrowser
from helpers.runs import HOSTILE, Page, make_run, manifest

from pipeline.cli.main import main
from pipeline.manifest.plan import Plan
from pipeline.report import compare
from pipeline.report.layout import environment
from pipeline.results.verdicts import Results
from pipeline.storage.run import Run

STAGES = ("download", "clean", "caption", "filter")


def run_of(root, **fields):
    plan = Plan(manifest(root, STAGES, **fields))
    return Results(make_run(root, plan), plan)


def fate_of(results):
    """The first reason of each row, by uid."""
    found = {}
    for shard in results.run.shards("pool"):
        judged = results.judge(shard)
        reasons = pa.table({name: column for name, column in judged.reasons.items()}).to_pylist()
        for uid, row in zip(judged.uids.to_pylist(), reasons, strict=True):
            found[uid] = next((f"{n}: {r}" for n, r in row.items() if r), "kept")
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on the same rows, the second stricter."""
    root = tmp_path_factory.mktemp("runs")
    return (
        run_of(root / "loose"),
        run_of(root / "strict", filter={"min_itm": 0.65}, clean={"min_words": 8}),
    )


@pytest.fixture(scope="module")
def written(runs):
    path, counts = compare.write(*runs)
    with open(path, encoding="utf-8") as file:
        return path, counts, file.read()


def test_rows_are_joined_by_uid_and_their_verdicts_counted(runs, written):
    _, counts, _ = written
    old, new = map(fate_of, runs)
    assert counts["both"] == len(old) == len(new)
    assert counts["only_before"] == counts["only_after"] == 0
    rejected = sum(old[uid] == "kept" != new[uid] for uid in old)
    kept = sum(new[uid] == "kept" != old[uid] for uid in old)
    assert rejected and (counts["newly_rejected"], counts["newly_kept"]) == (rejected, kept)
    assert counts["changed"] >= sum(old[uid] != new[uid] for uid in old)  # kept texts count too


def test_settings_counts_and_changes_stand_on_the_page(runs, written):
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", written[2])).split())
    assert "clean.min_words 3 8" in text
    assert "filter.min_itm 0.5 0.65" in text
    assert "too few words 0 4 +4 " in text
    moved = re.search(r"too few words 0 4 \+4 (\d+) before ([a-z ]+)", text)
    assert moved and 0 < int(moved[1]) <= 4
    assert "kept with web captions \u2192 filter: unmatched" in text
    assert "kept with web and synthetic captions \u2192 kept with synthetic captions" in text
    changes = re.findall(r'<details class="card change".*?</details>', written[2], re.S)
    assert changes and all("<img" in change for change in changes[:1])
    assert "<h4>loose</h4>" in changes[0] and "<h4>strict</h4>" in changes[0]


def test_differences_come_before_what_is_the_same(runs, written):
    figures = re.findall(r"<h3>(.*?)</h3>", written[2].split('id="distributions"')[1])
    assert figures and "ITM scores of web captions" in figures
    same = re.findall(r"(\d+) the same", Page(written[2]).text)
    assert same  # folded away


def test_a_run_does_not_differ_from_itself(runs, tmp_path):
    out = tmp_path / "same.html"
    path, counts = compare.write(runs[0], runs[0], out=str(out))
    assert path == str(out)
    assert counts["changed"] == counts["newly_kept"] == counts["newly_rejected"] == 0
    text = Page(out.read_text()).text
    assert f"All {counts['both']} rows in both have the same verdict" in text
    assert "Manifests, models, versions and machines are the same" in text


def test_other_stages_and_rows_are_compared_as_far_as_they_go(tmp_path):
    one = Plan(manifest(tmp_path / "one", ("download",), export=False))
    two = Plan(manifest(tmp_path / "two", ("download", "clean", "filter")))
    few = Results(make_run(tmp_path / "one", one, shards=1), one)
    unfinished = Results(make_run(tmp_path / "two", two, until="clean"), two)
    _, counts = compare.write(few, unfinished)
    assert (counts["both"], counts["only_before"], counts["only_after"]) == (40, 0, 80)
    empty = Results(Run(str(tmp_path / "three")), Plan(manifest(tmp_path / "three")))
    _, counts = compare.write(few, empty)
    assert (counts["both"], counts["only_before"]) == (0, 40)


def test_hostile_captions_are_text(written):
    page = Page(written[2])
    scripts = [attributes.get("type") for tag, attributes in page.elements if tag == "script"]
    assert scripts.count(None) == 2 and set(scripts) == {None, "application/json"}
    assert not [name for _, some in page.elements for name in some if name.startswith("on")]
    for _, attributes in page.elements:
        value = attributes.get("src", attributes.get("href"))
        assert value is None or value.startswith(("data:image/webp;base64,", "#"))
    assert any(html.unescape(text) in page.text for text in HOSTILE[:3])
    assert "49 at night" not in page.text


def test_the_command_says_where_the_page_is(runs, tmp_path, capsys):
    out = tmp_path / "page.html"
    roots = [results.run.root for results in runs]
    assert main(["compare", *roots, "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out and out.stat().st_size
    assert main(["compare", *roots, "--out", str(tmp_path / "no" / "page.html")]) == 2
    assert "--out" in capsys.readouterr().err
    assert main(["compare", roots[0], str(tmp_path / "none")]) == 2
    assert "no run there" in capsys.readouterr().err


def test_the_facts_lie_beside_the_page_as_json(runs, written, tmp_path):
    path, counts, _ = written
    with open(f"{path.removesuffix('.html')}.json", encoding="utf-8") as file:
        facts = json.load(file)
    assert facts["counts"] == counts and facts["names"] == ["loose", "strict"]
    assert {**{"label": "filter.min_itm", "before": "0.5", "after": "0.65", "moved": ""}} in facts[
        "settings"
    ]
    assert sum(change["rows"] for change in facts["changes"]) == counts["changed"]
    assert [line["label"] for line in facts["funnel"]["filter"]][:2] == ["rows", "kept"]
    assert facts["histograms"]["strict"]["web_itm"]["edges"][0] == 0
    compare.write(*runs, out=str(tmp_path / "page.htm"))
    beside = json.loads((tmp_path / "page.json").read_text())
    own = {"made": "", "seal": ""}
    assert {**beside, **own} == {**facts, **own}


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize(("width", "dark"), [(1280, True), (390, False)])
def test_a_browser_shows_it_and_asks_for_nothing(written, tmp_path, width, dark):
    with PageBrowser(tmp_path / "profile") as browser:
        browser.visit(written[0], width=width, dark=dark)
        browser.value("document.querySelectorAll('details').forEach(one => one.open = true)")
        browser.draw()
        series = "[...document.querySelectorAll('.plot')].map(plot => plot.data.length)"
        assert set(browser.value(series)) == {2}
        assert browser.value("document.documentElement.scrollWidth") <= width
        assert browser.requests == [f"file://{written[0]}"]
        assert browser.complaints == []
        assert browser.picture_of_all(tmp_path / "page.png").stat().st_size > 20_000


def test_numbers_that_read_the_same_are_the_same():
    assert compare.Line(label="x", before=0.12341, after=0.12342).is_same
    assert not compare.Line(label="x", before=0.1, after=0.2).is_same
    shown = environment().from_string("{{ value | change }}")
    values = (0.9885 - 0.9884, 0.98836 - 0.98881, -3e-7, 0.25, -13, 0)
    told = ["+0.0001", "\u22120.0004", "\u22120.0000003", "+0.250", "\u221213", "0"]
    assert [shown.render(value=value) for value in values] == told
    assert not compare.Line(label="x", before=1, after=2).is_same
