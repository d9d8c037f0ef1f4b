# ruff: noqa: RUF001
"""Captions of every type, at every place and in every encoding where people keep them."""

from __future__ import annotations

import io
import json
import math
import tarfile
import tempfile
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.fakes import jpeg
from helpers.listings import contents, rows, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.sources import Notices
from stages.sources.captions import MAX_CAPTIONS, captions_of
from stages.sources.encoding import detect

IMAGE = jpeg(1, (32, 32))
URL = "http://a.test/1.jpg"


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def captions(path: Path, notices: Notices | None = None, **fields: Any) -> list[str | None]:
    return [row["caption"] for row in rows(path, notices, **fields)]


# types

TEXT = st.text(st.characters(codec="utf-8", exclude_characters='\r\n\t"\0'), max_size=6)
SCALAR = st.one_of(
    TEXT,
    st.sampled_from(["", "  ", "nan", "NaN", "\u200b"]),
    st.none(),
    st.integers(-(10**12), 10**12),
    st.floats(allow_infinity=False),
    st.booleans(),
    st.just({"a": 1}),
    st.builds(lambda text: {"raw": text, "tokens": ["x"]}, TEXT),
)
VALUE = SCALAR | st.lists(SCALAR, max_size=4)


def expected(value: Any) -> list[str]:
    """What the rule says in other words than the code."""
    if isinstance(value, list):
        return [text for one in value for text in expected(one)]
    if isinstance(value, dict):
        return expected(value.get("raw"))
    if value is None or isinstance(value, bool):
        return []
    if isinstance(value, int | float):
        return [] if math.isnan(value) else [str(value)]
    seen = [c for c in value if c.isprintable() and not c.isspace()]
    return [value] if seen and value.strip().lower() != "nan" else []


def as_rows(texts: list[str]) -> list[str | None]:
    return list(dict.fromkeys(texts)) or [None]


def _jsonl(folder: Path, value: Any) -> Path:
    return write(folder / "a.jsonl", json.dumps({"url": URL, "caption": value}))


def _json(folder: Path, value: Any) -> Path:
    return write(folder / "a.json", json.dumps([{"url": URL, "caption": value}]))


def _redcaps(folder: Path, value: Any) -> Path:
    entries = [{"image_id": "x", "url": URL, "caption": value}]
    return write(folder / "a.json", json.dumps({"info": {}, "annotations": entries}))


def _metadata(folder: Path, value: Any) -> Path:
    write(folder / "p/in/a.jpg", IMAGE)
    write(folder / "p/in/metadata.jsonl", json.dumps({"file_name": "a.jpg", "caption": value}))
    return folder / "p"


def _sidecar(folder: Path, value: Any) -> Path:
    write(folder / "p/a.jpg", IMAGE)
    write(folder / "p/a.json", json.dumps({"caption": value}))
    return folder / "p"


def _tar(folder: Path, value: Any) -> Path:
    members = {"a.jpg": IMAGE, "a.json": json.dumps({"captions": value}).encode()}
    return tar(folder / "a.tar", members)


def _local(folder: Path, value: Any) -> Path:
    write(folder / "a.jpg", IMAGE)
    return write(folder / "a.jsonl", json.dumps({"image": "a.jpg", "caption": value}))


PLACES: list[Callable[[Path, Any], Path]] = [
    *(_jsonl, _json, _redcaps),
    *(_metadata, _sidecar, _tar, _local),
]


@given(value=VALUE, place=st.sampled_from(PLACES))
@settings(deadline=None, max_examples=150)
def test_a_caption_of_any_type_is_read_by_one_rule_everywhere(
    value: Any, place: Callable[[Path, Any], Path]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        notices = Notices()
        assert captions(place(Path(folder), value), notices) == as_rows(expected(value))
        odd = captions_of(value).skipped
        assert any("caption values that are not text" in line for line in notices) == bool(odd)


@given(values=st.lists(st.none() | st.lists(st.none() | TEXT, max_size=3), min_size=1, max_size=9))
@settings(deadline=None, max_examples=60)
def test_lists_of_parquet_are_several_captions(values: list[Any]) -> None:
    kinds = (pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.binary()))
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            packed = [v and [t and t.encode() for t in v] for v in values]
            column = pa.array(packed if kind.value_type == pa.binary() else values, kind)
            urls = [f"{URL}?{n}" for n in range(len(values))]
            path = Path(folder) / "a.parquet"
            pq.write_table(pa.table({"url": urls, "caption": column}), path, row_group_size=4)
            found = [(row["url"], row["caption"]) for row in rows(path)]
            assert found == [
                (url, text)
                for url, value in zip(urls, values, strict=True)
                for text in as_rows(expected(value or []))
            ]


def packed(values: list[Any], kind: pa.DataType) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int8()), pa.array(values, kind))


@pytest.mark.parametrize(
    ("column", "read"),
    [
        (pa.array([1, None]), ["1", None]),
        (pa.array([1.5, math.nan]), ["1.5", None]),
        (pa.array(["a", "nan"]).dictionary_encode(), ["a", None]),
        (packed(["a", "nan"], pa.large_string()), ["a", None]),
        (packed([b"a", b"\x81"], pa.binary()), ["a", None]),
        (pa.array(["a", " "], pa.large_string()), ["a", None]),
        (pa.array(["a", ""], pa.string_view()), ["a", None]),
        (pa.array([b"a", b"\x81"], pa.binary_view()), ["a", None]),
        (pa.array([["a", "b"], None], pa.list_(pa.string(), 2)), ["a", "b", None]),
        (pa.array([{"raw": "a"}, None]), ["a", None]),
        (pa.array([[{"raw": "a"}, {"raw": "b"}], []]), ["a", "b", None]),
        (pa.array([True, False]), [None, None]),
        (pa.array([None, None]), [None, None]),
    ],
)
def test_columns_of_parquet_of_any_type_are_read_or_counted(
    tmp_path: Path, column: Any, read: list[str | None]
) -> None:
    pq.write_table(pa.table({"url": ["u/1", "u/2"], "caption": column}), tmp_path / "a.parquet")
    notices = Notices()
    assert captions(tmp_path / "a.parquet", notices) == read
    is_odd = pa.types.is_boolean(column.type) or b"\x81" in column.to_pylist()
    assert any("caption values that are not text" in line for line in notices) == is_odd


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_list_in_a_cell_is_several_captions(tmp_path: Path, kind: str) -> None:
    cell = json.dumps(["a cat", "a dog, or two"])
    quoted = '"' + cell.replace('"', '""') + '"'
    mark = "," if kind == "csv" else "\t"
    path = write(tmp_path / f"a.{kind}", f"url{mark}raw\n{URL}{mark}{quoted}\n")
    assert captions(path) == ["a cat", "a dog, or two"]


def test_what_is_null_leaves_the_word_to_the_next_place(tmp_path: Path) -> None:
    lines = [
        {"url": "u/1", "caption": None, "text": "from text"},
        {"url": "u/2", "caption": " ", "alt": "from alt"},
        {"url": "u/3", "captions": [], "caption": "from caption"},
        {"url": "u/4", "caption": True, "title": "from title"},
        {"url": "u/5", "captions": ["one", "two"], "caption": "one"},
    ]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)))
    assert captions(path) == [
        *("from text", "from alt", "from caption", "from title"),
        *("one", "two"),
    ]
    named = captions(path, caption_column="caption")
    assert named == [None, None, "from caption", None, "one"]
    photos = tmp_path / "photos"
    for name, meta, text in (
        ("a", {"caption": None}, "from txt"),
        ("b", {"caption": "nan", "title": "from title"}, "  "),
        ("c", {"text": "from json"}, "from txt"),
    ):
        write(photos / f"{name}.jpg", IMAGE)
        write(photos / f"{name}.json", json.dumps(meta))
        write(photos / f"{name}.txt", text)
    write(photos / "metadata.jsonl", json.dumps({"file_name": "a.jpg", "text": None}))
    assert captions(photos) == ["from txt", "from title", "from txt"]


def test_a_key_that_appears_after_thousands_of_records_is_read(tmp_path: Path) -> None:
    lines = [json.dumps({"url": f"u/{n}"}) for n in range(3000)]
    lines.append(json.dumps({"url": "u/late", "caption": "late", "words": "later"}))
    for path in (
        write(tmp_path / "a.jsonl", "\n".join(lines)),
        write(tmp_path / "a.json", f"[{','.join(lines)}]"),
    ):
        assert captions(path)[-1] == "late"
        assert captions(path, caption_column="words")[-1] == "later"
        with pytest.raises(ValueError, match="no column 'wrods'"):
            captions(path, caption_column="wrods")


def test_captions_beyond_the_most_are_counted(tmp_path: Path) -> None:
    notices = Notices()
    path = _jsonl(tmp_path, [f"caption {n}" for n in range(MAX_CAPTIONS + 5)])
    assert len(captions(path, notices)) == MAX_CAPTIONS
    assert f"more than {MAX_CAPTIONS} captions of one image" in notices.lines()[0]


# places

STEM = st.text("ab. -\u00e9\u72ac", min_size=1, max_size=6).filter(
    lambda stem: stem.strip(" .") and not stem.startswith(".") and not stem.endswith((" ", "."))
)
BESIDE = [
    "{stem}.txt",
    "{stem}.TXT",
    "{stem}.caption",
    "{stem}.json",
    "{stem}.JSON",
    "{stem}.jpg.txt",
    "{stem}.caption.txt",
]


@given(
    stems=st.lists(STEM, min_size=1, max_size=3, unique_by=str.casefold),
    form=st.sampled_from(BESIDE),
    ending=st.sampled_from(["jpg", "JPG", "jfif", "image.png", ""]),
    composed=st.booleans(),
    is_tar=st.booleans(),
)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.filter_too_much])
def test_a_text_beside_an_image_is_found_whatever_the_two_are_called(
    stems: list[str], form: str, ending: str, composed: bool, is_tar: bool
) -> None:
    if ending in ("image.png", "") and form in ("{stem}.jpg.txt",):
        return
    if ending == "" and (is_tar or "." in "".join(stems)):
        return  # without an ending, a name with a dot has another one
    members: dict[str, bytes] = {}
    said: dict[str, str] = {}
    for stem in stems:
        image = f"{stem}.{ending}".rstrip(".")
        members[image] = IMAGE
        text = form.format(stem=stem)
        if form == "{stem}.jpg.txt":
            text = f"{image}.txt"
        text = unicodedata.normalize("NFC" if composed else "NFD", text)
        words = f"a caption of {stem}"
        is_json = text.lower().endswith(".json")
        members[text] = (json.dumps({"text": words}) if is_json else words).encode()
        said[image] = words
    if len(members) != 2 * len(stems):
        return
    with tempfile.TemporaryDirectory() as folder:
        if is_tar:
            path = tar(Path(folder) / "a.tar", members)
        else:
            path = Path(folder) / "photos/in"
            for name, content in members.items():
                write(path / name, content)
        found = {row["url"].rsplit("/", 1)[1]: row["caption"] for row in rows(path)}
    expected = {image: words for image, words in said.items()}
    assert found == expected


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize(
    "name",
    [
        "in/caf\u00e9.jpg",
        "./in/caf\u00e9.jpg",
        "in\\caf\u00e9.jpg",
        "photos/in/caf\u00e9.jpg",
        "photos\\in\\caf\u00e9.jpg",
        "in/cafe\u0301.jpg",
        "data/photos/in/caf\u00e9.jpg",
        "/home/me/photos/in/caf\u00e9.jpg",
        "C:\\data\\photos\\in\\caf\u00e9.jpg",
    ],
)
def test_metadata_finds_an_image_whatever_it_calls_it(tmp_path: Path, kind: str, name: str) -> None:
    for form in ("NFC", "NFD"):
        photos = tmp_path / form / "photos"
        write(photos / "in" / unicodedata.normalize(form, "caf\u00e9.jpg"), IMAGE)
        if kind == "jsonl":
            write(photos / "metadata.jsonl", json.dumps({"file_name": name, "text": "a cat"}))
        else:
            write(photos / "metadata.csv", f"file_name,text\n{name},a cat\n")
        assert contents(photos) == [(IMAGE, "a cat")]


def test_metadata_gives_no_caption_to_another_image_of_the_same_name(tmp_path: Path) -> None:
    for name in ("0.jpg", "in/0.jpg"):
        write(tmp_path / "photos" / name, IMAGE)
    names = ["other/0.jpg", "/home/me/other/0.jpg", "../0.jpg", "in/1.jpg"]
    lines = [json.dumps({"file_name": name, "text": "of another"}) for name in names]
    write(tmp_path / "photos/metadata.jsonl", "\n".join(lines))
    notices = Notices()
    found = rows(tmp_path / "photos", notices)
    assert [row["caption"] for row in found] == ["of another"] * 4 + [None] * 2
    assert notices.lines()[0].startswith("files named by a list that do not exist: 4")


def test_metadata_of_any_folder_is_read(tmp_path: Path) -> None:
    for split, number in (("train", 1), ("train", 2), ("validation", 3)):
        write(tmp_path / split / f"{number}.jpg", jpeg(number))
    write(tmp_path / "train/metadata.csv", "file_name,text\n1.jpg,one\ntrain/2.jpg,two\n")
    write(
        tmp_path / "validation/metadata.jsonl", '{"file_name": "3.jpg", "captions": ["3", "drei"]}'
    )
    assert contents(tmp_path) == [
        *((jpeg(1), "one"), (jpeg(2), "two")),
        *((jpeg(3), "3"), (jpeg(3), "drei")),
    ]


def test_hidden_and_system_files_are_left_out_and_counted(tmp_path: Path) -> None:
    hidden = ["._a.jpg", ".thumbnails/a.jpg", "__MACOSX/._a.jpg", "@eaDir/a.jpg/x.jpg", "Thumbs.db"]
    for name in ("a.jpg", "_DSC1.jpg", *hidden):
        write(tmp_path / "p" / name, IMAGE)
    notices = Notices()
    assert [row["url"] for row in rows(tmp_path / "p", notices)] == ["web/_DSC1.jpg", "web/a.jpg"]
    assert notices.lines()[0].startswith(
        "hidden files and files of the operating system, which are left out: 5"
    )
    path = tar(tmp_path / "a.tar", {n: IMAGE for n in ("a.jpg", "._a.jpg", "__MACOSX/._b.jpg")})
    notices = Notices()
    assert [row["url"] for row in rows(path, notices)] == ["web/a.tar/a.jpg"]
    assert "left out: 2, the first" in notices.lines()[0]
    for name in ("part-0.csv", "._part-0.csv", "_part-1.csv"):
        write(tmp_path / "lists" / name, "url,caption\nu,a\n" if name[0] == "p" else "\0\1")
    for where in (tmp_path / "lists", tmp_path / "lists/*.csv"):
        notices = Notices()
        assert captions(where, notices) == ["a"]
        assert "left out" in notices.lines()[0]


def test_what_begins_as_an_image_is_one_whatever_its_ending(tmp_path: Path) -> None:
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
    files = {"a.dat": IMAGE, "b": IMAGE, "c.heic": heic, "d.bin": heic, "e.md": b"words"}
    for name, content in files.items():
        write(tmp_path / "p" / name, content)
    assert [row["url"] for row in rows(tmp_path / "p")] == [
        f"web/{name}" for name in list(files)[:4]
    ]
    bare = tmp_path / "bare"
    write(bare / "0001", IMAGE)
    assert contents(bare) == [(IMAGE, None)]
    path = tar(tmp_path / "a.tar", {**files, "f.cls": b"1"})
    assert len(rows(path)) == 4


def test_what_is_not_used_is_told(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        write(tmp_path / name, IMAGE)
    write(tmp_path / "a.txt", "a cat")
    write(tmp_path / "c.txt", "of nothing")
    notices = Notices()
    assert captions(tmp_path, notices) == ["a cat", None]
    assert notices.lines() == [
        "text files without an image of the same name, which are not used: 1, the first c.txt",
        "images without a caption, among images that have one: 1, the first b.jpg",
    ]


# encodings

WORDS = {
    "ascii": "two dogs run along the beach",
    "western": "Un café près de la rivière, l’été – déjà vu",
    "cyrillic": "Собака бежит по пляжу за красным мячом",
    "japanese": "犬が赤いボールを追いかけて浜辺を走る",
    "emoji": "a dog 🐶 at sea",
}
ENCODINGS = [
    *("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"),
    *("cp1252", "cp1251", "cp932"),
]


def _encoded_places(folder: Path, text: str, encoding: str) -> dict[str, Path]:
    """The same caption in the same encoding at every place that holds text."""

    def encoded(content: str) -> bytes:
        return content.encode(encoding)

    entry = {"url": URL, "caption": text}
    paths = {
        "csv": write(folder / "a.csv", encoded(f"url,caption\n{URL},{text.replace(',', '')}\n")),
        "tsv": write(folder / "a.tsv", encoded(f"url\tcaption\n{URL}\t{text}\n")),
        "jsonl": write(folder / "a.jsonl", encoded(json.dumps(entry, ensure_ascii=False) + "\n")),
        "json": write(folder / "a.json", encoded(json.dumps([entry], ensure_ascii=False))),
    }
    for name, content in {
        "txt": {"a.txt": encoded(text + "\n")},
        "caption": {"a.caption": encoded(text)},
        "meta": {"a.json": encoded(json.dumps({"caption": text}, ensure_ascii=False))},
        "metadata": {
            "metadata.jsonl": encoded(
                json.dumps({"file_name": "a.jpg", "text": text}, ensure_ascii=False)
            )
        },
    }.items():
        for file, raw in content.items():
            write(folder / name / "a.jpg", IMAGE)
            paths[name] = write(folder / name / file, raw).parent
    paths["tar"] = tar(folder / "a.tar", {"a.jpg": IMAGE, "a.txt": encoded(text)})
    return paths


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("script", WORDS)
def test_a_caption_is_read_in_its_encoding_at_every_place(
    tmp_path: Path, script: str, encoding: str
) -> None:
    text = WORDS[script]
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return
    unmarked = encoding in ("utf-16-le", "utf-16-be")
    rare = (script, encoding) in [("cyrillic", "cp932"), ("western", "cp1251")]
    for place, path in _encoded_places(tmp_path, text, encoding).items():
        is_sidecar = place in ("txt", "caption", "tar", "meta")
        if is_sidecar and (rare or (unmarked and script == "japanese" and place != "meta")):
            assert captions(path) in ([None], [text]), place
            continue
        wanted = text.replace(",", "") if place == "csv" else text
        try:
            assert captions(path) == [wanted], place
        except ValueError as error:  # other pairs than these are none that people have
            assert (script, encoding) in [("cyrillic", "cp932"), ("western", "cp1251")], place
            assert str(path) in str(error)


@given(
    text=st.text(st.characters(codec="cp1252", exclude_categories=["C"]), max_size=40),
    encoding=st.sampled_from(["cp1252", "utf-8", "utf-16", "utf-8-sig"]),
)
@settings(deadline=None, max_examples=150)
def test_a_text_of_unicode_is_read_and_one_of_a_code_page_never_as_unicode(
    text: str, encoding: str
) -> None:
    content = text.encode(encoding)
    found = detect(content)
    if encoding != "cp1252":
        assert found is not None and content.decode(found) == text
    elif not text.isascii() and found is not None and found.startswith("utf-8"):
        content.decode("utf-8")  # it is valid UTF-8 by chance


@given(content=st.binary(max_size=60))
@settings(deadline=None, max_examples=150)
def test_no_bytes_become_a_caption_with_a_replacement_character(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "a.jpg", IMAGE)
        write(Path(folder) / "a.txt", content)
        notices = Notices()
        (found,) = captions(Path(folder), notices)
        encoding = detect(content)
        if found is not None:  # it is what the bytes say in one encoding, without a replacement
            assert encoding is not None
            assert content.decode(encoding).rstrip("\r\n") == found
        if encoding is None:
            assert any("in an unknown encoding" in line for line in notices)


ENCODED = [
    ("pl", "Czarny pies biegnie po plaży za czerwoną piłką", "cp1250"),
    ("hu", "Egy fekete kutya fut az erdőben", "cp1250"),
    ("tr", "Köpek kırmızı topun peşinden sahilde koşuyor", "cp1254"),
    ("ru", WORDS["cyrillic"], "koi8_r"),
    ("zh", "一只狗在海滩上追着红球跑", "gb18030"),
    ("en", "a café – the “old” one’s terrace near the river", "cp1252"),
    ("en", "20°C and € 5", "cp1252"),
    ("en", "Lech Wałęsa speaks to the crowd in the square", "cp1250"),
]


@pytest.mark.parametrize(("language", "text", "encoding"), ENCODED)
def test_a_code_page_is_told_right_or_not_at_all(language: str, text: str, encoding: str) -> None:
    content = text.encode(encoding)
    found = detect(content)
    assert found is None or content.decode(found) == text
    if encoding == "cp1252":
        assert found == "cp1252"


def test_a_text_in_no_encoding_that_can_be_told_is_counted(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg", IMAGE)
    write(tmp_path / "a.txt", "caf\u00e9 ".encode() + b"caf\xe9")
    notices = Notices()
    assert captions(tmp_path, notices) == [None]
    assert notices.lines()[0].endswith(
        "in an unknown encoding, which are not read: 1, the first a.jpg"
    )
