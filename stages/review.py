"""Review: what people said of pairs, looked up; see `pipeline.review` for how they are asked."""

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
"""The line under the decisions that `capfilt review` wrote."""

SCORES = ("itm", "itc", "clip", "second_clip")
"""What the filter's columns are named by."""


class Decision(NamedTuple):
    """What people said of a caption of an image.

    Attributes:
        verdict: One of `VERDICTS`.
        fixed: The caption in its place, of `fix` alone.
    """

    verdict: str
    fixed: str | None = None


Decisions = dict[tuple[str, str], Decision]
"""Decisions by the uid of the image and the text of the caption, so that captions written anew
keep the decisions on those that are still the same."""


@dataclass(frozen=True, kw_only=True)
class ReviewConfig(StageConfig):
    """Where the decisions are.

    Attributes:
        file: jsonl that `capfilt review` writes, `uid`, `caption`, `verdict` and, of a caption
            fixed, `fixed` a line; RUN/reviews.jsonl by default.
    """

    file: str

    def measurement(self) -> dict[str, Any]:
        """What was decided, in the place of the name of the file."""
        return {"decisions": hashlib.sha256(_read(self.file)).hexdigest()}


class ReviewStage(Stage[ReviewConfig]):
    """Looks up the decisions on the captions of each row.

    A caption that people rejected gives no pair, one that they fixed gives a pair of the fixed
    text, one that they accepted stays as it is, as do all that nobody looked at. The filter's
    verdict stands: a caption that it rejects gives no pair, whatever people said of it.
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
    """The decisions on captions that the row has, and how many of its captions are not rejected;
    null where nobody looked at any."""
    reasons: ClassVar[Mapping[str, str]] = {
        "rejected": "People rejected every caption of the image.",
    }

    _decisions: dict[str, dict[str, Decision]] | None = None

    def load(self) -> None:
        """Read the decisions."""
        self._decisions = {}
        for (uid, caption), decision in read_decisions(self.config.file).items():
            self._decisions.setdefault(uid, {})[caption] = decision

    def annotate(self, rows: pa.Table) -> pa.Table:
        """Look up rows; see `Stage.annotate`."""
        if self._decisions is None:
            self.load()
        assert self._decisions is not None
        found: list[dict[str, Any]] = [{} for _ in range(rows.num_rows)]
        for row, uid in enumerate(map(str, rows["uid"].to_pylist())):
            if (decisions := self._decisions.get(uid)) is None:
                continue
            captions = _captions(rows, row)
            if not (said := {text: decisions[text] for text in captions if text in decisions}):
                continue
            rejected = {text for text, decision in said.items() if decision.verdict == "reject"}
            found[row] = {
                "reviews": [
                    {"caption": text, **decision._asdict()} for text, decision in said.items()
                ],
                "captions_left": sum(text not in rejected for text in captions),
            }
        return pa.Table.from_pylist(found, schema=self.writes)

    def judge(self, annotations: pa.Table) -> pa.StringArray:
        """Reject the rows all of whose captions people rejected."""
        left = annotations["captions_left"].combine_chunks()
        is_rejected: Any = pc.equal(left, pa.scalar(0, pa.int32())).fill_null(False)
        reasons: pa.StringArray = pc.if_else(
            is_rejected, pa.scalar("rejected"), pa.scalar(None, pa.string())
        )
        return reasons


def revised(rows: pa.Table) -> pa.Table:
    """Rows with their captions as people left them.

    Args:
        rows: Columns of captions and scores as export takes them, and `reviews` where people were
            asked; n rows.

    Returns:
        The n rows. A fixed caption stands where the one before it stood, so that it keeps its
        source, and has no score, since the filter has not seen it; a rejected web caption is
        null, another rejected one empty.
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
        for row, said in decisions.items():
            if column == web:
                texts[row], was_changed[row] = _left(said, texts[row], None)
            elif texts[row]:
                found = [_left(said, text, "") for text in texts[row]]
                texts[row] = [text for text, _ in found]
                was_changed[row] = [changed for _, changed in found]
        rows = _replaced(rows, column, texts)
        for name in rows.column_names:
            if name in {f"{score}_{kind}" for score in SCORES}:
                scores: list[Any] = rows[name].to_pylist()
                for row, changed in was_changed.items():
                    scores[row] = _blanked(scores[row], changed)
                rows = _replaced(rows, name, scores)
    return rows


def read_decisions(file: str) -> Decisions:
    """The decisions of a file, none where there is no file; the last line on a caption counts.

    Lines of other hands may stand below the seal, and files of other hands need none.

    Raises:
        DamagedError: The lines above the seal are not those that were sealed.
        InputError: A line is no decision; the message names the file and the line.
    """
    found: Decisions = {}
    content = _read(file)
    seal = SEAL.search(content)
    if seal is not None and _digest(content[: seal.start()]) != seal[1]:
        raise DamagedError(
            f"review.file: {file}: damaged: the lines above the one with `seal` are not those that "
            "were written. Copy the file back or, if you changed them by hand, remove that line"
        )
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip() or (seal is not None and line == seal[0].rstrip()):
            continue
        try:
            entry = json.loads(line)
            uid, caption = str(entry["uid"]), str(entry["caption"])
            verdict, fixed = entry["verdict"], entry.get("fixed")
            f"{uid}{caption}{fixed}".encode()  # half of a surrogate pair fits no table
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            verdict = fixed = None
        has_text = isinstance(fixed, str) and bool(fixed.strip())
        if str(verdict) not in VERDICTS or has_text != (verdict == "fix"):
            raise InputError(
                f"review.file: {file}:{number}: no decision; a line has `uid`, `caption` and "
                f"`verdict`, one of {', '.join(VERDICTS)}, and `fixed` where it is fix. Mend or "
                "remove the line"
            )
        found[uid, caption] = Decision(verdict, fixed)
    return found


def sealed(lines: bytes) -> bytes:
    """The lines of a file of decisions with one more, the SHA-256 of all of them."""
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
    """All captions of a row that are not blank."""
    found = [web_captions(rows)[row].as_py()]
    for column in ("further_captions", "synthetic"):
        if column in rows.column_names:
            found += rows[column][row].as_py() or []
    return [text for text in found if text and text.strip()]


def _left(
    said: Mapping[str, Mapping[str, Any]], text: str | None, nothing: str | None
) -> tuple[str | None, bool]:
    """What people left of a caption, and whether that is something else."""
    if text is None or text not in said or said[text]["verdict"] == "accept":
        return text, False
    return said[text]["fixed"] if said[text]["verdict"] == "fix" else nothing, True


def _blanked(score: Any, changed: Any) -> Any:
    """A score, or the scores of a list, null for the captions that changed."""
    if isinstance(score, list) and score:
        return [None if gone else one for one, gone in zip(score, changed, strict=True)]
    return None if changed is True else score


def _replaced(rows: pa.Table, column: str, values: list[Any]) -> pa.Table:
    index = rows.schema.get_field_index(column)
    field = rows.schema.field(index)
    return rows.set_column(index, field, pa.array(values, field.type))
