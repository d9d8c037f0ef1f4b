"""The settings of filter: which model judges, what it judges, and the least score of a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from models.weights import revision_of
from stages.base import ModelConfig, StageConfig, threshold

__all__ = ["FilterConfig", "Unit"]

Recipe = Literal["blip", "clip", "blip2", "laion_coco"]
Unit = Literal["text", "sentence"]

OPENAI_CLIP = "openai/clip-vit-large-patch14"
SECOND_CLIP = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


@dataclass(frozen=True, kw_only=True)
class FilterConfig(ModelConfig):
    """Which texts match their image.

    Attributes:
        recipe: Which texts of an image are kept. blip (CapFilt, arXiv:2201.12086, section 3.3):
            each by itself, by the ITM model. clip (LAION, arXiv:2111.02114): each by itself, by
            CLIP similarity. blip2 (arXiv:2301.12597, section 3.4): the two most similar by CLIP
            of synthetic and web texts together, whatever their similarity. laion_coco: of the
            synthetic captions, the five most similar by CLIP, and of them the one most similar
            by a second CLIP.
        unit: What is judged. text: each text as a whole, cut to what the model reads; the run and
            the report count the texts that were cut. sentence: a text that is longer than a model
            of the recipe reads is split into sentences, and each is judged by itself, as a short
            text is. Sentences that fail are dropped, the others joined in order; a text is
            dropped if no sentence of it is kept.
        model: The ITM model of blip: a folder of `save_pretrained` or a name on the hub; by default
            the released one, fine-tuned on COCO. A folder that the objective `qformer`, `vlmo` or
            `vilt` (its `retrieval/`) has trained serves, too. A BLIP reads a text as training does:
            in lower case, without `.!"()*#:;~`, and cut to the tokens it was trained on, BLIP's 35
            where its config.json has no `max_text_tokens`. It should not share its training with
            the captioner: where they share parameters it believes nearly all that the captioner
            says (section 4.5, table 4).
        min_itm: The least ITM probability of a text that blip keeps; 0.5 is the paper's rule,
            that the ITM head does not call the text unmatched.
        clip: The dual encoder of the other recipes, OpenAI's CLIP ViT-L/14 where unset; with blip,
            one that measures beside ITM, none where unset. CLIP, SigLIP, SigLIP 2 and MetaCLIP 2
            as transformers loads them, and what the objectives `coca` and `beit3` (`goal:
            retrieval`) train. SigLIP 2 and MetaCLIP 2 read many languages. If it is the
            model of an earlier stage embed, with its dtype, that stage's embeddings of the images
            are compared with the texts, and no image is encoded again.
        clip_revision: A branch, tag or commit of the hub.
        min_clip: The least cosine of a text that is kept, whatever the recipe; unset is none. A
            threshold belongs to its model: LAION's 0.28 to 0.3 to CLIP ViT-B/32, DataComp's 0.243
            (its best 30%, arXiv:2304.14108) to OpenAI's CLIP ViT-L/14. Cosines of SigLIP are far
            lower; see the histogram in the report before choosing.
        second_clip: The second dual encoder of laion_coco. (The original's, RN50x64, has no
            checkpoint that transformers loads; the default is LAION's ViT-H/14.)
        second_clip_revision: A branch, tag or commit of the hub.
    """

    stage = "filter"
    places = (
        *("model", "revision", "clip", "clip_revision"),
        *("second_clip", "second_clip_revision"),
    )

    recipe: Recipe = "blip"
    unit: Unit = "text"
    model: str = "Salesforce/blip-itm-base-coco"
    min_itm: float = threshold(0.5)
    clip: str | None = None
    clip_revision: str | None = None
    min_clip: float | None = threshold(None)
    second_clip: str = SECOND_CLIP
    second_clip_revision: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.min_itm <= 1:
            raise ValueError(
                f"filter.min_itm must be a probability from 0 to 1, got {self.min_itm}; the "
                f"paper's is 0.5"
            )
        if self.min_clip is not None and not -1 <= self.min_clip <= 1:
            raise ValueError(
                f"filter.min_clip must be a cosine from -1 to 1, got {self.min_clip}; LAION's "
                f"for CLIP ViT-B/32 is 0.28"
            )
        if self.min_clip is not None and self.recipe == "blip" and self.clip is None:
            raise ValueError(
                f"filter.min_clip needs a model with recipe: blip; set filter.clip, for example to "
                f"{OPENAI_CLIP}"
            )
        if self.min_clip is None and self.recipe == "clip":
            raise ValueError(
                "filter.min_clip must be set with recipe: clip: the least cosine that is kept. "
                "LAION's for CLIP ViT-B/32 is 0.28, DataComp's for CLIP ViT-L/14 0.243; another "
                f"model ({self.clip or OPENAI_CLIP}) may need another"
            )

    def models(self) -> dict[str, tuple[str, str | None]]:
        """The models that the recipe needs: name and revision of itm, clip, second_clip."""
        needed: dict[str, tuple[str, str | None]] = {}
        if self.recipe == "blip":
            needed["itm"] = self.model, self.revision
        if self.recipe != "blip" or self.clip is not None:
            needed["clip"] = self.clip or OPENAI_CLIP, self.clip_revision
        if self.recipe == "laion_coco":
            needed["second_clip"] = self.second_clip, self.second_clip_revision
        return needed

    @property
    def spares(self) -> Mapping[str, tuple[str, ...]]:
        """The image, where one dual encoder alone judges and embed has embedded it."""
        return {"image": ("image_embedding",)} if self.models().keys() == {"clip"} else {}

    def uses(self, earlier: Mapping[str, StageConfig]) -> tuple[str, ...]:
        """The embeddings of images by the model of `clip`, where the stage embed made them."""
        models, embed = self.models(), earlier.get("embed")
        if "clip" not in models or not isinstance(embed, ModelConfig):
            return ()
        is_same = (embed.model, embed.revision) == models["clip"] and embed.dtype == self.dtype
        return ("image_embedding",) if is_same else ()

    def measurement(self) -> dict[str, Any]:
        """The dtype and which weights exactly of each model; recipes of the same models share it.

        Raises:
            FileNotFoundError: A model is neither a folder nor known to the hub.
        """
        weights = {}
        for role, name in self.models().items():
            try:
                weights[role] = revision_of(*name)
            except FileNotFoundError as error:
                field = "model" if role == "itm" else role
                raise FileNotFoundError(f"{self.stage}.{field}: {error}") from None
        unit = {} if self.unit == "text" else {"unit": self.unit}
        return {"dtype": self.dtype, "weights": weights, **unit}
