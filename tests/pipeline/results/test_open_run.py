"""A run is the same run by whatever name it is opened, and wherever it has been moved."""

import json
import os
import shutil

import pytest
from helpers import fakes
from helpers.runs import make_run

from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
from pipeline.results.funnel import funnel
from pipeline.results.open_run import as_json, open_plan, open_results, plan_for
from pipeline.results.retries import pool_state
from pipeline.storage.run import Run
from stages.review import ReviewConfig

NAME = "runs/demo"


def content(run=NAME, model="train:filter"):
    return {
        "name": "demo",
        "run": run,
        "stages": {
            "download": {"source": "list.parquet"},
            "clean": {},
            "filter": {"model": model, "min_itm": 0.5},
            "export": {},
        },
        "train": {"filter": {"objective": "filter", "model": "start", "data": ["human.jsonl"]}},
    }


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A run with a model that it has trained, made under a relative name."""
    monkeypatch.chdir(tmp_path)
    models = fakes.tiny_blip(tmp_path)
    shutil.copytree(models / "matcher", tmp_path / NAME / "models" / "filter")
    plan = Plan(Manifest.parse(content()))
    run = make_run(NAME, plan, shards=2, number=20)
    record = run.read_json("run.json")
    decided = {name: as_json(plan.decided(name)) for name in plan.names}
    run.write_json({**record, "decided": decided}, "run.json")
    return tmp_path


def told(path):
    """All that status says of a run, without its name."""
    found = funnel(open_results(Run.find(str(path))))
    return {key: value for key, value in found.items() if key != "run"}


def test_a_run_is_the_same_by_every_name_and_from_every_folder(place, monkeypatch):
    expected = told(NAME)
    assert [stage["state"] for stage in expected["stages"]] == ["done"] * 4
    (place / "link").symlink_to(place / NAME)
    for name in (place / NAME, f"./{NAME}/", place / "runs" / ".." / NAME, place / "link"):
        assert told(name) == expected
    monkeypatch.chdir("/")
    assert told(place / NAME) == expected
    assert told(os.path.relpath(place / NAME)) == expected


def test_a_run_that_is_moved_or_copied_stays_what_it_is(place):
    expected = told(NAME)
    shutil.copytree(place / NAME, place / "copy")
    shutil.move(place / NAME, place / "moved")
    assert told(place / "copy") == told(place / "moved") == expected


def test_a_command_that_names_the_run_or_a_model_otherwise_changes_no_decision(place):
    expected = Plan(Manifest.parse(content())).decision("export")
    for run, model in (
        (str(place / NAME), "train:filter"),
        (NAME, f"{NAME}/models/filter"),
        (NAME, str(place / NAME / "models" / "filter")),
    ):
        made = Manifest.parse(content(run, model))
        assert plan_for(Run(run), made).decision("export") == expected


def test_a_threshold_and_other_weights_change_the_decision(place):
    made = Manifest.parse(content())
    expected = Plan(made).decision("export")
    stricter = content()
    stricter["stages"]["filter"]["min_itm"] = 0.6
    assert plan_for(Run(NAME), Manifest.parse(stricter)).decision("export") != expected
    (place / NAME / "models" / "filter" / "config.json").write_text(
        json.dumps({**json.loads((place / NAME / "models/filter/config.json").read_text()), "x": 1})
    )
    weights = next((place / NAME / "models" / "filter").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert Plan(made).decision("export") != expected


def test_a_run_of_before_is_read_and_its_export_stands(place):
    """Decisions once held the model's path as the run was named then."""
    run = Run(NAME)
    record = run.read_json("run.json")
    made = Manifest.parse(content())
    settings = {name: as_json(config.settings()) for name, config in made.stages.items()}
    assert settings["filter"]["model"] == f"{NAME}/models/filter"
    old = Plan(made, {"decided": settings})
    assert old.decision("export") != Plan(made).decision("export")
    exported = run.read_json("curated", "manifest.json")
    decision = pool_state(run, old.decision("export"))
    run.write_json({**exported, "decision": decision}, "curated", "manifest.json")
    del record["decided"]
    run.write_json({**record, "settings": settings}, "run.json")
    assert told(place / NAME)["stages"][-1]["state"] == "done"
    opened = plan_for(Run(str(place / NAME)), Manifest.parse(content(str(place / NAME))))
    assert opened.decision("export") == old.decision("export")
    stricter = content(str(place / NAME))
    stricter["stages"]["filter"]["min_itm"] = 0.6
    opened = plan_for(Run(str(place / NAME)), Manifest.parse(stricter))
    assert "model" not in opened.decided("filter")


def test_the_file_of_reviews_is_no_part_of_a_decision(place):
    (place / NAME / "reviews.jsonl").write_bytes(b"")
    assert ReviewConfig(file="a").places == ("file",)
    plans = [open_plan(Run(str(name))) for name in (NAME, place / NAME)]
    assert plans[0].decided("review") == plans[1].decided("review") == {}
    assert plans[0].decision("export") == plans[1].decision("export")
