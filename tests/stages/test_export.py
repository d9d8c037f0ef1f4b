import io
import json

import fakes
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stages.export import ExportConfig, ExportStage
from stages.schema import PAIRS


def rows_of(captions, synthetic=None, scores=None):
    n = len(captions)
    columns = {
        "uid": [f"{i:032x}" for i in range(n)],
        "image": pa.array([bytes([i]) for i in range(n)], pa.binary()),
        "caption": pa.array(captions, pa.string()),
        "width": pa.array([64] * n, pa.int32()),
        "height": pa.array([48] * n, pa.int32()),
        "url": [f"http://example.org/{i}" for i in range(n)],
        "source": ["web"] * n,
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
    (pairs,) = ExportStage(ExportConfig(human=(path,))).human_pairs()
    assert pairs["caption"].to_pylist() == ["one", "two", "three", "four"]
    assert set(pairs["caption_source"].to_pylist()) == {"human"}
    uids = pairs["uid"].to_pylist()
    assert uids[0] == uids[1] != uids[2] == uids[3]
    first, *_, last = pairs["image"].to_pylist()
    assert first["bytes"] == fakes.jpeg(1)
    assert Image.open(io.BytesIO(last["bytes"])).mode == "RGB"
    parts = list(ExportStage(ExportConfig(human=(path,), human_shard_size=2)).human_pairs())
    assert [p.num_rows for p in parts] == [2, 2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"caption": "no image"}, r"human\.jsonl:1: needs `image`"),
        ({"image": "a.jpg"}, r"human\.jsonl:1: `caption` must be text"),
        ({"image": "a.jpg", "caption": 3}, r"human\.jsonl:1: `caption` must be text"),
        ({"image": "gone.jpg", "caption": "x"}, r"human\.jsonl:1: cannot read image .*gone\.jpg"),
    ],
)
def test_a_bad_human_line_is_named(tmp_path, line, message):
    (tmp_path / "a.jpg").write_bytes(fakes.jpeg(1))
    with pytest.raises(ValueError, match=message):
        list(ExportStage(ExportConfig(human=(human_file(tmp_path, [line]),))).human_pairs())
    with pytest.raises(ValueError, match="no file"):
        list(ExportStage(ExportConfig(human=("nowhere.jsonl",))).human_pairs())
