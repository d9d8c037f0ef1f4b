from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.demo.truth import STAGES, Judgement, Score, judge
from pipeline.demo.web import TRUTH, build
from pipeline.demo.world import Group, Scene
from stages.schema import uid_of

SCENE = Scene(
    groups=(Group(kind="ball", color="red", size="big", count=1),), relation=None, ground="sea"
).to_json()


def row(name: str, drop_at: str, photo: str | None = None, matches: bool = False) -> dict[str, Any]:
    return {
        "url": name,
        "caption": name,
        "kind": "",
        "photo": photo or name,
        "drop_at": drop_at,
        "matches": matches,
        "scene": SCENE,
    }


TRUE = [
    row("dead", "download"),
    row("foreign", "clean"),
    row("short", "clean"),
    row("shared", "dedup"),
    row("swap", "filter"),
    row("spam", "filter"),
    row("good", "keep", matches=True),
    row("fine", "keep", matches=True),
    row("first", "keep", photo="p", matches=True),
    row("copy1", "dedup", photo="p", matches=True),
    row("copy2", "dedup", photo="p", matches=True),
]
RIGHT = {
    "dead": "download",
    "foreign": "clean",
    "short": "clean",
    "shared": "dedup",
    "swap": "filter",
    "spam": "filter",
    "good": "kept",
    "fine": "kept",
    "first": "dedup",
    "copy1": "kept",
    "copy2": "dedup",
}


def judged(changes: Mapping[str, str] | None = None, *, web: set[str] | None = None) -> Judgement:
    """A judgement of the right verdicts with some changes."""
    ends = {**RIGHT, **(changes or {})}
    kept = {name for name, end in ends.items() if end == "kept"} if web is None else web
    return judge(
        pa.Table.from_pylist(TRUE, schema=TRUTH),
        pa.table({"uid": [uid_of(n, n) for n in ends], "stage": list(ends.values())}),
        pa.table(
            {
                "uid": pa.array([uid_of(n, n) for n in sorted(kept)], pa.string()),
                "caption": pa.array(sorted(kept), pa.string()),
                "caption_source": pa.array(["web"] * len(kept), pa.string()),
            }
        ),
    )


def score(judgement: Judgement, stage: str) -> Score:
    return next(s for s in judgement.stages if s.stage == stage)


def test_right_verdicts_are_perfect() -> None:
    judgement = judged()
    assert tuple(s.stage for s in judgement.stages) == STAGES
    for s in judgement.stages:
        assert (s.precision, s.recall, s.num_lost) == (1.0, 1.0, 0)
        assert s.num_rejected == s.num_due
    assert [s.num_due for s in judgement.stages] == [1, 2, 3, 2]
    assert (judgement.exported_true, judgement.exported_recall) == (1.0, 1.0)
    assert judgement.raw_true == 5 / 10
    assert judgement.num_exported == 3


def test_a_good_pair_rejected_is_lost_to_the_stage_that_rejected_it() -> None:
    judgement = judged({"good": "clean"})
    clean = score(judgement, "clean")
    assert (clean.precision, clean.recall, clean.num_lost) == (2 / 3, 1.0, 1)
    assert judgement.exported_recall == 2 / 3


def test_a_pair_let_pass_lowers_recall_and_a_later_stage_is_right_to_reject_it() -> None:
    judgement = judged({"foreign": "filter"})
    assert score(judgement, "clean").recall == 1 / 2
    assert score(judgement, "filter").precision == 1.0
    assert score(judgement, "filter").num_rejected == 3


def test_an_early_rejection_counts_as_gone_but_not_as_right() -> None:
    judgement = judged({"swap": "clean"})
    assert score(judgement, "clean").precision == 2 / 3
    assert score(judgement, "clean").num_lost == 0
    assert score(judgement, "filter").recall == 1.0


@pytest.mark.parametrize("survivor", ["first", "copy1", "copy2"])
def test_any_copy_may_survive(survivor: str) -> None:
    ends = {name: "dedup" for name in ("first", "copy1", "copy2")} | {survivor: "kept"}
    assert judged(ends) == judged()


def test_copies_that_dedup_lets_pass_are_missed_and_due_at_filter() -> None:
    judgement = judged({"first": "kept", "copy1": "kept"})
    assert score(judgement, "dedup").recall == 2 / 3
    assert score(judgement, "dedup").precision == 1.0
    judgement = judged({"first": "kept", "copy1": "filter"})
    assert score(judgement, "filter").precision == 1.0


def test_dropping_every_copy_loses_the_photograph() -> None:
    dedup = score(judged({"copy1": "dedup"}), "dedup")
    assert (dedup.precision, dedup.recall, dedup.num_lost) == (3 / 4, 1.0, 1)


def test_a_survivor_that_filter_rejects_is_lost() -> None:
    filter_ = score(judged({"copy1": "filter"}), "filter")
    assert (filter_.precision, filter_.num_lost) == (2 / 3, 1)


def test_copies_rejected_before_dedup_are_not_due_there() -> None:
    judgement = judged({"first": "clean", "copy2": "clean"})
    dedup = score(judgement, "dedup")
    assert (dedup.num_due, dedup.precision, dedup.recall) == (1, 1.0, 1.0)


def test_a_row_kept_for_its_synthetic_text_alone_had_its_web_text_filtered() -> None:
    judgement = judged({"swap": "kept"}, web={"good", "fine", "copy1"})
    assert judgement == judged()


def test_what_other_stages_reject_is_no_business_of_filter() -> None:
    judgement = judged({"swap": "select", "good": "select"})
    filter_ = score(judgement, "filter")
    assert (filter_.num_due, filter_.precision, filter_.recall) == (1, 1.0, 1.0)
    assert score(judgement, "dedup") == score(judged(), "dedup")


def test_a_false_text_exported_lowers_the_share_of_true_ones() -> None:
    judgement = judged({"spam": "kept"})
    assert judgement.exported_true == 3 / 4
    assert score(judgement, "filter").recall == 1 / 2


def test_synthetic_texts_are_judged_by_the_scene() -> None:
    texts = [("good", "a red ball", "synthetic"), ("swap", "a blue kite", "synthetic")]
    texts += [("human", "a green star", "human"), ("other", "a red ball", "synthetic")]
    judgement = judge(
        pa.Table.from_pylist(TRUE, schema=TRUTH),
        pa.table({"uid": [uid_of(n, n) for n in RIGHT], "stage": list(RIGHT.values())}),
        pa.table(
            {
                "uid": [uid_of(name, name) for name, _, _ in texts],
                "caption": [caption for _, caption, _ in texts],
                "caption_source": [source for _, _, source in texts],
            }
        ),
    )
    assert (judgement.synthetic_true, judgement.num_synthetic) == (0.5, 2)
    assert (judgement.exported_true, judgement.num_exported) == (None, 0)


def test_missing_verdicts_are_an_error_that_names_a_pair() -> None:
    verdicts = pa.table({"uid": [uid_of("good", "good")], "stage": ["kept"]})
    empty = pa.table(
        {name: pa.array([], pa.string()) for name in ("uid", "caption", "caption_source")}
    )
    with pytest.raises(ValueError, match=r"verdicts: no pair dead"):
        judge(pa.Table.from_pylist(TRUE, schema=TRUTH), verdicts, empty)


@given(st.fixed_dictionaries({n: st.sampled_from([*STAGES, "select", "kept"]) for n in RIGHT}))
def test_whatever_the_verdicts_counts_are_bounded(ends: dict[str, str]) -> None:
    judgement = judged(ends)
    for s in judgement.stages:
        assert s.num_lost <= s.num_rejected
        assert s.precision is None or 0 <= s.precision <= 1
        assert s.recall is None or 0 <= s.recall <= 1
        assert s.num_rejected == sum(end == s.stage for end in ends.values())


def test_an_oracle_over_a_real_web_is_perfect(tmp_path: Path) -> None:
    build(tmp_path, base_url="http://127.0.0.1:9", num_pages=120, num_human=1, num_test=1)
    truth = pq.read_table(tmp_path / "truth.parquet")
    rows = truth.to_pylist()
    uids = [uid_of(r["url"], r["caption"]) for r in rows]
    stages = [{"keep": "kept"}.get(r["drop_at"], r["drop_at"]) for r in rows]
    kept = [i for i, stage in enumerate(stages) if stage == "kept"]
    judgement = judge(
        truth,
        pa.table({"uid": uids, "stage": stages}),
        pa.table(
            {
                "uid": [uids[i] for i in kept],
                "caption": [rows[i]["caption"] for i in kept],
                "caption_source": ["web"] * len(kept),
            }
        ),
    )
    assert all((s.precision, s.recall, s.num_lost) == (1.0, 1.0, 0) for s in judgement.stages)
    assert (judgement.exported_true, judgement.exported_recall) == (1.0, 1.0)
