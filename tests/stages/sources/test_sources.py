from __future__ import annotations

import bz2
import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from stages import sources
from stages.download import DownloadConfig
from stages.schema import uid_of
from stages.sources import Notices, Source, json_lists
from stages.sources.row import LONGEST
from stages.sources.source_files import source_files

CAPTIONS = Path(__file__).resolve().parents[3] / "../shared/data/alttext/laion_10k.parquet"


def rows(source: Any, **settings: Any) -> list[dict[str, Any]]:
    given = source if isinstance(source, tuple) else str(source)
    tables = list(sources.shards(DownloadConfig(source=given, **settings)))
    assert all(table.schema == sources.LIST for table in tables)
    return [row for table in tables for row in table.to_pylist()]


def pairs(source: Any, **settings: Any) -> list[tuple[str, str | None]]:
    return [(row["url"], row["caption"]) for row in rows(source, **settings)]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def zstd(content: bytes) -> bytes:
    packed: bytes = pa.compress(content, codec="zstd", asbytes=True)
    return packed


TWO = [("http://a.test/1", "a cat"), ("http://a.test/2", "a dog")]
SBU = {
    "info": {"captions": ["not these"]},
    "image_urls": [url for url, _ in TWO],
    "captions": [caption for _, caption in TWO],
}
CSV = b"url,caption\nhttp://a.test/1,a cat\nhttp://a.test/2,a dog\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.csv", CSV),
        ("LIST.CSV", CSV),
        ("bom.csv", b"\xef\xbb\xbf" + CSV),
        ("crlf.csv", CSV.replace(b"\n", b"\r\n")),
        ("list.csv.gz", gzip.compress(CSV, mtime=0)),
        ("parts.csv.gz", gzip.compress(CSV[:34], mtime=0) + gzip.compress(CSV[34:], mtime=0)),
        ("list.csv.bz2", bz2.compress(CSV)),
        ("list.csv.zst", zstd(CSV)),
        ("list.tsv", CSV.replace(b",", b"\t")),
        ("cc3m.tsv", b"a cat\thttp://a.test/1\na dog\thttp://a.test/2\n"),
        ("cc12m.tsv", b"http://a.test/1\ta cat\nhttp://a.test/2\ta dog\n"),
        ("laion.csv", CSV.replace(b"url,caption", b"URL,TEXT")),
        ("alt.csv", b"Alt Text,id,Image URL\na cat,1,http://a.test/1\na dog,2,http://a.test/2\n"),
        ("sbu.json", json.dumps(SBU).encode()),
        ("sbu.json.gz", gzip.compress(json.dumps(SBU, indent=1).encode())),
        ("blip.json", json.dumps([{"caption": c, "url": u} for u, c in TWO]).encode()),
        ("bom.json", b"\xef\xbb\xbf" + json.dumps(SBU).encode()),
        ("list.jsonl", "".join(json.dumps({"url": u, "text": c}) + "\n" for u, c in TWO).encode()),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, content: bytes) -> None:
    assert pairs(write(tmp_path / name, content)) == TWO


def test_parquet_of_every_text_type_is_read(tmp_path: Path) -> None:
    for kind in (
        pa.string(),
        pa.large_string(),
        pa.binary(),
        pa.dictionary(pa.int32(), pa.string()),
    ):
        urls, captions = (pa.array(list(column)).cast(kind) for column in zip(*TWO, strict=True))
        pq.write_table(
            pa.table({"id": [1, 2], "URL": urls, "TEXT": captions}), tmp_path / "a.parquet"
        )
        assert pairs(tmp_path / "a.parquet") == TWO


def test_a_row_has_its_uid_source_and_place(tmp_path: Path) -> None:
    (first, second) = rows(write(tmp_path / "a.csv", CSV), name="cc3m")
    assert first == {
        "uid": uid_of("http://a.test/1", "a cat"),
        "source": "cc3m",
        "url": "http://a.test/1",
        "caption": "a cat",
        "source_uid": None,
        "repeats": 0,
        "file": None,
        "offset": None,
        "length": None,
        "row": None,
        "fault": None,
    }
    assert second["uid"] == uid_of("http://a.test/2", "a dog")


def test_quoted_commas_quotes_and_newlines_of_a_csv_are_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'url,caption\nhttp://a.test/1,"a ""cat"",\non a mat"\n')
    assert pairs(path) == [("http://a.test/1", 'a "cat",\non a mat')]


def test_quotes_of_a_tsv_are_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'http://a.test/1\t"a cat\nhttp://a.test/2\ta "dog"\n')
    assert pairs(path) == [("http://a.test/1", '"a cat'), ("http://a.test/2", 'a "dog"')]


def test_the_columns_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "url,where,caption,words\nx,http://a.test/1,y,a cat\n")
    named = pairs(path, url_column="where", caption_column="words")
    assert named == [("http://a.test/1", "a cat")]


def test_a_list_without_captions_gives_null_captions(tmp_path: Path) -> None:
    assert pairs(write(tmp_path / "a.csv", "url\nhttp://a.test/1\n")) == [("http://a.test/1", None)]


def test_captions_stay_as_found(tmp_path: Path) -> None:
    lines = [
        "http://a.test/1,null",
        "http://a.test/2,",
        "http://a.test/3,  NA ",
        "http://a.test/4,007",
    ]
    path = write(tmp_path / "a.csv", "\n".join(["url,caption", *lines]))
    assert [caption for _, caption in pairs(path)] == ["null", None, "NA ", "007"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet"])
def test_hostile_text_is_a_row(tmp_path: Path, name: str) -> None:
    texts = [
        b"nul \0 inside",
        "café".encode(),
        b"x" * 2_000_000,
        b"bad \xff\xfe utf",
        "犬".encode(),
        b"\xed\xa0\x80 surrogate",
        "😀".encode(),
    ]
    urls = [f"http://a.test/{index}".encode() for index in range(len(texts))]
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(pa.table({"url": urls, "caption": texts}), path)
    elif name == "a.jsonl":
        lines = [
            b'{"url": "%s", "caption": "%s"}\n' % pair for pair in zip(urls, texts, strict=True)
        ]
        write(path, b"".join(lines).replace(b"\0", b"\\u0000"))
    else:
        comma = b"," if name == "a.csv" else b"\t"
        lines = [comma.join(pair) for pair in zip(urls, texts, strict=True)]
        write(path, b"\n".join([comma.join([b"url", b"caption"]), *lines]))
    found = rows(path)
    broken = [found.pop(5), found.pop(3)]
    assert [(row["url"], row["caption"]) for row in found] == [
        ("http://a.test/0", "nul \0 inside"),
        ("http://a.test/1", "café"),
        ("http://a.test/2", "x" * LONGEST),
        ("http://a.test/4", "犬"),
        ("http://a.test/6", "😀"),
    ]
    if name == "a.parquet":
        assert [(row["url"], row["caption"]) for row in broken] == [
            ("http://a.test/5", None),
            ("http://a.test/3", None),
        ]
    else:
        first = 1 if name == "a.jsonl" else 2
        assert [(row["url"], row["fault"]) for row in broken] == [
            (f"web/{name}:{first + 5}", "malformed"),
            (f"web/{name}:{first + 3}", "malformed"),
        ]


def test_lone_surrogates_of_json_are_left_out_and_pairs_are_kept(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", r'{"url": "http://a.test/1", "caption": "\ud800 \ud83d\ude00"}'
    )
    notices = Notices()
    tables = list(sources.shards(DownloadConfig(source=str(path)), notices))
    assert tables[0]["caption"].to_pylist() == [" 😀"]
    assert "half of a character" in notices.lines()[0]


def test_records_that_cannot_be_read_are_rows_of_their_own(tmp_path: Path) -> None:
    good = [json.dumps({"url": f"http://a.test/{n}", "caption": "a cat"}) for n in range(6)]
    junk = ["{", "[1]", "7", json.dumps({"caption": "lost"}), json.dumps({"url": 3}), "[" * 100_000]
    notices = Notices()
    path = write(tmp_path / "a.jsonl", "\n".join([*good, *junk]))
    (table,) = sources.shards(DownloadConfig(source=str(path)), notices)
    found = table.to_pylist()[6:]
    assert [row["url"] for row in found] == [f"web/a.jsonl:{n}" for n in range(7, 13)]
    assert [row["fault"] for row in found] == ["malformed"] * 6
    assert [row["caption"] for row in found] == [None, None, None, "lost", None, None]
    assert [row["repeats"] for row in found] == [0] * 6
    assert any(f"`malformed`: 6, the first {path}:7" in line for line in notices)
    found = rows(write(tmp_path / "a.csv", CSV + b"http://a.test/3\nhttp://a.test/4,a,b\n"))
    assert [(row["url"], row["fault"]) for row in found[2:]] == [
        ("web/a.csv:4", "malformed"),
        ("web/a.csv:5", "malformed"),
    ]


def test_a_key_that_only_later_records_have_is_found(tmp_path: Path) -> None:
    lines = ['{"url": "http://a.test/1"}', '{"url": "http://a.test/2", "text": "a dog"}']
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    assert pairs(path) == [("http://a.test/1", None), ("http://a.test/2", "a dog")]


def test_globs_folders_and_several_sources_are_read_in_order(tmp_path: Path) -> None:
    for index in (2, 0, 1):
        write(tmp_path / f"part{index}.csv", f"url,caption\nhttp://a.test/{index},{index}\n")
    write(tmp_path / "_SUCCESS", "")
    by_path = [(f"http://a.test/{index}", str(index)) for index in range(3)]
    assert pairs(tmp_path / "*.csv") == by_path
    assert pairs(tmp_path) == by_path
    assert pairs(tmp_path.as_uri()) == by_path
    one, two = str(tmp_path / "part1.csv"), str(tmp_path / "part0.csv")
    assert pairs((one, two)) == [by_path[1], by_path[0]]


def test_a_list_on_any_filesystem_is_read() -> None:
    import fsspec

    filesystem = fsspec.filesystem("memory")
    filesystem.pipe("/lists/a.csv.gz", gzip.compress(CSV))
    try:
        assert pairs("memory://lists/a.csv.gz") == TWO
        config = DownloadConfig(source="memory://lists/*.gz")
        assert len(sources.content_digest(config)) == 64
        assert sources.identity(config)["web"][0]["size"] > 0
    finally:
        filesystem.rm("/lists", recursive=True)


@pytest.mark.parametrize(
    ("columns", "uids"),
    [
        ({"uid": ["ab", "cd"], "key": ["000", "001"]}, ["ab", "cd"]),  # DataComp
        ({"id": [841814333321, None], "width": [1, 2]}, ["841814333321", None]),  # COYO
        ({"SAMPLE_ID": [7, 8]}, ["7", "8"]),  # LAION
        ({"id": [[1], [2]]}, [None, None]),
        ({"key": [b"k\xff", b"l"]}, ["k\ufffd", "l"]),
    ],
)
def test_the_id_that_a_source_gives_is_kept(
    tmp_path: Path, columns: dict[str, Any], uids: list[str | None]
) -> None:
    urls, texts = zip(*TWO, strict=True)
    pq.write_table(pa.table({"url": urls, "text": texts, **columns}), tmp_path / "a.parquet")
    found = rows(tmp_path / "a.parquet")
    assert [row["source_uid"] for row in found] == uids
    assert [(row["url"], row["caption"]) for row in found] == TWO


def test_the_id_of_every_kind_of_list_is_kept(tmp_path: Path) -> None:
    given = [{"uid": 7, "url": "http://a.test/1"}, {"uid": "x", "url": "http://a.test/2"}]
    write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, given)))
    write(tmp_path / "b.csv", "url,uid\nhttp://a.test/1,7\nhttp://a.test/2,x\n")
    write(tmp_path / "c.json", json.dumps(given))
    for name in ("a.jsonl", "b.csv", "c.json"):
        assert [row["source_uid"] for row in rows(tmp_path / name)] == ["7", "x"]


def test_limit_ends_the_sources_early(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a.csv", CSV), write(tmp_path / "b.csv", CSV)
    assert pairs((str(one), str(two)), limit=1) == TWO[:1]
    assert [row["repeats"] for row in rows((str(one), str(two)), limit=3)] == [1, 0]


def numbered(path: Path, number: int) -> Path:
    return write(path, "url\n" + "".join(f"http://a.test/{index}\n" for index in range(number)))


def test_a_seed_draws_a_sample_that_it_alone_decides(tmp_path: Path) -> None:
    path = str(numbered(tmp_path / "a.csv", 20_000))

    def drawn(limit: int, seed: int) -> list[int]:
        found = rows((Source(path=path, limit=limit, seed=seed),))
        return [int(row["url"].rsplit("/", 1)[1]) for row in found]

    sample = drawn(500, 3)
    assert len(sample) == len(set(sample)) == 500
    assert sample == sorted(sample) == drawn(500, 3)
    assert set(sample) < set(drawn(1000, 3))
    assert len(set(sample) & set(drawn(500, 4))) < 40  # 12.5 are expected
    quarters = [sum(number // 5000 == quarter for number in sample) for quarter in range(4)]
    assert all(85 < quarter < 165 for quarter in quarters)  # 125 are expected, give or take 10
    assert drawn(20_000, 3) == drawn(30_000, 3) == list(range(20_000))


def test_rows_of_one_uid_in_a_sample_are_counted_as_they_were_drawn(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "url\n" + "http://a.test/\n" * 100)
    (row,) = rows((Source(path=str(path), limit=30, seed=0),))
    assert row["repeats"] == 29


def test_each_source_has_its_own_name_limit_and_columns(tmp_path: Path) -> None:
    one = write(tmp_path / "a.csv", CSV)
    two = write(tmp_path / "b.csv", "url,caption,words\nhttp://a.test/9,x,a bird\n")
    named = (
        Source(path=str(one), name="one", limit=1),
        Source(path=str(two), name="two", caption_column="words"),
        Source(path=str(one), name="again"),
    )
    found = [(row["source"], row["url"], row["caption"], row["repeats"]) for row in rows(named)]
    assert found == [
        ("one", "http://a.test/1", "a cat", 1),
        ("two", "http://a.test/9", "a bird", 0),
        ("again", "http://a.test/2", "a dog", 0),
    ]


def test_sources_are_read_from_plain_values() -> None:
    adapter = TypeAdapter(DownloadConfig)
    given = [{"name": "a", "path": "a.csv"}, {"name": "b", "path": ["b.csv"], "limit": 3}]
    config = adapter.validate_python({"source": given})
    assert config.sources == (
        Source(name="a", path="a.csv"),
        Source(name="b", path=("b.csv",), limit=3),
    )
    assert adapter.validate_python({"source": given[0]}).sources == config.sources[:1]
    plain = config.measurement()
    assert json.loads(json.dumps(plain))["source"][0]["path"] == "a.csv"
    changes: list[dict[str, Any]] = [
        {"name": "c"},
        {"limit": 4},
        {"limit": 3, "seed": 1},
        {"url_column": "u"},
        {"caption_column": "c"},
        {"images": "photos"},
        {"path": "c.csv"},
    ]
    for change in changes:
        other = adapter.validate_python({"source": [{**given[0], **change}, given[1]]})
        assert other.measurement() != plain


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ([{"path": "a"}, {"path": "b"}], "each source needs its own `name`, got 'web' twice"),
        ([{"path": "a", "nmae": "x"}], r"\[1\] nmae: unknown field; did you mean 'name'"),
        ([{"name": "x"}], r"\[1\] path: Field required"),
        ([{"path": "a", "limit": 0}], "download.limit must be at least 1, got 0"),
        ([{"path": "a", "seed": 1}], "`seed` needs `limit`"),
        ([{"path": "a", "name": "x/y"}], "`name` must be text without `/`"),
        ([{"path": ""}], "download.source must name a list or images"),
        ([{"path": "a"}, "b"], "paths or of mappings, not both"),
        ([{"path": "a", "limit": "many"}], "got 'many'"),
    ],
)
def test_a_source_that_is_wrong_says_what_to_mend(source: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TypeAdapter(DownloadConfig).validate_python({"source": source})


@pytest.mark.parametrize("field", ["name", "limit", "url_column", "caption_column"])
def test_the_fields_of_texts_are_refused_beside_mappings(field: str) -> None:
    value: Any = 3 if field == "limit" else "x"
    with pytest.raises(ValueError, match=rf"download\.{field} is for a source given as a path"):
        DownloadConfig(source=(Source(path="a.csv"),), **{field: value})


def test_elements_of_a_document_are_found_at_every_split_of_its_bytes(tmp_path: Path) -> None:
    given = {"info": {"a": [1]}, "image_urls": ["é\n", 12, -3.5e2, None, []], "captions": []}
    path = write(tmp_path / "a.json", json.dumps(given, ensure_ascii=False, indent=2))
    (source_file,) = source_files(Source(path=str(path)))
    for size in (1, 2, 3, 7, 2**20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(json_lists, "_CHUNK", size)
            assert list(json_lists.elements(source_file, "image_urls")) == given["image_urls"]
            source_file.known.clear()
            assert json_lists.kind(source_file)[0] == "sbu"


def test_sbu_arrays_of_different_lengths_lose_no_row(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for extra, row in (
        ({"image_urls": ["http://a.test/1"], "captions": ["a", "b"]}, ("web/a.json:2", "b")),
        (
            {"image_urls": ["http://a.test/1", "http://a.test/2"], "captions": ["a"]},
            ("http://a.test/2", None),
        ),
    ):
        write(path, json.dumps(extra))
        assert pairs(path) == [("http://a.test/1", "a"), row]


LISTS = st.lists(
    st.tuples(
        st.sampled_from("abc").map("http://{}.test/".format), st.none() | st.sampled_from("xyz")
    ),
    min_size=1,
    max_size=40,
)


@given(found=LISTS, shard_size=st.integers(1, 7))
@settings(deadline=None, max_examples=50)
def test_rows_of_one_uid_meet_in_the_first_and_none_is_lost(
    found: list[tuple[str, str | None]], shard_size: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        pq.write_table(
            pa.table({"url": [u for u, _ in found], "caption": [c for _, c in found]}), path
        )
        config = DownloadConfig(source=str(path), shard_size=shard_size)
        tables = list(sources.shards(config))
    assert all(table.num_rows == shard_size for table in tables[:-1])
    given = [row for table in tables for row in table.to_pylist()]
    counts = Counter(uid_of(url, caption) for url, caption in found)
    assert [row["uid"] for row in given] == list(counts)
    assert {row["uid"]: row["repeats"] + 1 for row in given} == dict(counts)
    assert sum(row["repeats"] + 1 for row in given) == len(found)


@pytest.mark.parametrize(
    ("name", "content", "settings", "words"),
    [
        ("lost.csv", None, {}, ["download.source", "lost.csv"]),
        ("list.cvs", None, {}, ["did you mean", "list.csv?"]),
        ("nothing.csv", b"", {}, ["download.source", "no rows", "nothing.csv"]),
        ("header.csv", b"url,caption\n", {}, ["no rows", "header.csv"]),
        ("a.csv", b"link to,caption\nb,c\n", {}, ["download.url_column", "'link to'", "a.csv"]),
        ("a.csv", CSV, {"url_column": "ulr"}, ["download.url_column", "did you mean 'url'?"]),
        (
            "a.csv",
            CSV,
            {"caption_column": "Caption"},
            ["caption_column", "did you mean 'caption'?"],
        ),
        (
            "bare.tsv",
            b"a cat\thttp://a.test/1\n",
            {"url_column": "url"},
            ["download.url_column", "no column 'url'"],
        ),
        (
            "a.docx",
            b"x",
            {},
            ["download.source", "csv, tsv, txt, parquet, jsonl or json", "a.docx"],
        ),
        ("a.parquet", b"PAR1 junk", {}, ["cannot be read as parquet", "a.parquet"]),
        ("a.csv.gz", b"not gzip", {}, ["cannot be read as csv", "a.csv.gz"]),
        ("a.jsonl", b"[\n1\n]\n", {}, ["one JSON object per line", "a.jsonl"]),
        ("a.csv", b"url\n" + b"x" * 17 * 2**20, {}, ["longer than 16 MiB", "a.csv"]),
        ("a.jsonl", b"x" * 17 * 2**20, {}, ["longer than 16 MiB", "a.jsonl"]),
        (
            "a.csv",
            b'url\n"' + (b"x" * 2**20 + b"\n") * 17,
            {},
            ["cannot be read as csv", "not closed within 16 MiB", "begins at line 2"],
        ),
        ("a.parquet.gz", b"x", {}, ["decompress it", "a.parquet.gz"]),
        ("a.json", b"", {}, ["cannot be read as json", "a.json"]),
        ("a.json", b'{"url": "a"}\n{"url": "b"}', {}, ["a.json", "name JSON Lines .jsonl"]),
        ("a.json", b'{"a": 1}', {}, ["a.json", "`image_urls` and `captions` (SBU)"]),
        ("a.json", b'{"image_urls": ["a", "b', {}, ["a.json", "character 21"]),
        ("a.json", b'{"image_urls": ["a" "b"]}', {}, ["a.json", "instead of ']'"]),
        ("a.json", b'[{"url": "a"}', {}, ["a.json", "the end of the file"]),
        ("a.json", b'{"captions": ' + b"[" * 10**5, {}, ["a.json", "cannot be read as json"]),
        ("a.json", b'["' + b"x" * 17 * 2**20, {}, ["a.json", "within 16 MiB"]),
    ],
)
def test_a_source_that_cannot_be_read_says_what_to_mend(
    tmp_path: Path, name: str, content: bytes | None, settings: dict[str, Any], words: list[str]
) -> None:
    write(tmp_path / "list.csv", CSV)
    if content is not None:
        write(tmp_path / name, content)
    with pytest.raises(ValueError) as error:
        sources.shards(DownloadConfig(source=str(tmp_path / name), **settings))
    assert all(word in str(error.value) for word in words), error.value


def test_a_list_that_changes_between_the_two_readings_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", CSV)
    tables = sources.shards(DownloadConfig(source=str(path)))
    write(path, CSV + b"http://a.test/3,a bird\n")
    with pytest.raises(ValueError, match="changed while it was read"):
        list(tables)


def test_a_changed_list_has_another_identity_and_digest(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", CSV)
    config = DownloadConfig(source=str(path))
    identity, content = sources.identity(config), sources.content_digest(config)
    assert json.loads(json.dumps(identity)) == identity
    os.utime(path, (1, 1))
    assert sources.identity(config) != identity
    assert sources.content_digest(config) == content
    write(path, CSV.replace(b"cat", b"cow"))
    assert sources.content_digest(config) != content


@pytest.mark.skipif(not CAPTIONS.exists(), reason="../shared/data/alttext is not here")
def test_ten_thousand_real_alt_texts_are_all_counted() -> None:
    found = rows(CAPTIONS)
    table = pq.read_table(CAPTIONS)
    assert sum(row["repeats"] + 1 for row in found) == table.num_rows
    assert len({row["uid"] for row in found}) == len(found)
    assert found[0]["caption"] == table["TEXT"][0].as_py()


PEAK = """
import sys
from pathlib import Path
from stages import sources

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

before = peak()
for path in sys.argv[1:]:
    config = sources.SourceConfig(source=path, shard_size=100)
    rows = sum(table.num_rows for table in sources.shards(config))
    print(rows, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_no_list_is_read_whole(tmp_path: Path) -> None:
    number, caption = 20_000, "word " * 1000
    urls = [f"http://a.test/{index}" for index in range(number)]
    with (tmp_path / "a.csv").open("w") as file:
        file.writelines(["url,caption\n", *(f"{url},{caption}\n" for url in urls)])
    with (tmp_path / "a.jsonl").open("w") as file:
        file.writelines(json.dumps({"url": url, "caption": caption}) + "\n" for url in urls)
    with (tmp_path / "a.json").open("w") as file:
        json.dump({"image_urls": urls, "captions": [caption] * number}, file)
    paths = [str(tmp_path / name) for name in ("a.csv", "a.jsonl", "a.json")]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *paths],
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    for line in done.stdout.splitlines():
        rows, growth = line.split()
        assert int(rows) == number
        assert float(growth) < 70, f"{growth} MiB for a list of 95 MiB"
