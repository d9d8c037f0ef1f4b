"""File formats of an export."""

from __future__ import annotations

from stages.formats.base import SPLITS, TRAIN, VALIDATION, Format, Shard
from stages.formats.image_folders import Blip, ImageFolder, Llava
from stages.formats.parquet import Parquet, Urls
from stages.formats.webdataset import WebDataset

__all__ = ["FORMATS", "SPLITS", "TRAIN", "VALIDATION", "Format", "Shard"]

FORMATS: dict[str, type[Format]] = {
    format.name: format for format in (Parquet, WebDataset, Llava, Blip, ImageFolder, Urls)
}
"""The formats by their names in a manifest."""
