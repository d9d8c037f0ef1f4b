"""Signals that end a command like Ctrl-C: SIGTERM from batch systems, SIGHUP from terminals."""

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

__all__ = ["SIGNALS", "Interrupt", "interruptible", "sigterm_kept"]

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@dataclass
class Interrupt:
    """The signal that ended a block of `interruptible`.

    Attributes:
        number: Its number; 0 if none came.
    """

    number: int = 0


@contextlib.contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Raise KeyboardInterrupt in the block when one of `SIGNALS` comes; later ones do nothing.

    A signal that is ignored, such as SIGHUP under nohup, stays ignored. In threads other than the
    main one this does nothing.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def end(number: int, frame: FrameType | None) -> None:
        if interrupt.number:
            return
        interrupt.number = number
        _leave_terminal()
        raise KeyboardInterrupt

    former = {one: signal.getsignal(one) for one in SIGNALS}
    for one, handler in former.items():
        if handler is not signal.SIG_IGN:
            signal.signal(one, end)
    try:
        yield interrupt
    finally:
        for one, handler in former.items():
            signal.signal(one, handler)


@contextlib.contextmanager
def sigterm_kept() -> Iterator[None]:
    """Restore the handler of SIGTERM after the block: Ray sets its own when it starts."""
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
    """Redirect stdout and stderr to /dev/null if their terminal is gone."""
    for stream in (1, 2):
        try:
            termios.tcgetattr(stream)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream)
                os.close(nowhere)
