"""Ray, here or on a cluster: started when first needed, and asked what it has room for."""

from __future__ import annotations

import logging
import os
from typing import Any

import ray

from pipeline.execution import logs, signals
from stages.base import Resources

__all__ = ["ROOM_SECONDS", "Cluster"]

ROOM_SECONDS = 1800.0
"""After how long without room for any worker the driver gives up and says what it waits for."""


class Cluster:
    """Ray, started when first needed.

    Args:
        address: A cluster's address; None starts one on this machine for this process.
        workers: Workers of each stage; None is as many as the machine or cluster can hold.
        stall_seconds: How long to wait for any shard under way to finish; None is for ever.
        working_dir: A folder of code that the workers are to run in the place of what their node
            has; None leaves them that.
    """

    def __init__(
        self,
        address: str | None = None,
        workers: int | None = None,
        stall_seconds: float | None = None,
        working_dir: str | None = None,
    ) -> None:
        self.address = address or os.environ.get("RAY_ADDRESS") or "local"
        self.workers = workers
        self.stall_seconds = stall_seconds
        self.room_seconds = ROOM_SECONDS
        self.working_dir = working_dir
        self._started = False

    def start(self) -> None:
        """Connect, once; a Ray that this process already has is shared and left running."""
        if self._started or ray.is_initialized():
            return
        logging.getLogger("ray").setLevel(logging.ERROR)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        options: dict[str, Any] = {}
        if self.address == "local":  # its workers inherit the environment
            num_cpus = max(self.workers or 1, os.cpu_count() or 1)
            options = {"num_cpus": num_cpus, "include_dashboard": False}
        elif logs.is_json():
            options = {"runtime_env": {"env_vars": {logs.VARIABLE: "json"}}}
        if self.working_dir is not None:
            shipped = {"working_dir": self.working_dir, "excludes": [".git", ".venv", "runs"]}
            options["runtime_env"] = options.get("runtime_env", {}) | shipped
        with signals.kept():
            ray.init(
                address=self.address,
                logging_level=logging.ERROR,
                log_to_driver=False,
                configure_logging=False,
                **options,
            )
        self._started = True

    def stop(self) -> None:
        """Disconnect, if connected."""
        if self._started:
            ray.shutdown()
            self._started = False

    @property
    def can_grow(self) -> bool:
        """Whether nodes may join; the Ray of this machine alone stays as it is."""
        return self.address != "local"

    def stands(self) -> bool:
        """Whether the Ray that this process is connected to still has this machine."""
        here = ray.get_runtime_context().get_node_id()
        return any(node["Alive"] and node["NodeID"] == here for node in _nodes())

    def lacks(self, resources: Resources) -> str | None:
        """What no node has that a worker needs; None where one could hold a worker."""
        wanted = {"CPU": float(resources.cpus), "GPU": resources.gpus}
        wanted = {name: amount for name, amount in wanted.items() if amount}
        nodes = [node["Resources"] for node in _nodes() if node["Alive"]]
        if any(all(node.get(n, 0) >= amount for n, amount in wanted.items()) for node in nodes):
            return None
        told = ", ".join(f"{amount:g} {name}" for name, amount in wanted.items())
        most = (f"{max(node.get(n, 0) for node in nodes):g} {n}" for n in wanted) if nodes else ()
        return f"a worker takes {told}, and the largest node has {', '.join(most) or 'nothing'}"

    def slots(self, resources: Resources) -> int:
        """How many workers with these resources to run at once."""
        if self.workers is not None:
            return self.workers
        found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        slots = int(found.get("CPU", 1) // max(resources.cpus, 1))
        if resources.gpus:
            slots = min(slots, int(found.get("GPU", 0) / resources.gpus))
        return max(slots, 1)

    def options(self, resources: Resources) -> dict[str, Any]:
        """Ray's own words for them; retries stay with the driver, which knows who is to blame."""
        return {
            "num_cpus": resources.cpus,
            "num_gpus": resources.gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
        }


def _nodes() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return found
