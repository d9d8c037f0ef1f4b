"""Reads the YAML of manifests: plain values, no repeated keys, bounded in size."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Mapping
from typing import Any

import fsspec
import yaml

from models.errors import YamlError
from stages.redaction import redacted

__all__ = ["find_problems", "load_file", "loads", "short"]

MOST_BYTES = 2**20
MOST_NODES = 100_000
"""Values in a document at most; an alias counts as all the values it stands for."""

LONGEST = 80
"""Characters of a value that a message quotes at most."""


def load_file(path: str) -> Any:
    """Load a YAML file from a path or a URL that fsspec can open.

    Raises:
        YamlError: The file is not UTF-8, not valid YAML or larger than 1 MiB, or the protocol of
            the URL is unknown or not installed.
        OSError: The file cannot be read.
    """
    try:
        with fsspec.open(path, "rb") if "://" in path else open(path, "rb") as file:
            content: bytes = file.read(MOST_BYTES + 1)
    except (ValueError, ImportError) as error:  # fsspec's errors for an unknown protocol
        raise YamlError(f"{path}: cannot be opened: {error}") from None
    if len(content) > MOST_BYTES:
        raise YamlError(f"{path}: larger than {MOST_BYTES >> 20} MiB, too large for a manifest")
    try:
        return loads(content.decode("utf-8"))
    except (YamlError, UnicodeDecodeError) as error:
        raise YamlError(f"{path}: not YAML: {error}") from None


def loads(text: str) -> Any:
    """Load a YAML text; only YAML's own types are allowed.

    Raises:
        YamlError: The text is not YAML, repeats a key, is nested too deeply or has too many values.
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except RecursionError:
        raise YamlError("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise YamlError(str(error)) from None


def find_problems(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """Yield the field and a message for each part of a value that a manifest may not contain.

    Allowed are texts without NUL and without secrets in URLs, whole numbers of 64 bits, finite
    numbers, true and false, null, lists, and mappings whose keys are texts.
    """
    if isinstance(value, Mapping):
        for key, part in value.items():
            inner = f"{field}.{short(str(key))}".lstrip(".")
            if not isinstance(key, str):
                yield inner, f'a key must be a text; write "{key}"'
            elif "\0" in key:
                yield inner, "a key must be a text without NUL"
            else:
                yield from find_problems(part, inner)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from find_problems(part, field)
    elif isinstance(value, float) and not math.isfinite(value):
        yield field, f"must be a finite number, got {value}"
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        yield field, f"must be a number of 64 bits, got one of {value.bit_length()}"
    elif isinstance(value, str) and "\0" in value:
        yield field, "must be a text without NUL"
    elif isinstance(value, str) and redacted(value) != value:
        yield (
            field,
            (
                f"contains a secret, which the run would record: {redacted(value)}; put it into "
                "~/.config/fsspec or into the FSSPEC_ environment variables, which fsspec reads"
            ),
        )
    elif isinstance(value, datetime.date):
        yield field, f'is a date; write "{value}" for a text'
    elif not isinstance(value, str | int | float | None):
        yield field, f"must be a text, number, list or mapping, got {type(value).__name__}"


def short(text: str, length: int = LONGEST) -> str:
    """A text, cut to a length that a message can quote."""
    return text if len(text) <= length else f"{text[:length]}..."


class _Loader(yaml.SafeLoader):
    """A safe loader that also refuses repeated keys and aliases that expand without bound.

    PyYAML's own loader keeps the last of repeated keys.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._nodes = 0
        self._sizes: dict[str, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        before = self._nodes
        self._nodes += 1
        is_alias = isinstance(event, yaml.AliasEvent)
        if is_alias:
            if event.anchor in self.anchors and event.anchor not in self._sizes:
                raise self._wrong(f"{event.anchor!r} contains itself", event)
            self._nodes += self._sizes.get(event.anchor, 0)
        if self._nodes > MOST_NODES:
            raise self._wrong(f"more than {MOST_NODES:,} values", event)
        node = super().compose_node(parent, index)
        if not is_alias and event.anchor is not None:
            self._sizes[event.anchor] = self._nodes - before
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: Any = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else key
            if name in seen:
                raise self._wrong(f"the key {short(str(key.value))!r} is repeated", key)
            seen.add(name)
        return node  # type: ignore[no-any-return]

    def _wrong(self, message: str, node: Any) -> yaml.MarkedYAMLError:
        return yaml.MarkedYAMLError(problem=message, problem_mark=node.start_mark)
