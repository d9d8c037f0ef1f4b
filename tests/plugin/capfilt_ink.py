"""Ink: rejects images in which there is little to see."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from models.image.decode import ImageError, open_rgb
from stages.base import Stage, StageConfig, threshold

__all__ = ["InkConfig", "InkStage"]


@dataclass(frozen=True, kw_only=True)
class InkConfig(StageConfig):
    """How much there must be to see.

    Attributes:
        channel: What is looked at: the brightness, or one colour.
        min_contrast: The least standard deviation of the channel, of 255.
    """

    channel: Literal["brightness", "red", "green", "blue"] = "brightness"
    min_contrast: float = threshold(10.0)


class InkStage(Stage[InkConfig]):
    """Measures the contrast of each image, and rejects pale ones."""

    name = "ink"
    version = 1
    config_type = InkConfig
    reads = ("image",)
    writes = pa.schema([pa.field("ink_contrast", pa.float32())])
    reasons: ClassVar[Mapping[str, str]] = {
        "undecodable": "The image cannot be decoded.",
        "pale": "The contrast of the image is below min_contrast.",
    }
    help = "reject images in which there is little to see"
    examples = ("capfilt ink manifest.yaml --set ink.min_contrast=20",)
    thresholds: ClassVar[Mapping[str, tuple[str, str]]] = {"pale": ("min_contrast", "ink_contrast")}

    def annotate(self, rows: pa.Table) -> pa.Table:
        """The contrast of each image; null where it cannot be decoded."""
        found = [self._contrast(image or b"") for image in rows["image"].to_pylist()]
        return pa.table({"ink_contrast": found}, schema=self.writes)

    def judge(self, annotations: pa.Table) -> pa.StringArray:
        """Reject what cannot be decoded, and what is pale."""
        contrast = annotations["ink_contrast"].to_numpy()
        reasons = np.full(len(annotations), None, object)
        reasons[contrast < np.float32(self.config.min_contrast)] = "pale"
        reasons[np.isnan(contrast)] = "undecodable"
        return pa.array(reasons, pa.string())

    def _contrast(self, image: bytes) -> float | None:
        try:
            rgb = open_rgb(image)
        except ImageError:
            return None
        channels = {"brightness": rgb.convert("L")}
        channels |= zip(("red", "green", "blue"), rgb.split(), strict=True)
        return float(np.asarray(channels[self.config.channel]).std())
