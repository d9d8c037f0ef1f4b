"""Tars of webdataset, as img2dataset and others write them."""

from __future__ import annotations

import logging
import posixpath
import tarfile
from collections.abc import Iterator

from stages.sources.config import Source
from stages.sources.place import Place, is_image
from stages.sources.row import Location, Row, clean
from stages.sources.sidecars import LONGEST, SIDECARS, told

__all__ = ["rows"]

logger = logging.getLogger(__name__)


def rows(place: Place, source: Source) -> Iterator[Row]:
    """The images of a tar, each with what the .txt and .json of its sample say.

    A sample is a run of members with one key, the path up to the first dot of its last part; every
    image of a sample is a row. A link is a row that fails: it has no bytes of its own. What is
    beside a tar of img2dataset is not read: rows that it failed to download have no image at hand.

    Raises:
        ValueError: It is no tar, or ends early.
    """
    key: str | None = None
    images: list[tuple[str, int, int]] = []
    beside: dict[str, bytes] = {}
    orphans = 0

    def sample() -> Iterator[Row]:
        found = told(beside.get("txt"), beside.get("json"), source)
        for name, offset, length in images:
            location = Location(place.file, offset, length)
            yield Row(found.url or place.url(name), found.caption, found.uid, location)

    for tar, member in _members(place):
        folder, name = posixpath.split(member.name)
        stem, _, ending = name.partition(".")
        if posixpath.join(folder, stem) != key:
            yield from sample()
            orphans += bool(beside) and not images
            key, images, beside = posixpath.join(folder, stem), [], {}
        if is_image(name):
            whole = member.isreg() and not member.issparse()
            images.append((clean(member.name), member.offset_data, member.size * whole))
        elif ending.lower() in SIDECARS and member.isreg():
            with tar.extractfile(member) as stream:  # type: ignore[union-attr]
                beside[ending.lower()] = stream.read(LONGEST)
    yield from sample()
    orphans += bool(beside) and not images
    if orphans:
        logger.warning("%s: %d samples have a text but no image beside it", place.path, orphans)


def _members(place: Place) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The members of a tar but its folders."""
    with (
        place.read_as("tar", ValueError, tarfile.TarError),
        place.fs.open(place.path, "rb") as stream,
        tarfile.open(fileobj=stream, mode="r:", errors="surrogateescape") as tar,
    ):
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it would hold all it has seen
            if not member.isdir():
                yield tar, member
        # A broken header after the first ends the iteration as the end of the tar does.
        stream.seek(tar.offset)
        if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"it is broken at byte {tar.offset}")
        if stream.tell() <= tar.offset:
            raise tarfile.ReadError("it ends early, without the mark of its end")
