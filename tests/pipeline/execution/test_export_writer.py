"""An export from a pool to its files: shards of equal size, killed and resumed, with its card."""

import dataclasses
import io
import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from helpers import fakes
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pipeline.execution.export_writer import Layout
from pipeline.execution.progress import Progress
from pipeline.execution.session import Session
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
from pipeline.results.verify import verify
from pipeline.storage import successor
from pipeline.storage.run import Run
from pipeline.training.data import files_of
from pipeline.training.job import TrainingJob
from stages.formats import FORMATS

COUNTS = st.lists(st.integers(0, 9), max_size=8)


@given(COUNTS, COUNTS, st.integers(1, 12))
def test_shards_are_equal_and_hold_every_image_once_in_order(train, validation, size):
    number = max(len(train), len(validation))
    counts = {
        "train": train + [0] * (number - len(train)),
        "validation": validation + [0] * (number - len(validation)),
    }
    shards = [f"{index:05d}" for index in range(number)]
    layout = Layout(shards, counts, size)
    found = {split: [] for split in counts}
    for shard in shards:
        for part, slices in layout.parts(shard):
            assert slices[0][0] == shard
            assert part.number == len(found[part.split])
            found[part.split].append(
                [(one, image) for one, start, stop in slices for image in range(start, stop)]
            )
    for split, parts in found.items():
        expected = [(s, i) for s, n in zip(shards, counts[split], strict=True) for i in range(n)]
        assert [image for part in parts for image in part] == expected
        lengths = {len(part) for part in parts}
        assert not lengths or (max(lengths) <= size and max(lengths) - min(lengths) <= 1)
        assert len(parts) == -(-len(expected) // size)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    fakes.photo_folder(folder / "photos", 23)
    (folder / "h").mkdir()
    lines = []
    for index in range(5):
        (folder / "h" / f"{index}.jpg").write_bytes(fakes.jpeg(500 + index))
        lines += [{"image": f"{index}.jpg", "captions": [f"first {index}", f"second {index}"]}]
    (folder / "h" / "people.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return folder


def manifest(place, run, **exports):
    content = {
        "name": "many",
        "run": str(run),
        "seed": 3,
        "stages": {
            "download": {"source": str(place / "photos"), "image_size": 32, "shard_size": 6},
            "export": {
                "human": [str(place / "h" / "people.jsonl")],
                "validation": 0.3,
                "shard_size": 4,
            },
        },
        "exports": exports or {name: {"format": name} for name in FORMATS if name != "parquet"},
        "train": {
            "new": {"objective": "pretrain", "model": "tiny", "data": ["curated"]},
            "wrong": {"objective": "pretrain", "model": "tiny", "data": ["export:blip"]},
        },
    }
    return Manifest.parse(content)


def open_session(made, workers=2):
    return Session(made, workers=workers, progress=Progress(Console(quiet=True), quiet=True))


def carry_out(made, workers=2):
    with open_session(made, workers) as session:
        session.stage("download")
        session.export()
    return Run(made.run), Plan(made)


@pytest.fixture(scope="module")
def done(place, ray_here):
    return carry_out(manifest(place, place / "run"))


def contents(run, plan):
    """The digests of every export, by its files."""
    return {
        name: {
            f["name"]: f["sha256"]
            for f in run.read_json(*plan.folder(name), "manifest.json")["files"]
        }
        for name in plan.exports
    }


def test_every_format_has_the_same_images_in_the_same_splits_and_is_sound(done):
    run, plan = done
    assert list(verify(run)) == []
    told = [run.read_json(*plan.folder(name), "manifest.json") for name in plan.exports]
    assert len(told) == len(FORMATS)
    assert all(one["pairs"] == {"web": 23, "human": 10} for one in told)
    assert all(one["sources"] == {"web": 23, "people": 10} for one in told)
    assert len({json.dumps(one["splits"]) for one in told}) == 1
    assert sum(told[0]["splits"].values()) == told[0]["images"] == 28
    for name in plan.exports:
        left = [n for n in run.names(*plan.folder(name)) if n.startswith("_")]
        files = run.read_json(*plan.folder(name), "manifest.json")["files"]
        has_folders = any(os.path.isdir(run.at(*plan.folder(name), f["name"])) for f in files)
        assert left == ["_export.json"] + ["_sha256"] * has_folders


def test_shards_are_of_equal_size_and_splits_share_no_image(done):
    run, _ = done
    shas, sizes = {}, {}
    for shard in run.shards("curated"):
        table = run.read_table("curated", f"{shard}.parquet")
        split, *rest = shard.split("-")
        shas.setdefault(split, set()).update(table["sha256"].to_pylist())
        if len(rest) == 1:
            sizes.setdefault(split, []).append(len(set(table["uid"].to_pylist())))
    assert set(shas) == {"train", "validation"} and not shas["train"] & shas["validation"]
    assert sum(map(sum, sizes.values())) == 23
    for each in sizes.values():
        assert max(each) <= 4 and max(each) - min(each) <= 1


def test_lists_are_whole_and_name_images_that_stand(done):
    run, _ = done
    for name, folder in (("llava", "images"), ("blip", ".")):
        base = Path(run.at("exports", name))
        found = [json.loads((base / f"{s}.json").read_text()) for s in ("train", "validation")]
        assert sum(map(len, found)) == 33
        named = {entry["image"] for some in found for entry in some}
        assert all((base / folder / image).is_file() for image in named)
        assert len(named) == len(list((base / "images").glob("*/*.jpg"))) == 28


@pytest.mark.parametrize(
    "name", ["curated", "exports/webdataset", "exports/imagefolder", "exports/urls"]
)
def test_datasets_loads_an_export_by_its_card(done, tmp_path, name):
    datasets = pytest.importorskip("datasets")
    run, _ = done
    folder = tuple(name.split("/"))
    splits = run.read_json(*folder, "manifest.json")["splits"]
    read = datasets.load_dataset(run.at(*folder), cache_dir=str(tmp_path))
    assert set(read) == {"train", "validation"} == set(splits)
    if name != "curated":
        assert {split: len(rows) for split, rows in read.items()} == splits
    else:
        assert read["train"][0]["image"].size == (43, 32)


def test_the_card_tells_sources_rights_and_how_to_load(done):
    run, plan = done
    for name in plan.exports:
        card = run.read(*plan.folder(name), "README.md").decode()
        front = yaml.safe_load(card.split("---")[1])
        form = plan.export(name).format
        assert front["license"] == "other" and "TARS" not in card
        assert ("configs" in front) == (form.name not in ("llava", "blip", "mds", "sidecars"))
        for part in (
            "| `web` | 23 |",
            "## Rights",
            "## Funnel",
            "## Rebuild",
            f"## {form.name}",
        ):
            assert part in card
    card = run.read("exports", "urls", "README.md").decode()
    assert "capfilt export manifest.yaml --name urls" in card
    assert "No image is part of this data set" in card


def test_urls_leave_no_image_in_the_folder(done):
    run, _ = done
    assert {os.path.splitext(n)[1] for n in run.names("exports", "urls")} == {
        ".parquet",
        ".json",
        ".md",
    }
    for shard in run.shards("exports", "urls"):
        schema = pq.read_schema(run.at("exports", "urls", f"{shard}.parquet"))
        assert "image" not in schema.names


def test_a_killed_export_goes_on_and_ends_the_same_for_any_number_of_workers(done, place, tmp_path):
    run, plan = done
    expected = contents(run, plan)
    made = manifest(place, tmp_path / "run")
    shutil.copytree(run.path, made.run)
    again = Run(made.run)
    for name in plan.exports:
        again.remove(*plan.folder(name))
    with open_session(made, workers=1) as session:
        runner = session.runner
        for number, name in enumerate(plan.exports):
            runner.progress.advance = stop_after(number % 5 + 4)  # after counting some shards
            with pytest.raises(KeyboardInterrupt):
                runner.stage(name)
            assert not again.exists(*plan.folder(name), "manifest.json")
    assert carry_out(made)[0].exists("curated", "manifest.json")
    assert contents(again, Plan(made)) == expected
    assert list(verify(again)) == []


def stop_after(number):
    left = [number]

    def advance(result):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    return advance


def test_a_lost_changed_or_strange_image_or_text_is_told_by_its_name(done, tmp_path):
    run, _ = done
    copy = Run(str(tmp_path / "copy"))
    shutil.copytree(run.path, copy.path)
    lost, changed, *_ = sorted(Path(copy.at("exports", "blip", "images")).glob("*/*.jpg"))
    text = next(Path(copy.at("exports", "imagefolder")).glob("*/*/metadata.jsonl"))
    strange = lost.with_name("strange.jpg")
    before = copy.digest("exports", "blip", "images", lost.parent.name)
    lost.unlink()
    for path in (changed, text):
        content = bytearray(path.read_bytes())
        content[9] ^= 1
        path.write_bytes(content)
    shutil.copy(changed, strange)
    assert copy.digest("exports", "blip", "images", lost.parent.name) != before
    faults = [str(fault).split(". ")[0] for fault in verify(copy)]
    assert sorted(faults) == sorted(
        (
            f"{lost}: damaged: it is missing",
            f"{changed}: damaged: its bytes are not those of manifest.json",
            f"{strange}: not in manifest.json",
            f"{text}: damaged: its bytes are not those of manifest.json",
        )
    )
    shutil.rmtree(copy.at("exports", "blip", "_sha256"))  # as former versions left it
    faults = [str(fault).split(". ")[0] for fault in verify(copy)]
    assert f"{lost.parent}: damaged: its bytes are not those of manifest.json" in faults


@pytest.mark.parametrize("can_exchange", [True, False])
def test_an_export_stands_until_its_successor_does(
    place, done, tmp_path, monkeypatch, can_exchange
):
    run, _ = done
    if not can_exchange:
        monkeypatch.setattr(successor, "_renameat2", lambda: None)
    made = manifest(place, tmp_path / "run", llava={"format": "llava"})
    shutil.copytree(run.path, made.run)
    again = Run(made.run)
    os.rename(again.at("curated"), tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", again.at("curated"))  # a folder on another disk
    before = again.digests("curated")
    other = manifest(place, made.run, llava={"format": "blip"})
    other.stages["export"] = dataclasses.replace(other.stages["export"], shard_size=9)
    shown = io.StringIO()
    with Session(other, workers=2, progress=Progress(Console(file=shown, width=400))) as session:
        for stop in (2, 5):  # among the counted shards, and among those written
            session.runner.progress.advance = stop_after(stop)
            with pytest.raises(KeyboardInterrupt):
                session.runner.stage("export")
            assert again.digests("curated") == before and list(verify(again)) == []
        del session.runner.progress.advance
        session.export()
    assert list(verify(again)) == []
    assert again.names("exports") == run.names("exports")
    assert "holds 33 pairs as parquet of other settings or other rows; it stays" in shown.getvalue()
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".partial")]
    assert len(again.shards("curated")) < len(run.shards("curated"))
    assert again.read_json("exports", "llava", "manifest.json")["format"] == "blip"


def test_training_reads_the_train_split_of_parquet_alone(done):
    run, plan = done
    (source,) = TrainingJob(plan.manifest, "new").sources()
    names = [Path(path).name for path in files_of(source)]
    assert names == [f"{n}.parquet" for n in run.shards("curated") if n.startswith("train-")]
    with pytest.raises(ValueError, match="export:blip is written as blip, but training reads"):
        TrainingJob(plan.manifest, "wrong").sources()


def test_one_export_can_be_asked_for_by_name(place, done, tmp_path):
    run, _ = done
    made = manifest(place, tmp_path / "run")
    shutil.copytree(run.path, made.run)
    again = Run(made.run)
    again.remove("exports")
    again.remove("curated")
    with open_session(made) as session:
        session.export("urls")
        assert again.names("exports") == ["urls"] and not again.exists("curated")
        with pytest.raises(ValueError, match="no such export; it has curated, webdataset"):
            session.export("url")
