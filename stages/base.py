"""What a stage is: it measures rows, judges them, and never drops them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.weights import Dtype, device_of, pinned, revision_of

__all__ = [
    "CRASHED",
    "ClusteredStage",
    "GlobalStage",
    "InParts",
    "KeyedStage",
    "ModelConfig",
    "RankedStage",
    "Resources",
    "Stage",
    "StageConfig",
    "digest",
    "in_order",
    "threshold",
]


Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]
InParts = Literal["clusters", "keys", "ranks"]
CRASHED = "crashed"
"""The reason of a row whose measurement raises an error or ends the process."""
DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?")


def digest(value: Any) -> str:
    """The first 16 hex characters of the SHA-256 of a JSON-serialisable value.

    Keys are sorted, so equal values give equal digests in every process.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def threshold(default: Any) -> Any:
    """A config field that only `judge` or `summarize` uses.

    A threshold stays out of the fingerprint of the measurement, so that changing it costs no
    measuring.
    """
    return dataclasses.field(default=default, metadata={"threshold": True})


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one worker of a stage occupies.

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
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid", "strict": False}

    @property
    def resources(self) -> Resources:
        """What one worker needs; known without loading any model."""
        return Resources()

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns that these settings name, needed beside those that the stage always reads."""
        return ()

    def check(self, columns: pa.Schema) -> None:
        """Refuse settings that do not fit what stands before the stage.

        Args:
            columns: Those of the pool and of the earlier stages.

        Raises:
            ValueError: It names stage.field and the fix.
        """
        return None

    def measurement(self) -> dict[str, Any]:
        """The fields that change what is measured, thresholds left out, as plain values.

        A config that names a model adds the revision of its weights here.
        """
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if not field.metadata.get("threshold")
        }

    def settings(self) -> dict[str, Any]:
        """Every field, thresholds included, as plain values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(StageConfig):
    """The settings of a stage that runs a neural model; subclasses name the default model.

    Attributes:
        model: A folder of `save_pretrained` or a name on the hub.
        revision: A branch, tag or commit of the hub.
        batch_size: Images at a time; unset fits the device. Halved where memory is short.
        device: cpu, cuda, or auto for CUDA where there is one; a driver without a device that
            leads workers with one must say cuda.
        dtype: Of the weights; auto is bfloat16 on devices that compute in it (CUDA, CPUs with
            AVX-512 BF16 or AMX) and float32 elsewhere.
        cpus: Cores of a worker: threads that decode images and, without CUDA, compute.
    """

    stage: ClassVar[str]

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
            raise ValueError(f"{self.stage}.model must name a folder or a model of the hub")
        if not DEVICE.fullmatch(self.device):
            raise ValueError(
                f"{self.stage}.device must be auto, cpu, cuda or cuda:N, got {self.device!r}"
            )

    @property
    def resources(self) -> Resources:
        """A CUDA device where `device` means one, and `cpus` cores."""
        gpus = 1.0 if device_of(self.device).startswith("cuda") else 0.0
        return Resources(cpus=self.cpus, gpus=gpus)

    def models(self) -> dict[str, tuple[str, str | None]]:
        """The name and the revision of each model that is loaded, by its role."""
        return {"model": (self.model, self.revision)}

    def measurement(self) -> dict[str, Any]:
        """The fields that change an answer, and which weights exactly in the place of the model.

        Batch size, device and cores change an answer by rounding alone and stay out.

        Raises:
            FileNotFoundError: The model is neither a folder nor known to the hub.
            ValueError: The folder holds no weights, or came with a revision.
        """
        fields = super().measurement()
        for name in ("model", "revision", "batch_size", "device", "cpus"):
            del fields[name]
        try:
            return {**fields, "weights": revision_of(self.model, self.revision)}
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"{self.stage}.model: {error}") from None

    def placement(self) -> dict[str, Any]:
        """What `from_pretrained` of the model is told beside its name."""
        return {
            "revision": pinned(self.model, self.revision),
            "device": self.device,
            "dtype": self.dtype,
            "threads": self.cpus,
        }


ConfigT = TypeVar("ConfigT", bound=StageConfig)


class Stage(ABC, Generic[ConfigT]):
    """One step of curation over the pool.

    Construction is cheap, because every worker and the driver build the earlier stages of a
    manifest to ask for their verdicts; what is heavy happens in `load`.

    Attributes:
        name: One word: the module, the command, the manifest key and the folder.
        version: Raised whenever the measurement changes.
        config_type: The class of its config.
        reads: Columns of the pool or of earlier stages that it cannot do without.
        uses: Columns that it takes where an earlier stage writes them.
        spares: Columns of `reads` that it does without where all of some others exist.
        writes: The columns it adds, one value for each row it measures.
        reasons: Every reason `judge` may give, with a sentence that explains it.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    config_type: ClassVar[type[StageConfig]]
    reads: ClassVar[tuple[str, ...]]
    uses: ClassVar[tuple[str, ...]] = ()
    spares: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    writes: ClassVar[pa.Schema]
    reasons: ClassVar[Mapping[str, str]]

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    @classmethod
    def columns(cls) -> pa.Schema:
        """The columns that it adds to the pool."""
        return cls.writes

    @classmethod
    def every_reason(cls) -> dict[str, str]:
        """`reasons`, and `crashed`, which a row of any stage may have."""
        return {**cls.reasons, CRASHED: "Measuring it alone raises an error or ends the process."}

    def load(self) -> None:
        """Load models; called once in a worker, before its first `annotate`."""
        return None

    @abstractmethod
    def annotate(self, rows: pa.Table) -> pa.Table:
        """Measure rows.

        Args:
            rows: uid, the columns of `reads` but those that `spares` lets go, those of the
                config's `reads`, and those of `uses` that exist; n rows, all live.

        Returns:
            n rows in the same order with exactly the schema `writes`. A row that cannot be
            measured is a row whose columns say so, never a missing row.
        """

    @abstractmethod
    def judge(self, annotations: pa.Table) -> pa.StringArray:
        """The reason to reject each row, or null to keep it.

        Cheap, vectorised, and dependent on `annotations` and the config alone.

        Args:
            annotations: uid and `writes` (and `summary` of a global stage) of n measured rows.

        Returns:
            n nullable strings, each a key of `reasons`.
        """


class GlobalStage(Stage[ConfigT]):
    """A stage whose verdict on a row depends on the whole pool: clusters, counts, choice.

    Attributes:
        summary: The columns that `summarize` gives for each live row, uid left out.
    """

    summary: ClassVar[pa.Schema]

    @property
    def in_parts(self) -> InParts | None:
        """How a pool too large for one process is summarised in parts; None where it cannot be."""
        return None

    @classmethod
    def columns(cls) -> pa.Schema:
        """The columns that it adds to the pool, its summary's included."""
        return pa.schema([*cls.writes, *cls.summary])

    @abstractmethod
    def summarize(self, annotations: Iterator[pa.Table]) -> pa.Table:
        """Decide over all live rows at once.

        Args:
            annotations: uid and `writes` of the live rows, a table a shard, in shard order.

        Returns:
            uid and `summary`, one row for each row given, in the order given. The same for
            every order of the shards.
        """


class ClusteredStage(GlobalStage[ConfigT]):
    """A global stage in which rows bear on one another that `ties` and `near` link.

    Directly or through others: each cluster of them can be summarised by itself.
    """

    @property
    def in_parts(self) -> InParts | None:
        """By clusters."""
        return "clusters"

    @abstractmethod
    def ties(self, rows: pa.Table) -> pa.Table:
        """What links rows into clusters.

        Args:
            rows: uid and `writes` of n live rows.

        Returns:
            row, a position from 0, and key, uint64: rows that bear on one another have a key in
            common, or hashes that are `near`. Too many links do no harm, a missing one does.
        """

    @abstractmethod
    def points(self, rows: pa.Table) -> pa.Table:
        """The row and the hash, uint64, of those of n live rows that may be near.

        Rows of equal hashes have a key of `ties` in common.
        """

    @abstractmethod
    def near(self, hashes: UInt64s, part: int, parts: int) -> Iterator[tuple[Int64s, Int64s]]:
        """Pairs of positions of distinct hashes that are near.

        Every pair comes in one of the parts 0, 1, ..., or in several.
        """


class KeyedStage(GlobalStage[ConfigT]):
    """A global stage in which rows bear on one another whose `lines` have a key in common.

    Where `in_parts` is `keys`, the lines of each key can be reduced by themselves.
    """

    @abstractmethod
    def lines(self, rows: pa.Table) -> pa.Table:
        """What `reduce` needs.

        Args:
            rows: uid and `writes` of n live rows.

        Returns:
            row, a position from 0, key, uint64, and further columns.
        """

    @abstractmethod
    def reduce(self, lines: pa.Table) -> pa.Table:
        """What follows for rows from all lines of some keys.

        Args:
            lines: As of `lines`; the rows are numbered through the whole pool.

        Returns:
            row, and further columns.
        """

    @abstractmethod
    def conclude(self, rows: pa.Table, found: pa.Table) -> pa.Table:
        """The summary of rows from what follows for them.

        Args:
            rows: uid and `writes` of n live rows.
            found: As of `reduce`, of these rows out of all keys; row is a position from 0.

        Returns:
            As of `summarize`.
        """


class RankedStage(GlobalStage[ConfigT]):
    """A global stage that takes the first rows of an order, where `in_parts` is `ranks`."""

    @abstractmethod
    def ranks(self, rows: pa.Table) -> pa.Table:
        """The places in the order of those rows that may be taken.

        Args:
            rows: uid and `writes` of n live rows.

        Returns:
            row, a position from 0; rank, float64, the least first; and lot, uint64, by which rows
            of one rank follow one another.
        """

    @abstractmethod
    def size(self, ranked: int) -> int:
        """How many rows are taken, of how many that may be; all of them where it is more."""

    @abstractmethod
    def conclude(self, rows: pa.Table, found: pa.Table) -> pa.Table:
        """The summary of rows, once it is known which of them are taken.

        Args:
            rows: uid and `writes` of n live rows.
            found: row, the positions of those that are.

        Returns:
            As of `summarize`.
        """


def in_order(ranked: pa.Table) -> Int64s:
    """The rows of `RankedStage.ranks`, the first of the order first."""
    row, lot, rank = (np.asarray(ranked[name]) for name in ("row", "lot", "rank"))
    found: Int64s = row[np.lexsort((row, lot, rank))]
    return found
