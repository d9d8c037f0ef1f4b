"""The export and the report that follow a review."""

import json

import pyarrow.parquet as pq
import pytest
from helpers import fakes
from helpers.reviews import COMMIT, commit, content, decide, pairs_of, serving

from models.errors import ManifestError
from pipeline.cli.main import main
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
from pipeline.report import build
from pipeline.results.funnel import funnel
from pipeline.results.history import sample_history
from pipeline.results.open_run import open_plan, open_results
from pipeline.results.verdicts import Results
from pipeline.results.verify import verify
from pipeline.review.ledger import Ledger
from pipeline.review.sample import draw
from pipeline.storage.run import Run
from stages.review import Decision


def test_export_follows_the_decisions(run):
    before, raw = pairs_of(run), pairs_of(run, "export:raw")
    old = open_plan(run).decision("export")
    pairs = draw(open_results(run), "kept", 1000)
    web = next(p for p in pairs if p.source == "web")
    synthetic = next(p for p in pairs if p.source == "synthetic" and p.uid != web.uid)
    fixed = next(p for p in pairs if p.uid not in (web.uid, synthetic.uid))
    ledger = Ledger(open_plan(run).manifest.reviews)
    for pair in (web, synthetic):
        ledger.decide(pair.key, Decision("reject"))
    ledger.decide(fixed.key, Decision("fix", "written by hand"))
    ledger.decide(pairs[-1].key, Decision("accept"))
    assert open_plan(run).decision("export") != old
    commit(run)

    def changed(rows):
        for row in rows:
            key = row["uid"], row["caption"]
            if key == fixed.key:
                yield {**row, "caption": "written by hand", "itm_score": None}
            elif key not in (web.key, synthetic.key):
                yield row

    assert pairs_of(run) == list(changed(before)) != before
    assert pairs_of(run, "export:raw") == list(changed(raw)) != raw
    assert {p["caption_source"] for p in pairs_of(run)} == {"web", "synthetic"}
    ledger.decide(web.key, None)
    assert open_plan(run).decision("export") != old


def test_a_row_all_of_whose_captions_are_rejected_is_told_in_the_funnel(run):
    plan = open_plan(run)
    uid = draw(Results(run, plan), "kept", 1)[0].uid
    ledger = Ledger(plan.manifest.reviews)
    mine = [pair for pair in draw(Results(run, plan), "any", 1000) if pair.uid == uid]
    for pair in mine:
        ledger.decide(pair.key, Decision("reject"))
    waiting = funnel(open_results(run))["stages"]
    assert [stage["name"] for stage in waiting][-2:] == ["review", "export"]
    commit(run)
    plan = open_plan(run)
    found = {stage["name"]: stage for stage in funnel(Results(run, plan))["stages"]}
    review = found["review"]
    assert review["state"] == "done" and review["not_measured"] == 0
    assert review["reasons"] == {"rejected": 1}
    assert review["rows"] == found["filter"]["kept"] == review["kept"] + 1
    assert not [pair for pair in pairs_of(run) if pair["uid"] == uid]
    assert list(verify(run)) == []
    told = sample_history(Results(run, plan), uid)
    assert told.verdict == "review: rejected"
    (step,) = [step for step in told.steps if step.name == "review"]
    assert {entry["verdict"] for entry in step.measures["reviews"]} == {"reject"}


def test_a_threshold_that_is_loosened_later_costs_no_decision(run):
    plan = open_plan(run)
    pair = draw(Results(run, plan), "rejected", 1)[0]
    Ledger(plan.manifest.reviews).decide(pair.key, Decision("fix", "written by hand"))
    commit(run)
    assert "written by hand" not in [p["caption"] for p in pairs_of(run)]
    record = run.read_json("run.json")
    record["manifest"]["stages"]["filter"]["min_itm"] = 0.0
    run.write_json(record, "run.json")
    assert "written by hand" in [p["caption"] for p in pairs_of(run)]
    for shard in run.shards("pool"):
        assert open_results(run).judge(shard, open_plan(run).names).is_complete


def test_review_may_name_its_file_and_must_stand_last(tmp_path):
    file = str(tmp_path / "shared.jsonl")
    manifest = Manifest.parse(content(tmp_path, review={"file": file}))
    assert manifest.reviews == file and Plan(manifest).names[-1] == "review"
    assert Manifest.parse(content(tmp_path, review={})).reviews == f"{tmp_path}/reviews.jsonl"
    made = content(tmp_path)
    made["stages"] = {"download": {"source": "x"}, "review": {}, "filter": {"revision": COMMIT}}
    with pytest.raises(ManifestError, match="review must be the last stage before export"):
        Manifest.parse(made)


def test_without_decisions_a_manifest_has_no_review(tmp_path):
    assert "review" not in Manifest.parse(content(tmp_path)).stages


def test_the_report_counts_as_kept_what_is_exported(run):
    plan = open_plan(run)
    ledger = Ledger(plan.manifest.reviews)
    for pair in draw(Results(run, plan), "kept", 1000)[:7]:
        ledger.decide(pair.key, Decision("reject"))
    commit(run)
    plan = open_plan(run)
    build.write(Results(run, plan), funnel(Results(run, plan)))
    texts = run.read_json("report", "report.json")["texts"]
    assert texts["web"]["kept"] + texts["synthetic"]["kept"] == len(pairs_of(run))


def test_the_next_export_is_written_anew(tmp_path, ray_here, capsys):
    path = fakes.photo_manifest(tmp_path, 9, shard_size=4)
    run = Run(str(tmp_path / "run"))
    assert main(["run", str(path), "--quiet"]) == 0
    first = run.read_json("curated", "manifest.json")
    with serving(run, "kept") as server:
        fixed, rejected = server.pairs[0], server.pairs[1]
        assert len(server.pairs) == 9
        assert decide(server, pair=0, verdict="fix", fixed="A caption by hand")[0] == 200
        assert decide(server, pair=1, verdict="reject")[0] == 200
    assert main(["export", str(path), "--quiet"]) == 0
    second = run.read_json("curated", "manifest.json")
    assert second["decision"] != first["decision"]
    assert second["pairs"] == {"web": 8}
    rows = [
        row
        for file in second["files"]
        for row in pq.read_table(run.at("curated", file["name"])).to_pylist()
    ]
    assert rejected.uid not in {row["uid"] for row in rows}
    assert {r["uid"]: r["caption"] for r in rows}[fixed.uid] == "A caption by hand"
    capsys.readouterr()
    assert main(["status", run.root, "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert [s["name"] for s in stages] == ["download", "clean", "dedup", "review", "export"]
    assert all(s["state"] == "done" and not s["not_measured"] for s in stages)
    assert stages[3]["reasons"] == {"rejected": 1}
