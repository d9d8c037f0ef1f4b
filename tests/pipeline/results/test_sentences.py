"""Texts that the filter judged in sentences, wherever a person meets them."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import pyarrow as pa
import pytest
from helpers.pools import pool_of
from rich.console import Console

from pipeline.demo.web import photograph
from pipeline.demo.world import describe, sample_scene
from pipeline.execution.worker import Worker
from pipeline.manifest.manifest import Manifest
from pipeline.report import build
from pipeline.results.funnel import funnel
from pipeline.results.history import sample_history
from pipeline.results.open_run import open_results
from pipeline.results.tables import put, sample_tables
from pipeline.results.verdict_table import write_verdicts
from pipeline.review.sample import draw
from pipeline.review.server import ReviewServer
from pipeline.storage.run import Run
from stages.review import sealed
from stages.schema import PAIRS, POOL

MATCHER = Path(__file__).resolve().parents[3] / "pipeline/demo/miniature/matcher"
RNG = random.Random(3)
SCENES = [sample_scene(RNG) for _ in range(6)]


def dense(number: int, wrong: int | None) -> str:
    """Four sentences on a scene, one of them on the next scene; longer than the matcher reads."""
    while True:
        texts = [describe(SCENES[number], RNG) for _ in range(4)]
        if wrong is not None:
            texts[wrong] = describe(SCENES[(number + 1) % len(SCENES)], RNG)
        if sum(len(text.split()) for text in texts) > 36:
            return ". ".join(texts) + "."


CAPTIONS = [
    dense(0, 2),
    dense(1, None),
    describe(SCENES[2], RNG),
    ". ".join(describe(SCENES[0], RNG) for _ in range(4)),  # of none of its image
    "a big red kite " + "and a small blue star " * 8,  # one sentence, too long
]


def measured(folder: Path, **settings: object) -> tuple[Run, Worker]:
    rows = pool_of(CAPTIONS)
    for number, row in enumerate(rows):
        row["image"] = photograph(SCENES[number], random.Random(number))
    run = Run(str(folder))
    run.write_table(pa.Table.from_pylist(rows, POOL), "pool", "00000.parquet")
    stages: dict[str, object] = {
        "download": {"source": "x"},
        "filter": {"model": str(MATCHER), "dtype": "float32", "min_itm": 0.3, **settings},
        "export": {},
    }
    content = {"name": "dense", "run": str(folder), "stages": stages}
    run.write_json({"manifest": content}, "run.json")
    worker = Worker(Manifest.parse(content))
    worker.work("filter", "00000")
    run.write_json({"seconds": 1.0}, *worker.plan.folder("filter"), "_stage.json")
    return run, worker


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return measured(tmp_path_factory.mktemp("dense"), unit="sentence")[0]


def pairs_of(run: Run) -> list[dict[str, object]]:
    """What an export writes."""
    plan = open_results(run).plan
    worker = Worker(plan.manifest)
    pairs = plan.export().pairs(*worker._kept("export", "00000"))
    assert pairs.schema.equals(PAIRS)
    return pairs.drop_columns("image").to_pylist()


def test_a_pair_holds_the_sentences_kept_and_the_text_before(run: Run) -> None:
    pairs = {row["uid"]: row for row in pairs_of(run)}
    uids = [row["uid"] for row in pool_of(CAPTIONS)]
    found = pairs[uids[0]]
    first, second, _, fourth = CAPTIONS[0].split(". ")
    assert found["caption"] == f"{first}. {second}. {fourth}"
    assert found["caption_full"] == CAPTIONS[0]
    whole = pairs[uids[1]]
    assert (whole["caption"], whole["caption_full"]) == (CAPTIONS[1], None)
    assert (pairs[uids[2]]["caption"], pairs[uids[2]]["caption_full"]) == (CAPTIONS[2], None)
    assert uids[3] not in pairs
    scores = [s for c in sample_history(open_results(run), uids[0]).captions for s in c.sentences]
    assert found["itm_score"] == min(s.itm for s in scores if s.is_kept)


def test_a_run_says_how_many_texts_were_cut(tmp_path: Path) -> None:
    _, worker = measured(tmp_path)
    done = Worker(worker.plan.manifest)
    table = done.run.read_table(*worker.plan.folder("filter"), "00000.parquet")
    [(sentence, number)] = worker.plan.stage("filter").notices(table).items()
    assert number == 4 and sentence.startswith("texts are longer than the model reads")


def test_show_lists_the_sentences_with_scores_and_verdicts(run: Run) -> None:
    found = sample_history(open_results(run), pool_of(CAPTIONS)[0]["uid"])
    [caption] = found.captions
    assert "".join(f"{s.text} " for s in caption.sentences).strip() == CAPTIONS[0]
    assert [s.is_kept for s in caption.sentences] == [True, True, False, True]
    assert caption.itm == max(s.itm for s in caption.sentences) and caption.unread == 0
    console = Console(file=io.StringIO(), width=200)
    for table in sample_tables(found):
        put(console, table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    [line] = [line for line in text.splitlines() if caption.sentences[2].text in line][-1:]
    assert "sentence" in line and "dropped" in line and f"{caption.sentences[2].itm:.3f}" in line
    assert "sentences_web" not in text
    cut = sample_history(open_results(run), pool_of(CAPTIONS)[4]["uid"])
    assert cut.captions[0].unread


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_the_verdict_table_has_every_sentence(run: Run, tmp_path: Path, kind: str) -> None:
    out = tmp_path / f"verdicts.{kind}"
    assert write_verdicts(open_results(run), str(out)) == len(CAPTIONS)
    if kind != "jsonl":
        assert b"filter_sentences" in out.read_bytes()
        return
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    sentences = json.loads(rows[0]["filter_sentences"])
    assert [s["kept"] for s in sentences] == [True, True, False, True]
    assert {(s["source"], s["text"]) for s in sentences} == {("web", 0)}
    assert rows[2]["filter_sentences"] is None


def test_the_report_counts_sentences_and_shows_them(run: Run) -> None:
    results = open_results(run)
    build.write(results, funnel(results))
    facts = run.read_json("report", "report.json")["texts"]["web"]
    assert (facts["cut"], facts["sentences"]) == (1, 12)
    assert facts["sentences_dropped"] >= 5
    notes = run.read_json("report", "report.json")["notes"]
    assert any("read only the beginning of 1 of 5 web texts" in n["text"] for n in notes)
    page = run.read("report", "index.html").decode()
    assert CAPTIONS[0].split(". ")[2] in page and "sentences dropped" in page


def test_review_shows_the_sentences_and_a_fixed_text_stays_as_it_is(run: Run) -> None:
    results = open_results(run)
    pairs = draw(results, "any", 10)
    long = next(pair for pair in pairs if pair.caption == CAPTIONS[0])
    assert [s.is_kept for s in long.sentences] == [True, True, False, True]
    assert all(not p.sentences for p in pairs if p.caption in (CAPTIONS[2], CAPTIONS[4]))

    class Ledger:
        decisions: dict[object, object] = {}  # noqa: RUF012

    server = ReviewServer(results, pairs, Ledger())  # type: ignore[arg-type]
    try:
        [shown] = [p for p in server.sample()["pairs"] if p["caption"] == CAPTIONS[0]]
    finally:
        server.server_close()
    assert [s["is_kept"] for s in shown["sentences"]] == [True, True, False, True]

    line = {"uid": long.uid, "caption": long.caption, "verdict": "fix", "fixed": "by hand"}
    run.write(sealed(json.dumps(line).encode() + b"\n"), "reviews.jsonl")
    content = run.read_json("run.json")["manifest"]
    content["stages"] = {
        "download": content["stages"]["download"],
        "filter": content["stages"]["filter"],
        "review": {"file": run.at("reviews.jsonl")},
        "export": {},
    }
    worker = Worker(Manifest.parse(content))
    worker.work("review", "00000")
    fixed = worker.plan.export().pairs(*worker._kept("export", "00000")).to_pylist()
    [pair] = [row for row in fixed if row["uid"] == long.uid]
    assert (pair["caption"], pair["caption_full"], pair["itm_score"]) == ("by hand", None, None)
