"""Prometheus metrics of the workers, through Ray's exporter on every node.

ray_capfilt_rows_total{run, stage, worker}              rows done, counted once
ray_capfilt_bytes_total{run, stage, worker}             bytes downloaded
ray_capfilt_rejected_total{run, stage, worker, reason}  rows with a reason, errors included
ray_capfilt_device_seconds_total{run, stage, worker}    seconds times CUDA devices held
ray_capfilt_shard_seconds{run, stage, worker}           a histogram of the seconds of a shard
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

__all__ = ["Meter"]

TAGS = ("run", "stage", "worker")

SECONDS = [0.1, 1.0, 10.0, 60.0, 300.0, 1800.0]


class Meter:
    """The metrics of one worker; outside of Ray nothing is counted.

    Args:
        run: The name of the run.
    """

    def __init__(self, run: str) -> None:
        import ray
        from ray.util.metrics import Counter, Histogram

        self._is_on = bool(ray.is_initialized())
        if not self._is_on:
            return
        self._tags = {"run": run, "worker": f"{socket.gethostname()}-{os.getpid()}"}
        self._rows = Counter("capfilt_rows", "Rows done.", TAGS)
        self._bytes = Counter("capfilt_bytes", "Bytes downloaded.", TAGS)
        self._rejected = Counter("capfilt_rejected", "Rows with a reason.", (*TAGS, "reason"))
        self._device = Counter("capfilt_device_seconds", "Seconds times CUDA devices held.", TAGS)
        self._shards = Histogram("capfilt_shard_seconds", "Seconds of a shard.", SECONDS, TAGS)

    def count(self, stage: str, result: Mapping[str, Any], gpus: float) -> None:
        """Count a finished shard.

        Args:
            stage: The stage, or export.
            result: The result of `Worker.work`: rows, seconds, reasons, perhaps bytes.
            gpus: CUDA devices that the worker holds.
        """
        if not self._is_on:
            return
        tags = {**self._tags, "stage": stage}
        for counter, amount in (
            (self._rows, result["rows"]),
            (self._bytes, result.get("bytes", 0)),
            (self._device, gpus * result["seconds"]),
        ):
            if amount > 0:
                counter.inc(amount, tags)
        for reason, number in result["reasons"].items():
            self._rejected.inc(number, {**tags, "reason": reason})
        self._shards.observe(result["seconds"], tags)
