"""Which pairs are shown."""

import itertools

import numpy as np
import pytest
from helpers.reviews import COMMIT, commit, content, pairs_of

from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
from pipeline.results.open_run import open_plan, open_results
from pipeline.results.verdicts import Results
from pipeline.review.ledger import Ledger
from pipeline.review.sample import draw
from pipeline.storage.run import Run
from stages.review import Decision


def test_the_sample_of_kept_pairs_is_what_export_writes(fresh):
    pairs = draw(open_results(fresh), "kept", 1000)
    exported = {(pair["uid"], pair["caption"]) for pair in pairs_of(fresh)}
    assert {pair.key for pair in pairs} == exported and len(pairs) == len(exported)
    sources = {(p["uid"], p["caption"]): p["caption_source"] for p in pairs_of(fresh)}
    assert {pair.key: pair.source for pair in pairs} == sources


def test_every_scored_pair_is_kept_or_rejected(fresh):
    plan = open_plan(fresh)
    kept, rejected, both = (
        {p.key: p for p in draw(Results(fresh, plan), c, 1000)} for c in ("kept", "rejected", "any")
    )
    assert kept | rejected == both and not set(kept) & set(rejected)
    assert all(pair.score >= 0.5 for pair in kept.values())
    assert all(pair.score < 0.5 for pair in rejected.values())


@pytest.mark.parametrize("choice", ["kept", "rejected", "borderline", "any"])
def test_a_larger_sample_begins_with_the_smaller(fresh, choice):
    plan = open_plan(fresh)
    assert draw(Results(fresh, plan), choice, 5) == draw(Results(fresh, plan), choice, 12)[:5]


def test_the_seed_draws_the_sample(fresh):
    plan = open_plan(fresh)
    made = content(fresh.root, caption={"revision": COMMIT, "seed": 0})
    other = Plan(Manifest.parse({**made, "seed": 1}))
    assert draw(Results(fresh, plan), "any", 10) != draw(Results(fresh, other), "any", 10)


def test_borderline_pairs_come_nearest_first_from_both_sides(fresh):
    pairs = draw(open_results(fresh), "borderline", 1000)
    distances = [abs(np.float32(pair.score) - 0.5) for pair in pairs]
    assert all(a <= b + 1e-6 for a, b in itertools.pairwise(distances))
    assert {pair.is_kept for pair in pairs[:6]} == {True, False}


def test_a_row_points_at_its_image(fresh):
    for pair in draw(open_results(fresh), "any", 1000):
        row = fresh.read_table("pool", f"{pair.shard}.parquet").slice(pair.row, 1).to_pylist()[0]
        assert (row["uid"], row["url"]) == (pair.uid, pair.url)


def test_a_sample_does_not_lose_what_was_rejected_by_hand(run):
    before = draw(open_results(run), "kept", 10)
    ledger = Ledger(open_plan(run).manifest.reviews)
    for pair in before:
        ledger.decide(pair.key, Decision("reject"))
    commit(run)
    assert draw(open_results(run), "kept", 10) == before


@pytest.mark.parametrize("choice", ["rejected", "borderline"])
def test_without_a_filter_only_kept_pairs_can_be_asked_for(tmp_path, choice):
    made = content(tmp_path)
    del made["stages"]["filter"]
    plan = Plan(Manifest.parse(made))
    with pytest.raises(ValueError, match=f"--of {choice}: .* has no filter; use --of kept"):
        draw(Results(Run(str(tmp_path)), plan), choice, 10)


def test_a_run_without_pairs_says_so(tmp_path):
    with pytest.raises(ValueError, match="no pair kept to review"):
        draw(Results(Run(str(tmp_path)), Plan(Manifest.parse(content(tmp_path)))), "kept", 10)
