"""File formats of an export."""

from __future__ import annotations

from stages.formats.base import SPLITS, TRAIN, VALIDATION, Choice, Format, Shard
from stages.formats.image_folders import Blip, ImageFolder, Llava, Sidecars
from stages.formats.mds import Mds
from stages.formats.parquet import Parquet, Urls
from stages.formats.webdataset import Energon, WebDataset

__all__ = ["FORMATS", "SPLITS", "TRAIN", "VALIDATION", "Choice", "Format", "Shard"]

FORMATS: dict[str, type[Format]] = {
    format.name: format
    for format in (Parquet, WebDataset, Energon, Mds, Llava, Blip, ImageFolder, Sidecars, Urls)
}
"""The formats by their names in a manifest."""
