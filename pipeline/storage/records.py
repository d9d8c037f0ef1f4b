"""What the sealed JSON files of a run hold, as far as any reader goes by it.

A seal tells that a file is as somebody wrote it, not that capfilt did: a run that comes from
elsewhere is held against these types before a number, a name or a path in it is used.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, TypeAdapter, ValidationError

__all__ = ["add_work", "check"]

BRANCH = re.compile(r"(rounds/[1-9][0-9]{0,8}|chains/(?!\.)[^/\\]{1,100})?")
"""What `pipeline.manifest.rounds` and `pipeline.demo.ablation` call the branches of a run."""


def _branch(value: str) -> str:
    if BRANCH.fullmatch(value) is None or not value.isprintable():
        raise ValueError("no branch of a run, as rounds/2 or chains/NAME")
    return value


def _inside(path: str) -> str:
    if {"", ".", ".."} & set(path.split("/")) or "\\" in path or not path.isprintable():
        raise ValueError("no path inside the folder")
    return path


def _intervals(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _intervals(part) for name, part in value.items()}
    if isinstance(value, list) and len(value) == 2 and {type(v) for v in value} <= {int, float}:
        return value
    raise ValueError("no two numbers")


def _alike(rows: list[Row]) -> list[Row]:
    if any(row.metrics.keys() != rows[0].metrics.keys() for row in rows):
        raise ValueError("rows of different metrics")
    return rows


Count = Annotated[int, Field(ge=0, le=1 << 53)]
Shards = Annotated[int, Field(ge=0, le=10**7)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Branch = Annotated[str, AfterValidator(_branch)]
Path = Annotated[str, AfterValidator(_inside)]
Digests = dict[Path, str]
Notices = Annotated[list[Annotated[str, Field(max_length=1000)]], Field(max_length=100)]


class Held(BaseModel, strict=True):
    """What a file holds; further fields are left alone."""


class Record(Held):
    """run.json."""

    manifest: dict[str, Any]
    branch: Branch = ""
    settings: dict[str, dict[str, Any]] = {}
    measurement: dict[str, dict[str, Any]] = {}
    versions: dict[str, Any] = {}
    machine: dict[str, Any] = {}


class List(Held):
    """list/_list.json."""

    fingerprint: str
    measurement: dict[str, Any]
    identity: Any
    content: Any
    rows: Count
    repeats: Count
    shards: Shards
    notices: Notices = []


class Retries(Held):
    """pool/_retries.json."""

    retries: list[Any]


class Work(Held):
    """What the workers of a stage did, over all times that it was carried out.

    Attributes:
        rows: Rows that they measured.
        seconds: Of all workers together.
        device: cpu, or the name of the GPU.
        shards: Shards with at least one such row.
        cpu_seconds: Of all workers together.
        squares: The sum of seconds^2 / rows over the shards, from which their variance follows.
        bytes: Bytes downloaded.
    """

    rows: Count
    seconds: Seconds
    device: str
    shards: Count = 0
    cpu_seconds: Seconds = 0.0
    squares: Seconds = 0.0
    bytes: Count = 0


class Stage(Held):
    """_stage.json, _summary.json and _export.json."""

    complete_for: str = ""
    reached: str = ""
    decision: str = ""
    rows: Count = 0
    shards: Shards = 0
    seconds: Seconds = 0.0
    work: Work | None = None


class File(Held):
    """A shard or a list of an export."""

    name: Path
    sha256: str


class Documents(Held):
    """The documents beside an export."""

    files: Digests


class Export(Held):
    """manifest.json of an export."""

    decision: str
    pairs: dict[str, Count]
    images: Count
    files: list[File]
    card: str = ""
    documents: Documents = Documents(files={})
    notices: Notices = []


class Told(File):
    """A shard of an export that is on its way."""

    split: str
    pairs: dict[str, Count]
    sources: dict[str, Count]
    images: Count


class Part(Held):
    """The mark of such a shard."""

    told: Told
    entries: str | None
    decision: str


class Layout(Held):
    """_layout.json of an export."""

    decision: str
    shards: list[str]
    images: dict[str, list[Count]]


class Model(Held):
    """The mark of a trained model."""

    fingerprint: str
    files: Digests


class Metrics(Held):
    """The metrics of a model; numbers, nested, of which others are left out when shown."""

    intervals: Annotated[dict[str, Any], AfterValidator(_intervals)] = {}


class Evaluation(Held):
    """A model in evaluation.json."""

    metrics: Metrics


class Truth(Held):
    """truth.json."""

    stages: list[dict[str, str | float | None]] = []
    raw_true: float | None = None
    exported_true: float | None = None
    synthetic_true: float | None = None
    exported_recall: float | None = None


class Estimate(Held):
    """A mean with its interval."""

    mean: float
    low: float | None
    high: float | None


class Metric(Held):
    """A metric of a row of an ablation."""

    values: list[float | None]
    estimate: Estimate | None
    difference: Estimate | None


class Row(Held):
    """A row of a table of an ablation."""

    label: str
    metrics: dict[str, Metric]


class Table(Held):
    """A table of an ablation."""

    title: str
    rows: Annotated[list[Row], Field(min_length=1), AfterValidator(_alike)]


class Ablation(Held):
    """ablation.json."""

    seeds: list[int]
    tables: list[Table]


FILES: dict[str, TypeAdapter[Any]] = {
    "run.json": TypeAdapter(Record),
    "list/_list.json": TypeAdapter(List),
    "pool/_retries.json": TypeAdapter(Retries),
    "models/*.json": TypeAdapter(Model),
    "evaluation.json": TypeAdapter(dict[str, Evaluation]),
    "truth.json": TypeAdapter(Truth),
    "ablation.json": TypeAdapter(Ablation),
    "*/_parts/*.json": TypeAdapter(Part),
    "*/_layout.json": TypeAdapter(Layout),
    "*/_stage.json": TypeAdapter(Stage),
    "*/_summary.json": TypeAdapter(Stage),
    "*/_export.json": TypeAdapter(Stage),
    "curated/manifest.json": TypeAdapter(Export),
    "exports/*/manifest.json": TypeAdapter(Export),
}
"""What a file holds, by its path in the run; the first pattern counts."""


def add_work(
    before: Mapping[str, Any] | None, results: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """Add what workers did on shards of a stage to what they did before.

    Args:
        before: The total so far; None for none.
        results: What `Worker.work` returned for each shard.

    Returns:
        The fields of `Work`.
    """
    total: dict[str, Any] = {"rows": 0, "shards": 0, "seconds": 0.0, "cpu_seconds": 0.0}
    total |= {"squares": 0.0, "bytes": 0, "device": "cpu", **(before or {})}
    for result in results:
        if result["rows"]:
            total["rows"] += result["rows"]
            total["shards"] += 1
            total["seconds"] += result["seconds"]
            total["cpu_seconds"] += result.get("cpu_seconds", 0.0)
            total["squares"] += result["seconds"] ** 2 / result["rows"]
            total["bytes"] += result.get("bytes", 0)
            total["device"] = result.get("device", "cpu")
    return total


def check(path: str, value: dict[str, Any]) -> None:
    """Refuse what the file of this path in a run does not hold.

    Raises:
        ValueError: A field is missing, of another type, out of bounds, or leads elsewhere.
    """
    adapter = next((FILES[name] for name in FILES if fnmatch.fnmatchcase(path, name)), None)
    if adapter is None:
        return
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        field = ".".join(map(str, detail["loc"]))
        raise ValueError(
            f"its field {field!a}: {detail['msg'].removeprefix('Value error, ')}"
        ) from None
