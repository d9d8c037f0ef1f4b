"""Converts the manifest that an earlier version recorded in a run to today's fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.errors import PluginError
from models.objectives.registry import DEFAULT, OBJECTIVES

__all__ = ["upgraded"]


def upgraded(content: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a recorded manifest to today's fields.

    A switch that became an objective is replaced by this objective. Fields that an objective no
    longer has are removed. An entry of `train` with `like` gets the fields of the other entry.
    """
    train = content.get("train")
    if not isinstance(train, dict):
        return dict(content)
    return {**content, "train": {name: _entry(fields, train) for name, fields in train.items()}}


def _entry(fields: Any, others: Mapping[str, Any]) -> Any:
    if not isinstance(fields, dict):
        return fields
    like = others.get(fields["like"]) if isinstance(fields.get("like"), str) else None
    whole = {**like, **fields} if isinstance(like, dict) else dict(fields)
    if isinstance(like, dict):
        del whole["like"]
    try:
        kind = OBJECTIVES[whole.get("objective", DEFAULT)]
    except (KeyError, TypeError, PluginError):  # validation reports it
        return whole
    for field, objective in kind.moved.items():
        if whole.pop(field, False) is True:
            whole["objective"], kind = objective, OBJECTIVES[objective]
    return {name: value for name, value in whole.items() if name not in kind.former}
