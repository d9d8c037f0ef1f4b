"""The fields of a config, with their types in words and their descriptions in its docstring."""

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
"""First words of the types that need an article in a sentence."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """A field of a config.

    Attributes:
        name: The name of the field.
        type: Its type, in words.
        values: The values it can have; empty if they cannot be listed.
        default: Its default in YAML; None if the field is required.
        text: Its description; empty if the docstring has none.
        is_threshold: Whether the field is a threshold: a change needs no new measurement.
        config: The dataclass of its fields, if its value can be a mapping.
    """

    name: str
    type: str
    values: tuple[str, ...]
    default: str | None
    text: str
    is_threshold: bool
    config: Config | None = None


def describe(kind: type) -> list[Field]:
    """The fields of a config, described by its docstring or by the docstring of a base class.

    The docs, the help and the completion use this. With `-OO` Python strips docstrings, and the
    texts are empty.
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
    """The dataclass in a type, such as in `Config | None`; None if there is none."""
    if dataclasses.is_dataclass(hint):
        return cast(type[Any], hint)
    return next((config for one in get_args(hint) if (config := config_in(one))), None)


def attributes(kind: type) -> dict[str, str]:
    """The descriptions in the section `Attributes` of a class's own docstring, by name."""
    text = inspect.cleandoc(kind.__dict__.get("__doc__") or "")
    _, _, section = text.partition("Attributes:\n")
    entries = re.split(r"^ {4}(?=\w+:)", section.split("\n\n")[0], flags=re.M)
    parts = (entry.partition(":") for entry in entries if entry.strip())
    return {name: " ".join(meaning.split()) for name, _, meaning in parts}


def wanted(hint: Any) -> str:
    """The type of a value in words, for a message: `a whole number or null`."""
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
    """The values of a type, written in YAML; empty if they cannot be listed."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return tuple(map(as_yaml, inner))
    if origin in (Union, types.UnionType):
        return tuple(value for part in inner for value in values_of(part))
    return {bool: ("true", "false"), type(None): ("null",)}.get(hint, ())


def as_yaml(value: Any) -> str:
    """A value as it is written in a manifest."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {name: v for name, v in dataclasses.asdict(value).items() if v is not None}
        return f"{{{', '.join(f'{name}: {as_yaml(v)}' for name, v in fields.items())}}}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(as_yaml, value))}]"
    if isinstance(value, str):
        return value if value and value.strip() == value else f'"{value}"'
    return str(value)
