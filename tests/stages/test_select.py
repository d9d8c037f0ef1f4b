from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from models.random import hashes, uid_hashes
from stages.select import SelectConfig, SelectStage, coverage, draw

PORT = Path(__file__).resolve().parents[2] / "../shared/data/en_core_web_sm_port"
Variant = Literal["literal", "not_pooled", "quota"]
LISTS = st.lists(
    st.none() | st.lists(st.sampled_from("abcdefg\u00e9"), max_size=4, unique=True), max_size=40
)


def annotated(lists: list[list[str] | None]) -> pa.Table:
    return pa.table(
        {
            "uid": [f"{i:032x}" for i in range(len(lists))],
            "noun_phrases": pa.array(lists, pa.list_(pa.string())),
        }
    )


def subset(lists: list[list[str] | None], **settings: object) -> list[str | None]:
    stage = SelectStage(SelectConfig(**settings))  # type: ignore[arg-type]
    summary = stage.summarize(iter([annotated(lists)]))
    assert summary.column_names == ["uid", *stage.summary.names]
    assert summary.select(stage.summary.names).schema.equals(stage.summary)
    by: list[str | None] = summary["selected_by"].to_pylist()
    assert summary["selected"].to_pylist() == [one is not None for one in by]
    return by


def lot(seed: int, phrase: str, row: int) -> int:
    """Where a row stands among those that hold a phrase."""
    uid = pa.chunked_array([[f"{row:032x}"]])
    return int(draw(seed, hashes(pa.array([phrase])), uid_hashes(uid))[0])


def by_the_book(
    lists: list[list[str] | None], least: int, most: int, seed: int, variant: Variant
) -> list[str | None]:
    """The paper's sentence, one caption at a time."""
    counts = Counter(phrase for phrases in lists for phrase in phrases or ())
    pooled: dict[int, str] = {}
    for phrase in sorted(counts, key=lambda p: (counts[p], p.encode())):
        if counts[phrase] < least:
            continue
        members = [i for i, phrases in enumerate(lists) if phrases and phrase in phrases]
        if len(members) > most:
            members = sorted(members, key=lambda i: lot(seed, phrase, i))
            room = most
            if variant != "literal":
                free = [i for i in members if i not in pooled]
                room -= len(members) - len(free) if variant == "quota" else 0
                members = free
            members = members[: max(room, 0)]
        for i in members:
            pooled.setdefault(i, phrase)
    return [pooled.get(i) for i in range(len(lists))]


@given(
    LISTS,
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(0, 5),
    st.sampled_from(["literal", "not_pooled", "quota"]),
)
def test_the_subset_is_the_one_the_paper_describes(
    lists: list[list[str] | None], least: int, most: int, seed: int, variant: Variant
) -> None:
    found = subset(lists, min_frequency=least, max_per_phrase=most, seed=seed, variant=variant)
    assert found == by_the_book(lists, least, most, seed, variant)


@given(LISTS, st.randoms(use_true_random=False))
def test_the_subset_does_not_depend_on_the_order_of_rows_or_shards(
    lists: list[list[str] | None], rng: object
) -> None:
    table = annotated(lists)
    stage = SelectStage(SelectConfig(max_per_phrase=4))
    expected = stage.summarize(iter([table])).to_pylist()
    order = list(range(len(lists)))
    rng.shuffle(order)  # type: ignore[attr-defined]
    shuffled = table.take(pa.array(order, pa.int64()))
    cut = len(lists) // 3
    found = stage.summarize(iter([shuffled[:cut], shuffled[cut:]])).to_pylist()
    assert found == [expected[i] for i in order]


def test_exactly_the_most_keeps_all_and_one_more_is_sampled() -> None:
    assert None not in subset([["a dog"]] * 100)
    assert subset([["a dog"]] * 101).count(None) == 1


def test_rare_phrases_bring_in_nothing() -> None:
    assert subset([["a dog"], ["a dog"], ["a cat"], [], None]) == [None] * 5
    assert subset([["a dog", "a cat"], ["a dog"], ["a dog"]]) == ["a dog"] * 3


def test_a_caption_belongs_to_its_rarest_phrase() -> None:
    lists: list[list[str] | None] = [["the sky", "a kite"]] * 3 + [["the sky"]] * 3
    assert subset(lists) == ["a kite"] * 3 + ["the sky"] * 3


def test_the_seed_changes_the_sample_and_nothing_else_does() -> None:
    lists: list[list[str] | None] = [["a dog"]] * 300
    assert subset(lists) == subset(lists, seed=0) != subset(lists, seed=1)
    assert subset(lists, seed=1).count(None) == 200


def test_tickets_are_spread_evenly() -> None:
    uids = uid_hashes(pa.chunked_array([[f"{i:032x}" for i in range(4000)]]))
    shares = draw(0, hashes(pa.array(["a dog"])), uids) / 2.0**64
    assert abs(np.histogram(shares, 10, (0, 1))[0] - 400).max() < 100


def test_rows_outside_the_subset_have_a_reason() -> None:
    lists: list[list[str] | None] = [["a dog"], ["a dog"], ["a dog"], ["a cat"], [], None]
    rows = annotated(lists)
    stage = SelectStage(SelectConfig())
    summary = stage.summarize(iter([rows])).drop_columns("uid")
    for name in summary.column_names:
        rows = rows.append_column(name, summary[name])
    expected = [None, None, None, "not_selected", "no_noun_phrase", "no_caption"]
    assert stage.judge(rows).to_pylist() == expected
    lenient = SelectStage(SelectConfig(require_caption=False))
    assert lenient.judge(rows).to_pylist() == [*expected[:5], None]
    assert set(expected) - {None} == set(stage.reasons) - {"no_score"}


def test_thresholds_and_the_seed_are_no_part_of_the_measurement(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    plain = SelectConfig(model=one).measurement()
    loose = SelectConfig(model=one, min_frequency=1, max_per_phrase=7, variant="quota", seed=5)
    assert loose.measurement() == plain
    assert SelectConfig(model=one, phrase="raw").measurement() != plain
    assert SelectConfig(model=two).measurement() != plain


@given(LISTS, st.integers(1, 4), st.integers(1, 4), st.integers(0, 5))
def test_balance_takes_rows_from_rare_phrases_up_while_every_phrase_has_room(
    lists: list[list[str] | None], least: int, most: int, seed: int
) -> None:
    found = subset(lists, method="balance", min_frequency=least, max_per_phrase=most, seed=seed)
    counts = Counter(phrase for phrases in lists for phrase in phrases or ())
    chosen: dict[int, str] = {}
    held: Counter[str] = Counter()
    for phrase in sorted(counts, key=lambda p: (counts[p], p.encode())):
        members = [i for i, phrases in enumerate(lists) if phrases and phrase in phrases]
        for i in sorted(members, key=lambda i: lot(seed, phrase, i)):
            phrases = lists[i] or []
            if counts[phrase] < least or i in chosen or any(held[p] >= most for p in phrases):
                continue
            chosen[i] = phrase
            held.update(phrases)
    assert found == [chosen.get(i) for i in range(len(lists))]
    assert max(held.values(), default=0) <= most


@given(LISTS, LISTS, st.sampled_from(["noun_phrases", "balance"]))
def test_rows_of_other_phrases_change_nothing(
    lists: list[list[str] | None], others: list[list[str] | None], method: str
) -> None:
    foreign = [phrases and [f"{phrase} of old" for phrase in phrases] for phrases in others]
    settings = {"method": method, "min_frequency": 2, "max_per_phrase": 3}
    assert subset([*lists, *foreign], **settings)[: len(lists)] == subset(lists, **settings)


@pytest.mark.parametrize("method", ["balance", "random", "top_fraction"])
@given(LISTS, st.randoms(use_true_random=False))
def test_no_method_depends_on_the_order_of_rows_or_shards(
    method: str, lists: list[list[str] | None], rng: object
) -> None:
    settings: dict[str, object] = {"max_per_phrase": 3} if method == "balance" else {"number": 5}
    if method == "top_fraction":
        settings["score"] = "itm_web"
    stage = SelectStage(SelectConfig(method=method, **settings))  # type: ignore[arg-type]
    scores = [None if one is None else float(len(one)) for one in lists]
    table = annotated(lists).append_column("score", pa.array(scores, pa.float64()))
    expected = stage.summarize(iter([table])).to_pylist()
    order = list(range(len(lists)))
    rng.shuffle(order)  # type: ignore[attr-defined]
    shuffled = table.take(pa.array(order, pa.int64()))
    cut = len(lists) // 3
    found = stage.summarize(iter([shuffled[:cut], shuffled[:0], shuffled[cut:]])).to_pylist()
    assert found == [expected[i] for i in order]


def test_random_draws_a_number_or_a_share_and_smaller_draws_lie_within_larger_ones() -> None:
    rows = annotated([None] * 2000).append_column("score", pa.array([None] * 2000, pa.float64()))

    def drawn(**settings: Any) -> list[bool]:
        stage = SelectStage(SelectConfig(method="random", **settings))
        found: list[bool] = stage.summarize(iter([rows[:7], rows[7:]]))["selected"].to_pylist()
        return found

    assert sum(drawn(number=100)) == 100
    assert sum(drawn(number=5000)) == sum(drawn(fraction=1.0)) == 2000
    tenth, fifth = drawn(fraction=0.1), drawn(fraction=0.2)
    assert 140 < sum(tenth) < 260 and all(b for a, b in zip(tenth, fifth, strict=True) if a)
    assert tenth == drawn(fraction=0.1) != drawn(fraction=0.1, seed=1)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([3, 1, None, 2], pa.int32()), [True, False, False, True]),
        (pa.array([0.5, float("nan"), 0.7, -1.0], pa.float32()), [True, False, True, False]),
        (
            pa.array([[0.1, 0.9], [], None, [None, 0.2]], pa.list_(pa.float32())),
            [True, False, False, True],
        ),
    ],
)
def test_top_fraction_keeps_the_rows_of_the_highest_scores(
    column: pa.Array[Any], expected: list[bool]
) -> None:
    rows = annotated([None] * 4).append_column("caption", pa.array([None] * 4, pa.string()))
    rows = rows.drop_columns("noun_phrases").append_column("itm_web", column)
    config = SelectConfig(method="top_fraction", score="itm_web", number=2)
    assert config.reads == ("itm_web",)
    stage = SelectStage(config)
    stage.load()
    measured = stage.annotate(rows)
    assert measured.schema.equals(stage.writes)
    measured = measured.append_column("uid", rows["uid"])
    summary = stage.summarize(iter([measured]))
    assert summary["selected"].to_pylist() == expected
    assert summary["selected_by"].null_count == 4
    for name in stage.summary.names:
        measured = measured.append_column(name, summary[name])
    verdicts = stage.judge(measured).to_pylist()
    has_score = measured["score"].is_valid().to_pylist()
    assert verdicts == [
        None if kept else "not_selected" if scored else "no_score"
        for kept, scored in zip(expected, has_score, strict=True)
    ]


def test_equal_scores_are_parted_by_the_uid_and_a_fraction_is_of_the_rows_with_a_score() -> None:
    score = pa.array([1.0] * 10 + [None] * 10, pa.float64())
    rows = annotated([None] * 20).append_column("score", score)
    config = SelectConfig(method="top_fraction", score="itm_web", fraction=0.5)
    found = SelectStage(config).summarize(iter([rows]))["selected"].to_pylist()
    assert sum(found[:10]) == 5 and not any(found[10:])
    assert found[:10] != [True] * 5 + [False] * 5


def test_coverage_counts_the_phrases_of_each_frequency_before_and_after() -> None:
    lists = [["rare"], ["sky", "sea"], ["sky", "sea"], None, []] + [["dog", "sky"]] * 40
    selected = np.array([False, True, True, True, True] + [True] * 9 + [False] * 31)
    column = pa.chunked_array([lists[:2], [], lists[2:]], pa.list_(pa.string()))
    found = coverage(column, selected).to_pylist()
    assert [row for row in found if row["before"] or row["after"]] == [
        {"from": 0, "to": 0, "before": 0, "after": 1},
        {"from": 1, "to": 1, "before": 1, "after": 0},
        {"from": 2, "to": 2, "before": 1, "after": 1},
        {"from": 9, "to": 9, "before": 0, "after": 1},
        {"from": 10, "to": 31, "before": 0, "after": 1},
        {"from": 32, "to": 99, "before": 2, "after": 0},
    ]
    assert found[-1]["to"] == 99
    assert len(coverage(column.slice(0, 0), selected[:0])) == 0


def test_only_what_the_method_measures_is_in_the_measurement() -> None:
    absent = "en_core_web_nowhere"
    assert SelectConfig(method="random", number=3, model=absent).measurement() == {}
    top = SelectConfig(method="top_fraction", number=3, score="itm_web", model=absent)
    assert top.measurement() == {"score": "itm_web"}
    with pytest.raises(FileNotFoundError, match="python -m spacy download"):
        SelectConfig(method="balance", model=absent).measurement()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_frequency": 0}, r"select\.min_frequency must be at least 1, got 0"),
        ({"max_per_phrase": 0}, r"select\.max_per_phrase"),
        ({"method": "random", "number": 0}, r"select\.number must be at least 1"),
        ({"method": "random", "fraction": 0.0}, r"select\.fraction must be above 0"),
        ({"method": "random", "fraction": 1.1}, r"select\.fraction .* at most 1, got 1\.1"),
        ({"method": "random"}, r"random needs one of select\.fraction and select\.number"),
        ({"method": "random", "number": 1, "fraction": 0.1}, "needs one of"),
        ({"number": 5}, "noun_phrases takes none of"),
        ({"method": "top_fraction", "number": 5}, r"select\.score must name the column"),
        (
            {"method": "random", "number": 5, "score": "itm_web"},
            r"select\.score is for the methods top",
        ),
        ({"model": ""}, r"select\.model must name a spaCy pipeline"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelectConfig(**settings)


def test_unknown_words_are_refused_and_the_defaults_are_the_papers() -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(SelectConfig).validate_python({"variant": "random"})
    assert TypeAdapter(SelectConfig).validate_python({}) == SelectConfig()


@pytest.mark.skipif(not PORT.is_dir(), reason="../shared/data/en_core_web_sm_port is absent")
def test_captions_are_parsed_from_the_normalised_text() -> None:
    rows = pa.table(
        {
            "uid": ["0" * 32, "1" * 32, "2" * 32],
            "caption": ["Photo: A Red Dog | Stock Photo", None, "..."],
            "text": ["A Red Dog on the beach", None, "..."],
        }
    )
    stage = SelectStage(SelectConfig(model=str(PORT)))
    stage.load()
    found = stage.annotate(rows)
    assert found.schema.equals(stage.writes)
    assert found["noun_phrases"].to_pylist()[:2] == [["a red dog", "the beach"], None]
    raw = stage.annotate(rows.drop_columns("text"))["noun_phrases"].to_pylist()
    assert raw[0] != found["noun_phrases"].to_pylist()[0]
    assert stage.annotate(rows[:0]).schema.equals(stage.writes)


@pytest.mark.skipif(not PORT.is_dir(), reason="../shared/data/en_core_web_sm_port is absent")
@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        ("web", [["a red dog"], ["a boat"], None]),
        ("synthetic", [["a dog", "the beach"], None, ["a cat"]]),
        ("both", [["a red dog", "a dog", "the beach"], ["a boat"], ["a cat"]]),
    ],
)
def test_phrases_come_from_the_captions_asked_for(
    captions: Literal["web", "synthetic", "both"], expected: list[list[str] | None]
) -> None:
    rows = pa.table(
        {
            "uid": [f"{i:032x}" for i in range(3)],
            "caption": ["a red dog", "a boat", None],
            "synthetic": pa.array([["a dog on the beach", "the beach"], [], ["a cat"]]),
        }
    )
    config = SelectConfig(model=str(PORT), captions=captions)
    assert config.reads == (() if captions == "web" else ("synthetic",))
    stage = SelectStage(config)
    stage.load()
    assert stage.annotate(rows)["noun_phrases"].to_pylist() == expected


@pytest.mark.skipif(not PORT.is_dir(), reason="../shared/data/en_core_web_sm_port is absent")
def test_captions_taken_over_from_copies_fill_a_cap() -> None:
    further = [["a boat"] if i < 6 else [] for i in range(12)]
    rows = pa.table(
        {
            "uid": [f"{i:032x}" for i in range(12)],
            "caption": ["a red dog", *["a boat"] * 11],
            "further_captions": pa.array([["a cat", "a boat"], *further[1:-1], None]),
        }
    )
    stage = SelectStage(
        SelectConfig(model=str(PORT), method="balance", min_frequency=1, max_per_phrase=4)
    )
    stage.load()
    found = stage.annotate(rows)
    assert found["noun_phrases"].to_pylist()[0] == ["a red dog", "a cat", "a boat"]
    summary = stage.summarize(iter([found.add_column(0, "uid", rows["uid"])]))
    assert sum(summary["selected"].to_pylist()) == 4  # the first row, and three with boats alone
    alone = stage.annotate(rows.append_column("synthetic", pa.array([["a cat"]] * 12)))
    assert alone.equals(found)


def test_the_pool_decides_where_a_top_fraction_ends() -> None:
    table = pa.table({"score": pa.array([0.5, None])})
    top = SelectStage(SelectConfig(method="top_fraction", score="itm_web", number=1))
    (cutoff,) = top.cutoffs(table)
    assert (cutoff.reason, cutoff.name, cutoff.limit) == ("not_selected", "score", None)
    np.testing.assert_array_equal(cutoff.values, [0.5, np.nan])
    assert not list(SelectStage(SelectConfig()).cutoffs(table))
