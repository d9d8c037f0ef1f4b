"""Filter: the ITM model scores every text of every live image, web and synthetic alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stages.base import ModelConfig, Stage, threshold
from stages.schema import web_captions

if TYPE_CHECKING:
    from models.blip import Match, Matcher

__all__ = ["FilterConfig", "FilterStage"]


@dataclass(frozen=True, kw_only=True)
class FilterConfig(ModelConfig):
    """What matches (CapFilt, arXiv:2201.12086, section 3.3).

    Attributes:
        model: The filter: a folder of `save_pretrained` or a name on the hub; by default the
            released one, fine-tuned on COCO. It should not share its training with the
            captioner: where they share parameters it believes nearly all that the captioner
            says (section 4.5, table 4).
        min_itm: The least ITM probability of a text that is kept; 0.5 is the paper's rule, that
            the ITM head does not call the text unmatched.
    """

    stage = "filter"

    model: str = "Salesforce/blip-itm-base-coco"
    min_itm: float = threshold(0.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.min_itm <= 1:
            raise ValueError(
                f"filter.min_itm must be a probability from 0 to 1, got {self.min_itm}; the "
                f"paper's is 0.5"
            )


class FilterStage(Stage[FilterConfig]):
    """Scores the web caption and the synthetic captions of each image, each by itself.

    The paper's rule: a text is dropped if the ITM head calls it unmatched with its image. Web
    and synthetic texts are not compared; an image keeps none, one or all of them, and with none
    it leaves the set. Human pairs do not pass here: they are never filtered.

    How a healthy run looks, from the paper's tables 2 and 4: about 25 % of synthetic captions
    are rejected with nucleus sampling and about 19 % with beam search; about 8 % means that
    captioner and filter share parameters. Its sizes of data sets put the rejected web captions
    of CC3M, CC12M and SBU near 8 %.
    """

    name = "filter"
    version = 1
    config_type = FilterConfig
    reads = ("image", "caption")
    uses = ("text", "synthetic")
    writes = pa.schema(
        [
            pa.field("itm_web", pa.float32()),
            pa.field("itm_synthetic", pa.list_(pa.float32())),
            pa.field("itc_web", pa.float32()),
            pa.field("itc_synthetic", pa.list_(pa.float32())),
            pa.field("itm_decoded", pa.bool_()),
        ]
    )
    """ITM probabilities and ITC cosines: of the web caption, null without one, and of each
    synthetic caption in its place, null where it is blank; all null where the image could not
    be decoded, which `itm_decoded` tells."""
    reasons: ClassVar[Mapping[str, str]] = {
        "undecodable": "The image cannot be decoded, so no text can match it.",
        "no_text": "The image has neither a web caption nor a synthetic one.",
        "unmatched": "The filter finds that no text of the image describes it.",
    }

    _matcher: Matcher | None = None

    def load(self) -> None:
        """Load the filter's model."""
        from models.blip import Matcher

        config = self.config
        self._matcher = Matcher.from_pretrained(config.model, **config.placement())

    def annotate(self, rows: pa.Table) -> pa.Table:
        """Score the texts of rows; see `Stage.annotate`."""
        if self._matcher is None:
            self.load()
        assert self._matcher is not None
        texts: list[list[str | None]] = [[caption] for caption in web_captions(rows).to_pylist()]
        if "synthetic" in rows.column_names:
            for some, synthetic in zip(texts, rows["synthetic"].to_pylist(), strict=True):
                some.extend(synthetic or [])
        scores = self._matcher.score(
            [image or b"" for image in rows["image"].to_pylist()],
            [[text for text in some if text and text.strip()] for some in texts],
            batch_size=self.config.batch_size,
        )
        return pa.Table.from_pylist(
            [_row(some, found) for some, found in zip(texts, scores, strict=True)],
            schema=self.writes,
        )

    def judge(self, annotations: pa.Table) -> pa.StringArray:
        """Reject the rows none of whose texts is kept."""
        keeps = self.keep_texts(annotations)
        kept = keeps["keep_web"].to_numpy() | _any(keeps["keep_synthetic"], pc.equal, True)
        has_text = pc.is_valid(annotations["itm_web"]).to_numpy()
        has_text = has_text | _any(annotations["itm_synthetic"], pc.greater_equal, 0)
        reasons = np.full(len(annotations), "unmatched", object)
        reasons[~has_text] = "no_text"
        reasons[~annotations["itm_decoded"].to_numpy()] = "undecodable"
        reasons[kept] = None
        return pa.array(reasons, pa.string())

    def keep_texts(self, annotations: pa.Table) -> pa.Table:
        """Which texts of each row are kept, web and synthetic independently.

        Args:
            annotations: `writes` of n rows.

        Returns:
            keep_web (bool, False without a score) and keep_synthetic (list<bool>, as long as
            `itm_synthetic`, False without a score) of the n rows.
        """
        # The scores are float32: read in float64, one of 0.7 would miss a threshold of 0.7.
        least = pa.scalar(np.float32(self.config.min_itm), pa.float32())
        scores = annotations["itm_synthetic"].combine_chunks()
        lengths = pc.list_value_length(scores).fill_null(0).to_numpy(zero_copy_only=False)
        keep_synthetic = pa.ListArray.from_arrays(
            pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()),
            pc.greater_equal(pc.list_flatten(scores), least).fill_null(False),
            type=pa.list_(pa.bool_()),
        )
        keep_web = pc.greater_equal(annotations["itm_web"], least).fill_null(False)
        return pa.table({"keep_web": keep_web, "keep_synthetic": keep_synthetic})


def _row(texts: list[str | None], scores: list[Match]) -> dict[str, Any]:
    """The annotation of a row: its texts, web first, and the scores of those not blank."""
    found = iter(scores)
    asked = [bool(text and text.strip()) for text in texts]
    matches = [next(found, None) if was_asked else None for was_asked in asked]
    itm, itc = ([None if match is None else match[i] for match in matches] for i in (0, 1))
    return {
        "itm_web": itm[0],
        "itm_synthetic": itm[1:],
        "itc_web": itc[0],
        "itc_synthetic": itc[1:],
        "itm_decoded": len(scores) == sum(asked),
    }


def _any(lists: Any, compare: Callable[[Any, Any], Any], value: Any) -> npt.NDArray[np.bool_]:
    """Whether a list has an element that compares so with a value; a null never does."""
    hits = compare(pc.list_flatten(lists), value).fill_null(False).to_numpy()
    parents = pc.list_parent_indices(lists).to_numpy()
    return np.bincount(parents[hits], minlength=len(lists)) > 0
