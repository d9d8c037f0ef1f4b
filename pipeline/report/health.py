"""The health of a run: notes on reject rates, variety and hosts, compared with the paper's."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["PAPER", "Band", "Note", "notes", "variety"]


@dataclass(frozen=True, kw_only=True)
class Band:
    """A published reject rate: the source of the texts, the share, and how they were made."""

    source: str
    share: float
    label: str


PAPER = (
    Band(source="web", share=0.08, label="BLIP, CC + SBU (derived)"),
    Band(source="synthetic", share=0.25, label="BLIP, nucleus sampling"),
    Band(source="synthetic", share=0.19, label="BLIP, beam search"),
    Band(source="synthetic", share=0.08, label="BLIP, shared parameters"),
)
"""Noise ratios in arXiv 2201.12086, Tables 2 and 4. The rate for the web is derived from
the numbers of texts before and after filtering in Table 12."""

AGREEING, STRICT = 0.12, 0.45
FEW_TEXTS = 50
LEAST_UNIQUE = 0.5
MOST_REPEATED = 0.02
MOST_WEB = 0.7
FAILING_HOST, ROWS_OF_HOST = 0.8, 20
LARGE_REASON = 0.3


@dataclass(frozen=True, kw_only=True)
class Note:
    """A sentence on the run; `is_good` is False if it reports a possible problem."""

    is_good: bool
    text: str


def variety(texts: Sequence[str]) -> dict[str, Any]:
    """Measures how varied texts are, and how often they repeat a word.

    Returns:
        texts (the number), unique (share of distinct texts), distinct_1 and distinct_2 (distinct
        words and word pairs, divided by the number of all), repeated (share of texts in which a
        word follows itself) and words (mean number of words).
    """
    words = [words_of(text) for text in texts]
    singles = [word for line in words for word in line]
    pairs = [pair for line in words for pair in itertools.pairwise(line)]
    stammers = sum(any(a == b for a, b in itertools.pairwise(line)) for line in words)
    return {
        "texts": len(texts),
        "unique": _share(len({" ".join(line) for line in words}), len(texts)),
        "distinct_1": _share(len(set(singles)), len(singles)),
        "distinct_2": _share(len(set(pairs)), len(pairs)),
        "repeated": _share(stammers, len(texts)),
        "words": _share(len(singles), len(texts)),
    }


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return re.findall(r"\w+(?:'\w+)?", text.lower())


def notes(facts: Mapping[str, Any]) -> list[Note]:
    """The notes on a run, problems first.

    Args:
        facts: The content of report.json.
    """
    remarks = [*_of_stages(facts), *_of_texts(facts), *_of_hosts(facts), *_of_list(facts)]
    return sorted(remarks, key=lambda note: note.is_good)


def _of_stages(facts: Mapping[str, Any]) -> list[Note]:
    remarks = []
    stages = facts["stages"]
    if broken := [stage["name"] for stage in stages if not stage["is_conserved"]]:
        remarks.append(_problem(f"Rows are not conserved in {_and(broken)}: run capfilt verify."))
    elif stages:
        remarks.append(
            _good("Every row is accounted for: kept, rejected with a reason, or waiting.")
        )
    if waiting := [stage["name"] for stage in stages if stage["state"] != "done"]:
        remarks.append(
            _problem(f"Not finished: {_and(waiting)}. The numbers below cover finished shards.")
        )
    for stage in stages:
        measured = stage["rows"] - stage["not_measured"]
        for reason, number in stage["reasons"].items():
            if number >= LARGE_REASON * measured and number >= FEW_TEXTS:
                share, name = f"{number / measured:.0%}", reason.replace("_", " ")
                remarks.append(_problem(f"{stage['name']} rejects {share} of its rows: {name}."))
    return remarks


def _of_texts(facts: Mapping[str, Any]) -> list[Note]:
    remarks = []
    texts = facts["texts"]
    synthetic, web = texts["synthetic"], texts["web"]
    rate = synthetic["reject_rate"]
    if rate is not None and synthetic["judged"] >= FEW_TEXTS:
        text = f"The filter rejects {rate:.0%} of the synthetic texts"
        if rate < AGREEING:
            remarks.append(
                _problem(
                    f"{text}. BLIP reports 8% if captioner and filter share parameters and confirm "
                    "each other, and 25% if they do not. Check that yours are trained separately."
                )
            )
        elif rate > STRICT:
            remarks.append(
                _problem(
                    f"{text}, well over BLIP's 25%. Possible causes: a weak captioner, images "
                    "unlike those it was trained on, or a threshold that is too high."
                )
            )
        else:
            remarks.append(
                _good(f"{text}; BLIP reports 19% with beam search, 25% with nucleus sampling.")
            )
    rate = web["reject_rate"]
    if rate is not None and web["judged"] >= FEW_TEXTS and rate > MOST_WEB:
        remarks.append(
            _problem(
                f"The filter rejects {rate:.0%} of the web captions. Either the sources are noisy "
                "or the filter was not trained on such images: check the examples below."
            )
        )
    for source, own in texts.items():
        if own["cut"]:
            remarks.append(
                _problem(
                    f"The filter read only the beginning of {own['cut']:,} of {own['judged']:,} "
                    f"{source} texts, because they, or one of their sentences, are too long. "
                    "filter.unit: sentence judges a long text sentence by sentence."
                )
            )
    if synthetic["variety"]["texts"] >= FEW_TEXTS:
        unique, repeated = synthetic["variety"]["unique"], synthetic["variety"]["repeated"]
        if unique < LEAST_UNIQUE:
            remarks.append(
                _problem(
                    f"Only {unique:.0%} of the synthetic texts are distinct: the captioner repeats "
                    "itself. Nucleus sampling gives more variety than beam search."
                )
            )
        if repeated > MOST_REPEATED:
            remarks.append(
                _problem(f"{repeated:.1%} of the synthetic texts repeat a word right after itself.")
            )
    return remarks


def _of_hosts(facts: Mapping[str, Any]) -> list[Note]:
    bad = [
        host
        for host in facts["hosts"]
        if host["rows"] >= ROWS_OF_HOST and host["failed"] >= FAILING_HOST * host["rows"]
    ]
    names = [host["host"] for host in bad[:3]]
    return [_problem(f"Most downloads fail from {_and(names)}.")] if bad else []


def _of_list(facts: Mapping[str, Any]) -> list[Note]:
    """What the readers of the list and of human pairs left out or could not read."""
    return [_problem(f"Reading the input: {notice}.") for notice in facts.get("notices", [])]


def _good(text: str) -> Note:
    return Note(is_good=True, text=text)


def _problem(text: str) -> Note:
    return Note(is_good=False, text=text)


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _share(number: float, total: float) -> float:
    return number / total if total else 0.0
