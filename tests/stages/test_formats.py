"""Each format, read back by what its own ecosystem reads it with."""

import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import fakes, pools
from PIL import Image

from models.random import hash_of
from stages.formats import FORMATS, Shard
from stages.formats.image_folders import BRIEF
from stages.schema import PAIRS

TEXTS = [["a dog", "a brown dog"], ["a <image> of\na <<image>> house"], ["ein Fluß", "x", "x"]]
ITM = [0.9, None, 0.7]


def pairs(texts=TEXTS, first=0):
    return pools.pairs_of(texts, first, ITM)


SHARDS = {
    Shard(split="train", number=0): pairs(),
    Shard(split="train", number=1): pairs([["one"]], 10),
    Shard(split="train", number=0, is_human=True): pairs([["h1", "h2"]], 20),
    Shard(split="validation", number=0): pairs([["held out"]], 30),
}


def form(name, **settings):
    return FORMATS[name](**{"shard_size": 100, "is_split": True, "seed": 0, **settings})


def write(made, folder):
    for shard, table in SHARDS.items():
        for path, content in made.files(shard, table):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", list(FORMATS))
def test_equal_pairs_give_equal_files_each_of_its_own_name(name):
    made = form(name)
    files = [list(made.files(shard, table)) for shard, table in SHARDS.items()]
    assert files == [list(form(name).files(shard, table)) for shard, table in SHARDS.items()]
    paths = [path for some in files for path, _ in some]
    assert len(set(paths)) == len(paths)
    for shard, some in zip(SHARDS, files, strict=True):
        assert all((path + "/").startswith(made.path(shard) + "/") for path, _ in some)


def test_names_tell_splits_only_where_there_are_some():
    human = Shard(split="train", number=3, is_human=True)
    assert form("parquet").path(human) == "train-human-00003.parquet"
    assert form("parquet", is_split=False).path(human) == "human-00003.parquet"
    assert form("imagefolder", is_split=False).path(human) == "train/human-00003"


def test_webdataset_reads_the_tars(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    write(form("webdataset"), tmp_path)
    tars = sorted(str(path) for path in tmp_path.glob("train-*.tar"))
    read = webdataset.WebDataset(tars, shardshuffle=False).decode("pil")
    found = list(read.to_tuple("__key__", "jpg", "txt", "json"))
    assert [key for key, *_ in found[:4]] == [
        "train-0000000",
        "train-0000001",
        "train-0000002",
        "train-0000100",
    ]
    assert [text for _, _, text, _ in found[:3]] == [captions[0] for captions in TEXTS]
    assert all(image.size == (120, 90) for _, image, _, _ in found)
    last = found[2][3]
    assert last["captions"] == TEXTS[2] and last["caption"] == "ein Fluß"
    assert last["itm_scores"] == [pytest.approx(0.9), None, pytest.approx(0.7)]
    assert last["status"] == "success" and last["sha256"] == f"{2:064x}"


def test_tars_are_plain_ustar_without_time_or_owner():
    content = dict(form("webdataset").files(*next(iter(SHARDS.items()))))["train-00000.tar"]
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = tar.getmembers()
        kinds = [member.name.partition(".")[2] for member in members]
        assert kinds == ["jpg", "txt", "json"] * 3
        assert all((m.mtime, m.uid, m.uname, m.mode) == (0, 0, "", 0o644) for m in members)
    assert content[257:263] == b"ustar\0"


def test_an_image_file_ends_in_what_it_is(tmp_path):
    table = pairs([["a"], ["b"], ["c"]])
    images = []
    for kind in ("PNG", "WEBP", "JPEG"):
        buffer = io.BytesIO()
        Image.new("RGB", (120, 90)).save(buffer, kind)
        images.append({"bytes": buffer.getvalue(), "path": None})
    column = table.schema.get_field_index("image")
    table = table.set_column(column, PAIRS.field("image"), pa.array(images, PAIRS.field(1).type))
    shard = Shard(split="train", number=0)
    paths = [path for path, _ in form("blip").files(shard, table)]
    assert [path[-5:] for path in paths] == ["0.png", ".webp", "2.jpg"]


def llava_read(entry, images):
    """What LLaVA asserts of an entry and does with it (preprocess_multimodal and _plain)."""
    image = Image.open(images / entry["image"]).convert("RGB")
    human, answer = entry["conversations"]
    assert (human["from"], answer["from"]) == ("human", "gpt")
    tags = sum(turn["value"].count("<image>") for turn in entry["conversations"])
    assert tags == 1 and "<image>" in human["value"]
    return image, human["value"], answer["value"]


def test_llava_finds_one_image_and_one_answer_in_each_conversation(tmp_path):
    made = form("llava")
    write(made, tmp_path)
    entries = [e for shard, table in SHARDS.items() for e in made.entries(shard, table)]
    assert len({entry["id"] for entry in entries}) == len(entries) == sum(map(len, TEXTS)) + 4
    read = [llava_read(entry, tmp_path / "images") for entry in entries]
    assert [answer for *_, answer in read[:3]] == [
        "a dog",
        "a brown dog",
        "a (image) of\na <(image)> house",
    ]
    asked = [human.removeprefix("<image>\n") for _, human, _ in read]
    assert asked == [BRIEF[hash_of(f"0 {entry['id']}") % 11] for entry in entries]
    assert len(set(asked)) > 2
    assert [entry["id"] for entry in entries[:3]] == [f"{0:032x}", f"{0:032x}-1", f"{1:032x}"]


def test_blip_opens_each_image_from_within_the_folder(tmp_path, monkeypatch):
    made = form("blip")
    write(made, tmp_path)
    entries = [e for shard, table in SHARDS.items() for e in made.entries(shard, table)]
    monkeypatch.chdir(tmp_path)
    for entry in entries:  # as pretrain_dataset.__getitem__ does
        assert set(entry) == {"image", "caption"}
        assert Image.open(entry["image"]).convert("RGB").size == (120, 90)
    texts = [text for captions in TEXTS for text in captions]
    assert [entry["caption"] for entry in entries[: len(texts)]] == texts


def test_datasets_reads_the_imagefolder_with_its_splits(tmp_path):
    datasets = pytest.importorskip("datasets")
    folder = write(form("imagefolder"), tmp_path / "export")
    (folder / "manifest.json").write_text("{}")
    read = datasets.load_dataset(
        "imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache")
    )
    assert {split: len(rows) for split, rows in read.items()} == {"train": 5, "validation": 1}
    by_uid = {row["uid"]: row for rows in read.values() for row in rows}
    assert by_uid[f"{2:032x}"]["captions"] == TEXTS[2]
    assert by_uid[f"{2:032x}"]["text"] == TEXTS[2][0]
    names = ["", *["short"] * (len(TEXTS[2]) - 1)]
    assert by_uid[f"{2:032x}"]["caption_names"] == names
    assert by_uid[f"{30:032x}"]["image"].size == (120, 90)
    assert "label" not in read["train"].column_names


def test_urls_hold_no_byte_of_an_image():
    shard, table = next(iter(SHARDS.items()))
    ((path, content),) = form("urls").files(shard, table)
    assert path == "train-00000.parquet"
    read = pq.read_table(io.BytesIO(content))
    assert not any(pa.types.is_binary(field.type) for field in read.schema)
    assert "image" not in read.column_names and fakes.jpeg(0)[:64] not in content
    rows = read.to_pylist()
    assert [row["captions"] for row in rows] == TEXTS
    assert rows[0]["caption_sources"] == ["web", "synthetic"]
    assert rows[0]["caption_names"] == [None, "short"]
    assert rows[0]["itm_scores"] == [pytest.approx(0.9), None]
    assert (rows[0]["sha256"], rows[0]["width"], rows[0]["height"]) == (f"{0:064x}", 120, 90)
