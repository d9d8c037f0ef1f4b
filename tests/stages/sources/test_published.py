"""Lists as people and projects publish them, and every export of this project, read back."""

from __future__ import annotations

import csv
import io
import itertools
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.fakes import SHARED, jpeg
from helpers.listings import contents, pairs, rows, write
from helpers.pools import pairs_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.training.data import read_json
from stages import sources
from stages.export import ExportConfig, ExportStage
from stages.formats import FORMATS, Shard
from stages.sources import Notices

URLS = [f"http://a.test/{number}.jpg" for number in range(5)]
WORDS = [
    "a red ball on the grass",
    "two dogs run along a beach",
    "an old man reads a newspaper",
    "a child paints a blue boat",
    "a train crosses the wide river",
]


# lists


@pytest.mark.parametrize("kind", ["csv", "tsv"])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_list_without_a_header_is_read_by_what_its_columns_hold(
    tmp_path: Path, kind: str, order: tuple[int, ...]
) -> None:
    columns = [list(map(str, range(5))), URLS, WORDS]
    mark = "," if kind == "csv" else "\t"
    lines = [mark.join(columns[index][n] for index in order) for n in range(5)]
    path = write(tmp_path / f"a.{kind}", "\n".join(lines))
    notices = Notices()
    found = [(row["url"], row["caption"]) for row in rows(path, notices)]
    assert found == list(zip(URLS, WORDS, strict=True))
    assert f"column {order.index(1) + 1} holds URLs" in notices.lines()[0]
    assert f"column {order.index(2) + 1} captions" in notices.lines()[0]


@pytest.mark.parametrize(
    "columns",
    [
        [URLS, [url.replace("jpg", "html") for url in URLS], WORDS],
        [URLS, WORDS, [f"{words} again" for words in WORDS]],
        [URLS, ["1"] * 5, ["x.jpg"] * 5],
        [URLS, URLS],
    ],
)
def test_a_list_without_a_header_that_is_ambiguous_is_refused(
    tmp_path: Path, columns: list[list[str]]
) -> None:
    path = write(tmp_path / "a.csv", "\n".join(map(",".join, zip(*columns, strict=True))))
    with pytest.raises(
        ValueError, match=r"a\.csv: its first line does not name the columns.*first line"
    ):
        rows(path)


CELL = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8).map(
    lambda text: text.replace("\r", "\n").replace("\0", "")
)


@given(texts=st.lists(CELL, min_size=1, max_size=6), kind=st.sampled_from(["csv", "tsv"]))
@settings(deadline=None, max_examples=150)
def test_what_the_module_csv_writes_is_read_back(texts: list[str], kind: str) -> None:
    texts = [f"x{text}x" for text in texts]  # a caption, and no list in a cell
    stream = io.StringIO(newline="")
    out = csv.writer(stream, dialect="excel" if kind == "csv" else "excel-tab")
    out.writerow(["url", "caption"])
    out.writerows((f"u/{number}", text) for number, text in enumerate(texts))
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / f"a.{kind}", stream.getvalue())
        assert pairs(path) == [(f"u/{number}", text) for number, text in enumerate(texts)]


PLAIN = st.text('ab "', min_size=1, max_size=8)


@given(texts=st.lists(PLAIN, min_size=1, max_size=8))
@settings(deadline=None, max_examples=200)
def test_quotes_of_a_plain_tsv_join_no_lines(texts: list[str]) -> None:
    lines = [f"http://a.test/{number}\t{text}" for number, text in enumerate(texts)]
    with tempfile.TemporaryDirectory() as folder:
        found = pairs(write(Path(folder) / "a.tsv", "\n".join(lines)))
    assert [url for url, _ in found] == [f"http://a.test/{n}" for n in range(len(texts))]
    for text, (_, caption) in zip(texts, found, strict=True):
        inner = text[1:-1]
        is_quoted = (
            len(text) > 1 and text[0] == text[-1] == '"' and '"' not in inner.replace('""', "")
        )
        wanted = inner.replace('""', '"') if is_quoted else text
        assert caption == (wanted if wanted.strip() else None)


JUNK = {
    "csv": ["http://a.test/x", "a,b,c", "\\", "a"],
    "tsv": ["a\tb\tc", "a"],
    "jsonl": ["{", "[1]", "7", '{"url": 3}', '{"caption": "of nothing"}', "null"],
}


@given(
    kind=st.sampled_from(["csv", "tsv", "jsonl"]),
    shape=st.lists(st.booleans(), min_size=1, max_size=12),
    data=st.data(),
)
@settings(deadline=None, max_examples=100)
def test_each_record_that_cannot_be_read_is_a_row_with_its_line(
    kind: str, shape: list[bool], data: st.DataObject
) -> None:
    lines, faults = [], []
    header = kind != "jsonl"
    mark = "," if kind == "csv" else "\t"
    for number, is_good in enumerate(shape):
        if is_good:
            entry = {"url": f"http://a.test/{number}", "caption": "a cat"}
            lines.append(json.dumps(entry) if kind == "jsonl" else mark.join(entry.values()))
        else:
            lines.append(data.draw(st.sampled_from(JUNK[kind])))
            faults.append(number + 1 + header)
    head = [f"url{mark}caption"] if header else []
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / f"a.{kind}", "\n".join([*head, *lines]))
        try:
            found = rows(path)
        except ValueError as error:
            assert f"a.{kind}" in str(error) and 2 * len(faults) > len(shape)
            return
    assert len(found) == len(shape) and all(row["repeats"] == 0 for row in found)
    bad = [row["url"] for row in found if row["fault"] == "malformed"]
    assert bad == [f"web/a.{kind}:{line}" for line in faults]


def test_a_list_most_of_whose_records_do_not_fit_is_refused_early(tmp_path: Path) -> None:
    lines = ["url,caption", *("http://a.test/,a, b" for _ in range(1500))]
    path = write(tmp_path / "a.csv", "\n".join(lines))
    with pytest.raises(
        ValueError, match=r"1,000 of 1,000 records cannot be read, the first is .*a\.csv:2"
    ):
        rows(path, limit=1200)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_what_is_empty_blank_or_nan_is_null_in_every_format(tmp_path: Path, kind: str) -> None:
    texts = ["", " ", "nan", "NaN", "\u00a0", "a cat"]
    urls = [f"http://a.test/{number}" for number in range(len(texts))]
    path = tmp_path / f"a.{kind}"
    entries = [{"url": u, "caption": c} for u, c in zip(urls, texts, strict=True)]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(entries), path)
    elif kind in ("jsonl", "json"):
        lines = list(map(json.dumps, entries))
        write(path, "\n".join(lines) if kind == "jsonl" else f"[{','.join(lines)}]")
    else:
        mark = "," if kind == "csv" else "\t"
        write(path, "\n".join([f"url{mark}caption", *(mark.join(e.values()) for e in entries)]))
    assert pairs(path) == [*((url, None) for url in urls[:-1]), (urls[-1], "a cat")]


def test_a_txt_is_a_list_of_urls(tmp_path: Path) -> None:
    lines = [*URLS[:2], "", "http://a.test/crop=1,2.jpg?a=b c", "//a.test/x.jpg", "no url", URLS[3]]
    path = write(tmp_path / "a.txt", "\n".join(lines))
    found = rows(path)
    assert [row["url"] for row in found if row["fault"] is None] == [
        *URLS[:2],
        "http://a.test/crop=1,2.jpg?a=b c",
        "//a.test/x.jpg",
        URLS[3],
    ]
    assert [row["url"] for row in found if row["fault"]] == ["web/a.txt:6"]
    with pytest.raises(ValueError, match=r"a \.txt list must have one URL per line"):
        rows(write(tmp_path / "b.txt", "just words\n"))


# published


@pytest.fixture
def at_hand(tmp_path: Path) -> Path:
    for number in range(3):
        write(tmp_path / "val2014" / f"{number}.jpg", jpeg(number))
        write(tmp_path / f"{number}.jpg", jpeg(number))
    return tmp_path


KARPATHY = {
    "dataset": "coco",
    "images": [
        {
            "filename": f"{number}.jpg",
            "filepath": "val2014",
            "imgid": number,
            "cocoid": 10 + number,
            "split": ["train", "restval", "test"][number],
            "sentences": [{"raw": f"{WORDS[number]}, {n}", "tokens": ["x"]} for n in range(5)],
        }
        for number in range(3)
    ],
}


def test_karpathys_splits_are_read_with_five_captions_an_image(at_hand: Path) -> None:
    path = write(at_hand / "dataset_coco.json", json.dumps(KARPATHY))
    whole = [(jpeg(number), f"{WORDS[number]}, {n}") for number in range(3) for n in range(5)]
    for images in (None, str(at_hand), str(at_hand / "val2014")):
        assert contents(path, images=images) == whole
    assert contents(path, split="test") == whole[10:]
    assert contents(path, split=("train", "restval")) == whole[:10]
    assert [row["source_uid"] for row in rows(path)][::5] == ["10", "11", "12"]
    with pytest.raises(ValueError, match="`split` is for Karpathy's JSON files"):
        rows(write(at_hand / "a.csv", "url\nu\n"), split="train")


def test_redcaps_is_read(tmp_path: Path) -> None:
    entries = [
        {"image_id": f"x{n}", "author": "-", "url": url, "raw_caption": words, "caption": words}
        for n, (url, words) in enumerate(zip(URLS, WORDS, strict=True))
    ]
    path = write(tmp_path / "a.json", json.dumps({"info": {"year": 2020}, "annotations": entries}))
    assert pairs(path) == list(zip(URLS, WORDS, strict=True))
    assert rows(path)[3]["source_uid"] == "x3"


def test_coco_without_urls_and_images_says_what_to_set(at_hand: Path) -> None:
    coco = {
        "annotations": [{"image_id": n, "caption": WORDS[n]} for n in range(3)],
        "images": [{"id": n, "file_name": f"{n}.jpg"} for n in range(3)],
    }
    path = write(at_hand / "captions.json", json.dumps(coco))
    with pytest.raises(ValueError, match=r"have no `coco_url`; set `images` of the source"):
        rows(path)
    assert contents(path, images=str(at_hand)) == [(jpeg(n), WORDS[n]) for n in range(3)]


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_json_of_blip_and_llava_is_read_beside_its_images(at_hand: Path, kind: str) -> None:
    blip = [{"image": f"{n}.jpg", "caption": WORDS[n]} for n in range(3)]
    human = {"from": "human", "value": "<image>\nDescribe."}
    llava = [
        {
            "id": str(n),
            "image": f"{n}.jpg",
            "conversations": [human, {"from": "gpt", "value": WORDS[n]}],
        }
        for n in range(3)
    ]
    for entries in (blip, llava):
        lines = list(map(json.dumps, entries))
        content = f"[{','.join(lines)}]" if kind == "json" else "\n".join(lines)
        path = write(at_hand / f"a.{kind}", content)
        assert contents(path) == [(jpeg(n), WORDS[n]) for n in range(3)]
    more = [*llava[0]["conversations"], human, {"from": "gpt", "value": "no caption"}]  # type: ignore[misc]
    notices = Notices()
    path = write(at_hand / "b.json", json.dumps([{"image": "0.jpg", "conversations": more}]))
    assert [row["caption"] for row in rows(path, notices)] == [None]
    assert "a conversation without exactly one answer" in notices.lines()[0]


def test_files_that_a_list_names_stay_in_its_folder(at_hand: Path) -> None:
    inner = at_hand / "inner"
    write(inner / "a.jpg", jpeg(9))
    names = ["a.jpg", "../0.jpg", str(at_hand / "0.jpg"), "lost.jpg"]
    path = write(inner / "a.jsonl", "\n".join(json.dumps({"image": n, "text": n}) for n in names))
    notices = Notices()
    assert len(rows(path, notices)) == 4
    assert notices.lines() == ["files named by a list that do not exist: 3, the first ../0.jpg"]
    assert [content for content, _ in contents(path)] == [
        *(jpeg(9), "outside_source"),
        *("outside_source", "missing"),
    ]


# exports

TEXTS = [["a dog", "a brown dog"], ["a house\nby the sea"], ["ein Fluß", "x", "犬"]]


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "mds"])
def test_every_export_is_read_back_to_the_same_pairs(
    tmp_path: Path, name: str, is_split: bool
) -> None:
    form = FORMATS[name](shard_size=100, is_split=is_split, seed=0)
    shards = {Shard(split="train", number=0): pairs_of(TEXTS)}
    shards[Shard(split="train", number=1)] = pairs_of([["one"]], 10)
    if is_split:
        shards[Shard(split="validation", number=0)] = pairs_of([["held out", "set apart"]], 20)
    lists: dict[str, list[bytes]] = {}
    for shard, table in shards.items():
        for path, content in form.files(shard, table):
            write(tmp_path / path, content)
        entries = [json.dumps(entry).encode() for entry in form.entries(shard, table)]
        lists.setdefault(shard.split, []).extend(entries)
    for _, path, content in form.index(lists) if form.has_index else ():
        write(tmp_path / path, content)
    write(tmp_path / "manifest.json", json.dumps({"files": []}))
    write(tmp_path / "_export.json", "{}")
    whole = [row for table in shards.values() for row in table.to_pylist()]
    if name == "urls":
        wanted: list[Any] = [(row["url"], row["caption"]) for row in whole]
        assert Counter(pairs(tmp_path)) == Counter(wanted)
        return
    if name == "sidecars":  # one caption an image
        whole = [row for row in whole if row["caption_source"] == "web"]
    wanted = [(row["image"]["bytes"], row["caption"]) for row in whole]
    assert Counter(contents(tmp_path)) == Counter(wanted)
    if name in ("llava", "blip"):
        found = [pair for split in lists for pair in contents(tmp_path / f"{split}.json")]
        assert Counter(found) == Counter(wanted)
        read = [sample for split in lists for sample in read_json(str(tmp_path / f"{split}.json"))]
    else:
        read = sources.samples(str(tmp_path))
    assert Counter((s.read(), text) for s in read for text in s.captions) == Counter(wanted)


def test_whatever_has_images_and_captions_is_read_as_human_pairs(at_hand: Path) -> None:
    karpathy = write(at_hand / "people.json", json.dumps(KARPATHY))
    folder = at_hand / "folder"
    write(folder / "a.jpg", jpeg(5))
    write(folder / "a.txt", "a fifth")
    write(folder / "b.jpg", jpeg(6))
    stage = ExportStage(ExportConfig(human=(str(karpathy), str(folder))))
    found = [row for _, table in stage.human_pairs() for row in table.to_pylist()]
    assert len(found) == 16 and len({row["uid"] for row in found}) == 4
    assert [row["source"] for row in found][14:] == ["people", "folder"]
    assert found[15]["caption"] == "a fifth"


# shared data


@pytest.mark.skipif(not (SHARED / "data/alttext").exists(), reason="../shared/data is not here")
@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl", "parquet"])
def test_no_caption_of_real_alt_texts_is_lost(tmp_path: Path, kind: str) -> None:
    table = pq.read_table(SHARED / "data/alttext/laion_10k.parquet", columns=["URL", "TEXT"])
    urls, texts = table["URL"].to_pylist(), table["TEXT"].to_pylist()
    path = tmp_path / f"a.{kind}"
    if kind == "tsv":  # as CC3M: no header, no quoting
        texts = [" ".join((text or "").split()) for text in texts]
        write(path, "\n".join(f"{t}\t{u}" for t, u in zip(texts, urls, strict=True)))
    elif kind == "csv":
        stream = io.StringIO(newline="")
        csv.writer(stream).writerows([("url", "caption"), *zip(urls, texts, strict=True)])
        write(path, stream.getvalue())
    elif kind == "jsonl":
        lines = [{"url": u, "text": t} for u, t in zip(urls, texts, strict=True)]
        write(path, "\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    else:
        pq.write_table(table, path)
    found = rows(path)
    assert sum(row["repeats"] + 1 for row in found) == len(texts)
    assert not any(row["fault"] for row in found)
    read = Counter()
    for row in found:
        read[row["caption"]] += row["repeats"] + 1
    given = Counter(
        None if not (text or "").strip() or text.strip().lower() == "nan" else text
        for text in (_unquoted(text) if kind == "tsv" else text for text in texts)
    )
    if kind == "csv":  # a blank after a comma is not part of a text
        read, given = (
            Counter({k and k.lstrip(" "): v for k, v in counts.items()}) for counts in (read, given)
        )
    assert read == given


def _unquoted(text: str) -> str:
    inner = text[1:-1]
    is_quoted = len(text) > 1 and text[0] == text[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if is_quoted else text


@pytest.mark.skipif(not (SHARED / "data/flickr8k").exists(), reason="../shared/data is not here")
@pytest.mark.parametrize("name", ["flickr8k", "coco"])
def test_five_human_captions_of_each_real_photograph_are_read(name: str) -> None:
    folder = SHARED / "data" / name
    lines = (folder / "captions.tsv").read_text().splitlines()
    found = sources.samples(str(folder))
    captions = sum(len(sample.captions) for sample in found)
    assert captions == len(lines) and len(found) == len(list((folder / "images").iterdir()))
    found = sources.samples(str(folder / "captions.tsv"), str(folder / "images"))
    assert sum(len(sample.captions) for sample in found) == captions


@pytest.mark.skipif(not (SHARED / "data/alttext").exists(), reason="../shared/data is not here")
@pytest.mark.parametrize("page", ["cp1252", "cp1250", "cp1251"])
def test_real_alt_texts_in_a_code_page_are_read_right_or_refused(tmp_path: Path, page: str) -> None:
    texts = pq.read_table(SHARED / "data/alttext/laion_10k.parquet")["TEXT"].to_pylist()
    some = [text for text in texts if text and text == text.strip() and _is_in(text, page)]
    results = Counter()
    for start in range(0, len(some) - 100, 400):
        part = list(dict.fromkeys(some[start : start + 40]))
        if all(text.isascii() for text in part):
            continue
        lines = [{"url": f"u/{n}", "caption": text} for n, text in enumerate(part)]
        content = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
        path = write(tmp_path / "a.jsonl", content.encode(page))
        try:
            found = [row["caption"] for row in rows(path)]
        except ValueError as error:
            assert "a.jsonl: line " in str(error)
            results["refused"] += 1
        else:
            assert found == part
            results["read"] += 1
    assert results["read"] > results["refused"]


def _is_in(text: str, page: str) -> bool:
    try:
        text.encode(page)
    except UnicodeEncodeError:
        return False
    return True
