"""Captions by servers in whole runs: on real Ray, with `transformers serve` and with faults."""

import hashlib
import json
from pathlib import Path

import pytest
from helpers import fakes
from helpers.chat_server import ChatServer, Fault, caption_of
from helpers.vlms import save_llava, transformers_serve
from rich.console import Console

from models.errors import StageError, StageUnavailableError
from models.inference.server import served_revision
from pipeline.cli.main import main
from pipeline.execution.progress import Progress
from pipeline.execution.session import Session
from pipeline.execution.worker import Worker
from pipeline.manifest.manifest import Manifest
from pipeline.results.history import sample_history
from pipeline.results.open_run import open_plan, open_results, plan_for
from pipeline.storage.run import Run

KEY = "sk-never-shown-0123456789"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return fakes.photo_folder(tmp_path_factory.mktemp("photos"), 12)


@pytest.fixture(autouse=True)
def asked_anew():
    served_revision.cache_clear()


@pytest.fixture
def server():
    with ChatServer(root="one") as started:
        yield started


def manifest(photos, run, *urls, **caption):
    stages = {
        "download": {"source": str(photos), "image_size": 64, "shard_size": 3},
        "caption": {"server": list(urls), "model": "m", **caption},
        "export": {},
    }
    return Manifest.parse({"name": "served", "run": str(run), "stages": stages})


def quiet():
    return Progress(Console(quiet=True), quiet=True)


def carry_out(made, until=None, progress=None):
    served_revision.cache_clear()
    with Session(made, workers=2, progress=progress or quiet()) as session:
        session.run(until)
    return Run(made.run)


def captions(run):
    """What caption wrote, by shard."""
    plan = open_plan(run)
    return {
        shard: run.read(*plan.folder("caption"), f"{shard}.parquet")
        for shard in run.shards(*plan.folder("caption"))
    }


class Interrupted(Progress):
    """Ctrl-C once caption has done two shards."""

    def __init__(self):
        super().__init__(Console(quiet=True), quiet=True)
        self.stage, self.finished = "", 0

    def start(self, name, shards):
        super().start(name, shards)
        self.stage = name

    def advance(self, result):
        super().advance(result)
        self.finished += self.stage == "caption"
        if self.finished == 2:
            raise KeyboardInterrupt


def test_a_run_on_a_real_server_is_interrupted_resumed_and_equal(
    photos, tmp_path, ray_here, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    model = save_llava(tmp_path / "llava")
    prompts = {"short": "Describe this image", "alt": "a picture of {alt_text}"}
    asked = {"model": model, "decoding": "greedy", "prompts": prompts, "max_tokens": 12}
    with transformers_serve(model, tmp_path / "log") as url:
        made = manifest(photos, tmp_path / "run", url, **asked)
        with pytest.raises(KeyboardInterrupt):
            carry_out(made, progress=Interrupted())
        before = captions(Run(made.run))
        assert 2 <= len(before) < 4
        run = carry_out(made)
        whole = carry_out(manifest(photos, tmp_path / "whole", url, **asked))
    found = captions(run)
    assert found == captions(whole) and len(found) == 4
    assert before.items() <= found.items()
    table = run.read_table("curated", "00000.parquet")
    synthetic = [p for p in table.to_pylist() if p["caption_source"] != "web"]
    assert {(p["caption_source"], p["caption_name"]) for p in synthetic} == {
        ("synthetic", "short"),
        ("fused", "alt"),
    }
    assert len({pair["caption"] for pair in synthetic}) > 3
    for path in Path(made.run).rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()


def test_two_servers_share_the_rows_and_one_alone_gives_the_same(photos, tmp_path, ray_here):
    with ChatServer(root="one") as first, ChatServer(root="one") as second:
        both = carry_out(manifest(photos, tmp_path / "both", first.url, second.url))
        assert len(first.requests) + len(second.requests) == 12
        assert first.requests and second.requests
        alone = carry_out(manifest(photos, tmp_path / "alone", second.url))
    assert captions(both) == captions(alone)


def test_a_server_that_fails_now_and_then_changes_no_caption(photos, tmp_path, server, ray_here):
    sound = carry_out(manifest(photos, tmp_path / "sound", server.url, num_captions=2))
    faults = [
        Fault(500),
        Fault(429, headers={"Retry-After": "0"}),
        Fault(cut=1),
        Fault(content=b'{"choices": [{"message"'),
        Fault(503, headers={"Retry-After": "0"}),
        Fault(content=b"[]"),
    ]

    def by_image(request):
        digest = hashlib.sha256(request.image + str(request.body["seed"]).encode()).digest()
        is_first = request.attempt == 0 and not request.is_probe
        return faults[digest[0] % len(faults)] if is_first else caption_of(request)

    server.answer = by_image
    server._seen.clear()
    shaken = carry_out(manifest(photos, tmp_path / "shaken", server.url, num_captions=2))
    assert captions(shaken) == captions(sound)
    assert len(server.requests) == 24 + 48


def test_a_row_that_no_server_can_caption_is_a_row_with_a_reason(
    photos, tmp_path, server, ray_here, capsys
):
    faults = [Fault(400, b'{"message": "too small"}'), Fault(500), "very " * 99]
    broken = {}

    def answer(request):
        if request.is_probe:
            return caption_of(request)
        number = broken.setdefault(request.image, len(broken))
        return faults[number] if number < len(faults) else caption_of(request)

    server.answer = answer
    run = carry_out(manifest(photos, tmp_path / "run", server.url, tries=1))
    stage = json.loads(_status(run, capsys))["stages"][1]
    assert (stage["rows"], stage["kept"]) == (12, 9)
    assert stage["reasons"] == {"refused": 1, "server_error": 1, "repetitive": 1}
    results = open_results(run)
    reasons = {
        found.verdict: found.steps[1].measures["caption_failures"]
        for name in (f"{index:04d}.jpg" for index in range(12))
        if (found := sample_history(results, name)).verdict != "kept"
    }
    assert reasons["caption: refused"][0]["message"] == "status 400: too small"


def _status(run, capsys):
    capsys.readouterr()
    assert main(["status", run.root, "--json"]) == 0
    return capsys.readouterr().out


def test_a_finished_stage_needs_its_server_no_more(photos, tmp_path, server, ray_here, capsys):
    made = manifest(photos, tmp_path / "run", server.url)
    run = carry_out(made, "caption")
    before = captions(run)
    server.close()
    server.requests.clear()
    carry_out(made)
    assert captions(run) == before and not server.requests
    assert json.loads(_status(run, capsys))["stages"][1]["state"] == "done"
    assert main(["verify", run.root]) == 0


def test_a_server_that_is_off_is_said_before_anything_starts(photos, tmp_path, server):
    server.close()
    with pytest.raises(FileNotFoundError, match=rf"caption\.server: {server.url}"):
        carry_out(manifest(photos, tmp_path / "run", server.url))
    assert not (tmp_path / "run" / "pool").exists()


def test_a_model_that_changes_in_the_middle_ends_the_run_and_nothing_of_it_is_written(
    photos, tmp_path, server, ray_here
):
    def answer(request):
        if len(server.requests) > 6:
            server.models[0]["root"] = "two"
        return caption_of(request)

    server.answer = answer
    made = manifest(photos, tmp_path / "run", server.url, concurrency=1)
    with pytest.raises(StageError, match=r'caption: the model of .*"one".*now it is.*"two"'):
        carry_out(made)
    run = Run(made.run)
    first, folder = captions(run), open_plan(run).folder("caption")
    assert len(first) <= 2
    server.answer = caption_of
    carry_out(made)
    assert len(captions(run)) == 4 and open_plan(run).folder("caption") != folder
    assert run.shards(*folder) == list(first)  # the new model has captioned all rows elsewhere


def test_a_worker_that_starts_after_the_change_writes_nothing(photos, tmp_path, server, ray_here):
    made = manifest(photos, tmp_path / "run", server.url)
    run = carry_out(made, "download")
    content = {
        "measurement": {"caption": made.stages["caption"].measurement()},
        "settings": {"caption": made.stages["caption"].settings()},
    }
    run.write_json({**run.read_json("run.json"), **content}, "run.json")
    server.models[0]["root"] = "two"
    served_revision.cache_clear()
    worker = Worker(made)
    with pytest.raises(StageUnavailableError, match=r'weights: m \{"root": "one"\}, now m'):
        worker.work("caption", "00000")
    assert not (tmp_path / "run" / "annotations").exists()


def test_what_was_recorded_with_other_settings_does_not_count(photos, tmp_path, server, ray_here):
    made = manifest(photos, tmp_path / "run", server.url)
    run = carry_out(made, "caption")
    server.close()
    served_revision.cache_clear()
    assert plan_for(run, made).fingerprint("caption") == open_plan(run).fingerprint("caption")
    other = manifest(photos, tmp_path / "run", server.url, prompt="Say it in a word")
    with pytest.raises(FileNotFoundError, match=r"caption\.server"):
        plan_for(run, other).fingerprint("caption")


def test_a_dry_run_says_what_will_be_asked_and_asks_nobody(tmp_path, capsys):
    path = str(fakes.SHARED.parent.parent / "manifests" / "dense.yaml")
    assert main(["run", path, "--run", str(tmp_path / "run"), "--dry-run"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "asks Qwen/Qwen3-VL-4B-Instruct at http://127.0.0.1:8000/v1: 64 requests" in told
    assert "short: asks 'Describe this image in one short sentence.' for 1 caption" in told
    assert "nucleus p=0.9, temperature 1, at most 512 tokens" in told
