"""How far people and the filter agree on the pairs that people reviewed."""

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
    """The 2 x 2 table of the filter's verdicts and people's.

    A caption that people fixed is one that they did not accept.

    Attributes:
        both_keep: Pairs that both keep.
        only_filter: Pairs that only the filter keeps.
        only_people: Pairs that only people keep.
        neither: Pairs that both reject.
    """

    both_keep: int
    only_filter: int
    only_people: int
    neither: int

    @property
    def pairs(self) -> int:
        """All of them."""
        return self.both_keep + self.only_filter + self.only_people + self.neither

    @property
    def accuracy(self) -> float | None:
        """The share that both judge alike; None of no pair."""
        return (self.both_keep + self.neither) / self.pairs if self.pairs else None

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa (Educational and Psychological Measurement 20(1), 1960).

        The share judged alike beyond chance. None where the filter, or people, gave a single
        verdict: there is nothing beyond chance to be seen then.
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
    """Of those of some pairs that are decided."""
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
    """What a report says of the review of a run; None where nobody reviewed it.

    Returns:
        pairs and how many of them each of `VERDICTS`; outdated, the decisions on captions that
        came to no verdict today; and with a filter, agreement: the table, accuracy and kappa.
    """
    plan = results.plan
    config = plan.manifest.stages.get(ReviewStage.name)
    if not isinstance(config, ReviewConfig) or not (decisions := read_decisions(config.file)):
        return None
    pairs = list(judged_pairs(results, set(decisions)))
    verdicts = Counter(decisions[pair.key].verdict for pair in pairs)
    found: dict[str, Any] = {
        "pairs": len(pairs),
        **{verdict: verdicts[verdict] for verdict in VERDICTS},
        "outdated": len(decisions) - len(pairs),
    }
    if FilterStage.name in plan.names:
        found["agreement"] = told(agreement(pairs, decisions))
    return found


def told(found: Agreement) -> dict[str, Any]:
    """Counts, accuracy and kappa, as JSON holds them."""
    return {
        "both_keep": found.both_keep,
        "only_filter": found.only_filter,
        "only_people": found.only_people,
        "neither": found.neither,
        "accuracy": found.accuracy,
        "kappa": found.kappa,
    }
