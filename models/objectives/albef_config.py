"""The settings of ALBEF's pre-training (Li et al., arXiv 2107.07651)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from models.objectives.blip_config import MATCHER, MatcherConfig
from models.objectives.config import Saved

if TYPE_CHECKING:
    from models.objectives.albef import Albef

__all__ = ["AlbefConfig"]


@dataclass(frozen=True, kw_only=True)
class AlbefConfig(MatcherConfig):
    """ALBEF's pre-training: contrast, matching and masked language modelling (ITC + ITM + MLM).

    The lower half of the text layers reads the text alone, and the upper half looks at the image
    (6 + 6 layers in size `base`). The momentum model's predictions are targets of masking, too. The
    defaults are those of ALBEF's released config.
    """

    name = "albef"
    paper = "ALBEF (arXiv 2107.07651)"
    departs = (
        "Image layers are BLIP's; `start` must name the DeiT and the BERT that ALBEF starts from."
    )
    public = "`start: {vision: facebook/deit-base-patch16-224, text: bert-base-uncased}`."
    parts = ("matcher",)
    saves: ClassVar[Mapping[str, Saved]] = {".": MATCHER}
    former: ClassVar[Mapping[str, Any]] = {"albef": True, "label_smoothing": 0.1}

    image_size: int = 256
    batch_size: int = 512
    epochs: int = 30
    lr: float = 1e-4
    min_lr: float = 1e-5
    warmup_steps: int = 2000
    warmup_lr: float = 1e-5
    weight_decay: float = 0.02
    max_text_tokens: int = 25
    crop_scale: float = 0.2
    magnitude: int = 7
    queue_size: int = 65536
    negatives: Literal["global", "local"] = "local"

    def measurement(self) -> dict[str, Any]:
        """Return the settings that change the model, under the name of earlier runs, `pretrain`."""
        return {**super().measurement(), "objective": "pretrain"}

    def build(self) -> Albef:
        """Make the matcher with its head of masked language modelling."""
        from models.objectives.albef import Albef

        return self._set_up(Albef)
