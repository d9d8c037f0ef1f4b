"""The JSON files of a run: what writers write and readers read.

A checksum proves that a file is as somebody wrote it, not that capfilt did. A run that comes from
elsewhere is checked against these types before a number, a name or a path in it is used. Fields
that a file has beyond those of its record are ignored, so that later versions may add some.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, AliasChoices, BaseModel, Field, RootModel, ValidationError

__all__ = [
    "AblationComparison",
    "AblationCurve",
    "AblationEffect",
    "AblationMetric",
    "AblationPoint",
    "AblationPower",
    "AblationRecord",
    "AblationRow",
    "AblationTable",
    "BinsRecord",
    "DocumentsRecord",
    "Estimate",
    "Evaluation",
    "EvaluationRecord",
    "ExportFile",
    "ExportRecord",
    "ExportShard",
    "ExportStateRecord",
    "LayoutRecord",
    "ListRecord",
    "ModelRecord",
    "PartRecord",
    "PartsRecord",
    "RetriesRecord",
    "RunRecord",
    "ShardedRecord",
    "StageRecord",
    "SummaryRecord",
    "TruthRecord",
    "TruthScore",
    "Work",
    "add_work",
    "content_of",
    "kind_of",
    "parse",
]

BRANCH = re.compile(r"(rounds/[1-9][0-9]{0,8}|chains/(?!\.)[^/\\]{1,100})?")
"""The branches of a run that `pipeline.manifest.rounds` and `pipeline.demo.ablation` make."""

R = TypeVar("R", bound=BaseModel)


def _branch(value: str) -> str:
    if BRANCH.fullmatch(value) is None or not value.isprintable():
        raise ValueError("no branch of a run, as rounds/2 or chains/NAME")
    return value


def _inside(path: str) -> str:
    if {"", ".", ".."} & set(path.split("/")) or "\\" in path or not path.isprintable():
        raise ValueError("no path inside the folder")
    return path


def _metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    _check_intervals(metrics.get("intervals", {}))
    return metrics


def _check_intervals(value: Any) -> None:
    """Refuse intervals that are not pairs of numbers in nested mappings."""
    if isinstance(value, dict):
        for part in value.values():
            _check_intervals(part)
        return
    is_pair = isinstance(value, list) and len(value) == 2
    if not is_pair or not {type(v) for v in value} <= {int, float}:
        raise ValueError("no two numbers")


def _same_metrics(rows: list[AblationRow]) -> list[AblationRow]:
    if any(row.metrics.keys() != rows[0].metrics.keys() for row in rows):
        raise ValueError("rows of different metrics")
    return rows


Count = Annotated[int, Field(ge=0, le=1 << 53)]
ShardCount = Annotated[int, Field(ge=0, le=10**7)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Branch = Annotated[str, AfterValidator(_branch)]
Path = Annotated[str, AfterValidator(_inside)]
Digests = dict[Path, str]
Notices = Annotated[list[Annotated[str, Field(max_length=1000)]], Field(max_length=100)]


class Record(BaseModel, strict=True):
    """A JSON object with typed fields; fields that it does not name are ignored."""


class ShardedRecord(Record):
    """The record of a finished folder of numbered shards.

    Attributes:
        shards: How many shards the folder holds.
    """

    shards: ShardCount | None = None

    @property
    def shard_names(self) -> list[str]:
        """The names of the shards, without extension."""
        return [f"{index:05d}" for index in range(self.shards or 0)]


class RunRecord(Record):
    """run.json: what was last run.

    Attributes:
        manifest: The manifest, overrides applied.
        branch: The folder under the run that this record lies in; empty for the run itself.
        settings: The settings of each stage.
        versions: The versions of capfilt, Python and packages.
        machine: The machine that the command ran on.
        measurement: The settings of each stage that its fingerprint depends on, with the revisions
            of its models.
        decided: The settings of each stage that its verdicts depend on, as they were digested; None
            in a run that was made when those were all settings.
    """

    manifest: dict[str, Any]
    branch: Branch = ""
    settings: dict[str, dict[str, Any]] = {}
    versions: dict[str, Any] = {}
    machine: dict[str, Any] = {}
    measurement: dict[str, dict[str, Any]] = {}
    decided: dict[str, dict[str, Any]] | None = None


class ListRecord(ShardedRecord):
    """list/_list.json: the list that the run was cut from.

    Attributes:
        fingerprint: The fingerprint of download.
        measurement: The settings of download that the fingerprint depends on.
        identity: What tells quickly that the source is still the same, such as sizes and times.
        content: A digest of the source's content.
        rows: Rows of the list, repeats left out.
        repeats: Rows that repeat an earlier one.
        notices: What the reader of the list has to say, a line each.
    """

    fingerprint: str
    measurement: dict[str, Any]
    identity: Any
    content: Any
    rows: Count
    repeats: Count
    shards: ShardCount
    notices: Notices = []


class RetriesRecord(Record):
    """pool/_retries.json: how often the pool was changed after it was finished.

    Attributes:
        retries: For each retry its reasons and rows, or the shards that were replaced.
    """

    retries: list[Any]


class Work(Record):
    """The work of a stage's workers, summed over all commands that carried it out.

    Attributes:
        rows: Rows that they measured.
        shards: Shards with at least one such row.
        seconds: Seconds of all workers together.
        cpu_seconds: CPU seconds of all workers together.
        squares: The sum of seconds^2 / rows over the shards, which gives their variance.
        bytes: Bytes downloaded.
        device: cpu, or the name of the GPU.
    """

    rows: Count = 0
    shards: Count = 0
    seconds: Seconds = 0.0
    cpu_seconds: Seconds = 0.0
    squares: Seconds = 0.0
    bytes: Count = 0
    device: str = "cpu"


class StageRecord(ShardedRecord):
    """_stage.json: a stage that has measured all rows that reached it.

    Attributes:
        stage: The stage.
        fingerprint: Its fingerprint.
        settings: Its settings.
        measurement: Those that its fingerprint depends on.
        complete_for: A digest of what decided which rows reached it.
        work: The work of its workers.
        seconds: Seconds from start to end, summed over all commands.
    """

    stage: str = ""
    fingerprint: str = ""
    settings: dict[str, Any] = {}
    measurement: dict[str, Any] = {}
    complete_for: str = ""
    work: Work | None = None
    seconds: Seconds = 0.0


class SummaryRecord(ShardedRecord):
    """_summary.json: a finished summary of a global stage.

    Attributes:
        rows: Rows that it covers.
        seconds: Seconds that it took.
        cpu_seconds: CPU seconds of the one process that made it.
        parts: Into how many parts it was divided; None if one process made it.
        reached: A digest of what decided which rows reached the stage.
    """

    rows: Count = 0
    seconds: Seconds = 0.0
    cpu_seconds: Seconds = 0.0
    parts: Count | None = None
    reached: str = ""


class PartsRecord(Record):
    """_parts.json: a summary that is being made in parts; see `pipeline.execution.map_reduce`.

    Attributes:
        reached: A digest of what decided which rows reached the stage.
        shards: The shards of the pool.
        part_rows: Rows of a part.
        group_rows: Rows of a group.
        folder: The folder of the parts, beside this file.
    """

    reached: str
    shards: list[Path]
    part_rows: Annotated[int, Field(ge=1)]
    group_rows: Annotated[int, Field(ge=1)]
    folder: Path


class BinsRecord(Record):
    """bins.json: into how many bins the clusters of a summary in parts are packed."""

    bins: Count


class ExportFile(Record):
    """A shard, or the list of a split, in the manifest.json of an export.

    Attributes:
        name: The file or folder, in the folder of the export.
        split: The split that it belongs to.
        rows: Its pairs.
        sha256: Its digest; for a folder see `Run.digest`.
        pairs: Its pairs by source of the caption.
        sources: Its pairs by source of the image.
        images: Its images.
    """

    name: Path
    split: str = ""
    rows: Count = 0
    sha256: str
    pairs: dict[str, Count] = {}
    sources: dict[str, Count] = {}
    images: Count = 0


class ExportShard(Record):
    """A shard of an export that is not finished; the fields of `ExportFile`, all of them needed."""

    name: Path
    split: str
    rows: Count
    sha256: str
    pairs: dict[str, Count]
    sources: dict[str, Count]
    images: Count


class DocumentsRecord(Record):
    """The documents of an export.

    Attributes:
        rows: Documents of the lists.
        kept: Documents that were written.
        reasons: How many documents were rejected for each reason.
        files: The SHA-256 of each file, by its name in documents/.
    """

    rows: Count = 0
    kept: Count = 0
    reasons: dict[str, Count] = {}
    files: Digests


class ExportRecord(Record):
    """manifest.json of an export: that it is finished, and what it holds.

    Attributes:
        name: The name of the manifest.
        decision: A digest of what decided what is exported.
        format: Its format.
        pairs: Pairs by source of the caption.
        sources: Pairs by source of the image.
        images: Images.
        splits: Images of each split.
        files: Its shards and lists.
        notices: What the readers of human pairs have to say, a line each.
        documents: The documents beside it, if there are any.
        embeddings: The SHA-256 of each file in embeddings/, by its path there.
        card: The SHA-256 of README.md.
        folder: The folder beside this file that holds all others; None where they are beside it.
    """

    name: str = ""
    decision: str
    format: str = ""
    pairs: dict[str, Count]
    sources: dict[str, Count] = {}
    images: Count
    splits: dict[str, Count] = {}
    files: list[ExportFile]
    notices: Notices = []
    documents: DocumentsRecord | None = None
    embeddings: Digests = {}
    card: str | None = None
    folder: Path | None = None

    @property
    def shard_names(self) -> list[str]:
        """The names of its Parquet shards, without extension."""
        suffix = ".parquet"
        names = [file.name for file in self.files]
        return [name.removesuffix(suffix) for name in names if name.endswith(suffix)]


class ExportStateRecord(Record):
    """_export.json: an export that has begun, and once it is finished what it took.

    Attributes:
        decision: A digest of what decides what is exported.
        work: The work of its workers.
        seconds: Seconds from start to end.
    """

    decision: str = ""
    work: Work | None = None
    seconds: Seconds = 0.0


class LayoutRecord(Record):
    """_layout.json: how many images each shard of the pool gives to an export.

    Attributes:
        decision: A digest of what decides what is exported.
        shards: The shards of the pool.
        images: For each split the images of each shard.
    """

    decision: str
    shards: list[str]
    images: dict[str, list[Count]]


class PartRecord(Record):
    """_parts/NAME.json: a shard of an unfinished export that is whole.

    Attributes:
        shard: The shard; `told` in the file.
        entries: The SHA-256 of what the list of its split says of it, for formats with lists.
        decision: A digest of what decides what is exported.
    """

    shard: ExportShard = Field(
        validation_alias=AliasChoices("told", "shard"), serialization_alias="told"
    )
    entries: str | None
    decision: str


class ModelRecord(Record):
    """models/NAME.json: a finished training.

    Attributes:
        name: The entry of the manifest's `train`.
        fingerprint: What the model depends on.
        data: The data it was trained on, as the manifest names it.
        result: What the training came to.
        files: The SHA-256 of each file of the model.
        next: Those of the model that is about to take its place, or has taken it just now.
    """

    name: str = ""
    fingerprint: str
    data: list[str] = []
    result: dict[str, Any] = {}
    files: Digests
    next: Digests = {}


class Evaluation(Record):
    """What was measured of one model.

    Attributes:
        model: A digest of the model and the data.
        metrics: Numbers in nested mappings; `intervals` holds pairs of numbers.
    """

    model: str = ""
    metrics: Annotated[dict[str, Any], AfterValidator(_metrics)]


class EvaluationRecord(RootModel[dict[str, Evaluation]]):
    """evaluation.json: the evaluation of each model, by its name in the manifest."""

    model_config = {"strict": True}


class TruthScore(Record):
    """How right one stage was; see `pipeline.demo.truth.Score`."""

    stage: str
    precision: float | None = None
    recall: float | None = None
    num_rejected: Count = 0
    num_due: Count = 0
    num_lost: Count = 0


class TruthRecord(Record):
    """truth.json: how right the stages were on a web whose truth is known.

    Attributes:
        stages: The score of each stage.
        raw_true: The share of web texts that are true of their image, before any stage.
        exported_true: The share of exported web texts that are true.
        exported_recall: The share of photographs with a true web text that have one exported.
        synthetic_true: The share of exported synthetic texts that are true.
        num_exported: Web texts exported.
        num_synthetic: Synthetic texts exported.
    """

    stages: list[TruthScore] = []
    raw_true: float | None = None
    exported_true: float | None = None
    exported_recall: float | None = None
    synthetic_true: float | None = None
    num_exported: Count = 0
    num_synthetic: Count = 0


class Estimate(Record):
    """A mean with its interval; no interval for a single value."""

    mean: float
    low: float | None
    high: float | None


class AblationEffect(Estimate):
    """The mean difference of a metric between two rows, over seeds.

    Attributes:
        p: The two-sided p of a paired t-test; None with one seed.
        corrected: That p after Holm's correction for all comparisons of its table.
        share: The difference as a share of that of the ceiling; None without a ceiling.
    """

    p: float | None = None
    corrected: float | None = None
    share: Estimate | None = None


class AblationMetric(Record):
    """A metric of a row of an ablation.

    Attributes:
        values: One for each seed; None where it is missing.
        estimate: Their mean and interval; None without values.
        difference: The difference to the first row.
    """

    values: list[float | None]
    estimate: Estimate | None
    difference: AblationEffect | None


class AblationRow(Record):
    """A row of a table of an ablation.

    Attributes:
        label: Its label.
        chain: The chain that it shows.
        model: The model of the chain.
        metrics: Its metrics by their names.
    """

    label: str
    chain: str = ""
    model: str = ""
    metrics: dict[str, AblationMetric]


class AblationComparison(Record):
    """The differences between two rows of a table, neither of which is the first.

    Attributes:
        label: The label of the one.
        against: The label of the other.
        metrics: Its differences by their metrics; None where values are missing.
    """

    label: str
    against: str
    metrics: dict[str, AblationEffect | None]


class AblationPower(Record):
    """How many seeds a difference needs that others have published.

    Attributes:
        label: The label of a row.
        against: The label of the row that it is compared to.
        metric: The metric.
        difference: The difference that others have published.
        spread: The standard deviation of the differences over seeds: of this run, or as expected.
        is_measured: Whether it is of this run.
        seeds: How many seeds find the difference with a chance of 80 %; None for too many.
        power: The chance that this run's seeds find it.
    """

    label: str
    against: str
    metric: str
    difference: float
    spread: float
    is_measured: bool
    seeds: int | None
    power: float


class AblationTable(Record):
    """A table of an ablation; all rows have the same metrics."""

    title: str
    rows: Annotated[list[AblationRow], Field(min_length=1), AfterValidator(_same_metrics)]
    comparisons: list[AblationComparison] = []
    power: list[AblationPower] = []


class AblationPoint(Record):
    """A point of a curve: the gain on one web.

    Attributes:
        x: What distinguishes the web, such as its pages.
        gain: The mean difference to the base; None where values are missing.
    """

    x: float
    gain: Estimate | None


class AblationCurve(Record):
    """The gain of rows over a base, from web to web.

    Attributes:
        title: The title.
        x_label: What x is.
        metric: The metric.
        lines: The points of each row, by its label.
    """

    title: str
    x_label: str
    metric: str
    lines: dict[str, list[AblationPoint]]


class AblationRecord(Record):
    """ablation.json: the tables of an ablation over several seeds."""

    name: str = ""
    seeds: list[int]
    tables: list[AblationTable]
    curves: list[AblationCurve] = []


FILES: dict[str, type[BaseModel]] = {
    "run.json": RunRecord,
    "list/_list.json": ListRecord,
    "pool/_retries.json": RetriesRecord,
    "models/*.json": ModelRecord,
    "evaluation.json": EvaluationRecord,
    "truth.json": TruthRecord,
    "ablation.json": AblationRecord,
    "*/_parts/*.json": PartRecord,
    "*/_parts.json": PartsRecord,
    "*/bins.json": BinsRecord,
    "*/_layout.json": LayoutRecord,
    "*/_stage.json": StageRecord,
    "*/_summary.json": SummaryRecord,
    "*/_export.json": ExportStateRecord,
    "curated/manifest.json": ExportRecord,
    "exports/*/manifest.json": ExportRecord,
}
"""The record of a file, by its path in the run; the first pattern that matches counts."""


def kind_of(path: str) -> type[BaseModel] | None:
    """The record of a file, by its path in the run; None for a file without one."""
    return next((kind for name, kind in FILES.items() if fnmatch.fnmatchcase(path, name)), None)


def parse(kind: type[R], value: Any) -> R:
    """Make a record of the content of a JSON file.

    Raises:
        ValueError: A field is missing, of another type, out of bounds, or a path that leads out of
            the folder; the message names the field.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        field = ".".join(map(str, detail["loc"]))
        message = detail["msg"].removeprefix("Value error, ")
        raise ValueError(f"its field {field!a}: {message}") from None


def content_of(record: BaseModel) -> dict[str, Any]:
    """The content of a record for its JSON file: the fields that were set, in their order."""
    content: dict[str, Any] = record.model_dump(by_alias=True, exclude_unset=True)
    return content


def add_work(before: Work | None, results: Iterable[Mapping[str, Any]]) -> Work:
    """Add the work of workers on shards of a stage to what they did before.

    Args:
        before: The total so far; None for none.
        results: What `Worker.work` returned for each shard.
    """
    total = Work().model_dump() | (before.model_dump() if before else {})
    for result in results:
        if result["rows"]:
            total["rows"] += result["rows"]
            total["shards"] += 1
            total["seconds"] += result["seconds"]
            total["cpu_seconds"] += result.get("cpu_seconds", 0.0)
            total["squares"] += result["seconds"] ** 2 / result["rows"]
            total["bytes"] += result.get("bytes", 0)
            total["device"] = result.get("device", "cpu")
    return Work(**total)
