"""A local folder for a training whose model goes to object storage."""

from __future__ import annotations

import contextlib
import posixpath
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import fsspec

from stages.sources.source_files import is_local

__all__ = ["StagingDir"]

PATIENCE_SECONDS = 300.0
"""Seconds that a listing of the storage may lag behind the files that were put."""


class StagingDir:
    """The local folder that a model is trained in: a temporary one if the model goes to a URL.

    Args:
        out: The model's folder, local or at an fsspec URL.

    Attributes:
        folder: The local folder of the finished model. The training works beside it, in the folder
            with the ending `.partial`.
    """

    def __init__(self, out: str) -> None:
        self.out = out
        self._fs: Any = None
        if "://" not in out:
            self.folder = Path(out)
            return
        fs, self._path = fsspec.core.url_to_fs(out.rstrip("/"), use_listings_cache=False)
        if is_local(fs):
            self.folder = Path(self._path)
            return
        self._fs = fs
        self._top = tempfile.mkdtemp(prefix="capfilt-train-")
        self.folder = Path(self._top, posixpath.basename(self._path))

    @property
    def partial(self) -> Path:
        """The local folder of the unfinished training."""
        return self.folder.with_name(f"{self.folder.name}.partial")

    def read(self, name: str) -> str | None:
        """Read a text file of the finished model; None if it is not there."""
        try:
            if self._fs is None:
                return (self.folder / name).read_text(encoding="utf-8")
            return str(self._fs.cat_file(f"{self._path}/{name}").decode())
        except FileNotFoundError:
            return None

    def fetch(self, *names: str) -> None:
        """Copy files of the unfinished training from the storage to the local folder."""
        if self._fs is None:
            return
        self.partial.mkdir(exist_ok=True)
        for name in names:
            try:
                self._fs.get_file(f"{self._path}.partial/{name}", str(self.partial / name))
            except FileNotFoundError:
                (self.partial / name).unlink(missing_ok=True)

    def keep(self, *names: str) -> None:
        """Copy files of the unfinished training to the storage, for other machines to find."""
        for name in names if self._fs is not None else ():
            if (file := self.partial / name).exists():
                self._fs.put_file(str(file), f"{self._path}.partial/{name}")

    def keep_folder(self, name: str) -> None:
        """Copy a folder of the unfinished training to the storage, in the place of its former."""
        if self._fs is None:
            return
        there = f"{self._path}.partial/{name}"
        if self._fs.exists(there):
            self._fs.rm(there, recursive=True)
        for file in (self.partial / name).rglob("*"):
            if file.is_file():
                inside = file.relative_to(self.partial).as_posix()
                self._fs.put_file(str(file), f"{self._path}.partial/{inside}")

    def fetch_folder(self, name: str) -> None:
        """Copy a folder of the unfinished training from the storage; none is no error."""
        if self._fs is None:
            return
        top = f"{self._path}.partial/"
        for file in self._fs.find(f"{top}{name}"):
            target = self.partial / file.removeprefix(top)
            target.parent.mkdir(parents=True, exist_ok=True)
            self._fs.get_file(file, str(target))

    def rename(self, name: str, new: str) -> None:
        """Rename a file of the unfinished training in the storage, over another; none is no error.

        Where the training is local, its files are renamed by those who write them.
        """
        if self._fs is None:
            return
        with contextlib.suppress(FileNotFoundError):
            self._fs.mv(f"{self._path}.partial/{name}", f"{self._path}.partial/{new}")

    def beside(self, name: str) -> str:
        """Where another unfinished training of the same model is set aside."""
        return f"{self.out.rstrip('/')}.{name}.partial"

    def set_aside(self, name: str) -> None:
        """Move the unfinished training to `beside(name)`, over what may lie there."""
        self._move(f"{name}.partial", is_back=False)

    def take_back(self, name: str) -> bool:
        """Move the training of `beside(name)` back, and say whether there is one."""
        return self._move(f"{name}.partial", is_back=True)

    def _move(self, ending: str, *, is_back: bool) -> bool:
        aside = self.folder.with_name(f"{self.folder.name}.{ending}")
        source, target = (aside, self.partial) if is_back else (self.partial, aside)
        if self._fs is None:
            if source.is_dir():
                shutil.rmtree(target, ignore_errors=True)
                source.rename(target)
                return True
            return False
        shutil.rmtree(self.partial, ignore_errors=True)
        there, own = f"{self._path}.{ending}", f"{self._path}.partial"
        source_url, target_url = (there, own) if is_back else (own, there)
        files = self._fs.find(source_url)
        for file in files:
            self._fs.mv(file, target_url + file.removeprefix(source_url))
        return bool(files)

    def publish(self) -> None:
        """Copy the finished model to the storage, its card last, and wait until it is listed.

        Raises:
            TimeoutError: It is not listed within five minutes.
        """
        if self._fs is None:
            return
        files = [file for file in sorted(self.folder.rglob("*")) if file.is_file()]
        files.sort(key=lambda file: file == self.folder / "README.md")
        paths = {f"{self._path}/{file.relative_to(self.folder).as_posix()}" for file in files}
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._path}.json")  # the record of the model that is replaced
        for file in files:
            name = file.relative_to(self.folder).as_posix()
            self._fs.put_file(str(file), f"{self._path}/{name}")
        until = time.monotonic() + PATIENCE_SECONDS
        while not paths <= (listed := set(self._fs.find(self._path))):
            if time.monotonic() > until:
                raise TimeoutError(
                    f"{self.out}: its files were put, but the storage does not list them"
                )
            time.sleep(0.5)
        for old in (*(listed - paths), *self._fs.find(f"{self._path}.partial")):
            try:
                self._fs.rm_file(old)
            except FileNotFoundError:  # a listing may show removed files
                continue

    def close(self) -> None:
        """Remove the temporary folder."""
        if self._fs is not None:
            shutil.rmtree(self._top, ignore_errors=True)
