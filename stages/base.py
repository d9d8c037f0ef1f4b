"""The interface of a stage, which measures rows and judges them, and never drops them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.weights import Dtype, device_of, pinned, revision_of

__all__ = [
    "CRASHED",
    "ClusteredStage",
    "Cutoff",
    "Floats",
    "GlobalStage",
    "InParts",
    "KeyedStage",
    "ModelConfig",
    "RankedStage",
    "Resources",
    "Stage",
    "StageConfig",
    "digest",
    "floats",
    "in_order",
    "is_numeric",
    "threshold",
]


Floats = npt.NDArray[np.float64]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]
InParts = Literal["clusters", "keys", "ranks", "draws"]
CRASHED = "crashed"
"""The reason of a row whose measurement raised an error or ended the process."""
DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?")


def digest(value: Any) -> str:
    """Return the first 16 hex characters of the SHA-256 of a JSON-serialisable value.

    Keys are sorted, so equal values give equal digests in every process.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def threshold(default: Any) -> Any:
    """Declare a config field that only `judge` or `summarize` uses.

    A threshold is not part of the fingerprint of the measurement, so changing it needs no new
    measurement.
    """
    return dataclasses.field(default=default, metadata={"threshold": True})


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The hardware that one worker of a stage occupies.

    Attributes:
        cpus: CPU cores, and the number of threads its libraries may use.
        gpus: CUDA devices, possibly a fraction.
    """

    cpus: int = 1
    gpus: float = 0.0


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """The settings of a stage; subclasses are frozen, keyword-only dataclasses.

    Defaults are the cited paper's values. Fields made with `threshold` do not change the
    measurement.

    Attributes:
        places: Fields that say where something lies that `measurement` tells by its content, such
            as a model's folder; a verdict does not depend on them.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid", "strict": False}

    places: ClassVar[tuple[str, ...]] = ()

    @property
    def resources(self) -> Resources:
        """The hardware that one worker needs; computed without loading a model."""
        return Resources()

    @property
    def is_remote(self) -> bool:
        """Whether `measurement` asks a server."""
        return False

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns that these settings need, in addition to the stage's own `reads`."""
        return ()

    @property
    def spares(self) -> Mapping[str, tuple[str, ...]]:
        """Columns that these settings spare, in addition to the stage's own `spares`."""
        return {}

    @property
    def pooled(self) -> tuple[str, ...]:
        """Columns of earlier stages that `summarize` takes beside the stage's own `writes`.

        They are read for the summary alone, so they are not part of the measurement.
        """
        return ()

    def uses(self, earlier: Mapping[str, StageConfig]) -> tuple[str, ...]:
        """Columns that are read where an earlier stage writes them; see `Stage.uses`.

        Args:
            earlier: The settings of the earlier stages, by name.
        """
        return ()

    def check(self, columns: pa.Schema) -> None:
        """Check the settings against the columns that exist before the stage.

        Args:
            columns: The columns of the pool and of the earlier stages.

        Raises:
            ValueError: A setting does not fit; the message names stage.field and the fix.
        """
        return None

    def measurement(self) -> dict[str, Any]:
        """Return the fields that change the measurement, without thresholds, as plain values.

        A config with a model adds the revision of its weights.
        """
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if not field.metadata.get("threshold")
        }

    def settings(self) -> dict[str, Any]:
        """Return every field, including thresholds, as plain values."""
        return dataclasses.asdict(self)

    def explain(self) -> list[str]:
        """Return what `--dry-run` says of the stage besides its settings, a line each."""
        return []


@dataclass(frozen=True, kw_only=True)
class ModelConfig(StageConfig):
    """The settings of a stage that runs a neural model; subclasses set the default model.

    Attributes:
        model: A folder written by `save_pretrained`, or a model name on the hub.
        revision: A branch, tag or commit on the hub.
        batch_size: Images per batch; null chooses a size for the device. It is halved when memory
            runs out.
        device: cpu, cuda, cuda:N, or auto, which uses CUDA if this machine has it. Set cuda if the
            workers have a GPU and this machine does not.
        dtype: Data type of the weights; auto is bfloat16 on devices that support it (CUDA, CPUs
            with AVX-512 BF16 or AMX) and float32 elsewhere.
        cpus: CPU cores per worker: threads that decode images and, without CUDA, run the model.
    """

    stage: ClassVar[str]
    places: ClassVar[tuple[str, ...]] = ("model", "revision")

    model: str
    revision: str | None = None
    batch_size: int | None = None
    device: str = "auto"
    dtype: Dtype = "auto"
    cpus: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_size", "cpus"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{self.stage}.{name} must be at least 1, got {value}")
        if not self.model:
            raise ValueError(f"{self.stage}.model must name a folder or a model on the hub")
        if not DEVICE.fullmatch(self.device):
            raise ValueError(
                f"{self.stage}.device must be auto, cpu, cuda or cuda:N, got {self.device!r}"
            )

    @property
    def resources(self) -> Resources:
        """`cpus` cores, and one GPU if `device` is CUDA."""
        gpus = 1.0 if device_of(self.device).startswith("cuda") else 0.0
        return Resources(cpus=self.cpus, gpus=gpus)

    def models(self) -> dict[str, tuple[str, str | None]]:
        """Return the name and revision of each model that is loaded, by role."""
        return {"model": (self.model, self.revision)}

    def measurement(self) -> dict[str, Any]:
        """Return the fields that change a result, with a digest of the weights for the model.

        Batch size, device and cores are left out, since they change results only by rounding.

        Raises:
            FileNotFoundError: The model is neither a folder nor on the hub.
            ValueError: The folder holds no weights, or a revision is set for a folder.
        """
        fields = super().measurement()
        for name in ("model", "revision", "batch_size", "device", "cpus"):
            del fields[name]
        try:
            return {**fields, "weights": revision_of(self.model, self.revision)}
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"{self.stage}.model: {error}") from None

    def placement(self) -> dict[str, Any]:
        """Return the keyword arguments for the model's `from_pretrained`."""
        return {
            "revision": pinned(self.model, self.revision),
            "device": self.device,
            "dtype": self.dtype,
            "threads": self.cpus,
        }


class Cutoff(NamedTuple):
    """A threshold, and the number of each row that it is compared with.

    Attributes:
        reason: The reason that it decides.
        name: The field of the config.
        limit: The value of the field; None if it depends on the whole pool, as for a top fraction.
        values: (n,) the number of each row, NaN without one.
    """

    reason: str
    name: str
    limit: float | None
    values: Floats


ConfigT = TypeVar("ConfigT", bound=StageConfig)


class Stage(ABC, Generic[ConfigT]):
    """One step of curation over the pool.

    Constructing a stage must be cheap, since the driver and every worker construct all earlier
    stages for their verdicts. Load models in `load`.

    Attributes:
        name: One word, which names the module, the command, the manifest key and the folder.
        version: Increased whenever the measurement changes.
        config_type: The class of its config.
        reads: Required columns of the pool or of earlier stages.
        uses: Optional columns, read if an earlier stage writes them.
        spares: Columns of `reads` that are not needed if all of the given other columns exist.
        writes: The columns it adds, with one value for each measured row; settings may add more to
            those of an instance.
        bulky: Columns of `writes` that are large and that `judge` does not need. Only stages that
            take them read them.
        remembers: Columns of `writes` that a row is given when it is measured again because what it
            takes of an earlier stage's summary has changed; null where it never was measured.
        later: Columns of `writes` and `summary` that files of older versions lack; they are null
            there.
        reasons: Every reason that `judge` may return, with a sentence that explains it.
        help: A short description for the list of commands. It must be a string on one line of the
            source, since the list is made without importing the stage.
        examples: Commands shown in the help of its command.
        paper: The papers and programs that its method comes from.
        loader: The class or library that loads the model of its config.
        presets: Named configs, for the page of fields.
        thresholds: For each reason that one threshold decides, the field of the config and the
            column that it is compared with. The report shows the rows nearest to the threshold.
        histograms: Numeric columns that the report plots; None for all.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    config_type: ClassVar[type[StageConfig]]
    reads: ClassVar[tuple[str, ...]]
    uses: ClassVar[tuple[str, ...]] = ()
    spares: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    writes: pa.Schema
    bulky: ClassVar[tuple[str, ...]] = ()
    remembers: ClassVar[tuple[str, ...]] = ()
    later: ClassVar[tuple[str, ...]] = ()
    reasons: ClassVar[Mapping[str, str]]
    help: ClassVar[str] = ""
    examples: ClassVar[tuple[str, ...]] = ()
    paper: ClassVar[str] = ""
    loader: ClassVar[str] = ""
    presets: ClassVar[Mapping[str, StageConfig]] = {}
    thresholds: ClassVar[Mapping[str, tuple[str, str]]] = {}
    histograms: ClassVar[tuple[str, ...] | None] = None

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    @classmethod
    def columns(cls) -> pa.Schema:
        """Return the columns that the stage adds to the pool whatever its settings."""
        return cls.writes

    def own_columns(self) -> pa.Schema:
        """Return the columns that the stage adds to the pool with its settings."""
        return self.writes

    @classmethod
    def every_reason(cls) -> dict[str, str]:
        """Return `reasons`, and `crashed`, which any stage may give."""
        return {
            **cls.reasons,
            CRASHED: "Measuring the row alone raises an error or ends the process.",
        }

    def load(self) -> None:
        """Load models; called once per worker, before the first `annotate`."""
        return None

    @abstractmethod
    def annotate(self, rows: pa.Table) -> pa.Table:
        """Measure rows.

        Args:
            rows: n live rows with uid, the columns of `reads` (except those that `spares` makes
                unnecessary), the columns of the config's `reads`, the existing columns of `uses`,
                and the columns of `remembers` if the rows may have been measured before.

        Returns:
            n rows in the same order with exactly the schema `writes`. A row that cannot be
            measured must not be dropped; its columns say so.
        """

    @abstractmethod
    def judge(self, annotations: pa.Table) -> pa.StringArray:
        """Return the reason to reject each row, or null to keep it.

        Must be cheap and vectorised, and depend only on `annotations` and the config.

        Args:
            annotations: uid and `writes` (and `summary` of a global stage) of n measured rows,
                without the columns `bulky`.

        Returns:
            n nullable strings, each a key of `reasons`.
        """

    def cutoffs(self, annotations: pa.Table) -> Iterator[Cutoff]:
        """Yield the thresholds that are set, each with the numbers it is compared with.

        Args:
            annotations: See `judge`.
        """
        for reason, (name, column) in self.thresholds.items():
            if (limit := self.limit(name)) is not None:
                yield Cutoff(reason, name, limit, floats(annotations[column]))

    def limit(self, name: str) -> float | None:
        """Return the value of a threshold of the config; None if it is not a number."""
        value = getattr(self.config, name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if is_number else None

    def notices(self, annotations: pa.Table) -> dict[str, int]:
        """What a person should know of rows that were just measured.

        Args:
            annotations: As of `judge`.

        Returns:
            How often each sentence holds; the run prints it after the total number.
        """
        return {}


class GlobalStage(Stage[ConfigT]):
    """A stage whose verdict on a row depends on the whole pool, such as clusters or counts.

    Attributes:
        summary: The columns that `summarize` returns for each live row, without uid.
    """

    summary: ClassVar[pa.Schema]

    @property
    def in_parts(self) -> InParts | None:
        """How to summarise a pool in parts if it is too large for one process; None if impossible.

        The value names a subclass: clusters (`ClusteredStage`), keys (`KeyedStage`), ranks or draws
        (both `RankedStage`).
        """
        return None

    @classmethod
    def columns(cls) -> pa.Schema:
        """Return the columns that the stage adds to the pool, including those of its summary."""
        return pa.schema([*cls.writes, *cls.summary])

    def own_columns(self) -> pa.Schema:
        """See `Stage.own_columns`."""
        return pa.schema([*self.writes, *self.summary])

    @abstractmethod
    def summarize(self, annotations: Iterator[pa.Table]) -> pa.Table:
        """Summarise all live rows.

        Args:
            annotations: uid, `writes` and the config's `pooled` columns of the live rows, one table
                per shard, in shard order.

        Returns:
            uid and `summary`, one row for each input row, in the same order. The values must not
            depend on the order of the shards.
        """


class ClusteredStage(GlobalStage[ConfigT]):
    """A global stage whose rows form clusters, each of which can be summarised by itself.

    `ties` and `near` link rows; rows that are linked directly or indirectly are in one cluster.
    """

    @property
    def in_parts(self) -> InParts | None:
        """In parts of whole clusters."""
        return "clusters"

    @property
    def min_cosine(self) -> float | None:
        """The least cosine of a semantic copy; None if rows are not compared by embedding.

        If set, the rows that `clusters` calls compared are compared over the whole pool.
        """
        return None

    def clusters(self, annotations: Iterator[pa.Table]) -> pa.Table:
        """Return `summarize` of whole clusters, without what the comparison of embeddings says.

        If `min_cosine` is set, it has the columns of `dedup.semantic.STANDING` too.
        """
        return self.summarize(annotations)

    @abstractmethod
    def ties(self, rows: pa.Table) -> pa.Table:
        """Return the keys that link rows into clusters.

        Args:
            rows: uid and `writes` of n live rows.

        Returns:
            row (position from 0) and key (uint64). Rows that influence each other's summary must
            share a key or have hashes that are `near`. Superfluous links are harmless.
        """

    @abstractmethod
    def points(self, rows: pa.Table) -> pa.Table:
        """Return row and hash (uint64) of the rows, among n live ones, that may be near others.

        Rows with equal hashes must share a key of `ties`.
        """

    @abstractmethod
    def near(self, hashes: UInt64s, part: int, parts: int) -> Iterator[tuple[Int64s, Int64s]]:
        """Yield pairs of positions of distinct hashes that are near.

        The work is split into `parts`; every pair occurs in at least one of them.
        """


class KeyedStage(GlobalStage[ConfigT]):
    """A global stage in which rows influence each other if their `lines` share a key.

    If `in_parts` is `keys`, the lines of each key can be reduced separately.
    """

    @abstractmethod
    def lines(self, rows: pa.Table) -> pa.Table:
        """Return the input of `reduce` for some rows.

        Args:
            rows: uid and `writes` of n live rows.

        Returns:
            row (position from 0), key (uint64) and further columns.
        """

    @abstractmethod
    def reduce(self, lines: pa.Table) -> pa.Table:
        """Compute intermediate results from all lines of some keys.

        Args:
            lines: The columns of `lines`; rows are numbered over the whole pool.

        Returns:
            row and further columns.
        """

    @abstractmethod
    def conclude(self, rows: pa.Table, results: pa.Table) -> pa.Table:
        """Return the summary of rows, given the results of `reduce`.

        Args:
            rows: uid and `writes` of n live rows.
            results: The results of `reduce` for these rows, from all keys; row is a position in
                `rows`.

        Returns:
            The columns of `summarize`.
        """


class RankedStage(GlobalStage[ConfigT]):
    """A global stage that selects rows by a number of each.

    If `in_parts` is `ranks`, it selects the first rows of an order; with quotas, the first ones of
    each cell. If it is `draws`, it draws rows with repetition.
    """

    @abstractmethod
    def ranks(self, rows: pa.Table) -> pa.Table:
        """Return the sort keys of the rows that may be selected.

        Args:
            rows: uid and `writes` of n live rows.

        Returns:
            row (position from 0), rank (float64, lowest first) and lot (uint64, orders rows of
            equal rank). If `rows` have a column cell (int64), it too, and the order is that of the
            cells first.
        """

    @abstractmethod
    def size(self, ranked: int) -> int:
        """Return how many of `ranked` rows to select; a larger number selects all."""

    def draw(self, scores: Floats, lots: UInt64s) -> Int32s:
        """Return how often each of n rows is drawn, if `in_parts` is `draws`.

        Args:
            scores: (n,) the negative `rank` of all rows of `ranks`; may be mapped from a file.
            lots: (n,) their `lot`; may be mapped.

        Raises:
            TypeError: The class does not define it.
        """
        raise TypeError(f"{type(self).__name__} must define draw, since `in_parts` is draws")

    @abstractmethod
    def conclude(self, rows: pa.Table, results: pa.Table) -> pa.Table:
        """Return the summary of rows, given which of them are selected.

        Args:
            rows: uid and `writes` of n live rows.
            results: row, the positions of the selected ones; and draws, if they are drawn.

        Returns:
            The columns of `summarize`.
        """


def in_order(ranked: pa.Table) -> Int64s:
    """Sort the rows of `RankedStage.ranks`, first to last."""
    keys = [name for name in ("row", "lot", "rank", "cell") if name in ranked.column_names]
    row = np.asarray(ranked["row"])
    ordered: Int64s = row[np.lexsort([np.asarray(ranked[name]) for name in keys])]
    return ordered


def floats(values: Any) -> Floats:
    """Convert a column of numbers or booleans to float64, (n,), with NaN for null."""
    array: Floats = np.array(
        values.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy(zero_copy_only=False)
    )
    return array


def is_numeric(kind: pa.DataType) -> bool:
    """Whether a type is an integer or floating-point type."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
