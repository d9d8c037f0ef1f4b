"""How right a pipeline was about the demo's web, whose truth is known."""

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
"""The stages that the truth knows, in the order in which they run."""

KEEP, KEPT = "keep", "kept"


@dataclass(frozen=True, kw_only=True)
class Score:
    """How right one stage was; a share of nothing is null.

    Attributes:
        stage: One of `STAGES`.
        precision: The share of its rejections that were right.
        recall: The share of its due that is gone after it.
        num_rejected: Web texts it rejected.
        num_due: Web texts that it was the first that should reject.
        num_lost: Web texts it rejected that should have been kept.
    """

    stage: str
    precision: float | None
    recall: float | None
    num_rejected: int
    num_due: int
    num_lost: int


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """How right a whole pipeline was; a share of nothing is null.

    Attributes:
        stages: A score for each of `STAGES`.
        raw_true: Of the web texts whose image can be had, the share that is true of it.
        exported_true: Of the web texts exported, the share that is true of their image.
        exported_recall: Of the photographs of which a web text should be kept, the share of which
            a true one was exported.
        synthetic_true: Of the synthetic texts exported, the share that is true of their image.
        num_exported: Web texts exported.
        num_synthetic: Synthetic texts exported.
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
    """Compare what became of the demo's web with the truth.

    Everything is joined on uid; pairs that the truth does not know (human ones) are left out.

    *Who rejected a text.* The stage of its verdict; but where a row came as far as filter and its
    web text was not exported, filter rejected the text, whether or not the row was kept for a
    synthetic one. A row that another stage rejected (select, caption) passed dedup and is no
    business of filter.

    *Download, clean, filter.* A rejection is right if the pair's `drop_at` is this stage, or an
    earlier one that let it pass. Due are all pairs whose `drop_at` is this stage; those that an
    earlier stage rejected count as gone.

    *Dedup.* Any copy of a photograph may be the one that survives, so copies are judged by
    photograph: of the n pairs that came as far as dedup, n - 1 are due, and as many rejections are
    right. Pairs of a photograph that is shown once (a text that many images share) are judged as
    elsewhere. After dedup, the first survivor of a photograph is one to keep, and the others are
    copies that dedup let pass.

    Args:
        truth: `pipeline.demo.web.TRUTH`.
        verdicts: One row a sample of the pool, with uid and stage: the first stage that rejected
            it, or "kept".
        exported: One row a pair, with uid, caption and caption_source.

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
    had = [row for row in rows.values() if row.drop_at != "download"]
    out = [row for uid, row in rows.items() if uid in web]
    due = {row.photo for row in rows.values() if row.drop_at == KEEP}
    shown = Counter(row.photo for row in rows.values())
    copies = [row for row in rows.values() if shown[row.photo] > 1]
    singles = [row for row in rows.values() if shown[row.photo] == 1]
    judged = [row for row in (*_settle(copies), *singles) if row.end in (*STAGES, KEPT)]
    return Judgement(
        stages=(
            _count("download", [*copies, *singles]).score("download"),
            _count("clean", [*copies, *singles]).score("clean"),
            (_count("dedup", singles) + _count_copies(copies)).score("dedup"),
            _count("filter", judged).score("filter"),
        ),
        raw_true=_share(sum(row.matches for row in had), len(had)),
        exported_true=_share(sum(row.matches for row in out), len(out)),
        exported_recall=_share(len(due & {row.photo for row in out if row.matches}), len(due)),
        synthetic_true=_share(sum(synthetic), len(synthetic)),
        num_exported=len(out),
        num_synthetic=len(synthetic),
    )


def _join(truth: pa.Table, verdicts: pa.Table, web: set[str]) -> dict[str, _Row]:
    """Each pair of the truth by uid, with the stage that rejected its text."""
    ends: dict[str, str] = dict(_records(verdicts, "uid", "stage"))
    rows = {}
    for url, caption, *known in _records(
        truth, "url", "caption", "photo", "drop_at", "matches", "scene"
    ):
        uid = uid_of(url, caption)
        if uid not in ends:
            raise ValueError(f"verdicts: no pair {url}, {caption!r}; judge a run of pairs.parquet")
        end = ends[uid]
        if end in ("filter", KEPT):
            end = KEPT if uid in web else "filter"
        photo, drop_at, matches, scene = known
        rows[uid] = _Row(photo=photo, drop_at=drop_at, matches=matches, scene=scene, end=end)
    return rows


def _count(stage: str, rows: Sequence[_Row]) -> _Counts:
    """The counts of a stage that judges each pair alone."""
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
    """The counts of dedup over photographs that are shown several times."""
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
    """Copies as dedup left them: the first survivor of a photograph is the one to keep."""
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


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
