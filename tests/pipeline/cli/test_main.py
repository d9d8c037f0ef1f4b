"""The commands as a person gives them."""

import json
import shutil

import pytest
from helpers import fakes

from pipeline.cli.main import main
from pipeline.demo.run import MANIFESTS

OF_RUNS = (
    ("status",),
    ("show", "uid"),
    ("review",),
    ("report",),
    ("compare", "{d}"),
    ("verify",),
    ("verdicts", "--out", "v.csv"),
)
"""The commands that take a run, and what they take behind it."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    fakes.photo_manifest(folder, 12, shard_size=5)
    return folder


def call(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return status, output.out, output.err


def test_without_arguments_it_shows_the_way(capsys):
    status, out, _ = call(capsys)
    assert status == 0
    for command in ("run", "download", "export", "train", "status", "demo", "verdicts"):
        assert f"\n    {command} " in out
    assert "exit status" in out


def test_a_dry_run_says_what_it_would_do_and_does_nothing(capsys, place):
    status, out, _ = call(capsys, "run", place / "m.yaml", "--dry-run", "--run", place / "dry")
    assert status == 0 and not (place / "dry").exists()
    words = ("download", "clean", "dedup", "export", "report")
    order = [out.index(f"\n  {word}") for word in words]
    assert order == sorted(order)
    assert "shard_size=5" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nowhere.yaml"), "nowhere.yaml: no such manifest"),
        (("run", "{m}", "--set", "clean.max_aspekt=2"), "did you mean 'max_aspect'"),
        (("run", "{m}", "--set", "clean.max_aspect=0.5"), "clean.max_aspect must be at least 1"),
        (("run", "{m}", "--until", "polish"), "no such stage"),
        (("run", "{m}", "--workers", "0"), "--workers must be at least 1"),
        (("run", "{m}", "--set", "download.source=/nowhere.csv", "--run", "{d}/x"), "/nowhere.csv"),
        (("select", "{m}"), "the manifest has no stage select"),
        (("train", "{m}"), "the manifest trains no such model"),
        (("status", "{d}/none"), "no run there"),
        (("verdicts", "{d}/none", "--out", "v.csv"), "no run there"),
        (("demo", "--run", "memory://x"), "memory://x: the web must be on disk"),
        (("demo", "--run", "memory://x", "--from-scratch"), "the web must be on disk"),
        (
            ("ablate", f"{MANIFESTS}/ablation.yaml", "--run", "memory://x"),
            "the web must be on disk",
        ),
        (("evaluate", "{d}/none", "--data", "{d}/none.jsonl"), "none"),
        *(
            ((command, run, *more), told)
            for command, *more in OF_RUNS
            for run, told in (
                ("{m}", "m.yaml: a file, where the folder of a run is asked for"),
                (
                    "s3://me:pa55@b/r",
                    "RUN contains a secret, which the run would record: s3://***",
                ),
            )
        ),
        (("compare", "{d}", "{m}"), "m.yaml: a file, where the folder of a run is asked for"),
        (("plan", "{m}", "--rows", "9", "--from", "s3://me:pa55@b/r"), "RUN contains a secret"),
        (("run", "{m}", "--run", "{m}"), "m.yaml: a file, where the folder of a run is asked for"),
        (("run", "{m}", "--run", "s3://me:pa55@b/r"), "run: contains a secret"),
        (("demo", "--run", "{m}"), "m.yaml: a file, where the folder of a run is asked for"),
    ],
)
def test_wrong_input_is_status_2_and_says_what_to_mend(capsys, place, arguments, message):
    given = [a.replace("{m}", str(place / "m.yaml")).replace("{d}", str(place)) for a in arguments]
    status, _, err = call(capsys, *given)
    assert status == 2, err
    assert message in err and "Traceback" not in err and "pa55" not in err


def test_a_damaged_model_is_status_3(capsys, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"cut off")
    (tmp_path / "test.jsonl").write_text("")
    arguments = ("evaluate", tmp_path / "model", "--data", tmp_path / "test.jsonl")
    status, _, err = call(capsys, *arguments)
    assert status == 3 and "model.safetensors is damaged" in err


def test_a_stage_that_waits_for_another_is_status_1(capsys, place):
    status, _, err = call(capsys, "clean", place / "m.yaml", "--run", place / "fresh")
    assert status == 1 and "clean: download is not complete" in err


def test_stage_by_stage_gives_what_run_gives(capsys, place, ray_here):
    m = place / "m.yaml"
    assert call(capsys, "run", m, "--quiet")[0] == 0
    for stage in ("download", "clean", "dedup", "export"):
        status, _, err = call(capsys, stage, m, "--run", place / "steps", "--quiet")
        assert status == 0, err
    one, two = (
        json.loads((place / name / "curated" / "manifest.json").read_text())
        for name in ("run", "steps")
    )
    assert one["files"] == two["files"] and one["pairs"] == {"web": 12}


def test_a_run_can_be_looked_at(capsys, place, ray_here):
    assert call(capsys, "run", place / "m.yaml", "--quiet")[0] == 0
    status, out, _ = call(capsys, "status", place / "run", "--json")
    found = json.loads(out)
    assert status == 0 and [s["state"] for s in found["stages"]] == ["done"] * 4
    assert {"name", "state", "rows", "kept", "not_measured", "reasons", "seconds"} <= set(
        found["stages"][0]
    )
    written = json.loads((place / "run" / "report" / "report.json").read_text())
    for stage, expected in zip(written["stages"], found["stages"], strict=True):
        assert {key: stage[key] for key in expected} == expected
    status, out, _ = call(capsys, "status", place / "run")
    assert status == 0 and "download" in out and "pairs: web 12" in out
    status, out, _ = call(capsys, "verify", place / "run")
    assert status == 0 and "every row accounted for" in out
    status, out, _ = call(capsys, "verdicts", place / "run", "--out", place / "v.jsonl")
    assert status == 0 and "12 rows" in out
    uid = json.loads((place / "v.jsonl").read_text().splitlines()[0])["uid"]
    status, out, _ = call(capsys, "show", place / "run", uid)
    assert status == 0 and "verdict" in out and "kept" in out
    status, out, _ = call(capsys, "report", place / "run")
    assert status == 0 and "index.html" in out


def test_a_damaged_run_is_status_3(capsys, place, ray_here):
    assert call(capsys, "run", place / "m.yaml", "--quiet", "--run", place / "hurt")[0] == 0
    (place / "hurt" / "pool" / "00001.parquet").write_bytes(b"no")
    status, out, _ = call(capsys, "verify", place / "hurt")
    assert status == 3 and "00001.parquet" in out


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("llava.yaml", "python -m spacy download"),
        ("folder.yaml", "neither a folder nor in the local cache"),
    ],
)
def test_a_model_that_is_nowhere_is_said_before_anything_starts(
    capsys, place, monkeypatch, recipe, message
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    manifest = fakes.SHARED.parent.parent / "manifests" / recipe
    given = ["download.source=" + str(place / "photos"), "select.model=no_such_pipeline"]
    sets = [part for text in given[: 1 + ("llava" in recipe)] for part in ("--set", text)]
    if "folder" in recipe:
        sets += ["--set", "caption.model=nobody/nothing"]
    status, _, err = call(capsys, "run", manifest, *sets, "--run", place / recipe)
    assert status == 2 and message in err
    assert not (place / recipe / "pool").exists()


def test_a_shard_that_fails_is_told_in_one_line_and_the_same_command_mends_it(
    capsys, place, ray_here
):
    m, run = place / "m.yaml", place / "fails"
    assert call(capsys, "run", m, "--quiet", "--run", run, "--until", "download")[0] == 0
    whole = (run / "pool" / "00001.parquet").read_bytes()
    (run / "pool" / "00001.parquet").write_bytes(b"no")
    status, _, err = call(capsys, "run", m, "--quiet", "--run", run)
    assert status == 3
    assert "clean: 1 of 3 shards failed (00001)" in err and "Traceback" not in err
    assert "00001.parquet: damaged: it has no checksum" in err
    assert "worker.py" in (run / "failures" / "clean-00001.txt").read_text()
    assert "; the others are done. Shard 00001: " in err
    rest = {name: (run / "pool" / name).read_bytes() for name in ("00000.parquet", "00002.parquet")}
    for name in rest:
        (run / "pool" / name).write_bytes(b"no")
    shutil.rmtree(run / "annotations")
    status, _, err = call(capsys, "run", m, "--quiet", "--run", run)
    assert "clean: 3 of 3 shards failed (00000, 00001, 00002). Shard 00000: " in err
    for name, content in {**rest, "00001.parquet": whole}.items():
        (run / "pool" / name).write_bytes(content)
    assert call(capsys, "run", m, "--quiet", "--run", run)[0] == 0
