"""Writes the commented manifest for a source, from its profile."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import yaml

from pipeline.cli.init_source import SourceProfile, listed, plain
from pipeline.manifest.manifest import Manifest
from stages.clean import CleanConfig
from stages.download import DownloadConfig

__all__ = ["DEFAULT", "check", "manifest", "write"]

DEFAULT = "manifest.yaml"
"""The file that is written if none is named."""

SHARDS = 16
"""Shards into which a short list is divided, so that several workers have work."""

SHARD = 100
"""The fewest rows of a shard."""

ENDINGS = re.compile(r"(\.(csv|tsv|parquet|pq|jsonl|ndjson|json|txt|tar|gz|zst|bz2))+$", re.I)


def manifest(profile: SourceProfile, name: str | None = None) -> str:
    """The manifest for a source, as commented YAML.

    For images without captions it is the recipe that captions them (manifests/folder.yaml), for
    pairs it is BLIP's CapFilt (manifests/cc3m.yaml), and for interleaved documents it is their
    export.

    Args:
        profile: The profile of the source.
        name: The name of the run; by default the name of the file or folder.
    """
    name = name or _name(ENDINGS.sub("", profile.source.paths[0].rstrip("/")))
    text = "\n".join(
        [
            f"# {plain(str(profile.source), 200)}: {profile.kind}, {profile.number}.",
            f"# Captions: {profile.captions_summary}.",
            *(f"# Note: {plain(notice, 300)}" for notice in profile.notices),
            "# All fields: docs/manifest.md. `--set stage.field=value` overrides one for a run.",
            f"name: {_yaml(name)}",
            f"run: {_yaml(f'runs/{name}')}  # holds everything; the same command resumes",
            "seed: 0",
            "stages:",
            *_download(profile),
            *_curation(profile),
            *_texts(profile),
            *_export(profile),
            "",
        ]
    )
    Manifest.parse(yaml.safe_load(text), "the manifest of init")
    return text


def check(out: str, *, force: bool = False) -> None:
    """Check that a file does not exist yet, unless it may be replaced.

    Raises:
        ValueError: The file exists.
    """
    if os.path.exists(out) and not force:
        raise ValueError(f"--out {out}: the file exists; name another, or replace it with --force")


def write(profile: SourceProfile, out: str, *, force: bool = False) -> None:
    """Write the manifest for a source to a file; see `manifest` and `check`.

    The run is named after the file, or after the source if the file has the name `DEFAULT`.
    """
    file_name = os.path.basename(out)
    text = manifest(profile, None if file_name == DEFAULT else _name(os.path.splitext(out)[0]))
    check(out, force=force)
    with open(out, "w", encoding="utf-8") as file:
        file.write(text)


def _download(profile: SourceProfile) -> Iterator[str]:
    source = profile.source
    paths = source.path if isinstance(source.path, str) else list(source.path)
    yield "  download:"
    yield f"    source: {_yaml(paths)}"
    for role in ("url", "caption"):
        if (column := getattr(source, f"{role}_column")) is not None:
            yield f"    {role}_column: {_yaml(column)}  # recognised by its values"
    size = DownloadConfig(source="-").image_size
    yield f"    image_size: {size}  # of the shorter side, as in BLIP; images are not enlarged"
    shard = max(SHARD, profile.rows // SHARDS // SHARD * SHARD)
    if profile.is_all and shard < min(profile.rows, DownloadConfig(source="-").shard_size):
        yield f"    shard_size: {shard}  # rows of a shard, the unit of work"
    yield "    # limit: 1000  # for a first try"
    if profile.private:
        yield f"    allow_private_addresses: true  # for {plain(listed(profile.private), 80)}"
    if profile.hosts:
        (host, number) = profile.hosts.most_common(1)[0]
        rate = DownloadConfig(source="-").requests_per_second
        hours = number / (rate or 1) / 3600
        hours_needed = (
            f": {hours:.1f} hours for {number:,} of {plain(host, 60)}" if hours > 0.1 else ""
        )
        yield f"    # requests_per_second: {rate:.0f}  # to one host from one worker{hours_needed}"
        yield "    # contact: you@example.org  # for the owners of the sites"


def _curation(profile: SourceProfile) -> Iterator[str]:
    if not profile.captions and not profile.documents:
        yield "  # dedup: {}  # keeps only the best of nearly identical images"
        return
    yield "  clean:"
    yield "    preset: flamingo  # or cc12m, datacomp_basic, ...: docs/manifest.md"
    languages = list(profile.languages) or ["en"]
    if languages != ["en"]:
        shares = ", ".join(f"{share:.0%} {code}" for code, share in profile.languages.items())
        yield f"    languages: {_yaml(languages)}  # {shares}; the captioner writes English"
    least = CleanConfig().limits["min_side"]
    small = sum(min(size) < least for size in profile.sizes)
    if small:
        share = f"{small} of {len(profile.sizes)} sampled"
        yield f"    # min_side: {least}  # {share} images are smaller; off keeps them"
    yield "  dedup: {}  # drops copies, near copies, and captions that many images share"
    if profile.captions and not profile.documents:
        yield "  # select: {min_frequency: 3, max_per_phrase: 100}  # LLaVA's noun-phrase subset"


def _texts(profile: SourceProfile) -> Iterator[str]:
    if profile.documents:
        return
    if profile.captions:
        yield "  # Both models come from the hub once. Without it, name folders, or delete caption"
        yield "  # and filter: then the captions of the list are exported, judged by no model."
    else:
        yield "  # Both models come from the hub once. Without it, name folders of weights."
    yield "  caption:"
    yield "    model: Salesforce/blip-image-captioning-base  # or a folder"
    yield "    num_captions: 1"
    yield "  filter:"
    yield "    model: Salesforce/blip-itm-base-coco  # or a folder"
    yield "    min_itm: 0.5  # for web and synthetic captions; each is judged by itself"


def _export(profile: SourceProfile) -> Iterator[str]:
    yield "  export:"
    if profile.documents:
        yield "    documents: {}"
        return
    yield "    synthetic: true"
    yield "    # human: [human.jsonl]  # images with captions, one a line, added unfiltered"


def _name(path: str) -> str:
    """A name of a run after a file or a folder."""
    stem = os.path.basename(os.path.abspath(path) if path in ("", ".", "..") else path)
    return re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "pairs"


def _yaml(value: object) -> str:
    # PyYAML would fold characters that it takes for ends of lines; escaping them prevents that.
    is_plain = str(value).isprintable()
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=is_plain, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")
