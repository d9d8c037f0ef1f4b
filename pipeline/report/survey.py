"""The survey of a run: counts, distributions and seeded samples of rows, in one pass."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.random import splitmix
from pipeline.report.extremes import Extremes
from pipeline.report.frequent_texts import Frequent
from pipeline.report.histogram import GrowingHistogram, Histogram
from pipeline.report.pool_map import MOST, Embedded
from pipeline.report.sweep import Sweep
from pipeline.results.image_numbers import image_numbers
from pipeline.results.sampling import Ranks, RowLocation, Smallest, ranks_of
from pipeline.results.tables import INTERNAL
from pipeline.results.verdicts import Judgement, Mask, Results
from stages.base import Cutoff, Floats, Stage, floats, is_numeric
from stages.caption import CaptionStage
from stages.clean import CleanStage
from stages.dedup import DedupStage
from stages.download import DownloadStage
from stages.embed import EmbedStage
from stages.filter import FilterStage
from stages.registry import STAGES
from stages.review import ReviewStage
from stages.schema import web_captions
from stages.select import SelectStage

__all__ = ["CELLS", "Borderline", "Cluster", "Survey", "Texts", "survey"]

GALLERY = 8
"""Rows shown for a reason."""

NEAREST = 4
"""Rows shown on each side of the threshold of a reason."""

PAIRS_SHOWN = 6
"""Rows shown for each of `CELLS`."""

TEXT_SAMPLE = 20_000
"""Texts whose variety is measured; fixed, because the share of distinct words depends on it."""

COUNTED = 100_000
"""Texts of each source that are counted at a time to find the most frequent ones."""

CLUSTER_MEMBERS = 7
MAX_SHARED = 200
LOCAL = "local files"
CELLS = ("both", "web", "synthetic", "none")
"""Which texts of an image the filter keeps."""

WORDS = tuple(float(n) for n in range(0, 32))
SCORES = tuple(round(n / 40, 3) for n in range(41))
SIMILARITIES = tuple(round(n / 50, 2) for n in range(-5, 31))
SIDES = tuple(n / 4 for n in range(16, 49))
ASPECTS = tuple(n / 4 for n in range(-10, 11))


@dataclass
class Texts:
    """The web or the synthetic captions of a run.

    Attributes:
        total: Number of captions before any stage.
        judged: Number of captions that the filter scored.
        rejected: Number of captions that the filter rejects.
        cut: Number of captions that the filter did not read to the end.
        sentences: Number of sentences that the filter judged separately.
        sentences_dropped: Number of these sentences that it drops.
        kept: Number of kept captions of kept images.
        words: Lengths in words, of all captions and of kept ones.
        scores: ITM scores of judged captions.
        similarities: CLIP similarities of judged captions, and of kept ones.
        sample: A seeded sample of the captions that reached the filter; without a filter, of
            the captions of all kept rows.
        frequent: Counts of the most frequent captions, among the same captions as `sample`.
    """

    total: int = 0
    judged: int = 0
    rejected: int = 0
    cut: int = 0
    sentences: int = 0
    sentences_dropped: int = 0
    kept: int = 0
    words: Histogram = field(default_factory=lambda: Histogram.empty(WORDS, "found", "kept"))
    scores: Histogram = field(default_factory=lambda: Histogram.empty(SCORES, "texts"))
    similarities: Histogram = field(
        default_factory=lambda: Histogram.empty(SIMILARITIES, "judged", "kept")
    )
    sample: Smallest[str] = field(default_factory=lambda: Smallest(TEXT_SAMPLE))
    frequent: Frequent = field(default_factory=lambda: Frequent(COUNTED))

    def offer(self, texts: Any, ranks: Ranks, mask: Mask) -> None:
        """Count the texts of a shard that are in the mask, and offer them to the sample."""
        self.frequent.add(texts.filter(pa.array(mask)))
        chosen = np.flatnonzero(mask)
        self.sample.offer(ranks[chosen], lambda index: str(texts[int(chosen[index])]))


@dataclass
class PromptTexts:
    """The synthetic captions of one prompt.

    Attributes:
        written: Number of captions.
        judged: Number of captions that the filter scored.
        rejected: Number of captions that the filter rejects.
    """

    written: int = 0
    judged: int = 0
    rejected: int = 0


@dataclass
class Cluster:
    """Near-duplicate images: their number, and the locations of some besides the representative."""

    size: int = 1
    members: Smallest[RowLocation] = field(default_factory=lambda: Smallest(CLUSTER_MEMBERS))


@dataclass
class Borderline:
    """The rows nearest to a threshold, on both sides.

    Attributes:
        name: The field that sets the threshold.
        limit: The threshold; None if it depends on the whole pool.
        rejected: Rows rejected for its reason.
        kept: Rows that the stage keeps.
    """

    name: str
    limit: float | None
    rejected: Smallest[RowLocation] = field(default_factory=lambda: Smallest(NEAREST))
    kept: Smallest[RowLocation] = field(default_factory=lambda: Smallest(NEAREST))


@dataclass
class Survey:
    """The counts, distributions and samples of a run.

    Attributes:
        rows: Rows of the pool.
        repeats: Further input rows with the same URL and caption.
        kept: Rows that no stage rejected.
        web: The web captions.
        synthetic: The synthetic captions.
        further: Captions of copies that kept images took over, themselves kept.
        prompts: The synthetic captions of each named prompt, by its name.
        failures: Number of captions that could not be obtained, by reason.
        sides: Shorter sides of the original images, in log2 of pixels, all and kept.
        aspects: log2 of width / height, all and kept.
        hosts: Number of rows by (host, download's reason or None).
        languages: Number of rows by (language, whether clean keeps them).
        fired: Number of rows by the rules of clean that fired, as bits from `CleanStage.fired`.
        phrases: Number of images by noun phrase: of the rows that select measured, and of those
            that it keeps.
        shared: Captions of more than one image, by their cluster: the number of images, and text.
        clusters: Clusters of more than one image, by the uid of the representative.
        cells: Number of images by each of `CELLS`.
        reasons: Sampled rows by (stage, reason).
        thresholds: The rows nearest to the threshold of a (stage, reason) that has one.
        shown: Sampled rows by each of `CELLS`.
        numbers: Distributions of the columns of numbers that the report draws, by (stage, column):
            of the rows that the stage measured, and of those that it keeps.
        sweep: What each threshold of semantic copies would drop.
        embedded: Rows with an embedding.
        points: A seeded sample of these rows, to be drawn.
        extremes: The kept images at the ends of the numbers of images.
    """

    rows: int = 0
    repeats: int = 0
    kept: int = 0
    web: Texts = field(default_factory=Texts)
    synthetic: Texts = field(default_factory=Texts)
    further: int = 0
    prompts: dict[str, PromptTexts] = field(default_factory=lambda: defaultdict(PromptTexts))
    failures: Counter[str] = field(default_factory=Counter)
    sides: Histogram = field(default_factory=lambda: Histogram.empty(SIDES, "found", "kept"))
    aspects: Histogram = field(default_factory=lambda: Histogram.empty(ASPECTS, "found", "kept"))
    hosts: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    languages: Counter[tuple[str, bool]] = field(default_factory=Counter)
    fired: Counter[int] = field(default_factory=Counter)
    phrases: tuple[Counter[str], Counter[str]] = field(
        default_factory=lambda: (Counter(), Counter())
    )
    shared: dict[str, tuple[int, str]] = field(default_factory=dict)
    clusters: dict[str, Cluster] = field(default_factory=lambda: defaultdict(Cluster))
    cells: Counter[str] = field(default_factory=Counter)
    reasons: dict[tuple[str, str], Smallest[RowLocation]] = field(
        default_factory=lambda: defaultdict(lambda: Smallest(GALLERY))
    )
    thresholds: dict[tuple[str, str], Borderline] = field(default_factory=dict)
    shown: dict[str, Smallest[RowLocation]] = field(
        default_factory=lambda: defaultdict(lambda: Smallest(PAIRS_SHOWN))
    )
    numbers: dict[tuple[str, str], GrowingHistogram] = field(default_factory=dict)
    sweep: Sweep = field(default_factory=Sweep)
    embedded: int = 0
    points: Smallest[Embedded] = field(default_factory=lambda: Smallest(MOST))
    extremes: Extremes = field(default_factory=Extremes)


def survey(results: Results, names: Sequence[str]) -> Survey:
    """Survey a run: read the narrow columns of every shard once.

    Args:
        results: The results of the run.
        names: The stages to judge by, in the order of the plan.
    """
    totals = Survey()
    for shard in results.run.shards("pool"):
        _Shard(results, names, shard).add_to(totals)
    return totals


class _Fate(NamedTuple):
    """Masks of the texts that reached the filter, and of those that it keeps.

    `further_kept` is a mask of the rows that keep a further web caption.
    """

    web: Mask
    web_kept: Mask
    synthetic: Mask
    synthetic_kept: Mask
    further_kept: Mask


class _Shard:
    """The columns of one shard, its verdicts, and a rank for each row."""

    def __init__(self, results: Results, names: Sequence[str], shard: str) -> None:
        self.name = shard
        self.results = results
        self.plan = results.plan
        self.verdicts: Judgement = results.judge(shard, names)
        self.pool = results.run.read_table(
            "pool",
            f"{shard}.parquet",
            columns=["uid", "url", "caption", "repeats", "original_width", "original_height"],
        )
        self.tables = {
            name: table
            for name, table in self.verdicts.tables.items()
            if name != DownloadStage.name
        }
        self.ranks = ranks_of(self.verdicts.uids, self.plan.manifest.seed)

    def add_to(self, totals: Survey) -> None:
        totals.rows += self.pool.num_rows
        totals.repeats += pc.sum(self.pool["repeats"]).as_py() or 0
        totals.kept += int(self.verdicts.live.sum())
        self._reasons(totals)
        self._thresholds(totals)
        self._sizes(totals)
        self._hosts(totals)
        self._texts(totals)
        self._languages(totals)
        self._clusters(totals)
        self._phrases(totals)
        self._numbers(totals)
        self._sweep(totals)
        self._embedded(totals)
        numbers = image_numbers(self.pool, self.tables)
        totals.extremes.offer(self.name, self.ranks, numbers, self.verdicts.live)

    def _measured(self, name: str) -> tuple[pa.Table, Mask] | None:
        """A stage's annotations of the rows that it measured, and the mask of these rows."""
        if name not in self.tables:
            return None
        mask = self.verdicts.measured[name]
        return self.tables[name].filter(pa.array(mask)), mask

    def _offer(
        self,
        sample: Smallest[RowLocation],
        rows: npt.NDArray[np.intp],
        distance: Floats | None = None,
    ) -> None:
        sample.offer(
            self.ranks[rows], lambda index: RowLocation(self.name, int(rows[index])), distance
        )

    def _reasons(self, totals: Survey) -> None:
        for name, reasons in self.verdicts.reasons.items():
            values = np.array(reasons.to_pylist(), dtype=object)
            for reason in reasons.drop_null().unique().to_pylist():
                self._offer(totals.reasons[name, reason], np.flatnonzero(values == reason))

    def _thresholds(self, totals: Survey) -> None:
        for name in self.tables:
            if (measured := self._measured(name)) is None:
                continue
            table, mask = measured
            rows = np.flatnonzero(mask)
            reasons = self.verdicts.reasons[name].filter(pa.array(mask))
            kept = _bools(reasons.is_null())
            for cutoff in self.plan.stage(name).cutoffs(table):
                key = name, cutoff.reason
                line = totals.thresholds.setdefault(key, Borderline(cutoff.name, cutoff.limit))
                there = ~np.isnan(cutoff.values)
                rejected = _bools(pc.equal(reasons, pa.scalar(cutoff.reason)))
                for sample, fate in ((line.rejected, rejected), (line.kept, kept)):
                    distance = _distance(cutoff, fate is rejected)
                    self._offer(sample, rows[fate & there], distance[fate & there])

    def _sizes(self, totals: Survey) -> None:
        width = floats(self.pool["original_width"])
        height = floats(self.pool["original_height"])
        there = (width > 0) & (height > 0)
        sides = np.log2(np.minimum(width, height), where=there, out=np.zeros(len(width)))
        ratio = np.divide(width, height, where=there, out=np.ones(len(width)))
        for series, mask in (("found", there), ("kept", there & self.verdicts.live)):
            totals.sides.add(series, sides[mask])
            totals.aspects.add(series, np.log2(ratio[mask]))

    def _hosts(self, totals: Survey) -> None:
        reasons = self.verdicts.reasons.get(DownloadStage.name)
        if reasons is not None:
            totals.hosts.update(zip(_hosts(self.pool["url"]), reasons.to_pylist(), strict=True))

    def _texts(self, totals: Survey) -> None:
        live = self.verdicts.live
        rows = self.pool.select(["uid", "caption"])
        if (clean := self.tables.get(CleanStage.name)) is not None:
            rows = rows.append_column("text", clean["text"])
        captions = web_captions(rows).combine_chunks()
        texts, parents = _nothing()
        if (written := self.tables.get(CaptionStage.name)) is not None:
            texts, parents = _flat(written["synthetic"])
        fate = self._fate(_bools(captions.is_valid()), _bools(pc.utf8_length(texts)), parents)

        totals.web.total += self.pool.num_rows - self.pool["caption"].null_count
        totals.web.words.add("found", _num_words(self.pool["caption"].drop_null()))
        totals.synthetic.total += len(texts)
        totals.synthetic.words.add("found", _num_words(texts))
        self._prompts(totals, fate)
        totals.further += self._further_kept()
        ordinals: Ranks = np.arange(len(parents), dtype=np.uint64)
        for source, values, ranks, reached, passed, alive in (
            (
                totals.web,
                captions,
                self.ranks,
                fate.web,
                fate.web_kept,
                live & self._left(captions, np.arange(len(live))),
            ),
            (
                totals.synthetic,
                texts,
                splitmix(self.ranks[parents] + ordinals),
                fate.synthetic,
                fate.synthetic_kept,
                live[parents] & self._left(texts, parents),
            ),
        ):
            kept = alive & passed
            source.kept += int(kept.sum())
            source.words.add("kept", _num_words(values.filter(pa.array(kept))))
            source.offer(values, ranks, reached)

        if (scored := self._measured(FilterStage.name)) is not None:
            table, measured = scored
            for source, kind, reached, passed in (
                (totals.web, "web", fate.web, fate.web_kept),
                (totals.synthetic, "synthetic", fate.synthetic, fate.synthetic_kept),
            ):
                source.judged += int(reached.sum())
                source.rejected += int((reached & ~passed).sum())
                source.cut += int((_scores(table, f"unread_{kind}") > 0).sum())
                source.scores.add("texts", _there(_scores(table, f"itm_{kind}")))
                similar = _scores(table, f"clip_{kind}")
                if len(similar):
                    judged = measured if kind == "web" else measured[parents]
                    source.similarities.add("judged", _there(similar))
                    source.similarities.add("kept", _there(similar[passed[judged]]))
                flags = _sentences_kept(self._keeps[f"sentences_kept_{kind}"])
                source.sentences += len(flags)
                source.sentences_dropped += int((~flags).sum())
            any_synthetic = np.zeros(len(live), bool)
            any_synthetic[parents[fate.synthetic_kept]] = True
            self._cells(totals, measured, fate.web_kept | fate.further_kept, any_synthetic)
        elif written is not None:
            captioned = live & self.verdicts.measured[CaptionStage.name]
            self._offer(totals.shown["both"], np.flatnonzero(captioned))

    def _further_kept(self) -> int:
        """The number of captions of copies that export writes for the rows of the shard."""
        if (deduped := self.tables.get(DedupStage.name)) is None:
            return 0
        texts, rows = _flat(deduped["further_captions"])
        kept = self.verdicts.live[rows] & self._left(texts, rows)
        if (scored := self._measured(FilterStage.name)) is not None:
            flags, inside = _bools(_flat(self._keeps["keep_further"])[0]), scored[1][rows]
            kept[inside] &= flags if len(flags) == inside.sum() else False  # none is scored
        return int(kept.sum())

    def _prompts(self, totals: Survey, fate: _Fate) -> None:
        """Count the synthetic captions of each prompt, and the captions that failed."""
        if (written := self.tables.get(CaptionStage.name)) is None:
            return
        failures: Any = written["caption_failures"].combine_chunks()
        totals.failures.update(failures.flatten().field("error").to_pylist())
        names, _ = _flat(written["synthetic_names"])
        is_judged = FilterStage.name in self.tables
        values = np.array(names.to_pylist(), object)
        for name in names.drop_null().unique().to_pylist():
            mask, count = values == name, totals.prompts[name]
            count.written += int(mask.sum())
            if is_judged:
                count.judged += int((mask & fate.synthetic).sum())
                count.rejected += int((mask & fate.synthetic & ~fate.synthetic_kept).sum())

    def _fate(self, web: Mask, synthetic: Mask, parents: npt.NDArray[np.int64]) -> _Fate:
        """The masks of texts that the filter judges and keeps; without it, texts of live rows.

        Args:
            web: (n,) mask of the rows that have a web caption.
            synthetic: (m,) mask of the synthetic captions that are not empty.
            parents: (m,) row of each synthetic caption.
        """
        if (scored := self._measured(FilterStage.name)) is None:
            live = self.verdicts.live
            web, synthetic = web & live, synthetic & live[parents]
            return _Fate(web, web, synthetic, synthetic, np.zeros(len(web), bool))
        table, measured = scored
        keeps = self._keeps
        flags, _ = _flat(keeps["keep_synthetic"])
        further, rows = _flat(keeps["keep_further"])
        of_rows, of_texts = np.zeros((3, len(web)), bool), np.zeros((2, len(synthetic)), bool)
        fate = _Fate(of_rows[0], of_rows[1], of_texts[0], of_texts[1], of_rows[2])
        fate.further_kept[np.flatnonzero(measured)[rows[_bools(further)]]] = True
        fate.web[measured] = _is_scored(table, "web")
        fate.web_kept[measured] = _bools(keeps["keep_web"])
        fate.synthetic[measured[parents]] = _is_scored(table, "synthetic")
        fate.synthetic_kept[measured[parents]] = _bools(flags)
        return fate

    @functools.cached_property
    def _keeps(self) -> pa.Table:
        """The filter's verdicts on the texts of the rows that it measured."""
        scored = self._measured(FilterStage.name)
        assert scored is not None
        return self.results.kept_texts(scored[0])

    def _left(self, texts: Any, rows: npt.NDArray[np.int64]) -> Mask:
        """(m,) mask of the texts that no reviewer rejected; `rows` has the row of each text."""
        left = np.ones(len(rows), bool)
        if (reviewed := self.tables.get(ReviewStage.name)) is None:
            return left
        rejected = {
            (row, entry["caption"])
            for row, entries in enumerate(reviewed["reviews"].to_pylist())
            for entry in entries or ()
            if entry["verdict"] == "reject"
        }
        if rejected:
            pairs = zip(rows.tolist(), texts.to_pylist(), strict=True)
            left[:] = [pair not in rejected for pair in pairs]
        return left

    def _cells(self, totals: Survey, measured: Mask, web: Mask, synthetic: Mask) -> None:
        masks = (web & synthetic, web & ~synthetic, ~web & synthetic, ~web & ~synthetic)
        for cell, mask in zip(CELLS, masks, strict=True):
            totals.cells[cell] += int((measured & mask).sum())
            self._offer(totals.shown[cell], np.flatnonzero(measured & mask))

    def _languages(self, totals: Survey) -> None:
        if (cleaned := self._measured(CleanStage.name)) is None:
            return
        table, mask = cleaned
        stage: Any = self.plan.stage(CleanStage.name)
        totals.fired.update(stage.fired(table).tolist())
        kept = _bools(self.verdicts.reasons[CleanStage.name].is_null())[mask]
        languages = table["language"].to_pylist()
        totals.languages.update(
            (language, bool(keep))
            for language, keep in zip(languages, kept, strict=True)
            if language
        )

    def _clusters(self, totals: Survey) -> None:
        if (deduped := self._measured(DedupStage.name)) is None:
            return
        table, mask = deduped
        rows = np.flatnonzero(mask)
        uids, clusters = table["uid"].to_pylist(), table["image_cluster"].to_pylist()
        for index, (uid, cluster) in enumerate(zip(uids, clusters, strict=True)):
            if cluster is None or cluster == uid:
                continue
            location = RowLocation(self.name, int(rows[index]))
            totals.clusters[cluster].size += 1
            totals.clusters[cluster].members.put(int(self.ranks[location.row]), location)
        captions = self.pool["caption"].filter(pa.array(mask)).to_pylist()
        clusters = table["caption_cluster"].to_pylist()
        numbers = table["caption_images"].to_pylist()
        for caption, cluster, number in zip(captions, clusters, numbers, strict=True):
            if caption and cluster and number and number > 1:
                entry = (number, caption[:MAX_SHARED])
                totals.shared[cluster] = min(totals.shared.get(cluster, entry), entry)

    def _phrases(self, totals: Survey) -> None:
        if (selected := self._measured(SelectStage.name)) is None:
            return
        table, mask = selected
        kept = self.verdicts.reasons[SelectStage.name].is_null().filter(pa.array(mask))
        for counter, rows in zip(totals.phrases, (table, table.filter(kept)), strict=True):
            phrases, _ = _flat(rows["noun_phrases"])
            for entry in phrases.value_counts().to_pylist():
                counter[entry["values"]] += entry["counts"]

    def _numbers(self, totals: Survey) -> None:
        for name in self.tables:
            measured = self._measured(name)
            assert measured is not None
            table, mask = measured
            kept = _bools(self.verdicts.reasons[name].is_null())[mask]
            for column in _drawn(STAGES[name]):
                values, rows = table[column.name], np.arange(table.num_rows)
                is_list = pa.types.is_list(column.type)
                if is_list:
                    values, rows = _flat(values)
                is_whole = pa.types.is_integer(column.type.value_type if is_list else column.type)
                counts = totals.numbers.setdefault(
                    (name, column.name), GrowingHistogram("measured", "kept", is_whole=is_whole)
                )
                numbers = floats(values)
                counts.add("measured", numbers)
                counts.add("kept", numbers[kept[rows]])

    def _sweep(self, totals: Survey) -> None:
        if (measured := self._measured(DedupStage.name)) is not None:
            totals.sweep.add(measured[0])

    def _embedded(self, totals: Survey) -> None:
        if (measured := self._measured(EmbedStage.name)) is None:
            return
        table, mask = measured
        rows = np.flatnonzero(mask)[_bools(table["embedded"])]
        totals.embedded += len(rows)

        def one(index: int) -> Embedded:
            row = int(rows[index])
            return Embedded(RowLocation(self.name, row), bool(self.verdicts.live[row]))

        totals.points.offer(self.ranks[rows], one)


def _drawn(stage: type[Stage[Any]]) -> Iterator[pa.Field[Any]]:
    """The columns of numbers, or of lists of numbers, of a stage that the report draws."""
    for column in stage.columns():
        kind = column.type.value_type if pa.types.is_list(column.type) else column.type
        if stage.histograms is None:
            is_drawn = not column.name.endswith(INTERNAL)
        else:
            is_drawn = column.name in stage.histograms
        if is_drawn and is_numeric(kind):
            yield column


def _distance(cutoff: Cutoff, is_rejected: bool) -> Floats:
    """(n,) distance of each row from the threshold; the smallest is the nearest."""
    if cutoff.limit is not None:
        return np.abs(cutoff.values - cutoff.limit)
    return -cutoff.values if is_rejected else cutoff.values


def _flat(lists: Any) -> tuple[Any, npt.NDArray[np.int64]]:
    """The values of a column of lists in order, and the row of each value."""
    whole = lists.combine_chunks()
    return whole.flatten(), pc.list_parent_indices(whole).to_numpy().astype(np.int64)


def _scores(table: pa.Table, name: str) -> Floats:
    """The score of each text, NaN if it has none; empty if the table has no such column."""
    if name not in table.column_names:
        return np.zeros(0)
    column = table[name]
    return floats(_flat(column)[0] if pa.types.is_list(column.type) else column)


def _is_scored(table: pa.Table, kind: str) -> Mask:
    """Mask of the texts of a kind that have at least one score."""
    scores = (_scores(table, f"{score}_{kind}") for score in ("itm", "clip"))
    mask: Mask = np.logical_or.reduce([~np.isnan(values) for values in scores if len(values)])
    return mask


def _sentences_kept(column: Any) -> Mask:
    """Mask of the kept sentences, over all sentences of all texts of a column, in order."""
    while pa.types.is_list(column.type):
        column = pc.list_flatten(column)
    return _bools(column)


def _there(values: Floats) -> Floats:
    return values[~np.isnan(values)]


def _nothing() -> tuple[Any, npt.NDArray[np.int64]]:
    return pa.array([], pa.string()), np.zeros(0, np.int64)


def _num_words(texts: Any) -> Floats:
    trimmed = pc.utf8_trim_whitespace(texts)
    number = pc.list_value_length(pc.utf8_split_whitespace(trimmed))
    return floats(pc.if_else(pc.equal(trimmed, pa.scalar("")), 0, number))


def _hosts(urls: Any) -> list[str]:
    """The host of each URL; everything else counts as a local file."""
    pattern = r"^(?i:https?)://(?:[^/?#@]*@)?(?P<host>[^/?#]+)"
    hosts: Any = pc.struct_field(pc.extract_regex(urls, pattern), "host")
    return [LOCAL if host is None else host.lower() for host in hosts.to_pylist()]


def _bools(values: Any) -> Mask:
    """A column as a bool array; null and 0 become False."""
    mask: Mask = (
        values.fill_null(pa.scalar(0).cast(values.type)).to_numpy(zero_copy_only=False).astype(bool)
    )
    return mask
