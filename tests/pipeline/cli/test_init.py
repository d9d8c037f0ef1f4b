"""A manifest by looking at what is there."""

import json
import string
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers import fakes
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cli import init_manifest, init_source
from pipeline.cli.main import main
from pipeline.manifest.manifest import Manifest

ENGLISH = "A brown dog runs along the beach behind a red ball"
GERMAN = "Ein brauner Hund rennt am Strand hinter einem roten Ball her"


def written(tmp_path, *sources):
    found = init_source.profile_source([str(source) for source in sources])
    init_manifest.write(found, str(tmp_path / "m.yaml"))
    return found, Manifest.load(str(tmp_path / "m.yaml")), (tmp_path / "m.yaml").read_text()


def csv(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_folder_without_captions_gets_the_recipe_that_writes_them(tmp_path):
    folder = fakes.photo_folder(tmp_path / "my photos", 5, captions=False)
    (folder / "broken.jpg").write_bytes(b"no image")
    found, made, text = written(tmp_path, folder)
    assert list(made.stages) == ["download", "caption", "filter", "export"]
    assert made.name == "m" and made.run == "runs/m"
    assert found.rows == 6 and found.captions == 0
    assert found.sizes == [(120, 90)] * 5 and found.broken == 1
    assert "6 images" in text and "Captions: none" in text


def test_a_folder_with_captions_has_them_cleaned_and_judged(tmp_path):
    found, made, _ = written(tmp_path, fakes.photo_folder(tmp_path / "photos", 12))
    assert list(made.stages) == ["download", "clean", "dedup", "caption", "filter", "export"]
    assert found.captions == 12 and found.words == 12
    assert not made.stages["download"].allow_private_addresses


def test_small_images_are_told_of_where_clean_would_drop_them(tmp_path):
    folder = fakes.photo_folder(tmp_path / "photos", 3)
    (folder / "0000.jpg").write_bytes(fakes.jpeg(0, (60, 90)))
    (folder / "0001.jpg").write_bytes(fakes.jpeg(1, (64, 90)))
    _, _, text = written(tmp_path, folder)
    assert "# min_side: 64  # 1 of 3 sampled images are smaller; off keeps them" in text


@pytest.mark.parametrize(
    ("language", "captions"),
    [
        ("zh", ["一只狗在海滩上追着红球跑", "老人坐在长椅上读报纸", "火车驶过宽阔的大河"]),
        ("ja", ["犬が赤いボールを追いかけて浜辺を走る", "老人がベンチで新聞を読んでいる"]),
        ("th", ["สุนัขวิ่งบนชายหาดตามลูกบอลสีแดง", "ชายชรานั่งอ่านหนังสือพิมพ์บนม้านั่ง"]),
        ("hi", ["समुद्र तट पर एक कुत्ता दौड़ रहा है", "एक बूढ़ा आदमी अखबार पढ़ रहा है"]),
    ],
)
def test_the_language_of_captions_is_named_in_every_script(tmp_path, language, captions):
    rows = [f"http://a.org/{n}.jpg,{text}" for n, text in enumerate(captions)]
    found, made, _ = written(tmp_path, csv(tmp_path / "l.csv", "url,caption", *rows))
    assert found.languages == {language: 1.0}
    assert made.stages["clean"].languages == (language,)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_columns_are_recognised_by_name(tmp_path, kind):
    rows = [(f"http://example.org/{n}.jpg", ENGLISH) for n in range(3)]
    path = tmp_path / f"pairs.{kind}"
    if kind == "parquet":
        fakes.url_list(path, rows)
    elif kind == "jsonl":
        csv(path, *(json.dumps({"url": url, "caption": text}) for url, text in rows))
    else:
        mark = "," if kind == "csv" else "\t"
        csv(path, *(mark.join(row) for row in [("url", "caption"), *rows]))
    found, made, _ = written(tmp_path, path)
    assert found.columns == {"url": "url", "caption": "caption"}
    assert found.rows == found.captions == 3 and found.hosts == {"example.org": 3}
    assert found.languages == {"en": 1.0}
    assert made.stages["download"].url_column is None


def test_columns_of_unknown_names_are_told_by_what_they_hold(tmp_path):
    path = csv(
        tmp_path / "list.csv",
        "nr,where it is,shop,what one sees",
        *(f"{n},https://example.org/{n}.jpg,acme,{ENGLISH}" for n in range(4)),
    )
    found, made, text = written(tmp_path, path)
    assert made.stages["download"].url_column == "where it is"
    assert made.stages["download"].caption_column == "what one sees"
    assert found.others == ["nr", "shop"] and found.captions == 4
    assert text.count("# recognised by its values") == 2


def test_a_list_without_a_header_is_read_as_download_reads_it(tmp_path):
    path = csv(tmp_path / "cc.tsv", *(f"{ENGLISH}\thttp://a.org/{n}.jpg" for n in range(3)))
    found, made, _ = written(tmp_path, path)
    assert found.rows == found.captions == 3 and found.first[0][1] == ENGLISH
    assert made.stages["download"].url_column is None


@pytest.mark.parametrize(
    ("host", "is_private"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("10.0.0.8", True),
        ("[::1]", True),
        ("example.org", False),
        ("8.8.8.8", False),
    ],
)
def test_private_addresses_are_allowed_only_where_the_list_names_one(tmp_path, host, is_private):
    path = csv(tmp_path / "l.csv", "url,caption", f"http://{host}:8000/a.jpg,{ENGLISH}")
    _, made, _ = written(tmp_path, path)
    assert made.stages["download"].allow_private_addresses == is_private


def test_the_languages_of_the_captions_are_wanted(tmp_path):
    rows = [f"http://a.org/{n}.jpg,{GERMAN if n % 4 else ENGLISH}" for n in range(12)]
    found, made, text = written(tmp_path, csv(tmp_path / "l.csv", "url,caption", *rows))
    assert found.languages == {"de": 0.75, "en": 0.25}
    assert made.stages["clean"].languages == ("de", "en")
    assert "75% de, 25% en; the captioner writes English" in text


def test_the_hours_that_the_busiest_host_takes_are_told(tmp_path):
    rows = [f"http://a.org/{n}.jpg,{ENGLISH}" for n in range(4000)]
    _, _, text = written(tmp_path, csv(tmp_path / "l.csv", "url,caption", *rows))
    assert "to one host from one worker: 0.1 hours for 4,000 of a.org" in text


@pytest.mark.parametrize(
    ("rows", "shard_size"), [(100, 1000), (101, 100), (560, 100), (4000, 200), (16_000, 1000)]
)
def test_a_short_list_is_cut_so_that_several_workers_are_busy(rows, shard_size):
    found = init_source.SourceProfile(
        source=init_source.Source(path="l.csv"), kind="csv", rows=rows
    )
    content = yaml.safe_load(init_manifest.manifest(found, "m"))
    assert Manifest.parse(content).stages["download"].shard_size == shard_size


def test_a_list_is_not_read_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(init_source, "MOST", 7)
    rows = [f"http://a.org/{n}.jpg,{ENGLISH}" for n in range(8)]
    found, _, text = written(tmp_path, csv(tmp_path / "l.csv", "url,caption", *rows))
    assert found.rows == 7 and not found.is_all and "more than 7 rows" in text
    (tmp_path / "m.yaml").unlink()
    found, _, _ = written(tmp_path, csv(tmp_path / "l.csv", "url,caption", *rows[:7]))
    assert found.rows == 7 and found.is_all


def test_interleaved_documents_are_exported_as_such(tmp_path):
    document = {
        "url": "http://a.org/",
        "text_list": ["One.", "Two."],
        "image_info": [{"raw_url": "http://a.org/1.jpg", "matched_text_index": 0}],
        "similarity_matrix": [[0.3, 0.2]],
    }
    found, made, _ = written(tmp_path, csv(tmp_path / "d.jsonl", json.dumps(document)))
    assert found.documents and list(made.stages) == ["download", "clean", "dedup", "export"]
    assert made.stages["export"].documents is not None


def test_parquet_with_images_is_images_at_hand(tmp_path):
    images = [{"bytes": fakes.jpeg(n), "path": None} for n in range(3)]
    pq.write_table(pa.table({"image": images, "caption": [ENGLISH] * 3}), tmp_path / "a.parquet")
    found, _, _ = written(tmp_path, tmp_path / "a.parquet")
    assert found.kind == "parquet with images" and found.images == 3
    assert found.sizes == [(120, 90)] * 3 and not found.hosts


@settings(deadline=None)
@given(
    st.text(string.printable + "\x1b\x85\u2028äß", min_size=1).filter(lambda s: s.strip()),
    st.text(string.printable, min_size=1),
)
def test_no_name_or_host_of_a_list_breaks_out_of_its_line(column, host):
    found = init_source.SourceProfile(
        source=init_source.Source(path=f"{column}.csv", url_column=column),
        kind="csv",
        rows=9_000,
        columns={"url": column},
        first=[(column, host)],
        hosts=init_source.Counter({host: 9_000}),
    )
    text = init_manifest.manifest(found, "m")
    content = yaml.safe_load(text)
    assert content["stages"]["download"]["url_column"] == column
    assert content["stages"]["download"]["source"] == f"{column}.csv"
    for line in init_source.describe(found):
        assert "\n" not in line and "\x1b" not in line


def test_a_run_is_named_after_its_manifest_or_else_after_its_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fakes.photo_folder(tmp_path / "photos", 2)
    for out, name in (("manifest.yaml", "photos"), ("of/my web.yaml", "my-web")):
        Path(out).parent.mkdir(exist_ok=True)
        assert main(["init", "photos", "--out", out]) == 0
        content = yaml.safe_load(Path(out).read_text())
        assert (content["name"], content["run"]) == (name, f"runs/{name}")


def test_a_manifest_that_is_there_stays_unless_told(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fakes.photo_folder(tmp_path / "photos", 2)
    (tmp_path / "manifest.yaml").write_text("mine")
    assert main(["init", "photos"]) == 2
    assert "--out manifest.yaml: the file exists" in capsys.readouterr().err
    assert (tmp_path / "manifest.yaml").read_text() == "mine"
    assert main(["init", "photos", "--force"]) == 0
    output = capsys.readouterr()
    assert "capfilt run manifest.yaml --dry-run" in output.out and not output.err
    assert main(["run", "manifest.yaml", "--dry-run"]) == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.csv", None, "no such list or images"),
        ("empty.csv", "", "has no rows"),
        ("head.csv", "url,caption\n", "has no rows"),
        ("none.csv", "a,b\n1,2\n", "no column with a known name"),
        ("notes.txt", "hello", "a .txt list must have one URL per line"),
        ("bad.parquet", "no", "cannot be read as parquet"),
        ("folder/", None, "neither a list nor images"),
    ],
)
def test_what_cannot_be_looked_at_is_said(tmp_path, capsys, name, content, message):
    if name.endswith("/"):
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_text(content)
    assert main(["init", str(tmp_path / name), "--out", str(tmp_path / "m.yaml")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "m.yaml").exists()
