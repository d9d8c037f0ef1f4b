import hashlib
import io
import json
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.fakes import jpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from models.text.conversation import Turn, as_text
from pipeline.manifest.train_config import Source, as_sources
from pipeline.storage.run import Run
from pipeline.training.data import (
    Example,
    Pairs,
    Position,
    fingerprint_of,
    fingerprints_of,
    read_folder,
    read_json,
    state_of,
)
from pipeline.training.units import RowGroup
from stages.schema import PAIRS


def write_pool(path: Path, names: list[str], group: int = 3) -> str:
    """A pool shard: the image of a name is its bytes, its caption tells it."""
    rows = [{"uid": n, "image": n.encode(), "caption": f"caption of {n}"} for n in names]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return str(path)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    folder = tmp_path_factory.mktemp("pool")
    names = [f"{i:02d}" for i in range(20)]
    return [
        Source(path=write_pool(folder / "00000.parquet", names[:11])),
        Source(path=write_pool(folder / "00001.parquet", names[11:])),
    ]


def names_of(examples: list[Example]) -> list[str]:
    return [example.image.decode() for example in examples]


def take(pairs: Pairs, number: int, position: Position | None = None) -> list[Example]:
    return [example for example, _ in islice(pairs.examples(position), number)]


def test_an_epoch_meets_every_image_once_and_each_epoch_in_another_order(
    pool: list[Source],
) -> None:
    examples = take(Pairs(pool), 60)
    epochs = [names_of(examples[i : i + 20]) for i in (0, 20, 40)]
    assert [e.epoch for e in examples] == [0] * 20 + [1] * 20 + [2] * 20
    for names in epochs:
        assert sorted(names) == [f"{i:02d}" for i in range(20)]
    assert len({tuple(names) for names in epochs}) == 3
    assert all(e.caption == f"caption of {e.image.decode()}" for e in examples)


def test_an_epoch_meets_an_image_as_often_as_it_was_drawn(tmp_path: Path) -> None:
    draws = {"a": 1, "b": 3, "c": 2, "d": 1}
    rows = [
        {"uid": name, "image": name.encode(), "caption": f"{kind} caption", "draws": number}
        for name, number in draws.items()
        for kind in ("a first", "a second")
    ]
    rows[2]["caption"] = None
    path = str(tmp_path / "drawn.parquet")
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
    pairs = Pairs([Source(path=path)])
    assert pairs.num_images == pairs.images_an_epoch == 7
    for epoch in (0, 1):
        assert Counter(names_of(take(pairs, 14)[7 * epoch :][:7])) == Counter(draws)
    twice = Pairs([Source(path=path, weight=2)])
    assert Counter(names_of(take(twice, 14))) == Counter({n: 2 * k for n, k in draws.items()})
    for wrong in (0, None, 2.5, 10**7):
        bad = [{**row, "draws": wrong} for row in rows[:1]]
        pq.write_table(pa.Table.from_pylist(bad), path)
        with pytest.raises(ValueError, match=r"drawn.parquet: the column draws .* got"):
            Pairs([Source(path=path)])


def test_the_order_is_of_the_seed(pool: list[Source]) -> None:
    once = names_of(take(Pairs(pool, seed=1), 40))
    assert once == names_of(take(Pairs(pool, seed=1), 40))
    assert once != names_of(take(Pairs(pool, seed=2), 40))


def test_the_stream_does_not_depend_on_where_the_files_lie(tmp_path: Path) -> None:
    streams = []
    # By their whole paths the two folders order the files differently.
    for first, second in (("a", "b"), ("z", "y")):
        for folder in (first, second):
            (tmp_path / folder / "images").mkdir(parents=True)
        write_pool(tmp_path / first / "00000.parquet", ["p", "q", "r"])
        for name in "uvw":
            (tmp_path / second / "images" / name).write_bytes(name.encode())
        rows = [{"image": f"images/{n}", "captions": [f"{n} one", f"{n} two"]} for n in "uvw"]
        (tmp_path / second / "human.jsonl").write_text("\n".join(map(json.dumps, rows)))
        paths = [str(tmp_path / first), str(tmp_path / second / "human.jsonl")]
        streams.append(take(Pairs(as_sources(paths)), 30))
    assert streams[0] == streams[1]


def test_the_identity_of_an_image_is_its_content(tmp_path: Path) -> None:
    rows = [{"uid": uid, "image": b"same", "caption": uid} for uid in "ab"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    (tmp_path / "file").write_bytes(b"same")
    (tmp_path / "x.jsonl").write_text('{"image": "file", "caption": "c"}')
    sources = as_sources([str(tmp_path / "x.parquet"), str(tmp_path / "x.jsonl")])
    examples = take(Pairs(sources), 3)
    assert {e.image_id for e in examples} == {hashlib.sha256(b"same").hexdigest()}
    assert {e.caption for e in examples} == {"a", "b", "c"}


@pytest.mark.parametrize("weight", [0.2, 0.5, 1.0, 1.7, 3.0])
def test_a_weight_is_how_often_an_epoch_passes_over_a_source(tmp_path: Path, weight: float) -> None:
    write_pool(tmp_path / "w.parquet", [f"w{i}" for i in range(10)])
    write_pool(tmp_path / "h.parquet", [f"h{i}" for i in range(4)])
    pairs = Pairs(
        [
            Source(path=str(tmp_path / "w.parquet"), weight=weight),
            Source(path=str(tmp_path / "h.parquet")),
        ]
    )
    assert pairs.images_an_epoch == int(10 * weight + 4)
    met: Counter[tuple[int, str]] = Counter()
    for example, _ in pairs.examples():
        if example.epoch == 10:
            break
        met[example.epoch, example.image.decode()] += 1
    for epoch in range(10):
        counts = [met[epoch, f"w{i}"] for i in range(10)]
        assert abs(sum(counts) - 10 * weight) <= 1
        assert max(counts) - min(counts) <= 1
        assert all(met[epoch, f"h{i}"] == 1 for i in range(4))
    totals = [sum(met[epoch, f"w{i}"] for epoch in range(10)) for i in range(10)]
    assert sum(totals) == round(100 * weight)
    assert max(totals) - min(totals) <= 1


def test_a_weight_must_be_positive() -> None:
    for weight in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"data\.weight must be positive"):
            Source(path="x", weight=weight)


def test_a_source_that_is_named_twice_is_met_twice(pool: list[Source]) -> None:
    sources = as_sources([pool[0].path, Source(path=pool[0].path, weight=0.5), pool[1].path])
    assert [source.weight for source in sources] == [1.5, 1.0]


@given(taken=st.integers(0, 70), rank=st.integers(0, 1))
@settings(deadline=None, max_examples=20)
def test_a_position_goes_on_where_it_was_taken(pool: list[Source], taken: int, rank: int) -> None:
    pairs = Pairs(pool, seed=3, stream=rank, num_streams=2)
    whole = list(islice(pairs.examples(), taken + 10))
    position = whole[taken - 1][1] if taken else Position()
    rest = list(islice(Pairs(pool, seed=3, stream=rank, num_streams=2).examples(position), 10))
    assert rest == whole[taken:]


def test_streams_share_an_epoch_between_them(pool: list[Source]) -> None:
    epoch: Counter[str] = Counter()
    for rank in range(3):
        stream = Pairs(pool, stream=rank, num_streams=3).examples()
        for example, _ in stream:
            if example.epoch:
                break
            epoch[example.image.decode()] += 1
    assert set(epoch.values()) == {1}
    assert len(epoch) == 20


def test_what_is_in_memory_is_bounded(pool: list[Source]) -> None:
    pairs = Pairs(pool, shuffle_buffer=7)
    blocks = pairs.blocks(0)
    assert len(blocks) > 2
    assert all(sum(int(met.sum()) for _, met in block) <= 7 for block in blocks)
    assert sorted(names_of(take(pairs, 20))) == [f"{i:02d}" for i in range(20)]


def test_more_streams_than_row_groups_are_refused(pool: list[Source]) -> None:
    with pytest.raises(ValueError, match=r"smaller shards or train with fewer train\.workers"):
        Pairs(pool, num_streams=30)


def test_both_kinds_of_image_column_are_read_and_nulls_left_out(tmp_path: Path) -> None:
    image = jpeg(0)
    struct = {"bytes": image, "path": None}
    rows = [
        {"uid": "a", "image": struct, "caption": "one", "caption_source": "web"},
        {"uid": "a", "image": struct, "caption": "two", "caption_source": "synthetic"},
        {"uid": "b", "image": None, "caption": "three", "caption_source": "web"},
        {
            "uid": "c",
            "image": {"bytes": None, "path": "x"},
            "caption": "x",
            "caption_source": "web",
        },
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=PAIRS), tmp_path / "pairs.parquet")
    pool = [
        {"uid": "d", "image": image, "caption": "four"},
        {"uid": "e", "image": None, "caption": "five"},
        {"uid": "f", "image": image, "caption": None},
    ]
    pq.write_table(pa.Table.from_pylist(pool), tmp_path / "pool.parquet")
    paths = [str(tmp_path / name) for name in ("pairs.parquet", "pool.parquet")]
    pairs = Pairs(as_sources(paths))
    assert pairs.num_images == 5  # what has a text
    examples = take(pairs, 24)
    assert all(e.image == image for e in examples)
    # Over the epochs each text of an image has its turn.
    assert {e.caption for e in examples} == {"one", "two", "four"}


def test_lines_of_one_image_are_its_texts(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in "ab":
        (tmp_path / "images" / name).write_bytes(name.encode())
    rows = [
        {"image": "images/a", "caption": "one"},
        {"image": "images/a", "caption": "two"},
        {"image": "images/b", "captions": ["three", "four"]},
    ]
    path = tmp_path / "human.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    pairs = Pairs(as_sources([str(path)]))
    assert pairs.num_images == 2
    examples = take(pairs, 40)
    assert {(e.image, e.caption) for e in examples} == {
        (b"a", "one"),
        (b"a", "two"),
        (b"b", "three"),
        (b"b", "four"),
    }


def test_a_line_without_an_image_is_refused_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "human.jsonl"
    path.write_text('{"image": "a", "caption": "x"}\n{"caption": "y"}\n')
    with pytest.raises(ValueError, match=r"human\.jsonl:2: names no `image`"):
        Pairs(as_sources([str(path)]))


def test_a_file_without_captions_is_refused_by_its_columns(tmp_path: Path) -> None:
    table = pa.table({"image": [b"x"]})
    pq.write_table(table, tmp_path / "x.parquet")
    Run(str(tmp_path)).write_table(table, "sealed.parquet")
    for name in ("x.parquet", "sealed.parquet"):
        with pytest.raises(ValueError, match=r"parquet has no column caption(?!.*verify)"):
            Pairs(as_sources([str(tmp_path / name)]))


def test_parquet_of_the_hub_is_read_whatever_its_text_is_called(tmp_path: Path) -> None:
    tables = {
        "caption": pa.table({"image": [{"bytes": b"a", "path": "a.jpg"}], "caption": [["x", "y"]]}),
        "text": pa.table({"image": [{"bytes": b"a", "path": None}], "text": ["x"]}),
        "captions": pa.table({"image": [b"a"], "captions": [["x", " ", "y"]]}),
    }
    for name, table in tables.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
        examples = take(Pairs(as_sources([str(tmp_path / f"{name}.parquet")])), 30)
        assert {e.image for e in examples} == {b"a"}
        assert {e.caption for e in examples} == ({"x"} if name == "text" else {"x", "y"})


def test_cocos_json_is_read_beside_its_images(tmp_path: Path) -> None:
    (tmp_path / "val2017").mkdir()
    (tmp_path / "val2017/7.jpg").write_bytes(b"seven")
    content = {
        "info": {},
        "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 8, "file_name": "8.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 7, "caption": "one"},
            {"id": 2, "image_id": 7, "caption": "two"},
        ],
    }
    (tmp_path / "captions.json").write_text(json.dumps(content, indent=1))
    source = Source(path=str(tmp_path / "captions.json"), images=str(tmp_path / "val2017"))
    examples = take(Pairs([source]), 30)
    assert {(e.image, e.caption) for e in examples} == {(b"seven", "one"), (b"seven", "two")}


def test_a_json_list_is_read_as_lines_are(tmp_path: Path) -> None:
    rows = [{"image": "a", "caption": "one\u2028two"}, {"image": "a", "captions": ["three"]}]
    (tmp_path / "list.json").write_text(json.dumps(rows, ensure_ascii=False))
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "lines.jsonl").write_text(lines)
    found = [read_json(str(tmp_path / name)) for name in ("list.json", "lines.jsonl")]
    assert found[0] == found[1]
    assert found[0][0].captions == ("one\u2028two", "three")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"image": "a", "caption": "x"}\n{"image": "a", ', "name JSON Lines .jsonl"),
        ('[{"image": "a", "caption": "x"}, 3]', r"x\.json:2: is not a JSON object"),
        (
            '{"images": [], "annotations": [{"image_id": 1, "caption": "x"}]}',
            r"x\.json:1: is an annotation of an image that is not listed",
        ),
    ],
)
def test_json_that_holds_no_pairs_is_refused_by_its_place(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_json(str(tmp_path / "x.json"))


def test_training_reads_whatever_download_reads(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "in").mkdir(parents=True)
    for name in "ab":
        (photos / "in" / f"{name}.jpg").write_bytes(name.encode())
        (photos / "in" / f"{name}.txt").write_text(f"of {name}")
    (photos / "in" / "c.jpg").write_bytes(b"without a caption")
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for path in sorted((photos / "in").iterdir()):
            file.add(path, path.name)
    (tmp_path / "a.csv").write_text("image,captions\nphotos/in/a.jpg,of a\nphotos/in/b.jpg,of b\n")
    columns = {"jpg": [b"a", b"b", b"c"], "texts": [["of a"], ["of b"], []]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    for name in ("photos", "a.tar", "a.csv", "a.parquet"):
        pairs = Pairs(as_sources([str(tmp_path / name)]))
        assert pairs.num_images == 2
        found = {(e.image, e.caption) for e in take(pairs, 8)}
        assert found == {(b"a", "of a"), (b"b", "of b")}, name
        before = fingerprint_of(str(tmp_path / name))
        assert before == fingerprint_of(str(tmp_path / name))
    before = fingerprint_of(str(photos))
    (photos / "in" / "a.txt").write_text("of another")
    assert fingerprint_of(str(photos)) != before


def test_held_out_folders_have_their_captions_or_else_labels(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "0.jpg").write_bytes(label.encode())
    found = read_folder(str(tmp_path))
    assert [(s.label, s.captions, s.read()) for s in found] == [
        ("cat", (), b"cat"),
        ("dog", (), b"dog"),
    ]
    before = state_of(str(tmp_path))
    (tmp_path / "dog" / "0.caption").write_text("a dog")
    assert state_of(str(tmp_path)) != before
    assert [(s.label, s.captions) for s in read_folder(str(tmp_path))] == [(None, ("a dog",))]


def test_an_image_that_is_not_there_is_an_unreadable_one(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"image": "gone.jpg", "caption": "x"}')
    assert take(Pairs(as_sources([str(tmp_path / "x.jsonl")])), 1)[0].image == b""


def test_small_json_is_dealt_to_several_streams(tmp_path: Path) -> None:
    rows = [{"image": f"{i}", "caption": "x"} for i in range(10)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = Pairs(as_sources([str(tmp_path / "x.jsonl")]), num_streams=4)
    assert len(pairs.units) == 10


def test_a_source_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "no.parquet", tmp_path / "*.parquet", tmp_path):
        with pytest.raises(ValueError, match="no file"):
            Pairs([Source(path=str(path))])


def test_a_file_that_is_not_the_parquet_it_is_called_is_refused_by_name(tmp_path: Path) -> None:
    (path := tmp_path / "x.parquet").write_bytes(b"not Parquet at all")
    with pytest.raises(ValueError, match=r"x\.parquet: not a Parquet file"):
        Pairs([Source(path=str(path))])


def test_the_fingerprint_of_a_file_is_its_content(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    before = fingerprint_of(str(tmp_path / "a.jsonl"))
    assert before == hashlib.sha256(b"{}").hexdigest()
    (tmp_path / "a.jsonl").write_text("{} ")
    assert fingerprint_of(str(tmp_path / "a.jsonl")) != before


def test_the_fingerprint_of_an_exported_shard_is_that_of_its_manifest(tmp_path: Path) -> None:
    write_pool(tmp_path / "00000.parquet", ["a"])
    listed = {"files": [{"name": "00000.parquet", "sha256": "f" * 64}]}
    Run(str(tmp_path)).write_json(listed, "manifest.json")
    write_pool(tmp_path / "extra.parquet", ["b"])
    names = ("00000.parquet", "extra.parquet")
    extra = hashlib.sha256((tmp_path / "extra.parquet").read_bytes()).hexdigest()
    assert fingerprints_of([str(tmp_path / name) for name in names]) == ["f" * 64, extra]


@pytest.mark.parametrize(
    "manifest", ["[1]", '{"files": ["00000.parquet"]}', '{"files": 3}', "not JSON", b"\xff"]
)
def test_the_manifest_of_another_tool_says_nothing_of_a_file(
    tmp_path: Path, manifest: str | bytes
) -> None:
    write_pool(tmp_path / "00000.parquet", ["a"])
    content = manifest.encode() if isinstance(manifest, str) else manifest
    (tmp_path / "manifest.json").write_bytes(content)
    expected = hashlib.sha256((tmp_path / "00000.parquet").read_bytes()).hexdigest()
    assert fingerprint_of(str(tmp_path / "00000.parquet")) == expected


def test_the_state_of_a_folder_of_labels_is_that_of_its_images(tmp_path: Path) -> None:
    for label, name in (("cat", "a.jp2"), ("dog", "b.png")):
        (tmp_path / label).mkdir()
        (tmp_path / label / name).write_bytes(b"x")
    assert [sample.label for sample in read_folder(str(tmp_path))] == ["cat", "dog"]
    before = state_of(str(tmp_path))
    (tmp_path / "dog" / "._b.png").write_text("of another system")
    assert state_of(str(tmp_path)) == before
    (tmp_path / "dog" / "b.png").write_bytes(b"another")
    assert state_of(str(tmp_path)) != before


def test_no_pairs_at_all_are_refused(tmp_path: Path) -> None:
    schema = pa.schema([("uid", pa.string()), ("image", pa.binary()), ("caption", pa.string())])
    pq.write_table(schema.empty_table(), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="no pairs in"):
        Pairs(as_sources([str(tmp_path / "x.parquet")]))


TEXT = (
    st.none()
    | st.text(max_size=6)
    | st.sampled_from(["nan", " NaN ", "a dog", "犬がいる", "🐕🐕🐕🐕"])
)


@given(st.lists(st.tuples(st.sampled_from(["a", "b", None]), TEXT, TEXT), min_size=1, max_size=8))
def test_images_are_counted_as_each_row_tells(rows: list[tuple[str | None, ...]]) -> None:
    buffer = io.BytesIO()
    table = pa.table(
        {
            "uid": pa.array([uid for uid, _, _ in rows], pa.string()),
            "image": [b"x"] * len(rows),
            "caption": pa.array([text for _, text, _ in rows], pa.string()),
            "text": pa.array([text for _, _, text in rows], pa.string()),
        }
    )
    pq.write_table(table, buffer)
    unit = RowGroup("x", 0, pq.ParquetFile(buffer))
    rows_of = enumerate(table.to_pylist())
    expected = {row.get("uid") or i for i, row in rows_of if unit._captions(row)}
    assert unit.num_images == len(expected)


def test_conversations_are_read_whole_where_an_objective_asks_for_them(tmp_path: Path) -> None:
    def turn(who: str, value: object) -> dict[str, object]:
        return {"from": who, "value": value}

    two = [turn("human", "<image>\nWhat?"), turn("gpt", "A dog."), turn("human", "Its colour?")]
    conversations = {
        "two": [*two, turn("gpt", "Red.")],
        "one": [turn("human", "<image>\nWhat?"), turn("gpt", "A cat.")],
        "open": two,  # the last question has no answer
        "odd": [turn("gpt", "A dog."), turn("human", "What?")],
        "broken": ["What?", 3],
    }
    rows = []
    for number, (name, turns) in enumerate(conversations.items()):
        (tmp_path / f"{name}.jpg").write_bytes(jpeg(number))
        rows.append({"id": name, "image": f"{name}.jpg", "conversations": turns})
    (tmp_path / "plain.jpg").write_bytes(jpeg(99))
    rows.append({"image": "plain.jpg", "caption": "a bird"})
    path = tmp_path / "train.json"
    path.write_text(json.dumps(rows))
    sources = as_sources([str(path)])
    whole = {text for own in Pairs(sources, conversations=True).captions() for text in own}
    assert whole == {
        as_text([Turn("<image>\nWhat?", "A dog."), Turn("Its colour?", "Red.")]),
        as_text([Turn("<image>\nWhat?", "A cat.")]),
        "a bird",
    }
    # Any other training reads the answer of one turn as a caption, as download does.
    assert {text for own in Pairs(sources).captions() for text in own} == {
        "A cat.",
        "a bird",
        "A dog.",
    }
