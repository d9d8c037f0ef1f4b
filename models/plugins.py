"""Registries of classes by name: our own, and those of other packages by entry points."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from functools import cache, cached_property
from typing import Any, Generic, NamedTuple, TypeVar

from models.errors import PluginError

__all__ = ["Registry"]

NAME = re.compile(r"[a-z][a-z0-9_]*")

T = TypeVar("T")


class _Entry(NamedTuple):
    """A class as `module:Class`, and the name and version of its distribution if not ours."""

    target: str
    distribution: tuple[str, str] | None = None


class Registry(Mapping[str, type[T]], Generic[T]):
    """Classes by name; each is imported when it is first looked up.

    Iteration and `in` import nothing. Our names come first, then those of other packages in
    alphabetical order. Entry points are read once in a process.

    Args:
        kind: The kind of the classes, for messages, such as `stage`.
        group: The entry point group of other packages' classes, such as `capfilt.stages`.
        ours: `module:Class` of each class of this repository, by name.
        find_fault: Returns what is wrong with an object for a name; None if nothing is.
        reserved: Names that classes of other packages must not have.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        ours: Mapping[str, str],
        find_fault: Callable[[str, Any], str | None],
        reserved: Collection[str] = (),
    ) -> None:
        self.kind = kind
        self.group = group
        self.ours = ours
        self.reserved = reserved
        self._find_fault = find_fault
        self._classes: dict[str, type[T]] = {}

    def __getitem__(self, name: str) -> type[T]:
        """The class of a name.

        Raises:
            KeyError: The name is unknown.
            PluginError: The class cannot be imported, or is not of this kind.
        """
        if name not in self._classes:
            self._classes[name] = self._load(name)
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def usable(self) -> Iterator[tuple[str, type[T]]]:
        """Each name with its class; classes that cannot be imported are left out."""
        for name in self:
            try:
                yield name, self[name]
            except PluginError:
                continue

    def distribution(self, name: str) -> tuple[str, str] | None:
        """The distribution that adds a class, as its name and version; None for ours."""
        return self._entries[name].distribution

    def read(self, name: str, attribute: str) -> Any:
        """Read a class attribute from the source of its module, without importing anything.

        Returns:
            The value; None if there is no source, or if the body of the class does not set the
            attribute to a literal on one line.
        """
        module, _, class_name = self._entries[name].target.partition(":")
        try:
            source = _source(module) or ""
        except (ImportError, OSError, SyntaxError, ValueError):
            return None
        body = re.search(rf"^class {class_name}\b.*\n(?:(?: .*)?\n)*", source, re.MULTILINE)
        for value in re.findall(rf"^    {attribute}\b[^=\n]*=(.+)$", body[0] if body else "", re.M):
            with suppress(SyntaxError, ValueError):  # a line of a docstring, or not a literal
                return ast.literal_eval(value.strip())
        return None

    @cached_property
    def _entries(self) -> dict[str, _Entry]:
        """Every entry by name.

        Raises:
            PluginError: A name of another package is invalid, reserved or taken.
        """
        entries = {name: _Entry(target) for name, target in self.ours.items()}
        points = _entry_points(tuple(sys.path)).select(group=self.group)
        for point in sorted(points, key=lambda one: one.name):
            package = (point.dist.name, point.dist.version) if point.dist else None
            entry = _Entry(point.value, package)
            wrong = None
            if not NAME.fullmatch(point.name):
                wrong = "its name must be lower-case letters, digits and _, a letter first"
            elif point.name in self.reserved:
                wrong = f"{point.name!r} has another meaning in capfilt"
            elif point.name in self.ours:
                wrong = f"capfilt has a {self.kind} {point.name!r}"
            elif point.name in entries:
                wrong = f"{_title(entries[point.name])} has a {self.kind} {point.name!r} too"
            if wrong is not None:
                raise PluginError(
                    f"{self._described(point.name, entry)}: {wrong}. Rename it, or uninstall "
                    "the distribution"
                )
            entries[point.name] = entry
        return entries

    def _load(self, name: str) -> type[T]:
        entry = self._entries[name]
        module, _, attributes = entry.target.partition(":")
        try:
            loaded: Any = importlib.import_module(module)
            for attribute in attributes.split("."):
                loaded = getattr(loaded, attribute)
        except Exception as error:  # another package's code may raise anything
            if entry.distribution is None:
                raise
            raise PluginError(
                f"{self._described(name, entry)}: cannot be imported: {type(error).__name__}: "
                f"{error}. Fix or uninstall the distribution"
            ) from error
        if (fault := self._find_fault(name, loaded)) is not None:
            raise PluginError(f"{self._described(name, entry)}: {fault}")
        registered: type[T] = loaded
        return registered

    def _described(self, name: str, entry: _Entry) -> str:
        where = f"entry point {name} = {entry.target} in {self.group}"
        return where if entry.distribution is None else f"{where} of {_title(entry)}"


@cache
def _entry_points(path: tuple[str, ...]) -> Any:
    """Return every entry point of the packages on `sys.path`; reading them takes 15 ms."""
    from importlib import metadata  # imported late, since it takes 25 ms

    return metadata.entry_points()


def _title(entry: _Entry) -> str:
    return " ".join(entry.distribution) if entry.distribution else "an unnamed distribution"


def _source(module: str) -> str | None:
    """The source text of a module, without importing it or the packages above it."""
    path, spec = None, None
    parts = module.split(".")
    for number in range(len(parts)):
        name = ".".join(parts[: number + 1])
        specs = (finder.find_spec(name, path) for finder in sys.meta_path)
        spec = next((one for one in specs if one is not None), None)
        if spec is None:
            return None
        path = spec.submodule_search_locations
    get_source = getattr(spec and spec.loader, "get_source", None)
    source: str | None = get_source(module) if get_source else None
    return source
