import hashlib
import io
import json
import random
import urllib.request
from collections import Counter
from http.client import IncompleteRead
from pathlib import Path
from typing import Any

import PIL
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.demo.server import SiteServer
from pipeline.demo.web import KINDS, TRUTH, Drawing, build, count_kinds, mapped
from pipeline.demo.world import WORLDS, Scene, holds, sample_scene

BASE = "http://127.0.0.1:9"
NUM_PAGES = 400


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web")
    build(folder, base_url=BASE, seed=3, num_pages=NUM_PAGES, num_human=12, num_test=8)
    return folder


@pytest.fixture(scope="module")
def truth(web: Path) -> list[dict[str, Any]]:
    table = pq.read_table(web / "truth.parquet")
    assert table.schema == TRUTH
    return table.to_pylist()


def fingerprint(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def read(web: Path, row: dict[str, Any]) -> bytes:
    return (web / "site" / row["url"].removeprefix(BASE + "/")).read_bytes()


def test_the_same_seed_gives_the_same_bytes_and_another_different_ones(tmp_path: Path) -> None:
    webs = []
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        build(tmp_path / name, base_url=BASE, seed=seed, num_pages=80, num_human=3, num_test=3)
        webs.append(fingerprint(tmp_path / name))
    assert webs[0] == webs[1]
    assert not set(webs[0].values()) & set(webs[2].values())


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    for name, processes in (("one", 1), ("two", 2)):
        with mapped(processes) as each:
            build(
                tmp_path / name,
                base_url=BASE,
                seed=7,
                num_pages=220,
                num_human=3,
                num_test=3,
                each=each,
            )
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")


def test_the_list_holds_each_true_pair_and_repeats_some(
    web: Path, truth: list[dict[str, Any]]
) -> None:
    pairs = pq.read_table(web / "pairs.parquet")
    assert pairs.schema.names == ["url", "caption"]
    counts = Counter((row["url"], row["caption"]) for row in pairs.to_pylist())
    assert set(counts) == {(row["url"], row["caption"]) for row in truth}
    assert len(truth) == NUM_PAGES
    assert len({row["url"] for row in truth}) == NUM_PAGES
    assert sorted(counts.values()) == [1] * (NUM_PAGES - 2) + [2] * 2


def test_every_kind_is_there_and_about_half_of_the_texts_are_true(
    truth: list[dict[str, Any]],
) -> None:
    assert {row["kind"] for row in truth} == {"match", *KINDS}
    had = [row for row in truth if row["drop_at"] != "download"]
    true = sum(row["matches"] for row in had) / len(had)
    assert 0.45 <= true <= 0.58
    false = [row for row in had if not row["matches"]]
    assert sum(row["kind"] == "swap" for row in false) > len(false) / 2


def test_what_is_said_to_match_holds_and_nothing_else_does(truth: list[dict[str, Any]]) -> None:
    for row in truth:
        if row["scene"] is not None and row["drop_at"] != "download":
            caption = row["caption"].replace("&quot;", " ").replace("&nbsp;", " ")
            assert holds(caption, Scene.from_json(row["scene"])) is row["matches"], row


def test_each_photograph_is_to_be_kept_once(truth: list[dict[str, Any]]) -> None:
    copied = {row["photo"] for row in truth if row["kind"] in ("copy", "resized")}
    for photo in copied:
        assert sum(r["photo"] == photo and r["drop_at"] == "keep" for r in truth) == 1
    shown = Counter(row["photo"] for row in truth if row["kind"] not in ("copy", "resized"))
    assert set(shown.values()) == {1}


def test_images_are_as_their_kind_says(web: Path, truth: list[dict[str, Any]]) -> None:
    originals = {row["photo"]: read(web, row) for row in truth if row["kind"] == "match"}
    for row in truth:
        kind = row["kind"]
        if row["scene"] is None and kind != "flat":
            assert not (web / "site" / row["url"].removeprefix(BASE + "/")).exists()
            continue
        image = Image.open(io.BytesIO(read(web, row)))
        width, height = image.size
        if kind == "thumbnail":
            assert max(width, height) < 64
        elif kind == "panorama":
            assert width / height > 3 and height >= 64
        else:
            assert min(width, height) >= 64 and max(width, height) <= 160
        if kind == "truncated":
            with pytest.raises(OSError, match="truncated"):
                image.load()
        else:
            image.load()
        if kind == "flat":
            assert max(high - low for low, high in image.getextrema()) <= 2
        if kind == "copy":
            assert read(web, row) == originals[row["photo"]]
        if kind == "resized":
            assert image.size != Image.open(io.BytesIO(originals[row["photo"]])).size


def test_one_text_is_on_more_than_ten_images(truth: list[dict[str, Any]]) -> None:
    shared = Counter(row["caption"] for row in truth if row["kind"] == "boilerplate")
    assert len(shared) == 1 and shared.total() > 10
    others = Counter(row["caption"] for row in truth if row["drop_at"] in ("keep", "filter"))
    assert max(others.values()) <= 10


def test_no_two_sets_share_an_image(web: Path) -> None:
    files = [*web.glob("site/ok/*.jpg"), *web.glob("images/human/*"), *web.glob("images/test/*")]
    digests = {
        group: {hashlib.sha256(f.read_bytes()).digest() for f in files if f.parent.name == group}
        for group in ("ok", "human", "test")
    }
    assert [len(digests[group]) for group in ("human", "test")] == [12, 8]
    assert not digests["ok"] & digests["human"]
    assert not digests["test"] & (digests["ok"] | digests["human"])


def test_people_say_several_things_of_each_image(web: Path) -> None:
    human = [json.loads(line) for line in (web / "human.jsonl").read_text().splitlines()]
    assert set(Counter(row["image"] for row in human).values()) == {5}
    test = [json.loads(line) for line in (web / "test.jsonl").read_text().splitlines()]
    assert len(test) == 8 and all(len(row["captions"]) == 5 for row in test)
    for row in [*human, *test]:
        assert Image.open(web / row["image"]).format == "JPEG"


def test_too_small_a_web_is_refused_with_the_least_size(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_pages must be at least"):
        build(tmp_path, base_url=BASE, num_pages=10)


def test_the_served_web_answers_as_the_truth_says(tmp_path: Path) -> None:
    with SiteServer(tmp_path / "site") as server:
        build(tmp_path, base_url=server.url, num_pages=80, num_human=1, num_test=1)
        for row in pq.read_table(tmp_path / "truth.parquet").to_pylist():
            if row["kind"] in ("slow", "hanging"):
                continue
            try:
                with urllib.request.urlopen(row["url"], timeout=600) as response:
                    allowed = "noai" not in (response.headers["X-Robots-Tag"] or "")
                    Image.open(io.BytesIO(response.read())).load()
                    had = allowed
            except (OSError, IncompleteRead):
                had = False
            assert had is (row["drop_at"] != "download"), row


def test_the_web_of_the_demo_stays_as_it_was(tmp_path: Path) -> None:
    """Whatever other worlds are added; the numbers of the docs are of this one."""
    build(tmp_path, base_url=BASE, seed=7, num_pages=80, num_human=3, num_test=3)
    rows = pq.read_table(tmp_path / "truth.parquet").to_pylist()
    texts = [(tmp_path / name).read_bytes() for name in ("human.jsonl", "test.jsonl")]
    digest = hashlib.sha256(b"".join([json.dumps(rows).encode(), *texts])).hexdigest()
    assert digest == "0c6a5f35f3ff0f85a83adf3575126e3f9ad7da47ac3f736b85315ea561f3e8e9"
    if PIL.__version__.split(".")[0] != "13":
        pytest.skip("the digest of the pictures is that of Pillow 13")
    pictures = b"".join(path.read_bytes() for path in sorted(tmp_path.rglob("*.jpg")))
    digest = hashlib.sha256(pictures).hexdigest()
    assert digest == "955b81dc8f06bcd58289cd85d4211d52ff415265161911f39a3b387968ba5863"


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("pages", [500, 1000, 3000])
def test_as_many_texts_are_false_as_asked_for(pages: int, share: float) -> None:
    counts = [(kind, number) for _, kind, number in count_kinds(pages, share)]
    reached = [(kind, number) for kind, number in counts if kind.drop_at != "download"]
    false = sum(number for kind, number in reached if not kind.matches)
    assert sum(number for _, number in counts) == pages
    assert false / sum(number for _, number in reached) == pytest.approx(share, abs=0.02)


def test_a_web_that_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.5"):
        Drawing(false_texts=1.5)
    with pytest.raises(ValueError, match=r"pages must be at least"):
        Drawing(pages=10)
    with pytest.raises(ValueError, match=r"webs\.test must be at least 2"):
        Drawing(test=1)


def test_the_long_tail_is_rare_in_the_web_and_common_in_the_held_out_set(tmp_path: Path) -> None:
    world = WORLDS["longtail"]
    rng = random.Random(0)
    seen = Counter(group.kind for _ in range(3000) for group in sample_scene(rng, world).groups)
    assert seen["ball"] > 8 * seen["tree"] * 0.5 > seen[world.kinds[-1]] > 0
    even = Counter(
        group.kind for _ in range(3000) for group in sample_scene(rng, world.even()).groups
    )
    assert min(even[kind] for kind in world.kinds) > 30
    build(tmp_path, base_url=BASE, seed=1, num_pages=80, num_human=20, num_test=20, world=world)
    rows = pq.read_table(tmp_path / "truth.parquet").to_pylist()
    for row in rows:
        if row["scene"] is not None and row["drop_at"] != "download":
            caption = row["caption"].replace("&quot;", " ").replace("&nbsp;", " ")
            assert holds(caption, Scene.from_json(row["scene"])) is row["matches"], row


def test_true_pairs_and_true_captions_are_written_beside(
    web: Path, truth: list[dict[str, Any]]
) -> None:
    scenes = {row["url"].replace(BASE, "site"): row for row in truth}

    def read_lines(name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (web / name).read_text().splitlines()]

    true = read_lines("true.jsonl")
    assert {line["image"] for line in true} == {
        path for path, row in scenes.items() if row["matches"]
    }
    told = read_lines("told.jsonl")
    assert {line["image"] for line in told} > {line["image"] for line in true}
    for line in told:
        Image.open(web / line["image"]).load()
        assert holds(line["caption"], Scene.from_json(scenes[line["image"]]["scene"]))
    dense = read_lines("dense.jsonl")
    assert len(dense) == 12 and all(line["caption"].count(".") == 3 for line in dense)
