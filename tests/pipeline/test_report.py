import html
import itertools
import json
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from fakes import jpeg

from pipeline.manifest import STAGES, Manifest, Plan
from pipeline.report import build
from pipeline.report.charts import Histogram, curves, histogram
from pipeline.report.health import variety
from pipeline.report.survey import Smallest
from pipeline.status import funnel
from pipeline.store import Run
from pipeline.verdicts import judge
from stages.schema import PAIRS, POOL, uid_of

CHROMIUM = shutil.which("chromium")
COMMIT = "0" * 40
SCRIPT = "<script>document.title='pwned'</script> a red ball on the beach"
BREAKOUT = '"><img src=x onerror="document.title=\'pwned\'"> two fish in the sea'
STYLE = "</style></title><svg onload=alert(1)> a blue house {{ 7 * 7 }} at night"
BIDI = "a kite \u202e\x00 over the \x1b[31m wall"
HOSTILE = (SCRIPT, BREAKOUT, STYLE, BIDI)
HOSTS = ("one.example", "two.example", 'x"><script>.example')
EVALUATION = {
    "blip": {"model": "y", "metrics": {"ir@1": 0.5, "captioning": {"cider": 0.8}}},
    "start": {"model": "x", "metrics": {"ir@1": 0.25, "captioning": {"cider": 0.4}}},
}
SCORES = [{"stage": "dedup", "precision": 0.99, "recall": 0.97, "num_rejected": 12}]
TRUTH = {"stages": SCORES, "raw_true": 0.5, "exported_true": 0.951, "synthetic_true": None}
FULL = ("download", "clean", "dedup", "select", "caption", "filter")
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "old", "small", "large", "wooden")
THINGS = ("dog", "house", "boat", "train", "bridge", "horse", "window", "garden", "kite", "bird")
VERBS = ("are standing", "are lying", "can be seen", "are waiting", "were found", "are shown")
PLACES = ("morning", "evening", "city", "harbour", "village", "forest", "mountains", "rain")
PHRASES = (["red ball", "beach"], ["two fish", "sea"], ["blue house"], ["kite", "wall"], ["dog"])


def manifest(root, names=FULL, export=True, **fields):
    settings = {
        "download": {"source": "list.parquet"},
        "caption": {"revision": COMMIT},
        "filter": {"revision": COMMIT},
    }
    stages = {name: settings.get(name, {}) | fields.get(name, {}) for name in names}
    if export:
        stages["export"] = {}
    if "select" in stages:  # a pipeline whose revision can be told; it is never loaded
        pipeline = Path(root) / "pipeline"
        pipeline.mkdir(parents=True, exist_ok=True)
        stages["select"] = {"model": str(pipeline), **stages["select"]}
    return Manifest.parse({"name": "hostile <b>run", "run": str(root), "stages": stages})


def sentence(seed):
    rng = random.Random(seed)
    return (
        f"a {rng.choice(COLOURS)} {rng.choice(THINGS)} and two {rng.choice(COLOURS)} "
        f"{rng.choice(THINGS)}s {rng.choice(VERBS)} near the {rng.choice(COLOURS)} "
        f"{rng.choice(THINGS)} in the {rng.choice(PLACES)}"
    )


def pool_rows(number, shard):
    rows = []
    for index in range(number):
        place = shard * number + index
        caption = HOSTILE[place] if place < len(HOSTILE) else sentence(place)
        if place % 11 == 6:
            caption = None
        url = f"https://{HOSTS[place % 3]}/{place}/<script>alert(2)</script>.jpg"
        error = "not_an_image" if place % 9 == 8 else None
        drawn = place // 2 if place % 10 == 7 else place  # some are copies
        rows.append(
            {
                "uid": uid_of(url, caption),
                "source": "web",
                "url": url,
                "caption": caption,
                "repeats": place % 2,
                "status": "failed_to_resize" if error else "success",
                "error": error,
                "image": None if error else jpeg(drawn, (96 + place % 5 * 20, 90)),
                "width": None if error else 96 + place % 5 * 20,
                "height": None if error else 90,
                "original_width": None if error else 96 + place % 5 * 20,
                "original_height": None if error else 90,
                "original_bytes": None if error else 9000,
                "sha256": None if error else f"{drawn + 1:08x}" * 8,
            }
        )
    return pa.Table.from_pylist(rows, schema=POOL)


def annotated(plan, name, pool, mask, index):
    """What a stage might have measured: the real thing where it needs no model."""
    rows = pool.filter(pa.array(mask))
    stage = plan.stage(name)
    if name in ("clean", "dedup"):
        stage.load()
        return stage.annotate(rows)
    if name == "select":
        phrases = [PHRASES[(index + row) % 5] for row in range(rows.num_rows)]
        return with_nulls(stage.writes, rows.num_rows, noun_phrases=phrases)
    if name == "caption":
        texts = [
            [
                ""
                if row == 3
                else HOSTILE[row % 4]
                if row % 6 == 0
                else f"a ball ball {row % 7} on the grass"
            ]
            for row in range(rows.num_rows)
        ]
        return with_nulls(stage.writes, rows.num_rows, synthetic=texts)
    web = [
        None if caption is None else (row * 37 % 100) / 100
        for row, caption in enumerate(rows["caption"].to_pylist())
    ]
    synthetic = [
        [None if row == 3 else (row * 53 % 100) / 100] if "caption" in plan.names else []
        for row in range(rows.num_rows)
    ]
    return with_nulls(
        stage.writes,
        rows.num_rows,
        itm_web=web,
        itm_synthetic=synthetic,
        itc_web=web,
        itc_synthetic=synthetic,
        itm_decoded=[True] * rows.num_rows,
    )


def with_nulls(schema, number, **columns):
    return pa.table(
        {
            field.name: pa.array(columns[field.name], field.type)
            if field.name in columns
            else pa.nulls(number, field.type)
            for field in schema
        }
    )


def scatter(mask, part):
    positions = pa.array(np.cumsum(mask) - 1, pa.int64(), mask=~mask)
    return part.combine_chunks().take(positions)


def make_run(root, plan, *, shards=3, number=40, until=None):
    """A run of `shards` x `number` rows, measured up to and with the stage `until`."""
    run = Run(str(root))
    pools = {f"{shard:05d}": pool_rows(number, shard) for shard in range(shards)}
    for shard, pool in pools.items():
        run.write_table(pool, "pool", f"{shard}.parquet")
    run.write_json(
        {
            "manifest": dict(plan.manifest.source),
            "versions": {"capfilt": "0.1.0", "ray": "2.60.0"},
            "machine": {"cpus": 2},
        },
        "run.json",
    )
    for name in plan.names:
        if name != "download":
            measure(run, plan, name, pools)
        run.write_json({"seconds": 2.5}, *plan.folder(name), "_stage.json")
        if name == until:
            return run
    if plan.exports:
        export(run, plan, pools)
    return run


def measure(run, plan, name, pools):
    live = {s: judge(run, plan, s, plan.before(name)).live for s in pools}
    parts = {}
    for index, (shard, pool) in enumerate(pools.items()):
        rows = pool
        if name != "clean" and "clean" in plan.before(name):
            clean = run.read_table(*plan.folder("clean"), f"{shard}.parquet", columns=["text"])
            rows = rows.append_column("text", clean["text"])
        found = annotated(plan, name, rows, live[shard], index)
        parts[shard] = found.add_column(0, "uid", pool["uid"].filter(pa.array(live[shard])))
        scattered = scatter(live[shard], found)
        columns = {column: scattered[column] for column in found.column_names}
        table = pa.table({"uid": pool["uid"], "measured": live[shard], **columns})
        run.write_table(table, *plan.folder(name), f"{shard}.parquet")
    if name not in ("dedup", "select"):
        return
    for shard, part in parts.items():
        if name == "dedup":
            whole = plan.stage(name).summarize(iter(parts.values()))
            start = sum(t.num_rows for s, t in parts.items() if s < shard)
            summary = whole.slice(start, part.num_rows).drop_columns("uid")
        else:
            flags = [row % 6 != 5 for row in range(part.num_rows)]
            summary = with_nulls(STAGES[name].summary, part.num_rows, selected=flags)
        scattered = scatter(live[shard], summary)
        columns = {column: scattered[column] for column in summary.column_names}
        table = pa.table({"uid": pools[shard]["uid"], "summarized": live[shard], **columns})
        run.write_table(table, *plan.summary_folder(name), f"{shard}.parquet")


def export(run, plan, pools):
    counts, images, files = {}, 0, []
    for shard, pool in pools.items():
        live = pa.array(judge(run, plan, shard, plan.names).live)
        rows = pool
        for name in plan.names:
            if name in ("clean", "caption", "filter"):
                table = run.read_table(*plan.folder(name), f"{shard}.parquet")
                for column in ("text", "synthetic", "itm_web", "itm_synthetic"):
                    if column in table.column_names:
                        rows = rows.append_column(column, table[column])
        keeps = None
        if "filter" in plan.names:
            scores = run.read_table(*plan.folder("filter"), f"{shard}.parquet").filter(live)
            keeps = plan.stage("filter").keep_texts(scores.drop_columns("measured"))
        pairs = plan.export().pairs(rows.filter(live), keeps)
        assert pairs.schema.equals(PAIRS)
        run.write_table(pairs, "curated", f"{shard}.parquet")
        images += len(pairs["uid"].unique())
        for entry in pairs["caption_source"].value_counts().to_pylist():
            counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
        files.append({"name": f"{shard}.parquet", "rows": pairs.num_rows})
    decision = plan.decision("export")
    content = {"decision": decision, "pairs": counts, "images": images, "files": files}
    run.write_json(content, "curated", "manifest.json")
    run.write_json({"decision": decision, "seconds": 1.0}, "curated", "_export.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run with models, evaluation and truth, and its report."""
    root = tmp_path_factory.mktemp("run")
    plan = Plan(manifest(root))
    run = make_run(root, plan)
    lines = [
        {"step": step, "loss": 9 / step, "itc": 4 / step, "itm": 0.7, "lm": 3.0 / step, "lr": 1e-4}
        for step in range(1, 400)
    ]
    content = "\n".join([*map(json.dumps, lines), '{"step": 4'])
    run.write(content.encode(), "models", "filter", "metrics.jsonl")
    build.write(run, plan, funnel(run, plan), evaluation=EVALUATION, truth=TRUTH)
    return run, plan


class Page(HTMLParser):
    """The elements of a page and the text outside of styles."""

    def __init__(self, content):
        super().__init__()
        self.elements = []
        self.words = []
        self._inside = None
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in ("style", "script"):
            self._inside = tag

    def handle_endtag(self, tag):
        if tag == self._inside:
            self._inside = None

    def handle_data(self, text):
        if self._inside is None:
            self.words.append(text)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.words))


def page_of(run):
    return Page(run.read("report", "index.html").decode())


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
    tags = {tag for tag, _ in page.elements}
    assert "script" not in tags
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


def test_every_image_and_chart_says_what_it_is(whole):
    page = page_of(whole[0])
    assert all(attributes.get("alt") for tag, attributes in page.elements if tag == "img")
    for tag, attributes in page.elements:
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"
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
    blocks = re.findall(r'<details class="reason">(.*?)</details>', content, re.S)
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
    assert len(first) < 5_000_000
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
    assert "399 steps" in text
    assert "captioning cider" in text and "0.800" in text
    assert "precision" in text and "99.0%" in text
    assert "Web captions true of their image, as exported 95.1%" in text
    assert facts_of(run)["training"]["filter"]["step"] == 399


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


def test_a_chart_escapes_its_texts():
    found = Histogram(edges=(0.0, 1.0, 2.0), series={"<b>": [1, 2]})
    svg = histogram(
        found, ["kept"], bins=["<i>", "&"], ticks={0.0: "<u>"}, x_label='"', label='"><script>'
    )
    svg += curves({"<b>": [(0.0, 1.0), (1.0, 2.0)]}, ["web"], x_label="<u>", label='"><script>')
    assert {tag for tag, _ in Page(svg).elements} <= {
        "svg", "g", "title", "rect", "line", "text", "polyline"
    }  # fmt: skip
    assert html.unescape(Page(svg).text).count("<u>") == 2


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_browser_shows_the_page_and_runs_nothing_of_it(whole, tmp_path):
    def chromium(*options):
        return subprocess.run(
            [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                f"--user-data-dir={tmp_path / 'profile'}",
                *options,
                f"file://{whole[0].at('report', 'index.html')}",
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )

    content = chromium("--dump-dom", "--enable-logging=stderr", "--v=0")
    assert "<title>hostile &lt;b&gt;run · capfilt report</title>" in content.stdout
    assert "<script" not in content.stdout
    assert "Content Security Policy" not in content.stderr
    picture = tmp_path / "report.png"
    chromium(f"--screenshot={picture}", "--window-size=1280,2000")
    assert picture.stat().st_size > 20_000
