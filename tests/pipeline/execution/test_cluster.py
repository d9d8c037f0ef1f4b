"""One command on several raylets: nodes that join and die, one with a GPU, code that is shipped."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from helpers import fakes

from pipeline.results.verify import verify
from pipeline.storage.run import Run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
SHARDS = 12

SPY = """

import pathlib as _pathlib
import ray as _ray
from stages.base import ModelConfig as _Config
from stages.caption import CaptionStage as _Stage

_work, _load, _placement = Worker.work, _Stage.load, _Config.placement


def _tell(what):
    node = _ray.get_runtime_context().get_node_id()
    place = _pathlib.Path(os.environ["CAPFILT_SPY"], f"{what} {node} {os.getpid()}")
    place.write_text(__file__)


def _hold(ready):
    end = time.monotonic() + 600
    while not ready() and time.monotonic() < end:
        time.sleep(0.1)


def _spied(self, name, shard, *more):
    time.sleep(0.3)
    _tell(f"{name} {shard}")
    spy = _pathlib.Path(os.environ["CAPFILT_SPY"])
    if name == "download" and len(list(spy.glob("download*"))) >= 3:
        _hold(spy.with_name("died").exists)  # a node is to die in the middle of it
    if name == "clean":  # and the one that joined is to be at work
        _hold(lambda: len({path.name.split()[2] for path in spy.glob("clean*")}) > 1)
    return _work(self, name, shard, *more)


def _loaded(self):
    _tell(f"load {time.monotonic_ns()}")
    _load(self)


Worker.work, _Stage.load = _spied, _loaded
_Config.placement = lambda self: {**_placement(self), "device": "cpu"}
"""
"""What the shipped code does beside its own: it is slow, tells where it runs, and takes a GPU that
is a word only for a CPU."""


@contextlib.contextmanager
def raylets(monkeypatch):
    """A head without room, to which nodes can be added."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # alike for nodes and drivers
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        yield cluster
    finally:
        cluster.shutdown()


def until(condition, seconds=900):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def told(spy):
    """Stage, shard, node and process of each call of a worker, and the file of its code."""
    return [(*path.name.split(), path.read_text()) for path in sorted(spy.iterdir())]


def digests(run):
    return {f["name"]: f["sha256"] for f in run.read_json("curated", "manifest.json")["files"]}


def test_nodes_die_and_join_and_the_export_is_that_of_one_machine(tmp_path, monkeypatch):
    photos = fakes.photo_folder(tmp_path / "photos", SHARDS * 3)
    models = fakes.tiny_blip(tmp_path)
    content = {
        "name": "cluster",
        "run": str(tmp_path / "far"),
        "stages": {
            "download": {"source": str(photos), "image_size": 32, "shard_size": 3},
            "clean": {"min_side": 16},
            "dedup": {},
            "caption": {
                "model": str(models / "captioner"),
                "device": "cuda",
                "dtype": "float32",
                "max_length": 8,
            },
            "export": {"shard_size": 10},
        },
    }
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    code, spy = tmp_path / "code", tmp_path / "spy"
    spy.mkdir()
    for layer in ("pipeline", "stages", "models"):
        ignored = shutil.ignore_patterns("__pycache__", "miniature")
        shutil.copytree(ROOT / layer, code / layer, ignore=ignored)
    with (code / "pipeline/execution/worker.py").open("a") as file:
        file.write(SPY)
    monkeypatch.setenv("CAPFILT_SPY", str(spy))
    command = [sys.executable, "-m", "pipeline.cli", "run", str(tmp_path / "m.yaml")]
    with raylets(monkeypatch) as cluster:
        mortal = cluster.add_node(num_cpus=2)
        gpu = cluster.add_node(num_cpus=1, num_gpus=1)
        process = subprocess.Popen(
            [*command, "--address", cluster.address, "--working-dir", str(code)],
            cwd=code,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            until(lambda: len(list(spy.glob("download*"))) >= 3 or process.poll() is not None)
            joined = cluster.add_node(num_cpus=2)
            cluster.remove_node(mortal, allow_graceful=False)
            (tmp_path / "died").touch()
            out, _ = process.communicate(timeout=900)
        finally:
            process.kill()
        assert process.returncode == 0, out
    calls = told(spy)
    assert all("working_dir_files" in file for *_, file in calls)
    nodes = {stage: {node for one, _, node, *_ in calls if one == stage} for stage, *_ in calls}
    assert nodes["caption"] == nodes["load"] == {gpu.node_id}
    assert joined.node_id in nodes["clean"] and mortal.node_id not in nodes["clean"]
    assert {shard for stage, shard, *_ in calls if stage == "caption"} == {
        f"{index:05d}" for index in range(SHARDS)
    }
    workers = {process for stage, *_, process, _ in calls if stage == "caption"}
    loads = [process for stage, *_, process, _ in calls if stage == "load"]
    assert sorted(loads) == sorted(workers)

    far, near = Run(str(tmp_path / "far")), Run(str(tmp_path / "near"))
    done = subprocess.run(
        [*command, "--run", near.root, "--set", "caption.device=cpu", "--workers", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert digests(far) == digests(near)
    assert list(verify(far)) == []
    assert json.loads((tmp_path / "far/run.json").read_text())["machine"]["cpus"] == os.cpu_count()
