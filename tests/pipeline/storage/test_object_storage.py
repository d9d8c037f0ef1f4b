"""Runs on a real S3 server on loopback: listings late and in pages, errors, broken connections."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import boto3
import fsspec
import pyarrow as pa
import pytest
import yaml
from helpers import fakes
from helpers.storage import EXPIRED, SLOW_DOWN, Faults, Storage, storage

from models.errors import ManifestError, RunBusyError
from models.weights import folder_of, revision_of
from pipeline.demo.tokenizer import write_tokenizer
from pipeline.manifest.manifest import Manifest
from pipeline.results.funnel import funnel
from pipeline.results.history import sample_history
from pipeline.results.open_run import open_plan
from pipeline.results.verdicts import Results
from pipeline.results.verify import verify
from pipeline.review.sample import draw
from pipeline.storage.lock import lock_remote
from pipeline.storage.run import Run
from pipeline.storage.successor import standing
from pipeline.training.job import TrainingJob

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
RUN = "s3://bucket/runs/one"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with storage() as found, pytest.MonkeyPatch.context() as patch:
        for name, value in found.environment.items():
            patch.setenv(name, value)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        fsspec.filesystem("s3").clear_instance_cache()
        yield found


@pytest.fixture
def store(served):
    served.faults.__dict__.update(Faults().__dict__)
    served.requests.clear()
    served.failed.clear()
    yield served
    served.faults.__dict__.update(Faults().__dict__)


def test_a_commit_is_one_put_whatever_its_size(store):
    run = Run("s3://bucket/puts")
    run.write(bytes(101 << 20), "large")
    assert [(m, path) for m, path, _ in store.requests] == [("PUT", "/bucket/puts/large")]


def test_a_listing_in_pages_names_every_file(store):
    run = Run("s3://bucket/pages")
    names = [f"{index:05d}" for index in range(1203)]
    list(run.each(lambda name: run.write(b"x", "pool", f"{name}.parquet"), names))
    assert run.shards("pool") == names
    pages = [query for method, _, query in store.requests if "list-type" in query]
    assert len(pages) > 1
    run.remove("pool")
    assert run.shards("pool") == []


@pytest.mark.parametrize("mark", ["_stage.json", "_summary.json", "_list.json"])
def test_what_a_marked_folder_holds_is_found_though_listings_lag(store, mark):
    run = Run(f"s3://bucket/lag{mark}")
    run.write(b"x", "pool", "00000.parquet")
    store.faults.lag = 3600
    for index in (1, 2):
        run.write(b"x", "pool", f"{index:05d}.parquet")
    assert run.shards("pool") == []
    listed = {"fingerprint": "f", "measurement": {}, "identity": 1, "content": 1}
    fields = {**listed, "rows": 4, "repeats": 0} if mark == "_list.json" else {}
    run.write_json({"shards": 4, **fields}, "pool", mark)
    assert run.shards("pool") == ["00000", "00001", "00002"]
    run.remove("pool", "00001.parquet")
    assert not run.exists("pool", "00001.parquet")


def test_errors_of_the_server_are_tried_again(store):
    run = Run("s3://bucket/faults")
    store.faults.rate = 0.15
    table = pa.table({"uid": [str(i) for i in range(300)], "image": [bytes(9000)] * 300})
    for index in range(48):
        run.write_table(table, "pool", f"{index:05d}.parquet")
    assert len(run.shards("pool")) == 48
    for shard in run.shards("pool"):
        assert run.read_table("pool", f"{shard}.parquet").equals(table)
    assert len(store.failed) > 3


def test_columns_of_a_large_file_are_read_without_the_rest(store):
    run = Run("s3://bucket/large")
    images = [os.urandom(500_000) for _ in range(40)]
    run.write_table(pa.table({"uid": list(map(str, range(40))), "image": images}), "a.parquet")
    store.requests.clear()
    assert run.read_table("a.parquet", columns=["uid"])["uid"].to_pylist()[-1] == "39"
    assert len(store.requests) < 8


def test_a_shard_cut_to_nothing_and_one_that_is_missing_are_told_apart(store):
    run = Run("s3://bucket/broken")
    run.write(b"", "pool", "00000.parquet")
    with pytest.raises(
        ValueError, match=r"s3://bucket/broken/pool/00000\.parquet: damaged: it has no checksum"
    ):
        run.read_table("pool", "00000.parquet")
    with pytest.raises(FileNotFoundError):
        run.read_table("pool", "00001.parquet")


def test_a_model_at_a_url_is_copied_once_and_has_the_revision_of_its_folder(store, tmp_path):
    (folder := tmp_path / "model" / "captioner").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    url = "s3://bucket/model/captioner"
    fsspec.filesystem("s3").put(str(folder), "bucket/model/", recursive=True)
    assert revision_of(url) == revision_of(str(folder))
    store.requests.clear()
    assert (Path(folder_of(url)) / "model.safetensors").read_bytes() == b"weights"
    assert not any(path.endswith("safetensors") for _, path, _ in store.requests)
    fsspec.filesystem("s3").pipe("bucket/model/captioner/model.safetensors", b"others")
    assert revision_of(url) != revision_of(str(folder))
    with pytest.raises(FileNotFoundError, match="no model folder at 's3://bucket/nowhere'"):
        revision_of("s3://bucket/nowhere")


def test_a_model_is_taken_over_whole_though_listings_lag(store, tmp_path):
    (tmp_path / "human.jsonl").write_text('{"image": "a.png", "caption": "a dog"}\n')
    fields = {"objective": "captioner", "model": "tiny", "data": [str(tmp_path / "human.jsonl")]}
    content = {"name": "t", "run": "s3://bucket/taken", "train": {"model": fields}}
    trunk, branch = (
        TrainingJob(Manifest.parse(content, branch=b), "model") for b in ("", "rounds/2")
    )
    trunk.run.write(b"weights", "models", "model", "captioner", "model.safetensors")
    mark = {"fingerprint": trunk.fingerprint, "files": trunk.run.digests("models", "model")}
    trunk.run.write_json(mark, "models", "model.json")
    store.faults.lag = 3600
    branch.carry_out()
    assert branch.is_done


def test_a_manifest_at_a_url_is_read_and_one_that_cannot_be_is_told(store):
    files = fsspec.filesystem("s3")
    files.pipe("bucket/m.yaml", b"name: far\nstages: {download: {source: x}}\n")
    assert Manifest.load("s3://bucket/m.yaml").name == "far"
    files.pipe("bucket/big.yaml", b"#" * (1 << 20) + b"\n")
    for path, told in {
        "s3://bucket/none.yaml": "no such manifest",
        "s3://bucket/big.yaml": "larger than 1 MiB",
        "nowhere://bucket/m.yaml": "cannot be opened",
    }.items():
        with pytest.raises(ManifestError, match=told):
            Manifest.load(path)


def test_a_run_on_s3_is_held_by_one_process_whatever_becomes_of_the_answers(store):
    run = Run("s3://bucket/held")
    store.faults.rate = 0.2
    for _ in range(4):
        with (
            run.lock(),
            pytest.raises(RunBusyError, match=f"held is in use by process {os.getpid()}"),
            Run("s3://bucket/held").lock(),
        ):
            pass
    store.faults.rate = 0
    assert not run.exists("run.lock")


def test_the_lock_of_another_host_that_stands_still_is_taken_over_and_its_holder_told(store):
    files, path = fsspec.filesystem("s3"), "bucket/lost/run.lock"
    files.pipe(path, json.dumps({"host": "elsewhere", "pid": 1, "token": "old"}).encode())
    with lock_remote(files, path, "it", beat=0.1, lease=0.5):
        assert json.loads(files.cat_file(path))["pid"] == os.getpid()
    with (
        pytest.raises(RunBusyError, match="taken over by another process"),
        lock_remote(files, path, "it", beat=0.1),
    ):
        files.pipe(path, json.dumps({"host": "elsewhere", "pid": 1, "token": "new"}).encode())
        threading.Event().wait(60)
    assert json.loads(files.cat_file(path))["token"] == "new"


HUMAN = "s3://bucket/in/human/human.jsonl"


def whole(tokenizer):
    tiny = {
        "objective": "joint",
        "model": "tiny",
        "tokenizer": tokenizer,
        "data": ["pool", HUMAN],
        "prompt": "",
        "image_size": 32,
        "batch_size": 4,
        "steps": 4,
        "checkpoint_every": 1,
        "max_text_tokens": 12,
        "queue_size": 8,
        "augment": "none",
        "threads": 1,
    }
    return {
        "name": "whole",
        "run": RUN,
        "stages": {
            "download": {"source": "s3://bucket/in/photos", "image_size": 32, "shard_size": 8},
            "clean": {"min_side": 16},
            "dedup": {},
            "select": {"method": "random", "fraction": 0.9},
            "caption": {
                "model": "train:both/captioner",
                "prompt": "",
                "max_length": 8,
                "dtype": "float32",
            },
            "filter": {"model": "train:both/matcher", "min_itm": 0, "dtype": "float32"},
            "export": {"human": [HUMAN], "validation": 0.3, "shard_size": 6},
        },
        "exports": {name: {"format": name} for name in ("webdataset", "llava")},
        "train": {"both": tiny},
        "evaluate": {"data": HUMAN, "models": ["train:both"]},
    }


def capfilt(*arguments, **more):
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        **more,
    )


def contents(run, plan):
    """The digests of every export, by its files, and of the model."""
    found = {
        name: {
            f["name"]: f["sha256"]
            for f in run.read_json(*plan.folder(name), "manifest.json")["files"]
        }
        for name in plan.exports
    }
    if plan.manifest.train:
        found["model"] = revision_of(f"{run.root}/models/both/captioner")
    return found


def test_a_whole_run_on_s3_is_the_run_on_disk(store, tmp_path):
    fakes.photo_folder(tmp_path / "in/photos", 20)
    fakes.photo_folder(tmp_path / "in/human", 6)
    (tmp_path / "in/photos/empty.jpg").write_bytes(b"")
    lines = [{"image": f"{i:04d}.jpg", "caption": f"a thing with number {i}"} for i in range(6)]
    (tmp_path / "in/human/human.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    write_tokenizer(tmp_path / "in/tokenizer")
    files = fsspec.filesystem("s3")
    files.put(f"{tmp_path}/in/", "bucket/in/", recursive=True)
    content = whole("s3://bucket/in/tokenizer")
    files.pipe("bucket/m.yaml", yaml.safe_dump(content, sort_keys=False).encode())
    here = capfilt("run", "s3://bucket/m.yaml", "--run", str(tmp_path / "run"), "--workers", "2")
    assert here.returncode == 0, here.stderr
    store.faults.__dict__.update(Faults(rate=0.005, lag=5.0, page=5).__dict__)
    there = capfilt("run", "s3://bucket/m.yaml", "--workers", "2")
    assert there.returncode == 0, there.stdout + there.stderr
    assert sum(store.failed.values()) > 3, len(store.requests)
    store.faults.__dict__.update(Faults().__dict__)
    near, far = Run(str(tmp_path / "run")), Run(RUN)
    plan = open_plan(far)
    assert contents(far, plan) == contents(near, open_plan(near))
    assert not any("uploads" in query for _, _, query in store.requests)

    told = funnel(Results(far, plan))
    assert [stage["state"] for stage in told["stages"]] == ["done"] * 7
    assert told["stages"][0]["reasons"] == {"empty": 1}
    assert list(verify(far)) == []
    pair = next(iter(draw(Results(far, plan), "kept", 3)))
    assert sample_history(Results(far, plan), pair.uid).image is not None
    assert far.exists("report", "index.html") and far.exists("models", "both", "metrics.jsonl")
    assert far.read_json("evaluation.json")["both"]["metrics"]["images"] == 6
    assert TrainingJob(plan.manifest, "both").is_done
    status = capfilt("status", RUN, "--json")
    assert json.loads(status.stdout) == {**told, "holder": None}
    puts = [path for method, path, _ in store.requests if method == "PUT"]
    assert puts.count("/bucket/runs/one/models/both.partial/checkpoint.safetensors") >= 3


def test_killing_a_run_on_s3_changes_nothing_in_the_end(store, tmp_path):
    fakes.photo_folder(tmp_path / "photos", 20)
    files = fsspec.filesystem("s3")
    files.put(f"{tmp_path}/photos/", "bucket/killed/photos/", recursive=True)
    stages = {
        "download": {"source": "s3://bucket/killed/photos", "image_size": 32, "shard_size": 8},
        "clean": {"min_side": 16},
        "dedup": {},
        "export": {"shard_size": 6},
    }
    content = {"name": "killed", "run": "s3://bucket/killed/run", "stages": stages}
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    here = capfilt("run", str(path), "--run", str(tmp_path / "run"), "--workers", "2")
    assert here.returncode == 0, here.stderr
    store.faults.lag = 2.0
    command = [
        sys.executable,
        "-m",
        "pipeline.cli",
        "run",
        str(path),
        "--workers",
        "2",
        "--quiet",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)

    def kill(method, place):
        if method == "PUT" and "/killed/run/annotations/clean" in place:
            process.kill()

    store.on_request = kill
    process.communicate(timeout=600)
    store.on_request = Storage.on_request
    assert process.returncode == -signal.SIGKILL
    there = capfilt("run", str(path), "--workers", "2")
    assert there.returncode == 0, there.stdout + there.stderr
    near, far = Run(str(tmp_path / "run")), Run(content["run"])
    plan = open_plan(far)
    assert contents(far, plan) == contents(near, open_plan(near))
    assert list(verify(far)) == []
    pool = [place for method, place, _ in store.requests if method == "PUT" and "/pool/0" in place]
    assert len(pool) == len(set(pool)) == 3  # none was downloaded anew


def test_an_export_on_s3_is_replaced_in_one_put(store, tmp_path):
    fakes.photo_folder(tmp_path / "photos", 20)
    files = fsspec.filesystem("s3")
    files.put(f"{tmp_path}/photos/", "bucket/swapped/photos/", recursive=True)
    boto3.client("s3", endpoint_url=store.url).put_bucket_versioning(
        Bucket="bucket", VersioningConfiguration={"Status": "Enabled"}
    )
    source = {"source": "s3://bucket/swapped/photos", "image_size": 32, "shard_size": 8}
    content = {
        "name": "swapped",
        "run": "s3://bucket/swapped/run",
        "stages": {"download": source, "export": {"shard_size": 6}},
    }
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    command = ["export", str(path), "--workers", "2", "--quiet", "--set", "export.shard_size=9"]
    assert capfilt("run", str(path), "--workers", "2", "--until", "export").returncode == 0
    run, process = Run(content["run"]), None

    def shards():
        assert list(verify(run)) == []
        return [
            len(run.read_table(*standing(run, "curated"), f"{s}.parquet"))
            for s in run.shards(*standing(run, "curated"))
        ]

    before = shards()

    def strike(method, place):
        """Kill the command before it writes, at the put that counts, and once that is done."""
        if process and method == moment[0] and f"/swapped/run/{moment[1]}" in place:
            process.kill()

    store.on_request = strike
    for moment in (("PUT", "curated/2/0"), ("PUT", "curated/manifest.json"), ("DELETE", "curated")):
        process = subprocess.Popen([sys.executable, "-m", "pipeline.cli", *command], cwd=ROOT)
        assert process.wait(600) == -signal.SIGKILL
        found = shards()  # the put itself is carried out, and its answer is never read
        assert found == before if moment[1] == "curated/2/0" else len(found) < len(before)
    store.on_request = Storage.on_request
    assert capfilt(*command).returncode == 0 and len(shards()) == 3
    assert {path.split("/")[0] for path in run.files("curated")} == {"2", "manifest.json"}


def test_credentials_that_expire_end_a_command_that_resumes(store, tmp_path):
    fakes.photo_folder(tmp_path / "photos", 20)
    files = fsspec.filesystem("s3")
    files.put(f"{tmp_path}/photos/", "bucket/expired/photos/", recursive=True)
    source = {"source": "s3://bucket/expired/photos", "image_size": 32, "shard_size": 4}
    content = {
        "name": "expired",
        "run": "s3://bucket/expired/run",
        "stages": {"download": source, "clean": {"min_side": 16}, "export": {}},
    }
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))

    def expire(method, place):
        if method == "PUT" and "/expired/run/pool/00002" in place:
            store.faults.answer = (403, EXPIRED)

    store.on_request = expire
    done = capfilt("run", str(path), "--workers", "1", "--until", "export")
    assert done.returncode == 1 and "The token has expired" in done.stderr
    assert "Traceback" not in done.stderr
    store.faults.answer, store.on_request = (503, SLOW_DOWN), Storage.on_request
    timer = threading.Timer(8, lambda: setattr(store.faults, "answer", None))
    timer.start()  # the store throttles everything while the command begins
    done = capfilt("run", str(path), "--workers", "1", "--until", "export")
    timer.join()
    assert done.returncode == 0, done.stderr
    assert list(verify(Run(content["run"]))) == []
