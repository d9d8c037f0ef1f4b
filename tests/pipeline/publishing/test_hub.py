"""Pushing by huggingface_hub itself, against a server on loopback that speaks the hub's API."""

import dataclasses
import json
import os
import re
import socket

import pytest
import yaml
from helpers.hub_server import TOKEN, HubServer
from helpers.runs import make_run, manifest

from pipeline.cli.main import main
from pipeline.manifest.plan import Plan
from pipeline.publishing import hub as publishing
from pipeline.results import dataset_card, retries
from pipeline.results.verdicts import Results
from pipeline.storage.records import ExportRecord

RECORD = (ExportRecord, "curated", "manifest.json")
mlcroissant = pytest.importorskip("mlcroissant")


@pytest.fixture
def hub(monkeypatch):
    import huggingface_hub.constants as constants

    server = HubServer()
    for name in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setattr(constants, name, True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def finished(tmp_path):
    """A run whose export and report are done."""
    plan = Plan(manifest(tmp_path))
    run = make_run(tmp_path, plan, shards=2, number=20)
    results = Results(run, plan)
    record = run.read_record(ExportRecord, "curated", "manifest.json")
    run.write(dataset_card.text(results, "export", record).encode(), "curated", "README.md")
    run.write(b"<!doctype html>" + b" " * 3000, "report", "index.html")
    return run, results


def test_all_files_are_there_and_the_card_comes_last(hub, finished, capsys):
    run, _ = finished
    assert main(["push", run.root, "--repo", "org/birds", "--private"]) == 0
    assert f"pushed     {hub.url}/datasets/org/birds" in capsys.readouterr().out
    assert hub.repos["org/birds"]["private"]
    files = hub.files("org/birds")
    assert set(files) == {
        *("00000.parquet", "00001.parquet", "README.md", "manifest.json", "croissant.json"),
        "report/index.html",
    }
    for name in ("00000.parquet", "README.md", "manifest.json"):
        assert files[name] == run.read("curated", name)
    assert [message[-6:] for message in hub.commits] == ["1 of 2", "2 of 2"]


def test_a_push_that_stops_goes_on_and_sends_nothing_twice(hub, finished, capsys):
    run, _ = finished
    hub.refuse_after = 1
    assert main(["push", run.root, "--repo", "org/birds"]) == 1
    told = capsys.readouterr().err
    assert "the same command goes on" in told and TOKEN not in told
    assert "README.md" not in hub.files("org/birds")
    hub.refuse_after = 10**9
    assert main(["push", run.root, "--repo", "org/birds"]) == 0
    assert len(hub.puts) == len(set(hub.puts))
    sent, commits = len(hub.puts), len(hub.commits)
    assert main(["push", run.root, "--repo", "org/birds"]) == 0
    assert (len(hub.puts), len(hub.commits)) == (sent, commits)


def test_a_damaged_export_is_not_pushed(hub, finished, capsys):
    run, _ = finished
    content = bytearray(run.read("curated", "00001.parquet"))
    content[len(content) // 2] ^= 1
    run.write(bytes(content), "curated", "00001.parquet")
    assert main(["push", run.root, "--repo", "org/birds"]) == 3
    assert "curated/00001.parquet: damaged" in capsys.readouterr().err
    run.remove("curated", "00001.parquet")
    assert main(["push", run.root, "--repo", "org/birds"]) == 3
    assert not hub.repos


def test_files_of_an_earlier_push_go_and_those_of_others_stay(hub, finished):
    run, _ = finished
    assert main(["push", run.root, "--repo", "org/birds"]) == 0
    files = hub.files("org/birds")
    record = json.loads(files["manifest.json"])
    record["files"].append({"name": "00002.parquet"})
    files |= {
        "manifest.json": json.dumps(record).encode(),
        "00002.parquet": b"old",
        "NOTES.md": b"by hand",
    }
    assert main(["push", run.root, "--repo", "org/birds"]) == 0
    assert "00002.parquet" not in files and files["NOTES.md"] == b"by hand"


def test_a_dry_run_lists_the_files_and_asks_nobody(hub, finished, capsys):
    run, _ = finished
    assert main(["push", run.root, "--repo", "org/birds", "--dry-run"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in told[-4:-1]] == [
        *("README.md", "croissant.json", "manifest.json"),
    ]
    size = len(run.read("curated", "00000.parquet"))
    assert f"{size:,}  00000.parquet" in told[0] and told[-1].endswith("bytes in 6 files")
    assert not hub.repos


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--repo", "birds"], 2, "write org/name"),
        (
            ["--repo", "org/birds", "--name", "tars"],
            2,
            "no export 'tars'; the manifest has curated",
        ),
    ],
)
def test_a_wrong_name_is_told(hub, finished, capsys, arguments, status, message):
    assert main(["push", finished[0].root, *arguments]) == status
    assert message in capsys.readouterr().err and not hub.repos


def test_a_hub_that_cannot_be_reached_is_told(finished, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["push", finished[0].root, "--repo", "org/birds"]) == 1
    told = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert "org/birds: the push failed" in told and "the same command goes on" in told


def test_a_refused_token_is_told_and_not_shown(hub, finished, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrong")
    assert main(["push", finished[0].root, "--repo", "org/birds"]) == 2
    told = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert "Set HF_TOKEN to a token that may write" in told and "wrongwrong" not in told


def test_an_export_that_is_not_up_to_date_is_not_pushed(hub, finished, capsys):
    run, _ = finished
    record = run.read_json("curated", "manifest.json")
    run.write_json({**record, "decision": "0" * 16}, "curated", "manifest.json")
    assert main(["push", run.root, "--repo", "org/birds"]) == 1
    assert "older than the settings of the run" in capsys.readouterr().err
    run.remove("curated", "manifest.json")
    assert main(["push", run.root, "--repo", "org/birds"]) == 1
    assert "the export is not finished" in capsys.readouterr().err
    assert not hub.repos


def test_the_card_tells_models_and_fingerprints(finished):
    run, results = finished
    card = run.read("curated", "README.md").decode()
    assert yaml.safe_load(card.split("---")[1])["license"] == "other"
    for name in results.plan.names:
        assert f"| {name} | `{results.plan.fingerprint(name)}` |" in card
    assert "Images whose server said noai" in card


def test_the_licence_of_the_export_is_in_the_card_and_in_the_metadata(finished):
    run, results = finished
    stages, record = results.plan.manifest.stages, run.read_record(*RECORD)
    decided = results.plan.decision("export")
    assert "license" not in stages["export"].settings()
    stages["export"] = dataclasses.replace(stages["export"], license="cc-by-4.0")
    card = dataset_card.text(results, "export", record)
    assert yaml.safe_load(card.split("---")[1])["license"] == "cc-by-4.0"
    assert "The licence `cc-by-4.0` is granted for the selection" in card
    assert results.plan.decision("export") != decided
    state = retries.pool_state(run, results.plan.decision("export"))
    run.write_record(record.model_copy(update={"decision": state}), "curated", "manifest.json")
    (file,) = (
        file
        for file in publishing.files_to_push(results, "org/birds")
        if file.name == "croissant.json"
    )
    described = json.loads(file.content())
    assert described["license"] == "https://choosealicense.com/licenses/cc-by-4.0/"


def test_croissant_is_valid_and_reads_every_pair(hub, finished, tmp_path):
    run, _ = finished
    main(["push", run.root, "--repo", "org/birds"])
    folder = tmp_path / "clone"
    for name, content in hub.files("org/birds").items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    data = mlcroissant.Dataset(jsonld=str(folder / "croissant.json"))
    assert not data.metadata.ctx.issues.errors
    rows = list(data.records("train-rows"))
    pairs = [
        pair
        for table in (run.read_table("curated", f"{s}.parquet") for s in ("00000", "00001"))
        for pair in table.to_pylist()
    ]
    assert [row["train-rows/caption"].decode() for row in rows] == [p["caption"] for p in pairs]
    assert rows[0]["train-rows/image"].size == (pairs[0]["width"], pairs[0]["height"])
    urls = [entry["contentUrl"] for entry in data.metadata.to_json()["distribution"][:2]]
    assert urls == ["00000.parquet", "00001.parquet"]


def test_the_token_is_read_from_the_environment_alone(finished):
    assert not any("token" in name for name in publishing.push.__kwdefaults__)
    assert "HF_TOKEN" not in json.dumps(dict(finished[1].plan.manifest.source))
    assert os.environ.get("HF_TOKEN") != TOKEN
