"""Dedup: rejects duplicate images, images of evaluation sets, and captions of many images."""

from stages.dedup.config import DedupConfig
from stages.dedup.stage import DedupStage

__all__ = ["DedupConfig", "DedupStage"]
