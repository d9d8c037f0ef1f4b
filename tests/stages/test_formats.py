"""Each format, read back by what its own ecosystem reads it with."""

import io
import json
import subprocess
import sys
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import fakes, pools
from helpers.environment import Environment
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.random import hash_of
from models.text.instructions import BRIEF
from stages.export import ExportConfig
from stages.formats import FORMATS, Shard
from stages.formats.base import Sample
from stages.schema import DRAWN_PAIRS, PAIRS

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
    files, entries = [], {}
    for shard, table in SHARDS.items():
        files += made.files(shard, table)
        lines = [json.dumps(entry).encode() for entry in made.entries(shard, table)]
        entries.setdefault(shard.split, []).extend(lines)
    files += [file for _, *file in made.index(entries)] if made.has_index else []
    for path, content in files:
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


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_format_says_how_often_an_image_was_drawn_or_that_it_does_not(name):
    shard, table = next(iter(SHARDS.items()))
    draws = pa.array([int(uid[-1]) + 2 for uid in table["uid"].to_pylist()], pa.int32())
    drawn = pa.table([*table.columns, draws], schema=DRAWN_PAIRS)
    made = form(name)
    plain, told = (dict(made.files(shard, one)) for one in (table, drawn))
    assert (plain == told) == (made.draws is None)
    content = b"".join(told.values())
    if name in ("parquet", "urls"):
        found = pq.read_table(io.BytesIO(content))
        told, given = ({r["uid"]: r["draws"] for r in t.to_pylist()} for t in (found, drawn))
        assert told == given
    else:
        has = [b'"draws": %d' % number in content for number in (2, 3, 4, 5)]
        assert has == [made.draws is not None] * 3 + [False]


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


CHOSEN = {
    "first": "a dog",
    "longest": "a brown dog",
    "best": "a dog",
    "all": "a dog\na brown dog",
}
"""What each choice makes of the first image, whose captions score 0.9 and nothing."""


@pytest.mark.parametrize("name", [name for name in FORMATS if FORMATS[name].has_choice])
@pytest.mark.parametrize("choice", CHOSEN)
def test_a_format_with_room_for_one_caption_holds_the_chosen_one(name, choice):
    made = form(name, captions=choice)
    shard, table = next(iter(SHARDS.items()))
    whole = b"".join(content for _, content in made.files(shard, table))
    text = CHOSEN[choice]
    assert text.encode() in whole or json.dumps(text).encode() in whole


@given(st.lists(st.text(min_size=1), min_size=1, max_size=6), st.integers(0, 9))
def test_a_choice_is_one_of_the_captions_and_the_same_each_time(captions, seed):
    sample = Sample(uid="1f", image=b"", facts={}, captions=captions)
    sample.itm_scores = [None if len(text) % 3 else len(text) / 10 for text in captions]
    chosen = {
        choice: form("webdataset", captions=choice, seed=seed).caption(sample)
        for choice in ("first", "longest", "best", "random")
    }
    assert set(chosen.values()) <= set(captions)
    assert chosen["first"] == captions[0]
    assert len(chosen["longest"]) == max(map(len, captions))
    scored = [score for score in sample.itm_scores if score is not None]
    best = sample.itm_scores[captions.index(chosen["best"])]
    assert best == max(scored) if scored else chosen["best"] == captions[0]
    again = form("webdataset", captions="random", seed=seed).caption(sample)
    assert again == chosen["random"]
    lines = form("webdataset", captions="all").caption(sample).split("\n")
    assert len(lines) == len(captions)


def test_random_captions_are_not_all_the_same_one():
    made = form("sidecars", captions="random")
    found = {
        made.caption(Sample(uid=f"{n:x}", image=b"", facts={}, captions=["a", "b", "c"]))
        for n in range(50)
    }
    assert found == {"a", "b", "c"}


def test_energon_reads_its_tars_by_the_index_beside_them(tmp_path):
    energon = pytest.importorskip("megatron.energon")
    folder = write(form("energon"), tmp_path)
    config = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
    for split, texts in (
        ("train", {"a dog", "a <image> of\na <<image>> house", "ein Fluß", "one", "h1"}),
        ("val", {"held out"}),
    ):
        reader = {"train": energon.get_train_dataset, "val": energon.get_val_dataset}[split]
        options = {"shuffle_buffer_size": None, "max_samples_per_sequence": None}
        data = reader(
            str(folder),
            split_part=split,
            batch_size=1,
            worker_config=config,
            **(options if split == "train" else {}),
        )
        read = []
        for batch, _ in zip(energon.get_loader(data), range(len(texts)), strict=False):
            read.append((batch.caption[0], tuple(batch.image.shape)))
        assert {text for text, _ in read} == texts
        assert {shape for _, shape in read} == {(1, 3, 90, 120)}


def test_the_index_of_energon_is_the_one_that_it_makes_itself(tmp_path):
    itar = pytest.importorskip("megatron.energon.flavors.webdataset.itar")
    folder = write(form("energon"), tmp_path)
    for path in folder.glob("*.tar"):
        with itar.TarIndexReader(path) as index:
            begins = list(index)
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        assert begins[:-1] == [m.offset for m in members if m.name.endswith(".jpg")]
        last = members[-1]
        assert begins[-1] == last.offset_data + -(-last.size // 512) * 512


STREAMING = (
    *("mosaicml-streaming>=0.11,<1", "brotli>=1,<2", "cramjam>=2.8,<3", "python-snappy>=0.7,<1"),
    *("zstd>=1.5,<2", "boto3>=1.40,<2", "botocore>=1.40,<2", "s3transfer", "jmespath"),
)
"""The reader of MDS and what it imports. It asks for transformers 4, which reading does without."""
READ = """
import json, sys, types
sys.modules["streaming.vision"] = types.ModuleType("streaming.vision")  # it imports torchvision
from streaming import LocalDataset
for split in ("train", "validation"):
    data = LocalDataset(f"{sys.argv[1]}/{split}")
    for row in map(data.__getitem__, range(len(data))):
        kept = {name: row[name] for name in ("uid", "caption", "json")}
        print(json.dumps({"split": split, "size": row["image"].size, **kept}))
"""


@pytest.mark.slow
def test_streaming_reads_mds(tmp_path):
    libraries = tmp_path / "libraries"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    found = subprocess.run(
        [*install, str(libraries), "--retries", "1", *STREAMING], capture_output=True, timeout=600
    )
    if found.returncode:
        pytest.skip(f"mosaicml-streaming cannot be installed: {found.stderr.decode()[-200:]}")
    folder = write(form("mds", captions="longest"), tmp_path)
    reader = Environment(tmp_path / "environment", libraries)
    done = reader.python("-c", READ, str(folder))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["split"] for row in rows] == ["train"] * 5 + ["validation"]
    (row,) = (row for row in rows if row["uid"] == f"{0:032x}")
    assert (row["size"], row["caption"]) == ([120, 90], "a brown dog")
    assert row["json"]["captions"] == TEXTS[0]
    assert row["json"]["itm_scores"] == [pytest.approx(0.9), None]
    for split, number in (("train", 5), ("validation", 1)):
        index = json.loads((folder / split / "index.json").read_text())
        assert sum(shard["samples"] for shard in index["shards"]) == number


def test_sidecars_lie_beside_their_images(tmp_path):
    folder = write(form("sidecars", captions="all"), tmp_path)
    images = sorted(folder.rglob("*.jpg"))
    assert len(images) == 6
    texts = [path.with_suffix(".txt").read_text().splitlines() for path in images]
    assert ["a dog", "a brown dog"] in texts and ["h1", "h2"] in texts
    assert len(list(folder.rglob("*.txt"))) == 6


def test_a_choice_where_every_caption_is_held_is_refused():
    with pytest.raises(ValueError, match="parquet holds every caption"):
        ExportConfig(captions="best")
    assert "captions" not in ExportConfig(format="webdataset").settings()
    assert ExportConfig(format="webdataset", captions="best").settings()["captions"] == "best"


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
