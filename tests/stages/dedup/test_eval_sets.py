from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.duplicates import PAINTINGS, jpeg, pool, reasons, row, summarized
from helpers.fakes import painting
from PIL import Image

from stages.dedup import DedupConfig, DedupStage


def evaluation_set(folder: Path, **images: bytes) -> str:
    folder.mkdir(exist_ok=True)
    for name, data in images.items():
        (folder / f"{name}.jpg").write_bytes(data)
    return str(folder)


def test_images_of_an_evaluation_set_are_out_and_say_which(tmp_path: Path) -> None:
    grey = Image.new("RGB", (160, 120), (120, 120, 120))
    near = jpeg(painting(0), quality=70, scale=0.8)
    photos = evaluation_set(
        tmp_path / "photos", one=PAINTINGS[1], zero=PAINTINGS[0], broken=b"junk", flat=jpeg(grey)
    )
    parquet = str(tmp_path / "set.parquet")
    image = {"bytes": PAINTINGS[2], "path": "two.jpg"}
    pq.write_table(pa.table({"image": [image, {"bytes": PAINTINGS[3]}]}), parquet)
    found = summarized(
        pool(
            row(near, "http://a/0"),
            row(PAINTINGS[2], "http://a/1"),
            row(PAINTINGS[3], "http://a/2"),
            row(PAINTINGS[4], "http://a/3"),
            row(jpeg(grey), "http://a/4"),
            row(jpeg(grey, quality=80), "http://a/5"),
            row(b"junk", "http://a/6"),
        ),
        against=(photos, parquet),
    )
    assert [(one["evaluation_set"], one["evaluation_image"]) for one in found] == [
        (photos, "zero.jpg"),
        (parquet, "set.parquet/0"),
        (parquet, "set.parquet/1"),
        (None, None),
        (photos, "flat.jpg"),
        (None, None),
        (photos, "broken.jpg"),
    ]
    assert [one["reason"] for one in found] == [
        *["in_evaluation_set"] * 3,
        None,
        "in_evaluation_set",
        None,
        "in_evaluation_set",
    ]
    assert found[0]["evaluation_distance"] <= 6
    assert [one["evaluation_distance"] for one in found[1:]] == [0, 0, None, 0, None, None]


def test_colour_tells_an_image_from_that_of_an_evaluation_set(tmp_path: Path) -> None:
    red, blue = (
        jpeg(Image.merge("RGB", [painting(0).convert("L").point(lambda v, k=k: v * k) for k in ks]))
        for ks in ((1, 0.6, 0.6), (0.6, 0.6, 1))
    )
    against = (evaluation_set(tmp_path / "set", red=red),)
    assert reasons(row(blue, "http://a/0"), against=against) == [None]
    assert reasons(row(blue, "http://a/0"), against=against, max_colour_distance=255) == [
        "in_evaluation_set"
    ]


def test_every_copy_of_an_image_of_an_evaluation_set_is_out(tmp_path: Path) -> None:
    against = (evaluation_set(tmp_path / "set", zero=PAINTINGS[0]),)
    found = summarized(
        pool(
            row(PAINTINGS[0], "http://a/0"),
            row(PAINTINGS[0], "http://a/1", "another address of it"),
            row(jpeg(painting(0), 70, 0.8), "http://a/2"),
            row(PAINTINGS[2], "http://a/0"),
        ),
        against=against,
    )
    assert [one["reason"] for one in found] == ["in_evaluation_set"] * 3 + [None]
    assert {one["evaluation_image"] for one in found[:3]} == {"zero.jpg"}
    assert found[0]["evaluation_distance"] == 0


def test_what_evaluation_sets_hold_is_part_of_the_settings(tmp_path: Path) -> None:
    against = evaluation_set(tmp_path / "set", zero=PAINTINGS[0])

    def now() -> dict[str, Any]:
        return DedupConfig(against=(against,)).settings()

    before = now()
    assert now() == before and DedupConfig(against=(against,)).measurement() == {}
    evaluation_set(tmp_path / "set", zero=PAINTINGS[1])
    changed = now()
    assert changed != before
    evaluation_set(tmp_path / "set", one=PAINTINGS[1])
    assert now() not in (before, changed)
    evaluation_set(tmp_path / "moved", zero=PAINTINGS[1], one=PAINTINGS[1])
    moved = DedupConfig(against=(str(tmp_path / "moved"),)).settings()
    assert moved["against_content"] == now()["against_content"]
    with pytest.raises(ValueError, match=r"dedup\.against has no such list or images: .*/gone"):
        DedupConfig(against=(str(tmp_path / "gone"),)).settings()
    (tmp_path / "empty").mkdir()
    stage = DedupStage(DedupConfig(against=(str(tmp_path / "empty"),)))
    with pytest.raises(ValueError, match=r"dedup\.against holds neither .*/empty"):
        stage.summarize(iter([]))


def test_a_parquet_file_without_images_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "set.parquet")
    pq.write_table(pa.table({"picture": [PAINTINGS[0]]}), path)
    with pytest.raises(ValueError, match=r"set\.parquet names no images"):
        DedupStage(DedupConfig(against=(path,))).summarize(iter([]))
