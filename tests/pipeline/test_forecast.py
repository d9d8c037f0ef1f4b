"""What a manifest would take, from the rates that ship, from a file and from a real run."""

import json

import fakes
import pytest
import runs
import yaml
from rich.console import Console

from pipeline.cli import main
from pipeline.forecast import Machines, forecast, parse_rows
from pipeline.manifest import STAGES, Manifest
from pipeline.plan import Plan
from pipeline.progress import Progress
from pipeline.rates import CPU, Bounds, Rates, add_work
from pipeline.session import Session
from pipeline.status import funnel
from pipeline.store import Run
from stages.base import ClusteredStage, GlobalStage, KeyedStage, RankedStage

ALL = {"clean": {}, "dedup": {}, "caption": {}, "filter": {}, "export": {}}


def plan(run, stages=ALL, **download):
    stages = {"download": {"source": "x", **download}, **stages}
    return Plan(Manifest.parse({"name": "test", "run": str(run), "stages": stages}))


@pytest.fixture(scope="module")
def done(tmp_path_factory, ray_here):
    """A run of 30 images, shards of 8, and its manifest on disk."""
    root = tmp_path_factory.mktemp("forecast")
    source = fakes.photo_folder(root / "photos", 30)
    (source / "copy.jpg").write_bytes((source / "0003.jpg").read_bytes())
    stages = {
        "download": {"source": str(source), "image_size": 64, "shard_size": 8},
        **{name: {} for name in ("clean", "dedup", "export")},
    }
    content = {"name": "test", "run": str(root / "run"), "stages": stages}
    (root / "m.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    made = Manifest.load(str(root / "m.yaml"))
    with Session(made, workers=2, progress=Progress(Console(quiet=True), quiet=True)) as session:
        session.run()
    return root / "m.yaml", Run(made.run), Plan(made)


@pytest.mark.parametrize(
    ("text", "rows"),
    [("14M", 14_000_000), ("1.5b", 1_500_000_000), ("200_000", 200_000), ("12,000", 12_000)],
)
def test_rows_are_read_with_their_unit(text, rows):
    assert parse_rows(text) == rows


@pytest.mark.parametrize("text", ["", "0", "M", "-5", "5T", "ten", "1e6"])
def test_what_is_no_number_of_rows_is_told(text):
    with pytest.raises(ValueError, match="--rows must be"):
        parse_rows(text)


def test_machines_are_read_and_mistakes_told():
    assert Machines.parse("8xH200", 2, 64) == Machines(nodes=2, cpus=64, gpus=8, gpu="H200")
    assert Machines.parse("4 x A100-SXM4-80GB", 1, 1).gpu == "A100-SXM4-80GB"
    for wrong in ("H200", "0xH200", "8x", "x8"):
        with pytest.raises(ValueError, match="--gpus must be as 8xH200"):
            Machines.parse(wrong)
    with pytest.raises(ValueError, match="--nodes must be at least 1"):
        Machines.parse(None, 0)


def test_a_gpu_is_known_by_the_words_of_its_name():
    rates = Rates.load()
    found = {name: rates.find("caption", name) for name in ("L4", "L40S", "NVIDIA A100-SXM4-80GB")}
    assert [rate and rate.device for rate in found.values()] == ["L4", "L40S", "A100"]
    assert all(rate is not None and not rate.measured for rate in found.values())
    assert rates.find("caption", "B300") is None


def test_every_range_holds_what_is_likely_and_grows_with_the_rows(tmp_path):
    rates, machines = Rates.load(), Machines.parse("8xH200", 1, 128)
    small, large = (forecast(plan(tmp_path), rows, machines, rates) for rows in (10**5, 10**6))
    for one, other in zip(small.steps, large.steps, strict=True):
        for name in ("rows", "seconds", "device_hours", "read", "written", "requests", "memory"):
            bounds = getattr(one, name)
            assert 0 <= bounds.low <= bounds.likely <= bounds.high
            assert getattr(other, name).likely == pytest.approx(10 * bounds.likely)
    assert [step.device for step in small.steps if step.device != "cpu"] == ["H200", "H200"]
    assert large.bottleneck.seconds.likely == max(step.seconds.likely for step in large.steps)


def test_cores_that_decode_hold_up_gpus(tmp_path):
    rates = Rates.load()
    few, many = (
        next(
            step
            for step in forecast(
                plan(tmp_path), 10**7, Machines.parse("8xH200", 1, cpus), rates
            ).steps
            if step.name == "caption"
        )
        for cpus in (1, 1000)
    )
    assert few.bound == "cores that decode for the GPUs" and many.bound == "GPUs"
    assert few.seconds.likely > 10 * many.seconds.likely


def test_the_network_holds_up_download(tmp_path):
    rates, gigabit = Rates.load(), Machines(nodes=2, cpus=64, network=1.0)
    step = forecast(plan(tmp_path), 10**7, gigabit, rates).steps[1]
    assert step.name == "download" and step.bound == "the network"
    assert step.seconds.likely == pytest.approx(step.read.likely * 8 / 2e9)
    fast = forecast(plan(tmp_path), 10**7, Machines(nodes=2, cpus=64, network=400.0), rates)
    assert fast.steps[1].bound == "cores"


def test_a_large_pool_is_summarised_in_parts_by_all_cores(tmp_path):
    rates, machines = Rates.load(), Machines(cpus=16)

    def summary(rows):
        steps = forecast(plan(tmp_path), rows, machines, rates).steps
        return next(step for step in steps if step.name == "dedup summary")

    small, large = summary(10**6), summary(10**9)
    assert (small.number, large.number) == (1, 16)
    assert large.memory.likely < 1000 / 4 * small.memory.likely


def test_something_is_known_of_every_stage():
    rates = Rates.load()
    for name, stage in STAGES.items():
        assert name in rates.rows and rates.find(name, CPU) is not None, name
        if issubclass(stage, GlobalStage):
            assert rates.find(f"{name} summary", CPU) is not None, name
        if issubclass(stage, ClusteredStage | KeyedStage | RankedStage):
            assert rates.find(f"{name} parts", CPU) is not None, name


def test_a_model_of_unknown_work_and_an_unknown_gpu_need_a_file(tmp_path):
    machines = Machines.parse("1xH200", 1, 8)
    other = plan(tmp_path, {"caption": {"model": "llava-hf/llava-1.5-7b-hf"}, "export": {}})
    with pytest.raises(ValueError, match=r"caption\.model llava-hf.*--rates"):
        forecast(other, 1000, machines, Rates.load())
    with pytest.raises(ValueError, match="nothing is known of caption on B300; known GPUs"):
        forecast(plan(tmp_path), 1000, Machines.parse("1xB300", 1, 8), Rates.load())
    path = tmp_path / "rates.yaml"
    path.write_text("rates:\n- {stage: caption, device: H200, rows_per_second: 50, within: 1.2}\n")
    rates = Rates.load().and_better(Rates.load(path))
    (step,) = (s for s in forecast(other, 1000, machines, rates).steps if s.name == "caption")
    assert step.seconds.likely == pytest.approx(step.rows.likely / 50)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rates: [{stage: clean, device: cpu}]", "rates.0: one of rows_per_second and tflops"),
        ("rates: [{device: cpu, rows_per_second: 5}]", "needs the stage"),
        ("rates: [{stage: clean, device: cpu, rows_per_second: 5, within: 0.5}]", "within"),
        ("rows: {clean: {kept: [1, 0.5, 0.2], written: [1, 1, 1]}}", "least, likely, most"),
        ("speeds: []", "speeds"),
        ("rates: [", "not YAML"),
    ],
)
def test_a_mistake_in_a_file_of_rates_is_told(tmp_path, text, told):
    path = tmp_path / "rates.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=told) as error:
        Rates.load(path)
    assert str(path) in str(error.value)


def test_a_run_tells_its_rates_and_what_became_of_its_rows(done):
    _, run, its = done
    rates = Rates.of_run(run)
    for stage in funnel(run, its)["stages"]:
        name = stage["name"]
        work = run.read_json(
            *its.folder(name), "_export.json" if name == "export" else "_stage.json"
        )["work"]
        rate = rates.find(name, "cpu")
        assert work["shards"] and rate.measured and str(run.root) in rate.source
        assert rate.rows_per_second == pytest.approx(work["rows"] / work["seconds"])
        if name != "export":
            assert work["rows"] == stage["rows"]
            assert rates.rows[name].kept == Bounds(*[stage["kept"] / stage["rows"]] * 3)
    assert rates.find("dedup summary", "cpu") is not None
    sizes = sum(run.fs.size(run.at("pool", f"{shard}.parquet")) for shard in run.shards("pool"))
    assert rates.rows["download"].written.likely * 31 >= sizes
    assert rates.rows["download"].received.likely > 0


def test_the_command_reckons_by_the_run_that_stands(done, capsys):
    path, run, its = done
    assert main(["plan", str(path), "--json", "--cpus", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 31 and found["shards"] == 4
    steps = {step["name"]: step for step in found["steps"]}
    counts = {stage["name"]: stage for stage in funnel(run, its)["stages"]}
    for name in ("download", "clean", "dedup", "export"):
        assert steps[name]["rows"]["likely"] == pytest.approx(counts[name]["rows"])
        assert steps[name]["rate"]["measured"]
    assert main(["plan", str(path), "--rows", "3.1M", "--cpus", "2"]) == 0
    told = capsys.readouterr().out
    assert "3,100,000 rows in 387,500 shards, 1 x 2 cores" in told and "bottleneck" in told


def test_the_command_wants_rows_where_no_list_was_read(tmp_path, capsys):
    path = tmp_path / "m.yaml"
    stages = {"download": {"source": "x"}, "clean": {}, "export": {}}
    path.write_text(
        yaml.safe_dump({"name": "t", "run": str(tmp_path / "r"), "stages": stages}, sort_keys=False)
    )
    assert main(["plan", str(path)]) == 2
    assert "--rows is needed" in capsys.readouterr().err
    assert main(["plan", str(path), "--rows", "5B", "--from", str(tmp_path / "none")]) == 2
    assert "no run there" in capsys.readouterr().err


def test_work_adds_up_over_calls():
    results = [{"rows": 4, "seconds": 2.0}, {"rows": 0, "seconds": 1.0}]
    once = add_work(None, [*results, {"rows": 2, "seconds": 3.0, "bytes": 7, "device": "X"}])
    twice = add_work(
        add_work(None, results), [{"rows": 2, "seconds": 3.0, "bytes": 7, "device": "X"}]
    )
    assert once == twice
    assert once["rows"] == 6 and once["shards"] == 2 and once["device"] == "X"
    assert once["squares"] == pytest.approx(2.0**2 / 4 + 3.0**2 / 2)


def test_the_rates_of_a_gpu_are_told_where_there_is_none(tmp_path):
    its = Plan(runs.manifest(tmp_path, ("download", "clean", "caption"), export=False))
    run = runs.make_run(tmp_path, its)
    work = add_work(None, [{"rows": 8, "seconds": 2.0, "device": "NVIDIA H200"}])
    run.write_json({"seconds": 2.0, "work": work}, *its.folder("caption"), "_stage.json")
    rate = Rates.of_run(run).find("caption", "H200")
    assert rate is not None and rate.rows_per_second == pytest.approx(4)
