"""How far people agree with the filter."""

import pytest
from helpers.reviews import commit

from pipeline.report import build
from pipeline.results.funnel import funnel
from pipeline.results.open_run import open_plan
from pipeline.results.verdicts import Results
from pipeline.review.agreement import Agreement
from pipeline.review.ledger import Ledger
from pipeline.review.sample import draw
from stages.review import Decision


def test_the_report_counts_decisions_and_agreement(run):
    plan = open_plan(run)
    ledger = Ledger(plan.manifest.reviews)
    kept, rejected = (draw(Results(run, plan), choice, 1000) for choice in ("kept", "rejected"))
    for pair in kept[:5]:
        ledger.decide(pair.key, Decision("accept"))
    ledger.decide(kept[5].key, Decision("fix", "written by hand"))
    for pair in rejected[:2]:
        ledger.decide(pair.key, Decision("reject"))
    ledger.decide(rejected[2].key, Decision("accept"))
    ledger.decide(("f" * 32, "of another run"), Decision("accept"))
    commit(run)
    plan = open_plan(run)
    build.write(Results(run, plan), funnel(Results(run, plan)))
    review = run.read_json("report", "report.json")["review"]
    assert review["pairs"] == 9 and review["outdated"] == 1
    assert (review["accept"], review["reject"], review["fix"]) == (6, 2, 1)
    table = {"both_keep": 5, "only_filter": 1, "only_people": 1, "neither": 2}
    kappa = (7 / 9 - (6 * 6 + 3 * 3) / 81) / (1 - (6 * 6 + 3 * 3) / 81)
    assert review["agreement"] == {**table, "accuracy": 7 / 9, "kappa": pytest.approx(kappa)}
    page = run.read("report", "index.html").decode()
    assert "Review by hand" in page and "accuracy 77.8%" in page and "kappa 0.50" in page


@pytest.mark.parametrize(
    ("cells", "accuracy", "kappa"),
    [
        ((20, 5, 10, 15), 0.7, 0.4),  # the example of many textbooks
        ((10, 0, 0, 10), 1.0, 1.0),
        ((0, 10, 10, 0), 0.0, -1.0),
        ((10, 0, 0, 0), 1.0, None),
        ((10, 5, 0, 0), 10 / 15, None),
        ((10, 0, 5, 0), 10 / 15, None),
        ((0, 0, 0, 0), None, None),
    ],
)
def test_agreement_is_accuracy_and_cohens_kappa(cells, accuracy, kappa):
    names = ("both_keep", "only_filter", "only_people", "neither")
    found = Agreement(**dict(zip(names, cells, strict=True)))
    assert found.accuracy == (accuracy if accuracy is None else pytest.approx(accuracy))
    assert found.kappa == (kappa if kappa is None else pytest.approx(kappa))
