from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from stages.select import SelectConfig, SelectStage, draw, hashes

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
            uids = pa.array([f"{i:032x}" for i in members])
            tickets = draw(seed, hashes(pa.array([phrase] * len(members))), hashes(uids)).tolist()
            members = [i for _, i in sorted(zip(tickets, members, strict=True))]
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
    uids = hashes(pa.array([f"{i:032x}" for i in range(4000)]))
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
    assert set(expected) - {None} == set(stage.reasons)


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


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"select\.min_frequency must be at least 1, got 0"):
        SelectConfig(min_frequency=0)
    with pytest.raises(ValueError, match=r"select\.max_per_phrase"):
        SelectConfig(max_per_phrase=0)
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
