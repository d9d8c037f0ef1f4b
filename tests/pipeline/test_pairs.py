import json
import random
from collections import Counter
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import jpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.pairs import Example, Pairs, Position, pre_caption
from stages.schema import PAIRS


def write_pool(path: Path, names: list[str], group: int = 3) -> str:
    """A pool shard: the image of a name is its bytes, its caption tells it."""
    rows = [{"uid": n, "image": n.encode(), "caption": f"caption of {n}"} for n in names]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return str(path)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pool")
    names = [f"{i:02d}" for i in range(20)]
    return [
        write_pool(folder / "00000.parquet", names[:11]),
        write_pool(folder / "00001.parquet", names[11:]),
    ]


def take(pairs: Pairs, number: int, position: Position | None = None) -> list[Example]:
    return [example for example, _ in islice(pairs.examples(position), number)]


def test_an_epoch_meets_every_image_once_and_each_epoch_in_another_order(pool: list[str]) -> None:
    examples = take(Pairs(pool), 60)
    epochs = [[e.image_id for e in examples[i : i + 20]] for i in (0, 20, 40)]
    assert [e.epoch for e in examples] == [0] * 20 + [1] * 20 + [2] * 20
    for ids in epochs:
        assert sorted(ids) == [f"{i:02d}" for i in range(20)]
    assert len({tuple(ids) for ids in epochs}) == 3
    assert all(e.caption == f"caption of {e.image.decode()}" for e in examples)


def test_the_order_is_of_the_seed_and_not_of_the_order_of_the_paths(pool: list[str]) -> None:
    once = [e.image_id for e in take(Pairs(pool, seed=1), 40)]
    assert once == [e.image_id for e in take(Pairs(pool[::-1], seed=1), 40)]
    assert once != [e.image_id for e in take(Pairs(pool, seed=2), 40)]


@given(taken=st.integers(0, 70), rank=st.integers(0, 1))
@settings(deadline=None, max_examples=20)
def test_a_position_goes_on_where_it_was_taken(pool: list[str], taken: int, rank: int) -> None:
    pairs = Pairs(pool, seed=3, rank=rank, num_ranks=2)
    whole = list(islice(pairs.examples(), taken + 10))
    position = whole[taken - 1][1] if taken else Position()
    rest = list(islice(Pairs(pool, seed=3, rank=rank, num_ranks=2).examples(position), 10))
    assert rest == whole[taken:]


def test_ranks_share_an_epoch_between_them(pool: list[str]) -> None:
    epoch: Counter[str] = Counter()
    for rank in range(3):
        stream = Pairs(pool, rank=rank, num_ranks=3).examples()
        for example, _ in stream:
            if example.epoch:
                break
            epoch[example.image_id] += 1
    assert set(epoch.values()) == {1}
    assert len(epoch) == 20


def test_blocks_are_shuffled_within_and_end_at_their_size(
    pool: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.pairs.ROWS_A_BLOCK", 7)
    pairs = Pairs(pool)
    blocks = pairs.blocks(0)
    assert len(blocks) > 2
    assert all(sum(unit.num_images for unit in block) <= 7 for block in blocks)
    assert sorted(e.image_id for e in take(pairs, 20)) == [f"{i:02d}" for i in range(20)]


def test_more_ranks_than_row_groups_are_refused(pool: list[str]) -> None:
    with pytest.raises(ValueError, match="smaller shards or train on fewer ranks"):
        Pairs(pool, num_ranks=30)


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
    examples = take(Pairs(paths), 24)
    assert {e.image_id for e in examples} == {"a", "d"}
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
    pairs = Pairs([str(path)])
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
    with pytest.raises(ValueError, match="line 2"):
        Pairs([str(path)])


def test_a_file_without_captions_is_refused_by_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="no column caption"):
        Pairs([str(tmp_path / "x.parquet")])


def test_no_pairs_at_all_are_refused(tmp_path: Path) -> None:
    schema = pa.schema([("uid", pa.string()), ("image", pa.binary()), ("caption", pa.string())])
    pq.write_table(schema.empty_table(), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="no pairs in"):
        Pairs([str(tmp_path / "x.parquet")])


def test_captions_are_cleaned_as_blip_does() -> None:
    assert pre_caption('A "Dog" runs, (fast): look!  #1') == "a dog runs, fast look 1"
    words = random.Random(0).choices("abcdefgh", k=50)
    assert pre_caption(" ".join(words)).split() == words[:30]
