"""Review: applies people's decisions on captions; `pipeline.review` collects them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.compute as pc

from models.errors import DamagedError, InputError
from stages.base import Stage, StageConfig
from stages.schema import web_captions
from stages.sources.source_files import is_local

__all__ = [
    "VERDICTS",
    "Decision",
    "Decisions",
    "ReviewConfig",
    "ReviewStage",
    "read_decisions",
    "revised",
    "sealed",
]

VERDICTS = ("accept", "reject", "fix")

SEAL = re.compile(rb'^\{"seal": "([0-9a-f]{64})"\}\n', re.MULTILINE)
"""A line with the checksum of the decisions above it, written by `capfilt review`."""

SCORES = ("itm", "itc", "clip", "second_clip", "kept_text", "kept_itm")
"""Prefixes of the filter's columns on captions."""


class Decision(NamedTuple):
    """A person's decision on a caption of an image.

    Attributes:
        verdict: One of `VERDICTS`.
        fixed: The new caption, for the verdict fix only.
    """

    verdict: str
    fixed: str | None = None


Decisions = dict[tuple[str, str], Decision]
"""Decisions by uid of the image and text of the caption. If captions are generated again, those
that did not change keep their decisions."""


@dataclass(frozen=True, kw_only=True)
class ReviewConfig(StageConfig):
    """The file of decisions.

    Attributes:
        file: The jsonl file that `capfilt review` writes, RUN/reviews.jsonl by default. Each line
            has `uid`, `caption`, `verdict`, and `fixed` for a fixed caption.
    """

    places = ("file",)

    file: str

    def measurement(self) -> dict[str, Any]:
        """Return a digest of the decisions, in place of the file name."""
        return {"decisions": hashlib.sha256(_read(self.file)).hexdigest()}


class ReviewStage(Stage[ReviewConfig]):
    """Looks up the decisions on the captions of each row.

    A rejected caption gives no pair, and a fixed one gives a pair with the new text. Accepted
    captions, and those without a decision, stay unchanged. A caption that the filter rejects gives
    no pair, whatever the decision is.
    """

    name = "review"
    version = 1
    config_type = ReviewConfig
    reads = ("caption",)
    uses = ("text", "further_captions", "synthetic")
    writes = pa.schema(
        [
            pa.field(
                "reviews",
                pa.list_(
                    pa.struct(
                        [
                            pa.field("caption", pa.string()),
                            pa.field("verdict", pa.string()),
                            pa.field("fixed", pa.string()),
                        ]
                    )
                ),
            ),
            pa.field("captions_left", pa.int32()),
        ]
    )
    """The decisions on the captions of the row, and how many of its captions are not rejected;
    null without a decision."""
    reasons: ClassVar[Mapping[str, str]] = {
        "rejected": "Reviewers rejected every caption of the image.",
    }
    help = "accept, reject or fix pairs by hand, on a local page"
    paper = "MiniGPT-4 (arXiv:2304.10592)"
    histograms = ()

    _decisions: dict[str, dict[str, Decision]] | None = None

    def load(self) -> None:
        """Read the decisions."""
        self._decisions = {}
        for (uid, caption), decision in read_decisions(self.config.file).items():
            self._decisions.setdefault(uid, {})[caption] = decision

    def annotate(self, rows: pa.Table) -> pa.Table:
        """Look up the decisions on rows; see `Stage.annotate`."""
        if self._decisions is None:
            self.load()
        assert self._decisions is not None
        annotations: list[dict[str, Any]] = [{} for _ in range(rows.num_rows)]
        for row, uid in enumerate(map(str, rows["uid"].to_pylist())):
            if (decisions := self._decisions.get(uid)) is None:
                continue
            captions = _captions(rows, row)
            if not (decided := {text: decisions[text] for text in captions if text in decisions}):
                continue
            rejected = {text for text, decision in decided.items() if decision.verdict == "reject"}
            annotations[row] = {
                "reviews": [
                    {"caption": text, **decision._asdict()} for text, decision in decided.items()
                ],
                "captions_left": sum(text not in rejected for text in captions),
            }
        return pa.Table.from_pylist(annotations, schema=self.writes)

    def judge(self, annotations: pa.Table) -> pa.StringArray:
        """Reject rows whose captions were all rejected."""
        left = annotations["captions_left"].combine_chunks()
        is_rejected: Any = pc.equal(left, pa.scalar(0, pa.int32())).fill_null(False)
        reasons: pa.StringArray = pc.if_else(
            is_rejected, pa.scalar("rejected"), pa.scalar(None, pa.string())
        )
        return reasons


def revised(rows: pa.Table) -> pa.Table:
    """Apply the decisions to the captions of rows.

    Args:
        rows: n rows with the caption and score columns of export, and `reviews` if there was a
            review.

    Returns:
        The n rows. A fixed caption replaces the old one in the same column, and its score is null,
        since the filter has not seen it. A rejected web caption becomes null; a rejected caption of
        a list becomes an empty string.
    """
    if "reviews" not in rows.column_names or rows["reviews"].null_count == rows.num_rows:
        return rows
    decisions = {
        row: {entry["caption"]: entry for entry in entries}
        for row, entries in enumerate(rows["reviews"].to_pylist())
        if entries
    }
    web = "text" if "text" in rows.column_names else "caption"
    for column, kind in ((web, "web"), ("further_captions", "further"), ("synthetic", "synthetic")):
        if column not in rows.column_names:
            continue
        texts: list[Any] = rows[column].to_pylist()
        was_changed: dict[int, Any] = {}
        for row, row_decisions in decisions.items():
            if column == web:
                texts[row], was_changed[row] = _apply_decision(row_decisions, texts[row], None)
            elif texts[row]:
                results = [_apply_decision(row_decisions, text, "") for text in texts[row]]
                texts[row] = [text for text, _ in results]
                was_changed[row] = [changed for _, changed in results]
        rows = _replaced(rows, column, texts)
        for name in rows.column_names:
            if name in {f"{score}_{kind}" for score in SCORES}:
                scores: list[Any] = rows[name].to_pylist()
                for row, changed in was_changed.items():
                    scores[row] = _blanked(scores[row], changed)
                rows = _replaced(rows, name, scores)
    return rows


def read_decisions(file: str) -> Decisions:
    """Read the decisions of a file; no file means no decisions.

    If a caption has several decisions, the last one counts. Lines added by other programs may
    follow the line with the checksum, which may also be missing.

    Raises:
        DamagedError: The lines above the checksum have changed; the message has the file.
        InputError: A line is not a decision; the message has the file and the line.
    """
    decisions: Decisions = {}
    content = _read(file)
    seal = SEAL.search(content)
    if seal is not None and _digest(content[: seal.start()]) != seal[1]:
        raise DamagedError(
            f"review.file: {file}: damaged: the lines above the one with `seal` have changed. "
            "Restore the file, or remove that line if you changed the file yourself"
        )
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip() or (seal is not None and line == seal[0].rstrip()):
            continue
        try:
            entry = json.loads(line)
            uid, caption = str(entry["uid"]), str(entry["caption"])
            verdict, fixed = entry["verdict"], entry.get("fixed")
            f"{uid}{caption}{fixed}".encode()  # Arrow cannot store lone surrogates
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            verdict = fixed = None
        has_text = isinstance(fixed, str) and bool(fixed.strip())
        if str(verdict) not in VERDICTS or has_text != (verdict == "fix"):
            raise InputError(
                f"review.file: {file}:{number}: not a decision; a line must have `uid`, `caption`, "
                f"`verdict` (one of {', '.join(VERDICTS)}), and `fixed` if the verdict is fix. "
                "Correct or remove the line"
            )
        decisions[uid, caption] = Decision(verdict, fixed)
    return decisions


def sealed(lines: bytes) -> bytes:
    """Append a line with the SHA-256 of the lines of a file of decisions."""
    return lines + b'{"seal": "%s"}\n' % _digest(lines) if lines else lines


def _digest(lines: bytes) -> bytes:
    return hashlib.sha256(lines).hexdigest().encode()


def _read(file: str) -> bytes:
    try:
        source = fsspec.open(file, "rb")
        if is_local(source.fs) and os.path.exists(source.path) and not os.path.isfile(source.path):
            raise InputError(f"review.file: {file}: not a regular file; give the file of decisions")
        with source as opened:
            return bytes(opened.read())
    except FileNotFoundError:
        return b""


def _captions(rows: pa.Table, row: int) -> list[str]:
    """Return all captions of a row that are not blank."""
    captions = [web_captions(rows)[row].as_py()]
    for column in ("further_captions", "synthetic"):
        if column in rows.column_names:
            captions += rows[column][row].as_py() or []
    return [text for text in captions if text and text.strip()]


def _apply_decision(
    decisions: Mapping[str, Mapping[str, Any]], text: str | None, nothing: str | None
) -> tuple[str | None, bool]:
    """Return a caption after its decision, and whether it changed.

    A rejected caption becomes `nothing`.
    """
    if text is None or text not in decisions or decisions[text]["verdict"] == "accept":
        return text, False
    return decisions[text]["fixed"] if decisions[text]["verdict"] == "fix" else nothing, True


def _blanked(score: Any, changed: Any) -> Any:
    """Return a score, or a list of scores, with None for the captions that changed."""
    if isinstance(score, list) and score:
        return [
            None if is_changed else value for value, is_changed in zip(score, changed, strict=True)
        ]
    return None if changed is True else score


def _replaced(rows: pa.Table, column: str, values: list[Any]) -> pa.Table:
    index = rows.schema.get_field_index(column)
    field = rows.schema.field(index)
    return rows.set_column(index, field, pa.array(values, field.type))
