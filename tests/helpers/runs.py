"""A run on disk whose web is hostile, measured without any model, and the pages made of it."""

import html
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa

from helpers.fakes import jpeg
from pipeline.manifest.manifest import Manifest
from pipeline.results.retries import pool_state
from pipeline.results.verdicts import Results
from pipeline.storage.run import Run
from stages.registry import STAGES
from stages.schema import PAIRS, POOL, uid_of

COMMIT = "0" * 40
SCRIPT = "<script>document.title='pwned'</script> a red ball on the beach"
BREAKOUT = '"><img src=x onerror="document.title=\'pwned\'"> two fish in the sea'
STYLE = "</style></title><svg onload=alert(1)> a blue house {{ 7 * 7 }} at night"
BIDI = "a kite \u202e\x00 over the \x1b[31m wall"
HOSTILE = (SCRIPT, BREAKOUT, STYLE, BIDI)
HOSTS = ("one.example", "two.example", 'x"><script>.example')
FULL = ("download", "clean", "dedup", "select", "caption", "filter")
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "old", "small", "large", "wooden")
THINGS = ("dog", "house", "boat", "train", "bridge", "horse", "window", "garden", "kite", "bird")
VERBS = ("are standing", "are lying", "can be seen", "are waiting", "were found", "are shown")
PLACES = ("morning", "evening", "city", "harbour", "village", "forest", "mountains", "rain")
PHRASES = (["red ball", "beach"], ["two fish", "sea"], ["blue house"], ["kite", "wall"], ["dog"])

EVALUATION = {
    "blip": {"model": "y", "metrics": {"ir@1": 0.5, "captioning": {"cider": 0.8}}},
    "start": {"model": "x", "metrics": {"ir@1": 0.25, "captioning": {"cider": 0.4}}},
}
SCORES = [{"stage": "dedup", "precision": 0.99, "recall": 0.97, "num_rejected": 12}]
TRUTH = {"stages": SCORES, "raw_true": 0.5, "exported_true": 0.951, "synthetic_true": None}


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
        number = rows.num_rows
        return with_nulls(
            stage.writes,
            number,
            synthetic=texts,
            synthetic_names=[["short"]] * number,
            synthetic_fused=[[row % 5 == 0] for row in range(number)],
            caption_failures=[
                [{"name": "long", "error": "timeout", "message": ""}] * (row == index == 1)
                for row in range(number)
            ],
        )
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
    live = {s: Results(run, plan).judge(s, plan.before(name)).live for s in pools}
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
        if (taken := Results(run, plan).summary_digest(name, shard)) is not None:
            columns["taken"] = pa.array(taken)
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
        live = pa.array(Results(run, plan).judge(shard, plan.names).live)
        rows = pool
        for name in plan.names:
            if name in ("clean", "caption", "filter"):
                table = run.read_table(*plan.folder(name), f"{shard}.parquet")
                for column in (
                    "text",
                    "synthetic",
                    "synthetic_names",
                    "synthetic_fused",
                    "itm_web",
                    "itm_synthetic",
                ):
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
        name = f"{shard}.parquet"
        sha256 = run.sha256("curated", name)
        files.append({"name": name, "rows": pairs.num_rows, "sha256": sha256})
    decision = pool_state(run, plan.decision("export"))
    content = {"decision": decision, "format": "parquet", "splits": {"train": images}}
    content |= {"pairs": counts, "images": images, "files": files}
    run.write_json(content, "curated", "manifest.json")
    run.write_json({"decision": decision, "seconds": 1.0}, "curated", "_export.json")


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
