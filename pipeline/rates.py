"""How fast a stage is on a device and what becomes of its rows: out of files, or a finished run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import pydantic
import yaml

from pipeline.status import funnel, open_plan
from pipeline.store import Run
from stages.base import GlobalStage
from stages.export import ExportStage

__all__ = ["CPU", "NOTHING", "Becomes", "Bounds", "Rate", "Rates", "add_work"]

OWN = Path(__file__).with_name("rates.yaml")
CPU = "cpu"


class Bounds(NamedTuple):
    """A quantity that is not quite known: the least, the likely, the most."""

    low: float
    likely: float
    high: float

    def times(self, other: Bounds | float) -> Bounds:
        """The product with another that is independent of it."""
        other = other if isinstance(other, Bounds) else Bounds(other, other, other)
        return Bounds(*(a * b for a, b in zip(self, other, strict=True)))

    def plus(self, other: Bounds) -> Bounds:
        """The sum."""
        return Bounds(*(a + b for a, b in zip(self, other, strict=True)))

    def over(self, rate: Bounds) -> Bounds:
        """The quotient; the most of the rate makes the least of it."""
        return Bounds(self.low / rate.high, self.likely / rate.likely, self.high / rate.low)

    def or_more(self, other: Bounds) -> Bounds:
        """The larger of both."""
        return Bounds(*(max(a, b) for a, b in zip(self, other, strict=True)))


NOTHING = Bounds(0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How fast one device is at a stage.

    Attributes:
        device: `cpu` for one core, or a word of the name of a GPU.
        stage: The stage, or `list`, `decode` or `STAGE summary`; unset is every stage with a model.
        rows_per_second: Of one device.
        tflops: 10^12 floating-point operations a second, in the place of `rows_per_second`.
        within: The truth is expected from the rate over this factor to the rate times it.
        measured: Whether it was, on this kind of device.
        source: Where it comes from.
        date: When.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    device: str
    stage: str | None = None
    rows_per_second: float | None = None
    tflops: float | None = None
    within: float = 1.5
    measured: bool = True
    source: str = ""
    date: Any = None

    def __post_init__(self) -> None:
        given = [rate for rate in (self.rows_per_second, self.tflops) if rate is not None]
        if len(given) != 1 or not 0 < given[0] < math.inf:
            raise ValueError("one of rows_per_second and tflops must be above 0")
        if not 1 <= self.within < math.inf:
            raise ValueError(f"within must be a factor from 1, got {self.within}")
        if self.rows_per_second is not None and self.stage is None:
            raise ValueError("rows_per_second needs the stage that it is of")

    def per_second(self, operations: float | None) -> Bounds:
        """Rows a second of one device.

        Args:
            operations: Of a row; None where nobody knows.
        """
        if self.rows_per_second is not None:
            likely = self.rows_per_second
        else:
            assert self.tflops is not None and operations is not None
            likely = self.tflops * 1e12 / operations
        return Bounds(likely / self.within, likely, likely * self.within)


def _ascending(bounds: Bounds) -> Bounds:
    if not 0 <= bounds.low <= bounds.likely <= bounds.high:
        raise ValueError("must be three numbers: least, likely, most")
    return bounds


_Ascending = Annotated[Bounds, pydantic.AfterValidator(_ascending)]


@dataclass(frozen=True, kw_only=True)
class Becomes:
    """What becomes of a row of a stage.

    Attributes:
        kept: The share that goes on.
        written: Bytes that the stage writes for it.
        received: Bytes that download takes from the web for it.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    kept: _Ascending
    written: _Ascending
    received: _Ascending = NOTHING


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What is known, the best last.

    Attributes:
        rates: Of stages on devices.
        rows: What becomes of the rows of each stage.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    rates: tuple[Rate, ...] = ()
    rows: Mapping[str, Becomes] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path = OWN) -> Rates:
        """Those of a YAML file as `rates.yaml` beside this module.

        Raises:
            ValueError: It is none; the message names entry and field.
        """
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
            return pydantic.TypeAdapter(cls).validate_python(content)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not YAML: {error}") from None
        except pydantic.ValidationError as error:
            told = "; ".join(
                f"{'.'.join(map(str, one['loc']))}: {one['msg'].removeprefix('Value error, ')}"
                for one in error.errors()
            )
            raise ValueError(f"{path}: {told}") from None

    @classmethod
    def of_run(cls, run: Run) -> Rates:
        """Those of the stages that a run has finished.

        The spread is that of its shards; of what it kept and wrote no spread is known, and none is
        claimed.

        Raises:
            FileNotFoundError: There is no run.
        """
        plan = open_plan(run)
        rates: list[Rate] = []
        rows: dict[str, Becomes] = {}
        for stage in funnel(run, plan)["stages"]:
            name = stage["name"]
            measured = stage["rows"] - stage["not_measured"]
            if stage["state"] != "done" or not measured:
                continue
            folder = plan.folder(name)
            is_export = name == ExportStage.name
            work = run.read_json(*folder, "_export.json" if is_export else "_stage.json").get(
                "work"
            )
            written = _size(run, folder) / measured
            if is_export:
                kept = 1.0
                resources = plan.export(name).config.resources
            else:
                kept = stage["kept"] / measured
                resources = plan.manifest.stages[name].resources
            received = 0.0
            if work and work["rows"]:
                received = work.get("bytes", 0) / work["rows"]
                device = work["device"]
                # What means a GPU where the run was made may mean none here.
                each = resources.cpus if device == CPU else resources.gpus or 1.0
                rates.append(
                    Rate(
                        device=device,
                        stage=name,
                        rows_per_second=work["rows"] / (work["seconds"] * each),
                        within=_within(work),
                        source=f"{run.root}, {work['rows']:,} rows",
                    )
                )
            rows[name] = Becomes(
                kept=Bounds(kept, kept, kept),
                written=Bounds(written, written, written),
                received=Bounds(received, received, received),
            )
            if is_export or not isinstance(plan.stage(name), GlobalStage):
                continue
            found = run.read_json(*plan.summary_folder(name), "_summary.json")
            if "parts" not in found:
                rates.append(
                    Rate(
                        device=CPU,
                        stage=f"{name} summary",
                        rows_per_second=max(found["rows"], 1) / max(found["seconds"], 1e-3),
                        within=2.0,
                        source=f"{run.root}, {found['rows']:,} rows",
                    )
                )
        return cls(rates=tuple(rates), rows=rows)

    def and_better(self, others: Rates) -> Rates:
        """These, and others that come before them."""
        return Rates(rates=(*self.rates, *others.rates), rows={**self.rows, **others.rows})

    def find(self, stage: str, device: str) -> Rate | None:
        """The best that is known of a stage on a device; measured ones before others."""
        words = _words(device)
        found = [
            rate
            for rate in self.rates
            if rate.stage in (None, stage)
            and (_words(rate.device) <= words or words <= _words(rate.device))
        ]
        return max(
            reversed(found),
            key=lambda rate: (rate.stage is not None, rate.measured),
            default=None,
        )

    def devices(self) -> list[str]:
        """The GPUs that something is known of."""
        return list(dict.fromkeys(rate.device for rate in self.rates if rate.device != CPU))


def add_work(
    before: Mapping[str, Any] | None, results: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """What the workers of a stage have done, over all times that it was carried out.

    Args:
        before: What this gave the last time.
        results: What `Worker.work` gave for each shard.

    Returns:
        rows, shards, seconds and cpu_seconds; squares, the sum of seconds^2 / rows of the shards,
        out of which their spread follows; bytes of the web; device.
    """
    total: dict[str, Any] = {"rows": 0, "shards": 0, "seconds": 0.0, "cpu_seconds": 0.0}
    total |= {"squares": 0.0, "bytes": 0, "device": CPU, **(before or {})}
    for result in results:
        if result["rows"]:
            total["rows"] += result["rows"]
            total["shards"] += 1
            total["seconds"] += result["seconds"]
            total["cpu_seconds"] += result.get("cpu_seconds", 0.0)
            total["squares"] += result["seconds"] ** 2 / result["rows"]
            total["bytes"] += result.get("bytes", 0)
            total["device"] = result.get("device", CPU)
    return total


def _words(device: str) -> set[str]:
    """Of the name of a device: "NVIDIA A100-SXM4-80GB" is an A100."""
    return set(device.lower().replace("-", " ").split())


def _within(work: Mapping[str, Any]) -> float:
    """Two standard deviations of the seconds a row between shards, as a factor; 2 of few shards."""
    if work["shards"] < 3:
        return 2.0
    mean = work["seconds"] / work["rows"]
    variance = max(work["squares"] / work["rows"] - mean**2, 0.0)
    return float(1.1 + 2 * math.sqrt(variance) / mean)


def _size(run: Run, folder: Sequence[str]) -> int:
    """The bytes of all files under a folder."""
    return int(run.fs.du(run.at(*folder)))
