import re
from pathlib import Path

import pytest
import yaml
from helpers.pages import CHROMIUM, PageBrowser
from helpers.runs import make_run, manifest

from models.errors import ManifestError
from models.objectives.registry import OBJECTIVES
from pipeline.demo.ablation import Ablation, Site, merge
from pipeline.demo.effects import estimate
from pipeline.demo.measured import collect
from pipeline.demo.run import Web
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
from pipeline.report.ablation import markdown, write
from pipeline.results.verify import verify
from pipeline.storage.records import (
    AblationEffect,
    AblationMetric,
    AblationRecord,
    AblationRow,
    AblationTable,
    content_of,
)
from pipeline.storage.run import Run

ROOT = Path(__file__).parents[3]

CONTENT = {
    "name": "small",
    "manifest": "demo.yaml",
    "seeds": [0, 1, 2],
    "chains": {"one": {}, "two": {"stages": {"caption": {"decoding": "beam"}}}},
    "metrics": {"CIDEr": "captioning.CIDEr", "noise": "report.texts.synthetic.reject_rate"},
    "tables": [{"title": "A <b>table</b>", "rows": {"first": "one/a", "second": "two/b"}}],
}


def ablation(tmp_path, **changes):
    path = tmp_path / "ablation.yaml"
    path.write_text(yaml.safe_dump({**CONTENT, **changes}))
    return Ablation.load(str(path), str(tmp_path / "runs"))


def record_of(seeds, title, rows):
    """An ablation of one table with one metric."""
    rows = [AblationRow(label=label, metrics={"CIDEr": metric}) for label, metric in rows]
    return AblationRecord(name="x", seeds=seeds, tables=[AblationTable(title=title, rows=rows)])


def test_every_chain_of_the_shipped_ablation_is_valid_with_the_paths_of_the_demo(tmp_path):
    shipped = Ablation.load(str(ROOT / "manifests" / "ablation.yaml"), str(tmp_path))
    web = Web(tmp_path / "web", port=8757, token="token")
    for chain in shipped.chains:
        manifest = shipped.manifest_of(Site(web="web", seed=0), chain, web)
        assert {"captioner", "filter", "curated"} <= manifest.train.keys()


def test_the_shipped_ablation_of_objectives_trains_each_on_raw_and_on_curated_pairs(tmp_path):
    shipped = Ablation.load(str(ROOT / "manifests" / "objectives.yaml"), str(tmp_path))
    web = Web(tmp_path / "web", port=8757, token="token")
    trained = set()
    for chain in shipped.chains:
        train = shipped.manifest_of(Site(web="web", seed=0), chain, web).train
        # BEiT-3 is trained on them first, and then both are tuned on human pairs.
        raw, curated = (train.get(f"{name}_start", train[name]) for name in ("raw", "curated"))
        assert raw.objective == curated.objective
        assert raw.data == ("pool", str(web.folder / "human.jsonl"))
        assert curated.data == ("curated",)
        trained |= {config.objective.name for config in train.values()}
    # The others tune what these make.
    assert set(OBJECTIVES.ours) - trained <= {"pretrain", "joint"}
    assert {row for table in shipped.tables for row in table.rows.values()} == {
        f"{chain}/{model}" for chain in shipped.chains for model in ("raw", "curated")
    }


def test_differences_are_taken_seed_by_seed(tmp_path):
    made = ablation(tmp_path)
    scores = {("", "a"): [1.0, 2.0, 3.0], ("chains/two", "b"): [1.5, 2.6, 3.4]}
    for (branch, model), values in scores.items():
        for seed, value in zip(made.seeds, values, strict=True):
            run = Run(made.folder(Site(web="web", seed=seed)), branch)
            run.write_json(
                {model: {"model": "x", "metrics": {"captioning": {"CIDEr": value}}}},
                "evaluation.json",
            )
    found = collect(made)
    (table,) = found.tables
    first, second = (row.metrics for row in table.rows)
    assert second["CIDEr"].values == scores["chains/two", "b"]
    assert second["CIDEr"].difference.mean == pytest.approx(0.5)
    assert second["CIDEr"].difference.low > 0 < second["CIDEr"].estimate.high
    assert first["CIDEr"].difference is None and first["noise"].estimate is None
    lacking = [{**CONTENT["tables"][0], "lacks": {"second": ["CIDEr"]}}]
    (table,) = collect(ablation(tmp_path, tables=lacking)).tables
    first, second = (row.metrics for row in table.rows)
    assert first["CIDEr"].values == scores["", "a"]
    assert second["CIDEr"].values == [None] * 3
    page = Path(write(made.run, found)).read_text()
    assert "<b>table</b>" not in page and "&lt;b&gt;table" in page
    assert re.search(
        r"\| second against first \| \+0\.500 \[\+0\.\d+, \+0\.\d+\] \* \|", markdown(found)
    )


def test_the_report_of_each_of_its_runs_shows_its_tables(tmp_path):
    made = ablation(tmp_path, seeds=[4])
    site = Site(web="web", seed=4)
    whole = manifest(made.folder(site))
    run = make_run(Path(made.folder(site)), Plan(whole))
    branch = Run(run.root, made.branch(site, "two"))
    run.write_json({"manifest": whole.source}, "run.json")
    branch.write_json({"manifest": whole.source, "branch": branch.branch}, "run.json")
    entry = AblationMetric(values=[2.5], estimate=estimate([2.5]), difference=None)
    found = record_of([4], "Decoding", [("first", entry)])
    made.publish(found)
    for each in (run, branch):
        page = each.read("report", "index.html").decode()
        assert "Ablation, over seeds 4: Decoding" in page
        assert each.read_json("report", "report.json")["ablation"] == content_of(found)
    assert [fault for fault in map(str, verify(run)) if "ablation.json" in fault] == []
    run.write(run.read("ablation.json").replace(b"2.5", b"9.5"), "ablation.json")
    assert any("ablation.json: damaged" in fault for fault in map(str, verify(run)))


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_its_page_draws_means_and_intervals_and_takes_labels_for_text(tmp_path):
    label = "<img src=x onerror=alert(1)> & <b>bold</b> %{y}"
    rows = []
    for name, values in (("first", [1.0, 2.0, 3.0]), (label, [2.0, 2.5, 3.5])):
        mean = estimate(values)
        effect = AblationEffect(**mean.model_dump())
        rows.append((name, AblationMetric(values=values, estimate=mean, difference=effect)))
    path = write(str(tmp_path), record_of([0, 1, 2], "t", rows))
    with PageBrowser(tmp_path / "profile") as browser:
        browser.visit(path, width=390)
        browser.draw()
        plot = "document.querySelector('.plot')"
        assert browser.value(f"{plot}.querySelectorAll('.point').length") == 2 + 6
        assert browser.value(f"{plot}.querySelectorAll('.xerror').length") == 2
        shown = browser.value(f"{plot}.querySelector('.yaxislayer-above').textContent")
        assert "".join(label.split()) in "".join(shown.split())
        browser.value(f"{plot}.focus()")
        browser.press("ArrowLeft")
        told = browser.value("document.querySelector('output').textContent")
        ends = "{low:.3f} to {high:.3f}".format(**content_of(estimate([2.0, 2.5, 3.5])))
        assert " ".join(told.split()) == f"{label}: 2.667 ({ends}); values 2.000, 2.500, 3.500"
        assert "2.667" in browser.value(f"{plot}.querySelector('.hoverlayer').textContent")
        assert browser.requests == [f"file://{path}"] and browser.complaints == []


def test_the_shipped_ablation_makes_manifests_that_hold(tmp_path):
    made = Ablation.load(str(ROOT / "manifests" / "ablation.yaml"), str(tmp_path))
    content = yaml.safe_load((ROOT / "manifests" / "demo.yaml").read_text())
    for chain, changes in made.chains.items():
        branch = made.branch(Site(web="web", seed=0), chain)
        manifest = Manifest.parse(merge(content, changes), chain, branch)
        rows = [row.split("/") for table in made.tables for row in table.rows.values()]
        models = {model for name, model in rows if name == chain}
        assert models <= set(manifest.train)
        evaluated = {model.rsplit("/", 1)[-1] for model in manifest.evaluate.models}
        assert models <= evaluated


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "seeds"),
        ({"tables": [{"title": "t", "rows": {"x": "three/a"}}]}, "CHAIN/MODEL"),
        ({"tables": [{"title": "t", "rows": {"x": "one/a"}, "metrics": ["F1"]}]}, "shows 'F1'"),
        (
            {"tables": [{"title": "t", "rows": {"x": "one/a"}, "lacks": {"y": ["noise"]}}]},
            "lacks metrics of y; its rows are x",
        ),
        ({"extra": 1}, "extra"),
    ],
)
def test_mistakes_are_named(tmp_path, changes, message):
    with pytest.raises(ManifestError, match=message):
        ablation(tmp_path, **changes)


def test_an_entry_like_another_takes_over_its_fields():
    content = {
        "name": "like",
        "stages": {"download": {"source": "list.csv"}, "export": {"human": ["h.jsonl"]}},
        "exports": {"bare": {"synthetic": False}},
        "train": {
            "one": {"objective": "captioner", "lr": 0.5, "data": ["a"]},
            "two": {"like": "one", "data": ["b"]},
        },
    }
    made = Manifest.parse(content)
    assert (made.train["two"].objective.lr, made.train["two"].data) == (0.5, ("b",))
    assert made.exports["bare"].human == ("h.jsonl",)
    content["train"]["two"]["like"] = "oen"
    with pytest.raises(ManifestError, match="did you mean 'one'"):
        Manifest.parse(content)
