"""Manifests that earlier versions wrote down in their runs, in today's fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.errors import PluginError
from models.objectives.registry import DEFAULT, OBJECTIVES

__all__ = ["upgraded"]


def upgraded(content: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest that a run recorded, so that it can be read whichever version wrote it.

    A switch that has become an objective is written as that, and fields without effect on the
    objective are left out. Entries of `train` that are `like` another are written out.
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
    except (KeyError, TypeError, PluginError):  # validation says so
        return whole
    for field, objective in kind.moved.items():
        if whole.pop(field, False) is True:
            whole["objective"], kind = objective, OBJECTIVES[objective]
    return {name: value for name, value in whole.items() if name not in kind.former}
