"""What a healthy run looks like: the paper's reject rates, and what to look at when one differs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["PAPER", "Band", "Note", "notes", "variety"]


@dataclass(frozen=True, kw_only=True)
class Band:
    """A published reject rate: the texts it is of, the share, and how they were made."""

    source: str
    share: float
    label: str


PAPER = (
    Band(source="web", share=0.08, label="BLIP, CC + SBU (derived)"),
    Band(source="synthetic", share=0.25, label="BLIP, nucleus sampling"),
    Band(source="synthetic", share=0.19, label="BLIP, beam search"),
    Band(source="synthetic", share=0.08, label="BLIP, shared parameters"),
)
"""Noise ratios of arXiv 2201.12086, Tables 2 and 4; the web's follows from the numbers of texts
before and after in its Table 12."""

AGREEING, STRICT = 0.12, 0.45
FEW_TEXTS = 50
LEAST_UNIQUE = 0.5
MOST_REPEATED = 0.02
MOST_WEB = 0.7
FAILING_HOST, ROWS_OF_HOST = 0.8, 20
LARGE_REASON = 0.3


@dataclass(frozen=True, kw_only=True)
class Note:
    """A sentence on the run; `is_good` says whether all is well or someone should look."""

    is_good: bool
    text: str


def variety(texts: Sequence[str]) -> dict[str, Any]:
    """How varied texts are, and how often they stammer.

    Returns:
        texts (their number), unique (share of distinct texts), distinct_1 and distinct_2 (distinct
        words and word pairs by their number), repeated (share of texts in which a word follows
        itself) and words (mean length).
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
    """The words of a text, lower-case, without punctuation."""
    return re.findall(r"\w+(?:'\w+)?", text.lower())


def notes(facts: Mapping[str, Any]) -> list[Note]:
    """What stands out in a report, the worst first.

    Args:
        facts: The content of report.json.
    """
    found = [*_of_stages(facts), *_of_texts(facts), *_of_hosts(facts), *_of_list(facts)]
    return sorted(found, key=lambda note: note.is_good)


def _of_stages(facts: Mapping[str, Any]) -> list[Note]:
    found = []
    stages = facts["stages"]
    if broken := [stage["name"] for stage in stages if not stage["is_conserved"]]:
        found.append(_look(f"Rows are not conserved in {_and(broken)}: run capfilt verify."))
    elif stages:
        found.append(_good("Every row is accounted for: kept, rejected with a reason, or waiting."))
    if waiting := [stage["name"] for stage in stages if stage["state"] != "done"]:
        found.append(
            _look(f"Not finished: {_and(waiting)}. The numbers below are of what is there.")
        )
    for stage in stages:
        measured = stage["rows"] - stage["not_measured"]
        for reason, number in stage["reasons"].items():
            if number >= LARGE_REASON * measured and number >= FEW_TEXTS:
                share, name = f"{number / measured:.0%}", reason.replace("_", " ")
                found.append(_look(f"{stage['name']} rejects {share} of its rows: {name}."))
    return found


def _of_texts(facts: Mapping[str, Any]) -> list[Note]:
    found = []
    texts = facts["texts"]
    synthetic, web = texts["synthetic"], texts["web"]
    rate = synthetic["reject_rate"]
    if rate is not None and synthetic["judged"] >= FEW_TEXTS:
        text = f"The filter rejects {rate:.0%} of the synthetic texts"
        if rate < AGREEING:
            found.append(
                _look(
                    f"{text}. BLIP saw 8% where captioner and filter share parameters and confirm "
                    "each other, 25% where they do not: are the two models trained apart?"
                )
            )
        elif rate > STRICT:
            found.append(
                _look(
                    f"{text}, well over BLIP's 25%: a weak captioner, other images than it was "
                    "trained on, or too high a threshold."
                )
            )
        else:
            found.append(_good(f"{text}; BLIP 19% with beam search, 25% with nucleus sampling."))
    rate = web["reject_rate"]
    if rate is not None and web["judged"] >= FEW_TEXTS and rate > MOST_WEB:
        found.append(
            _look(
                f"The filter rejects {rate:.0%} of the web captions: noisy sources, or a filter "
                "that does not know these images. Look at the examples before you trust it."
            )
        )
    for source, own in texts.items():
        if own["cut"]:
            found.append(
                _look(
                    f"{own['cut']:,} of {own['judged']:,} {source} texts were judged by their "
                    "beginning alone: they, or a sentence of them, are longer than the filter "
                    "reads. filter.unit: sentence judges a long text sentence by sentence."
                )
            )
    if synthetic["variety"]["texts"] >= FEW_TEXTS:
        unique, repeated = synthetic["variety"]["unique"], synthetic["variety"]["repeated"]
        if unique < LEAST_UNIQUE:
            found.append(
                _look(
                    f"Only {unique:.0%} of the synthetic texts are distinct: the captioner repeats "
                    "itself. Sampling (nucleus) varies more than beam search."
                )
            )
        if repeated > MOST_REPEATED:
            found.append(
                _look(f"{repeated:.1%} of the synthetic texts repeat a word right after itself.")
            )
    return found


def _of_hosts(facts: Mapping[str, Any]) -> list[Note]:
    bad = [
        host
        for host in facts["hosts"]
        if host["rows"] >= ROWS_OF_HOST and host["failed"] >= FAILING_HOST * host["rows"]
    ]
    names = [host["host"] for host in bad[:3]]
    return [_look(f"Most downloads fail from {_and(names)}.")] if bad else []


def _of_list(facts: Mapping[str, Any]) -> list[Note]:
    """What the readers of the list and of human pairs left out or could not read."""
    return [_look(f"Of what was read: {notice}.") for notice in facts.get("notices", [])]


def _good(text: str) -> Note:
    return Note(is_good=True, text=text)


def _look(text: str) -> Note:
    return Note(is_good=False, text=text)


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _share(number: float, total: float) -> float:
    return number / total if total else 0.0
