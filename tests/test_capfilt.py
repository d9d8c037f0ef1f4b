"""The module `capfilt`: what notebooks and other programs read of a run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from helpers.runs import make_run, manifest
from PIL import Image

import capfilt
from pipeline.manifest.plan import Plan
from pipeline.results.funnel import funnel
from pipeline.results.verdicts import Results
from stages.schema import PAIRS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    plan = Plan(manifest(root))
    return capfilt.open(make_run(root, plan).root), plan


def test_its_names_are_those_that_are_documented():
    assert capfilt.__all__ == ["Error", "Rows", "Run", "Sample", "open", "run"]
    for name in capfilt.__all__:
        assert getattr(capfilt, name).__doc__


def test_nothing_below_imports_it():
    for folder in ("pipeline", "stages", "models"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not re.search(r"^ *(import|from) capfilt\b", path.read_text(), re.M), path


@pytest.mark.slow
def test_opening_is_light():
    code = "import capfilt, sys; assert not {'torch', 'ray', 'pandas', 'datasets'} & {*sys.modules}"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})


def test_the_funnel_is_that_of_status(opened):
    run, plan = opened
    rows = run.funnel().arrow().to_pylist()
    expected = funnel(Results(run._results.run, plan))["stages"]
    assert [row["stage"] for row in rows] == [stage["name"] for stage in expected]
    for row, stage in zip(rows, expected, strict=True):
        assert dict(row["reasons"]) == stage["reasons"]
        assert row["rows"] == row["kept"] + sum(stage["reasons"].values()) + row["not_measured"]


def test_verdicts_stages_and_pairs_fit_together(opened):
    run, _ = opened
    verdicts = run.verdicts().pandas()
    assert len(verdicts) == 120 and verdicts.uid.is_unique
    for name in run.stages:
        stage = run.stage(name).pandas()
        assert list(stage.uid) == list(verdicts.uid)
        rejected = verdicts[verdicts.stage == name]
        assert dict(stage.dropna(subset="reason").set_index("uid").reason) == dict(
            rejected.set_index("uid").reason
        )
    pairs = run.pairs()
    assert pairs.arrow().schema.equals(PAIRS, check_metadata=True)
    assert {*pairs.pandas().uid} <= {*verdicts[verdicts.stage == "kept"].uid}


def test_pairs_are_a_dataset_whose_images_are_decoded(opened):
    run, _ = opened
    pairs = run.pairs().dataset()
    assert isinstance(pairs, datasets.Dataset) and isinstance(pairs[0]["image"], Image.Image)
    assert isinstance(run.stage("clean").dataset(), datasets.Dataset)


def test_rows_are_read_a_shard_at_a_time(opened):
    run, _ = opened
    assert [table.num_rows for table in run.verdicts()] == [40, 40, 40]
    assert all(isinstance(table, pa.Table) for table in run.stage("filter"))


def test_a_sample_is_that_of_show(opened):
    run, _ = opened
    row = run.verdicts().arrow().to_pylist()[0]
    sample = run.sample(row["uid"])
    assert isinstance(sample, capfilt.Sample)
    assert sample.pool["uid"] == row["uid"] and sample.image
    assert sample.verdict == (
        "kept" if row["stage"] == "kept" else f"{row['stage']}: {row['reason']}"
    )


def test_what_is_not_there_is_said(opened, tmp_path):
    run, _ = opened
    with pytest.raises(FileNotFoundError, match="no run there"):
        capfilt.open(tmp_path)
    with pytest.raises(capfilt.Error, match="no stage 'clam'; it has download, clean"):
        run.stage("clam")
    with pytest.raises(capfilt.Error, match="no finished export"):
        run.pairs("subset")
    with pytest.raises(capfilt.Error, match="no such manifest"):
        capfilt.run(tmp_path / "m.yaml")


def test_pairs_in_another_format_are_refused(tmp_path):
    plan = Plan(manifest(tmp_path, ("download",)))
    run = make_run(tmp_path, plan, shards=1, number=4)
    record = run.read_json("curated", "manifest.json") | {"format": "webdataset"}
    record["files"] = [{"name": "00000.tar", "sha256": "0"}]
    run.write_json({k: v for k, v in record.items() if k != "seal"}, "curated", "manifest.json")
    with pytest.raises(capfilt.Error, match="its format is webdataset, not parquet"):
        capfilt.open(tmp_path).pairs()


@pytest.mark.slow
def test_every_cell_of_the_notebook_runs_and_gives_what_it_shows(tmp_path):
    notebook = json.loads((ROOT / "docs" / "python.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    program = tmp_path / "cells.py"
    program.write_text(
        "import ast, json, sys\n"
        "scope, shown = {}, []\n"
        "for source in json.load(open('cells.json')):\n"
        "    *body, last = ast.parse(source).body\n"
        "    value = None\n"
        "    if not isinstance(last, ast.Expr):\n"
        "        body.append(last)\n"
        "    exec(compile(ast.Module(body, []), 'cell', 'exec'), scope)\n"
        "    if isinstance(last, ast.Expr):\n"
        "        value = eval(compile(ast.Expression(last.value), 'cell', 'eval'), scope)\n"
        "    shown.append('' if value is None else repr(value))\n"
        "json.dump(shown, open('shown.json', 'w'))\n"
    )
    (tmp_path / "cells.json").write_text(json.dumps(["".join(c["source"]) for c in cells]))
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads((tmp_path / "shown.json").read_text())
    expected = [
        "".join("".join(o["data"]["text/plain"]) for o in cell["outputs"] if "data" in o)
        for cell in cells
    ]
    assert shown == expected
