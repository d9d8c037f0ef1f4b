"""Init: the commented manifest that fits what a list or a folder of images holds."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import yaml

from pipeline.cli.init_source import SourceProfile, listed, plain
from pipeline.manifest.manifest import Manifest
from stages.clean import CleanConfig
from stages.download import DownloadConfig
from stages.sources import Source

__all__ = ["check", "manifest", "write"]

SHARDS = 16
"""How many shards a short list is cut into, so that several workers are busy."""

SHARD = 100
"""The fewest rows of one."""

ENDINGS = re.compile(r"(\.(csv|tsv|parquet|pq|jsonl|ndjson|json|txt|tar|gz|zst|bz2))+$", re.I)


def manifest(found: SourceProfile, name: str | None = None) -> str:
    """The manifest that fits a source, as commented YAML.

    Without captions it is the recipe that captions one's own images (manifests/folder.yaml);
    with captions CapFilt as BLIP has it (manifests/cc3m.yaml); for interleaved documents their
    export.

    Args:
        found: The source.
        name: What the run is called; the file or folder says it otherwise.
    """
    name = name or _name(found.source)
    text = "\n".join(
        [
            f"# {plain(str(found.source), 200)}: {found.kind}, {found.number}.",
            f"# Captions: {found.said}.",
            *(f"# Note: {plain(notice, 300)}" for notice in found.notices),
            "# All fields: docs/manifest.md. `--set stage.field=value` overrides one for a run.",
            f"name: {_yaml(name)}",
            f"run: {_yaml(f'runs/{name}')}  # holds everything; the same command resumes",
            "seed: 0",
            "stages:",
            *_download(found),
            *_curation(found),
            *_texts(found),
            *_export(found),
            "",
        ]
    )
    Manifest.parse(yaml.safe_load(text), "the manifest of init")
    return text


def check(out: str, *, force: bool = False) -> None:
    """Refuse a file to write to that is there, unless it may be replaced.

    Raises:
        ValueError: It is there.
    """
    if os.path.exists(out) and not force:
        raise ValueError(
            f"--out {out}: there is such a file; name another, or replace it with --force"
        )


def write(found: SourceProfile, out: str, *, force: bool = False) -> None:
    """Write the manifest of a source to a file; see `manifest` and `check`."""
    text = manifest(found)
    check(out, force=force)
    with open(out, "w", encoding="utf-8") as file:
        file.write(text)


def _download(found: SourceProfile) -> Iterator[str]:
    source = found.source
    paths = source.path if isinstance(source.path, str) else list(source.path)
    yield "  download:"
    yield f"    source: {_yaml(paths)}"
    for role in ("url", "caption"):
        if (column := getattr(source, f"{role}_column")) is not None:
            yield f"    {role}_column: {_yaml(column)}  # told by what it holds"
    size = DownloadConfig(source="-").image_size
    yield f"    image_size: {size}  # of the shorter side, what BLIP reads; none is enlarged"
    shard = max(SHARD, found.rows // SHARDS // SHARD * SHARD)
    if found.is_all and shard < min(found.rows, DownloadConfig(source="-").shard_size):
        yield f"    shard_size: {shard}  # rows that a worker takes at a time"
    yield "    # limit: 1000  # for a first try"
    if found.private:
        yield f"    allow_private_addresses: true  # for {plain(listed(found.private), 80)}"
    if found.hosts:
        (host, number) = found.hosts.most_common(1)[0]
        rate = DownloadConfig(source="-").requests_per_second
        hours = number / (rate or 1) / 3600
        told = f": {hours:.1f} hours for {number:,} of {plain(host, 60)}" if hours > 0.1 else ""
        yield f"    # requests_per_second: {rate:.0f}  # to one host from one worker{told}"
        yield "    # contact: you@example.org  # where the owner of a site reaches you"


def _curation(found: SourceProfile) -> Iterator[str]:
    if not found.captions and not found.documents:
        yield "  # dedup: {}  # drops all but the best of nearly the same images"
        return
    yield "  clean:"
    yield "    preset: flamingo  # or cc12m, datacomp_basic, ...: docs/manifest.md"
    languages = list(found.languages) or ["en"]
    if languages != ["en"]:
        shares = ", ".join(f"{share:.0%} {code}" for code, share in found.languages.items())
        yield f"    languages: {_yaml(languages)}  # {shares}; the captioner writes English"
    least = CleanConfig().limits["min_side"]
    small = sum(min(size) < least for size in found.sizes)
    if small:
        share = f"{small} of {len(found.sizes)} sampled"
        yield f"    # min_side: {least}  # {share} images are smaller; off keeps them"
    yield "  dedup: {}  # copies, near copies, captions that stand on many images"
    if found.captions and not found.documents:
        yield "  # select: {min_frequency: 3, max_per_phrase: 100}  # LLaVA's noun-phrase subset"


def _texts(found: SourceProfile) -> Iterator[str]:
    if found.documents:
        return
    yield "  caption:"
    yield "    model: Salesforce/blip-image-captioning-base  # or a folder"
    yield "    num_captions: 1"
    yield "  filter:"
    yield "    model: Salesforce/blip-itm-base-coco  # or a folder"
    yield "    min_itm: 0.5  # of web and synthetic captions alike, each judged by itself"


def _export(found: SourceProfile) -> Iterator[str]:
    yield "  export:"
    if found.documents:
        yield "    documents: {}"
        return
    yield "    synthetic: true"
    yield "    # human: [human.jsonl]  # image and captions a line, added unfiltered"


def _name(source: Source) -> str:
    path = source.paths[0].rstrip("/")
    stem = os.path.basename(os.path.abspath(path) if path in ("", ".", "..") else path)
    stem = ENDINGS.sub("", stem)
    return re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "pairs"


def _yaml(value: object) -> str:
    # PyYAML folds what it takes for the ends of lines, unless it escapes them.
    is_plain = str(value).isprintable()
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=is_plain, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")
