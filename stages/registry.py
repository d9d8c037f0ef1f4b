"""The stages by name, in the order of the documentation.

A stage of this repository is a line here. A stage of another package is a line in its own
pyproject.toml, in the entry point group `capfilt.stages` (docs/stage.md).
"""

from __future__ import annotations

import inspect
import typing
from typing import TYPE_CHECKING, Any

from models.plugins import Registry

if TYPE_CHECKING:
    from stages.base import Stage

__all__ = ["RESERVED", "STAGES"]

RESERVED = frozenset(
    {
        *("ablate", "compare", "completion", "demo", "evaluate", "export", "exports", "init"),
        *("name", "plan", "report", "rounds", "run", "seed", "show", "stages", "status", "train"),
        *("push", "search", "verdicts", "verify", "view"),
    }
)
"""Commands and keys of a manifest, which cannot be the name of another package's stage."""

COLUMNS = frozenset({"uid", "measured", "summarized", "taken", "crashed"})
"""Columns of every stage's file, which no stage may write itself."""


def _find_fault(name: str, loaded: Any) -> str | None:
    """Say why an object cannot be the stage of a name; None if it can."""
    from stages.base import Stage, StageConfig

    if not isinstance(loaded, type) or not issubclass(loaded, Stage):
        return "it is not a subclass of stages.base.Stage"
    if inspect.isabstract(loaded):
        return f"it lacks the methods {', '.join(sorted(loaded.__abstractmethods__))}"
    needed = ("name", "version", "config_type", "reads", "writes", "reasons")
    if missing := [one for one in needed if not hasattr(loaded, one)]:
        return f"it lacks the class attributes {', '.join(missing)}"
    if loaded.name != name:
        return f"its `name` is {loaded.name!r}; it must be {name!r}, as the entry point is called"
    config = loaded.config_type
    if not isinstance(config, type) or not issubclass(config, StageConfig):
        return "its `config_type` is not a subclass of stages.base.StageConfig"
    if "__dataclass_fields__" not in vars(config):
        return f"{config.__name__} lacks @dataclass(frozen=True, kw_only=True)"
    try:
        typing.get_type_hints(config)
    except Exception as error:
        return f"the types of {config.__name__} cannot be read: {type(error).__name__}: {error}"
    return _fault_of_names(loaded)


def _fault_of_names(stage: type[Stage[Any]]) -> str | None:
    """Say which name in a stage's class attributes is unknown or taken; None if all are good."""
    from stages.base import is_numeric

    columns, fields = stage.columns(), stage.config_type.__dataclass_fields__
    if taken := COLUMNS & set(columns.names):
        return f"it may not write the columns {', '.join(sorted(taken))}; rename them"
    numbers = {column.name for column in columns if is_numeric(column.type)}
    for reason, (field, column) in stage.thresholds.items():
        if reason not in stage.reasons or field not in fields or column not in numbers:
            return (
                "its `thresholds` must map a reason to a field of its config and a column of "
                f"numbers that it writes, not {reason!r} to {field!r} and {column!r}"
            )
    if unknown := set(stage.histograms or ()) - set(columns.names):
        return f"its `histograms` names columns that it does not write: {', '.join(unknown)}"
    return None


STAGES: Registry[Stage[Any]] = Registry(
    "stage",
    "capfilt.stages",
    {
        "download": "stages.download.stage:DownloadStage",
        "clean": "stages.clean:CleanStage",
        "embed": "stages.embed:EmbedStage",
        "dedup": "stages.dedup.stage:DedupStage",
        "select": "stages.select:SelectStage",
        "caption": "stages.caption:CaptionStage",
        "filter": "stages.filter.stage:FilterStage",
        "review": "stages.review:ReviewStage",
    },
    _find_fault,
    RESERVED,
)
"""The stages that measure and judge rows. Export, which writes the pairs, is not one of them."""
