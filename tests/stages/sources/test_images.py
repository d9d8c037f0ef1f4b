from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from helpers.fakes import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stages import sources
from stages.download import DownloadConfig, DownloadStage
from stages.schema import PAIRS, POOL, uid_of
from stages.sources import Location, Reader, Source
from stages.sources.parquet_images import ParquetImages

URLS = ["http://a.test/1.jpg", "http://a.test/2.jpg", "http://a.test/3.jpg"]
CAPTIONS = ["a cat", "", None]
READ = ["a cat", None, None]


def config(source: Any, **given: Any) -> DownloadConfig:
    return DownloadConfig(source=source if isinstance(source, tuple) else str(source), **given)


def rows(source: Any, **given: Any) -> list[dict[str, Any]]:
    tables = list(sources.shards(config(source, **given)))
    assert all(table.schema == sources.LIST for table in tables)
    return [row for table in tables for row in table.to_pylist()]


def told(source: Any, **given: Any) -> list[tuple[str, str | None]]:
    return [(row["url"], row["caption"]) for row in rows(source, **given)]


def contents(source: Any, max_bytes: int | None = None) -> list[bytes | str]:
    """What the reader finds for each row."""
    reader = Reader(config(source), max_bytes)
    fields = Location._fields
    return [reader.read(Location(*(row[field] for field in fields))) for row in rows(source)]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def jpeg(shade: int, size: int = 32) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), shade, np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def tar(path: Path, members: list[tuple[str, str | bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            raw = content.encode() if isinstance(content, str) else content
            info.size = len(raw)
            file.addfile(info, io.BytesIO(raw))
    return path


# folders


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.PNG", "more/c.webp", "notes.md"):
        write(tmp_path / "photos" / name, name)
    return tmp_path / "photos"


def test_a_folder_takes_captions_from_the_files_beside_its_images(photos: Path) -> None:
    write(photos / "b.txt", b"a caf\xe9\n")
    write(photos / "a.txt", b"a \xff\xfe\x81 cat\n")
    write(photos / "more/c.txt", "a dog\nin two lines\n")
    assert told(photos) == [
        ("web/a.PNG", None),
        ("web/b.jpg", "a café"),
        ("web/more/c.webp", "a dog\nin two lines"),
    ]
    assert contents(photos) == [b"a.PNG", b"b.jpg", b"more/c.webp"]


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
def test_a_folder_takes_captions_from_its_metadata(photos: Path, name: str) -> None:
    listed = [
        ("more/c.webp", "a dog"),
        ("./b.jpg", "a cat"),
        ("b.jpg", "one more"),
        ("no.jpg", "lost"),
    ]
    if name.endswith("csv"):
        write(photos / name, "\n".join(["file_name,text", *(",".join(pair) for pair in listed)]))
    elif name.endswith("jsonl"):
        lines = [json.dumps({"file_name": file, "text": text}) for file, text in listed]
        write(photos / name, "\n".join([*lines, json.dumps({"text": "of nothing"}), "{"]))
    else:
        files, texts = zip(*listed, strict=True)
        pq.write_table(pa.table({"file_name": files, "text": texts}), photos / name)
    found = told(photos)
    if name.endswith("jsonl"):
        assert found[4:6] == [
            ("web/metadata.jsonl:5", "of nothing"),
            ("web/metadata.jsonl:6", None),
        ]
        del found[4:6]
    assert found == [
        ("web/more/c.webp", "a dog"),
        ("web/b.jpg", "a cat"),
        ("web/b.jpg", "one more"),
        ("web/no.jpg", "lost"),
        ("web/a.PNG", None),
    ]


def test_metadata_may_name_the_url_and_the_id_of_an_image(photos: Path) -> None:
    line = {"file_name": "b.jpg", "url": URLS[0], "caption": "a cat", "id": 7}
    write(photos / "metadata.jsonl", json.dumps(line))
    first = rows(photos)[0]
    assert (first["url"], first["source_uid"]) == (URLS[0], "7")
    assert first["uid"] == uid_of(URLS[0], "a cat")


def test_metadata_without_file_names_says_so(photos: Path) -> None:
    write(photos / "metadata.csv", "url,text\nx,y\n")
    with pytest.raises(ValueError, match=r"metadata\.csv needs a column `file_name`"):
        rows(photos)


def test_a_folder_that_moves_keeps_every_row_but_where_it_lies(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, digest = rows(photos), sources.content_digest(config(photos))
    moved = photos.rename(tmp_path / "elsewhere")
    after = rows(moved)
    assert [{**row, "file": None} for row in before] == [{**row, "file": None} for row in after]
    assert sources.content_digest(config(moved)) == digest
    monkeypatch.chdir(tmp_path)
    assert {row["file"] for row in rows("elsewhere/")} >= {"elsewhere/b.jpg"}
    for name in ("elsewhere", "elsewhere/", "./elsewhere", moved.as_uri()):
        assert contents(name) == [b"a.PNG", b"b.jpg", b"more/c.webp"]
    monkeypatch.chdir(moved)
    assert contents(".") == [b"a.PNG", b"b.jpg", b"more/c.webp"]


def test_equal_names_in_two_folders_are_two_images(tmp_path: Path) -> None:
    one, two = tmp_path / "one/images", tmp_path / "two/images"
    write(one / "a.jpg", "first")
    write(two / "a.jpg", "second")
    both = (str(one), str(two))
    assert told(both) == [("web/0/a.jpg", None), ("web/1/a.jpg", None)]
    assert contents(both) == [b"first", b"second"]
    named = (Source(path=both[0], name="one"), Source(path=both[1], name="two"))
    assert told(named) == [("one/a.jpg", None), ("two/a.jpg", None)]
    assert contents(named) == [b"first", b"second"]


def test_a_folder_of_both_images_and_tars_is_refused(photos: Path) -> None:
    tar(photos / "more/x.tar", [("a.jpg", "x")])
    with pytest.raises(ValueError, match=r"both images and tars \(more/x\.tar\); give a glob"):
        rows(photos)


def test_a_changed_image_changes_the_identity_and_digest_of_its_folder(photos: Path) -> None:
    found = config(photos)
    identity, content = sources.identity(found), sources.content_digest(found)
    assert json.loads(json.dumps(identity)) == identity
    write(photos / "b.jpg", "another")
    assert sources.identity(found) != identity
    assert sources.content_digest(found) != content


def test_names_that_are_no_text_are_rows_that_fail(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg", "x")
    with open(os.fsencode(tmp_path) + b"/bad\xff.jpg", "wb") as stream:
        stream.write(b"y")
    assert contents(tmp_path) == [b"x", "missing"]


def test_a_file_that_is_no_parquet_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.parquet", "not Parquet")
    opened = []
    real = LocalFileSystem.open

    def kept(*args: Any, **more: Any) -> Any:
        opened.append(real(*args, **more))
        return opened[-1]

    monkeypatch.setattr(LocalFileSystem, "open", kept)
    assert Reader(config(path)).read(Location(str(path), row=0)) == "missing"
    assert [stream.closed for stream in opened] == [True]


def test_a_folder_on_any_filesystem_is_read() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({"/at/a.jpg": b"one", "/at/more/b.jpg": b"two", "/at/more/b.txt": b"a dog"})
    memory.pipe({"/at/metadata.jsonl": b'{"file_name": "../secret.jpg"}', "/secret.jpg": b"x"})
    try:
        found = rows("memory://at")
        assert [row["url"] for row in found] == ["web/../secret.jpg", "web/a.jpg", "web/more/b.jpg"]
        assert found[2]["caption"] == "a dog"
        assert contents("memory://at/") == ["outside_source", b"one", b"two"]
        assert contents("memory://at", max_bytes=2) == ["outside_source", "too_large", "too_large"]
    finally:
        memory.rm("/at", recursive=True)
        memory.rm("/secret.jpg")


# tars


def test_a_tar_gives_the_images_of_its_samples(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "shards/0.tar",
        [
            ("a.jpg", "A"),
            ("a.txt", "a café\n"),
            ("b.json", json.dumps({"url": URLS[0], "caption": None, "key": "b"})),
            ("b.png", "B"),
            ("b.txt", ""),
            ("no.txt", "no image"),
            ("in/c.webp", "C"),
            ("in/c.JSON", json.dumps({"text": "\ud800 dog"})),
            ("in/c.cls", "7"),
            ("d.left.jpg", "D"),
            ("d.right.jpg", "E"),
            ("d.txt", "two"),
            ("e.jpg", "F"),
            ("e.json", "{broken"),
            ("f.jpg", ""),
        ],
    )
    found = rows(path)
    assert [(row["url"], row["caption"], row["source_uid"]) for row in found] == [
        ("web/0.tar/a.jpg", "a café", None),
        (URLS[0], None, "b"),
        ("web/0.tar/in/c.webp", " dog", None),
        ("web/0.tar/d.left.jpg", "two", None),
        ("web/0.tar/d.right.jpg", "two", None),
        ("web/0.tar/e.jpg", None, None),
        ("web/0.tar/f.jpg", None, None),
    ]
    assert contents(path) == [b"A", b"B", b"C", b"D", b"E", b"F", "empty"]
    assert contents(path, max_bytes=0)[:2] == ["too_large", "too_large"]
    for same in (path.parent, path.parent / "*.tar", tmp_path / "*/0.tar"):
        assert contents(same) == contents(path)
    assert told(path.parent) == told(path)
    assert told(tmp_path / "*/0.tar")[0][0] == "web/shards/0.tar/a.jpg"


def test_members_that_are_no_files_are_rows_that_fail(tmp_path: Path) -> None:
    write(tmp_path / "secret.jpg", "secret")
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for name, kind, target in (
            ("a.jpg", tarfile.SYMTYPE, str(tmp_path / "secret.jpg")),
            ("b.jpg", tarfile.LNKTYPE, "../secret.jpg"),
            ("../c.jpg", tarfile.REGTYPE, ""),
            ("/d.jpg", tarfile.REGTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, 2 * (kind == tarfile.REGTYPE)
            file.addfile(info, io.BytesIO(b"in"))
    assert contents(tmp_path / "a.tar") == ["empty", "empty", b"in", b"in"]
    assert told(tmp_path / "a.tar")[2:] == [
        ("web/a.tar/../c.jpg", None),
        ("web/a.tar//d.jpg", None),
    ]


@pytest.mark.parametrize("cut", [0, 100, 700, 1024, 1536, 2048])
def test_a_tar_that_ends_early_says_so(tmp_path: Path, cut: int) -> None:
    whole = tar(tmp_path / "a.tar", [("a.jpg", "x" * 600), ("b.jpg", "y" * 400)]).read_bytes()
    path = write(tmp_path / "cut.tar", whole[:cut])
    with pytest.raises(ValueError, match=r"cannot be read as tar: .*cut\.tar"):
        rows(path)


def test_a_tar_that_is_broken_within_says_so(tmp_path: Path) -> None:
    whole = bytearray(tar(tmp_path / "a.tar", [("a.jpg", "x"), ("b.jpg", "y")]).read_bytes())
    whole[1024:1100] = b"?" * 76
    with pytest.raises(ValueError, match=r"broken\.tar: it is broken at byte 1024"):
        rows(write(tmp_path / "broken.tar", bytes(whole)))


def test_a_packed_tar_is_to_be_unpacked(tmp_path: Path) -> None:
    for name in ("a.tar.gz", "a.tgz"):
        with pytest.raises(ValueError, match="decompress it"):
            rows(write(tmp_path / name, "x"))


# img2dataset


def img2dataset(folder: Path, kind: str) -> Path:
    """Three rows as img2dataset writes them, the last a failed download."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its check goes to the internet
    from img2dataset import writer

    folder.mkdir()
    fields = ("url", "caption", "key", "status", "error_message")
    schema = pa.schema([(name, pa.string()) for name in fields] + [("width", pa.int32())])
    kinds = {
        "webdataset": writer.WebDatasetSampleWriter,
        "parquet": writer.ParquetSampleWriter,
        "files": writer.FilesSampleWriter,
    }
    out = kinds[kind](0, str(folder), True, 5, schema, "jpg")
    if kind == "parquet":
        out.buffered_parquet_writer.close()
        out = kinds[kind](
            0, str(folder), True, 5, schema.append(pa.field("txt", pa.string())), "jpg"
        )
    for index, (url, caption) in enumerate(zip(URLS, CAPTIONS, strict=True)):
        image = jpeg(index) if index < 2 else None
        meta = {
            "url": url,
            "caption": caption,
            "key": f"00000{index:04d}",
            "status": "success" if image else "failed_to_download",
            "error_message": None if image else "timed out",
            "width": 32 if image else None,
        }
        out.write(image, meta["key"], caption, meta)
    out.close()
    write(folder / "00000_stats.json", json.dumps({"count": 3}))
    return folder


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "files"])
def test_the_output_of_img2dataset_has_the_uids_of_its_list(tmp_path: Path, kind: str) -> None:
    table = pa.table({"url": URLS, "caption": CAPTIONS})
    pq.write_table(table, tmp_path / "list.parquet")
    listed = rows(tmp_path / "list.parquet")
    folder = img2dataset(tmp_path / "out", kind)
    found = rows(folder)
    number = 3 if kind == "parquet" else 2  # elsewhere only what was downloaded is an image at hand
    assert [row["uid"] for row in found] == [row["uid"] for row in listed[:number]]
    assert [row["caption"] for row in found] == READ[:number]
    assert [row["source_uid"] for row in found] == ["000000000", "000000001", "000000002"][:number]
    assert contents(folder) == [jpeg(0), jpeg(1), "missing"][:number]


@pytest.mark.skipif(not (SHARED / "data/cc12m").exists(), reason="../shared/data is not here")
def test_a_real_shard_of_cc12m_is_read_whole() -> None:
    (path,) = (SHARED / "data/cc12m").glob("*.tar")
    found = rows(path)
    assert len(found) == 32
    assert all(row["url"].startswith("http") and row["caption"] for row in found)
    assert [len(content) for content in contents(path)] == [row["length"] for row in found]


# Parquet with images

KINDS = {
    "struct": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    "large": pa.struct([("path", pa.string()), ("bytes", pa.large_binary())]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_hugging_face_parquet_is_read(tmp_path: Path, kind: str) -> None:
    images = [{"bytes": jpeg(0), "path": "a.jpg"}, {"bytes": None, "path": "/etc/passwd"}, None]
    pq.write_table(
        pa.table({"photo": pa.array(images, KINDS[kind]), "text": ["a cat", "b", "c"]}),
        tmp_path / "train.parquet",
    )
    assert told(tmp_path) == [
        ("web/train.parquet/0", "a cat"),
        ("web/train.parquet/1", "b"),
        ("web/train.parquet/2", "c"),
    ]
    assert contents(tmp_path) == [jpeg(0), "missing", "missing"]


def test_shards_of_this_project_are_read(tmp_path: Path) -> None:
    uid = uid_of(URLS[0], "a cat")
    pool = {"uid": uid, "url": URLS[0], "caption": "a cat", "image": jpeg(3)}
    pq.write_table(
        pa.Table.from_pylist(
            [{"source": "web", "repeats": 0, "status": "success", **pool}], schema=POOL
        ),
        tmp_path / "pool.parquet",
    )
    pair = {**pool, "image": {"bytes": jpeg(3), "path": None}, "caption_source": "web"}
    pq.write_table(pa.Table.from_pylist([pair], schema=PAIRS), tmp_path / "pairs.parquet")
    for name in ("pool.parquet", "pairs.parquet"):
        (row,) = rows(tmp_path / name)
        assert (row["uid"], row["source_uid"]) == (uid, uid)
        assert contents(tmp_path / name) == [jpeg(3)]


def test_a_column_of_images_that_is_none_of_bytes_makes_a_list(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": ["x.jpg"], "url": URLS[:1]}), tmp_path / "a.parquet")
    (row,) = rows(tmp_path / "a.parquet")
    assert row["file"] is None


@given(
    asked=st.lists(st.integers(0, 499), max_size=60),
    group=st.sampled_from([1, 7, 100, 500]),
)
@settings(deadline=None, max_examples=30)
def test_the_rows_of_a_file_are_found_in_any_order(asked: list[int], group: int) -> None:
    stream = io.BytesIO()
    values = [None if row % 7 == 0 else str(row).encode() for row in range(500)]
    pq.write_table(pa.table({"image": pa.array(values)}), stream, row_group_size=group)
    pictures = ParquetImages(stream)
    for row in asked:
        assert pictures[row] == values[row]
    assert pictures[500] is pictures[-1] is None


# COCO

COCO = {
    "info": {"year": 2017},
    "images": [
        {"id": 9, "file_name": "9.jpg", "coco_url": URLS[0]},
        {"id": 8, "file_name": "in/8.jpg"},
        {"id": 7, "file_name": "../7.jpg", "coco_url": None},
    ],
    "licenses": [],
    "annotations": [
        {"image_id": 8, "id": 1, "caption": "a dog\n"},
        {"image_id": 9, "id": 2, "caption": "a cat"},
        {"image_id": 8, "id": 3, "caption": "another"},
        {"image_id": 1, "id": 4, "caption": "of nothing"},
    ],
}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    write(tmp_path / "images/9.jpg", "nine")
    write(tmp_path / "images/in/8.jpg", "eight")
    write(tmp_path / "7.jpg", "outside")
    return write(tmp_path / "captions.json", json.dumps(COCO))


def test_coco_captions_are_read_with_their_images(coco: Path) -> None:
    source = (Source(path=str(coco), name="coco", images=str(coco.parent / "images")),)
    assert [(row["url"], row["caption"], row["source_uid"]) for row in rows(source)] == [
        ("coco/in/8.jpg", "a dog\n", "8"),
        (URLS[0], "a cat", "9"),
        ("coco/in/8.jpg", "another", "8"),
        ("coco/captions.json:4", "of nothing", "1"),
        ("coco/../7.jpg", None, "7"),
    ]
    reader = Reader(config(source))
    read = [row["file"] and reader.read(Location(row["file"])) for row in rows(source)]
    assert read == [b"eight", b"nine", b"eight", None, "outside_source"]
    before = sources.content_digest(config(source))
    write(coco.parent / "images/9.jpg", "NINE")
    assert sources.content_digest(config(source)) != before


def test_coco_captions_without_images_are_a_list(coco: Path) -> None:
    found = rows(coco)
    assert [row["url"] for row in found] == [
        "web/captions.json:1",
        URLS[0],
        "web/captions.json:3",
        "web/captions.json:4",
        "web/captions.json:3",
    ]
    assert [row["fault"] for row in found] == ["malformed", None, *["malformed"] * 3]
    assert all(row["file"] is None for row in found)


def test_images_that_no_coco_json_names_say_so(coco: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "url\nx\n")
    with pytest.raises(ValueError, match=r"a\.csv names no images: it has no column"):
        rows((Source(path=str(path), images=str(tmp_path)),))
    with pytest.raises(ValueError, match="no such folder"):
        rows((Source(path=str(coco), images=str(tmp_path / "lost")),))
    write(path.with_suffix(".json"), json.dumps({"images": [{"id": 1}]}))
    with pytest.raises(ValueError, match="must have `id` and `file_name`"):
        rows(path.with_suffix(".json"))


# images


def test_the_images_of_every_kind_are_given_once(tmp_path: Path, coco: Path, photos: Path) -> None:
    write(photos / "metadata.csv", "file_name,text\nb.jpg,x\na.PNG,y\nb.jpg,z\n")
    assert list(sources.images(str(photos))) == [
        ("a.PNG", b"a.PNG"),
        ("b.jpg", b"b.jpg"),
        ("more/c.webp", b"more/c.webp"),
    ]
    path = tar(tmp_path / "t/x.tar", [("a.jpg", "A"), ("a.txt", "cat"), ("b.jpg", "B")])
    assert list(sources.images(str(path))) == [("x.tar/a.jpg", b"A"), ("x.tar/b.jpg", b"B")]
    pq.write_table(pa.table({"image": [b"P", b"Q"]}), tmp_path / "p.parquet")
    found = list(sources.images(str(tmp_path / "p.parquet")))
    assert found == [("p.parquet/0", b"P"), ("p.parquet/1", b"Q")]
    inside = {**COCO, "images": COCO["images"][:2]}  # type: ignore[index]
    write(coco, json.dumps(inside))
    source = Source(path=str(coco), images=str(coco.parent / "images"))
    assert list(sources.images(source)) == [("in/8.jpg", b"eight"), (URLS[0], b"nine")]


def test_images_that_are_not_at_hand_say_so(tmp_path: Path, coco: Path) -> None:
    with pytest.raises(ValueError, match="names no images: it has no column"):
        list(sources.images(str(write(tmp_path / "a.csv", "url\nhttp://a.test/\n"))))
    with pytest.raises(ValueError, match="cannot be read: outside_source"):
        list(sources.images(str(coco)))
    with pytest.raises(ValueError, match="if the images are in a folder"):
        list(sources.images(Source(path=str(coco))))
    pq.write_table(pa.table({"image": pa.array([None], pa.binary())}), tmp_path / "p.parquet")
    with pytest.raises(
        ValueError, match=r"the image web/p\.parquet/0 of .* cannot be read: missing"
    ):
        list(sources.images(str(tmp_path / "p.parquet")))


# download


@pytest.fixture
def every_kind(tmp_path: Path) -> Iterator[tuple[Source, ...]]:
    pictures = {f"{index}.jpg": jpeg(index * 20, 48) for index in range(6)}
    for name, content in pictures.items():
        write(tmp_path / "photos" / name, content)
    tar(tmp_path / "a.tar", list(pictures.items()))
    table = {"image": list(pictures.values())}
    pq.write_table(pa.table(table), tmp_path / "a.parquet", row_group_size=2)
    listed = [{"id": index, "file_name": name} for index, name in enumerate(pictures)]
    write(tmp_path / "coco.json", json.dumps({"images": listed, "annotations": []}))
    yield (
        Source(name="folder", path=str(tmp_path / "photos")),
        Source(name="tar", path=str(tmp_path / "a.tar")),
        Source(name="parquet", path=str(tmp_path / "a.parquet")),
        Source(name="coco", path=str(tmp_path / "coco.json"), images=str(tmp_path / "photos")),
    )


def test_the_same_images_become_the_same_pool_from_every_kind(
    every_kind: tuple[Source, ...],
) -> None:
    stage = DownloadStage(DownloadConfig(source=every_kind, shard_size=100, image_size=32))
    stage.load()
    (listed,) = sources.shards(stage.config)
    pool = stage.annotate(listed).to_pylist()
    assert [row["error"] for row in pool] == [None] * 24
    kinds = [pool[start : start + 6] for start in range(0, 24, 6)]
    for column in ("image", "sha256", "width", "status"):
        columns = [[row[column] for row in kind] for kind in kinds]
        assert all(values == columns[0] for values in columns)
    assert len({row["sha256"] for row in pool}) == 6
    assert [kind[0]["source"] for kind in kinds] == ["folder", "tar", "parquet", "coco"]
    assert [row["source_uid"] for row in kinds[3]] == list("012345")


def test_nothing_outside_the_file_that_a_source_names_is_read(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [("a.jpg", "A")])
    write(tmp_path / "b.tar", "B")
    (tmp_path / "link.tar").symlink_to(tmp_path / "b.tar")
    os.mkfifo(tmp_path / "pipe")
    reader = Reader(config(path))
    for file in (
        tmp_path / "b.tar",
        tmp_path / "a.tar.b",
        f"{path}/../b.tar",
        f"{path}\0",
        "memory://x",
        "file:///etc/passwd",
        f"simplecache::file://{path}",
        "",
    ):
        assert reader.read(Location(str(file))) in ("outside_source", "missing"), file
    folder = Reader(config(tmp_path))
    assert folder.read(Location(str(tmp_path / "pipe"))) == "missing"
    assert folder.read(Location(str(tmp_path))) == "missing"
    assert folder.read(Location(str(path), row=0)) == "missing"
