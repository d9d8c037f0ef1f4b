"""Measures the agreement of reviewers and the filter on reviewed pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.results.verdicts import Results
from pipeline.review.sample import Pair, judged_pairs
from stages.filter import FilterStage
from stages.review import VERDICTS, Decisions, ReviewConfig, ReviewStage, read_decisions

__all__ = ["Agreement", "agreement", "of_run"]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The 2 x 2 table of the verdicts of the filter and of reviewers.

    A fixed caption counts as rejected by the reviewer.

    Attributes:
        both_keep: Pairs that both keep.
        only_filter: Pairs that only the filter keeps.
        only_people: Pairs that only reviewers keep.
        neither: Pairs that both reject.
    """

    both_keep: int
    only_filter: int
    only_people: int
    neither: int

    @property
    def pairs(self) -> int:
        """Number of all pairs."""
        return self.both_keep + self.only_filter + self.only_people + self.neither

    @property
    def accuracy(self) -> float | None:
        """Share of the pairs with equal verdicts; None without pairs."""
        return (self.both_keep + self.neither) / self.pairs if self.pairs else None

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa (Educational and Psychological Measurement 20(1), 1960).

        This is the agreement beyond chance. It is None if the filter, or the reviewers, gave the
        same verdict to all pairs, since kappa is undefined then.
        """
        filter_keeps = self.both_keep + self.only_filter
        people_keep = self.both_keep + self.only_people
        if self.pairs in (0, filter_keeps, people_keep) or not filter_keeps or not people_keep:
            return None
        chance = (
            filter_keeps * people_keep + (self.pairs - filter_keeps) * (self.pairs - people_keep)
        ) / self.pairs**2
        alike = (self.both_keep + self.neither) / self.pairs
        return (alike - chance) / (1 - chance)


def agreement(pairs: Iterable[Pair], decisions: Decisions) -> Agreement:
    """Return the agreement over the pairs that have a decision."""
    counts = Counter(
        (pair.is_kept, decisions[pair.key].verdict == "accept")
        for pair in pairs
        if pair.key in decisions
    )
    return Agreement(
        both_keep=counts[True, True],
        only_filter=counts[True, False],
        only_people=counts[False, True],
        neither=counts[False, False],
    )


def of_run(results: Results) -> Mapping[str, Any] | None:
    """Summarise the review of a run for the report; None without a review.

    Returns:
        pairs, the number of reviewed pairs; the number with each of `VERDICTS`; outdated, the
        number of decisions on captions that no longer exist; and, with a filter, agreement: the
        2 x 2 table, accuracy and kappa.
    """
    plan = results.plan
    config = plan.manifest.stages.get(ReviewStage.name)
    if not isinstance(config, ReviewConfig) or not (decisions := read_decisions(config.file)):
        return None
    pairs = list(judged_pairs(results, set(decisions)))
    verdicts = Counter(decisions[pair.key].verdict for pair in pairs)
    summary: dict[str, Any] = {
        "pairs": len(pairs),
        **{verdict: verdicts[verdict] for verdict in VERDICTS},
        "outdated": len(decisions) - len(pairs),
    }
    if FilterStage.name in plan.names:
        summary["agreement"] = as_json(agreement(pairs, decisions))
    return summary


def as_json(agreement: Agreement) -> dict[str, Any]:
    """Return counts, accuracy and kappa as values for JSON."""
    return {
        "both_keep": agreement.both_keep,
        "only_filter": agreement.only_filter,
        "only_people": agreement.only_people,
        "neither": agreement.neither,
        "accuracy": agreement.accuracy,
        "kappa": agreement.kappa,
    }
