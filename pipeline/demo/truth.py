"""Compares the results of a pipeline on the demo's web with the known truth."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.demo.world import Scene, holds
from stages.schema import uid_of

__all__ = ["STAGES", "Judgement", "Score", "judge"]

STAGES = ("download", "clean", "dedup", "filter")
"""The stages that are compared with the truth, in order."""

KEEP, KEPT = "keep", "kept"


@dataclass(frozen=True, kw_only=True)
class Score:
    """The accuracy of one stage; shares of nothing are None.

    Attributes:
        stage: One of `STAGES`.
        precision: Share of its rejections that are right.
        recall: Share of the texts it should reject that are rejected by it or an earlier stage.
        num_rejected: Web texts that it rejected.
        num_due: Web texts that it should reject, as the first stage to do so.
        num_lost: Web texts that it rejected although they should be kept.
    """

    stage: str
    precision: float | None
    recall: float | None
    num_rejected: int
    num_due: int
    num_lost: int


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The accuracy of a whole pipeline; shares of nothing are None.

    Attributes:
        stages: A score for each of `STAGES`.
        raw_true: Share of true texts among the web texts whose image can be downloaded.
        exported_true: Share of true texts among the exported web texts.
        exported_recall: Share of photographs with an exported true web text, among the photographs
            with a web text that should be kept.
        synthetic_true: Share of true texts among the exported synthetic texts.
        num_exported: Number of exported web texts.
        num_synthetic: Number of exported synthetic texts.
    """

    stages: tuple[Score, ...]
    raw_true: float | None
    exported_true: float | None
    exported_recall: float | None
    synthetic_true: float | None
    num_exported: int
    num_synthetic: int


@dataclass(frozen=True, kw_only=True)
class _Row:
    photo: str
    drop_at: str
    matches: bool
    scene: str | None
    end: str  # the stage that rejected the web text, or KEPT


@dataclass(frozen=True, kw_only=True)
class _Counts:
    rejected: int
    right: int
    due: int
    gone: int
    lost: int

    def __add__(self, other: _Counts) -> _Counts:
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return _Counts(**{name: mine[name] + theirs[name] for name in mine})

    def score(self, stage: str) -> Score:
        return Score(
            stage=stage,
            precision=_share(self.right, self.rejected),
            recall=_share(self.gone, self.due),
            num_rejected=self.rejected,
            num_due=self.due,
            num_lost=self.lost,
        )


def judge(truth: pa.Table, verdicts: pa.Table, exported: pa.Table) -> Judgement:
    """Compare the verdicts and the export of the demo's web with the truth.

    Tables are joined on uid; pairs without a truth (human ones) are ignored.

    Which stage rejected a text: the stage of the row's verdict. If a row reached the filter and its
    web text was not exported, the filter rejected the text, even if the row was kept for a
    synthetic one. Rows rejected by other stages (select, caption) passed dedup and do not count for
    the filter.

    Download, clean and filter: a rejection is right if the pair's `drop_at` is this stage or an
    earlier one. The pairs with `drop_at` at this stage are due; those that an earlier stage
    rejected count as found.

    Dedup: any copy of a photograph may survive, so copies are judged per photograph. Of n pairs
    that reached dedup, n - 1 are due, and as many rejections are right. Pairs of a photograph that
    occurs once (with a text shared by many images) are judged as for the other stages. After dedup,
    the first survivor of a photograph should be kept, and the others are copies that dedup missed.

    Args:
        truth: A table of `pipeline.demo.web.TRUTH`.
        verdicts: One row per sample of the pool, with uid and stage (the first stage that rejected
            it, or "kept").
        exported: One row per pair, with uid, caption and caption_source.

    Returns:
        A score for each stage, and the shares of true texts before and after.

    Raises:
        ValueError: `verdicts` lacks pairs of the truth.
    """
    texts = list(_records(exported, "uid", "caption", "caption_source"))
    web = {uid for uid, _, source in texts if source == "web"}
    rows = _join(truth, verdicts, web)
    synthetic = [
        holds(caption, Scene.from_json(scene))
        for uid, caption, source in texts
        if source == "synthetic" and uid in rows and (scene := rows[uid].scene) is not None
    ]
    downloadable = [row for row in rows.values() if row.drop_at != "download"]
    exported_rows = [row for uid, row in rows.items() if uid in web]
    due = {row.photo for row in rows.values() if row.drop_at == KEEP}
    num_rows = Counter(row.photo for row in rows.values())
    copies = [row for row in rows.values() if num_rows[row.photo] > 1]
    singles = [row for row in rows.values() if num_rows[row.photo] == 1]
    judged = [row for row in (*_settle(copies), *singles) if row.end in (*STAGES, KEPT)]
    return Judgement(
        stages=(
            _count("download", [*copies, *singles]).score("download"),
            _count("clean", [*copies, *singles]).score("clean"),
            (_count("dedup", singles) + _count_copies(copies)).score("dedup"),
            _count("filter", judged).score("filter"),
        ),
        raw_true=_share(sum(row.matches for row in downloadable), len(downloadable)),
        exported_true=_share(sum(row.matches for row in exported_rows), len(exported_rows)),
        exported_recall=_share(
            len(due & {row.photo for row in exported_rows if row.matches}), len(due)
        ),
        synthetic_true=_share(sum(synthetic), len(synthetic)),
        num_exported=len(exported_rows),
        num_synthetic=len(synthetic),
    )


def _join(truth: pa.Table, verdicts: pa.Table, web: set[str]) -> dict[str, _Row]:
    """Return each pair of the truth by uid, with the stage that rejected its text."""
    ends: dict[str, str] = dict(_records(verdicts, "uid", "stage"))
    rows = {}
    for url, caption, *known in _records(
        truth, "url", "caption", "photo", "drop_at", "matches", "scene"
    ):
        uid = uid_of(url, caption)
        if uid not in ends:
            raise ValueError(f"verdicts: no pair {url}, {caption!r}; use a run of pairs.parquet")
        end = ends[uid]
        if end in ("filter", KEPT):
            end = KEPT if uid in web else "filter"
        photo, drop_at, matches, scene = known
        rows[uid] = _Row(photo=photo, drop_at=drop_at, matches=matches, scene=scene, end=end)
    return rows


def _count(stage: str, rows: Sequence[_Row]) -> _Counts:
    """Count for a stage that judges each pair separately."""
    so_far = STAGES[: STAGES.index(stage) + 1]
    rejected = [row for row in rows if row.end == stage]
    due = [row for row in rows if row.drop_at == stage]
    return _Counts(
        rejected=len(rejected),
        right=sum(row.drop_at in so_far for row in rejected),
        due=len(due),
        gone=sum(row.end in so_far for row in due),
        lost=sum(row.drop_at == KEEP for row in rejected),
    )


def _count_copies(copies: Sequence[_Row]) -> _Counts:
    """Count for dedup, over photographs that occur several times."""
    arrived = Counter(row.photo for row in copies if row.end not in ("download", "clean"))
    dropped = Counter(row.photo for row in copies if row.end == "dedup")
    right = sum(min(dropped[photo], n - 1) for photo, n in arrived.items())
    return _Counts(
        rejected=dropped.total(),
        right=right,
        due=sum(n - 1 for n in arrived.values()),
        gone=right,
        lost=dropped.total() - right,
    )


def _settle(copies: Sequence[_Row]) -> list[_Row]:
    """Set `drop_at` of the copies after dedup: the first survivor of a photograph is to be kept."""
    survivors: set[str] = set()
    settled = []
    for row in copies:
        if row.end not in ("download", "clean", "dedup"):
            drop_at = "dedup" if row.photo in survivors else KEEP
            survivors.add(row.photo)
            row = dataclasses.replace(row, drop_at=drop_at)
        settled.append(row)
    return settled


def _records(table: pa.Table, *names: str) -> Iterable[Any]:
    return zip(*(table[name].to_pylist() for name in names), strict=True)


def _share(part: int, total: int) -> float | None:
    return part / total if total else None
