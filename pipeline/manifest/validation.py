"""Messages about invalid fields: pydantic's errors in plain words, and likely corrections."""

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
"""pydantic's types of error for a field that the class does not have."""


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word most similar to `word`; None if none is similar."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)


def did_you_mean(word: str, known: Iterable[str], *, else_list: bool = True) -> str:
    """The end of a message about an unknown word: `; did you mean 'WORD'?`.

    Args:
        word: The unknown word.
        known: The known words.
        else_list: Whether to list all known words if none is similar; else the result is empty.
    """
    known = list(known)
    if (match := closest(word, known)) is not None:
        return f"; did you mean {match!r}?"
    return f"; known are {', '.join(known)}" if else_list else ""


def explain(
    error: pydantic.ValidationError, kind: type[Any] | None = None
) -> Iterator[tuple[str, str]]:
    """Yield the field and the message of each problem that pydantic reports.

    Args:
        error: The error that pydantic raised.
        kind: The validated dataclass; with it, messages say what a field must be.
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
    """Yield the field, after `where`, and a message for each true or false that is not allowed.

    pydantic itself would accept true as the number 1.
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
    """The message that says what a value must be, and what was given."""
    given = "nothing" if value is None else repr(value)
    meant = ""
    if isinstance(value, str):
        meant = did_you_mean(value, values_of(hint), else_list=False)
    return f"must be {wanted(hint)}, got {given}{meant}"


def _locate(
    kind: type[Any], loc: Sequence[int | str], is_unknown: bool
) -> tuple[type[Any], list[str]]:
    """The dataclass with the invalid field, `kind` or one inside it, and the path to the field."""
    holder, path, inside = kind, [], kind
    for number, part in enumerate(loc, 1):
        if part == inside.__name__ and number < len(loc):
            continue  # a member of a union
        is_field = part in _names(inside) or (is_unknown and number == len(loc))
        if not is_field and not isinstance(part, int):
            break  # the rest is a key of a mapping
        path.append(str(part))
        if isinstance(part, int):
            continue
        holder = inside
        inner = config_in(typing.get_type_hints(holder).get(part))
        if inner is None:
            break
        inside = inner
    return holder, path


def _names(kind: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]
