"""What `capfilt verify` finds, and what a run does with files that are not as they were written."""

import contextlib
import ctypes
import io
import json
import os
import random
import shutil
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import fakes, runs
from rich.console import Console

from models.errors import DamagedError
from pipeline.cli.main import main
from pipeline.demo.tokenizer import write_tokenizer
from pipeline.execution.progress import Progress
from pipeline.execution.session import Session, write_report
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
from pipeline.results.funnel import funnel
from pipeline.results.verdicts import Results
from pipeline.results.verify import verify
from pipeline.review.ledger import Ledger
from pipeline.storage.run import Run
from pipeline.training.job import TrainingJob
from stages.formats import FORMATS
from stages.review import Decision, read_decisions


def manifest(place, run):
    content = {
        "name": "small",
        "run": str(run),
        "stages": {
            "download": {"source": str(place / "photos"), "image_size": 32, "shard_size": 6},
            "clean": {"min_side": 16},
            "dedup": {},
            "export": {
                "human": [str(place / "people.jsonl")],
                "validation": 0.3,
                "shard_size": 8,
            },
        },
        "exports": {name: {"format": name} for name in FORMATS if name != "parquet"},
        "train": {
            "new": {
                "objective": "pretrain",
                "model": "tiny",
                "tokenizer": str(place / "tokenizer"),
                "data": ["curated"],
                "steps": 1,
                "batch_size": 4,
                "queue_size": 4,
                "image_size": 32,
                "threads": 1,
            },
        },
    }
    return Manifest.parse(content)


def carry_out(made):
    """All but training, which takes seconds to start in a process of its own."""
    progress = Progress(Console(quiet=True), quiet=True)
    with Session(made, workers=1, progress=progress) as session:
        session.run("review")
        session.export()
    return Run(made.run), Plan(made)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    fakes.photo_folder(folder / "photos", 16)
    (folder / "person.jpg").write_bytes(fakes.jpeg(500))
    line = {"image": "person.jpg", "captions": ["a person", "somebody by a door"]}
    (folder / "people.jsonl").write_text(json.dumps(line) + "\n")
    write_tokenizer(folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def done(place, ray_here):
    Ledger(str(place / "run" / "reviews.jsonl")).decide(("0" * 32, "x"), Decision("accept"))
    made = manifest(place, place / "run")
    run, plan = carry_out(made)
    TrainingJob(made, "new").carry_out()
    write_report(Results(run, plan))
    return run


@pytest.fixture
def copy(done, tmp_path):
    shutil.copytree(done.path, tmp_path / "run")
    return Run(str(tmp_path / "run"))


def files_of(run):
    return [p for p in sorted(Path(run.path).rglob("*")) if p.is_file() and p.name != "run.lock"]


def test_a_finished_run_is_sound(done):
    assert list(verify(done)) == []


def test_each_of_a_hundred_flipped_bytes_is_found_by_name(copy):
    chance = random.Random(5)
    files = files_of(copy)
    sizes = [path.stat().st_size for path in files]
    chosen = chance.choices(files, sizes, k=50) + chance.choices(files, k=50)
    missed = []
    for path in chosen:
        content = path.read_bytes()
        at = chance.randrange(len(content))
        hurt = bytearray(content)
        hurt[at] ^= 1 << chance.randrange(8)
        path.write_bytes(hurt)
        faults = list(map(str, verify(copy)))
        if not any(is_named(copy, path, fault) for fault in faults):
            missed.append((str(path), at, faults))
        path.write_bytes(content)
    assert missed == []
    assert list(verify(copy)) == []


def is_named(run, path, fault):
    """Whether a fault is of a file, or of the folder that an export digests as one."""
    name = fault.removeprefix("review.file: ").split(": ")[0]
    return name == str(path) or (f"{run.path}/exports/" in name and name == str(path.parent))


def flip(run, *parts, at=None):
    """Change a bit in the middle of a file; the path of it."""
    content = bytearray(run.read(*parts))
    content[len(content) // 2 if at is None else at] ^= 1
    run.write(bytes(content), *parts)
    return run.at(*parts)


def run_again(place, run):
    """What `capfilt run` does on a run, and what it says."""
    made = manifest(place, run.root)
    told = io.StringIO()
    progress = Progress(Console(file=told, width=1000, soft_wrap=True))
    with Session(made, workers=1, progress=progress) as session:
        session.run()
        session.report()
    return told.getvalue()


def digests(run):
    return {
        str(path.relative_to(run.path)): path.read_bytes()
        for path in files_of(run)
        if path.suffix == ".parquet" or path.parent.name == "new"
    }


def test_all_faults_are_told_at_once_with_the_status_of_damage(copy, capsys):
    hurt = [
        flip(copy, "run.json"),
        flip(copy, "pool", "00001.parquet"),
        flip(copy, "list", "_list.json"),
        flip(copy, "curated", "README.md"),
        flip(copy, "models", "new", "captioner", "model.safetensors"),
        flip(copy, "report", "index.html"),
    ]
    folder = next(Path(copy.at("annotations")).glob("clean-*"))
    (folder / "00000.parquet").write_text("no Parquet")
    (folder / "00077.parquet").write_bytes((folder / "00001.parquet").read_bytes())
    Path(copy.at("exports", "urls", "stray.parquet")).write_bytes(b"")
    assert main(["verify", copy.root]) == 3
    lines = capsys.readouterr().out.splitlines()
    for path in (*hurt, folder / "00000.parquet", copy.at("exports", "urls", "stray.parquet")):
        assert any(line.startswith(f"{path}: ") for line in lines), path
    copy.write(b"", "run.json")
    assert main(["status", copy.root]) == 3
    assert "run.json: damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("parts", "commands"),
    [
        (("run.json",), ("status", "report", "show", "verdicts")),
        (("list", "_list.json"), ("status", "report")),
        (("pool", "00000.parquet"), ("status", "report", "show", "verdicts")),
        (("clean", "00000.parquet"), ("status", "report", "show", "verdicts")),
        (("curated", "manifest.json"), ("status", "report")),
        (("evaluation.json",), ("report",)),
    ],
)
def test_one_damage_has_one_status_whichever_command_meets_it(tmp_path, parts, commands, capsys):
    plan = Plan(runs.manifest(tmp_path / "run", ("download", "clean")))
    run = runs.make_run(tmp_path / "run", plan, shards=1, number=20)
    record = {"fingerprint": "x", "measurement": {}, "identity": None, "content": None}
    run.write_json({"rows": 20, "repeats": 0, "shards": 1, **record}, "list", "_list.json")
    run.write_json(runs.EVALUATION, "evaluation.json")
    more = {"verdicts": ["--out", str(tmp_path / "v.csv")]}
    more["show"] = [str(run.read_table("pool", "00000.parquet")["uid"][0])]
    if parts[0] == "clean":
        parts = (*plan.folder("clean"), parts[1])
    path = flip(run, *parts, at=20)  # of a shard, in the column uid, which all of them read
    for command in ("verify", *commands):
        assert main([command, run.root, *more.get(command, [])]) == 3, command
        shown = capsys.readouterr()
        assert path in shown.out + shown.err


def test_the_files_of_each_kind_that_are_missing_or_too_many_are_told(copy, place):
    plan = Plan(manifest(place, copy.root))
    summary = plan.summary_folder("dedup")
    for parts in (
        ("pool", "00002.parquet"),
        (*summary, "00001.parquet"),
        ("curated", "README.md"),
        ("models", "new", "README.md"),
        ("list", "00000.parquet"),
    ):
        copy.remove(*parts)
    Path(copy.at(*plan.folder("clean"), "00009.parquet")).write_bytes(b"")
    shutil.copy(copy.at("run.json"), copy.at("models", "new", "more.json"))
    faults = "\n".join(map(str, verify(copy)))
    for text in (
        "pool/00002.parquet: missing. Run again: it is downloaded anew, and measured anew",
        f"{summary[-1]}/00001.parquet: missing",
        "curated/README.md: damaged: it is missing",
        "models/new/README.md: damaged: it is missing",
        "list/00000.parquet: damaged: it does not go with _list.json",
        "more.json: the training did not write it",
        "00009.parquet: the pool has no such shard. Remove it",
    ):
        assert text in faults
    assert "00002.parquet: the pool has no" not in faults and "Errno" not in faults


@contextlib.contextmanager
def plain_rights():
    """Let modes count for this thread, also where it is root's: no CAP_DAC_OVERRIDE, nor _READ."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("Ii", 0x20080522, 0)
    held = ctypes.create_string_buffer(24)
    assert libc.capget(header, held) == 0
    effective, *others = struct.unpack("6I", held.raw)
    assert libc.capset(header, struct.pack("6I", effective & ~0b110, *others)) == 0
    try:
        yield
    finally:
        assert libc.capset(header, held.raw) == 0


def test_what_cannot_be_read_is_told_and_holds_up_nothing_else(copy, place, capsys):
    plan = Plan(manifest(place, copy.root))
    closed = [
        copy.at("curated", f"{copy.shards('curated')[0]}.parquet"),
        copy.at("exports", "urls", "manifest.json"),
        copy.at("list", "00000.parquet"),
        copy.at("pool", "00000.parquet"),
        copy.at(*plan.folder("clean"), "00001.parquet"),
        copy.at(*plan.folder("clean"), "_stage.json"),
        copy.at(*plan.summary_folder("dedup"), "00001.parquet"),
        copy.at("models", "new", "README.md"),
        copy.at("report", "index.html"),
        copy.at("reviews.jsonl"),
        copy.at("exports", "llava"),
    ]
    hurt = [flip(copy, "pool", "00001.parquet"), flip(copy, "curated", "README.md")]
    for path in closed:
        os.chmod(path, 0)
    try:
        with plain_rights():
            assert main(["verify", copy.root]) == 3
    finally:
        os.chmod(copy.at("exports", "llava"), 0o700)
    told = capsys.readouterr()
    lines = told.out.splitlines()
    for path in closed:
        assert f"{path}: cannot be read: Permission denied" in lines
    assert not told.err
    for path in hurt:
        assert any(line.startswith(f"{path}: damaged: ") for line in lines)
    assert {line.split(": ")[0] for line in lines} == {*closed, *hurt, "review"}


@pytest.mark.parametrize("name", ["run.json", "models/new.json", "list/_list.json"])
def test_marks_that_cannot_be_read_hold_up_nothing_else(copy, name):
    hurt = flip(copy, "pool", "00001.parquet")
    os.chmod(copy.at(name), 0)
    with plain_rights():
        faults = list(map(str, verify(copy)))
    assert f"{copy.at(name)}: cannot be read: Permission denied" in faults
    assert any(fault.startswith(f"{hurt}: damaged") for fault in faults)


def test_an_error_amid_a_file_names_it(tmp_path):
    run = Run(str(tmp_path))
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "x").symlink_to("/proc/self/mem")  # a file that opens and cannot be read
    with pytest.raises(OSError, match=r"x'$") as told:
        run.sha256("pool", "x")
    assert told.value.filename == run.at("pool", "x")


def test_only_regular_files_are_opened_wherever_they_lie(copy, place, tmp_path):
    plan = Plan(manifest(place, copy.root).with_reviews())
    shard, other = copy.at("pool", "00001.parquet"), tmp_path / "other.parquet"
    shutil.move(shard, other)
    os.symlink(other, shard)
    assert list(verify(copy)) == []
    strange = (
        copy.at(*plan.folder("clean"), "00000.parquet"),
        copy.at("report", "pipe.html"),
        copy.at("curated", "_layout.json"),
        copy.at("models", "new", "README.md"),
        copy.at("reviews.jsonl"),
    )
    for path in strange:
        Path(path).unlink(missing_ok=True)
        os.mkfifo(path)
    faults = list(map(str, verify(copy)))
    for path in strange:
        assert f"{path}: cannot be read: not a regular file" in faults
    assert {fault.split(": ")[0] for fault in faults} == {*strange, "review"}
    with pytest.raises(ValueError, match=r"reviews\.jsonl: not a regular file"):
        read_decisions(copy.at("reviews.jsonl"))
    with pytest.raises((OSError, ValueError), match="not a regular file"):
        funnel(Results(copy, plan))


@pytest.mark.parametrize(
    "name", ["../../../../etc/passwd", "/dev/zero", "/etc/passwd", "x/../../run.json", "", "a//b"]
)
def test_a_mark_names_nothing_outside_its_folder(copy, name):
    for parts, change in (
        (("curated", "manifest.json"), lambda mark: mark["files"][0].update(name=name)),
        (("models", "new.json"), lambda mark: mark["files"].update({name: "0" * 64})),
    ):
        mark = copy.read_json(*parts)
        change(mark)
        copy.write_json(mark, *parts)
        (fault,) = map(str, verify(copy))
        assert fault.startswith(f"{copy.at(*parts)}: damaged: ")
        assert "no path inside the folder" in fault
        copy.remove(*parts)
        copy.remove(*parts[:-1])


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


def test_hostile_shards_are_told(copy, place):
    plan = Plan(manifest(place, copy.root))
    first = copy.read_table("pool", "00000.parquet")
    second = copy.read_table("pool", "00001.parquet")
    third = copy.read_table("pool", "00002.parquet")
    uids = third["uid"].to_pylist()
    copy.write_table(first.take(pa.array([1, 0, 2, 3, 4, 5])), "pool", "00000.parquet")
    copy.write_table(second.drop_columns("sha256"), "pool", "00001.parquet")
    copy.write_table(
        third.set_column(0, "uid", pa.array([first["uid"][3].as_py(), *uids[1:]])),
        *("pool", "00002.parquet"),
    )
    clean = copy.read_table(*plan.folder("clean"), "00001.parquet")
    copy.write_table(
        clean.set_column(1, "measured", clean["measured"].cast(pa.int8())),
        *(*plan.folder("clean"), "00001.parquet"),
    )
    faults = "\n".join(map(str, verify(copy)))
    for text in (
        "pool/00000.parquet: damaged: its rows are not those of the list",
        "pool/00001.parquet: damaged: its columns are not those of a pool",
        "pool/00000.parquet: damaged: 1 uids stand more than once in the pool",
        "pool/00002.parquet: damaged: 1 uids stand more than once in the pool",
        "00000.parquet: damaged: its rows are not aligned with the pool",
        "00001.parquet: damaged: its column measured is int8, not bool",
    ):
        assert text in faults


def test_decisions_on_object_storage_are_checked():
    run = Run("memory://reviewed")
    run.write(b"", "run.json")
    run.write(b"none\n", "reviews.jsonl")
    assert any(
        "memory:///reviewed/reviews.jsonl:1: not a decision" in fault
        for fault in map(str, verify(run))
    )


def test_what_is_removed_on_object_storage_is_told_by_its_url(tmp_path):
    made, shown = manifest(tmp_path, "memory://dropped"), io.StringIO()
    with Session(made, progress=Progress(Console(file=shown, width=200))) as session:
        run = session.runner.run
        assert session.runner.drop(run.damaged("changed", "annotations", "clean-1", "x.parquet"))
    told = "memory:///dropped/annotations/clean-1/x.parquet is damaged; it is removed"
    assert told in shown.getvalue()


def test_a_uid_that_is_none_is_told(copy):
    pool = copy.read_table("pool", "00002.parquet")
    for uid in (None, "0" * 31, "G" * 32, "../" * 8):
        changed = pa.array([uid, *pool["uid"].to_pylist()[1:]], pa.string())
        copy.write_table(pool.set_column(0, "uid", changed), "pool", "00002.parquet")
        assert "00002.parquet: damaged: it has uids that are not 32 hex" in "".join(
            map(str, verify(copy))
        )


def test_rows_that_are_called_measured_and_are_not_are_told(copy, place):
    plan = Plan(manifest(place, copy.root))
    path = (*plan.folder("dedup"), "00001.parquet")
    table = copy.read_table(*path)
    nothing = pa.array([False] * table.num_rows)
    copy.write_table(table.set_column(1, "measured", nothing), *path)
    (fault,) = map(str, verify(copy))
    assert "_stage.json: damaged: it calls 6 rows measured that are not. Remove it" in fault


def test_damaged_annotations_and_summaries_are_made_anew_just_as_they_were(copy, done, place):
    plan = Plan(manifest(place, copy.root))
    clean, summary = plan.folder("clean"), plan.summary_folder("dedup")
    whole = copy.read(*clean, "00000.parquet")
    copy.write(whole[: len(whole) // 2], *clean, "00000.parquet")
    copy.write(b"", *clean, "00001.parquet")
    copy.write(b"uid,measured\n", *clean, "00002.parquet")
    table = copy.read_table(*summary, "00000.parquet")
    copy.write_table(table.take(pa.array([5, 4, 3, 2, 1, 0])), *summary, "00000.parquet")
    copy.write_table(table.drop_columns("summarized"), *summary, "00001.parquet")
    flip(copy, *plan.folder("dedup"), "00002.parquet")
    assert len(list(verify(copy))) == 6
    told = run_again(place, copy)
    # A summary is made anew for all shards: the second damaged one with the first.
    assert told.count("is damaged; it is removed and made anew") == 5
    assert digests(copy) == digests(done)
    assert list(verify(copy)) == []


def test_what_is_made_anew_as_a_whole_is_removed_as_a_whole_and_once(tmp_path):
    made = manifest(tmp_path, tmp_path / "run")
    run = Run(made.run)
    for parts, left in (
        (("annotations", "dedup-1", "summary-2", "parts-3", "bins.json"), "00000.parquet"),
        (("annotations", "dedup-1", "summary-2", "00001.parquet"), "00000.parquet"),
        (("exports", "former", "images", "00000", "x.jpg"), None),
        (("curated.partial", "_layout.json"), None),
    ):
        keep = (*parts[:3], "00000.parquet") if left else ("exports", "blip", "a.json")
        run.write(b"x", *parts)
        run.write(b"x", *keep)
        with Session(made, progress=Progress(Console(quiet=True))) as session:
            assert session.runner.drop(run.damaged("changed", *parts))
            assert not run.exists(*parts) and run.exists(*keep)
            assert not session.runner.drop(run.damaged("changed", *parts))
    assert not run.exists("exports", "former") and not run.exists("curated.partial")
    for parts in (("exports", "llava", "train.json"), ("curated", "manifest.json")):
        run.write(b"x", *parts)  # an export of the manifest stays until its successor is there
        with Session(made, progress=Progress(Console(quiet=True))) as session:
            assert session.runner.drop(run.damaged("changed", *parts)) and run.exists(*parts)
            assert not session.runner.drop(run.damaged("changed", *parts))
    with Session(made, progress=Progress(Console(quiet=True))) as session:
        assert not session.runner.drop(run.damaged("changed", "pool", "00000.parquet"))


def test_a_damaged_mark_is_taken_for_absent(copy, done, place, caplog):
    plan = Plan(manifest(place, copy.root))
    for parts in (
        ("run.json",),
        (*plan.folder("clean"), "_stage.json"),
        (*plan.summary_folder("dedup"), "_summary.json"),
        ("curated", "_export.json"),
        ("exports", "llava", "manifest.json"),
    ):
        flip(copy, *parts)
    run_again(place, copy)
    assert "_stage.json is damaged and taken for absent" in caplog.text
    assert digests(copy) == digests(done)
    assert list(verify(copy)) == []


def test_a_damaged_shard_of_the_pool_is_refused_and_downloaded_anew_once_removed(copy, done, place):
    plan = Plan(manifest(place, copy.root))
    path = flip(copy, "pool", "00001.parquet")
    times = [os.stat(copy.at(*plan.folder("clean"), f"0000{n}.parquet")).st_mtime_ns for n in "012"]
    copy.remove("curated")
    with pytest.raises(
        RuntimeError, match="its rows are downloaded anew, and measured anew"
    ) as told:
        run_again(place, copy)
    assert path in str(told.value) and told.value.exit_status == DamagedError.exit_status
    os.unlink(path)
    run_again(place, copy)
    assert digests(copy) == digests(done)
    assert list(verify(copy)) == []
    now = [os.stat(copy.at(*plan.folder("clean"), f"0000{n}.parquet")).st_mtime_ns for n in "012"]
    assert [old == new for old, new in zip(times, now, strict=True)] == [True, False, True]


def test_a_damaged_list_is_refused_and_cut_anew_once_removed(copy, done, place, tmp_path):
    path = flip(copy, "list", "_list.json")
    with pytest.raises(ValueError, match=f"{path}: damaged: .* Remove the folder .*/list and"):
        run_again(place, copy)
    copy.remove("list")
    run_again(place, copy)
    assert digests(copy) == digests(done)
    pool = copy.read_table("pool", "00000.parquet")
    copy.write_table(pool.take(pa.array([1, 0, 2, 3, 4, 5])), "pool", "00000.parquet")
    copy.remove("list")
    with pytest.raises(ValueError, match=r"shard 00000 of the pool .* is made from another list"):
        run_again(place, copy)


def test_a_damaged_model_is_not_taken_for_done(copy, place):
    training = TrainingJob(manifest(place, copy.root), "new")
    assert training.is_done
    path = flip(copy, "models", "new", "matcher", "model.safetensors")
    with pytest.raises(ValueError, match=f"{path}: damaged: .* remove .*models/new.json and"):
        _ = training.is_done


def test_training_refuses_a_damaged_export(copy, place):
    training = TrainingJob(manifest(place, copy.root), "new")
    shard = copy.shards("curated")[0]
    path = flip(copy, "curated", f"{shard}.parquet", at=400)  # among the images, which it reads
    copy.remove("models")
    with pytest.raises(ValueError, match=f"{path}: its bytes are not those that were written"):
        training.carry_out()


def test_a_pool_of_the_wrong_types_is_refused(copy, place):
    pool = copy.read_table("pool", "00000.parquet")
    index = pool.column_names.index("image")
    hostile = pool.set_column(index, "image", pa.array(["x"] * pool.num_rows))
    copy.write_table(hostile, "pool", "00000.parquet")
    copy.remove("annotations")
    with pytest.raises(RuntimeError, match=r"00000\.parquet: damaged: its column image is string"):
        run_again(place, copy)


def test_any_reader_reads_what_is_sealed(done):
    for folder in ("pool", "curated", "list"):
        paths = sorted(Path(done.at(folder)).glob("*.parquet"))
        rows = [pq.read_table(path).num_rows for path in paths]
        assert sum(rows) == pq.ParquetDataset([str(path) for path in paths]).read().num_rows
        for path in paths:
            assert pq.read_table(path).equals(done.read_table(folder, path.name))


def test_a_run_whose_summaries_were_removed_has_a_status(tmp_path):
    plan = Plan(runs.manifest(tmp_path / "run"))
    run = runs.make_run(tmp_path / "run", plan, shards=1, number=20)
    assert {stage["state"] for stage in funnel(Results(run, plan))["stages"]} == {"done"}
    for name in ("dedup", "select"):
        run.remove(*plan.summary_folder(name))
    states = {stage["name"]: stage["state"] for stage in funnel(Results(run, plan))["stages"]}
    assert states["clean"] == "done" and states["dedup"] == states["select"] == "waiting"


def test_every_missing_record_is_named_and_written_anew(copy, done, place, capsys):
    plan = Plan(manifest(place, copy.root).with_reviews())
    marks = [
        ("list", "_list.json"),
        ("pool", "_stage.json"),
        *((*plan.folder(name), "_stage.json") for name in ("clean", "dedup")),
        (*plan.summary_folder("dedup"), "_summary.json"),
        ("curated", "manifest.json"),
        ("curated", "_export.json"),
        ("exports", "llava", "manifest.json"),
        ("models", "new.json"),
    ]
    for mark in marks:
        content = copy.read(*mark)
        copy.remove(*mark)
        faults = list(verify(copy))
        told = f"{copy.at(*mark)}: missing. Run again: it is written anew"
        assert told in map(str, faults), mark
        assert {fault.exit_status for fault in faults} == {3}
        copy.write(content, *mark)
    for mark in marks[:-1]:
        copy.remove(*mark)
    run_again(place, copy)
    copy.remove(*marks[-1])
    TrainingJob(plan.manifest, "new").carry_out()  # the model stands, and is not trained anew
    assert list(verify(copy)) == [] and digests(copy) == digests(done)
    assert main(["verify", copy.root]) == 0
    assert "not looked at" not in capsys.readouterr().out
    for path in ("notes.txt", "failures/x.txt", "curated.partial/x", "models/mine/config.json"):
        copy.write(b"{}", *path.split("/"))
    assert main(["verify", copy.root]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "not looked at" in line]
    assert line == "not looked at: curated.partial, failures, notes.txt, models/mine"
