"""Records of a run that somebody else has written."""

from __future__ import annotations

import random
import shutil

import pytest
from helpers import runs

from pipeline.cli.main import main
from pipeline.manifest.plan import Plan
from pipeline.results.verify import verify
from pipeline.storage.run import Run


@pytest.mark.parametrize("branch", ["../out", "..", "/tmp/out", "rounds/../../out", "chains/..", 2])
def test_a_branch_leads_nowhere_else(tmp_path, branch, capsys):
    run = runs.make_run(tmp_path / "run", Plan(runs.manifest(tmp_path / "run")), shards=1)
    run.write_json({**run.read_json("run.json"), "branch": branch}, "run.json")
    shutil.copytree(run.path, tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    for command in ("report", "status"):
        assert main([command, run.root]) == 3
        told = capsys.readouterr().err
        assert f"{run.at('run.json')}: damaged: its field 'branch': " in told
    assert main(["verify", run.root]) == 3
    assert sorted(tmp_path.rglob("*")) == before


def test_a_branch_is_found_from_inside_and_not_elsewhere(tmp_path, monkeypatch):
    run = Run(str(tmp_path / "run"), "rounds/2")
    run.write_json({"manifest": {}, "branch": "rounds/2"}, "run.json")
    found = Run.find(f"{run.root}/rounds/2")
    assert (found.root, found.branch) == (run.root, run.branch)
    monkeypatch.chdir(tmp_path / "run")
    for path in ("rounds/2", "./rounds/2"):
        assert Run.find(path).at("run.json") == run.at("run.json")
    monkeypatch.chdir(tmp_path / "run" / "rounds" / "2")
    assert Run.find(".").at("run.json") == run.at("run.json")
    shutil.move(tmp_path / "run" / "rounds" / "2", tmp_path / "alone")
    with pytest.raises(ValueError, match=r"alone/run\.json: damaged: it belongs to rounds/2"):
        Run.find(str(tmp_path / "alone"))


VALUES = (None, True, -1, 1.5, 10**30, "x", "../x", [], [1], [[]], {}, {"x": 1}, [{"x": None}])
"""What a field of sealed JSON may hold in a run that comes from elsewhere."""


def places_of(value, path=()):
    """The path of every value in a tree of JSON."""
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in parts:
        yield (*path, key)
        if isinstance(part, dict | list):
            yield from places_of(part, (*path, key))


def changed(value, path, other):
    """A tree with another value at a path."""
    if not path:
        return other
    made = value.copy()
    made[path[0]] = changed(value[path[0]], path[1:], other)
    return made


def test_sealed_json_of_other_types_is_told_and_ends_no_command_otherwise(tmp_path, capsys):
    plan = Plan(runs.manifest(tmp_path / "run"))
    run = runs.make_run(tmp_path / "run", plan, shards=1, number=24)
    its = {"fingerprint": "x", "measurement": {}, "identity": None, "content": None}
    run.write_json({"rows": 24, "repeats": 0, "shards": 1, **its}, "list", "_list.json")
    estimate = {"mean": 0.5, "low": None, "high": None}
    metrics = {"x": {"values": [0.5], "estimate": estimate, "difference": None}}
    table = {"title": "one", "rows": [{"label": "a", "metrics": metrics}] * 2}
    run.write_json({"seeds": [0, 1], "tables": [table]}, "ablation.json")
    run.write_json(runs.TRUTH, "truth.json")
    scored = {"metrics": {"ir@1": 0.5, "intervals": {"ir@1": [0.4, 0.6]}}}
    run.write_json({"a": scored, "b": scored}, "evaluation.json")
    assert main(["report", run.root]) == main(["status", run.root]) == 0
    sound = set(map(str, verify(run)))
    chance = random.Random(7)
    marks = [
        path
        for path in run.files()
        if path.endswith(".json") and not path.startswith(("report", "pipeline"))
    ]
    for number in range(40):
        parts = tuple(chance.choice(marks).split("/"))
        mark = run.read_json(*parts)
        at = chance.choice(
            [place for place in places_of(mark) if place[:1] != ("manifest",)] or [()]
        )
        if chance.random() < 0.1 or parts == ("run.json",):
            at = at[:1]
        run.write_json(changed(mark, at, chance.choice(VALUES)) if at else {}, *parts)
        assert main(["verify", run.root]) in (0, 1, 2, 3)
        assert main(["status", run.root]) in (0, 1, 2, 3)
        if number % 5 == 0:
            assert main(["report", run.root]) in (0, 1, 2, 3)
        run.write_json(mark, *parts)
    capsys.readouterr()
    assert set(map(str, verify(run))) == sound


@pytest.mark.parametrize(
    ("manifest", "status"),
    [(None, 3), ([], 3), ("x", 3), ({}, 2), ({"name": 3}, 2), ({"stages": [], "name": "x"}, 2)],
)
def test_a_record_without_a_manifest_is_told(tmp_path, manifest, status, capsys):
    run = Run(str(tmp_path))
    run.write_json({"manifest": manifest}, "run.json")
    for command in ("verify", "status", "report"):
        assert main([command, run.root]) == status
        told = capsys.readouterr()
        assert "run.json: " in told.out + told.err


@pytest.mark.parametrize("name", ["x[/b]", "[a]b", "[bold]x[/]", ":smile: x\\[y]"])
def test_a_path_is_told_as_it_is_written(tmp_path, name, capsys):
    plan = Plan(runs.manifest(tmp_path / "run", ("download", "clean")))
    run = runs.make_run(tmp_path / "run", plan, shards=1, number=20)
    shutil.move(run.path, tmp_path / "q" / name)
    root = str(tmp_path / "q" / name)
    assert main(["status", root]) == 0
    assert root in capsys.readouterr().out
    assert main(["verify", root]) == 0
    assert capsys.readouterr().out.startswith(f"{root}: every file is whole")
