"""What an ablation takes is known before it is run, and what is done is left out."""

import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from pipeline.cli.main import main
from pipeline.demo import run
from pipeline.demo.ablation import Ablation, Site, kept
from pipeline.demo.measured import collect
from pipeline.demo.schedule import schedule
from pipeline.execution.progress import Progress
from pipeline.storage.run import Run

ROOT = Path(__file__).parents[3]

FEW = {"steps": 2, "batch_size": 8, "queue_size": 16}
CONTENT = {
    "name": "small",
    "manifest": str(ROOT / "manifests" / "demo.yaml"),
    "seeds": [3],
    "webs": {
        "half": {"pages": 120, "human": 20, "test": 6},
        "noisy": {
            "pages": 130,
            "human": 20,
            "test": 6,
            "false_texts": 0.8,
            "world": "longtail",
            "chains": ["first"],
        },
    },
    "chains": {
        "first": {
            "train": {
                "captioner": {"steps": 2, "batch_size": 8},
                "filter": FEW,
                "raw": FEW,
                "curated": FEW,
                "true": {"like": "raw", "data": ["runs/demo/web/true.jsonl"]},
            },
            "evaluate": {"models": ["train:raw", "train:curated", "train:true"]},
        },
        "loose": {
            "stages": {
                "select": {"method": "random", "number": "kept:first", "model": "en_core_web_sm"},
                "filter": {"min_itm": 0.0},
            },
            "train": {
                "captioner": {"steps": 2, "batch_size": 8},
                "filter": FEW,
                "raw": FEW,
                "curated": FEW,
                "next": {
                    "objective": "captioner",
                    "model": "chain:first/curated",
                    "data": ["runs/demo/web/human.jsonl"],
                    "image_size": 64,
                    "batch_size": 8,
                    "steps": 2,
                },
            },
            "evaluate": {"models": ["train:curated"]},
        },
    },
    "metrics": {"TR@1": "retrieval.itm.TR@1", "recall": "truth.filter.recall"},
    "tables": [
        {
            "title": "t",
            "rows": {"raw": "first/raw", "C+F": "first/curated", "true": "first/true"},
            "ceiling": "true",
            "against": {"true": ["C+F"]},
            "expects": [
                {
                    "row": "C+F",
                    "against": "raw",
                    "metric": "TR@1",
                    "difference": 0.022,
                    "spread": 0.05,
                }
            ],
        },
        {"title": "loose", "rows": {"C+F": "first/curated", "loose": "loose/curated"}},
    ],
    "curves": [
        {
            "title": "Noise",
            "x": {"noisy": 0.8, "half": 0.46},
            "base": "first/raw",
            "rows": {"C+F": "first/curated"},
            "metric": "TR@1",
        }
    ],
}


def ablation(tmp_path: Path, **changes: object) -> Ablation:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**CONTENT, **changes}, sort_keys=False))
    return Ablation.load(str(path), str(tmp_path / "runs"))


def test_the_work_is_counted_and_what_chains_share_is_counted_once(tmp_path, capsys):
    made = ablation(tmp_path)
    found = schedule(made)
    assert (found.pages, found.is_drawn) == ([120, 130], [False, False])
    shared = {(one.place, one.name) for one in found.trainings if one.is_shared}
    assert shared == {("half, seed 3, loose", name) for name in ("captioner", "filter", "raw")}
    assert len(found.trainings) == 5 + 5 + 5 and len(found.due) == 12
    assert found.evaluations == 3 + 3 + 1 and found.evaluated == 0
    # The filter of `loose` differs in its threshold and in what select leaves of the pool.
    assert sorted(one.stage for one in found.passes) == ["caption"] * 3 + ["filter"] * 3
    assert main(["ablate", str(tmp_path / "small.yaml"), "--dry-run", "--run", made.run]) == 0
    told = capsys.readouterr().out
    assert "12 of 24 steps in all, and 3 copied" in told
    assert "needs 43 seeds to be found 4 times in 5" in told
    assert not Path(made.run).exists()


@pytest.mark.parametrize("shipped", ["ablation", "longtail", "objectives", "rivals"])
def test_a_dry_run_of_a_shipped_ablation_starts_nothing(tmp_path, shipped):
    made = Ablation.load(str(ROOT / "manifests" / f"{shipped}.yaml"), str(tmp_path / "runs"))
    found = schedule(made)
    assert found.due == found.own and found.seconds() > 0
    assert not Path(made.run).exists()


@pytest.mark.usefixtures("ray_here")
def test_what_was_run_is_what_was_planned(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "PORT", 0)  # a demo beside it may have the usual one
    made = ablation(tmp_path, webs={"half": CONTENT["webs"]["half"]}, curves=[])
    planned = schedule(made)
    progress = Progress(Console(quiet=True), quiet=True)
    made.carry_out(2, progress)
    found = schedule(made)
    assert found.due == [] and all(one.is_done for one in found.trainings)
    assert found.evaluated == found.evaluations == 4
    assert found.is_drawn == [True] and found.seconds() == 0
    site = Site(web="half", seed=3)
    first, loose = (made.opened(site, chain) for chain in ("first", "loose"))
    copied = {
        name
        for name in ("captioner", "filter", "raw", "curated")
        if first.read_json("models", f"{name}.json") == loose.read_json("models", f"{name}.json")
    }
    assert copied == {one.name for one in planned.trainings if one.is_shared}
    number = json.loads(loose.read("run.json"))["manifest"]["stages"]["select"]["number"]
    assert number == kept(first) > 0
    record = collect(made)
    ladder, other = record.tables
    assert [(one.label, one.against) for one in ladder.comparisons] == [("true", "C+F")]
    assert other.rows[1].metrics["recall"].values[0] is not None
    made.publish(record)
    assert Run(made.folder(site)).exists("ablation.json")
    made.carry_out(2, progress)  # nothing is done twice
    assert schedule(made).trainings == found.trainings


def test_a_curve_goes_from_web_to_web_in_the_order_of_x(tmp_path):
    made = ablation(tmp_path)
    for web, raw, curated in (("half", 0.4, 0.5), ("noisy", 0.2, 0.5)):
        models = {"raw": raw, "curated": curated}
        made.opened(Site(web=web, seed=3), "first").write_json(
            {
                name: {"model": "x", "metrics": {"retrieval": {"itm": {"TR@1": value}}}}
                for name, value in models.items()
            },
            "evaluation.json",
        )
    (curve,) = collect(made).curves
    points = curve.lines["C+F"]
    assert [point.x for point in points] == [0.46, 0.8]
    assert [point.gain.mean for point in points] == pytest.approx([0.1, 0.3])
