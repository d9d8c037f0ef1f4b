"""Signals that end a command as Ctrl-C does: SIGTERM of batch systems, SIGHUP of terminals."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import termios
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

__all__ = ["ENDS", "Interrupt", "interruptible", "kept"]

ENDS = (signal.SIGTERM, signal.SIGHUP)


@dataclass
class Interrupt:
    """What `heeded` has heard.

    Attributes:
        number: The signal that came, 0 for none.
    """

    number: int = 0


@contextlib.contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Raise KeyboardInterrupt in the block as one of `ENDS` comes; later ones change nothing.

    A signal that is ignored, as SIGHUP is under nohup, stays so. Only the main thread hears any.
    """
    heard = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return

    def end(number: int, frame: FrameType | None) -> None:
        if heard.number:
            return
        heard.number = number
        _leave_terminal()
        raise KeyboardInterrupt

    former = {one: signal.getsignal(one) for one in ENDS}
    for one, handler in former.items():
        if handler is not signal.SIG_IGN:
            signal.signal(one, end)
    try:
        yield heard
    finally:
        for one, handler in former.items():
            signal.signal(one, handler)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Keep what SIGTERM does in spite of the block: as it starts, Ray has it end the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        if not callable(former):
            raise
        former(signal.SIGTERM, sys._getframe())
    finally:
        signal.signal(signal.SIGTERM, former)


def _leave_terminal() -> None:
    """Send nowhere what this process goes on to say to a terminal that is gone."""
    for stream in (1, 2):
        try:
            termios.tcgetattr(stream)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream)
                os.close(nowhere)
