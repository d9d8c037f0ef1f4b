"""Who holds a run: a file that a live holder keeps changing, so that a dead one is found out."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

__all__ = ["BEAT_SECONDS", "LEASE_SECONDS", "RunBusyError", "hold", "is_alive"]

logger = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
"""How often a holder changes its file."""

LEASE_SECONDS = 60.0
"""For how long a file must not change before a holder that cannot be asked is taken for dead: as
long as a shared file system may go on showing what a file said before."""


class RunBusyError(RuntimeError):
    """Another process holds the run."""


@contextlib.contextmanager
def hold(
    path: str, what: str, *, beat: float = BEAT_SECONDS, lease: float = LEASE_SECONDS
) -> Iterator[None]:
    """Hold what a file stands for, and keep the file changing until the block ends.

    A holder on this machine is alive or not, and is known at once. Another one is watched: if its
    file changes it is alive, and if it does not for `lease` seconds of this process's own
    monotonic clock, it is dead and is followed. No clock is compared with another.

    Args:
        path: The file, on a file system that all who may hold it share.
        what: What to call it in a message.
        beat: Seconds between two changes.
        lease: Seconds without a change after which a holder is dead.

    Raises:
        RunBusyError: A live process holds it; or, as the block ends, another one has taken it
            over while this process stood still for longer than `lease`.
    """
    mine = _identity()
    own = f"{path}.{os.getpid()}-{mine['token']}.partial"
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(own, "w+b", buffering=0) as file:
        try:
            file.write(_content(mine, 0))
            while True:
                try:
                    os.link(own, path)  # atomic, and never seen empty
                    break
                except FileExistsError:
                    _follow(path, what, lease)
        finally:
            os.unlink(own)
        keeper = _Keeper(file, path, mine, beat)
        keeper.start()
        try:
            yield
        except KeyboardInterrupt:
            if keeper.is_lost:
                raise RunBusyError(
                    f"{what} was taken over by another process while this one stood still; "
                    "what it has committed stands"
                ) from None
            raise
        finally:
            keeper.stop()
            if not keeper.is_lost:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)


class _Keeper(threading.Thread):
    """Changes the file of a holder now and then, and interrupts it if the file is no longer its."""

    def __init__(self, file: Any, path: str, mine: dict[str, Any], beat: float) -> None:
        super().__init__(name="lease", daemon=True)
        self.file, self.path, self.mine, self.beat = file, path, mine, beat
        self.is_lost = False
        self._ended = threading.Event()

    def run(self) -> None:
        number = 0
        while not self._ended.wait(self.beat):
            number += 1
            with contextlib.suppress(OSError):  # a full disk loses a beat, not the run
                os.pwrite(self.file.fileno(), _content(self.mine, number), 0)
            with contextlib.suppress(OSError):
                if _read(self.path).get("token") != self.mine["token"]:
                    self.is_lost = True
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                    return

    def stop(self) -> None:
        self._ended.set()
        self.join()


def _follow(path: str, what: str, lease: float) -> None:
    """Remove the file of a holder that is dead.

    Raises:
        RunBusyError: It is alive.
    """
    try:
        found = _read(path)
    except FileNotFoundError:
        return
    if _is_dead(found) or (_is_elsewhere(found) and _stands_still(path, what, found, lease)):
        _remove(path, found)
        return
    pid, host, since = (found.get(key, "?") for key in ("pid", "host", "since"))
    with contextlib.suppress(TypeError, ValueError, OverflowError, OSError):
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(since)))
    raise RunBusyError(
        f"{what} is in use by process {pid} on {host} since {since}. Wait for it, or end it"
    )


def _stands_still(path: str, what: str, found: dict[str, Any], lease: float) -> bool:
    """Whether a file stays as it is for a lease; False as soon as it changes."""
    logger.warning(
        "%s is held by process %s on %s; waiting up to %.0f s to see whether that is alive",
        what,
        found.get("pid", "?"),
        found.get("host", "?"),
        lease,
    )
    end = time.monotonic() + lease
    while time.monotonic() < end:
        time.sleep(min(0.5, lease / 10))
        try:
            if _read(path) != found:
                return False
        except FileNotFoundError:
            return True
    return True


def _remove(path: str, judged: dict[str, Any]) -> None:
    """Remove a file that was judged, and not that of another who was quicker."""
    aside = f"{path}.{os.getpid()}-{uuid.uuid4().hex[:8]}.partial"
    try:
        os.rename(path, aside)  # of several who judged it, one gets it
    except FileNotFoundError:
        return
    if _read(aside).get("token") != judged.get("token"):
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    os.unlink(aside)


def _identity() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": int(time.time()),  # to be told, never to be compared
        "machine": _machine(),
        "born": _born(os.getpid()),
        "token": uuid.uuid4().hex[:16],
    }


def _content(identity: dict[str, Any], beat: int) -> bytes:
    return json.dumps({**identity, "beat": f"{beat:012d}"}).encode()


def _read(path: str) -> dict[str, Any]:
    """What a file says; empty where it says nothing that a holder would."""
    with open(path, "rb") as file:
        content = file.read()
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _machine() -> str:
    """This boot of this machine, and its space of process ids: containers have their own."""
    parts = []
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        parts.append(file.read().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts) or socket.gethostname()


def _born(pid: int) -> str | None:
    """When a process began, in the kernel's ticks: process ids come again, these do not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _is_elsewhere(found: dict[str, Any]) -> bool:
    return found.get("machine") != _machine()


def _is_dead(found: dict[str, Any]) -> bool:
    """Whether a holder is known to be dead: one of this machine that is gone."""
    pid = found.get("pid")
    if _is_elsewhere(found) or not isinstance(pid, int):
        return False
    return not is_alive(pid) or found.get("born") != _born(pid)


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
