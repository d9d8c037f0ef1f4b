"""Captions that are meant to harm: each goes through every stage, and into every file."""

from __future__ import annotations

import csv
import io
import json
import re
import tarfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.fakes import SHARED, jpeg, measure, tiny_blip
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from models.inference.matcher import Matcher
from models.text.captions import normalize
from models.text.noun_phrases import NounPhrases
from pipeline.execution.session import write_report
from pipeline.results.history import sample_history
from pipeline.results.open_run import open_results
from pipeline.results.tables import put, sample_tables
from pipeline.results.verdict_table import verdict_tables, write_verdicts
from pipeline.storage.run import Run
from stages import sources
from stages.clean import CleanConfig, CleanStage
from stages.dedup import DedupConfig, DedupStage
from stages.documents import parse
from stages.download import DownloadConfig
from stages.export import ExportConfig, ExportStage
from stages.formats import FORMATS, Shard
from stages.schema import POOL, uid_of

MEGA = 1_000_000
FORMULAS = ("=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1+1")
LONG = (
    "x" * MEGA,
    "dog " * (MEGA // 4),
    " ".join(map(str, range(MEGA // 7))),
    "<a" * (MEGA // 2),
    "&amp;" * (MEGA // 5),
    '"' * MEGA,
    "photo: " * (MEGA // 7),
    "e" + "\u0301" * MEGA,
    "&#" + "9" * MEGA + ";",
    " " * MEGA,
)
HOSTILE = (
    "",
    "a\0b",
    "\0",
    "\u202egod der a si siht",
    "\u2066\u2067 isolated \u2069",
    "\ufeff\u200b\u2060",
    "\U000e0041\U000e0042 tags",
    "\ufffd lone",
    "\U0010ffff\ufffe\uffff",
    "zalgo " + "a\u0301\u0328\u0315" * 200,
    "<script>alert(1)</script> a red house by the river",
    '"><img src=x onerror=alert(1)> two dogs on a beach',
    "</script></style></title><svg onload=alert(1)>",
    "{{ 7 * 7 }} {% raw %} ${7*7}",
    "]]> --> <!-- ",
    "\x1b[31mred\x1b[0m\x1b]0;title\x07 \x9b31m",
    "a\r\nb\u2028c\u2029d\x85e",
    "a,b;c\td|e'f\"g\\h",
    "<image> <EOC> [DEC] [SEP] [MASK] <|endoftext|>",
    "&#0;&#x110000;&#55296;&#99999999999;",
    "'; DROP TABLE pairs; --",
    "../../etc/passwd",
    *FORMULAS,
    "dog " * (MEGA // 4),
)


def pool(captions: tuple[str | None, ...] = HOSTILE) -> pa.Table:
    """A row of the pool for each caption, each with an image of its own."""
    rows = []
    for number, caption in enumerate(captions):
        url = f"http://u:pw@a.test/<b>{number}</b>.jpg?sig=secret{number}"
        image = jpeg(number, (64, 48))
        sides = {"width": 64, "height": 48, "original_width": 400, "original_height": 300}
        rows.append(
            {
                **dict.fromkeys(POOL.names),
                **sides,
                "uid": uid_of(url, caption),
                "source": "web",
                "url": url,
                "caption": caption,
                "repeats": 0,
                "status": "success",
                "image": image,
                "original_bytes": 9000,
                "sha256": f"{number:064x}",
            }
        )
    return pa.Table.from_pylist(rows, POOL)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_blip(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Run:
    """A run over all of them, every stage carried out."""
    run = Run(str(tmp_path_factory.mktemp("run")))
    run.write_table(pool(), "pool", "00000.parquet")
    content = {
        "name": "hostile",
        "run": run.root,
        "stages": {
            "download": {"source": "x"},
            "clean": {},
            "dedup": {},
            "caption": {"model": str(models / "captioner"), "max_length": 8},
            "filter": {"model": str(models / "matcher"), "min_itm": 0},
        },
    }
    measure(run, content)
    return run


def test_every_caption_has_a_verdict(run: Run) -> None:
    (table,) = verdict_tables(open_results(run), ["00000"])
    assert table["caption"].to_pylist() == list(HOSTILE)
    verdicts = dict(zip(HOSTILE, table["reason"].to_pylist(), strict=True))
    assert verdicts[""] == verdicts["\0"] == "empty_caption"
    stages = set(table["stage"].to_pylist())
    assert stages <= {"clean", "dedup", "filter", "kept"} and "kept" in stages


def test_captions_of_a_megabyte_are_measured_and_rejected() -> None:
    stage = CleanStage(CleanConfig())
    stage.load()
    rows = pool(LONG)
    annotated = stage.annotate(rows)
    reasons = stage.judge(annotated).to_pylist()
    assert set(reasons) <= set(stage.reasons) and reasons[-1] == "empty_caption"
    marked = DedupStage(DedupConfig()).annotate(rows)
    assert marked.num_rows == len(LONG)


class Tags(HTMLParser):
    """Which elements a page has, and with what attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_report_runs_and_tells_no_secret(run: Run) -> None:
    page = Path(write_report(open_results(run))).read_text(encoding="utf-8")
    tags = Tags(page).found
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert all(attributes.get("src", "data:").startswith("data:") for _, attributes in tags)
    assert "<script>alert" not in page and "\x1b" not in page
    whole = page.replace("<wbr>", "")  # where a URL may be broken
    assert "u:pw" not in whole and "secret0" not in whole and "sig=***" in whole
    assert len(page) < 5_000_000
    facts = run.read("report", "report.json")
    assert b"u:pw" not in facts and b"sig=secret" not in facts


@pytest.mark.parametrize("number", range(len(HOSTILE) - 1))
def test_each_can_be_shown_on_a_terminal(run: Run, number: int) -> None:
    uid = str(pool()["uid"][number].as_py())
    found = sample_history(open_results(run), uid)
    assert found.pool["caption"] == HOSTILE[number]
    stream = io.StringIO()
    console = Console(file=stream, width=10_000, soft_wrap=True)
    for table in sample_tables(found):
        put(console, table)
    told = stream.getvalue()
    assert not set(told) & set("\x1b\x07\0\x9b\u202e\u2066\r")
    assert "u:pw" not in told and "secret" not in told and "sig=***" in told
    json.loads(json.dumps(found.plain(), default=str))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_verdicts_hold_every_caption_and_no_formula(run: Run, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"verdicts.{kind}"
    assert write_verdicts(open_results(run), str(path)) == len(HOSTILE)
    csv.field_size_limit(2 * MEGA)
    if kind == "csv":
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            assert not any(str(value)[:1] in tuple("=+-@\t\r\n\uff1d") for value in row.values())
    elif kind == "jsonl":
        rows = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    else:
        rows = pq.read_table(path).to_pylist()
    expected = [f"'{text}" if kind == "csv" and text in FORMULAS else text for text in HOSTILE]
    assert [row["caption"] for row in rows] == expected
    assert rows[0]["url"] == pool()["url"][0].as_py()


def exported(name: str) -> tuple[dict[str, bytes], list[dict[str, Any]], pa.Table]:
    """The files and the list of an export of them all."""
    stage = ExportStage(ExportConfig(format=name))  # type: ignore[arg-type]
    pairs = stage.pairs(pool(), None)
    shard = Shard(split="train", number=0)
    form = FORMATS[name](shard_size=1000, is_split=False, seed=0)
    entries = [json.loads(json.dumps(e, ensure_ascii=False)) for e in form.entries(shard, pairs)]
    return dict(form.files(shard, pairs)), entries, pairs


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_holds_every_caption_and_names_no_file_by_one(name: str) -> None:
    files, entries, pairs = exported(name)
    texts = pairs["caption"].to_pylist()
    assert texts == list(HOSTILE)
    assert all(set(path) <= set("abcdefghijklmnopqrstuvwxyz0123456789-./") for path in files)
    assert not any(part in ("", ".", "..") for path in files for part in path.split("/"))
    if name in ("parquet", "urls"):
        (content,) = files.values()
        table = pq.read_table(io.BytesIO(content))
        column = "caption" if name == "parquet" else "captions"
        found = table[column].to_pylist()
        assert (found if name == "parquet" else [one for (one,) in found]) == texts
        assert table["url"].to_pylist()[3] == "http://***@a.test/<b>3</b>.jpg?sig=***"
    elif name in ("webdataset", "energon"):
        with tarfile.open(fileobj=io.BytesIO(next(iter(files.values())))) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
        told = [json.loads(members[key]) for key in sorted(members) if key.endswith(".json")]
        plain = [members[key].decode() for key in sorted(members) if key.endswith(".txt")]
        assert [one["caption"] for one in told] == plain == texts
        assert all("pw" not in one["url"] and "secret" not in one["url"] for one in told)
    elif name == "imagefolder":
        (listing,) = (content for path, content in files.items() if path.endswith(".jsonl"))
        assert [json.loads(line)["text"] for line in listing.split(b"\n") if line] == texts
    elif name == "blip":
        assert [entry["caption"] for entry in entries] == texts
    elif name == "sidecars":
        assert [c.decode() for path, c in files.items() if path.endswith(".txt")] == texts
    elif name == "mds":
        (content,) = files.values()
        assert all(text.encode() in content for text in texts)
        assert not re.search(rb"://[^*\"]*pw|sig=secret", content)
    else:
        answers = [entry["conversations"][1]["value"] for entry in entries]
        assert answers == [text.replace("<image>", "(image)") for text in texts]


def test_the_filter_reads_no_more_of_a_caption_than_it_takes(models: Path) -> None:
    matcher = Matcher.from_pretrained(str(models / "matcher"), device="cpu", threads=1)
    (scores,) = matcher.score([jpeg(0)], [HOSTILE])
    assert len(scores) == len(HOSTILE) and all(0 <= score.itm <= 1 for score in scores)


@pytest.mark.skipif(
    not (SHARED / "data" / "en_core_web_sm_port").is_dir(), reason="../shared is not here"
)
def test_noun_phrases_of_hostile_captions_are_texts() -> None:
    nouns = NounPhrases(str(SHARED / "data" / "en_core_web_sm_port"))
    found = nouns(HOSTILE)
    assert len(found) == len(HOSTILE)
    assert all(isinstance(text, str) for phrases in found for text in phrases)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=()), max_size=200))
def test_what_is_left_of_any_caption_is_unicode_on_one_line(caption: str) -> None:
    text = normalize(caption)
    text.encode()
    assert text == " ".join(text.split()) and "\0" not in text and "\x1b" not in text


def test_a_character_reference_of_endless_digits_is_none() -> None:
    for digits in (999, 1000, 4299, 4301, 100_000):
        assert normalize(f"a dog &#{'9' * digits}; on a mat") == "a dog \ufffd on a mat"
    stage = CleanStage(CleanConfig())
    stage.load()
    rows = pool((f"&#{'1' * 5000}",))
    assert set(stage.judge(stage.annotate(rows)).to_pylist()) <= set(stage.reasons)


def test_lone_surrogates_reach_no_table(tmp_path: Path) -> None:
    page = '{"url": "http://p.test/\\ud800", "text_list": ["a \\udc00 b", "\\ud83d\\ude00"], '
    page += '"image_info": [{"raw_url": "http://a.test/\\uDFFF", "matched_text_index": 0}]}'
    path = tmp_path / "pages.jsonl"
    path.write_text(page)
    config = DownloadConfig(source=str(path))
    (table,) = sources.shards(config)
    assert table["url"].to_pylist() == ["http://a.test/\ufffd"]
    (document,) = sources.pages(config)
    assert document is not None and document.url == "http://p.test/\ufffd"
    assert document.texts == ["a \ufffd b", "\U0001f600"]
    assert parse({"texts": ["a"], "images": [None]}) is not None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"image": "http://169.254.169.254/x.jpg", "caption": "a"}', "`image` must be a path"),
        ('{"image": "simplecache::a.jpg", "caption": "a"}', "cannot read image"),
        ('{"image": "a\\u0000.jpg", "caption": "a"}', "cannot read image"),
        ('{"image": "../out.jpg", "caption": "a"}', "cannot read image .*outside_source"),
        ('{"image": "http://u:pw@h/x", "caption": "a"}', r"http://\*\*\*@h/x"),
        ('{"image": "lost.jpg", "caption": "a"}', "cannot read image"),
        ('{"image": ".", "caption": "a"}', "cannot read image"),
        ("[" * 100_000, "is not JSON"),
        ('{"image": 9' + "9" * 5000 + "}", "is not JSON"),
    ],
)
def test_human_pairs_that_cannot_be_read_name_their_line(
    tmp_path: Path, line: str, words: str
) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    path = tmp_path / "human.jsonl"
    path.write_text(f'{{"image": "a.jpg", "caption": "good"}}\n{line}\n')
    with pytest.raises(ValueError, match=f"human.jsonl:2: .*{words}"):
        list(ExportStage(ExportConfig(human=(str(path),))).human_pairs())


def test_human_captions_are_unicode(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    path = tmp_path / "human.jsonl"
    path.write_bytes(b'{"image": "a.jpg", "captions": ["\\ud800", "caf\xe9"]}\n')
    ((_, pairs),) = ExportStage(ExportConfig(human=(str(path),))).human_pairs()
    assert pairs["caption"].to_pylist() == ["café"]
