"""The look-up of decisions, and what they make of rows that are exported."""

import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.export import ExportConfig, ExportStage
from stages.review import Decision, ReviewConfig, ReviewStage, read_decisions, revised, sealed

CAPTIONS = pa.list_(pa.string())
SCORES = pa.list_(pa.float32())


def decided(path, *decisions):
    lines = (
        json.dumps(dict(zip(("uid", "caption", "verdict", "fixed"), d, strict=False)))
        for d in decisions
    )
    path.write_text("".join(f"{line}\n" for line in lines))
    return ReviewStage(ReviewConfig(file=str(path)))


def rows(*entries):
    """Rows of (uid, web, further, synthetic)."""
    names = ("uid", "caption", "further_captions", "synthetic")
    types = (pa.string(), pa.string(), CAPTIONS, CAPTIONS)
    columns = zip(*entries, strict=True)
    return pa.table({n: pa.array(c, t) for n, c, t in zip(names, columns, types, strict=True)})


def looked_up(stage, table):
    found = stage.annotate(table)
    assert found.schema.equals(stage.writes) and found.num_rows == table.num_rows
    return found


def exported(stage, table, **config):
    """The captions that export writes of rows, as (uid, caption, source, score)."""
    found = looked_up(stage, table)
    reasons = stage.judge(found.add_column(0, "uid", table["uid"]))
    table = table.append_column("reviews", found["reviews"])
    table = table.filter(reasons.is_null())
    number = table.num_rows
    for name, value in (
        ("image", b"x"),
        ("width", 1),
        ("height", 1),
        ("url", "u"),
        ("source", "s"),
        ("sha256", "00"),
    ):
        table = table.append_column(name, pa.array([value] * number))
    pairs = ExportStage(ExportConfig(**config)).pairs(revised(table), None)
    return [
        (p["uid"], p["caption"], p["caption_source"], p["itm_score"]) for p in pairs.to_pylist()
    ]


def scored(table):
    marks = [[0.75] * len(texts or ()) for texts in table["synthetic"].to_pylist()]
    table = table.append_column("itm_web", pa.array([0.5] * table.num_rows, pa.float32()))
    return table.append_column("itm_synthetic", pa.array(marks, SCORES))


def test_without_decisions_all_is_kept(tmp_path):
    stage = ReviewStage(ReviewConfig(file=str(tmp_path / "none.jsonl")))
    table = rows(("a", "one", None, ["two"]), ("b", None, None, None))
    found = looked_up(stage, table)
    assert found["reviews"].null_count == found["captions_left"].null_count == 2
    assert stage.judge(found).null_count == 2
    assert [entry[1] for entry in exported(stage, scored(table))] == ["one", "two"]


def test_a_decision_is_on_one_caption_of_one_image(tmp_path):
    stage = decided(
        tmp_path / "d.jsonl",
        ("a", "one", "reject"),
        ("b", "two", "fix", "three"),
        ("b", "one", "accept"),
        ("c", "gone", "reject"),
    )
    table = rows(
        ("a", "one", None, ["two", "four"]),
        ("b", "one", None, ["two", "two"]),
        ("c", "one", None, []),
    )
    assert exported(stage, scored(table)) == [
        ("a", "two", "synthetic", 0.75),
        ("a", "four", "synthetic", 0.75),
        ("b", "one", "web", 0.5),
        ("b", "three", "synthetic", None),
        ("b", "three", "synthetic", None),
        ("c", "one", "web", 0.5),
    ]


def test_captions_taken_over_from_copies_are_reviewed_too(tmp_path):
    stage = decided(tmp_path / "d.jsonl", ("a", "two", "reject"), ("a", "three", "fix", "four"))
    table = rows(("a", "one", ["two", "three"], None), ("b", "one", None, None))
    assert [entry[:3] for entry in exported(stage, table)] == [
        ("a", "one", "web"),
        ("a", "four", "web"),
        ("b", "one", "web"),
    ]


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (("a", "one", None, None), "rejected"),
        (("a", "one", None, ["one", "", " "]), "rejected"),
        (("a", None, None, ["one"]), "rejected"),
        (("a", "one", ["one"], None), "rejected"),
        (("a", "one", None, ["two"]), None),
        (("a", "two", None, None), None),
        (("b", "one", None, None), None),
        (("a", None, None, None), None),
    ],
)
def test_a_row_is_rejected_when_each_of_its_captions_is(tmp_path, row, verdict):
    stage = decided(tmp_path / "d.jsonl", ("a", "one", "reject"))
    found = looked_up(stage, rows(row))
    assert stage.judge(found).to_pylist() == [verdict]


def test_the_caption_as_clean_left_it_is_the_one_reviewed(tmp_path):
    stage = decided(tmp_path / "d.jsonl", ("a", "one", "fix", "new"), ("b", "raw", "reject"))
    table = rows(("a", "ONE", None, None), ("b", "raw", None, None))
    table = table.append_column("text", pa.array(["one", "clean"]))
    assert [entry[:2] for entry in exported(stage, table)] == [("a", "new"), ("b", "clean")]


def test_the_fingerprint_follows_the_decisions_and_not_the_name_of_the_file(tmp_path):
    one = decided(tmp_path / "1.jsonl", ("a", "one", "reject")).config.measurement()
    assert decided(tmp_path / "2.jsonl", ("a", "one", "reject")).config.measurement() == one
    assert decided(tmp_path / "3.jsonl", ("a", "one", "accept")).config.measurement() != one


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '"accept"',
        '{"uid": "a", "verdict": "accept"}',
        '{"uid": "a", "caption": "one", "verdict": "maybe"}',
        '{"uid": "a", "caption": "one", "verdict": ["accept"]}',
        '{"uid": "a", "caption": "one", "verdict": "fix"}',
        '{"uid": "a", "caption": "one", "verdict": "fix", "fixed": " "}',
        '{"uid": "a", "caption": "one", "verdict": "reject", "fixed": "two"}',
    ],
)
def test_a_line_that_is_no_decision_is_named(tmp_path, line):
    path = tmp_path / "d.jsonl"
    path.write_text('{"uid": "a", "caption": "one", "verdict": "accept"}\n\n' + line)
    with pytest.raises(ValueError, match=r"review\.file: .*d\.jsonl:3: .*one of accept"):
        read_decisions(str(path))


def test_the_last_line_on_a_caption_counts(tmp_path):
    stage = decided(tmp_path / "d.jsonl", ("a", "one", "reject"), ("a", "one", "accept"))
    assert read_decisions(stage.config.file) == {("a", "one"): Decision("accept")}


TEXTS = st.sampled_from(["one", "two", "three", "", " "])
ROWS = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.none() | TEXTS,
        st.none() | st.lists(TEXTS, max_size=2),
        st.lists(TEXTS, max_size=3),
    ),
    min_size=1,
    max_size=6,
)
DECISIONS = st.dictionaries(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(["one", "two", "three"])),
    st.sampled_from(["accept", "reject", "fix"]),
)


@given(ROWS, DECISIONS, st.integers(0, 6))
def test_any_split_of_the_rows_gives_the_same_and_no_text_but_the_decided_changes(
    tmp_path_factory, entries, decisions, cut
):
    path = tmp_path_factory.getbasetemp() / "decisions.jsonl"
    stage = decided(
        path,
        *((u, c, v, *(["new"] if v == "fix" else [])) for (u, c), v in decisions.items()),
    )
    table = rows(*entries)
    found = looked_up(stage, table)
    parts = [looked_up(stage, part) for part in (table.slice(0, cut), table.slice(cut))]
    assert pa.concat_tables(parts).equals(found)
    after = revised(table.append_column("reviews", found["reviews"])).to_pylist()
    for before, now in zip(table.to_pylist(), after, strict=True):
        for old, new in zip(_texts(before), _texts(now), strict=True):
            verdict = decisions.get((before["uid"], old))
            if verdict == "reject":
                assert not new
            else:
                assert new == ("new" if verdict == "fix" else old)


def _texts(row):
    return [row["caption"], *(row["further_captions"] or []), *row["synthetic"]]


def test_no_changed_byte_of_sealed_decisions_is_taken(tmp_path):
    path = tmp_path / "r.jsonl"
    decided(path, ("a", "a dog", "accept"), ("b", "a cat", "fix", "a caf\u00e9"))
    decisions = read_decisions(str(path))
    whole = sealed(path.read_bytes())
    path.write_bytes(whole)
    assert read_decisions(str(path)) == decisions
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"review.file: .*r\.jsonl"):
            read_decisions(str(path))
    path.write_bytes(whole[whole.index(b"\n") + 1 :])
    with pytest.raises(ValueError, match="remove that line if you changed the file yourself"):
        read_decisions(str(path))


def test_decisions_of_other_hands_may_stand_below_the_seal(tmp_path):
    path = tmp_path / "r.jsonl"
    decided(path, ("a", "a dog", "accept"))
    whole = sealed(path.read_bytes())
    path.write_bytes(whole + b'{"uid": "a", "caption": "a dog", "verdict": "reject"}\n')
    assert read_decisions(str(path)) == {("a", "a dog"): Decision("reject")}
    assert sealed(b"") == b""
