"""What a manifest would take at another size, on other machines: time, devices, bytes, requests."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from models.operations import Shape
from pipeline.plan import Plan
from pipeline.rates import CPU, NOTHING, Becomes, Bounds, Rate, Rates
from pipeline.summary import PART_ROWS
from stages.base import ClusteredStage, GlobalStage, ModelConfig
from stages.download import DownloadStage
from stages.export import ExportStage
from stages.select import BY_SHARE

__all__ = ["Forecast", "Machines", "Step", "forecast", "forecast_table", "parse_rows"]

CAPTION_TOKENS = 16
LIST_BYTES = 150
"""Of a row of a list as Parquet: uid, URL, caption."""
UID_BYTES = 48
"""Of memory that a row of the list takes while its repeats are counted."""
SUMMARY_BYTES = 350
"""Of memory that a row takes in a summary, as dedup and select were measured at 10,000,000 rows."""
POINT_BYTES = 60
"""Of memory that the hash of an image takes where all of them are searched for near ones."""
NARROW_BYTES = 100
"""Of a row that a stage reads without its image."""

SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9}


@dataclass(frozen=True, kw_only=True)
class Machines:
    """On what a manifest is carried out.

    Attributes:
        nodes: Machines.
        cpus: Cores of each.
        network: Of each, in Gbit/s.
        gpus: GPUs of all machines together.
        gpu: Their kind, a word of their name.
    """

    nodes: int = 1
    cpus: int = dataclasses.field(default_factory=lambda: os.cpu_count() or 1)
    network: float = 10.0
    gpus: int = 0
    gpu: str = ""

    def __post_init__(self) -> None:
        for name in ("nodes", "cpus"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.network < math.inf:
            raise ValueError(f"--network must be Gbit/s above 0, got {self.network}")

    @classmethod
    def parse(
        cls, gpus: str | None, nodes: int = 1, cpus: int | None = None, network: float = 10.0
    ) -> Machines:
        """Read `8xH200`.

        Raises:
            ValueError: It is nothing such.
        """
        given: dict[str, Any] = {"nodes": nodes, "network": network}
        if cpus is not None:
            given["cpus"] = cpus
        if gpus:
            match = re.fullmatch(r"(\d+)\s*x\s*(\S.*)", gpus.strip())
            if match is None or not int(match[1]):
                raise ValueError(f"--gpus must be as 8xH200, got {gpus!r}")
            given |= {"gpus": int(match[1]), "gpu": match[2]}
        return cls(**given)

    @property
    def cores(self) -> int:
        """Of all nodes."""
        return self.nodes * self.cpus

    def __str__(self) -> str:
        cores = f"{self.nodes} x {self.cpus} cores"
        return f"{cores}, {self.gpus} x {self.gpu}" if self.gpus else cores


def parse_rows(text: str) -> int:
    """Read `14M`, `129M`, `5B`, `2500`.

    Raises:
        ValueError: It is no such number.
    """
    match = re.fullmatch(r"([0-9][0-9_,]*(?:\.[0-9]+)?)\s*([KMBG]?)", text.strip().upper())
    if match is None:
        raise ValueError(f"--rows must be a number as 14M, 1.5B or 200000, got {text!r}")
    rows = round(float(match[1].replace(",", "").replace("_", "")) * SUFFIXES[match[2]])
    if rows < 1:
        raise ValueError(f"--rows must be at least 1, got {text!r}")
    return rows


@dataclass(frozen=True, kw_only=True)
class Step:
    """One line of a forecast.

    Attributes:
        name: The stage; `list` for cutting the list, `STAGE summary` for what is decided over the
            whole pool in one process.
        device: `cpu`, or the kind of GPU.
        number: How many devices work at once.
        rows: That it is given.
        seconds: From its beginning to its end.
        device_hours: Of cores or of GPUs.
        read: Bytes from the web for download, else from where the run lies.
        written: Bytes to where the run lies.
        requests: To the web for download, else to where the run lies.
        memory: Bytes in one process, where rows of the whole pool meet in it.
        bound: What limits it: cores, GPUs, cores that decode for the GPUs, the network.
        rate: What it was reckoned from.
    """

    name: str
    device: str
    number: int
    rows: Bounds
    seconds: Bounds
    device_hours: Bounds
    read: Bounds
    written: Bounds
    requests: Bounds
    memory: Bounds = NOTHING
    bound: str
    rate: Rate


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a manifest would take.

    Attributes:
        name: Of the manifest.
        rows: Of its list.
        shards: Of its pool.
        machines: On what.
        steps: In order.
    """

    name: str
    rows: int
    shards: int
    machines: Machines
    steps: tuple[Step, ...]

    @property
    def seconds(self) -> Bounds:
        """From the beginning to the end."""
        return _sum(step.seconds for step in self.steps)

    @property
    def disk(self) -> Bounds:
        """Bytes that the run takes when it is done."""
        return _sum(step.written for step in self.steps)

    @property
    def bottleneck(self) -> Step:
        """The step that takes longest."""
        return max(self.steps, key=lambda step: step.seconds.likely)

    def told(self) -> list[str]:
        """What a reader should know beside the table."""
        found = self.bottleneck
        share = found.seconds.likely / max(self.seconds.likely, 1e-9)
        lines = [
            f"bottleneck  {found.name}: {share:.0%} of the time, bound by {found.bound}",
            f"disk        {_interval(self.disk, _bytes)}",
        ]
        if on_gpus := [step.device_hours for step in self.steps if step.device != CPU]:
            lines.append(f"GPU-hours   {_interval(_sum(on_gpus), _count)}")
        for step in self.steps:
            if step.memory.likely > 2**32:
                lines.append(
                    f"memory      {step.name}: {_interval(step.memory, _bytes)} in one process"
                )
        guessed = [step for step in self.steps if not step.rate.measured]
        lines += [
            f"estimate    {step.name} on {step.device}, not measured: {step.rate.source}"
            for step in guessed
        ]
        lines.append(
            "The ranges hold what is not known of rates and of the rows that stay; a first shard "
            "of your own list, run and given by --from, narrows them. Training is not in it."
        )
        return lines

    def plain(self) -> dict[str, Any]:
        """As JSON has it; a range is `low`, `likely` and `high`."""
        steps = []
        for step in self.steps:
            fields = {field.name: getattr(step, field.name) for field in dataclasses.fields(step)}
            steps.append({name: _plain(value) for name, value in fields.items()})
        return {
            "name": self.name,
            "rows": self.rows,
            "shards": self.shards,
            "machines": dataclasses.asdict(self.machines),
            "seconds": _plain(self.seconds),
            "disk": _plain(self.disk),
            "bottleneck": self.bottleneck.name,
            "steps": steps,
            "told": self.told(),
        }


def forecast(plan: Plan, rows: int, machines: Machines, rates: Rates) -> Forecast:
    """Reckon what the stages and the exports of a manifest would take; trainings are left out.

    Every stage follows the one before it, as `capfilt run` has them, with as many workers as the
    machines hold. Download is given all cores: how long hosts make it wait is not reckoned.

    Args:
        plan: Of the manifest.
        rows: Of the list.
        machines: On what.
        rates: What is known of the stages.

    Raises:
        ValueError: Nothing is known of a stage on its device.
    """
    config: Any = plan.manifest.stages[DownloadStage.name]
    shards = math.ceil(rows / config.shard_size)
    number = Bounds(rows, rows, rows)
    lists = number.times(LIST_BYTES)
    cut = _step("list", number, 1, _rate(rates, "list", CPU), lists, lists, shards)
    steps = [dataclasses.replace(cut, memory=number.times(UID_BYTES))]
    for name in (*plan.names, *plan.exports):
        stage = ExportStage.name if name in plan.exports else name
        becomes = rates.rows.get(stage)
        if becomes is None:
            raise ValueError(f"plan: the rows of {stage} are unknown; give --rates or --from")
        written = number.times(becomes.written)
        if name == DownloadStage.name:
            read, requests = number.times(becomes.received), number.times(Bounds(1, 1.1, 2))
        else:
            width = Bounds(*[NARROW_BYTES * max(len(plan.before(name)), 1)] * 3)
            if plan.inputs(name).get("image") == DownloadStage.name:
                width = width.plus(rates.rows[DownloadStage.name].written)
            read = number.times(width)
            requests = Bounds(*[float(shards * (2 + 2 * len(plan.before(name))))] * 3)
        steps.append(_of_stage(plan, name, number, machines, rates, read, written, requests))
        if name in plan.names and isinstance(plan.stage(name), GlobalStage):
            steps.append(_summary(plan, name, number, machines, rates, becomes, shards))
        if name in plan.names:
            number = number.times(becomes.kept)
    return Forecast(
        name=plan.manifest.name,
        rows=rows,
        shards=shards,
        machines=machines,
        steps=tuple(steps),
    )


def _summary(
    plan: Plan,
    name: str,
    rows: Bounds,
    machines: Machines,
    rates: Rates,
    becomes: Becomes,
    shards: int,
) -> Step:
    """The line of what a global stage decides over the whole pool, in one process or in parts."""
    stage: Any = plan.stage(name)
    in_parts = stage.in_parts and rows.likely > PART_ROWS
    step = _step(
        f"{name} summary",
        rows,
        min(machines.cores, math.ceil(rows.likely / PART_ROWS)) if in_parts else 1,
        _rate(rates, f"{name} parts" if in_parts else f"{name} summary", CPU),
        rows.times(becomes.written).times(3 if in_parts else 1),
        rows.times(NARROW_BYTES),
        2 * shards,
    )
    memory = rows.times(SUMMARY_BYTES)
    if in_parts:
        most = PART_ROWS * SUMMARY_BYTES
        points = rows.times(POINT_BYTES if isinstance(stage, ClusteredStage) else 0)
        memory = Bounds(most, most, most).or_more(points)
    return dataclasses.replace(step, memory=memory)


def _of_stage(
    plan: Plan,
    name: str,
    rows: Bounds,
    machines: Machines,
    rates: Rates,
    read: Bounds,
    written: Bounds,
    requests: Bounds,
) -> Step:
    """The line of a stage or an export."""
    stage = ExportStage.name if name in plan.exports else name
    config: Any = None if name in plan.exports else plan.manifest.stages[name]
    is_model = isinstance(config, ModelConfig)
    is_gpu = is_model and bool(machines.gpus) and config.device != CPU
    device = machines.gpu if is_gpu else CPU
    if stage == "dedup" and "image" in plan.inputs(name):
        stage = "clean"  # it has to open the images itself
    if stage == "select" and config.method in BY_SHARE:
        stage = "review"  # nothing is parsed
    rate = _rate(rates, stage, device)
    operations = _operations(plan, name) if is_model else None
    if rate.tflops is not None and operations is None:
        raise ValueError(
            f"plan: {name}.model {config.model}: its operations are not known; give a file with "
            f"rows_per_second of {name} on {device} by --rates, or a run by --from"
        )
    step = _step(
        name,
        rows,
        machines.gpus if is_gpu else machines.cores,
        rate,
        read,
        written,
        requests,
        operations,
    )
    if name == DownloadStage.name:
        network = machines.nodes * machines.network * 1e9 / 8
        arriving = read.times(1 / network)
        if arriving.likely > step.seconds.likely:
            step = dataclasses.replace(step, bound="the network")
        seconds = step.seconds.or_more(arriving)
        hours = seconds.times(step.number / 3600)
        return dataclasses.replace(step, seconds=seconds, device_hours=hours)
    if not is_gpu:
        return step
    decode = _rate(rates, "decode", CPU)
    feeding = rows.over(decode.per_second(None).times(machines.cores))
    seconds = step.seconds.or_more(feeding)
    return dataclasses.replace(
        step,
        device=device,
        seconds=seconds,
        device_hours=seconds.times(machines.gpus / 3600),
        bound="GPUs" if step.seconds.likely >= feeding.likely else "cores that decode for the GPUs",
    )


def _step(
    name: str,
    rows: Bounds,
    number: int,
    rate: Rate,
    read: Bounds,
    written: Bounds,
    requests: Bounds | int,
    operations: float | None = None,
) -> Step:
    seconds = rows.over(rate.per_second(operations).times(number))
    if not isinstance(requests, Bounds):
        requests = Bounds(requests, requests, requests)
    return Step(
        name=name,
        device=CPU,
        number=number,
        rows=rows,
        seconds=seconds,
        device_hours=seconds.times(number / 3600),
        read=read,
        written=written,
        requests=requests,
        bound="one process" if number == 1 else "cores",
        rate=rate,
    )


def _rate(rates: Rates, stage: str, device: str) -> Rate:
    rate = rates.find(stage, device)
    if rate is None:
        known = ", ".join(rates.devices())
        where = f"; known GPUs are {known}" if device != CPU else ""
        raise ValueError(
            f"plan: nothing is known of {stage} on {device}{where}. Give its rows_per_second or "
            "tflops in a file by --rates, or a finished run by --from"
        )
    return rate


def _operations(plan: Plan, name: str) -> float | None:
    """Floating-point operations of a row of caption or filter, where its model is a BLIP."""
    config: Any = plan.manifest.stages[name]
    shape = _shape(config.model)
    written = plan.manifest.stages.get("caption") if "caption" in plan.before(name) else None
    synthetic = getattr(written, "num_captions", 0)
    if shape is None or getattr(config, "recipe", "blip") != "blip":
        return None
    if name == "caption":
        return shape.captioning(config.num_captions, longest=config.max_length)
    return shape.matching([CAPTION_TOKENS] * (1 + synthetic))


def _shape(model: str) -> Shape | None:
    path = os.path.join(model, "config.json")
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        return Shape.of(found) if found.get("model_type", "blip") == "blip" else None
    if "/blip-" in f"/{model.split('/')[-1]}":
        return Shape(width=1024, layers=24) if "large" in model else Shape()
    return None


def forecast_table(found: Forecast) -> Table:
    """A forecast for the terminal: what is likely, and its range where it is wide."""
    table = Table(
        title=f"{found.name}  {found.rows:,} rows in {found.shards:,} shards, {found.machines}",
        title_justify="left",
    )
    table.add_column("stage")
    table.add_column("on")
    for name in ("rows", "time", "device-hours", "read", "written", "requests"):
        table.add_column(name, justify="right")
    table.add_column("bound by")
    for step in found.steps:
        table.add_row(
            step.name,
            f"{step.number} x {'core' if step.device == CPU else step.device}"
            + ("" if step.rate.measured else " ?"),
            _count(step.rows.likely),
            _interval(step.seconds, _time),
            _count(step.device_hours.likely),
            _bytes(step.read.likely),
            _bytes(step.written.likely),
            _count(step.requests.likely),
            step.bound,
        )
    table.add_row(
        "all",
        "",
        "",
        _interval(found.seconds, _time),
        "",
        "",
        _bytes(found.disk.likely),
        _count(_sum(step.requests for step in found.steps).likely),
    )
    return table


def _sum(parts: Iterator[Bounds] | list[Bounds]) -> Bounds:
    total = NOTHING
    for part in parts:
        total = total.plus(part)
    return total


def _plain(value: Any) -> Any:
    if isinstance(value, Bounds):
        return value._asdict()
    return dataclasses.asdict(value) if isinstance(value, Rate) else value


def _interval(bounds: Bounds, told: Any) -> str:
    likely, low, high = told(bounds.likely), told(bounds.low), told(bounds.high)
    return likely if low == high else f"{likely} ({low} to {high})"


def _scaled(value: float, units: tuple[tuple[float, str], ...]) -> str:
    size, unit = next((one for one in units if value >= one[0]), units[-1])
    return f"{value / size:.{0 if value / size >= 100 else 2 if value / size < 1 else 1}f}{unit}"


def _time(seconds: float) -> str:
    return _scaled(seconds, ((86400 * 2, " d"), (3600, " h"), (60, " min"), (1, " s")))


def _bytes(number: float) -> str:
    return _scaled(number, ((1e15, " PB"), (1e12, " TB"), (1e9, " GB"), (1e6, " MB"), (1e3, " kB")))


def _count(number: float) -> str:
    return _scaled(number, ((1e9, " B"), (1e6, " M"), (1e3, " k"), (1, "")))
