"""Who holds a run: a file that a live holder keeps changing, so that a dead one is found out."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from models.errors import RunBusyError

__all__ = [
    "BEAT_SECONDS",
    "LEASE_SECONDS",
    "is_alive",
    "is_dead",
    "lock_local",
    "lock_remote",
    "parsed",
]

logger = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
"""How often a holder changes its file."""

FAR_BEAT_SECONDS = 10.0
"""The same where every change is a request to object storage."""

LEASE_SECONDS = 60.0
"""For how long a file must not change before a holder that cannot be asked is taken for dead: as
long as a shared file system may go on showing what a file said before."""

NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system says that has no hard links: exFAT, vfat, some of FUSE."""

LOST = signal.SIGUSR2
"""What interrupts a holder: background jobs of a shell ignore SIGINT."""


@contextlib.contextmanager
def lock_local(
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
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    while True:
        try:
            made = _made(path, mine)
            break
        except FileExistsError:
            _follow(path, what, lease)
        except OSError as error:
            error.filename = path  # what the system names is the partial one, or none
            raise
    with made as file:

        def change(content: bytes) -> None:
            os.pwrite(file.fileno(), content, 0)

        keeper = Heartbeat(change, lambda: _read(path), mine, beat)
        with _kept(what, keeper, lambda: os.unlink(path)):
            yield


@contextlib.contextmanager
def lock_remote(
    fs: Any, path: str, what: str, *, beat: float = FAR_BEAT_SECONDS, lease: float = LEASE_SECONDS
) -> Iterator[None]:
    """Hold what an object on object storage stands for, as `hold` does what a file stands for.

    The object is made by a put that fails where there is one (If-None-Match on S3). Of two that
    follow a dead holder at once, one may take the object from the other, which then finds out
    within a beat and stops.

    Args:
        fs: The storage.
        path: The object.
        what: What to call it in a message.
        beat: Seconds between two changes.
        lease: Seconds without a change after which a holder is dead.

    Raises:
        RunBusyError: As `hold` does.
    """

    def read() -> dict[str, Any]:
        return parsed(fs.cat_file(path))

    mine = _identity()
    while True:
        try:
            fs.pipe_file(path, _content(mine, 0), mode="create")
            break
        except FileExistsError:
            try:
                found = read()
                if found.get("token") == mine["token"]:  # only the answer to the put was lost
                    break
                _check_dead(found, read, what, lease)
                if read().get("token") == found.get("token"):
                    fs.rm_file(path)
            except FileNotFoundError:
                continue
    keeper = Heartbeat(lambda content: fs.pipe_file(path, content), read, mine, beat)
    with _kept(what, keeper, lambda: fs.rm_file(path)):
        yield


@contextlib.contextmanager
def _kept(what: str, keeper: Heartbeat, remove: Callable[[], Any]) -> Iterator[None]:
    """Run a keeper while the block runs, and remove what it keeps.

    Raises:
        RunBusyError: The keeper has lost what it keeps, and the block has raised nothing else.
    """
    is_main = threading.current_thread() is threading.main_thread()
    former = signal.signal(LOST, signal.default_int_handler) if is_main else None
    keeper.start()
    try:
        try:
            yield
        finally:
            keeper.stop()
    except KeyboardInterrupt:
        if not keeper.is_lost:
            raise
    finally:
        if is_main:
            signal.signal(LOST, former)
        if not keeper.is_lost:
            with contextlib.suppress(FileNotFoundError):
                remove()
    if keeper.is_lost:
        raise RunBusyError(
            f"{what} was taken over by another process while this one stood still; "
            "what it has committed stands"
        ) from None


class Heartbeat(threading.Thread):
    """Changes what a holder holds now and then, and interrupts it if that is no longer its.

    A holder that is not the main thread cannot be interrupted; it is told as its block ends.
    """

    def __init__(
        self,
        change: Callable[[bytes], Any],
        read: Callable[[], dict[str, Any]],
        mine: dict[str, Any],
        beat: float,
    ) -> None:
        super().__init__(name="lease", daemon=True)
        self.change, self.read, self.mine, self.beat = change, read, mine, beat
        self.is_lost = False
        self.holder = threading.current_thread()
        self._ended = threading.Event()

    def run(self) -> None:
        number = 0
        while not self._ended.wait(self.beat):
            number += 1
            self._look()
            if self.is_lost:
                if self.holder is threading.main_thread():
                    signal.pthread_kill(self.holder.ident or 0, LOST)
                return
            with contextlib.suppress(Exception):
                self.change(_content(self.mine, number))

    def stop(self) -> None:
        """End it, with a last look: another may have followed since the last beat."""
        self._ended.set()
        self.join()
        self._look()

    def _look(self) -> None:
        # A full disk, or storage that is not there, loses a beat and not the run.
        with contextlib.suppress(Exception):
            self.is_lost |= self.read().get("token") != self.mine["token"]


def _made(path: str, mine: dict[str, Any]) -> BinaryIO:
    """The file of this holder, new, and whole before anybody sees it where there are hard links.

    Where there are none, another may find it empty for as long as it takes to write it.

    Raises:
        FileExistsError: There is one.
        OSError: It cannot be written; there is none then.
    """
    own = f"{path}.{os.getpid()}-{mine['token']}.partial"
    try:
        file = _written(own, mine)
        try:
            os.link(own, path)
            return file
        except OSError as error:
            file.close()
            if error.errno not in NO_LINKS:
                raise
    finally:
        with contextlib.suppress(OSError):
            os.unlink(own)
    return _written(path, mine)


def _written(path: str, mine: dict[str, Any]) -> BinaryIO:
    """A new file that says who holds it."""
    file = open(path, "x+b", buffering=0)  # noqa: SIM115
    try:
        file.write(_content(mine, 0))
    except OSError:
        file.close()
        os.unlink(path)
        raise
    return file


def _follow(path: str, what: str, lease: float) -> None:
    """Remove the file of a holder that is dead.

    Raises:
        RunBusyError: It is alive.
    """
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        found = parsed(file.read())
        _check_dead(found, lambda: _read(path), what, lease)
        _remove(path, found, file)


def _check_dead(
    found: dict[str, Any], read: Callable[[], dict[str, Any]], what: str, lease: float
) -> None:
    """Find out that a holder is dead, or that what said nothing was only being written.

    Raises:
        RunBusyError: It is alive.
    """
    if is_dead(found) or (_is_elsewhere(found) and _stands_still(read, what, found, lease)):
        return
    if not found:
        return
    pid, host, since = (found.get(key, "?") for key in ("pid", "host", "since"))
    with contextlib.suppress(TypeError, ValueError, OverflowError, OSError):
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(since)))
    raise RunBusyError(
        f"{what} is in use by process {pid} on {host} since {since}. Wait for it, or end it"
    )


def _stands_still(
    read: Callable[[], dict[str, Any]], what: str, found: dict[str, Any], lease: float
) -> bool:
    """Whether what is read stays as it is for a lease; False as soon as it changes."""
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
            if read() != found:
                return False
        except FileNotFoundError:
            return True
    return True


def _remove(path: str, judged: dict[str, Any], seen: BinaryIO) -> None:
    """Remove a file that was judged, and not that of another who was quicker.

    It is still open as it was seen then, so that no other file can be taken for it.
    """
    with contextlib.suppress(FileNotFoundError), open(path, "r+b") as file:
        with contextlib.suppress(OSError):  # some shared file systems have no such lock
            fcntl.flock(file, fcntl.LOCK_EX)  # of several who judged it, one after the other
        is_there = os.path.samestat(os.stat(path), os.fstat(seen.fileno()))
        if is_there and parsed(file.read()).get("token") == judged.get("token"):
            os.unlink(path)


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
    with open(path, "rb") as file:
        return parsed(file.read())


def parsed(content: bytes) -> dict[str, Any]:
    """What a file says of its holder; empty where it says nothing that a holder would."""
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


def _stat(pid: int) -> list[str] | None:
    """What the kernel tells of a process behind its name, its state first."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return None


def _born(pid: int) -> str | None:
    """When a process began, in the kernel's ticks: process ids come again, these do not."""
    stat = _stat(pid)
    return stat[19] if stat else None


def _is_elsewhere(found: dict[str, Any]) -> bool:
    return found.get("machine") != _machine()


def is_dead(found: dict[str, Any]) -> bool:
    """Whether a holder is known to be dead: one of this machine that is gone."""
    pid = found.get("pid")
    if _is_elsewhere(found) or not isinstance(pid, int):
        return False
    return not is_alive(pid) or found.get("born") != _born(pid)


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs: one that nobody has waited for yet does not."""
    if pid <= 0:
        return False
    if stat := _stat(pid):
        return stat[0] not in "ZX"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
