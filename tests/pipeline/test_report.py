import base64
import hashlib
import html
import itertools
import json
import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import CHROMIUM, PageBrowser
from PIL import Image
from runs import BREAKOUT, COMMIT, FULL, SCRIPT, Page, make_run, manifest, with_nulls

from pipeline.plan import Plan
from pipeline.report import build
from pipeline.report.borders import CLEAN, DEDUP, borders
from pipeline.report.charts import Histogram
from pipeline.report.figures import DISTRIBUTIONS
from pipeline.report.frequent import Frequent
from pipeline.report.health import variety
from pipeline.report.plots import curves, histogram, intervals
from pipeline.report.survey import Smallest, survey
from pipeline.status import funnel
from pipeline.store import Run
from stages.clean import CleanConfig, CleanStage
from stages.dedup import DedupStage

EVALUATION = {
    "blip": {"model": "y", "metrics": {"ir@1": 0.5, "captioning": {"cider": 0.8}}},
    "start": {"model": "x", "metrics": {"ir@1": 0.25, "captioning": {"cider": 0.4}}},
}
SCORES = [{"stage": "dedup", "precision": 0.99, "recall": 0.97, "num_rejected": 12}]
TRUTH = {"stages": SCORES, "raw_true": 0.5, "exported_true": 0.951, "synthetic_true": None}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run with models, evaluation and truth, and its report."""
    root = tmp_path_factory.mktemp("run")
    plan = Plan(manifest(root))
    run = make_run(root, plan)
    lines = [
        {"step": step, "loss": 9 / step, "itc": 4 / step, "itm": 0.7, "lm": 3.0 / step, "lr": 1e-4}
        | {"mlm": 2.0 / step, "images_per_second": 250.0}
        for step in range(1, 400)
    ]
    content = "\n".join(['{"step": 0, "loss": NaN}', *map(json.dumps, lines), '{"step": 4'])
    run.write(content.encode(), "models", "filter", "metrics.jsonl")
    lines = [{"step": step, "clip": 5 / step, "loss": 5 / step} for step in range(1, 9)]
    run.write("\n".join(map(json.dumps, lines)).encode(), "models", "clip", "metrics.jsonl")
    samples = [
        {"step": step, "caption": SCRIPT, "written": f"a boat {BREAKOUT} {step}"}
        for step in (100, 200, 300)
        for _ in range(9)
    ]
    run.write("\n".join(map(json.dumps, samples)).encode(), "models", "filter", "samples.jsonl")
    build.write(run, plan, funnel(run, plan), evaluation=EVALUATION, truth=TRUTH)
    return run, plan


def page_of(run):
    return Page(run.read("report", "index.html").decode())


def plots_of(content):
    """The label and the Plotly figure of each plot of a page, by its title."""
    found = re.findall(
        r'<h3>([^<]*)</h3>(?:(?!<h3>).)*?<div class="plot" role="img" aria-label="([^"]*)">.*?'
        r'<script type="application/json">(.*?)</script>',
        content,
        re.S,
    )
    assert len(found) == content.count('class="plot"')
    return {html.unescape(title): (label, json.loads(data)) for title, label, data in found}


def facts_of(run):
    return run.read_json("report", "report.json")


def test_every_row_is_conserved_in_every_stage(whole):
    stages = facts_of(whole[0])["stages"]
    assert [stage["name"] for stage in stages] == [*FULL, "export"]
    for stage in stages:
        assert stage["is_conserved"]
        assert stage["rows"] == (
            stage["kept"] + sum(stage["reasons"].values()) + stage["not_measured"]
        )
    for before, after in itertools.pairwise(stages):
        assert after["rows"] == before["kept"]


def test_the_texts_counted_are_the_pairs_exported(whole):
    facts = facts_of(whole[0])
    assert facts["output"]["pairs"] == {
        source: facts["texts"][source]["kept"] for source in ("web", "synthetic")
    }
    cells = facts["cells"]
    assert cells["both"] + cells["web"] == facts["texts"]["web"]["kept"]
    assert (
        cells["none"]
        == next(s for s in facts["stages"] if s["name"] == "filter")["reasons"]["unmatched"]
    )


def test_histograms_hold_every_text_and_image(whole):
    facts = facts_of(whole[0])
    for source in ("web", "synthetic"):
        texts = facts["texts"][source]
        assert sum(facts["histograms"][f"{source}_words"]["series"]["found"]) == texts["found"]
        assert sum(facts["histograms"][f"{source}_words"]["series"]["kept"]) == texts["kept"]
        assert sum(facts["histograms"][f"{source}_itm"]["series"]["texts"]) == texts["judged"]
    sides = facts["histograms"]["log2_shorter_side"]["series"]
    assert sum(sides["found"]) == facts["stages"][0]["kept"]
    assert sum(sides["kept"]) == facts["output"]["rows"]


def test_a_hostile_caption_is_text_and_nothing_else(whole):
    page = page_of(whole[0])
    scripts = [attributes.get("type") for tag, attributes in page.elements if tag == "script"]
    assert scripts.count(None) == 2  # Plotly and our own; the others hold data
    assert set(scripts) == {None, "application/json"}
    assert "document.title='pwned'" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert "49 at night" not in page.text
    assert whole[0].read("report", "index.html").startswith(b"<!doctype html>")
    assert "\x00" not in page.text and "\x1b" not in page.text
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert "style" not in attributes


def test_the_page_asks_for_nothing(whole):
    content = whole[0].read("report", "index.html").decode()
    page = Page(content)
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {t for t, _ in page.elements}
    for _, attributes in page.elements:
        for name in ("src", "srcset", "href", "xlink:href", "poster", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/jpeg;base64,", "#")), value
    style = re.search(r"<style>(.*?)</style>", content, re.S).group(1)
    assert "url(" not in style and "@import" not in style
    policies = [a["content"] for t, a in page.elements if a.get("http-equiv")]
    assert len(policies) == 1 and policies[0].startswith("default-src 'none'; img-src data:;")
    for kind, more in (("style", [b""]), ("script", [])):
        parts = re.findall(rf'<{kind}(?: id="\w+")?>(.*?)</{kind}>', content, re.S)
        digests = {
            f"'sha256-{base64.b64encode(hashlib.sha256(part).digest()).decode()}'"
            for part in [part.encode() for part in parts] + more
        }
        allowed = re.search(rf"{kind}-src ([^;]*);", policies[0]).group(1).split()
        assert set(allowed) == digests and len(digests) == 2


def test_every_image_and_chart_says_what_it_is(whole):
    page = page_of(whole[0])
    assert all(attributes.get("alt") for tag, attributes in page.elements if tag == "img")
    for tag, attributes in page.elements:
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"
        if attributes.get("class") == "plot":
            assert attributes.get("aria-label") and attributes.get("role") == "img"
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [a["href"] for t, a in page.elements if t == "a"]
    assert {link.removeprefix("#") for link in links} <= set(ids)


def test_each_reason_shows_its_count_its_sentence_and_examples(whole):
    run, plan = whole
    content = run.read("report", "index.html").decode()
    text = Page(content).text
    for stage in facts_of(run)["stages"]:
        if stage["name"] == "export":
            continue
        for reason, sentence in plan.stage(stage["name"]).reasons.items():
            assert sentence.replace("`", "") in text
            if reason in stage["reasons"]:
                assert reason.replace("_", " ") in text
    blocks = re.findall(r'<details class="reason".*?>(.*?)</details>', content, re.S)
    assert len(blocks) == sum(len(stage["reasons"]) for stage in facts_of(run)["stages"])
    assert all('class="example"' in block for block in blocks)


def test_the_sample_does_not_depend_on_the_shards(tmp_path):
    pages = []
    for shards, number in ((1, 60), (4, 15)):
        root = tmp_path / str(shards)
        plan = Plan(manifest(root, ("download",), export=False))
        run = make_run(root, plan, shards=shards, number=number)
        build.write(run, plan, funnel(run, plan))
        content = run.read("report", "index.html").decode()
        pages.append(re.findall(r'<span class="url mono" dir="ltr">(.*?)</span>', content))
    assert pages[0] and pages[0] == pages[1]


def test_the_report_can_be_written_twice_with_the_same_page(whole):
    run, plan = whole
    first = run.read("report", "index.html")
    facts = facts_of(run)
    build.write(run, plan, funnel(run, plan), evaluation=EVALUATION, truth=TRUTH)
    again = run.read("report", "index.html")
    assert len(first) < 10_000_000
    assert first.replace(facts["made"].encode(), b"") == again.replace(
        facts_of(run)["made"].encode(), b""
    )


@pytest.mark.parametrize(
    "names", [("download",), ("download", "caption"), ("download", "clean", "filter")]
)
def test_stages_that_a_manifest_lacks_are_left_out(tmp_path, names):
    plan = Plan(manifest(tmp_path, names))
    run = make_run(tmp_path, plan)
    build.write(run, plan, funnel(run, plan))
    facts = facts_of(run)
    assert [stage["name"] for stage in facts["stages"]] == [*names, "export"]
    assert sum(facts["output"]["pairs"].values()) == sum(
        texts["kept"] for texts in facts["texts"].values()
    )
    assert "hostile <b>run" in page_of(run).text


@pytest.mark.parametrize("until", ["download", "dedup", "caption"])
def test_an_unfinished_run_has_a_report(tmp_path, until):
    plan = Plan(manifest(tmp_path))
    run = make_run(tmp_path, plan, until=until)
    build.write(run, plan, funnel(run, plan))
    facts = facts_of(run)
    assert facts["output"]["pairs"] is None
    assert all(stage["is_conserved"] for stage in facts["stages"])
    assert "Not finished: " in page_of(run).text
    assert "nothing is exported yet" in page_of(run).text


def test_a_run_without_any_pool_has_a_report(tmp_path):
    plan = Plan(manifest(tmp_path))
    run = Run(str(tmp_path))
    build.write(run, plan, funnel(run, plan))
    assert facts_of(run)["input"]["rows"] == 0


def test_models_evaluation_and_truth_are_shown(whole):
    run, _ = whole
    text = page_of(run).text
    assert "399 steps" in text and "250 images/s" in text
    assert "captioning cider" in text and "0.800" in text
    assert "precision" in text and "99.0%" in text
    assert "Web captions true of their image, as exported 95.1%" in text
    assert facts_of(run)["training"]["filter"]["step"] == 399


def test_captions_of_a_training_are_shown_of_its_first_and_its_last_step(whole):
    run, _ = whole
    samples = facts_of(run)["samples"]["filter"]
    assert [line["step"] for line in samples] == [100] * 4 + [300] * 4
    assert f"a boat {BREAKOUT} 300" in page_of(run).text


def test_the_intervals_of_metrics_stand_beside_them(tmp_path):
    plan = Plan(manifest(tmp_path, ("download",), export=False))
    run = make_run(tmp_path, plan)
    metrics = {"itm": {"TR@1": 0.5}, "intervals": {"itm": {"TR@1": [0.25, 0.625]}}}
    evaluation = {"blip": {"model": "x", "metrics": metrics}}
    build.write(run, plan, funnel(run, plan), evaluation=evaluation)
    assert facts_of(run)["evaluation"] == {"blip": {"itm TR@1": 0.5}}
    assert "0.500 0.250 to 0.625" in page_of(run).text


def test_the_models_of_the_stages_have_their_revisions(whole):
    rows = {row["stage"]: row for row in facts_of(whole[0])["models"]}
    assert rows["caption"]["model"] == "Salesforce/blip-image-captioning-base"
    assert COMMIT in rows["caption"]["revision"]
    assert COMMIT in page_of(whole[0]).text


def test_noun_phrases_are_drawn_by_rank(whole):
    phrases = facts_of(whole[0])["phrases"]
    for name in ("before", "after"):
        line = phrases["frequencies"][name]
        assert line[0][0] == 1 and line[-1][0] == phrases[f"distinct_{name}"]
        numbers = [number for _, number in line]
        assert numbers == sorted(numbers, reverse=True)
        assert sum(numbers) == sum(row[name] for row in phrases["top"])  # all of the few there are


def test_truth_may_be_a_list_of_stages(tmp_path):
    plan = Plan(manifest(tmp_path, ("download",), export=False))
    run = make_run(tmp_path, plan)
    build.write(run, plan, funnel(run, plan), truth=SCORES)
    assert facts_of(run)["truth"] == {"stages": SCORES}
    assert "99.0%" in page_of(run).text


def test_a_low_reject_rate_of_synthetic_captions_is_pointed_out(tmp_path):
    plan = Plan(manifest(tmp_path, ("download", "caption", "filter"), filter={"min_itm": 0.02}))
    run = make_run(tmp_path, plan)
    build.write(run, plan, funnel(run, plan))
    notes = facts_of(run)["notes"]
    assert any("share parameters" in note["text"] and not note["is_good"] for note in notes)


def test_variety_counts_distinct_texts_words_and_stammers():
    found = variety(["dai dai dai", "A dog.", "a dog", "the cat"])
    assert found["unique"] == 3 / 4
    assert found["repeated"] == 1 / 4
    assert found["distinct_1"] == 5 / 9
    assert found["words"] == 9 / 4


def test_the_smallest_ranks_win_in_whatever_order_they_come():
    ranks = np.random.default_rng(0).permutation(1000).astype(np.uint64)
    whole, parts = Smallest(7), Smallest(7)
    whole.offer(ranks, lambda n: int(ranks[n]))
    for start in (500, 0, 250, 750):
        part = ranks[start : start + 250]
        parts.offer(part, lambda n, part=part: int(part[n]))
    assert whole.values == parts.values == list(range(7))


def test_what_is_nearest_comes_first_whatever_its_rank():
    found = Smallest(2)
    for part in ([3, 0, 4], [2, 1, 5]):
        ranks = np.array(part, np.uint64)
        found.offer(ranks, lambda n, part=part: part[n], abs(np.array(part, float) - 3.4))
    assert found.values == [3, 4]


@pytest.mark.parametrize("shards", [1, 3])
def test_a_reason_shows_the_rows_nearest_its_threshold_on_both_sides(tmp_path, shards):
    plan = Plan(manifest(tmp_path, ("download", "filter"), filter={"min_itm": 0.5}))
    run = make_run(tmp_path, plan, shards=shards, number=120 // shards)
    scores = pa.concat_tables(
        run.read_table(*plan.folder("filter"), f"{shard:05d}.parquet") for shard in range(shards)
    )["itm_web"].drop_null()
    ordered = np.sort(scores.to_numpy())
    found = survey(run, plan, plan.names).borders["filter", "unmatched"]
    assert (found.name, found.limit) == ("min_itm", 0.5)
    for sample, nearest in (
        (found.rejected, ordered[ordered < 0.5][-4:]),
        (found.kept, ordered[ordered >= 0.5][:4]),
    ):
        shown = [
            run.read_table(*plan.folder("filter"), f"{place.shard}.parquet")["itm_web"][
                place.row
            ].as_py()
            for place in sample.values
        ]
        assert sorted(shown) == pytest.approx(sorted(nearest))
    build.write(run, plan, funnel(run, plan))
    text = page_of(run).text
    assert "Just rejected nearest min_itm, 0.5" in text
    assert "Just kept nearest min_itm, 0.5" in text


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 900)), min_size=1, max_size=30))
def test_a_border_lies_between_what_a_rule_rejects_and_what_it_keeps(measures):
    stage = CleanStage(CleanConfig(preset="flamingo", languages=()))
    words, sides = zip(*measures, strict=True)
    table = with_nulls(
        stage.writes,
        len(words),
        text=["a text"] * len(words),
        text_words=list(words),
        image_width=list(sides),
        image_height=[1000] * len(words),
        image_aspect=[1.0] * len(words),
    )
    bits = stage.fired(table)
    for border in borders(stage, table):
        fired = bits >> list(stage.reasons).index(border.reason) & 1 == 1
        assert not np.isnan(border.values[fired]).any()
        if border.limit is None or not fired.any():
            continue
        is_least = border.name.startswith("min")
        over = (
            border.values[fired] < border.limit if is_least else border.values[fired] > border.limit
        )
        assert over.all()


def test_every_reason_with_a_border_is_one_of_its_stage():
    assert set(CLEAN) <= set(CleanStage.reasons)
    assert set(DEDUP) <= set(DedupStage.reasons)
    for field, *columns in CLEAN.values():
        assert field in CleanConfig().limits
        for column in columns:
            assert column.format(counts="text") in CleanStage.writes.names
    for field, column in DEDUP.values():
        assert hasattr(DedupStage.config_type, field)
        assert column in DedupStage.summary.names


def test_clip_similarities_are_counted_where_the_filter_writes_them(tmp_path):
    plan = Plan(manifest(tmp_path, ("download", "caption", "filter")))
    run = make_run(tmp_path, plan)
    judged = 0
    for shard in run.shards("pool"):
        file = (*plan.folder("filter"), f"{shard}.parquet")
        table = run.read_table(*file)
        similar = table["itm_web"].combine_chunks().cast(pa.float32())
        judged += len(similar) - similar.null_count
        place = table.schema.get_field_index("clip_web")
        run.write_table(table.set_column(place, "clip_web", similar), *file)
    build.write(run, plan, funnel(run, plan))
    series = facts_of(run)["histograms"]["web_clip"]["series"]
    assert sum(series["judged"]) == judged
    assert sum(series["kept"]) == facts_of(run)["texts"]["web"]["kept"]
    assert "CLIP similarity of web captions" in page_of(run).text
    assert "CLIP similarity of synthetic captions" not in page_of(run).text


def test_a_plot_holds_its_series_and_the_same_numbers_as_a_table():
    found = Histogram(edges=(0.0, 1.0, 2.0, 3.0), series={"found": [4, 0, 2000], "kept": [1, 0, 2]})
    shown = {"bins": ("low", "middle", "high"), "ticks": {0.0: "0"}, "x_label": "x", "label": "y"}
    bars = histogram(found, ("web faint", "web"), thresholds=[1.5], **shown)
    assert [trace["x"] for trace in bars.data] == [["low", "high"]] * 2
    assert [trace["y"] for trace in bars.data] == [[4, 2000], [1, 2]]
    assert bars.data[0]["hovertext"] == ["4 found", "2,000 found"]
    assert bars.layout["shapes"][0]["x0"] == 1  # the middle of the second bin
    assert bars.numbers == (
        ("x", "found", "kept"),
        [("low", "4", "1"), ("high", "2,000", "2")],
    )
    lines = histogram(found, ("web", "ink dashed"), is_overlaid=True, **shown)
    assert lines.data[1]["y"] == [0.333333, 0, 0.666667]
    assert lines.data[1]["hovertext"][0] == "33.3% of kept"
    whiskers = intervals([("a", 2.0, 1.0, 3.5, [1.5, 2.5])], x_label="x", label="y")
    assert whiskers.data[0]["error_x"]["array"] == [1.5]
    assert whiskers.numbers[1] == [("a", "2.000", "1.000 to 3.500", "1.500, 2.500")]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=900))
def test_a_long_line_is_thinned_to_means_and_its_table_to_some_rows(values):
    line = [(step, value) for step, value in enumerate(values, 1)]
    plot = curves({"loss": line}, ["ink"], x_label="step", label="y")
    assert len(plot.data[0]["x"]) == len(plot.data[0]["y"]) <= 240
    assert plot.data[0]["x"] == sorted(set(plot.data[0]["x"]))
    assert min(values) - 1e-3 * max(map(abs, values)) <= min(plot.data[0]["y"])
    rows = plot.numbers[1]
    assert len(rows) <= 60
    assert {rows[0][0], rows[-1][0]} == {f"{plot.data[0]['x'][n]:,}" for n in (0, -1)}


def test_bins_of_a_distribution_have_names_of_their_own(whole):
    for key, drawn in DISTRIBUTIONS.items():
        edges = facts_of(whole[0])["histograms"][key]["edges"]
        names = [drawn.bins(low, high) for low, high in itertools.pairwise(edges)]
        assert len(set(names)) == len(names)
        assert np.allclose(np.diff(edges), edges[1] - edges[0])


def test_the_losses_of_every_objective_are_drawn(whole):
    plots = plots_of(whole[0].read("report", "index.html").decode())
    assert "mlm" in plots["filter"][0]
    for model, number in (("filter", 5), ("clip", 1)):  # the only part is the loss
        data = plots[model][1]["data"]
        assert len(data) == number
        assert len({trace["line"]["color"] for trace in data}) == number


@given(st.lists(st.lists(st.sampled_from("abcdefghijkl")), max_size=8), st.integers(1, 6))
def test_frequent_texts_are_found_in_bounded_memory(parts, size):
    found = Frequent(size)
    for part in parts:
        found.add(pa.array(part, pa.string()))
    whole = [text for part in parts for text in part]
    counts = {text: whole.count(text) for text in whole}
    assert found.missed <= len(whole) / (size + 1)
    if len(counts) <= 2 * size:
        assert found.missed == 0
    told = dict(found.most(len(counts)))
    assert len(told) <= 2 * size
    for text, number in counts.items():
        assert number - found.missed <= told.get(text, 1) or number <= found.missed + 1
        assert told.get(text, 0) <= number
    numbers = [number for _, number in found.most(3)]
    assert numbers == sorted(numbers, reverse=True)


def test_the_most_frequent_captions_are_those_of_all_texts(whole):
    run, plan = whole
    texts = []
    for shard in run.shards("pool"):
        table = run.read_table(*plan.folder("filter"), f"{shard}.parquet")
        written = run.read_table(*plan.folder("caption"), f"{shard}.parquet")["synthetic"]
        marks = zip(table["itm_synthetic"].to_pylist(), written.to_pylist(), strict=True)
        texts += [
            text for scores, some in marks if scores and scores[0] is not None for text in some
        ]
    frequent = facts_of(run)["texts"]["synthetic"]["frequent"]
    assert frequent[0]["number"] == max(map(texts.count, texts)) > 1
    assert texts.count(frequent[0]["caption"]) == frequent[0]["number"]


def test_captions_of_copies_stand_on_the_cards(whole):
    run, plan = whole
    further = [
        text
        for shard in run.shards("pool")
        for some in run.read_table(*plan.summary_folder("dedup"), f"{shard}.parquet")[
            "further_captions"
        ].to_pylist()
        for text in some or ()
    ]
    assert further
    page = page_of(run).text
    assert "web, of a copy" in page
    assert any(text in page for text in further)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser without a window."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with PageBrowser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def test_a_browser_asks_for_nothing_complains_of_nothing_and_runs_no_caption(whole, browser):
    path = whole[0].at("report", "index.html")
    browser.visit(path)
    browser.value("document.querySelectorAll('details').forEach(one => one.open = true)")
    browser.value("Promise.all([...document.images].map(i => (i.loading = 'eager', i.decode())))")
    browser.draw()
    assert browser.requests == [f"file://{path}"]
    assert browser.complaints == []
    assert browser.value("document.title") == "hostile <b>run \u00b7 capfilt report"
    data = "[...document.scripts].filter(script => !script.type).length"
    assert browser.value(data) == 2
    assert "document.title='pwned'" in browser.value("document.body.innerText")


def test_a_reason_opens_its_gallery_by_click_and_by_key(whole, browser):
    browser.visit(whole[0].at("report", "index.html"))
    shown = "document.querySelector('#reason-filter-unmatched .example').checkVisibility()"
    summary = "document.querySelector('#reason-filter-unmatched > summary')"
    assert not browser.value(shown)
    browser.value(f"{summary}.click()")
    assert browser.value(shown)
    browser.value(f"{summary}.focus()")
    browser.press("Enter")
    assert not browser.value(shown)
    browser.visit(whole[0].at("report", "index.html") + "#reason-filter-unmatched")
    assert browser.value(shown)


def test_every_plot_is_drawn_with_all_its_series_and_points(whole, browser):
    path = whole[0].at("report", "index.html")
    plots = plots_of(whole[0].read("report", "index.html").decode())
    browser.visit(path)
    assert browser.value("document.querySelectorAll('.plot.js-plotly-plot').length") < len(plots)
    browser.draw()
    drawn = browser.value(
        "[...document.querySelectorAll('.plot')].map(plot => plot.data.map(t => t.x.length))"
    )
    assert drawn == [[len(trace["x"]) for trace in spec["data"]] for _, spec in plots.values()]
    bars = browser.value(
        "document.querySelectorAll('#filter .plot')[0].querySelectorAll('.point').length"
    )
    assert bars == sum(drawn[0])
    assert browser.value("document.querySelectorAll('#filter .shape-label').length") == 2
    lines = "document.querySelectorAll('#models .plot')[{}].querySelectorAll('.js-line').length"
    assert [browser.value(lines.format(n)) for n in (0, 1)] == [1, 5]
    assert browser.complaints == []


def test_a_plot_tells_its_values_by_key_and_by_pointer(whole, browser):
    browser.visit(whole[0].at("report", "index.html"))
    browser.value("document.querySelector('#filter .plot').focus()")
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        browser.press(key)
    (_, spec) = plots_of(whole[0].read("report", "index.html").decode())[
        "ITM scores of web captions"
    ]
    told = ", ".join(trace["hovertext"][0] for trace in spec["data"])
    assert browser.value("document.querySelector('#filter output').textContent") == (
        f"{spec['data'][0]['x'][0]}: {told}"
    )
    mark = "document.querySelector('#filter .plot .hoverlayer').textContent"
    for part in (spec["data"][0]["x"][0], *told.split(", ")):
        assert part in browser.value(mark)
    browser.press("Escape")
    assert browser.value(mark) == ""
    assert browser.value("document.querySelector('#filter output').textContent") == ""
    box = browser.value(
        "(r => [r.x + r.width / 2, r.y + r.height / 2])"
        "(document.querySelector('#filter .plot .nsewdrag').getBoundingClientRect())"
    )
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])
    browser.wait(f"{mark}.includes('kept')")
    assert browser.complaints == []


def test_dragging_over_a_plot_zooms_in_and_a_double_click_goes_back(whole, browser):
    browser.visit(whole[0].at("report", "index.html"))
    browser.value("document.querySelector('#filter .plot').scrollIntoView({block: 'center'})")
    plot = "document.querySelector('#filter .plot')"
    browser.wait(f"{plot}.classList.contains('js-plotly-plot')")
    reach = f"(([a, b]) => b - a)({plot}.layout.xaxis.range)"
    whole_reach = browser.value(reach)
    x, y, width = browser.value(
        f"(r => [r.x, r.y + r.height / 2, r.width])"
        f"({plot}.querySelector('.nsewdrag').getBoundingClientRect())"
    )

    def mouse(kind, share, **fields):
        place = {"x": x + share * width, "y": y}
        browser.call("Input.dispatchMouseEvent", type=kind, button="left", **place, **fields)

    mouse("mousePressed", 0.25, clickCount=1)
    for share in (0.3, 0.5, 0.75):
        mouse("mouseMoved", share, buttons=1)
    mouse("mouseReleased", 0.75, clickCount=1)
    browser.wait(f"{reach} < {0.6 * whole_reach}")
    browser.value(
        "new Promise(done => setTimeout(done, 500))"
    )  # two clicks apart are no double one
    for count in (1, 2):
        mouse("mousePressed", 0.5, clickCount=count)
        mouse("mouseReleased", 0.5, clickCount=count)
    browser.wait(f"{reach} === {whole_reach}")
    assert browser.complaints == []


def test_a_legend_hides_a_series_from_eyes_and_keys(whole, browser):
    browser.visit(whole[0].at("report", "index.html"))
    browser.value("document.querySelector('#filter .legend button').click()")
    assert browser.value("document.querySelector('#filter .legend button').ariaPressed") == "false"
    shown = "document.querySelector('#filter .plot').data.map(trace => trace.visible !== false)"
    assert browser.value(shown) == [False, True]
    browser.value("document.querySelector('#filter .plot').focus()")
    browser.press("ArrowRight")
    assert "kept" not in browser.value("document.querySelector('#filter output').textContent")
    browser.value("document.querySelector('#filter .legend button').click()")
    assert browser.value(shown) == [True, True]


def test_colours_follow_the_scheme(whole, browser):
    browser.visit(whole[0].at("report", "index.html"))
    browser.draw()
    colour = "document.querySelector('#filter .plot').data[0].marker.color"
    light = browser.value(colour)
    scheme = {"name": "prefers-color-scheme", "value": "dark"}
    browser.call("Emulation.setEmulatedMedia", features=[scheme])
    browser.wait(f"{colour} !== {light!r}")
    assert browser.complaints == []


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_the_page_fits_its_window_and_can_be_seen(whole, browser, tmp_path, width, dark):
    browser.visit(whole[0].at("report", "index.html"), width=width, dark=dark)
    assert browser.value("document.documentElement.scrollWidth") <= width
    picture = Image.open(browser.picture_of_all(tmp_path / "report.png"))
    assert width - 20 < picture.width <= width  # without the scroll bar
    brightness = np.asarray(picture.convert("L")).mean()
    assert brightness < 80 if dark else brightness > 180
