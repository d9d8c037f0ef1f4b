"""What a manifest takes for a long list, by a real run of a sample."""

import dataclasses
import json

import pytest
import yaml
from helpers import fakes, runs
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from pipeline.cli.main import main
from pipeline.execution.forecast import (
    Step,
    forecast,
    forecast_table,
    notes,
    parse_rows,
    parse_workers,
)
from pipeline.execution.map_reduce import PART_ROWS
from pipeline.execution.progress import Progress
from pipeline.execution.session import Session
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
from pipeline.results.funnel import funnel
from pipeline.results.open_run import open_results
from pipeline.results.verdicts import Results
from pipeline.storage.records import StageRecord, add_work
from pipeline.storage.run import Run

NAMES = ["download", "clean", "dedup", "dedup summary", "export", "export:urls"]


def other(manifest, **stages):
    """A manifest for another list, with some settings changed."""
    content = dict(manifest.source) | {"run": "runs/elsewhere"}
    changed = {
        name: {**fields, **stages.get(name, {})} for name, fields in content["stages"].items()
    }
    return Plan(Manifest.parse({**content, "stages": changed}))


@pytest.fixture(scope="module")
def done(tmp_path_factory, ray_here):
    """A manifest on disk and its run of 31 images in shards of 8."""
    root = tmp_path_factory.mktemp("forecast")
    source = fakes.photo_folder(root / "photos", 30)
    (source / "copy.jpg").write_bytes((source / "0003.jpg").read_bytes())
    stages = {
        "download": {"source": str(source), "image_size": 64, "shard_size": 8},
        **{name: {} for name in ("clean", "dedup", "export")},
    }
    content = {"name": "test", "run": str(root / "run"), "stages": stages}
    content["exports"] = {"urls": {"format": "urls"}}
    (root / "m.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    made = Manifest.load(str(root / "m.yaml"))
    with Session(made, workers=2, progress=Progress(Console(quiet=True), quiet=True)) as session:
        session.run()
    return root / "m.yaml", Run(made.run), made


@pytest.mark.parametrize(
    ("text", "rows"),
    [("14M", 14_000_000), ("1.5b", 1_500_000_000), ("200_000", 200_000), ("12,000", 12_000)],
)
def test_rows_are_read_with_their_unit(text, rows):
    assert parse_rows(text) == rows


@pytest.mark.parametrize("text", ["", "0", "M", "-5", "5T", "ten", "1e6", "9" * 400])
def test_what_is_no_number_of_rows_is_told(text):
    with pytest.raises(ValueError, match="--rows must be"):
        parse_rows(text)


def test_workers_are_of_a_stage_or_of_all(done):
    *_, made = done
    plan = Plan(made)
    assert parse_workers(["8", "clean=2", "export:urls=3"], plan) == {
        **{"download": 8, "clean": 2, "dedup": 8, "export": 8, "export:urls": 3}
    }
    for wrong in ("0", "clean=0", "clean=", "clean=-1", "clean=1.5", "=4x"):
        with pytest.raises(ValueError, match="a whole number from 1"):
            parse_workers([wrong], plan)
    with pytest.raises(ValueError, match="no stage 'caption'; known are download, clean"):
        parse_workers(["caption=4"], plan)


def test_at_its_own_size_a_run_is_told_as_it_went(done):
    _, run, made = done
    plan = Plan(made)
    steps = {step.name: step for step in forecast(plan, 31, open_results(run), {})}
    assert list(steps) == NAMES
    for stage in funnel(Results(run, plan))["stages"]:
        name, step = stage["name"], steps[stage["name"]]
        mark = "_export.json" if name == "export" else "_stage.json"
        work = run.read_json(*plan.folder(name), mark)["work"]
        assert step.missing is None and step.measured == work["rows"] and step.device == "cpu"
        assert step.rows == pytest.approx(stage["rows"])
        assert step.worker_seconds == step.seconds == pytest.approx(work["seconds"])
        assert step.written == pytest.approx(run.fs.du(run.at(*plan.folder(name))))
        assert (step.error is None) == (name == "export")  # which is one shard
    assert steps["download"].received > 0 == steps["clean"].received
    seconds = run.read_json(*plan.summary_folder("dedup"), "_summary.json")["seconds"]
    assert steps["dedup summary"].seconds == pytest.approx(seconds)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, PART_ROWS // 1000), times=st.integers(2, 1000), n=st.integers(1, 999))
def test_all_grows_with_the_rows_and_time_shrinks_with_the_workers(done, rows, times, n):
    _, run, made = done
    plan = Plan(made)
    one = list(forecast(plan, rows, open_results(run), {}))
    many = list(forecast(plan, rows * times, open_results(run), parse_workers([str(n)], plan)))
    assert [step.name for step in one] == [step.name for step in many] == NAMES
    for small, large in zip(one, many, strict=True):
        for name in ("rows", "worker_seconds", "written", "received", "error"):
            if getattr(small, name) is not None:
                assert getattr(large, name) == pytest.approx(times * getattr(small, name))
        workers = 1 if large.name == "dedup summary" else n
        assert large.seconds == pytest.approx(large.worker_seconds / workers)


def test_what_the_run_did_not_measure_is_told(done):
    _, run, made = done
    content = dict(made.source)
    stages = {**content["stages"], "clean": {"min_side": 300}, "caption": {}}
    stages["export"] = stages.pop("export")
    plan = Plan(Manifest.parse({**content, "stages": stages, "exports": {}}))
    steps = list(forecast(plan, 10 * PART_ROWS, open_results(run), {}))
    told = {step.name: step.missing for step in steps if step.missing is not None}
    assert told["caption"] == "the run has no such stage"
    assert told["clean"] == "the run has min_side none, the manifest 300"
    assert told["dedup summary"] == "workers share it for lists of more than 2,000,000 rows"
    assert set(told) == {"clean", "caption", "dedup summary"}
    by_name = {step.name: step for step in steps}
    assert by_name["dedup"].rows == by_name["download"].rows
    lines = list(notes(plan, steps))
    assert [f"not measured: {name}: {why}" for name, why in told.items()] == lines[: len(told)]
    shown = Console(width=200)
    with shown.capture() as text:
        shown.print(forecast_table(steps))
    assert "clean" not in text.get() and "dedup" in text.get()


def test_the_table_fits_80_columns_and_cuts_no_word(done):
    _, run, made = done
    steps = list(forecast(Plan(made), 129_000_000, open_results(run), {}))
    steps[0] = dataclasses.replace(steps[0], worker_seconds=7.4e7, error=5.5e7, received=1.44e13)
    narrow = Console(width=80)
    with narrow.capture() as text:
        narrow.print(forecast_table(steps))
    shown = text.get()
    assert "\u2026" not in shown and all(len(line) <= 80 for line in shown.splitlines())
    words = ("download", "129,000,000", "received", "written", "worker", "14.4")
    for word in (*words, "20,556", "15,278"):
        assert word in shown


def test_a_sample_may_be_of_another_list_and_lie_elsewhere(done):
    _, run, made = done
    plan = other(made, download={"source": "pairs.parquet", "limit": None, "shard_size": 10_000})
    assert all(step.missing is None for step in forecast(plan, 1000, open_results(run), {}))
    changed = other(made, download={"image_size": 384})
    first, *_ = forecast(changed, 1000, open_results(run), {})
    assert first.missing == "the run has image_size 64, the manifest 384"


def test_a_run_that_is_not_finished_has_measured_what_it_finished(tmp_path):
    plan = Plan(runs.manifest(tmp_path, ("download", "clean", "caption", "filter")))
    run = runs.make_run(tmp_path, plan, until="caption")
    work = add_work(None, [{"rows": 8, "seconds": 2.0, "device": "NVIDIA H200"}])
    record = StageRecord(seconds=2.0, work=work)
    run.write_record(record, *plan.folder("caption"), "_stage.json")
    steps = {step.name: step for step in forecast(plan, 1000, open_results(run), {"caption": 4})}
    assert {name for name, step in steps.items() if step.missing is None} == {"caption"}
    assert steps["filter"].missing == "the run has not measured it"
    caption = steps["caption"]
    assert caption.device == "NVIDIA H200" and caption.error is None
    assert caption.worker_seconds == pytest.approx(caption.rows / 4) == 4 * caption.seconds


def test_the_command_prints_a_table_or_json(done, capsys):
    path, run, _ = done
    given = ["plan", str(path), "--rows", "3.1M", "--from", run.root, "--workers", "clean=7"]
    assert main(given) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"3,100,000 rows, extrapolated from {run.root}\n") and "7 x cpu" in told
    assert "left out: reading the list" in told
    assert main([*given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 3_100_000 and len(found["notes"]) == 4
    assert [Step(**step).name for step in found["steps"]] == NAMES


def test_the_command_says_how_to_make_a_sample_run(tmp_path, capsys):
    path = tmp_path / "m.yaml"
    path.write_text("name: t\nstages: {download: {source: x}, clean: {}, export: {}}\n")
    assert main(["plan", str(path), "--rows", "5B"]) == 2
    told = capsys.readouterr().err
    assert "--from RUN is needed" in told
    assert f"capfilt run {path} --set download.limit=20000 --run runs/sample" in told
    assert main(["plan", str(path), "--rows", "5B", "--from", str(tmp_path / "none")]) == 2
    assert "no run there" in capsys.readouterr().err


def test_work_adds_up_over_calls():
    results = [{"rows": 4, "seconds": 2.0}, {"rows": 0, "seconds": 1.0}]
    last = {"rows": 2, "seconds": 3.0, "bytes": 7, "device": "X"}
    once = add_work(None, [*results, last])
    assert once == add_work(add_work(None, results), [last])
    assert once.rows == 6 and once.shards == 2 and once.device == "X"
    assert once.squares == pytest.approx(2.0**2 / 4 + 3.0**2 / 2)
