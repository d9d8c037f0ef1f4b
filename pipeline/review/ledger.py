"""Stores decisions in a file, which is rewritten at every decision."""

from __future__ import annotations

import json
import posixpath
import threading

from pipeline.storage.run import Run
from stages.review import Decision, Decisions, read_decisions, sealed

__all__ = ["Ledger"]


class Ledger:
    """The decisions of a file; a decision is on disk when `decide` returns.

    The lines are sorted, so the file does not depend on the order of decisions.

    Args:
        file: See `ReviewConfig.file`.

    Raises:
        ValueError: The file is not a file of decisions.
    """

    def __init__(self, file: str) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._decisions = read_decisions(file)

    @property
    def decisions(self) -> Decisions:
        """A copy of all decisions."""
        with self._lock:
            return dict(self._decisions)

    def decide(self, key: tuple[str, str], decision: Decision | None) -> None:
        """Set the decision on a caption of an image; None removes it.

        Raises:
            OSError: The file cannot be written, and is unchanged.
        """
        with self._lock:
            decisions = {k: v for k, v in self._decisions.items() if k != key}
            if decision is not None:
                decisions[key] = decision
            lines = [_line(*entry) for entry in sorted(decisions.items())]
            folder, name = posixpath.split(self._file)
            Run(folder or ".").write(sealed("".join(lines).encode()), name)
            self._decisions = decisions


def _line(key: tuple[str, str], decision: Decision) -> str:
    entry = {"uid": key[0], "caption": key[1], "verdict": decision.verdict}
    if decision.fixed is not None:
        entry["fixed"] = decision.fixed
    return json.dumps(entry, ensure_ascii=False) + "\n"
