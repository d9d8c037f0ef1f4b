"""The file of decisions, written anew whole at every decision."""

from __future__ import annotations

import json
import posixpath
import threading

from pipeline.storage.run import Run
from stages.review import Decision, Decisions, read_decisions, sealed

__all__ = ["Ledger"]


class Ledger:
    """The decisions of a file, each of which stands on disk once `decide` is back.

    The lines are sorted, so equal decisions are equal files, in whatever order they were taken.

    Args:
        file: As `ReviewConfig.file`.

    Raises:
        ValueError: The file holds something else.
    """

    def __init__(self, file: str) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._decisions = read_decisions(file)

    @property
    def decisions(self) -> Decisions:
        """A copy of all of them."""
        with self._lock:
            return dict(self._decisions)

    def decide(self, key: tuple[str, str], decision: Decision | None) -> None:
        """Set, or with None take back, the decision on a caption of an image.

        Raises:
            OSError: It cannot be written; what stood before stands.
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
