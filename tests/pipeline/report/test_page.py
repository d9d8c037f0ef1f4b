import base64
import hashlib
import itertools
import re

import numpy as np
import pyarrow as pa
import pytest
from helpers.runs import (
    BREAKOUT,
    COMMIT,
    EVALUATION,
    FULL,
    SCORES,
    TRUTH,
    Page,
    facts_of,
    make_run,
    manifest,
    page_of,
    plots_of,
)

from pipeline.manifest.plan import Plan
from pipeline.report import build
from pipeline.report.figures import DISTRIBUTIONS
from pipeline.report.layout import environment
from pipeline.report.survey import survey
from pipeline.results.funnel import funnel
from pipeline.results.verdicts import Results
from pipeline.storage.records import Evaluation, EvaluationRecord, TruthRecord, TruthScore
from pipeline.storage.run import Run


def test_a_url_may_break_after_a_slash_and_stays_escaped():
    shown = environment().from_string("{{ url | breakable }}")
    url = "http://a.b:8/c/<x>.jpg?y=1&z"
    assert shown.render(url=url) == (
        "http://a.b:8/<wbr>c/<wbr>&lt;x&gt;.jpg?<wbr>y=<wbr>1&amp;<wbr>z"
    )
    assert shown.render(url="/runs/web") == "/runs/<wbr>web"


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
    pairs = facts["output"]["pairs"]
    assert list(pairs) == ["web", "synthetic", "fused"] and min(pairs.values()) > 0
    assert pairs["web"] == facts["texts"]["web"]["kept"]
    assert pairs["synthetic"] + pairs["fused"] == facts["texts"]["synthetic"]["kept"]
    cells = facts["cells"]
    assert cells["both"] + cells["web"] == facts["texts"]["web"]["kept"]
    assert (
        cells["none"]
        == next(s for s in facts["stages"] if s["name"] == "filter")["reasons"]["unmatched"]
    )


def test_the_captions_of_each_prompt_are_counted(whole):
    run, facts = whole[0], facts_of(whole[0])
    synthetic = facts["texts"]["synthetic"]
    assert facts["prompts"] == {
        "short": {
            "written": synthetic["found"],
            **{key: synthetic[key] for key in ("judged", "rejected", "reject_rate")},
        }
    }
    assert facts["caption_failures"] == {"timeout": 1}
    page = page_of(run)
    assert "By prompt" in page.text and "Captions that could not be obtained" in page.text


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
            assert value is None or value.startswith(("data:image/webp;base64,", "#")), value
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
        build.write(Results(run, plan), funnel(Results(run, plan)))
        content = run.read("report", "index.html").decode()
        pages.append(re.findall(r'<span class="url mono" dir="ltr">(.*?)</span>', content))
    assert pages[0] and pages[0] == pages[1]


def test_the_report_can_be_written_twice_with_the_same_page(whole):
    run, plan = whole
    first = run.read("report", "index.html")
    facts = facts_of(run)
    results = Results(run, plan)
    evaluation, truth = EvaluationRecord(EVALUATION), TruthRecord(**TRUTH)
    build.write(results, funnel(results), evaluation=evaluation, truth=truth)
    again = run.read("report", "index.html")
    assert len(first) < 10_000_000
    pages = []
    for page, made in ((first, facts["made"]), (again, facts_of(run)["made"])):
        body, _, digest = page.replace(made.encode(), b"").rpartition(b"<!-- ")
        assert len(digest) < 100  # of the page, with the time when it was made
        pages.append(body)
    assert pages[0] == pages[1]


@pytest.mark.parametrize(
    "names", [("download",), ("download", "caption"), ("download", "clean", "filter")]
)
def test_stages_that_a_manifest_lacks_are_left_out(tmp_path, names):
    plan = Plan(manifest(tmp_path, names))
    run = make_run(tmp_path, plan)
    build.write(Results(run, plan), funnel(Results(run, plan)))
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
    build.write(Results(run, plan), funnel(Results(run, plan)))
    facts = facts_of(run)
    assert facts["output"]["pairs"] is None
    assert all(stage["is_conserved"] for stage in facts["stages"])
    assert "Not finished: " in page_of(run).text
    assert "nothing is exported yet" in page_of(run).text


def test_a_run_without_any_pool_has_a_report(tmp_path):
    plan = Plan(manifest(tmp_path))
    run = Run(str(tmp_path))
    build.write(Results(run, plan), funnel(Results(run, plan)))
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
    evaluation = EvaluationRecord({"blip": Evaluation(model="x", metrics=metrics)})
    build.write(Results(run, plan), funnel(Results(run, plan)), evaluation=evaluation)
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


def test_truth_may_be_known_of_stages_alone(tmp_path):
    plan = Plan(manifest(tmp_path, ("download",), export=False))
    run = make_run(tmp_path, plan)
    truth = TruthRecord(stages=[TruthScore(**score) for score in SCORES])
    build.write(Results(run, plan), funnel(Results(run, plan)), truth=truth)
    assert facts_of(run)["truth"] == {"stages": SCORES}
    assert "99.0%" in page_of(run).text


def test_a_low_reject_rate_of_synthetic_captions_is_pointed_out(tmp_path):
    plan = Plan(manifest(tmp_path, ("download", "caption", "filter"), filter={"min_itm": 0.02}))
    run = make_run(tmp_path, plan)
    build.write(Results(run, plan), funnel(Results(run, plan)))
    notes = facts_of(run)["notes"]
    assert any("share parameters" in note["text"] and not note["is_good"] for note in notes)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_reason_shows_the_rows_nearest_its_threshold_on_both_sides(tmp_path, shards):
    plan = Plan(manifest(tmp_path, ("download", "filter"), filter={"min_itm": 0.5}))
    run = make_run(tmp_path, plan, shards=shards, number=120 // shards)
    scores = pa.concat_tables(
        run.read_table(*plan.folder("filter"), f"{shard:05d}.parquet") for shard in range(shards)
    )["itm_web"].drop_null()
    ordered = np.sort(scores.to_numpy())
    found = survey(Results(run, plan), plan.names).thresholds["filter", "unmatched"]
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
    build.write(Results(run, plan), funnel(Results(run, plan)))
    text = page_of(run).text
    assert "Just rejected nearest min_itm, 0.5" in text
    assert "Just kept nearest min_itm, 0.5" in text


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
    build.write(Results(run, plan), funnel(Results(run, plan)))
    series = facts_of(run)["histograms"]["web_clip"]["series"]
    assert sum(series["judged"]) == judged
    assert sum(series["kept"]) == facts_of(run)["texts"]["web"]["kept"]
    assert "CLIP similarity of web captions" in page_of(run).text
    assert "CLIP similarity of synthetic captions" not in page_of(run).text


def test_bins_of_a_distribution_have_names_of_their_own(whole):
    for key, drawn in DISTRIBUTIONS.items():
        edges = facts_of(whole[0])["histograms"][key]["edges"]
        names = [drawn.bins(low, high) for low, high in itertools.pairwise(edges)]
        assert len(set(names)) == len(names)
        assert np.allclose(np.diff(edges), edges[1] - edges[0])


def test_the_losses_of_every_objective_are_drawn(whole):
    plots = plots_of(whole[0].read("report", "index.html").decode())
    assert "mlm" in plots["filter"][0] and "temperature" not in plots["filter"][0]
    assert "sigmoid" in plots["clip"][0]
    for model, number in (("filter", 5), ("clip", 1)):  # the only part is the loss
        data = plots[model][1]["data"]
        assert len(data) == number
        assert len({trace["line"]["color"] for trace in data}) == number


def test_the_validations_of_a_training_are_drawn(whole):
    page = whole[0].read("report", "index.html").decode()
    label, plot = plots_of(page)["filter, validation"]
    assert label == "Validations of filter, best retrieval.itm.TR@1 0.75 at 300"
    assert [trace["y"] for trace in plot["data"]] == [[0.25, 0.5, 0.75]]
    assert "3 validations, best retrieval.itm.TR@1 0.75 at 300" in page


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
