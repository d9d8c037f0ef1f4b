"""Tars of webdataset, as img2dataset and others write them."""

from __future__ import annotations

import posixpath
import tarfile
import unicodedata
from collections.abc import Iterator

from stages.sources.config import Source
from stages.sources.row import Location, Row, clean
from stages.sources.sidecars import LONGEST, Beside, ending_of, told
from stages.sources.source_files import HIDDEN, SourceFile, is_hidden, is_image, is_picture

__all__ = ["rows"]

_MOST = 10_000  # images of a sample that are held
_HELD = 2**26  # bytes of their texts
_PLAIN = frozenset({".txt", ".json", ".caption", ".cls", ".npy", ".npz", ".pth", ".pyd", ".csv"})


def rows(place: SourceFile, source: Source) -> Iterator[Row]:
    """The images of a tar, each with what the .txt, .caption and .json of its sample say.

    A sample is a run of members with one key, the path up to the first dot of its last part; every
    image of a sample is a row for each of its captions. What lies beside an image by its whole name
    counts before what has only its key, as where names hold dots. A link is a row that fails: it
    has no bytes of its own. Hidden members, as macOS adds, are left out. What is beside a tar of
    img2dataset is not read: rows that it failed to download have no image at hand.

    Raises:
        ValueError: It is no tar, or ends early.
    """
    key: str | None = None
    images: list[tuple[str, int, int]] = []
    texts: dict[str, bytes] = {}
    number = without = held = 0
    first = ""

    def sample() -> Iterator[Row]:
        nonlocal number, without, first
        beside = Beside(posixpath.basename(name) for name in texts)
        known = {posixpath.basename(name): content for name, content in texts.items()}
        shared = _of_key(key or "", texts)
        for name, offset, length in images:
            number += 1
            found = {
                kind: known[text] for kind, text in beside.of(posixpath.basename(name)).items()
            }
            where = f"{place.path}/{name}"
            said = told(shared | found, source, place.notices, where)
            if not said.captions:
                without, first = without + 1, first or where
            url = said.url or place.url(name)
            row = Row(url, None, said.uid, Location(place.file, offset, length), number)
            for caption in said.captions or (None,):
                yield row._replace(caption=caption)
        if texts and not images:
            place.notices.add("samples of a text without an image", f"{place.path}/{key}")

    for tar, member in _members(place):
        if any(map(is_hidden, member.name.removeprefix("./").split("/"))):
            place.notices.add(HIDDEN, f"{place.path}/{clean(member.name)}")
            continue
        folder, name = posixpath.split(member.name)
        stem = unicodedata.normalize("NFC", name).partition(".")[0]
        if posixpath.join(folder, stem) != key or len(images) >= _MOST or held >= _HELD:
            yield from sample()
            key, images, texts, held = posixpath.join(folder, stem), [], {}, 0
        if ending_of(name) and member.isreg():
            with tar.extractfile(member) as stream:  # type: ignore[union-attr]
                texts[name] = stream.read(LONGEST)
                held += len(texts[name]) + 1000
        elif is_image(name) or _is_picture(tar, member):
            whole = member.isreg() and not member.issparse()
            images.append((clean(member.name), member.offset_data, member.size * whole))
    yield from sample()
    if without < number:
        place.notices.add("images without a caption, beside others that have one", first, without)


def _of_key(key: str, texts: dict[str, bytes]) -> dict[str, bytes]:
    """The texts of a sample by their endings: those of its key alone, or the only one there is."""
    stem = posixpath.basename(key)
    found: dict[str, list[bytes]] = {}
    for name, content in texts.items():
        if unicodedata.normalize("NFC", posixpath.splitext(name)[0]) == stem:
            found.setdefault(ending_of(name), []).insert(0, content)
    return {ending: contents[0] for ending, contents in found.items()}


def _is_picture(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bool:
    """Whether a member whose name tells nothing is an image by how it begins."""
    ending = posixpath.splitext(member.name)[1].lower()
    if not member.isreg() or member.issparse() or ending in _PLAIN:
        return False
    with tar.extractfile(member) as stream:  # type: ignore[union-attr]
        return is_picture(stream.read(32))


def _members(place: SourceFile) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
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
