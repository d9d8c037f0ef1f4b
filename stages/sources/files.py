"""Finds the files that a list names, whatever slashes, prefix and Unicode form the list uses."""

from __future__ import annotations

import functools
import os
import posixpath
import unicodedata
from collections.abc import Iterator

from stages.sources.source_files import SourceFile, is_local

__all__ = ["Files"]

_FOLDERS = 1024  # number of folders whose file names are cached


class Files:
    """The files of a folder, looked up by name.

    The listings of the most recently used subfolders are cached.

    Args:
        source_file: The folder.
    """

    def __init__(self, source_file: SourceFile) -> None:
        self._source_file = source_file
        self._names = functools.lru_cache(maxsize=_FOLDERS)(self._listed)

    def find(self, name: str, beside: str = "") -> str | None:
        """Return the relative path of a file, or None if there is no such file.

        Args:
            name: Name of the file. Slashes may be of either kind, Unicode composed or decomposed;
                a path that ends in the folder's own name may come before it, and a folder `images`
                may be left out.
            beside: Folder of the list that names the file.
        """
        for candidate in _candidates(name, beside, posixpath.basename(self._source_file.path)):
            if (path := self._resolved(candidate)) is not None:
                return path
        return None

    def _resolved(self, path: str) -> str | None:
        folder = ""
        parts = path.split("/")
        if not path or ".." in parts:
            return None
        for part in parts:
            actual = self._names(folder).get(unicodedata.normalize("NFC", part))
            if actual is None:
                return None
            folder = posixpath.join(folder, actual)
        return folder

    def _listed(self, folder: str) -> dict[str, str]:
        """Return the names in a folder, keyed by themselves and by their composed form."""
        path = posixpath.join(self._source_file.path, folder) if folder else self._source_file.path
        try:
            if is_local(self._source_file.fs):
                names = os.listdir(path)
            else:
                paths = self._source_file.fs.ls(path, detail=False)
                names = [posixpath.basename(name.rstrip("/")) for name in paths]
        except (OSError, ValueError):
            return {}
        composed = {unicodedata.normalize("NFC", name): name for name in names}
        return composed | {name: name for name in names}


def _candidates(name: str, beside: str, folder_name: str) -> Iterator[str]:
    """Yield the relative paths that a name may stand for, the most likely first."""
    plain = posixpath.normpath(name)
    names = [plain]
    if "\\" in name:
        names.append(posixpath.normpath(name.replace("\\", "/")))
    for candidate in names:
        parts = candidate.strip("/").split("/")
        if parts[0] == "..":
            continue
        if not candidate.startswith("/"):
            yield posixpath.normpath(posixpath.join(beside, candidate))
            yield candidate
        own = {folder_name, posixpath.basename(beside) or folder_name}
        for index in reversed(range(len(parts) - 1)):  # drop what comes before the folder's name
            if parts[index] in own:
                yield posixpath.normpath(posixpath.join(beside, *parts[index + 1 :]))
        if candidate.startswith("/"):
            continue
        above = beside
        while above:  # a list in train/ may name train/0.jpg
            above = posixpath.dirname(above)
            yield posixpath.normpath(posixpath.join(above, candidate))
        yield posixpath.normpath(posixpath.join(beside, "images", candidate))
