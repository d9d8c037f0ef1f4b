"""The shipped manifests, each run with only its paths changed."""

import collections
import json
import shutil

import pyarrow.parquet as pq
import pytest
from helpers import blips, fakes
from helpers.chat_server import ChatServer
from rich.console import Console

from pipeline.execution.progress import Progress
from pipeline.execution.session import Session
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
from pipeline.results.funnel import funnel
from pipeline.results.open_run import plan_for
from pipeline.results.verdicts import Results
from pipeline.storage.run import Run

MANIFESTS = fakes.SHARED.parent.parent / "manifests"


@pytest.fixture(scope="module")
def place(tmp_path_factory, language):
    folder = tmp_path_factory.mktemp("recipes")
    fakes.photo_folder(folder / "photos", 14)
    fakes.photo_folder(folder / "bare", 5, captions=False)
    fakes.tiny_blip(folder)
    shutil.copytree(language, folder / "language")
    return folder


def carry_out(name, place, *overrides, run=None):
    manifest = Manifest.load(str(MANIFESTS / name), overrides, str(place / (run or name)))
    with Session(manifest, workers=1, progress=Progress(Console(quiet=True), quiet=True)) as opened:
        opened.run()
    run = Run(manifest.run)
    found = funnel(Results(run, plan_for(run, manifest)))
    assert all(stage["state"] == "done" for stage in found["stages"])
    return run, {stage["name"]: stage for stage in found["stages"]}


def exported(run):
    return [
        row
        for shard in run.shards("curated")
        for row in run.read_table("curated", f"{shard}.parquet").to_pylist()
    ]


def models(place):
    return (
        f"caption.model={place / 'models' / 'captioner'}",
        f"filter.model={place / 'models' / 'matcher'}",
    )


def test_cc3m_judges_web_and_synthetic_texts_each_by_itself(place, ray_here):
    run, stages = carry_out(
        "cc3m.yaml", place, f"download.source={place / 'photos'}", *models(place)
    )
    assert list(stages) == ["download", "clean", "dedup", "caption", "filter", "export"]
    assert stages["caption"]["kept"] == 14
    plan = Plan(Manifest.load(str(MANIFESTS / "cc3m.yaml"), models(place), run.root))
    scores = run.read_table(*plan.folder("filter"), "00000.parquet").to_pylist()
    expected = sum(row["itm_web"] >= 0.5 for row in scores) + sum(
        score >= 0.5 for row in scores for score in row["itm_synthetic"]
    )
    pairs = exported(run)
    assert len(pairs) == expected
    assert all(row["itm_score"] >= 0.5 for row in pairs)


def test_llava_takes_captions_from_rare_phrases_up(place, ray_here):
    run, stages = carry_out(
        "llava.yaml",
        place,
        f"download.source={place / 'photos'}",
        f"select.model={place / 'language'}",
    )
    assert stages["select"]["rows"] == 14
    plan = Plan(
        Manifest.load(
            str(MANIFESTS / "llava.yaml"), [f"select.model={place / 'language'}"], run.root
        )
    )
    phrases = run.read_table(*plan.folder("select"), "00000.parquet")["noun_phrases"].to_pylist()
    counts = {}
    for row in phrases:
        for phrase in set(row):
            counts[phrase] = counts.get(phrase, 0) + 1
    expected = sum(any(counts[phrase] >= 3 for phrase in row) for row in phrases)
    assert stages["export"]["pairs"] == {"web": expected}


def test_folder_captions_images_that_have_no_text(place, ray_here):
    run, stages = carry_out(
        "folder.yaml",
        place,
        f"download.source={place / 'bare'}",
        *models(place),
        "filter.min_itm=0",
    )
    assert list(stages) == ["download", "caption", "filter", "export"]
    pairs = exported(run)
    assert len(pairs) == 5 and {row["caption_source"] for row in pairs} == {"synthetic"}
    assert all(row["caption"] and row["image"]["bytes"] for row in pairs)
    manifest = json.loads(run.read("curated", "manifest.json"))
    assert manifest["pairs"] == {"synthetic": 5}
    assert pq.read_schema(run.at("curated", "00000.parquet")).metadata[b"huggingface"]


def by_image(run):
    found = collections.defaultdict(list)
    for row in exported(run):
        found[row["uid"]].append(row["caption_source"])
    return found


def test_five_captions_an_image_are_written_and_judged(place, ray_here):
    run, stages = carry_out(
        "cc3m.yaml",
        place,
        f"download.source={place / 'photos'}",
        "caption.num_captions=5",
        "filter.min_itm=0",
        *models(place),
        run="five",
    )
    assert stages["filter"]["kept"] == 14
    for sources in by_image(run).values():
        assert sources[0] == "web" and 1 <= sources.count("synthetic") <= 5
    synthetic = stages["export"]["pairs"]["synthetic"]
    assert synthetic > 14 * 2


def test_blip2_keeps_the_two_most_similar_texts_of_an_image(place, ray_here):
    run, stages = carry_out(
        "blip2.yaml",
        place,
        f"download.source={place / 'photos'}",
        "clean={}",
        "caption.num_captions=4",
        f"caption.model={place / 'models' / 'captioner'}",
        f"filter.clip={blips.save_clip(place / 'clip')}",
    )
    assert stages["filter"]["kept"] == 14
    assert {len(sources) for sources in by_image(run).values()} == {2}


def test_laion_coco_keeps_one_synthetic_caption_of_an_image(place, ray_here):
    run, stages = carry_out(
        "laion_coco.yaml",
        place,
        f"download.source={place / 'bare'}",
        "clean={}",
        "caption.num_captions=6",
        f"caption.model={place / 'models' / 'captioner'}",
        f"filter.clip={blips.save_clip(place / 'clip')}",
        f"filter.second_clip={blips.save_clip(place / 'second', seed=1)}",
    )
    assert stages["filter"]["kept"] == 5
    assert list(by_image(run).values()) == [["synthetic"]] * 5


def test_dense_judges_the_captions_of_every_prompt(place, ray_here):
    with ChatServer("Qwen/Qwen3-VL-4B-Instruct") as server:
        run, stages = carry_out(
            "dense.yaml",
            place,
            f"download.source={place / 'photos'}",
            f"caption.server={server.url}",
            f"filter.model={place / 'models' / 'matcher'}",
            "filter.min_itm=0",
        )
        assert len(server.requests) == 3 * 14
    assert stages["export"]["pairs"] == {"web": 14, "synthetic": 42}
    named = collections.Counter(row["caption_name"] for row in exported(run))
    assert named == {None: 14, "short": 14, "dense": 14, "text": 14}


def test_recap_puts_a_caption_made_of_the_web_caption_beside_a_new_one(place, ray_here):
    with ChatServer("llava-hf/llama3-llava-next-8b-hf") as server:
        run, stages = carry_out(
            "recap.yaml",
            place,
            f"download.source={place / 'photos'}",
            "clean={}",
            f"caption.server={server.url}",
            f"filter.clip={blips.save_clip(place / 'clip')}",
            "filter.min_clip=-1",
        )
        fused = [request for request in server.requests if "web page" in request.prompt]
        assert len(fused) == 14 and all("old" in request.prompt for request in fused)
        assert {request.body["temperature"] for request in server.requests} == {0}
    assert stages["export"]["pairs"] == {"web": 14, "synthetic": 14, "fused": 14}
    for row in exported(run):
        names = {"web": None, "synthetic": "recap", "fused": "alt"}
        assert row["caption_name"] == names[row["caption_source"]]
