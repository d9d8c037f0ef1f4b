"""Filter: scores every text of every live image, web and synthetic alike, against its image."""

from stages.filter.config import FilterConfig
from stages.filter.stage import FilterStage, with_kept_sentences
from stages.filter.texts import KINDS

__all__ = ["KINDS", "FilterConfig", "FilterStage", "with_kept_sentences"]
