"""The runner on real Ray, real Parquet and a real folder of images."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers import fakes
from rich.console import Console

from models.errors import IncompleteError, PoolMismatchError
from pipeline.execution.progress import Progress
from pipeline.execution.session import Session, write_report
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
from pipeline.results.funnel import funnel
from pipeline.results.history import sample_history
from pipeline.results.open_run import open_plan
from pipeline.results.verdict_table import write_verdicts
from pipeline.results.verdicts import Results
from pipeline.results.verify import verify
from pipeline.storage.run import Run

STAGES = {
    "clean": {},
    "dedup": {},
    "export": {},
}


def manifest(folder, run, shard_size=8, **overrides):
    stages = {
        "download": {"source": str(folder), "image_size": 64, "shard_size": shard_size},
        **{name: {**fields, **overrides.get(name, {})} for name, fields in STAGES.items()},
    }
    return Manifest.parse({"name": "test", "run": str(run), "stages": stages})


def session(made):
    return Session(made, workers=2, progress=Progress(Console(quiet=True), quiet=True))


def carry_out(made, until=None):
    with session(made) as opened:
        opened.run(until)
    run = Run(made.run)
    return run, Plan(made)


def digests(run):
    return {f["name"]: f["sha256"] for f in run.read_json("curated", "manifest.json")["files"]}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = fakes.photo_folder(tmp_path_factory.mktemp("photos"), 30)
    (folder / "copy.jpg").write_bytes((folder / "0003.jpg").read_bytes())
    (folder / "copy.txt").write_text("An exact copy of another picture in this very folder")
    (folder / "thumb.jpg").write_bytes(fakes.jpeg(900, (40, 40)))
    (folder / "thumb.txt").write_text("A thumbnail that is too small to be of any use")
    (folder / "broken.jpg").write_bytes(fakes.jpeg(901)[:1500])
    (folder / "broken.txt").write_text("A picture that ends before it is whole")
    return folder


@pytest.fixture(scope="module")
def done(photos, tmp_path_factory, ray_here):
    return carry_out(manifest(photos, tmp_path_factory.mktemp("run") / "r"))


def test_every_row_is_accounted_for(done):
    run, plan = done
    found = funnel(Results(run, plan))
    assert [stage["name"] for stage in found["stages"]] == ["download", "clean", "dedup", "export"]
    rows = 33
    for stage in found["stages"]:
        assert stage["state"] == "done" and stage["not_measured"] == 0
        assert stage["rows"] == rows
        rows = stage["kept"]
        assert stage["rows"] == stage["kept"] + sum(stage["reasons"].values())
    reasons = {s["name"]: s["reasons"] for s in found["stages"]}
    assert reasons["download"] == {"truncated": 1}
    assert reasons["clean"] == {"image_too_small": 1}
    assert reasons["dedup"] == {"duplicate_image": 1}
    assert found["stages"][-1]["pairs"] == {"web": 31}  # one image has the caption of its copy too
    assert list(verify(run)) == []


def test_the_verdicts_tell_every_rule_of_clean_that_fired(photos, tmp_path, ray_here):
    (folder := tmp_path / "photos").mkdir()
    (folder / "good.jpg").write_bytes(fakes.jpeg(1))
    (folder / "good.txt").write_text("A red house stands beside the river in the morning")
    (folder / "tiny.jpg").write_bytes(fakes.jpeg(2, (30, 110)))
    (folder / "tiny.txt").write_text("IMG_2034.JPG")
    (folder / "broken.jpg").write_bytes(fakes.jpeg(3)[:900])
    made = manifest(folder, tmp_path / "run", clean={"require_caption": True})
    run, plan = carry_out(made)
    write_verdicts(Results(run, plan), str(tmp_path / "verdicts.parquet"))
    table = pq.read_table(tmp_path / "verdicts.parquet")
    names = table.schema.field("clean_fired").metadata[b"bits"].decode().split(",")
    rows = {row["url"].rsplit("/", 1)[-1]: row for row in table.to_pylist()}
    fired = {
        name: None
        if row["clean_fired"] is None
        else [rule for bit, rule in enumerate(names) if row["clean_fired"] >> bit & 1]
        for name, row in rows.items()
    }
    assert fired["good.jpg"] == [] and fired["broken.jpg"] is None
    assert {"image_too_small", "aspect_ratio", "filename"} <= set(fired["tiny.jpg"])
    assert rows["tiny.jpg"]["reason"] == fired["tiny.jpg"][0] == "image_too_small"
    write_report(Results(run, plan))
    told = {rule["rule"]: rule for rule in run.read_json("report", "report.json")["rules"]}
    assert told["filename"] == {
        "rule": "filename",
        "fired": 1,
        "first": 0,
        "alone": 0,
        "beside": told["filename"]["beside"],
    }
    assert told["filename"]["beside"]["image_too_small"] == 1


def test_shards_added_to_a_finished_pool_leave_the_old_measurements(photos, tmp_path, ray_here):
    made = manifest(photos, tmp_path / "run", shard_size=40)
    run, plan = carry_out(made)
    before = {n: run.sha256(*plan.folder(n), "00000.parquet") for n in ("clean", "dedup")}
    more = fakes.photo_folder(tmp_path / "more", 6)
    for file in list(more.iterdir()):
        file.rename(more / f"more-{file.name}")
    (more / "copy.jpg").write_bytes((photos / "0003.jpg").read_bytes())
    (more / "copy.txt").write_text("One more copy of a picture that the other pool has")
    other, _ = carry_out(manifest(more, tmp_path / "other"), until="download")
    run.write_table(other.read_table("pool", "00000.parquet"), "pool", "00001.parquet")
    assert funnel(Results(run, plan))["stages"][1]["not_measured"] == 7
    carry_out(made)
    assert before == {n: run.sha256(*plan.folder(n), "00000.parquet") for n in before}
    found = funnel(Results(run, plan))["stages"]
    assert [(s["state"], s["not_measured"]) for s in found] == [("done", 0)] * 4
    assert found[2]["reasons"]["duplicate_image"] == 8  # the six first photos are in both pools
    assert found[-1]["pairs"] == {"web": 32}  # thirty images, two with the caption of a copy too


def test_the_annotations_lie_row_for_row_with_the_pool(done):
    run, plan = done
    for shard in run.shards("pool"):
        pool = run.read_table("pool", f"{shard}.parquet")
        for name in ("clean", "dedup"):
            table = run.read_table(*plan.folder(name), f"{shard}.parquet")
            assert table["uid"].equals(pool["uid"])


def test_a_finished_run_opens_no_ray_and_changes_nothing(done):
    run, plan = done
    before = {p: os.stat(p).st_mtime_ns for p in Path(run.path).rglob("*") if p.is_file()}
    with session(plan.manifest) as opened:
        opened.cluster.start = lambda: pytest.fail("Ray was started with nothing to do")
        opened.run()
    after = {p: os.stat(p).st_mtime_ns for p in Path(run.path).rglob("*") if p.is_file()}
    assert before == after


def test_the_export_is_what_datasets_loads(done):
    datasets = pytest.importorskip("datasets")
    run, _ = done
    loaded = datasets.load_dataset(
        "parquet",
        data_files=run.at("curated", "*.parquet"),
        cache_dir=run.at("cache"),
        split="train",
    )
    assert len(loaded) == 31
    assert loaded[0]["image"].size == (85, 64) and loaded[0]["caption_source"] == "web"


def test_a_changed_threshold_measures_nothing_anew(done, tmp_path):
    run, plan = done
    looser = manifest(plan.manifest.stages["download"].source, run.root, clean={"min_side": 30})
    folder = Path(run.at(*plan.folder("clean")))
    before = {p.name: os.stat(p).st_mtime_ns for p in folder.glob("0*.parquet")}
    changed = Plan(looser)
    assert changed.folder("clean") == plan.folder("clean")
    with session(looser) as opened:
        opened.run()
    found = {s["name"]: s for s in funnel(Results(run, changed))["stages"]}
    assert found["clean"]["reasons"] == {}
    assert found["dedup"]["rows"] == 32 and found["dedup"]["not_measured"] == 0
    assert found["export"]["pairs"] == {"web": 32}
    assert before == {p.name: os.stat(p).st_mtime_ns for p in folder.glob("0*.parquet")}
    assert list(verify(run)) == []
    with session(plan.manifest) as opened:  # as it was, for the tests that follow
        opened.run()


def test_a_stage_whose_input_is_missing_is_refused(photos, tmp_path, ray_here):
    made = manifest(photos, tmp_path / "r")
    with session(made) as opened:
        with pytest.raises(IncompleteError, match=r"dedup: download is not complete.*capfilt"):
            opened.stage("dedup")
        opened.run("download")
        with pytest.raises(IncompleteError, match="dedup: clean is not complete"):
            opened.stage("dedup")


def test_other_download_settings_are_refused_not_mixed(done):
    run, plan = done
    other = manifest(plan.manifest.stages["download"].source, run.root, shard_size=5)
    with session(other) as opened, pytest.raises(PoolMismatchError, match="shard_size: 8, now 5"):
        opened.run()


def test_the_answer_is_the_same_for_any_number_of_workers(done, photos, tmp_path):
    run, _ = done
    made = manifest(photos, tmp_path / "r")
    with Session(made, workers=1, progress=Progress(Console(quiet=True), quiet=True)) as opened:
        opened.run()
    assert digests(Run(made.run)) == digests(run)


def test_a_missing_shard_alone_is_made_anew(done):
    run, plan = done
    before = digests(run)
    run.remove(*plan.folder("clean"), "00001.parquet")
    kept = os.stat(run.at(*plan.folder("clean"), "00000.parquet")).st_mtime_ns
    run.remove("curated")
    with session(plan.manifest) as opened:
        opened.run()
    assert digests(run) == before
    assert os.stat(run.at(*plan.folder("clean"), "00000.parquet")).st_mtime_ns == kept


def test_a_sample_shows_its_evidence(done):
    run, plan = done
    rows = [
        row
        for shard in run.shards("pool")
        for row in run.read_table("pool", f"{shard}.parquet").to_pylist()
    ]
    broken = next(row for row in rows if row["url"].endswith("broken.jpg"))
    assert sample_history(Results(run, plan), broken["uid"]).verdict == "download: truncated"
    thumb = next(row for row in rows if row["url"].endswith("thumb.jpg"))
    assert sample_history(Results(run, plan), thumb["uid"]).verdict == "clean: image_too_small"
    good = next(row for row in rows if row["url"].endswith("0001.jpg"))
    shown = sample_history(Results(run, plan), good["uid"][:12])
    assert shown.verdict == "kept" and shown.captions[0].text.startswith("The house number 1")
    with pytest.raises(ValueError, match="no sample has a uid"):
        sample_history(Results(run, plan), "zz")


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_verdicts_name_what_became_of_every_row(done, tmp_path, kind):
    run, plan = done
    out = tmp_path / f"v.{kind}"
    assert write_verdicts(Results(run, plan), str(out)) == 33
    if kind == "parquet":
        rows = pq.read_table(out).to_pylist()
    elif kind == "csv":
        import pyarrow.csv

        rows = pyarrow.csv.read_csv(out).to_pylist()
    else:
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert sum(row["stage"] == "kept" for row in rows) == 30
    assert {(row["stage"], row["reason"]) for row in rows if row["stage"] != "kept"} == {
        ("download", "truncated"),
        ("clean", "image_too_small"),
        ("dedup", "duplicate_image"),
    }
    with pytest.raises(ValueError, match="end the name"):
        write_verdicts(Results(run, plan), str(tmp_path / "v.xlsx"))


def test_verify_names_what_is_broken(done, tmp_path):
    run, _ = done
    copy = Run(str(tmp_path / "copy"))
    shutil.copytree(run.path, copy.path)
    copied = open_plan(copy)
    assert list(verify(copy)) == []
    name = copy.shards("curated")[0]
    content = bytearray(copy.read("curated", f"{name}.parquet"))
    content[len(content) // 2] ^= 1
    copy.write(bytes(content), "curated", f"{name}.parquet")
    table = copy.read_table(*copied.folder("clean"), "00000.parquet")
    copy.write_table(
        table.take(pa.array(range(7, -1, -1))), *copied.folder("clean"), "00000.parquet"
    )
    copy.write(b"junk", "pool", "00002.parquet")
    faults = "\n".join(map(str, verify(copy)))
    assert f"curated/{name}.parquet: damaged: its bytes are not those of" in faults
    assert f"{copied.folder('clean')[-1]}/00000.parquet: damaged: its rows are not" in faults
    assert "pool/00002.parquet: damaged: it has no checksum" in faults


def test_killing_the_run_at_any_moment_changes_nothing_in_the_end(done, photos, tmp_path):
    run, _ = done
    made = manifest(photos, tmp_path / "r", shard_size=8)
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(made.source)), sort_keys=False))
    command = [
        sys.executable,
        "-m",
        "pipeline.cli",
        "run",
        str(path),
        "--quiet",
        "--workers",
        "2",
    ]
    root = Path(__file__).parents[3]
    moments = (
        "list/_list.json",
        "pool/0*.parquet",
        "annotations/clean-*/0*.parquet",
        "annotations/dedup-*/0*.parquet",
        "curated/0*.parquet",
    )
    chance = random.Random(7)
    committed = {}
    for wanted in moments:
        process = subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 600
        while not list((tmp_path / "r").glob(wanted)) and process.poll() is None:
            assert time.monotonic() < deadline, f"{wanted} never came"
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        shards = [
            *(tmp_path / "r").glob("pool/0*.parquet"),
            *(tmp_path / "r").glob("annotations/*/0*.parquet"),
        ]
        committed |= {path: path.stat().st_mtime_ns for path in shards if path not in committed}
    finished = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=900)
    assert finished.returncode == 0, finished.stderr
    assert digests(Run(made.run)) == digests(run)
    assert {path: path.stat().st_mtime_ns for path in committed} == committed  # none was redone
    assert list(verify(Run(made.run))) == []
