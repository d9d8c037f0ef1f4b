"""One sample of a run: its row of the pool, the verdict of each stage, and the final verdict."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.results.verdicts import KEPT, Results
from pipeline.storage.run import Run
from stages.base import CRASHED
from stages.clean import CleanStage
from stages.dedup import DedupStage
from stages.download import DownloadStage
from stages.filter import FilterStage
from stages.redaction import redacted

__all__ = ["Caption", "SampleHistory", "Sentence", "StageVerdict", "sample_history"]

REJECTED, WAITING, NOT_REACHED = "rejected", "not measured yet", "not reached"

COPIES = 12
"""Maximum number of listed rows of the same image."""


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A sentence of a text that the filter judged in sentences.

    Attributes:
        text: The sentence.
        itm: The probability that it matches the image.
        itc: The cosine of image and sentence.
        clip: Their similarity by CLIP, where one measures.
        is_kept: Whether the filter keeps it.
    """

    text: str
    itm: float | None = None
    itc: float | None = None
    clip: float | None = None
    is_kept: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A text of the sample.

    Attributes:
        source: web, further (the caption of a copy of the image), synthetic, or fused (synthetic,
            by a prompt with the web caption in it).
        name: The name of a synthetic caption's prompt; None if it has none.
        text: The text, as the filter saw it.
        itm: The probability that it matches the image; None if the filter did not score it. For
            a text that was judged in sentences, the best of its sentences.
        itc: The cosine of image and text.
        clip: Their similarity by CLIP; None if no CLIP model is used.
        is_kept: Whether the filter keeps it; None if it did not judge it.
        unread: Number of its tokens that the filter did not read.
        sentences: Its sentences, where they were judged one by one.
    """

    source: str
    text: str
    name: str | None = None
    itm: float | None = None
    itc: float | None = None
    clip: float | None = None
    is_kept: bool | None = None
    unread: int | None = None
    sentences: Sequence[Sentence] = ()


@dataclass(frozen=True, kw_only=True)
class StageVerdict:
    """The verdict of one stage on the sample.

    Attributes:
        name: The stage.
        verdict: kept, rejected, not measured yet, or not reached because an earlier stage
            rejected the sample.
        reason: The reason it is rejected for.
        why: The reason in a sentence, with the values of the thresholds in it.
        also: Other rules of clean that would have rejected the sample.
        measures: The columns that the stage wrote.
    """

    name: str
    verdict: str
    reason: str | None = None
    why: str | None = None
    also: Sequence[str] = ()
    measures: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SampleHistory:
    """One sample.

    Attributes:
        verdict: kept, `STAGE: REASON`, or `not measured by STAGE yet`.
        pool: Its row of the pool without the image.
        image: The encoded image; None if there is none.
        steps: The verdict of each stage, in order.
        captions: Its texts: web, further, synthetic.
        copies: uid, url and reason of other rows of the same image; at most `COPIES`.
        representative: The uid of the row that dedup keeps of the image; None if dedup has not
            run.
    """

    verdict: str
    pool: Mapping[str, Any]
    image: bytes | None = dataclasses.field(repr=False)
    steps: Sequence[StageVerdict]
    captions: Sequence[Caption]
    copies: Sequence[Mapping[str, Any]]
    representative: str | None

    def plain(self) -> dict[str, Any]:
        """Convert to values that JSON can hold: bytes as hex, the image as its length."""
        values = dataclasses.asdict(self)
        values["image"] = None if self.image is None else {"bytes": len(self.image)}
        plain: dict[str, Any] = _plain(values)
        return plain


def sample_history(results: Results, sample: str) -> SampleHistory:
    """Gather the history of a sample.

    Args:
        results: The results of a run.
        sample: The sample's uid or URL, or a part that no other sample has: the beginning of its
            uid or the end of its URL, such as a file name.

    Raises:
        ValueError: No sample matches, or more than one.
    """
    run, plan = results.run, results.plan
    shard, row = _locate(run, sample)
    pool = run.read_table("pool", f"{shard}.parquet").slice(row, 1).to_pylist()[0]
    image = pool.pop("image")
    pool["url"] = redacted(pool["url"])
    steps: list[StageVerdict] = []
    columns: dict[str, Any] = {}
    keeps: dict[str, Any] = {}
    verdict = KEPT
    for position, name in enumerate(plan.names):
        if verdict != KEPT:
            missed = NOT_REACHED if steps[-1].verdict in (REJECTED, NOT_REACHED) else WAITING
            steps.append(StageVerdict(name=name, verdict=missed))
            continue
        try:
            judgement = results.judge(shard, plan.names[: position + 1])
        except FileNotFoundError:  # a model that is still to be trained
            judgement = None
        if judgement is None or judgement.waiting(name)[row]:
            verdict = f"not measured by {name} yet"
            steps.append(StageVerdict(name=name, verdict=WAITING))
            continue
        stage = plan.stage(name)
        if judgement.crashed[name][row]:
            verdict, why = f"{name}: {CRASHED}", stage.every_reason()[CRASHED]
            steps.append(StageVerdict(name=name, verdict=REJECTED, reason=CRASHED, why=why))
            continue
        table = results.annotated(name, shard)
        if table is None:
            raise run.damaged("it is gone", *plan.folder(name), f"{shard}.parquet")
        one = table.slice(row, 1).drop_columns("measured")
        measures = one.to_pylist()[0]
        del measures["uid"]
        columns |= measures
        if isinstance(stage, FilterStage):
            keeps = stage.keep_texts(one).to_pylist()[0]
        reason = judgement.reasons[name][row].as_py()
        also = []
        if isinstance(stage, CleanStage):
            fired = int(stage.fired(one)[0])
            rules = [rule for bit, rule in enumerate(stage.reasons) if fired >> bit & 1]
            also = [rule for rule in rules if rule != reason]
        if reason is not None:
            verdict = f"{name}: {reason}"
        explained = (
            None if reason is None else _why(stage.every_reason()[reason], stage.config.settings())
        )
        steps.append(
            StageVerdict(
                name=name,
                verdict=KEPT if reason is None else REJECTED,
                reason=reason,
                why=explained,
                also=also,
                measures={} if name == DownloadStage.name else measures,
            )
        )
    return SampleHistory(
        verdict=verdict,
        pool=pool,
        image=image,
        steps=steps,
        captions=list(_captions(pool, columns, keeps)),
        copies=_copies(results, pool["uid"], columns.get("image_cluster")),
        representative=columns.get("image_cluster"),
    )


def _locate(run: Run, sample: str) -> tuple[str, int]:
    """Find the shard and the row of a sample."""
    by_uid: list[tuple[str, int]] = []
    by_url: list[tuple[str, int]] = []
    shards = run.shards("pool")
    if not shards:
        raise ValueError(f"{run.root}: nothing is downloaded yet; `capfilt run` it first")
    ending = sample if sample.startswith("/") else f"/{sample}"
    for shard in shards:
        names = run.read_table("pool", f"{shard}.parquet", columns=["uid", "url"])
        is_uid: Any = pc.starts_with(names["uid"], sample)
        is_same: Any = pc.equal(names["url"], pa.scalar(sample))
        is_url: Any = pc.or_(is_same, pc.ends_with(names["url"], ending))
        for matches, mask in ((by_uid, is_uid), (by_url, is_url)):
            matches += [(shard, int(row)) for row in mask.to_numpy().nonzero()[0]]
    matches = by_uid or by_url
    if len(matches) == 1:
        return matches[0]
    if matches:
        what = "a uid that begins with" if by_uid else "a URL that is or ends in"
        raise ValueError(
            f"{run.root}: {len(matches)} samples have {what} {sample!r}; give more of it"
        )
    raise ValueError(
        f"{run.root}: no sample has a uid that begins with {sample!r}, nor such a URL; "
        f"`capfilt verdicts {run.root} --out verdicts.csv` lists all"
    )


def _why(sentence: str, settings: Mapping[str, Any]) -> str:
    """Append to the sentence of a reason the value of each setting that it names."""
    named = [name for name in re.findall(r"\w+", sentence) if "_" in name and name in settings]
    values = ", ".join(f"{name} {settings[name]}" for name in dict.fromkeys(named))
    return f"{sentence} ({values})" if values else sentence


def _captions(
    pool: Mapping[str, Any], columns: Mapping[str, Any], keeps: Mapping[str, Any]
) -> Iterator[Caption]:
    web = columns.get("text", pool["caption"])
    texts = {
        "web": [] if web is None else [web],
        "further": columns.get("further_captions") or [],
        "synthetic": columns.get("synthetic") or [],
    }
    for source, some in texts.items():
        found = {
            name: _of_kind(columns.get(f"{name}_{source}"), source)
            for name in ("itm", "itc", "clip", "unread", "sentences")
        }
        found["keep"] = _of_kind(keeps.get(f"keep_{source}"), source)
        found["kept"] = _of_kind(keeps.get(f"sentences_kept_{source}"), source)
        for number, text in enumerate(some):
            synthetic = columns if source == "synthetic" else {}
            names, fused = (synthetic.get(f"synthetic_{name}") or [] for name in ("names", "fused"))
            own = {
                name: values[number] if number < len(values) else None
                for name, values in found.items()
            }
            sentences, kept = own.pop("sentences"), own.pop("kept")
            yield Caption(
                source="fused" if number < len(fused) and fused[number] else source,
                name=names[number] if number < len(names) else None,
                text=text,
                is_kept=own.pop("keep"),
                sentences=[
                    Sentence(
                        text=sentence["text"].strip(),
                        is_kept=is_kept,
                        **{name: sentence[name] for name in ("itm", "itc", "clip")},
                    )
                    for sentence, is_kept in zip(sentences or (), kept or (), strict=True)
                ],
                **own,
            )


def _of_kind(value: Any, source: str) -> list[Any]:
    """The values of a column for each text of a kind; a single one for the web caption."""
    return [value] if source == "web" else value or []


def _copies(results: Results, uid: str, cluster: str | None) -> list[dict[str, Any]]:
    """Other rows of the same image: uid, url and reason."""
    copies: list[dict[str, Any]] = []
    if cluster is None:
        return copies
    run, folder = results.run, results.plan.summary_folder(DedupStage.name)
    for shard in run.shards(*folder):
        table = run.read_table(
            *folder, f"{shard}.parquet", columns=["uid", "image_cluster", "image_duplicate"]
        )
        same: Any = pc.equal(table["image_cluster"], pa.scalar(cluster))
        mask: Any = pc.and_(same, pc.not_equal(table["uid"], pa.scalar(uid)))
        rows = mask.fill_null(False).to_numpy().nonzero()[0][: COPIES - len(copies)]
        if len(rows):
            urls = run.read_table("pool", f"{shard}.parquet", columns=["url"]).take(pa.array(rows))
            copies += [
                {"uid": row["uid"], "url": redacted(str(url)), "reason": row["image_duplicate"]}
                for row, url in zip(
                    table.take(pa.array(rows)).to_pylist(), urls["url"].to_pylist(), strict=True
                )
            ]
    return copies


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value
