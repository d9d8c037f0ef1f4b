import hashlib
import io
import json

import pyarrow as pa
import pytest
from helpers import fakes
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stages.documents import DocumentsConfig
from stages.export import ExportConfig, ExportStage
from stages.formats import Shard
from stages.schema import DRAWN_PAIRS, PAIRS


def rows_of(captions, synthetic=None, scores=None):
    n = len(captions)
    columns = {
        "uid": [f"{i:032x}" for i in range(n)],
        "image": pa.array([bytes([i % 256]) for i in range(n)], pa.binary()),
        "caption": pa.array(captions, pa.string()),
        "width": pa.array([64] * n, pa.int32()),
        "height": pa.array([48] * n, pa.int32()),
        "url": [f"http://example.org/{i}" for i in range(n)],
        "source": ["web"] * n,
        "sha256": [f"{i:064x}" for i in range(n)],
    }
    if synthetic is not None:
        columns["synthetic"] = pa.array(synthetic, pa.list_(pa.string()))
    if scores is not None:
        columns["itm_web"] = pa.array(scores[0], pa.float32())
        columns["itm_synthetic"] = pa.array(scores[1], pa.list_(pa.float32()))
    return pa.table(columns)


def keeps_of(web, synthetic):
    return pa.table(
        {
            "keep_web": pa.array(web, pa.bool_()),
            "keep_synthetic": pa.array(synthetic, pa.list_(pa.bool_())),
        }
    )


def test_web_and_synthetic_texts_are_kept_each_by_itself():
    rows = rows_of(
        ["w0", "w1", None, "w3"],
        [["s0", "t0"], ["s1", "t1"], ["s2", ""], []],
        ([0.9, 0.1, None, 0.2], [[0.8, 0.3], [0.2, 0.7], [0.6, 0.9], []]),
    )
    keeps = keeps_of([True, False, False, False], [[True, False], [False, True], [True, True], []])
    pairs = ExportStage(ExportConfig()).pairs(rows, keeps)
    assert pairs.schema.equals(PAIRS, check_metadata=True)
    found = [
        (int(r["uid"], 16), r["caption"], r["caption_source"], round(r["itm_score"], 3))
        for r in pairs.to_pylist()
    ]
    assert found == [
        (0, "w0", "web", 0.9),
        (0, "s0", "synthetic", 0.8),
        (1, "t1", "synthetic", 0.7),
        (2, "s2", "synthetic", 0.6),
    ]
    assert pairs["image"].to_pylist()[2] == {"bytes": b"\x01", "path": None}


def test_the_captions_of_copies_are_web_captions_of_what_is_kept():
    rows = rows_of(["w0", "w1"], [["s0"], []], ([0.9, 0.1], [[0.8], []]))
    further = pa.array([["f0", "g0"], None], pa.list_(pa.string()))
    scores = pa.array([[0.7, 0.2], None], pa.list_(pa.float32()))
    rows = rows.append_column("further_captions", further).append_column("itm_further", scores)
    keeps = keeps_of([False, True], [[True], []]).append_column(
        "keep_further", pa.array([[True, False], []], pa.list_(pa.bool_()))
    )
    pairs = ExportStage(ExportConfig()).pairs(rows, keeps)
    assert [(r["caption"], r["caption_source"]) for r in pairs.to_pylist()] == [
        ("f0", "web"),
        ("s0", "synthetic"),
        ("w1", "web"),
    ]
    assert round(pairs["itm_score"][0].as_py(), 3) == 0.7
    unjudged = ExportStage(ExportConfig(synthetic=False)).pairs(rows, None)
    assert unjudged["caption"].to_pylist() == ["w0", "f0", "g0", "w1"]


def test_a_synthetic_caption_carries_the_name_of_its_prompt_and_whether_it_is_fused():
    rows = rows_of(["w0", None], [["s0", "f0"], ["s1", "f1"]])
    names = pa.array([["short", "alt"], [None, "alt"]], pa.list_(pa.string()))
    fused = pa.array([[False, True], [False, True]], pa.list_(pa.bool_()))
    rows = rows.append_column("synthetic_names", names).append_column("synthetic_fused", fused)
    keeps = keeps_of([True, False], [[True, True], [True, False]])
    pairs = ExportStage(ExportConfig()).pairs(rows, keeps)
    assert pairs.schema.equals(PAIRS, check_metadata=True)
    found = [(p["caption"], p["caption_source"], p["caption_name"]) for p in pairs.to_pylist()]
    assert found == [
        ("w0", "web", None),
        ("s0", "synthetic", "short"),
        ("f0", "fused", "alt"),
        ("s1", "synthetic", None),
    ]
    assert ExportStage(ExportConfig(synthetic=False)).pairs(rows, keeps).num_rows == 1


def test_without_a_filter_every_text_is_kept():
    pairs = ExportStage(ExportConfig()).pairs(rows_of(["w0", None], [["s0"], ["s1"]]), None)
    assert pairs["caption"].to_pylist() == ["w0", "s0", "s1"]
    assert pairs["itm_score"].null_count == 3


def test_sources_can_be_left_out():
    rows = rows_of(["w0"], [["s0"]])
    web = ExportStage(ExportConfig(synthetic=False)).pairs(rows, None)
    synthetic = ExportStage(ExportConfig(web=False)).pairs(rows, None)
    none = ExportStage(ExportConfig(web=False, synthetic=False, human=("h",))).pairs(rows, None)
    assert web["caption"].to_pylist() == ["w0"]
    assert synthetic["caption"].to_pylist() == ["s0"]
    assert none.num_rows == 0 and none.schema.equals(PAIRS)
    with pytest.raises(ValueError, match="nothing would be exported"):
        ExportConfig(web=False, synthetic=False)


@given(
    st.lists(
        st.tuples(
            st.none() | st.text(max_size=4),
            st.booleans(),
            st.lists(st.tuples(st.text(min_size=1, max_size=4), st.booleans()), max_size=3),
        ),
        max_size=8,
    )
)
def test_exactly_the_kept_texts_come_out_in_row_order(rows):
    table = rows_of([r[0] for r in rows], [[t for t, _ in r[2]] for r in rows])
    keeps = keeps_of(
        [r[1] and r[0] is not None for r in rows], [[k for _, k in r[2]] for r in rows]
    )
    pairs = ExportStage(ExportConfig()).pairs(table, keeps)
    expected = [
        (f"{i:032x}", text)
        for i, (web, keep, synthetic) in enumerate(rows)
        for text in ([web] if keep and web is not None else []) + [t for t, k in synthetic if k]
    ]
    assert list(zip(*(pairs[c].to_pylist() for c in ("uid", "caption")), strict=True)) == expected


def human_file(folder, lines):
    path = folder / "human.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_human_pairs_come_unfiltered_and_share_a_uid_by_image(tmp_path):
    (tmp_path / "a.jpg").write_bytes(fakes.jpeg(1))
    alpha = io.BytesIO()
    Image.new("RGBA", (30, 20), (255, 0, 0, 128)).save(alpha, "PNG")
    (tmp_path / "b.png").write_bytes(alpha.getvalue())
    path = human_file(
        tmp_path,
        [
            {"image": "a.jpg", "caption": "one"},
            {"image": "a.jpg", "caption": "two"},
            {"image": "b.png", "captions": ["three", "four"]},
        ],
    )
    ((shard, pairs),) = ExportStage(ExportConfig(human=(path,))).human_pairs()
    assert shard == Shard(split="train", number=0, is_human=True)
    assert pairs["caption"].to_pylist() == ["one", "two", "three", "four"]
    assert set(pairs["caption_source"].to_pylist()) == {"human"}
    uids = pairs["uid"].to_pylist()
    assert uids[0] == uids[1] != uids[2] == uids[3]
    first, *_, last = pairs["image"].to_pylist()
    first_hash = pairs["sha256"][0].as_py()
    assert first["bytes"] == fakes.jpeg(1)
    assert Image.open(io.BytesIO(last["bytes"])).mode == "RGB"
    assert first_hash == hashlib.sha256(fakes.jpeg(1)).hexdigest()


def test_pairs_of_drawn_rows_say_how_often(tmp_path):
    rows = rows_of(["w0", "w1", None], [["s0"], [], ["s2"]])
    rows = rows.append_column("draws", pa.array([3, 1, None], pa.int32()))
    (tmp_path / "a.jpg").write_bytes(fakes.jpeg(1))
    path = human_file(tmp_path, [{"image": "a.jpg", "caption": "one"}])
    stage = ExportStage(ExportConfig(human=(path,)), is_drawn=True)
    pairs = stage.pairs(rows, None)
    assert pairs.schema.equals(DRAWN_PAIRS, check_metadata=True)
    found = list(zip(pairs["caption"].to_pylist(), pairs["draws"].to_pylist(), strict=True))
    # What a person has put back was not drawn, and stands once.
    assert found == [("w0", 3), ("s0", 3), ("w1", 1), ("s2", 1)]
    ((_, human),) = stage.human_pairs()
    assert human["draws"].to_pylist() == [1] and human.schema == pairs.schema
    assert stage.pairs(rows[:0], None).schema == pairs.schema
    assert "draws" not in ExportStage(ExportConfig()).pairs(rows, None).column_names


def test_human_captions_of_an_image_stay_together_whichever_lines_they_stand_on(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_bytes(fakes.jpeg(ord(name)))
    lines = [{"image": f"{name}.jpg", "caption": f"{name}{n}"} for n in range(2) for name in "abc"]
    path = human_file(tmp_path, lines)
    parts = list(ExportStage(ExportConfig(human=(path,), shard_size=2)).human_pairs())
    assert [shard.number for shard, _ in parts] == [0, 1]
    captions = [pairs["caption"].to_pylist() for _, pairs in parts]
    assert captions == [["a0", "a1", "b0", "b1"], ["c0", "c1"]]


def test_human_files_of_one_name_that_name_the_same_image_are_refused(tmp_path):
    paths = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(fakes.jpeg(1))
        paths.append(human_file(tmp_path / name, [{"image": "a.jpg", "caption": name}]))
    with pytest.raises(ValueError, match=r"two/human\.jsonl:1: .*rename one of the two files"):
        list(ExportStage(ExportConfig(human=tuple(paths))).human_pairs())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"validation": 1.0}, "export.validation must be from 0 to below 1"),
        ({"validation": -0.1}, "export.validation must be from 0 to below 1"),
        ({"shard_size": 0}, "export.shard_size must be at least 1"),
        ({"license": "CC BY"}, "export.license must be a licence as the hub names it"),
        ({"format": "urls", "documents": DocumentsConfig()}, "export.documents to null"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ExportConfig(**fields)


def test_the_split_follows_the_bytes_of_an_image_and_the_seed():
    rows = rows_of([f"w{i}" for i in range(400)], [["s"]] * 400)
    shas = [f"{i // 2:064x}" for i in range(400)]  # each image twice, with other captions
    column = rows.schema.get_field_index("sha256")
    rows = rows.set_column(column, "sha256", pa.array(shas))

    def held_out(**fields):
        stage = ExportStage(ExportConfig(validation=0.25, **fields))
        pairs = stage.pairs(rows, None)
        counts = stage.images(rows.drop_columns("image"), None)
        parts = {split: stage.slice(pairs, split, 0, 400) for split in ("train", "validation")}
        assert sum(part.num_rows for part in parts.values()) == pairs.num_rows == 800
        images = {split: len(set(part["uid"].to_pylist())) for split, part in parts.items()}
        assert images == counts
        found = {split: set(part["sha256"].to_pylist()) for split, part in parts.items()}
        assert not found["train"] & found["validation"]
        return found["validation"]

    first = held_out(seed=0)
    assert 30 <= len(first) <= 70 and first == held_out(seed=0, shard_size=7)
    assert first != held_out(seed=1)
    assert ExportStage(ExportConfig()).images(rows, None) == {"train": 400, "validation": 0}


def test_an_image_of_which_no_text_is_kept_does_not_count():
    rows = rows_of(["w0", None, "w2"], [["s0"], [""], []], ([0.9, None, 0.1], [[0.9], [0.1], []]))
    keeps = keeps_of([True, False, False], [[True], [False], []])
    assert ExportStage(ExportConfig()).images(rows, keeps)["train"] == 1
    assert ExportStage(ExportConfig()).images(rows, None)["train"] == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            {"caption": "no image"},
            r"export\.human: .*human\.jsonl names no images: it has no column",
        ),
        ({"image": None, "caption": "x"}, r"human\.jsonl:1: names no `image`"),
        ({"image": "gone.jpg", "caption": "x"}, r"human\.jsonl:1: cannot read image .*gone\.jpg"),
    ],
)
def test_a_bad_human_line_is_named(tmp_path, line, message):
    (tmp_path / "a.jpg").write_bytes(fakes.jpeg(1))
    with pytest.raises(ValueError, match=message):
        list(ExportStage(ExportConfig(human=(human_file(tmp_path, [line]),))).human_pairs())
    with pytest.raises(ValueError, match=r"export\.human has no such list"):
        list(ExportStage(ExportConfig(human=("nowhere.jsonl",))).human_pairs())
