"""The demo's whole chain on a small web with few steps: what it learns is not judged here."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

from pipeline.demo import run as demo_run
from pipeline.execution.progress import Progress
from pipeline.execution.session import write_report
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
from pipeline.results.funnel import funnel
from pipeline.results.verdicts import Results
from pipeline.results.verify import verify
from pipeline.storage.run import Run
from pipeline.training.job import TrainingJob


@pytest.fixture(scope="module")
def ended(tmp_path_factory, ray_here):
    folder = tmp_path_factory.mktemp("demo")
    progress = Progress(Console(quiet=True), quiet=True)
    web = demo_run.prepare(str(folder), 3, progress, drawing=demo_run.Drawing(pages=160))
    few = [f"train.{name}.steps=2" for name in ("captioner", "filter", "raw", "curated")]
    small = [f"train.{name}.batch_size=16" for name in ("captioner", "filter", "raw", "curated")]
    starts = (demo_run.SHIPPED / "captioner", demo_run.SHIPPED / "matcher")
    manifest = Manifest.load(
        str(demo_run.MANIFESTS / "demo.yaml"),
        [*demo_run.paths(web, *starts), *few, *small, "seed=3"],
        str(folder),
    )
    demo_run.carry_out(manifest, web, 2, progress)
    run, plan = Run(manifest.run), Plan(manifest)
    return run, plan, demo_run.judge(Results(run, plan), web.folder)


def test_the_rules_are_right_about_the_drawn_web(ended):
    _, _, judged = ended
    scores = {score.stage: score for score in judged.stages}
    for name in ("download", "clean", "dedup"):
        assert scores[name].precision >= 0.95 and scores[name].recall >= 0.95
    assert judged.raw_true < 0.6


def test_every_row_and_file_is_accounted_for(ended):
    run, plan, _ = ended
    assert all(stage["state"] == "done" for stage in funnel(Results(run, plan))["stages"])
    assert list(verify(run)) == []


def test_stock_transformers_loads_all_that_was_trained(ended):
    run, _, _ = ended
    for name in ("raw", "curated"):
        BlipForConditionalGeneration.from_pretrained(run.at("models", name, "captioner"))
        BlipForImageTextRetrieval.from_pretrained(run.at("models", name, "matcher"))
    BlipForConditionalGeneration.from_pretrained(run.at("models", "captioner"))
    BlipForImageTextRetrieval.from_pretrained(run.at("models", "filter"))
    for name in ("captioner", "filter", "raw", "curated"):
        assert json.loads(run.read("models", f"{name}.json"))["result"]["steps"] == 2


def test_both_new_models_are_evaluated_and_the_result_is_shown(ended, capsys):
    run, plan, judged = ended
    found = run.read_json("evaluation.json")
    assert list(found) == ["raw", "filter", "captioner", "curated"]
    write_report(Results(run, plan))
    demo_run.show(Console(width=120), Results(run, plan), judged)
    out = capsys.readouterr().out
    for word in ("download", "not_english", "precision", "raw", "curated", "synthetic"):
        assert word in out
    page = run.read("report", "index.html").decode()
    assert "curated" in page and "<svg" in page


def test_the_truth_is_never_an_input(ended):
    run, _, _ = ended
    assert set(pq.read_schema(run.at("web", "pairs.parquet")).names) == {"url", "caption"}
    recorded = json.dumps(run.read_json("run.json"))
    assert "truth" not in recorded


def test_the_web_of_another_seed_is_refused(ended):
    run, _, _ = ended
    with pytest.raises(ValueError, match="has the web of seed 3"):
        demo_run.prepare(run.root, 4, Progress(Console(quiet=True), quiet=True))


def test_a_training_is_done_until_something_it_depends_on_changes(ended):
    run, plan, _ = ended
    training = TrainingJob(plan.manifest, "captioner")
    assert training.is_done
    source = json.loads(json.dumps(plan.manifest.source))
    source["train"]["captioner"]["lr"] *= 2
    assert not TrainingJob(Manifest.parse(source), "captioner").is_done
    human = Path(run.at("web", "human.jsonl"))
    before = human.read_text()
    human.write_text(before + before.splitlines()[0] + "\n")
    assert not TrainingJob(plan.manifest, "captioner").is_done
    human.write_text(before)
    assert TrainingJob(plan.manifest, "captioner").is_done
