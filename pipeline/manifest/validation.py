"""What is wrong with the fields of a config, in words: pydantic's errors and near misses."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.manifest.fields import config_in, values_of, wanted

if TYPE_CHECKING:
    import pydantic

__all__ = ["closest", "did_you_mean", "explain", "switched"]

UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
"""The types of pydantic's errors for a field that a class does not have."""


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that looks most like another, or None where none looks like it."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)


def did_you_mean(word: str, known: Iterable[str], *, else_list: bool = True) -> str:
    """The end of a message about an unknown word: `; did you mean 'WORD'?`.

    Args:
        word: The unknown word.
        known: The words that are known.
        else_list: Whether to name all known words where none is close; empty otherwise.
    """
    known = list(known)
    if (found := closest(word, known)) is not None:
        return f"; did you mean {found!r}?"
    return f"; known are {', '.join(known)}" if else_list else ""


def explain(
    error: pydantic.ValidationError, kind: type[Any] | None = None
) -> Iterator[tuple[str, str]]:
    """The field and the message of each fault that pydantic found.

    Args:
        error: What pydantic raised.
        kind: The dataclass that was validated, for messages that name what a field must be.
    """
    for detail in error.errors(include_url=False):
        loc, is_unknown = detail["loc"], detail["type"] in UNKNOWN
        holder, path = _locate(kind, loc, is_unknown) if kind else (None, list(map(str, loc)))
        hints = typing.get_type_hints(holder) if holder else {}
        message = detail["msg"].removeprefix("Value error, ").split(" or instance of ")[0]
        if holder and is_unknown:
            known = [field.name for field in dataclasses.fields(holder)]
            message = f"unknown field{did_you_mean(path[-1], known)}"
        elif detail["type"] == "missing":
            message = "this field is needed"
        elif detail["type"] != "value_error" and path and path[-1] in hints:
            message = _wrong(hints[path[-1]], detail["input"])
        yield ".".join(path), message


def switched(kind: type[Any], fields: Mapping[str, Any], where: str) -> Iterator[tuple[str, str]]:
    """The fields of a dataclass that are given true or false where it takes a number or a text.

    pydantic takes true for 1.

    Returns:
        The field, after `where`, and a message.
    """
    hints = typing.get_type_hints(kind)
    for name in _names(kind):
        value = fields.get(name)
        if isinstance(value, bool) and "true" not in values_of(hints[name]):
            yield f"{where}.{name}", _wrong(hints[name], value)
        inner = config_in(hints[name])
        for one in value if isinstance(value, list) else [value]:
            if inner is not None and isinstance(one, dict):
                yield from switched(inner, one, f"{where}.{name}")


def _wrong(hint: Any, value: Any) -> str:
    """What a field of a type must be, and what was given."""
    told = "nothing" if value is None else repr(value)
    meant = ""
    if isinstance(value, str):
        meant = did_you_mean(value, values_of(hint), else_list=False)
    return f"must be {wanted(hint)}, got {told}{meant}"


def _locate(
    kind: type[Any], loc: Sequence[int | str], is_unknown: bool
) -> tuple[type[Any], list[str]]:
    """The dataclass that a fault is in, `kind` or one in it, and the path to the field."""
    holder, path, inside = kind, [], kind
    for number, part in enumerate(loc, 1):
        if part == inside.__name__ and number < len(loc):
            continue  # a member of a union
        is_field = part in _names(inside) or (is_unknown and number == len(loc))
        if not is_field and not isinstance(part, int):
            break  # what follows names a key
        path.append(str(part))
        if isinstance(part, int):
            continue
        holder = inside
        found = config_in(typing.get_type_hints(holder).get(part))
        if found is None:
            break
        inside = found
    return holder, path


def _names(kind: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]
