"""Embeddings through a whole run: copies, selection by every method, search and exports."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.blips import drawn, save_clip
from helpers.runs import page_of
from PIL import Image
from rich.console import Console

from models.inference.dual_encoder import DualEncoder
from pipeline.cli.main import main
from pipeline.execution import map_reduce
from pipeline.execution.progress import Progress
from pipeline.execution.session import Session
from pipeline.execution.worker import Worker
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
from pipeline.manifest.train_config import Source
from pipeline.results.open_run import open_results
from pipeline.results.search import search
from pipeline.results.verify import verify
from pipeline.storage.run import Run
from pipeline.training.data import Pairs
from stages.schema import DRAWN_PAIRS

CAPTIONS = ("a red dog", "two blue birds", "a big house", "a green tree")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of coloured clouds: the last two of eighteen are another view of the first two."""
    folder = tmp_path_factory.mktemp("embeddings")
    (folder / "photos").mkdir()
    for number in range(18):
        path = folder / "photos" / f"{number:02d}.png"
        path.write_bytes(drawn(number % 16))
        if number >= 16:
            picture = Image.open(path)
            picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(path)
        path.with_suffix(".txt").write_text(f"{CAPTIONS[number % 4]} {'and a cat' * (number % 2)}")
    (folder / "target").mkdir()
    (folder / "target" / "0.png").write_bytes(drawn(3))
    (folder / "entries.txt").write_text("dog\nhouse\n")
    save_clip(folder / "clip")
    return folder


def manifest(place: Path, run: str = "run", **stages: Any) -> Manifest:
    model = str(place / "clip")
    given: dict[str, Any] = {
        "download": {"source": str(place / "photos"), "image_size": 64, "shard_size": 5},
        "embed": {"model": model, "dtype": "float32", "target": [str(place / "target")]},
        **stages,
        "filter": {"recipe": "clip", "clip": model, "dtype": "float32", "min_clip": -1},
        "export": {"embeddings": True, "shard_size": 4},
    }
    return Manifest.parse({"name": "small", "run": str(place / run), "stages": given})


def carry_out(made: Manifest) -> Run:
    quiet = Progress(Console(quiet=True), quiet=True)
    with Session(made, workers=2, progress=quiet) as session:
        session.run()
    return Run(made.run)


METHODS: dict[str, dict[str, Any]] = {
    "neg_clip_loss": {"method": "neg_clip_loss", "fraction": 0.5, "batch_size": 6},
    "density": {"method": "density", "number": 9, "clusters": 3},
    "target": {"method": "target", "number": 1},
    "target_pool": {"method": "target", "norm": "pool", "fraction": 0.5},
    "metadata": {"method": "metadata", "max_per_phrase": 3},
    "sample": {"method": "sample", "score": "target_norm", "fraction": 0.5, "batch_size": 3},
}


def test_a_run_selects_exports_and_searches_by_its_embeddings(
    place: Path, ray_here: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    made = chosen_by(place, "neg_clip_loss")
    run = carry_out(made)
    assert not [str(fault) for fault in verify(run)]
    counts = open_results(run).count(Plan(made).names, run.shards("pool"))
    assert len(check_export(run)) == counts["filter"]["kept"] == counts["select"]["kept"]
    check_search(place, run, capsys)
    assert main(["report", run.root]) == 0
    numbers = run.read_json("report", "report.json")["numbers"]
    assert {"semantic_cosine", "selection_score", "target_cosine", "target_norm"} == {
        column for stage in ("embed", "dedup", "select") for column in numbers[stage]
    }
    page = page_of(run)
    assert "Unlike all others" in page.text
    points = [a for tag, a in page.elements if tag == "circle"]
    assert len(points) == counts["dedup"]["rows"]
    assert [a["class"] for a in points].count("kept") == counts["filter"]["kept"]
    cards = {a.get("id") for _, a in page.elements}
    assert {a["href"][1:] for t, a in page.elements if t == "a" and "point" in a["href"]} <= cards
    kept = {"neg_clip_loss": counts["select"]["kept"]}
    for name in METHODS:
        if name != "neg_clip_loss":
            kept[name] = select(chosen_by(place, name))
    rows = counts["select"]["rows"]
    assert kept["target"] == 1 and kept["density"] == min(9, rows)
    assert kept["neg_clip_loss"] == kept["target_pool"] == round(0.5 * rows)
    assert 0 < kept["metadata"] < rows and 0 < kept["sample"] <= rows / 2
    folders = [path.name for path in (Path(run.root) / "annotations").iterdir()]
    assert len([name for name in folders if name.startswith(("embed-", "dedup-"))]) == 2


def chosen_by(place: Path, name: str, run: str = "run") -> Manifest:
    """The manifest that selects by a method."""
    entries = {"entries": str(place / "entries.txt")} if name == "metadata" else {}
    return manifest(place, run, dedup={"semantic": 0.9999}, select={**METHODS[name], **entries})


def test_in_parts_on_all_workers_the_same_rows_stay_and_are_exported(
    place: Path, ray_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process with one shard, beside two workers with three."""
    with monkeypatch.context() as patch:
        patch.setattr(map_reduce, "PART_ROWS", 6)
        for number, name in enumerate(PARTED):
            parts = small(place, name, run="parts", shard_size=6)
            run = carry_out(parts)
            plan = Plan(parts)
            for stage in ("dedup", "select"):
                record = run.read_json(*plan.summary_folder(stage), "_summary.json")
                assert record["parts"] > 1
            whole = small(place, name, run="whole", shard_size=100)
            if not number:
                with monkeypatch.context() as unpatched:
                    unpatched.setattr(map_reduce, "PART_ROWS", 10**6)
                    carry_out(whole)
            select(whole)
            found, expected = (summary_of(one) for one in (parts, whole))
            assert [row[:-1] for row in found] == [row[:-1] for row in expected]
            scores = [np.array([row[-1] for row in one], float) for one in (found, expected)]
            np.testing.assert_allclose(*scores, rtol=0.02)
    assert not [str(fault) for fault in verify(run)]
    draws = {row[0]: row[-2] for row in found if row[-2]}
    assert max(draws.values()) > 1
    check_draws(run, draws)


PARTED = ("target_pool", "neg_clip_loss", "density", "metadata", "sample")
"""Methods in parts; the last is the one that draws."""


def small(place: Path, name: str, *, run: str, shard_size: int) -> Manifest:
    """The manifest of a method without filter, whose shards have so many rows."""
    content = dict(chosen_by(place, name, run).source)
    changes: dict[str, Any] = {"neg_clip_loss": {"shuffles": 2}}
    changes["sample"] = {"fraction": 0.9, "temperature": 0.1}
    stages = {one: dict(fields) for one, fields in content["stages"].items() if one != "filter"}
    stages["download"]["shard_size"] = shard_size
    stages["select"] |= changes.get(name, {})
    if name != "sample":
        del stages["export"]
    return Manifest.parse({**content, "stages": stages})


def summary_of(made: Manifest) -> list[tuple[Any, ...]]:
    """For each row, sorted by uid: what dedup and select found, the score last."""
    run, plan = Run(made.run), Plan(made)
    rows = []
    for shard in run.shards("pool"):
        copies, chosen = (
            run.read_table(*plan.summary_folder(one), f"{shard}.parquet").to_pylist()
            for one in ("dedup", "select")
        )
        for a, b in zip(copies, chosen, strict=True):
            copy = a["uid"], a["semantic_copy"], a["semantic_nearest"]
            rows.append((*copy, b["selected"], b["draws"], b["selection_score"]))
    return sorted(rows)


def check_draws(run: Run, draws: dict[str, int]) -> None:
    """An export says how often each image was drawn, and a training meets it that often."""
    folder = Path(run.root) / "curated"
    table = pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])
    assert table.schema.equals(DRAWN_PAIRS)
    assert dict(zip(table["uid"].to_pylist(), table["draws"].to_pylist(), strict=True)) == draws
    assert "the column `draws` says how often it was drawn" in (folder / "README.md").read_text()
    pairs = Pairs([Source(path=str(folder))])
    number = sum(draws.values())
    assert pairs.num_images == number
    epoch = [one.image_id for one, _ in itertools.islice(pairs.examples(), number)]
    image_id = {
        row["uid"]: hashlib.sha256(row["image"]["bytes"]).hexdigest() for row in table.to_pylist()
    }
    assert Counter(epoch) == Counter({image_id[uid]: times for uid, times in draws.items()})


def select(made: Manifest) -> int:
    """Select again by a changed method, without Ray; how many rows are kept."""
    worker = Worker(made, threads=None)
    shards = worker.run.shards("pool")
    for shard in shards:
        worker.work("select", shard)
    worker.summarize("select", shards)
    return int(
        worker.results.count(["download", "embed", "dedup", "select"], shards)["select"]["kept"]
    )


def check_export(run: Run) -> list[str]:
    """The exported rows; their embeddings are those of the run."""
    folder = Path(run.root) / "curated"
    pairs = [pq.read_table(path)["uid"].to_pylist() for path in sorted(folder.glob("*.parquet"))]
    exported = list(dict.fromkeys(uid for part in pairs for uid in part))
    found: dict[str, Any] = {}
    for path in sorted((folder / "embeddings/metadata").glob("*.parquet")):
        number = path.stem.rpartition("_")[2]
        uids = pq.read_table(path)["uid"].to_pylist()
        images = np.load(folder / f"embeddings/img_emb/img_emb_{number}.npy")
        texts = np.load(folder / f"embeddings/text_emb/text_emb_{number}.npy")
        assert images.dtype == np.float16 and images.shape == texts.shape == (len(uids), 16)
        found |= dict(zip(uids, images, strict=True))
    assert sorted(found) == sorted(exported)
    results = open_results(run)
    for shard in run.shards("pool"):
        table = results.measured_table("embed", shard)
        for row in table.to_pylist():
            if row["uid"] in found:
                assert found[row["uid"]].tolist() == row["image_embedding"]
    told = run.read_json("curated", "manifest.json")["embeddings"]
    assert len(told) == len(list((folder / "embeddings").rglob("*.*")))
    return exported


def check_search(place: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """The nearest rows are found for an image and for a text, whatever became of them."""
    results = open_results(run)
    clip = DualEncoder.from_pretrained(str(place / "clip"), device="cpu", dtype="float32")
    every = []
    for shard in run.shards("pool"):
        pool = run.read_table("pool", f"{shard}.parquet", columns=["uid", "image"]).to_pylist()
        every += [(row["uid"], clip.embed_images([row["image"]])[0].numpy()) for row in pool]
    query = clip.embed_texts(["two blue birds"])[0].numpy()
    expected = sorted(every, key=lambda one: -float(one[1] @ query))
    found = search(results, query, 5)
    assert [one.cosine for one in found] == pytest.approx(
        [float(vector @ query) for _, vector in expected[:5]], abs=1e-3
    )
    kept = search(results, query, 50, "kept")
    rejected = search(results, query, 50, "rejected")
    assert {one.verdict for one in kept} == {"kept"} and len(kept) + len(rejected) == 18
    assert {one.verdict for one in rejected} <= {
        *("select: not_selected", "select: no_score", "select: no_noun_phrase"),
        "dedup: semantic_copy",
    }
    capsys.readouterr()
    picture = str(place / "photos" / "05.png")
    assert main(["search", run.root, picture, "--number", "2", "--json"]) == 0
    first, _ = json.loads(capsys.readouterr().out)
    assert first["url"].endswith("05.png") and first["cosine"] == pytest.approx(1, abs=5e-3)
    assert main(["search", run.root, "a green tree", "--number", "3"]) == 0
    told = capsys.readouterr().out
    assert "cosine" in told and len(told.splitlines()) == 4
    page = place / "found.html"
    assert main(["search", run.root, "a <b>tree</b>", "--out", str(page)]) == 0
    text = page.read_text()
    assert text.count("data:image/webp;base64,") == 10 and "<b>tree" not in text
    assert main(["search", run.root, "x", "--number", "0"]) == 2
    junk = place / "junk.jpg"
    junk.write_bytes(b"junk")
    capsys.readouterr()
    assert main(["search", run.root, str(junk)]) == 2
    assert "no image that can be decoded" in capsys.readouterr().err


def test_a_run_without_embeddings_is_told_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = {"download": {"source": "photos"}}
    content = {"name": "small", "run": str(tmp_path), "stages": stages}
    Run(str(tmp_path)).write_json({"manifest": content}, "run.json")
    assert main(["search", str(tmp_path), "a tree"]) == 2
    assert "add the stage embed to the manifest" in capsys.readouterr().err


def test_an_export_of_embeddings_needs_the_stage(tmp_path: Path) -> None:
    for where in ("stages", "exports"):
        stages: dict[str, Any] = {"download": {"source": "photos"}, "export": {}}
        content: dict[str, Any] = {"name": "small", "stages": stages}
        if where == "stages":
            stages["export"] = {"embeddings": True}
        else:
            content["exports"] = {"other": {"embeddings": True}}
        with pytest.raises(Exception, match=r"export.embeddings needs the stage embed"):
            Manifest.parse(content)
