"""The lock of a run: a file or an object that its holder changes again and again.

A lock whose file no longer changes belongs to a dead holder and is taken over.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import signal
import socket
import sys
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
"""Seconds between two changes of a lock file."""

FAR_BEAT_SECONDS = 10.0
"""Seconds between two changes of a lock on object storage, where each is a request."""

LEASE_SECONDS = 60.0
"""Seconds without a change after which a holder on another machine counts as dead. A shared file
system may show an old content of a file for almost as long."""

NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of a file system without hard links: exFAT, vfat, some of FUSE."""

LOST = signal.SIGUSR2
"""The signal that interrupts a holder; background jobs of a shell ignore SIGINT."""


@contextlib.contextmanager
def lock_local(
    path: str, what: str, *, beat: float = BEAT_SECONDS, lease: float = LEASE_SECONDS
) -> Iterator[None]:
    """Hold a lock file while the block runs, and change it every `beat` seconds.

    Whether another holder on this machine is alive is known at once. A holder on another machine
    is watched: if its file changes it is alive; if the file does not change for `lease` seconds,
    the holder is dead and its lock is taken over. The seconds are those of this process's
    monotonic clock; clocks of different machines are never compared.

    Args:
        path: The file, on a file system that all possible holders share.
        what: The name of the locked thing in messages.
        beat: Seconds between two changes.
        lease: Seconds without a change after which a holder counts as dead.

    Raises:
        RunBusyError: A live process holds the lock. Or, when the block ends: another process took
            the lock over while this one was suspended for longer than `lease`.
    """
    mine = _identity()
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    while True:
        try:
            created = _create(path, mine)
            break
        except FileExistsError:
            _remove_dead(path, what, lease)
        except OSError as error:
            error.filename = path  # the system names the partial file, or none
            raise
    with created as file:

        def change(content: bytes) -> None:
            os.pwrite(file.fileno(), content, 0)

        heartbeat = Heartbeat(change, lambda: _read(path), mine, beat)
        with _held(what, heartbeat, lambda: os.unlink(path)):
            yield


@contextlib.contextmanager
def lock_remote(
    fs: Any, path: str, what: str, *, beat: float = FAR_BEAT_SECONDS, lease: float = LEASE_SECONDS
) -> Iterator[None]:
    """Hold a lock on object storage while the block runs; see `lock_local`.

    The object is created by a put that fails if it exists (If-None-Match on S3). If two processes
    take over from a dead holder at the same time, one may take the lock from the other, which
    notices within `beat` seconds and stops.

    Args:
        fs: The storage.
        path: The object.
        what: The name of the locked thing in messages.
        beat: Seconds between two changes.
        lease: Seconds without a change after which a holder counts as dead.

    Raises:
        RunBusyError: As for `lock_local`.
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
                holder = read()
                if holder.get("token") == mine["token"]:  # only the answer to the put was lost
                    break
                _check_dead(holder, read, what, lease)
                if read().get("token") == holder.get("token"):
                    fs.rm_file(path)
            except FileNotFoundError:
                continue
    heartbeat = Heartbeat(lambda content: fs.pipe_file(path, content), read, mine, beat)
    with _held(what, heartbeat, lambda: fs.rm_file(path)):
        yield


@contextlib.contextmanager
def _held(what: str, heartbeat: Heartbeat, remove: Callable[[], Any]) -> Iterator[None]:
    """Run a heartbeat while the block runs, and remove the lock at the end.

    Raises:
        RunBusyError: The lock was lost to another process, and the block raised nothing else.
    """
    is_main = threading.current_thread() is threading.main_thread()
    former = signal.signal(LOST, signal.default_int_handler) if is_main else None
    heartbeat.start()
    try:
        try:
            yield
        finally:
            heartbeat.stop()
    except KeyboardInterrupt:
        if not heartbeat.is_lost:
            raise
    finally:
        if is_main:
            signal.signal(LOST, former)
        if not heartbeat.is_lost:
            with contextlib.suppress(FileNotFoundError):
                remove()
    if heartbeat.is_lost:
        raise RunBusyError(
            f"{what} was taken over by another process while this one stood still; "
            "what it has committed stands"
        ) from None


class Heartbeat(threading.Thread):
    """Changes a lock every `beat` seconds, and interrupts its holder once the lock is lost.

    A holder that is not the main thread cannot be interrupted; its block ends with an error.

    Args:
        change: Writes a new content of the lock.
        read: Reads the lock.
        mine: The identity of the holder, as `_identity` returns it.
        beat: Seconds between two changes.
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
            self._check()
            if self.is_lost:
                if self.holder is threading.main_thread():
                    signal.pthread_kill(self.holder.ident or 0, LOST)
                return
            with contextlib.suppress(Exception):
                self.change(_content(self.mine, number))

    def stop(self) -> None:
        """End the thread, and check once more whether another process has taken the lock over."""
        self._ended.set()
        self.join()
        self._check()

    def _check(self) -> None:
        # A full disk, or storage that does not answer, costs a beat and not the run.
        with contextlib.suppress(Exception):
            self.is_lost |= self.read().get("token") != self.mine["token"]


def _create(path: str, mine: dict[str, Any]) -> BinaryIO:
    """Create the lock file, and return it open.

    A hard link puts it in place whole. On a file system without hard links, others may see it
    empty for as long as it takes to write it.

    Raises:
        FileExistsError: The file exists.
        OSError: It cannot be written; no file is left then.
    """
    own = f"{path}.{os.getpid()}-{mine['token']}.partial"
    try:
        file = _write_new(own, mine)
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
    return _write_new(path, mine)


def _write_new(path: str, mine: dict[str, Any]) -> BinaryIO:
    """Write a new file with the identity of its holder, and return it open."""
    file = open(path, "x+b", buffering=0)  # noqa: SIM115
    try:
        file.write(_content(mine, 0))
    except OSError:
        file.close()
        os.unlink(path)
        raise
    return file


def _remove_dead(path: str, what: str, lease: float) -> None:
    """Remove a lock file whose holder is dead.

    Raises:
        RunBusyError: The holder is alive.
    """
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        holder = parsed(file.read())
        _check_dead(holder, lambda: _read(path), what, lease)
        _remove(path, holder, file)


def _check_dead(
    holder: dict[str, Any], read: Callable[[], dict[str, Any]], what: str, lease: float
) -> None:
    """Return once a holder is known to be dead, or an empty lock has got a content.

    Raises:
        RunBusyError: The holder is alive.
    """
    if is_dead(holder) or (_is_elsewhere(holder) and _stands_still(read, what, holder, lease)):
        return
    if not holder:
        return
    pid, host, since = (holder.get(key, "?") for key in ("pid", "host", "since"))
    with contextlib.suppress(TypeError, ValueError, OverflowError, OSError):
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(since)))
    command = holder.get("command")
    doing = f" (capfilt {command})" if isinstance(command, str) and command.isalpha() else ""
    hint = "; press Done on its page" if command == "review" else ""
    raise RunBusyError(
        f"{what} is in use by process {pid}{doing} on {host} since {since}. Wait for it, or end "
        f"it{hint}"
    )


def _stands_still(
    read: Callable[[], dict[str, Any]], what: str, holder: dict[str, Any], lease: float
) -> bool:
    """Whether a lock does not change for `lease` seconds; False as soon as it changes."""
    logger.warning(
        "%s is held by process %s on %s; waiting up to %.0f s to see whether it is alive",
        what,
        holder.get("pid", "?"),
        holder.get("host", "?"),
        lease,
    )
    end = time.monotonic() + lease
    while time.monotonic() < end:
        time.sleep(min(0.5, lease / 10))
        try:
            if read() != holder:
                return False
        except FileNotFoundError:
            return True
    return True


def _remove(path: str, judged: dict[str, Any], seen: BinaryIO) -> None:
    """Remove the lock file of a dead holder, but not one that another process made meanwhile.

    Args:
        path: The file.
        judged: The identity of the dead holder.
        seen: The file as it was opened then; being open, no other file can have its inode.
    """
    with contextlib.suppress(FileNotFoundError), open(path, "r+b") as file:
        with contextlib.suppress(OSError):  # some shared file systems have no such lock
            fcntl.flock(file, fcntl.LOCK_EX)  # several processes may judge it at once
        is_there = os.path.samestat(os.stat(path), os.fstat(seen.fileno()))
        if is_there and parsed(file.read()).get("token") == judged.get("token"):
            os.unlink(path)


def _identity() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": int(time.time()),  # for messages only; clocks are never compared
        "command": " ".join(sys.argv[1:2])[:20],
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
    """Parse the content of a lock: the identity of its holder; empty if it is not valid."""
    try:
        identity = json.loads(content)
    except ValueError:
        return {}
    return identity if isinstance(identity, dict) else {}


def _machine() -> str:
    """Identify this boot of this machine, and its PID namespace: containers have their own."""
    parts = []
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        parts.append(file.read().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts) or socket.gethostname()


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name, the state first; None if it is not there."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return None


def _born(pid: int) -> str | None:
    """When a process started, in the kernel's ticks: PIDs are reused, this is not."""
    stat = _stat(pid)
    return stat[19] if stat else None


def _is_elsewhere(holder: dict[str, Any]) -> bool:
    return holder.get("machine") != _machine()


def is_dead(holder: dict[str, Any]) -> bool:
    """Whether a holder is known to be dead: it ran on this machine, and is gone."""
    pid = holder.get("pid")
    if _is_elsewhere(holder) or not isinstance(pid, int):
        return False
    return not is_alive(pid) or holder.get("born") != _born(pid)


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs; a zombie does not."""
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
