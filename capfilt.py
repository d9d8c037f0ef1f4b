"""capfilt from Python: run a manifest, and read what a run has found.

    import capfilt

    run = capfilt.run("manifest.yaml", run="runs/mine", settings={"filter.min_itm": 0.4})
    run = capfilt.open("runs/mine")
    run.funnel().pandas()                # rows, kept and reasons of each stage
    run.verdicts().arrow()               # every row of the pool and what became of it
    run.stage("clean").pandas()          # what a stage measured, row for row with the pool
    run.pairs().dataset()                # the exported pairs, images decoded
    run.sample("kites/0007.jpg").verdict # all that is known of one sample

`Rows` reads a run shard by shard; nothing is read before it is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from models.errors import CapfiltError as Error
from models.errors import InputError
from pipeline.results.history import SampleHistory as Sample

if TYPE_CHECKING:
    from pipeline.results.verdicts import Results

__all__ = ["Error", "Rows", "Run", "Sample", "open", "run"]

_FUNNEL: list[pa.Field[Any]] = [
    pa.field("stage", pa.string()),
    pa.field("state", pa.string()),
    pa.field("rows", pa.int64()),
    pa.field("kept", pa.int64()),
    pa.field("not_measured", pa.int64()),
    pa.field("reasons", pa.map_(pa.string(), pa.int64())),
    pa.field("seconds", pa.float64()),
]


def run(
    manifest: str | os.PathLike[str],
    *,
    run: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    until: str | None = None,
    workers: int | None = None,
    address: str | None = None,
    quiet: bool = False,
) -> Run:
    """Do everything of a manifest that is not done yet, as `capfilt run` does, and open the run.

    Args:
        manifest: A YAML file.
        run: The run's folder or URL; the manifest's own by default.
        settings: Fields to override, such as `{"filter.min_itm": 0.4}`.
        until: The stage to stop after; then no report is written.
        workers: Workers of each stage; as many as there is room for by default.
        address: The address of a Ray cluster; Ray starts on this machine by default.
        quiet: Print no progress.

    Returns:
        The run; of a manifest with several rounds, the last round.

    Raises:
        InputError: The manifest or the list is wrong; the message names the field and the fix.
        Error: A stage failed; the same call resumes.
    """
    import json

    from rich.console import Console

    from pipeline.execution.progress import Progress
    from pipeline.execution.session import Session
    from pipeline.manifest.manifest import Manifest
    from pipeline.manifest.rounds import rounds

    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    path = os.fspath(manifest)
    overrides = [f"{name}={json.dumps(value)}" for name, value in (settings or {}).items()]
    loaded = Manifest.load(path, overrides, None if run is None else os.fspath(run))
    progress = Progress(Console(markup=False, emoji=False), quiet)
    for one in rounds(loaded, path):
        session = Session(one, address=address, workers=workers, progress=progress)
        with session:
            session.run(until)
            if until is None:
                session.report()
        results = session.runner.results
    return Run(results)


def open(path: str | os.PathLike[str]) -> Run:
    """Open a run that exists; nothing of it is changed.

    Args:
        path: The run's folder or URL.

    Raises:
        FileNotFoundError: There is no run.
        Error: A file of the run is damaged.
    """
    from pipeline.results.open_run import open_results
    from pipeline.storage.run import Run as Storage

    return Run(open_results(Storage.find(os.fspath(path))))


class Run:
    """The results of a run so far; see `open`.

    Attributes:
        path: Its folder or URL.
        name: The name of its manifest.
        stages: The names of its stages that measure rows, in order.
    """

    def __init__(self, results: Results) -> None:
        self._results = results
        self.path = results.run.root
        self.name = results.plan.manifest.name
        self.stages = results.plan.names

    def __repr__(self) -> str:
        return f"capfilt.open({self.path!r})"

    def funnel(self) -> Rows:
        """The stages: stage, state, rows, kept, not_measured, reasons, seconds.

        A state is waiting, partial or done. For each stage
        `rows = kept + sum(reasons) + not_measured`.
        """
        from pipeline.results.funnel import funnel

        def tables() -> Iterator[pa.Table]:
            stages = funnel(self._results)["stages"]
            rows = [
                {**one, "stage": one["name"], "reasons": [*one["reasons"].items()]}
                for one in stages
            ]
            yield pa.Table.from_pylist(rows, schema=pa.schema(_FUNNEL))

        return Rows(tables)

    def verdicts(self) -> Rows:
        """Every row of the pool: uid, source, url, caption, stage, reason, and more.

        `stage` is the first stage that rejected the row, or `kept`; see
        `pipeline.results.verdict_table.verdict_tables` for the further columns.
        """
        from pipeline.results.verdict_table import verdict_tables

        return Rows(lambda: verdict_tables(self._results, self._shards()))

    def stage(self, name: str) -> Rows:
        """The measurements of a stage, a row for each row of the pool.

        The columns are uid, measured, those of the stage, and reason.

        `measured` is false for a row that an earlier stage rejected, and its columns are null.
        `reason` is null for a row that the stage keeps or has not measured.

        Raises:
            InputError: The run has no such stage.
        """
        names = self.stages
        if name not in names:
            raise InputError(f"{self.path}: no stage {name!r}; it has {', '.join(names)}")
        upto = names[: names.index(name) + 1]

        def tables() -> Iterator[pa.Table]:
            for shard in self._shards():
                if (table := self._results.annotated(name, shard)) is not None:
                    reasons = self._results.judge(shard, upto).reasons[name]
                    yield table.append_column("reason", reasons.cast(pa.string()))

        return Rows(tables)

    def pairs(self, export: str = "curated") -> Rows:
        """The pairs of an export in Parquet: uid, image, caption, caption_source, itm_score, ...

        Args:
            export: `curated`, or the name of a further export.

        Raises:
            InputError: The export is not finished, or not in Parquet.
        """
        from pipeline.storage.records import ExportRecord
        from pipeline.storage.successor import standing

        run = self._results.run
        folder = ("curated",) if export == "curated" else ("exports", export)
        record = run.find_record(ExportRecord, *folder, "manifest.json")
        if record is None:
            raise InputError(
                f"{run.url(*folder)}: no finished export there; `capfilt run` makes it"
            )
        shards = record.shard_names
        if not shards and record.files:
            raise InputError(
                f"{run.url(*folder)}: its format is {record.format}, not parquet; add an export "
                "of the format parquet to `exports`, or read the files themselves"
            )

        def tables() -> Iterator[pa.Table]:
            for shard in shards:
                yield run.read_table(*standing(run, *folder), f"{shard}.parquet")

        return Rows(tables)

    def sample(self, uid: str) -> Sample:
        """All that is known of one sample: its row, image, captions, verdicts and copies.

        Args:
            uid: Its uid or URL, the beginning of its uid, or the end of its URL.

        Raises:
            ValueError: No sample matches, or more than one.
        """
        from pipeline.results.history import sample_history

        return sample_history(self._results, uid)

    def _shards(self) -> list[str]:
        return self._results.run.shards("pool")


class Rows:
    """Rows of a run, read when they are asked for.

    Iterating gives an Arrow table for each shard, so that a large run need not fit in memory.
    """

    def __init__(self, tables: Callable[[], Iterator[pa.Table]]) -> None:
        self._tables = tables

    def __repr__(self) -> str:
        return "<rows of a run, read by .arrow(), .pandas(), .dataset() or a loop>"

    def __iter__(self) -> Iterator[pa.Table]:
        return self._tables()

    def arrow(self) -> pa.Table:
        """All rows as one Arrow table.

        Raises:
            InputError: There is nothing yet.
        """
        tables = list(self)
        if not tables:
            raise InputError("nothing is there yet; `capfilt run` makes it")
        return pa.concat_tables(tables)

    def pandas(self) -> Any:
        """All rows as a pandas DataFrame; pandas must be installed."""
        return self.arrow().to_pandas()

    def dataset(self) -> Any:
        """All rows as a `datasets.Dataset`; `datasets` must be installed."""
        from datasets import Dataset

        return Dataset(self.arrow())
