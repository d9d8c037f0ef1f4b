"""Starting Ray on this machine: its folder, its token, one retry, and why it did not start.

    TMP/capfilt-PID-RANDOM/   logs and sockets of the Ray of one command; removed when it ends

The token that guards Ray's ports is in the environment of Ray's processes and in no file, so that
nothing is written to the home directory.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import secrets
import shutil
import tempfile
import time
import types
from collections.abc import Iterator
from typing import Any

import ray

from models.errors import ClusterError
from pipeline.storage.lock import is_alive

__all__ = ["connect", "make_folder", "remove_folder", "start"]

PATIENCE = 4
"""How many times longer than 30 s Ray may take for its second start."""

STORE_BYTES = 1 << 30
"""Size of Ray's store of objects where there is no /dev/shm; it takes as much as is in it."""

LOGS_BYTES = 1 << 20
"""Free space without which Ray is not started: its logs and sockets take some hundred kB."""

LONGEST = 107 - len("/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store")
"""The most characters of the folder's path; a longer name is none of a Unix socket."""

OWN = re.compile(r"capfilt-(\d+)-[^/]+$")


def start(folder: str, **options: Any) -> None:
    """Start Ray on this machine; if that fails, once more with a longer time.

    Its objects are in /dev/shm, or in its folder if there is none that can be written to.

    Args:
        folder: See `make_folder`.
        options: Of `ray.init`.

    Raises:
        ClusterError: Ray does not start; the message names the cause and the fix in one line.
    """
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if not os.access("/dev/shm", os.W_OK):
        options |= {"_plasma_directory": folder, "object_store_memory": STORE_BYTES}
    try:
        with _without_unused_processes():
            try:
                ray.init(address="local", _temp_dir=folder, **options)
            except Exception:  # Ray has no class for it
                ray.shutdown()
                with _more_time():
                    ray.init(address="local", _temp_dir=folder, **options)
    except Exception as error:
        ray.shutdown()
        raise ClusterError(_explain(error, folder)) from None


def connect(address: str, **options: Any) -> None:
    """Connect to a cluster.

    Raises:
        ClusterError: It cannot be reached.
    """
    try:
        ray.init(address=address, **options)
    except Exception as error:
        ray.shutdown()
        raise ClusterError(
            f"the Ray cluster at {address} cannot be reached: {_first_line(error)}. Check "
            "--address (or RAY_ADDRESS), and that RAY_AUTH_MODE and RAY_AUTH_TOKEN are those of "
            "the cluster"
        ) from None


def make_folder() -> str:
    """Make the folder of Ray, and remove those of this program's dead processes.

    It is in RAY_TMPDIR; without it in the temporary directory, or in /tmp if the path of that is
    too long for a socket.

    Raises:
        ClusterError: No such folder can be made.
    """
    own = os.environ.get("RAY_TMPDIR")
    places = [own] if own else list(dict.fromkeys((tempfile.gettempdir(), "/tmp")))
    why = "its path is too long for a socket"
    for place in places:
        for old in glob.glob(os.path.join(glob.escape(place), "capfilt-*")):
            owner = OWN.search(old)
            if owner and not is_alive(int(owner[1])):
                remove_folder(old)
        if len(os.path.join(place, f"capfilt-{os.getpid()}-12345678")) > LONGEST:
            continue
        try:
            return _make_roomy_folder(place)
        except OSError as error:
            why = str(error.strerror).lower()
    raise ClusterError(
        f"Ray cannot start: no folder for its logs and sockets can be made in {places[0]}: {why}. "
        "Set RAY_TMPDIR to a folder with a short path and some free space"
    )


def _make_roomy_folder(place: str) -> str:
    """Make a folder whose disk has room for Ray's logs; else raise an OSError, and leave none."""
    folder = tempfile.mkdtemp(prefix=f"capfilt-{os.getpid()}-", dir=place)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(LOGS_BYTES))
    except OSError:
        remove_folder(folder)
        raise
    return folder


def remove_folder(folder: str) -> None:
    """Remove a folder of `make_folder`; processes that are ending may still write to it."""
    for _ in range(3):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder):
            return


@contextlib.contextmanager
def _without_unused_processes() -> Iterator[None]:
    """Do not start what serves a cluster only, for which Ray has no setting.

    The autoscaler asks for nodes, which cannot join; the log monitor sends the workers' output to
    drivers, which do not show it; the dashboard's process runs even without the dashboard. Together
    they take 2.5 s of a core.
    """
    from ray._private.node import Node

    unused = ("start_monitor", "start_log_monitor", "start_api_server")
    kept = {name: vars(Node)[name] for name in unused if name in vars(Node)}
    for name in kept:
        setattr(Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(Node, name, method)


@contextlib.contextmanager
def _more_time() -> Iterator[None]:
    """Let the raylet take longer than the 30 s that Ray waits, for which it has no setting."""
    from ray._private import node

    clock = types.SimpleNamespace(**vars(time))
    clock.monotonic = lambda: time.monotonic() / PATIENCE
    vars(node)["time"] = clock
    try:
        yield
    finally:
        vars(node)["time"] = time


def _explain(error: Exception, folder: str) -> str:
    """Why Ray did not start on this machine, and what to do, in one line."""
    why, place = _first_line(error), os.path.dirname(folder)
    if shutil.disk_usage(folder).free < 100 << 20:
        return (
            f"Ray does not start: {place} has less than 100 MB of free space. Make room there, or "
            "set RAY_TMPDIR to another folder"
        )
    return (
        f"Ray does not start, also not within {30 * PATIENCE} s: {why}. Nothing of the run has "
        "changed. Give the same command again when the machine is less busy; check that ports on "
        "127.0.0.1 can be opened, and that RAY_AUTH_MODE, RAY_TMPDIR and RAY_ADDRESS are as you "
        "want them"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0].split('. ')[0].rstrip('.')}"
