"""Manifests and ablations that are wrong in one field after the other, or are no honest YAML."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import math
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.errors import ManifestError
from pipeline.cli.main import main
from pipeline.demo.ablation import Ablation
from pipeline.manifest.fields import describe
from pipeline.manifest.manifest import KEYS, EvaluateConfig, Manifest
from pipeline.manifest.train_config import TrainConfig
from stages.documents import DocumentsConfig
from stages.export import ExportConfig
from stages.registry import STAGES
from stages.sources import Source

BASE: dict[str, Any] = {
    "name": "whole",
    "seed": 0,
    "rounds": 1,
    "stages": {
        **{name: {} for name in STAGES.ours},
        "download": {"source": "x.csv"},
        "caption": {"model": "m/x"},
        "filter": {"model": "m/y"},
        "review": {"file": "none.jsonl"},
        "export": {"documents": {}},
    },
    "exports": {"more": {}},
    "train": {"f": {"objective": "filter", "model": "x", "data": ["d.jsonl"]}},
    "evaluate": {"data": "t.jsonl", "models": ["m"]},
}

NEVER: list[Any] = [
    b"bytes",
    {1, 2},
    datetime.date(2020, 1, 1),
    datetime.datetime(2020, 1, 1),
    math.nan,
    math.inf,
    -math.inf,
    2**63,
    -(10**400),
    "nul \0 inside",
    [["\0"]],
    [math.nan],
    {1: 2},
    "ftp://user:secret@host/x",
    "https://host/x.csv?X-Amz-Signature=secret",
]
"""What no field may be."""

TYPES: dict[str, list[Any]] = {
    "text": [1, 1.5, True, ["a"], {"a": 1}],
    "whole number": ["many", 1.5, True, [1], {"a": 1}],
    "number": ["much", True, [1.0], {"a": 1}],
    "on/off": ["perhaps", 2, 1.5, [True], {"a": 1}],
    "list": [1, True, {"a": 1}, [{"a": 1}], [[]]],
    "mapping": [1, True, "a", ["a"], {"unknown": 1}],
}
"""What a field of a type may not be, by the words that `describe` has for the type."""

NEGATIVE = {("dedup", "min_contrast"), ("filter", "min_clip")}

Place = tuple[str, ...]


def configs() -> Iterator[tuple[Place, type[Any]]]:
    """Where the config of each kind stands."""
    for name in STAGES.ours:
        yield ("stages", name), STAGES[name].config_type
    yield ("stages", "export"), ExportConfig
    yield ("exports", "more"), ExportConfig
    yield ("stages", "export", "documents"), DocumentsConfig
    yield ("train", "f"), TrainConfig
    yield ("evaluate",), EvaluateConfig
    yield ("stages", "download", "source"), Source


FIELDS = [
    pytest.param((*place, field.name), kind, id=".".join((*place, field.name)))
    for place, kind in configs()
    for field in dataclasses.fields(kind)
]


def put(place: Place, value: Any) -> dict[str, Any]:
    """The manifest with one value in it replaced."""
    content = copy.deepcopy(BASE)
    if place[:3] == ("stages", "download", "source") and len(place) == 4:
        content["stages"]["download"]["source"] = {"path": "x.csv"}
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return content


def refuse(place: Place, value: Any) -> None:
    """The manifest is refused in a message that names the file and the field, and is no book."""
    try:
        Manifest.parse(put(place, value), "M.yaml")
    except ManifestError as error:
        lines = str(error).split("\n")
        assert all(line.startswith("M.yaml: ") for line in lines), (value, lines)
        assert any(place[-1] in line for line in lines), (value, lines)
        assert all(len(line) < 700 for line in lines) and "secret@" not in str(error)
        assert "=secret" not in str(error)
    else:
        raise AssertionError(f"{'.'.join(place)}: {value!r} is taken")


def wrong_for(kind: type[Any], name: str) -> Iterator[Any]:
    """Values that a field cannot hold, by what it holds; null where it needs something."""
    (field,) = (one for one in describe(kind) if one.name == name)
    held = [part.replace("`", "") for part in field.type.split(" or ")]
    if any(", " in part or part not in (*TYPES, "null") for part in held):
        held = [one for part in held for one in ("list",) if part.startswith("list")] or ["text"]
    kinds = [wrong for word in held if word in TYPES for wrong in (TYPES[word],)]
    if len(held) == 1 or (len(held) == 2 and "null" in held):
        yield from kinds[0]
    else:  # what none of them can be
        yield from (value for value in ({"a": 1}, [[]], [{"a": 1}]) if kinds)


def test_the_whole_manifest_is_taken() -> None:
    assert Manifest.parse(BASE).stages


@pytest.mark.parametrize(("place", "kind"), FIELDS)
def test_every_field_wrong_in_turn_is_named(place: Place, kind: type[Any]) -> None:
    for value in (*NEVER, *wrong_for(kind, place[-1])):
        refuse(place, value)
    hint = typing.get_type_hints(kind)[place[-1]]
    if hint is int:
        refuse(place, -(2**40))
    refuse((*place[:-1], f"{place[-1]}x"), 1)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_wrong_in_turn_is_named(key: str) -> None:
    for value in (*NEVER, 0.5, True, [], ["a"], [[]], ""):
        refuse((key,), value)
    for place in (place for place, _ in configs() if place[0] == key and len(place) == 2):
        for value in (0.5, True, ["a"], "a", 3, [], ""):
            refuse(place, value)


@pytest.mark.parametrize("key", ["exports", "train"])
@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".hidden", "", "a\\b", "x\n", "y" * 101])
def test_a_name_that_leads_out_of_the_run_is_refused(key: str, name: str) -> None:
    content = put((key,), {name: BASE[key][next(iter(BASE[key]))]})
    with pytest.raises(ManifestError, match="a name must be a text of 1 to 100"):
        Manifest.parse(content, "M.yaml")
    with pytest.raises(ManifestError, match=r"M\.yaml: name: "):
        Manifest.parse(put(("name",), name), "M.yaml")


@pytest.mark.parametrize("like", [1, None, ["f"], {"a": 1}, "lost", "g"])
def test_an_entry_like_no_other_is_named(like: Any) -> None:
    content = copy.deepcopy(BASE)
    content["train"]["g"] = {"like": like}
    with pytest.raises(ManifestError, match=r"train\.g\.like: no such entry"):
        Manifest.parse(content, "M.yaml")


def bomb(levels: int = 12) -> str:
    """A billion laughs, of aliases."""
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


def merged(levels: int = 12) -> str:
    """The same of merged mappings, which grow as they are read."""
    lines = ["l0: &l0 {a: 1}"]
    lines += [f"l{n}: &l{n} {{<<: [{', '.join([f'*l{n - 1}'] * 9)}]}}" for n in range(1, levels)]
    return "\n".join(lines)


TEXTS: list[tuple[str, str | bytes, str]] = [
    ("aliases", bomb(), "more than 100,000 values"),
    ("merges", merged(), "more than 100,000 values"),
    ("cycle", "name: &a [*a]", "'a' contains itself"),
    ("undefined", "name: *lost", "undefined alias"),
    ("object", "name: !!python/object/apply:os.system ['false']", "could not determine"),
    ("module", "name: !!python/name:os.system", "could not determine"),
    ("tag", "name: !unknown x", "could not determine"),
    ("twice", "name: a\nstages: {}\nname: b", "the key 'name' is repeated"),
    (
        "twice within",
        "name: a\nstages: {clean: {}, dedup: {}, clean: {}}",
        "the key 'clean' is repeated",
    ),
    ("nested", "name: " + "[" * 5_000, "nested too deeply"),
    ("nested maps", "".join(" " * n + f"a{n}:\n" for n in range(1000)), "nested too deeply"),
    ("latin", "name: caf\xe9".encode("latin-1"), "not YAML"),
    ("utf16", "name: a".encode("utf-16"), "not YAML"),
    ("control", "name: a\x01b", "not YAML"),
    ("date", "name: 2020-99-99", "not YAML"),
    ("digits", "name: a\nseed: " + "9" * 5000, "not YAML"),
    ("big", b"# " + b"x" * 2**20, "larger than 1 MiB"),
    ("empty", "", "a manifest is a mapping"),
    ("several", "name: a\n---\nname: b", "single document"),
    ("keys", "name: a\n1: b", "a key must be a text"),
    ("null key", "name: a\n~: b", "a key must be a text"),
    ("mapped key", "name: a\n? {a: b} : b", "not YAML"),
    ("switch", "name: no", "a manifest needs a name"),
    ("binary", "name: !!binary aGk=", "name: must be a text"),
    ("set", "name: !!set {a, b}", "name: must be a text"),
]


@pytest.mark.parametrize(
    ("text", "words"), [(t, w) for _, t, w in TEXTS], ids=[t[0] for t in TEXTS]
)
def test_text_that_is_no_honest_yaml_is_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | bytes, words: str
) -> None:
    path = tmp_path / "M.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for command in (["run", str(path), "--dry-run"], ["ablate", str(path)]):
        assert main(command) == 2
        told = capsys.readouterr().err
        assert str(path) in told and len(told) < 5000 and "Traceback" not in told
        if command[0] == "run":
            assert words in told
    with pytest.raises(ManifestError):
        Ablation.load(str(path))


def test_aliases_that_stay_small_are_read(tmp_path: Path) -> None:
    path = tmp_path / "M.yaml"
    path.write_text(
        "name: a\nstages: {download: {source: &s x.csv, url_column: *s}}\n"
        "train:\n  f: &f {objective: filter, model: x, data: [d]}\n  g: {<<: *f, seed: 1}\n"
    )
    manifest = Manifest.load(str(path))
    assert manifest.train["g"].seed == 1 and manifest.train["g"].objective.model == "x"


def test_an_override_is_read_as_strictly(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "M.yaml"
    path.write_text(yaml.safe_dump({"name": "a", "stages": {"download": {"source": "x.csv"}}}))
    for value in ("{a: 1, a: 2}", "[" * 9000, "!!python/name:os.system", ".nan", "ftp://u:pw@h/x"):
        assert main(["run", str(path), "--dry-run", "--set", f"download.source={value}"]) == 2
        told = capsys.readouterr().err
        assert "download.source" in told and "u:pw" not in told and "Traceback" not in told
    assert main(["run", str(path), "--dry-run", "--run", "ftp://u:pw@h/x"]) == 2
    assert "u:pw" not in capsys.readouterr().err


ABLATION: dict[str, Any] = {
    "name": "a",
    "manifest": "demo.yaml",
    "seeds": [0, 1],
    "chains": {"one": {}},
    "metrics": {"m": "x.y"},
    "tables": [{"title": "t", "rows": {"r": "one/f"}}],
    "run": "runs/a",
}


@pytest.mark.parametrize("field", ABLATION)
def test_every_field_of_an_ablation_wrong_in_turn_is_named(tmp_path: Path, field: str) -> None:
    path = tmp_path / "A.yaml"
    path.write_text(yaml.safe_dump(ABLATION))
    assert Ablation.load(str(path)).name == "a"
    wrong: list[Any] = [math.nan, {"a": {"b": [1]}}, [[]], [{}], True, b"x", {1: 2}, "\0", 2**70]
    for value in wrong:
        path.write_text(yaml.safe_dump({**ABLATION, field: value}))
        with pytest.raises(ManifestError) as error:
            Ablation.load(str(path))
        assert str(path) in str(error.value) and "\n\n" not in str(error.value)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".."])
def test_a_chain_that_leads_out_of_the_run_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "A.yaml"
    for changed in ({"chains": {name: {}}, "tables": []}, {"name": name}):
        path.write_text(yaml.safe_dump({**ABLATION, **changed}))
        with pytest.raises(ManifestError, match="must be a text of 1 to 100"):
            Ablation.load(str(path))
