"""Ray on this machine or on a cluster: started when it is needed, and asked for its resources."""

from __future__ import annotations

import logging
import os
from typing import Any

import ray

from models.errors import ClusterError
from pipeline.execution import logs, ray_start, signals
from stages.base import Resources

__all__ = ["ROOM_SECONDS", "Cluster"]

ROOM_SECONDS = 1800.0
"""Seconds without room for any worker after which a stage gives up."""


class Cluster:
    """A connection to Ray, made when it is first needed.

    Args:
        address: A cluster's address; None starts Ray on this machine for this process.
        workers: Workers of each stage; None for as many as the machine or cluster has room for.
        stall_seconds: Seconds without a finished shard after which a stage gives up; None for no
            limit.
        working_dir: A folder of code to ship to the workers; None to run the code on their nodes.
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
        self._folder: str | None = None

    def start(self) -> None:
        """Connect to Ray, once. A Ray that this process has started elsewhere is shared.

        Raises:
            ClusterError: Ray does not start, or the cluster cannot be reached.
        """
        if self._started or ray.is_initialized():
            return
        logging.getLogger("ray").setLevel(logging.ERROR)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        options: dict[str, Any] = {}
        if self.address == "local":  # the workers inherit the environment
            num_cpus = max(self.workers or 1, os.cpu_count() or 1)
            options = {"num_cpus": num_cpus, "include_dashboard": False}
        elif logs.is_json():
            options = {"runtime_env": {"env_vars": {logs.VARIABLE: "json"}}}
        if self.working_dir is not None:
            shipped = {"working_dir": self.working_dir, "excludes": [".git", ".venv", "runs"]}
            options["runtime_env"] = options.get("runtime_env", {}) | shipped
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        options |= quiet | {"configure_logging": False}
        with signals.sigterm_kept():
            if self.address == "local":
                self._folder = ray_start.make_folder()
                try:
                    ray_start.start(self._folder, **options)
                except ClusterError:
                    self.stop()
                    raise
            else:
                ray_start.connect(self.address, **options)
        self._started = True

    def stop(self) -> None:
        """Disconnect from the Ray that `start` connected to, and remove its folder."""
        if self._started:
            ray.shutdown()
            self._started = False
        if self._folder is not None:
            ray_start.remove_folder(self._folder)
            self._folder = None

    @property
    def can_grow(self) -> bool:
        """Whether nodes may join; they cannot join the Ray of a single machine."""
        return self.address != "local"

    def is_alive(self) -> bool:
        """Whether this machine is still a node of the Ray that this process is connected to."""
        here = ray.get_runtime_context().get_node_id()
        return any(node["Alive"] and node["NodeID"] == here for node in _nodes())

    def lacks(self, resources: Resources) -> str | None:
        """Say what a worker needs and no node has; None if some node has room for a worker."""
        needed = {"CPU": float(resources.cpus), "GPU": resources.gpus}
        needed = {name: amount for name, amount in needed.items() if amount}
        nodes = [node["Resources"] for node in _nodes() if node["Alive"]]
        if any(all(node.get(n, 0) >= amount for n, amount in needed.items()) for node in nodes):
            return None
        amounts = ", ".join(f"{amount:g} {name}" for name, amount in needed.items())
        most = (f"{max(node.get(n, 0) for node in nodes):g} {n}" for n in needed) if nodes else ()
        return f"a worker takes {amounts}, and the largest node has {', '.join(most) or 'nothing'}"

    def slots(self, resources: Resources) -> int:
        """How many workers with these resources to run at a time."""
        if self.workers is not None:
            return self.workers
        total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        slots = int(total.get("CPU", 1) // max(resources.cpus, 1))
        if resources.gpus:
            slots = min(slots, int(total.get("GPU", 0) / resources.gpus))
        return max(slots, 1)

    def options(self, resources: Resources) -> dict[str, Any]:
        """Ray's options for a worker. Ray does not retry: the driver does, shard by shard."""
        return {
            "num_cpus": resources.cpus,
            "num_gpus": resources.gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
        }


def _nodes() -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return nodes
