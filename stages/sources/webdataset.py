"""Reads webdataset tars, as img2dataset and others write them."""

from __future__ import annotations

import posixpath
import tarfile
import unicodedata
from collections.abc import Iterator

from stages.sources.config import Source
from stages.sources.row import Location, Row, clean
from stages.sources.sidecars import LONGEST, Sidecars, ending_of, read_sidecars
from stages.sources.source_files import HIDDEN, SourceFile, is_hidden, is_image, is_image_content

__all__ = ["rows"]

_MOST = 10_000  # images of one sample held in memory
_HELD = 2**26  # bytes of text of one sample held in memory
_PLAIN = frozenset({".txt", ".json", ".caption", ".cls", ".npy", ".npz", ".pth", ".pyd", ".csv"})


def rows(source_file: SourceFile, source: Source) -> Iterator[Row]:
    """Yield a row for each caption of each image of a tar, from the sample's .txt, .caption, .json.

    A sample is a run of members with the same key, which is the path up to the first dot of the
    file name. If names contain dots, a text whose name matches the image's full name is preferred
    to one that has only the same key. A link has no bytes of its own, so its row fails. Hidden
    members, such as those macOS adds, are left out. The files that img2dataset writes beside its
    tars are not read, since the rows it failed to download have no image.

    Raises:
        ValueError: The file is not a tar, or ends early.
    """
    key: str | None = None
    images: list[tuple[str, int, int]] = []
    texts: dict[str, bytes] = {}
    number = without = held = 0
    first = ""

    def sample() -> Iterator[Row]:
        nonlocal number, without, first
        sidecars = Sidecars(posixpath.basename(name) for name in texts)
        contents = {posixpath.basename(name): content for name, content in texts.items()}
        of_key = _of_key(key or "", texts)
        for name, offset, length in images:
            number += 1
            own = {
                kind: contents[ending_name]
                for kind, ending_name in sidecars.of(posixpath.basename(name)).items()
            }
            where = f"{source_file.path}/{name}"
            text = read_sidecars(of_key | own, source, source_file.notices, where)
            if not text.captions:
                without, first = without + 1, first or where
            url = text.url or source_file.url(name)
            row = Row(url, None, text.uid, Location(source_file.file, offset, length), number)
            for caption in text.captions or (None,):
                yield row._replace(caption=caption)
        if texts and not images:
            source_file.notices.add("samples with a text and no image", f"{source_file.path}/{key}")

    for tar, member in _members(source_file):
        if any(map(is_hidden, member.name.removeprefix("./").split("/"))):
            source_file.notices.add(HIDDEN, f"{source_file.path}/{clean(member.name)}")
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
        elif is_image(name) or _is_image_member(tar, member):
            whole = member.isreg() and not member.issparse()
            images.append((clean(member.name), member.offset_data, member.size * whole))
    yield from sample()
    if without < number:
        source_file.notices.add(
            "images without a caption, among images that have one", first, without
        )


def _of_key(key: str, texts: dict[str, bytes]) -> dict[str, bytes]:
    """Return the texts of a sample whose name is its key and an ending, by ending."""
    stem = posixpath.basename(key)
    by_ending: dict[str, list[bytes]] = {}
    for name, content in texts.items():
        if unicodedata.normalize("NFC", posixpath.splitext(name)[0]) == stem:
            by_ending.setdefault(ending_of(name), []).insert(0, content)
    return {ending: contents[0] for ending, contents in by_ending.items()}


def _is_image_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bool:
    """Whether a member without a known ending is an image, by its first bytes."""
    ending = posixpath.splitext(member.name)[1].lower()
    if not member.isreg() or member.issparse() or ending in _PLAIN:
        return False
    with tar.extractfile(member) as stream:  # type: ignore[union-attr]
        return is_image_content(stream.read(32))


def _members(source_file: SourceFile) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the members of a tar except folders."""
    with (
        source_file.read_as("tar", ValueError, tarfile.TarError),
        source_file.fs.open(source_file.path, "rb") as stream,
        tarfile.open(fileobj=stream, mode="r:", errors="surrogateescape") as tar,
    ):
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # else it keeps every member
            if not member.isdir():
                yield tar, member
        # tarfile ends the iteration without an error at a broken header after the first.
        stream.seek(tar.offset)
        if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"it is broken at byte {tar.offset}")
        if stream.tell() <= tar.offset:
            raise tarfile.ReadError("it ends early, without an end-of-archive block")
