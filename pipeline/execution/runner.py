"""The driver of one stage, or export, over all shards."""

from __future__ import annotations

import logging
import os
import platform
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

from ray.exceptions import RayError, RayTaskError

from models.errors import (
    DamagedError,
    IncompleteError,
    InputError,
    PoolMismatchError,
    StageError,
    WorkerPoolError,
)
from models.objectives.registry import OBJECTIVES
from pipeline.execution import documents_writer, embeddings_writer, export_writer
from pipeline.execution.cluster import Cluster
from pipeline.execution.map_reduce import PartitionedSummary
from pipeline.execution.progress import Progress
from pipeline.execution.worker import Worker
from pipeline.execution.worker_pool import StageTask, WorkerPool
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import revisions
from pipeline.results import retries
from pipeline.results.open_run import as_json, plan_for
from pipeline.results.verdicts import Results
from pipeline.storage.disk_errors import explain_disk_error
from pipeline.storage.records import (
    ExportRecord,
    ExportStateRecord,
    LayoutRecord,
    ListRecord,
    RunRecord,
    StageRecord,
    SummaryRecord,
    add_work,
    content_of,
)
from pipeline.storage.run import Run
from pipeline.storage.successor import Successor, standing
from stages import sources
from stages.base import GlobalStage, Resources
from stages.download import DownloadStage
from stages.formats import SPLITS
from stages.registry import STAGES
from stages.review import ReviewStage

__all__ = ["Runner"]

logger = logging.getLogger(__name__)


COLOR = re.compile(r"\x1b\[[0-9;]*m")
"""Matches the ANSI colour codes in Ray's tracebacks."""


class Runner:
    """Carries out the stages of a manifest.

    Args:
        manifest: The manifest.
        cluster: The Ray to run on; the caller stops it.
        progress: Shows the progress of each stage.
    """

    def __init__(self, manifest: Manifest, cluster: Cluster, progress: Progress) -> None:
        self.manifest = manifest
        self.cluster = cluster
        self.progress = progress
        self.run = Run(manifest.run, manifest.branch)
        self.plan = plan_for(self.run, manifest)
        self.results = Results(self.run, self.plan)
        self.pool = WorkerPool(manifest, cluster, progress.say)
        self._dropped: set[tuple[str, ...]] = set()
        self._damaged: set[tuple[str, ...]] = set()  # exports that are to be made anew
        self._list: ListRecord | None = None

    def record(self, names: Sequence[str] = (), first: str | None = None) -> None:
        """Write run.json: the resolved manifest, versions and the machine.

        Args:
            names: The stages that may measure; only their models are looked up.
            first: The stage, or export, that is carried out first, if any.

        Raises:
            IncompleteError: What it reads is not complete.
            InputError: The manifest has no such stage.
            PoolMismatchError: The run holds the pool of another list.
            ValueError: The source is not there, and the pool is not finished.
        """
        if self.plan.names:  # a manifest may only train
            self._listed()
        if first not in (None, DownloadStage.name):
            self._require(str(first))
        before = self.run.find_record(RunRecord, "run.json", damaged_ok=True)
        old = before.measurement if before else {}
        objectives = {config.objective.name for config in self.manifest.train.values()}
        packages = ("ray", "torch", "transformers", "pyarrow", "img2dataset", "datasketch", "spacy")
        settings = {name: as_json(c.settings()) for name, c in self.manifest.stages.items()}
        record = RunRecord(
            manifest=as_json(dict(self.manifest.source)),
            branch=self.manifest.branch,
            settings=settings,
            versions={
                "capfilt": metadata.version("capfilt"),
                "python": platform.python_version(),
                **{name: metadata.version(name) for name in packages},
                **dict(filter(None, map(STAGES.distribution, self.plan.names))),
                **dict(filter(None, map(OBJECTIVES.distribution, objectives))),
            },
            decided={name: as_json(self.plan.decided(name)) for name in self.plan.names},
            machine={"cpus": os.cpu_count(), "system": platform.platform()},
            measurement={
                name: as_json(self.plan.measurement(name)) if name in names else old[name]
                for name in self.plan.names
                if name != ReviewStage.name
                and not self.plan.trainings(self.manifest.stages[name])
                and (name in names or (before and _is_current(name, before, settings)))
            },
        )
        for name, measurement in record.measurement.items():
            was, now = revisions(old.get(name, {})), revisions(measurement)
            for role in sorted(role for role in was.keys() & now if was[role] != now[role]):
                message = f"its {role} is not the one that has measured; rows are measured anew"
                self.progress.say(f"{name:<10} {message}")
        if before is None or content_of(before) != content_of(record):
            self.run.write_record(record, "run.json")

    def stage(self, name: str) -> None:
        """Do one stage, or export, over the whole pool.

        Raises:
            IncompleteError: An earlier stage has not measured all that it should.
            InputError: The manifest has no such stage.
            PoolMismatchError: The run holds the pool of another list.
            StageError: Some shards failed.
        """
        started = time.perf_counter()
        if name == DownloadStage.name:
            shards = self._plan_download()
        else:
            self._require(name)
            shards = self.run.shards("pool")
        if name in self.plan.exports:
            self._export(name, shards, started)
            return
        is_measured = self._is_measured(name)
        before = self._record(name)
        work = before.work
        if not is_measured:
            missing = self._missing(name, shards)
            if missing and name != ReviewStage.name:
                self.cluster.start()  # before anything changes: it may fail
            if name == DownloadStage.name and missing and self.run.names("annotations"):
                retries.record_replaced(self.run, missing)
            results = self._map(name, missing)
            work = add_work(work, results)
            notices: Counter[str] = Counter()
            for result in results:
                notices.update(result.get("notices", {}))
            for notice, number in notices.items():
                self.progress.say(f"{name:<10} {number:,} {notice}")
        if isinstance(self.plan.stage(name), GlobalStage):
            self._summarize(name, shards)
        if not is_measured:
            config = self.plan.stage(name).config
            record = StageRecord(
                stage=name,
                fingerprint=self.plan.fingerprint(name),
                settings=as_json(config.settings()),
                measurement=as_json(self.plan.measurement(name)),
                complete_for=self._reached(name),
                shards=len(shards),
                work=work,
                seconds=round(before.seconds + time.perf_counter() - started, 3),
            )
            self.run.write_record(record, *self.plan.folder(name), "_stage.json")

    def retry(self, reasons: Sequence[str]) -> None:
        """Download rows of a finished pool again that failed for one of some reasons.

        Raises:
            IncompleteError: The pool is not finished.
            InputError: Download has no such reason.
            StageError: Some shards failed.
        """
        name = DownloadStage.name
        if not self.is_complete(name):
            raise IncompleteError(
                f"download --retry: the pool of {self.run.root} is not finished. Run "
                "`capfilt download MANIFEST` first"
            )
        self._plan_download()
        failed = retries.failed_rows(self.run, reasons)
        rows = sum(failed.values())
        if not failed:
            self.progress.say(f"download   no row failed with {', '.join(reasons)}")
            return
        self.cluster.start()  # before anything changes: it may fail
        retries.record_retry(self.run, reasons, rows)
        results = self._map(name, list(failed), retry=tuple(reasons))
        still = sum(sum(result["reasons"].values()) for result in results)
        self.progress.say(f"download   {rows:,} rows tried again, {rows - still:,} recovered")

    def _reached(self, name: str) -> str:
        """A digest of what decides which rows reach a stage."""
        before = self.plan.before(name)
        return retries.pool_state(self.run, self.plan.decision(before[-1])) if before else "list"

    def _record(self, name: str) -> StageRecord:
        """The record of a stage; an empty one before it is written."""
        path = (*self.plan.folder(name), "_stage.json")
        return self.run.find_record(StageRecord, *path, damaged_ok=True) or StageRecord()

    def is_complete(self, name: str) -> bool:
        """Whether a stage has measured every row that reaches it, and its summary is made."""
        try:
            is_global = isinstance(self.plan.stage(name), GlobalStage)
            return self._is_measured(name) and (not is_global or self._is_summarized(name))
        except FileNotFoundError:  # a model that is still to be trained
            return False

    def _is_measured(self, name: str) -> bool:
        """Whether a stage has a file for every shard, for the rows that reach it now."""
        record = self._record(name)
        if record.shards is None or record.complete_for != self._reached(name):
            return False
        return set(record.shard_names) <= set(self.run.shards(*self.plan.folder(name)))

    def _require(self, name: str) -> None:
        """Check that the manifest has a stage or export, and that earlier stages are complete.

        Raises:
            IncompleteError: An earlier stage is not complete.
            InputError: The manifest has no such stage.
        """
        if name not in self.manifest.stages and name not in self.plan.exports:
            raise InputError(
                f"the manifest has no stage {name}; it has {', '.join(self.manifest.stages)}"
            )
        for earlier in self.plan.before(name):
            if earlier == ReviewStage.name and not self.is_complete(earlier):
                self.stage(earlier)  # a look-up without any model, so it is done here
            if not self.is_complete(earlier):
                raise IncompleteError(
                    f"{name}: {earlier} is not complete in {self.run.root}. Run "
                    f"`capfilt {earlier} MANIFEST` first, or `capfilt run MANIFEST`"
                )

    def _listed(self) -> ListRecord | None:
        """The record of the list; None before it is cut.

        Raises:
            PoolMismatchError: The run was made from another list.
        """
        if self._list is not None:
            return self._list
        config: Any = self.manifest.stages[DownloadStage.name]
        listed = self.run.find_record(ListRecord, "list", "_list.json")
        if listed and listed.fingerprint != self.plan.fingerprint(DownloadStage.name):
            old, new = listed.measurement, as_json(config.measurement())
            changed = [key for key in new if old.get(key) != new[key]] or ["version"]
            raise PoolMismatchError(
                f"download: {self.run.root} holds a pool made with other settings ("
                + ", ".join(f"{k}: {old.get(k)!r}, now {new.get(k)!r}" for k in changed)
                + "). Give another --run, or remove that folder"
            )
        try:
            identity = as_json(sources.identity(config))
            is_same = (
                listed is None
                or listed.identity == identity
                or listed.content == sources.content_digest(config)
            )
        except (OSError, ValueError) as error:
            if not self._is_measured(DownloadStage.name):
                raise
            self.progress.say(f"{error}. Its pool is finished, and is used")
            is_same = True
        if not is_same:
            raise PoolMismatchError(
                f"download: {self.run.root} holds a pool made from another list: the "
                "source has changed since. Give another --run, or remove that folder"
            )
        self._list = listed
        return listed

    def _plan_download(self) -> list[str]:
        """Cut the list into shards if that is not done, and return the shards."""
        config: Any = self.manifest.stages[DownloadStage.name]
        if listed := self._listed():
            return listed.shard_names
        self.progress.say(f"reading {', '.join(map(str, config.sources))}")
        identity = sources.identity(config)
        rows = repeats = 0
        shards: list[str] = []
        notices = sources.Notices()
        for table in sources.shards(config, notices):
            shards.append(f"{len(shards):05d}")
            rows += table.num_rows
            repeats += int(table["repeats"].to_numpy().sum())
            self.run.write_table(table, "list", f"{shards[-1]}.parquet")
            self._check_pool(shards[-1], table["uid"])
        record = ListRecord(
            fingerprint=self.plan.fingerprint(DownloadStage.name),
            measurement=as_json(config.measurement()),
            identity=as_json(identity),
            content=sources.content_digest(config),
            rows=rows,
            repeats=repeats,
            shards=len(shards),
            notices=notices.lines(),
        )
        self.run.write_record(record, "list", "_list.json")
        return shards

    def _check_pool(self, shard: str, uids: Any) -> None:
        """Refuse an existing shard of the pool that is not from the list that was just cut.

        Raises:
            PoolMismatchError: It is not.
        """
        if self.run.exists("pool", f"{shard}.parquet"):
            existing = self.run.read_table("pool", f"{shard}.parquet", columns=["uid"])["uid"]
            if not existing.equals(uids):
                raise PoolMismatchError(
                    f"download: shard {shard} of the pool of {self.run.root} is made from another "
                    "list. Give another --run, or remove that folder"
                )

    def _missing(self, name: str, shards: Sequence[str]) -> list[str]:
        """The shards on which a stage has rows left to measure."""
        there = set(self.run.shards(*self.plan.folder(name)))
        if name == DownloadStage.name:
            return [shard for shard in shards if shard not in there]

        def has_rows_left(shard: str) -> bool:
            if shard not in there:
                return True
            live = self.results.judge(shard, self.plan.judges(name)).live
            return bool((live & ~self.results.measured_rows(name, shard)).any())

        left = self.run.each(has_rows_left, shards)
        return [shard for shard, has_rows in zip(shards, left, strict=True) if has_rows]

    def _summarize(self, name: str, shards: list[str]) -> None:
        """Make the summary of a global stage, if it is not made for the rows that reach it now."""
        if self._is_summarized(name):
            return
        self.cluster.start()  # before anything changes: it may fail
        folder = self.plan.summary_folder(name)
        self.run.remove(*folder, "_summary.json")  # its record goes first, as it says it is whole
        reached, started = self._reached(name), time.perf_counter()
        parts = PartitionedSummary.begin(self.results, name, shards, reached)
        if parts:
            for step, left in parts.steps():
                self._map(name, left, title=f"{name} {step}")
            seconds = time.perf_counter() - started
            result = SummaryRecord(rows=parts.rows(), seconds=seconds, parts=parts.parts)
        else:
            config = self.manifest.stages[name]
            memory = _less_memory(name, config)
            task = StageTask(name=name, resources=config.resources, memory=memory)
            try:
                result = SummaryRecord(**self.pool.ask(task, "summarize", name, shards))
            except WorkerPoolError as error:
                raise StageError(str(error)) from None
            except RayError as error:
                message, cause = self.explain(f"{name}-summary", error), _cause(error)
                raise StageError(f"{name}: its summary failed: {message}", cause) from cause
        record = result.model_copy(update={"reached": reached, "shards": len(shards)})
        self.run.write_record(record, *folder, "_summary.json")
        if parts:
            parts.remove()

    def _is_summarized(self, name: str) -> bool:
        folder = self.plan.summary_folder(name)
        record = self.run.find_record(SummaryRecord, *folder, "_summary.json", damaged_ok=True)
        if record is None or record.reached != self._reached(name):
            return False
        return set(self.run.shards("pool")) <= set(self.run.shards(*folder))

    def _export(self, name: str, shards: list[str], started: float) -> None:
        """Write the shards of an export, then its manifest.json, which says that it is finished."""
        from pipeline.results import dataset_card

        stage, folder = self.plan.export(name), self.plan.folder(name)
        key = retries.pool_state(self.run, self.plan.decision(name))
        mark = (*folder, "manifest.json")
        is_damaged = folder in self._damaged
        before = self.run.find_record(ExportRecord, *mark, damaged_ok=is_damaged)
        successor = Successor(self.run, folder)
        if before and before.decision == key and not is_damaged:
            at = (*standing(self.run, *folder), "_export.json")
            if self.run.find_record(ExportStateRecord, *at, damaged_ok=True):
                successor.discard()
                return
        self.cluster.start()  # before anything changes: it may fail
        if before and before.decision != key:
            self.progress.say(f"{name:<10} {_replaced(self.run.url(*folder), before)}")
        at = successor.parts
        state = self.run.find_record(ExportStateRecord, *at, "_export.json", damaged_ok=True)
        if state is None or state.decision != key:
            self.run.remove(*at, "_export.json")  # before the files that it is about
            successor.discard()
        successor.begin()
        self.run.write_record(ExportStateRecord(decision=key), *at, "_export.json")
        if not self.run.exists(*at, export_writer.LAYOUT):
            counts = {
                result["shard"]: result["images"]
                for result in self._map(
                    name, shards, title="counting images, to cut the shards of the export"
                )
            }
            images = {split: [counts[shard][split] for shard in shards] for split in SPLITS}
            record = LayoutRecord(decision=key, shards=shards, images=images)
            self.run.write_record(record, *at, export_writer.LAYOUT)
        work = add_work(None, self._map(name, shards))
        layout = export_writer.Layout.read(self.run, at, stage.config.shard_size)
        parts = [*layout.all, *export_writer.write_human(self.run, at, stage, key)]
        export = export_writer.finish(self.run, at, stage, parts, self.manifest.name, key)
        if stage.config.documents is not None:
            export.documents = documents_writer.write(self.results, name, shards, at)
        if stage.config.embeddings:
            export.embeddings = embeddings_writer.digests(self.run, at)
        text = dataset_card.text(self.results, name, export)
        self.run.write(text.encode(), *at, "README.md")
        export.card = self.run.sha256(*at, "README.md")
        export_writer.tidy(self.run, at)
        seconds = round(time.perf_counter() - started, 3)
        state = ExportStateRecord(decision=key, work=work, seconds=seconds)
        self.run.write_record(state, *at, "_export.json")
        self.run.write_record(export, *at, "manifest.json")
        successor.take_place(export)
        self._damaged.discard(folder)

    def drop(self, damage: DamagedError) -> bool:
        """Have `stage` make a damaged file again, just as it was.

        A file of a stage is removed. An export stays until its successor takes its place.

        Returns:
            Whether it will be made: not if no stage makes it, or if that has been tried before.
        """
        top = damage.parts[0].removesuffix(".partial") if damage.parts else ""
        if not damage.is_derived:
            return False
        # An export, or a summary in parts, is made again as a whole.
        whole = damage.parts[: {"annotations": 4, "curated": 1, "exports": 2}[top]]
        if whole in self._dropped:
            return False
        self._dropped.add(whole)
        url = self.run.url(*damage.parts)
        if any(whole == self.plan.folder(name) for name in self.plan.exports):
            self._damaged.add(whole)
            self.progress.say(f"{url} is damaged; its export is made anew")
        else:
            self.progress.say(f"{url} is damaged; it is removed and made anew")
            self.run.remove(*whole)
        return True

    def resources(self, name: str) -> Resources:
        """The resources of one worker of a stage or an export."""
        return Resources() if name in self.plan.exports else self.manifest.stages[name].resources

    def _map(
        self,
        name: str,
        shards: Sequence[str],
        retry: tuple[str, ...] = (),
        title: str | None = None,
    ) -> list[dict[str, Any]]:
        """Do a stage on shards, in any order, and return the results of the workers.

        Args:
            name: The stage, or export.
            shards: The shards.
            retry: Errors of download whose rows are downloaded again.
            title: What the progress is called; the name by default.

        Raises:
            StageError: Some shards failed.
        """
        if not shards:
            return []
        if name == ReviewStage.name:  # a look-up, which is faster than starting a cluster
            worker = Worker(self.manifest, threads=None)
            return [worker.work(name, shard) for shard in shards]
        task = StageTask(
            name=name,
            resources=self.resources(name),
            retry=retry,
            rows_can_fail=name not in self.plan.exports and not any(":" in s for s in shards),
            memory=_less_memory(name, self.manifest.stages.get(name)),
        )
        self.progress.start(title or name, len(shards))
        try:
            results, failed = self.pool.carry_out(task, shards, self.progress.advance)
        except WorkerPoolError as error:
            raise StageError(str(error)) from None
        except RayError as error:
            raise StageError(f"{name}: Ray failed: {error}\nThe same command resumes") from error
        finally:
            self.progress.finish()
        if failed:
            messages = {s: self.explain(f"{name}-{s}", error) for s, error in failed.items()}
            damage = _damage(failed.values())
            raise StageError(_failure(name, messages, len(shards)), damage) from damage
        return results

    def explain(self, what: str, error: Exception, path: str = "") -> str:
        """Describe the error of a worker in a line, and keep its traceback in the run.

        Args:
            what: What failed; the name of the file of the traceback.
            error: The error.
            path: The file to name if a disk refuses to be written to and the error names none.
        """
        if not isinstance(error, RayTaskError):
            return str(error)
        cause = _cause(error)
        if explanation := explain_disk_error(cause, path):
            return explanation
        message, trace = f"{type(cause).__name__}: {cause}", ("failures", f"{what}.txt")
        try:
            self.run.write(COLOR.sub("", str(error)).encode(), *trace)
        except OSError:
            return message
        return f"{message} (the trace is {self.run.url(*trace)})"


def _damage(errors: Iterable[Exception]) -> DamagedError | None:
    """The damaged file behind the errors of shards; preferably one that a run makes again."""
    causes = map(_cause, errors)
    damages = [cause for cause in causes if isinstance(cause, DamagedError)]
    return max(damages, key=lambda damage: damage.is_derived, default=None)


def _cause(error: Exception) -> Exception:
    """The error that a task raised on its worker, unwrapped from what Ray makes of it."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error


def _less_memory(name: str, config: Any) -> str:
    """What to do if a worker of a stage runs out of memory."""
    fields = [f for f in ("batch_size", "threads", "shard_size") if hasattr(config, f)]
    lower = "".join(f", or lower {name}.{field}" for field in fields)
    return f"give fewer --workers{lower}"


def _failure(name: str, failed: Mapping[str, str], number: int) -> str:
    """The message for a stage of which some shards failed.

    Args:
        name: The stage.
        failed: The message of each failed shard.
        number: The number of all shards.
    """
    shard, why = next(iter(sorted(failed.items())))
    return (
        f"{name}: {len(failed)} of {number} shards failed ({', '.join(sorted(failed)[:8])}"
        f"{', ...' if len(failed) > 8 else ''}){'; the others are done' * (len(failed) < number)}. "
        f"Shard {shard}: {why}\n"
        "Mend the cause and run the same command again: only these shards are done anew"
    )


def _replaced(url: str, record: ExportRecord) -> str:
    """What is said of an export whose successor is about to be written."""
    pairs, form = sum(record.pairs.values()), f" as {record.format}" if record.format else ""
    return (
        f"{url} holds {pairs:,} pairs{form} of other settings or other rows; it stays until the "
        "new export takes its place"
    )


def _is_current(name: str, record: RunRecord, settings: Mapping[str, Any]) -> bool:
    """Whether the recorded measurement of a stage was taken with the settings it has now."""
    return name in record.measurement and record.settings.get(name) == settings.get(name)
