"""Files that a list names, found whatever slashes, prefix and Unicode form they are named with."""

from __future__ import annotations

import functools
import os
import posixpath
import unicodedata
from collections.abc import Iterator

from stages.sources.source_files import SourceFile, is_local

__all__ = ["Files"]

_FOLDERS = 1024  # whose names are held at once


class Files:
    """The files of a folder.

    Memory holds the names of the folders that were asked for last.

    Args:
        place: The folder.
    """

    def __init__(self, place: SourceFile) -> None:
        self._place = place
        self._names = functools.lru_cache(maxsize=_FOLDERS)(self._listed)

    def find(self, name: str, beside: str = "") -> str | None:
        """The relative path of a file of the folder, or nothing where there is no such file.

        Args:
            name: What it is called: with slashes of either kind, with or without a path before it
                that ends in the folder's own name, with or without `images` before it, composed or
                decomposed.
            beside: The folder of the list that names it.
        """
        for candidate in _candidates(name, beside, posixpath.basename(self._place.path)):
            if (found := self._resolved(candidate)) is not None:
                return found
        return None

    def _resolved(self, path: str) -> str | None:
        folder = ""
        parts = path.split("/")
        if not path or ".." in parts:
            return None
        for part in parts:
            found = self._names(folder).get(unicodedata.normalize("NFC", part))
            if found is None:
                return None
            folder = posixpath.join(folder, found)
        return folder

    def _listed(self, folder: str) -> dict[str, str]:
        """The names in a folder by their composed form."""
        path = posixpath.join(self._place.path, folder) if folder else self._place.path
        try:
            if is_local(self._place.fs):
                names = os.listdir(path)
            else:
                found = self._place.fs.ls(path, detail=False)
                names = [posixpath.basename(name.rstrip("/")) for name in found]
        except (OSError, ValueError):
            return {}
        composed = {unicodedata.normalize("NFC", name): name for name in names}
        return composed | {name: name for name in names}


def _candidates(name: str, beside: str, top: str) -> Iterator[str]:
    """The relative paths that a name may stand for, the likely ones first."""
    plain = posixpath.normpath(name)
    names = [plain]
    if "\\" in name:
        names.append(posixpath.normpath(name.replace("\\", "/")))
    for one in names:
        parts = one.strip("/").split("/")
        if parts[0] == "..":
            continue
        if not one.startswith("/"):
            yield posixpath.normpath(posixpath.join(beside, one))
            yield one
        own = {top, posixpath.basename(beside) or top}
        for index in reversed(range(len(parts) - 1)):  # what stands before the folder's own name
            if parts[index] in own:
                yield posixpath.normpath(posixpath.join(beside, *parts[index + 1 :]))
        if one.startswith("/"):
            continue
        above = beside
        while above:  # a list in train/ may name train/0.jpg
            above = posixpath.dirname(above)
            yield posixpath.normpath(posixpath.join(above, one))
        yield posixpath.normpath(posixpath.join(beside, "images", one))
