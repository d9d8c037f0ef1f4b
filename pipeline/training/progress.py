"""How far a training has come: what its checkpoint says beside the tensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from pipeline.training.course import Turn
from pipeline.training.optim import Skipped

__all__ = ["Best", "Progress"]


@dataclass
class Best:
    """The best validation so far.

    Attributes:
        step: Its step; 0 before the first validation.
        value: Of the metric.
        since: Validations since then.
    """

    step: int = 0
    value: float = -math.inf
    since: int = 0

    def add(self, step: int, value: float) -> bool:
        """Take note of a validation, and say whether it is the best so far."""
        if value > self.value:
            self.step, self.value, self.since = step, value, 0
            return True
        self.since += 1
        return False


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        step: Steps that are done.
        images: Images that were seen in them, on all ranks.
        shift: What is added to `step` so that epochs are counted in batches of the present size.
        skipped: Steps that were left out.
        best: The best validation.
        course: The changes of course.
    """

    step: int = 0
    images: int = 0
    shift: int = 0
    skipped: Skipped = field(default_factory=Skipped)
    best: Best = field(default_factory=Best)
    course: list[Turn] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        """The same as plain values, for `of`."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, state: Mapping[str, Any], batch_size: int) -> Self:
        """The progress that a checkpoint tells of.

        Args:
            state: Of the checkpoint; one of an earlier version has `step` alone.
            batch_size: Of the training that wrote it.
        """
        return cls(
            step=state["step"],
            images=state.get("images", state["step"] * batch_size),
            shift=state.get("shift", 0),
            skipped=Skipped(**state.get("skipped", {})),
            best=Best(**state.get("best", {})),
            course=[Turn(**turn) for turn in state.get("course", ())],
        )
