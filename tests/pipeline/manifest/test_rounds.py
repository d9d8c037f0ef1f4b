"""Bootstrap rounds on real photos, real Ray and real, if tiny, models."""

import json
from pathlib import Path

import pytest
from helpers import fakes
from rich.console import Console

from models.errors import ManifestError
from pipeline.demo.tokenizer import write_tokenizer
from pipeline.execution.progress import Progress
from pipeline.execution.session import Session, write_report
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
from pipeline.manifest.rounds import rounds
from pipeline.report.build import compare_rounds
from pipeline.results.open_run import open_plan
from pipeline.results.verdicts import Results
from pipeline.results.verify import verify
from pipeline.storage.run import Run

TINY = {
    "image_size": 32,
    "batch_size": 4,
    "steps": 2,
    "max_text_tokens": 12,
    "warmup_steps": 0,
    "augment": "none",
    "threads": 1,
}


def content(tmp_path):
    photos = fakes.photo_folder(tmp_path / "photos", 12)
    fakes.photo_folder(tmp_path / "human", 6)
    lines = [
        json.dumps({"image": f"{index:04d}.jpg", "caption": f"a thing with number {index}"})
        for index in range(6)
    ]
    human = tmp_path / "human" / "human.jsonl"
    human.write_text("\n".join(lines) + "\n")
    write_tokenizer(tmp_path / "tokenizer")
    queue = {"queue_size": 8}
    base = {"model": "tiny", "tokenizer": str(tmp_path / "tokenizer"), **TINY}
    return {
        "name": "rounds",
        "run": str(tmp_path / "run"),
        "rounds": 2,
        "stages": {
            "download": {"source": str(photos), "image_size": 32},
            "clean": {"min_side": 16},
            "caption": {"model": "train:captioner", "prompt": "", "max_length": 8},
            "filter": {"model": "train:filter", "min_itm": 0},
            "export": {"human": [str(human)]},
        },
        "exports": {
            "found": {"synthetic": False, "filtered": False},
        },
        "train": {
            "captioner": {**base, "objective": "captioner", "data": [str(human)], "prompt": ""},
            "filter": {**base, **queue, "objective": "filter", "data": [str(human)]},
            "new": {**base, **queue, "data": ["curated"]},
            "raw": {**base, **queue, "data": ["export:found"]},
        },
    }


def carry_out(made):
    quiet = Progress(Console(quiet=True), quiet=True)
    for one in rounds(made):
        with Session(one, workers=1, progress=quiet) as session:
            session.run()


def captions(run, plan):
    folder = plan.folder("export:found")
    return {s: run.read_table(*folder, f"{s}.parquet")["caption"] for s in run.shards(*folder)}


def test_a_second_round_starts_from_the_new_model_and_shares_what_is_the_same(tmp_path, ray_here):
    made = Manifest.parse(content(tmp_path))
    carry_out(made)
    first, second = (Run.find(f"{made.run}{end}") for end in ("", "/rounds/2"))
    assert (second.root, second.branch) == (made.run, "rounds/2")
    one, two = open_plan(first), open_plan(second)
    assert two.manifest.train["filter"].objective.model == f"{made.run}/models/new"
    assert two.manifest.train["new"].objective.model == "tiny"
    assert two.manifest.stages["filter"].model == f"{made.run}/rounds/2/models/filter"
    assert one.folder("clean") == two.folder("clean")
    assert one.folder("caption") != two.folder("caption")
    assert one.folder("filter") != two.folder("filter")
    assert len(first.names("annotations")) == 5  # clean once, the others for each round
    for run in (first, second):
        assert list(verify(run)) == []
        assert run.exists("models", "new", "matcher", "model.safetensors")
    assert captions(first, one) == captions(second, two) != {}
    told = compare_rounds(made.run)
    assert [entry["round"] for entry in told] == [1, 2]
    assert all(entry["pairs"]["human"] == 6 for entry in told)

    path = write_report(Results(second, two))
    told = second.read_json("report", "report.json")["rounds"]
    assert [entry["human captions"] for entry in told] == [6, 6]
    assert path.endswith("rounds/2/report/index.html")
    assert "round 2</th>" in Path(path).read_text()

    again = [run.sha256("run.json") for run in (first, second)]
    carry_out(made)
    assert [run.sha256("run.json") for run in (first, second)] == again


def test_an_unfiltered_export_keeps_what_the_filter_rejects(tmp_path, ray_here):
    described = content(tmp_path)
    described["rounds"] = 1
    described["stages"]["filter"]["min_itm"] = 1.0
    described["stages"]["export"]["synthetic"] = False
    del described["train"]["new"], described["train"]["raw"]
    made = Manifest.parse(described)
    carry_out(made)
    run, plan = Run(made.run), Plan(made)
    manifest = run.read_json(*plan.folder("export"), "manifest.json")
    unfiltered = run.read_json(*plan.folder("export:found"), "manifest.json")
    assert manifest["pairs"] == {"human": 6}
    assert unfiltered["pairs"] == {"web": 12, "human": 6}


def test_rounds_that_cannot_be_are_refused(tmp_path):
    described = content(tmp_path)
    described["train"]["other"] = described["train"]["new"]
    with pytest.raises(ManifestError, match="must have exactly one, but has 2"):
        rounds(Manifest.parse(described))
    del described["train"]["other"], described["train"]["new"]
    with pytest.raises(ManifestError, match="must have exactly one, but has 0"):
        rounds(Manifest.parse(described))
    with pytest.raises(ManifestError, match="rounds: a whole number from 1"):
        Manifest.parse({**described, "rounds": 0})
