"""The errors that end a command, each with the exit status that the command ends with.

    CapfiltError             1  something failed; the same command resumes
      InputError             2  a manifest, list, option or run is wrong; the message says the fix
        ManifestError
        PluginError
        YamlError
        PoolMismatchError
      DamagedError           3  a file is not as it was written
        ChecksumError
      UnreadableError        1  the disk or the storage does not give a file
      IncompleteError        1  an earlier stage is not finished
      RunBusyError           1  another process works on the run
      StageError             1  a stage or a training failed; or the status of its cause
      ClusterError           1  Ray does not start, or cannot be reached
      WorkerPoolError        1  workers cannot go on
      StageUnavailableError  1  the model or the server of a stage is missing or has changed
      ShardError             1
      BrokenStageError       1
      ContractError          1  a stage breaks its interface
      ConservationError      1  a stage loses rows or makes some up

The errors of single rows (`ImageError`, `FetchError` and others) are defined where they are raised:
they become the reason of the row and end no command.
"""

from __future__ import annotations

__all__ = [
    "BrokenStageError",
    "CapfiltError",
    "ChecksumError",
    "ClusterError",
    "ConservationError",
    "ContractError",
    "DamagedError",
    "IncompleteError",
    "InputError",
    "ManifestError",
    "PluginError",
    "PoolMismatchError",
    "RunBusyError",
    "ShardError",
    "StageError",
    "StageUnavailableError",
    "UnreadableError",
    "WorkerPoolError",
    "YamlError",
    "exit_status_of",
]


class CapfiltError(Exception):
    """Something failed; the same command resumes.

    Attributes:
        exit_status: The exit status of a command that ends with this error.
    """

    exit_status = 1


class InputError(CapfiltError, ValueError):
    """The user's input is wrong; the message names the file, stage or field and the fix."""

    exit_status = 2


class ManifestError(InputError):
    """The manifest is wrong; the message has a line for each mistake: file, field and fix."""


class PluginError(InputError):
    """An entry point cannot be used; the message names it, its distribution and the fix."""


class YamlError(InputError):
    """A file is no YAML that capfilt reads."""


class PoolMismatchError(InputError):
    """The run holds the pool of another list, or one made with other settings."""


class DamagedError(CapfiltError, ValueError):
    """A file is not as it was written, or does not fit the others.

    Attributes:
        parts: The path of the file in its run; empty for a file outside of a run.
        is_derived: Whether a run makes the file again, just as it was, once it is removed.
    """

    exit_status = 3

    def __init__(self, message: str, parts: tuple[str, ...] = (), is_derived: bool = False) -> None:
        super().__init__(message, parts, is_derived)  # all of them, so that pickle keeps them
        self.parts = parts
        self.is_derived = is_derived

    def __str__(self) -> str:
        return str(self.args[0])


class ChecksumError(DamagedError):
    """The content of a file has no checksum, or does not match it."""


class UnreadableError(CapfiltError):
    """The disk or the storage does not give a file; the message names it."""


class IncompleteError(CapfiltError, ValueError):
    """A stage was asked for while what it reads is not complete."""


class RunBusyError(CapfiltError, RuntimeError):
    """Another process holds the run."""


class StageError(CapfiltError, RuntimeError):
    """A stage or a training failed; the message says where, why, and how to resume.

    Args:
        message: The message.
        cause: The error behind it; if it is a `CapfiltError`, the command ends with its status.
    """

    def __init__(self, message: str, cause: BaseException | None = None) -> None:
        super().__init__(message)
        if isinstance(cause, CapfiltError):
            self.exit_status = cause.exit_status


class ClusterError(CapfiltError, RuntimeError):
    """Ray does not start, or a cluster cannot be reached; nothing of the run has changed."""


class WorkerPoolError(CapfiltError, RuntimeError):
    """The workers of a stage cannot do any further shard."""


class StageUnavailableError(CapfiltError, RuntimeError):
    """A stage can measure no row now; the message says why and what to do."""


class ShardError(CapfiltError, RuntimeError):
    """One shard failed; the others may go on."""


class BrokenStageError(CapfiltError, RuntimeError):
    """A stage ends the process of its worker, whatever rows it is given."""


class ContractError(CapfiltError, ValueError):
    """A stage measured other rows or columns than it promises."""


class ConservationError(CapfiltError, RuntimeError):
    """A stage has lost rows, or made some up."""


def exit_status_of(error: BaseException) -> int | None:
    """The exit status of a command that ends with an error; None if the error is a bug.

    Configs and readers of lists raise Python's own errors for wrong input: ValueError and
    FileNotFoundError. Other errors of the machine and of libraries are failures.
    """
    if isinstance(error, CapfiltError):
        return error.exit_status
    if isinstance(error, ValueError | FileNotFoundError):
        return InputError.exit_status
    if isinstance(error, OSError | RuntimeError | MemoryError):
        return CapfiltError.exit_status
    # botocore's own errors, such as missing credentials, have no common base class.
    if type(error).__module__.startswith("botocore."):
        return CapfiltError.exit_status
    return None
