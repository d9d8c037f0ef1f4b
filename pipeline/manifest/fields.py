"""The fields of a config, with what its docstring says of each."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

__all__ = [
    "Field",
    "as_yaml",
    "attributes",
    "config_in",
    "describe",
    "summary",
    "values_of",
    "wanted",
]

Config = type[Any]

ARTICLE = ("text", "whole", "number", "list", "mapping")
"""First words of types that take an article."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """A field of a config.

    Attributes:
        name: Its name.
        type: What it holds, in words.
        values: What it may be, where these can be listed.
        default: Its default as YAML has it; None where it is needed.
        text: What it means; empty where the docstring does not say.
        is_threshold: Whether a changed value costs no measuring.
        config: The dataclass of its own fields, where it may be a mapping.
    """

    name: str
    type: str
    values: tuple[str, ...]
    default: str | None
    text: str
    is_threshold: bool
    config: Config | None = None


def describe(kind: type) -> list[Field]:
    """The fields of a config with what its docstring, or that of a base class, says of them.

    For the docs, help and completion. Python strips docstrings with `-OO`; the texts are empty
    then.
    """
    texts = {
        name: text for base in reversed(kind.__mro__) for name, text in attributes(base).items()
    }
    hints = get_type_hints(kind, include_extras=True)
    return [
        Field(
            name=field.name,
            type=_type(hints[field.name]),
            values=values_of(hints[field.name]),
            default=_default(field),
            text=texts.get(field.name, ""),
            is_threshold=bool(field.metadata.get("threshold")),
            config=config_in(hints[field.name]),
        )
        for field in dataclasses.fields(kind)
    ]


def _default(field: dataclasses.Field[Any]) -> str | None:
    if field.default is not dataclasses.MISSING:
        return as_yaml(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return as_yaml(field.default_factory())
    return None


def summary(kind: type) -> str:
    """The first paragraph of a class's own docstring, on one line; empty without one."""
    text = inspect.cleandoc(kind.__dict__.get("__doc__") or "").split("\n\n", 1)[0]
    return " ".join(text.split())


def config_in(hint: Any) -> type[Any] | None:
    """The dataclass that a type holds, if any."""
    if dataclasses.is_dataclass(hint):
        return cast(type[Any], hint)
    return next((found for one in get_args(hint) if (found := config_in(one))), None)


def attributes(kind: type) -> dict[str, str]:
    """What the section `Attributes` of a class's own docstring says, by name."""
    text = inspect.cleandoc(kind.__dict__.get("__doc__") or "")
    _, _, section = text.partition("Attributes:\n")
    entries = re.split(r"^ {4}(?=\w+:)", section.split("\n\n")[0], flags=re.M)
    parts = (entry.partition(":") for entry in entries if entry.strip())
    return {name: " ".join(meaning.split()) for name, _, meaning in parts}


def wanted(hint: Any) -> str:
    """What a value of a type must be, for a sentence: `a whole number or null`."""
    parts = _type(hint).replace("`", "").split(" or ")
    if ", " in parts[0]:
        parts[0] = f"one of {parts[0]}"
    return " or ".join(f"a {p}" if p.split()[0] in ARTICLE else p for p in parts)


def _type(hint: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _type(inner[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(part) for part in inner))
    if origin is tuple:
        whole = inner[:1] if inner[-1] is Ellipsis else inner
        return f"list of {' or '.join(dict.fromkeys(_type(part) for part in whole))}"
    if origin is dict:
        return f"mapping of {_type(inner[1])}"
    if dataclasses.is_dataclass(hint):
        return "mapping"
    names = {str: "text", int: "whole number", float: "number", bool: "on/off", type(None): "null"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def values_of(hint: Any) -> tuple[str, ...]:
    """The values of a type as YAML has them, where they can be listed."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return tuple(map(as_yaml, inner))
    if origin in (Union, types.UnionType):
        return tuple(value for part in inner for value in values_of(part))
    return {bool: ("true", "false"), type(None): ("null",)}.get(hint, ())


def as_yaml(value: Any) -> str:
    """A default as a manifest would have it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return f"[{', '.join(map(as_yaml, value))}]"
    if isinstance(value, str):
        return value if value and value.strip() == value else f'"{value}"'
    return str(value)
