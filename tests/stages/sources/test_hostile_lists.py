"""Lists that are broken on purpose: each is rows, or an error that names the file."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import json
import os
import random
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.fakes import jpeg

from pipeline.cli.init_source import profile_source
from stages import sources
from stages.download import DownloadConfig
from stages.sources import LIST, Location, Reader
from stages.sources.row import LONGEST

ROUNDS = int(os.environ.get("CAPFILT_FUZZ_LISTS", "600"))
PAIRS = [(f"http://a.test/{number}", f"a cät, number {number}") for number in range(40)]
CSV = ("url,caption\n" + "".join(f'{url},"{text}"\n' for url, text in PAIRS)).encode()
JSONL = "".join(json.dumps({"url": url, "caption": text}) + "\n" for url, text in PAIRS).encode()
SPLINTERS = (
    b'"',
    b"\n",
    b"\\u0000",
    b"\\ud800",
    b",",
    b"{}",
    b"null",
    b"1e999",
    b"[[",
    b"\xef\xbb",
)


def zstd(content: bytes) -> bytes:
    packed: bytes = pa.compress(content, codec="zstd", asbytes=True)
    return packed


def parquet(table: pa.Table, **options: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, **options)
    return stream.getvalue()


def columns(**named: list[Any]) -> bytes:
    return parquet(pa.table(dict(named)))


def tar(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@functools.cache
def corpus() -> dict[str, bytes]:
    """A whole list of every kind."""
    urls, texts = [url for url, _ in PAIRS], [text for _, text in PAIRS]
    coco = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "coco_url": urls[n]} for n in range(5)],
        "annotations": [{"image_id": n, "caption": "a"} for n in range(5)],
    }
    page = {"text_list": texts, "image_info": [{"raw_url": urls[0], "matched_text_index": 0}]}
    images = [jpeg(number, (32, 32)) for number in range(4)]
    members = {}
    for number, image in enumerate(images):
        members |= {f"{number}.jpg": image, f"{number}.txt": b"a", f"{number}.json": b'{"uid": 1}'}
    return {
        "a.csv": CSV,
        "a.tsv": CSV.replace(b",", b"\t"),
        "a.csv.gz": gzip.compress(CSV, mtime=0),
        "a.csv.zst": zstd(CSV),
        "a.csv.bz2": bz2.compress(CSV),
        "a.jsonl": JSONL,
        "a.jsonl.gz": gzip.compress(JSONL, mtime=0),
        "sbu.json": json.dumps({"image_urls": urls, "captions": texts}).encode(),
        "coco.json": json.dumps(coco).encode(),
        "pages.jsonl": (json.dumps(page) + "\n").encode() * 3,
        "a.parquet": columns(url=urls, caption=texts),
        "images.parquet": columns(image=images, caption=texts[:4]),
        "images.tar": tar(members),
    }


def mutated(rng: random.Random, whole: bytes) -> bytes:
    content = bytearray(whole)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(content) or 1)
        if rng.random() < 0.3:  # where footers lie
            at = max(0, len(content) - rng.randrange(1, 200))
        match rng.randrange(6):
            case 0:
                del content[at:]
            case 1:
                content[at : at + 1] = rng.randbytes(1)
            case 2:
                content[at : at + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
            case 3:
                content[at:at] = rng.choice(SPLINTERS)
            case 4:
                content[at:at] = content[at : at + 100] * 3
            case 5:
                del content[at : at + rng.choice((1, 10, 100))]
    return bytes(content)


def rows(path: Path, **settings: Any) -> list[dict[str, Any]]:
    """The rows of a list, the images at hand read."""
    config = DownloadConfig(source=str(path), **settings)
    reader = Reader(config, max_bytes=10**6)
    found: list[dict[str, Any]] = []
    for table in sources.shards(config):
        assert table.schema == LIST
        table.validate(full=True)
        found += table.to_pylist()
    for row in found:
        assert isinstance(row["url"], str) and row["repeats"] >= 0
        place = Location(*(row[name] for name in Location._fields))
        if place.file is not None:
            assert isinstance(reader.read(place), bytes | str)
    return found


def test_a_mutated_list_is_rows_or_an_error_that_names_it(tmp_path: Path) -> None:
    for seed in range(ROUNDS):
        rng = random.Random(seed)
        name = rng.choice(list(corpus()))
        path = tmp_path / name
        path.write_bytes(mutated(rng, corpus()[name]))
        try:
            rows(path)
        except ValueError as error:
            assert name in str(error), (seed, error)
        except Exception as error:
            raise AssertionError(f"seed {seed}, {name}") from error


def big(compress: Any) -> bytes:
    content: bytes = compress(CSV * 400)
    return content


@pytest.mark.parametrize(
    ("ending", "pack"), [("gz", gzip.compress), ("zst", zstd), ("bz2", bz2.compress)]
)
@pytest.mark.parametrize("lost", [1, 5, 0.5])
def test_a_packed_list_that_ends_early_loses_no_row_in_silence(
    tmp_path: Path, ending: str, pack: Any, lost: float
) -> None:
    content = big(pack)
    path = tmp_path / f"a.csv.{ending}"
    path.write_bytes(content[: -int(lost if lost >= 1 else len(content) * lost)])
    with pytest.raises(ValueError, match=f"cannot be read as csv: .*{ending}"):
        rows(path)


def same(names: list[str]) -> bytes:
    arrays = [pa.array(["http://a.test/1"]) for _ in names]
    return parquet(pa.Table.from_arrays(arrays, names=names))


UNREADABLE = [
    ("utf16.json", b"\xff\xfe[\0{\0", ["cannot be read as json"]),
    ("cut16.csv", CSV.decode().encode("utf-16")[:-1], ["cannot be read as csv"]),
    ("none.csv", b"url,caption\na,b\nc,\x81\x8d\n", ["line 3", "save the list as UTF-8"]),
    ("mixed.csv", b"url,caption\na,caf\xc3\xa9\nb,caf\xe9\nc,\x93hi\x94\n", ["line 3"]),
    ("mixed.json", b'[{"url": "caf\xc3\xa9 \xc3\xa9",\n"b": "caf\xe9"}]', ["line 2"]),
    ("none.jsonl", b'{"url": "\x81\x8d"}\n', ["line 1", "save the list as UTF-8"]),
    (
        "open.csv",
        b'url,caption\na,b\na,"b\nc,d\n',
        ["record that begins at line 3", "never closed"],
    ),
    ("same.csv", b"url,url,caption\na,b,c\n", ["more than one column 'url'"]),
    ("same.parquet", same(["url", "caption", "caption"]), ["more than one column 'caption'"]),
    ("none.parquet", parquet(pa.table({})), ["download.url_column"]),
    ("rows.parquet", columns(url=[], caption=[]), ["must hold text|no rows"]),
    ("struct.parquet", columns(url=[{"a": 1}]), ["'url'", "must hold text"]),
    ("lists.parquet", columns(url=[["a"]], caption=["a"]), ["'url'", "must hold text"]),
    ("cut.parquet", corpus()["a.parquet"][:-6], ["cannot be read as parquet"]),
    ("long.csv.gz", gzip.compress(b"url\n" + bytes(2**25)), ["longer than 16 MiB"]),
    ("lines.jsonl", b"\n \n\n", ["no rows"]),
    ("empty.tar", b"", ["cannot be read as tar"]),
    ("missing.csv", b"link to,caption\na,b\n", ["download.url_column", "'link to'"]),
]


@pytest.mark.parametrize(("name", "content", "words"), UNREADABLE, ids=[u[0] for u in UNREADABLE])
def test_a_list_that_cannot_be_read_says_why(
    tmp_path: Path, name: str, content: bytes, words: list[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for reads in (rows, lambda path: profile_source([str(path)])):
        with pytest.raises(ValueError) as error:
            reads(path)
        assert name in str(error.value)
        assert all(any(w in str(error.value) for w in word.split("|")) for word in words)


def test_values_of_wrong_types_are_rows_that_fail(tmp_path: Path) -> None:
    wrong: list[Any] = [1, 1.5, True, None, [], ["http://a.test/1"], {"url": "http://a.test/1"}]
    lines = [json.dumps({"url": one, "caption": f"wrong {n}"}) for n, one in enumerate(wrong)]
    lines += ['{"url": NaN, "caption": "nan"}', f'{{"url": {"9" * 5000}, "caption": "long"}}']
    number = len(lines)
    lines += [json.dumps({"url": "http://a.test/2", "caption": one, "uid": one}) for one in wrong]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    found = rows(path)
    assert sum(row["repeats"] + 1 for row in found) == len(lines)
    assert [row["url"] for row in found[:number]] == [
        f"web/a.jsonl:{n}" for n in range(1, number + 1)
    ]
    assert {row["fault"] for row in found[:number]} == {"malformed"}
    assert [(row["caption"], row["repeats"]) for row in found[number:]] == [
        ("1", 0),
        ("1.5", 0),
        (None, 3),
        ("http://a.test/1", 0),
    ]
    path = tmp_path / "a.parquet"
    path.write_bytes(columns(url=[1, 2], caption=[1.5, None]))
    assert [(row["url"], row["caption"]) for row in rows(path)] == [("1", "1.5"), ("2", None)]
    path.write_bytes(columns(url=pa.nulls(3, pa.string()), caption=["a", "b", "a"]))
    assert [(row["url"], row["repeats"]) for row in rows(path)] == [
        ("web/a.parquet:1", 0),
        ("web/a.parquet:2", 0),
        ("web/a.parquet:3", 0),
    ]


def test_of_columns_that_differ_in_case_the_first_counts_unless_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"URL,url,Caption,caption\na,b,c,d\n")
    assert [(row["url"], row["caption"]) for row in rows(path)] == [("a", "c")]
    (row,) = rows(path, url_column="url", caption_column="caption")
    assert (row["url"], row["caption"]) == ("b", "d")


def test_a_line_of_ten_megabytes_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"url,caption\nhttp://a.test/1," + b"x" * 10**7 + b"\nhttp://a.test/2,y\n")
    assert [len(row["caption"]) for row in rows(path)] == [LONGEST, 1]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet"])
def test_a_text_is_cut_at_its_bound_and_a_url_beyond_it_is_none(tmp_path: Path, kind: str) -> None:
    urls = ["http://a.test/".ljust(length, "u") for length in (LONGEST, LONGEST + 1, 20, 21)]
    texts = ["a", "b", "\U0001f600" * LONGEST, "é" * (LONGEST + 1)]
    pairs = [{"url": url, "caption": text} for url, text in zip(urls, texts, strict=True)]
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        path.write_bytes(columns(url=urls, caption=texts))
    elif kind == "csv":
        path.write_text(
            "url,caption\n" + "".join(f"{u},{t}\n" for u, t in zip(urls, texts, strict=True))
        )
    else:
        path.write_text(json.dumps(pairs) if kind == "json" else "\n".join(map(json.dumps, pairs)))
    assert [(row["url"], row["caption"]) for row in rows(path)] == [
        (urls[0], "a"),
        (urls[1][:LONGEST], "b"),
        (urls[2], texts[2]),
        (urls[3], "é" * LONGEST),
    ]


def shared(rows: int, text: str, nulls: int = 0) -> bytes:
    """Rows that share a caption, which lies in the file once; the first ones have none."""
    indices = pa.array([None] * nulls + [0] * (rows - nulls), pa.int32())
    caption = pa.DictionaryArray.from_arrays(indices, pa.array([text]))
    table = pa.table({"url": [f"http://a.test/{n}" for n in range(rows)], "caption": caption})
    return parquet(
        table,
        use_dictionary=["caption"],
        dictionary_pagesize_limit=2**30,
        compression="zstd",
        store_schema=False,
    )


def wide(rows: int, length: int, **options: Any) -> bytes:
    """Rows with captions of their own, some hundred of them wide and all others narrow."""
    urls = [f"http://a.test/{n}" for n in range(rows)]
    captions = [f"{n} ".ljust(length if n < 300 else 1, "x") for n in range(rows)]
    table = pa.table({"url": urls, "caption": captions})
    return parquet(table, compression="zstd", data_page_size=2**20, **options)


def nested(rows: int, length: int) -> bytes:
    """Rows of many captions each, all of them one text, which lies in the file once."""
    many = 150
    indices = pa.array(np.zeros(rows * many, np.int32))
    texts = pa.DictionaryArray.from_arrays(indices, pa.array(["x" * length]))
    starts = pa.array(range(0, rows * many + 1, many), pa.int32())
    urls = [f"http://a.test/{n}" for n in range(rows)]
    table = pa.table({"url": urls, "caption": pa.ListArray.from_arrays(starts, texts)})
    return parquet(table, dictionary_pagesize_limit=2**30, compression="zstd", store_schema=False)


PLAIN: dict[str, Any] = {"use_dictionary": False}
DELTA: dict[str, Any] = {**PLAIN, "column_encoding": {"caption": "DELTA_BYTE_ARRAY"}}
WIDE = gzip.compress(b"x" * 10**7 + b'"}\n')
BOMBS = {
    "shared.parquet": lambda: (1500, shared(1500, "x" * 10**6)),
    "late.parquet": lambda: (1200, shared(1200, "x" * 10**6, 900)),
    "plain.parquet": lambda: (300, wide(300, 10**6, **PLAIN)),
    "delta.parquet": lambda: (400, wide(400, 10**6, **DELTA)),
    "nested.parquet": lambda: (500, nested(500, 10**6)),
    "head.jsonl.gz": lambda: (
        40,
        b"".join(
            gzip.compress(b'{"url": "http://a.test/%d", "caption": "' % n) + WIDE for n in range(40)
        ),
    ),
}
CHILD = """
import resource, sys
from pathlib import Path
from stages import sources

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
before = peak()
config = sources.SourceConfig(source=sys.argv[1], shard_size=100)
print(sum(table.num_rows for table in sources.shards(config)), peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize("name", BOMBS)
def test_a_small_list_of_wide_texts_takes_little_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    number, content = BOMBS[name]()
    path.write_bytes(content)
    assert len(content) < 10_000_000
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, str(path)],
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    found, growth = ran.stdout.split()
    assert int(found) == number
    most = 350 if name == "head.jsonl.gz" else 900
    assert float(growth) < most, f"{growth} MiB for {len(content)} bytes"


def test_a_record_of_many_lines_is_refused_by_its_first(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    field = b'"' + b"x" * 10**6 + b'\n",'
    path.write_bytes(gzip.compress(b"url,caption\na,b\n" + field * 40 + b"c\n", 1))
    with pytest.raises(ValueError, match=r"within 16 MiB in the record that begins at line 3"):
        rows(path)


def entries() -> Iterator[tarfile.TarInfo]:
    for name in ("../out.jpg", "/etc/passwd.jpg", "a/../../b.jpg", "x" * 90 + ".jpg"):
        yield tarfile.TarInfo(name)
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        member = tarfile.TarInfo(f"link-{kind.decode()}.jpg")
        member.type, member.linkname = kind, "/etc/hostname"
        yield member


def test_no_member_of_a_tar_leads_out_of_it(tmp_path: Path) -> None:
    (tmp_path.parent / "out.jpg").write_bytes(jpeg(9))
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        for member in entries():
            content = jpeg(1) if member.isreg() else b""
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    path = tmp_path / "a.tar"
    path.write_bytes(stream.getvalue())
    config = DownloadConfig(source=str(path))
    reader = Reader(config)
    found = rows(path)
    assert len(found) == 8
    for row in found:
        place = Location(*(row[name] for name in Location._fields))
        expected = "empty" if "link-" in row["url"] else jpeg(1)
        assert place.file == str(path) and reader.read(place) == expected


def test_metadata_of_a_folder_names_no_file_outside(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(jpeg(9))
    photos = tmp_path / "photos"
    (photos / "in").mkdir(parents=True)
    (photos / "in" / "a.jpg").write_bytes(jpeg(1))
    (photos / "link.jpg").symlink_to(secret)
    (photos / "up").symlink_to(tmp_path)
    names = ["in/a.jpg", "../secret.jpg", str(secret), "in/../../secret.jpg", "up/secret.jpg", "\0"]
    lines = [json.dumps({"file_name": name, "caption": name}) for name in names]
    (photos / "metadata.jsonl").write_text("\n".join(lines))
    config = DownloadConfig(source=str(photos))
    reader = Reader(config)
    read = {
        row["caption"] or row["url"]: reader.read(
            Location(row["file"] or "", *(row[name] for name in Location._fields[1:]))
        )
        for row in rows(photos)
    }
    assert read.pop("in/a.jpg") == jpeg(1)
    assert read.pop("web/metadata.jsonl:6") == "outside_source"  # a name without a character
    assert set(read.values()) <= {"outside_source", "missing"} and len(read) == 5


def test_a_glob_follows_no_link_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    secret = tmp_path / "secret.tar"
    secret.write_bytes(tar({"a.jpg": jpeg(9)}))
    (tmp_path / "in" / "b.tar").write_bytes(tar({"b.jpg": jpeg(1)}))
    (tmp_path / "in" / "a.tar").symlink_to(secret)
    config = DownloadConfig(source=str(tmp_path / "in" / "*.tar"))
    reader = Reader(config)
    (table,) = sources.shards(config)
    read = [reader.read(Location(**place)) for place in table.select(Location._fields).to_pylist()]
    assert read == ["outside_source", jpeg(1)]
