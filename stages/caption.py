"""Caption: a captioner writes synthetic captions of every live image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.random import seed_of
from stages.base import ModelConfig, Stage

if TYPE_CHECKING:
    from models.inference.captioner import Captioner
    from models.inference.decoding import Settings
    from models.inference.vlm import GenericCaptioner
    from models.text.captions import LanguageDetector

__all__ = ["CaptionConfig", "CaptionStage"]

WRITES: dict[str, pa.DataType] = {
    "synthetic": pa.list_(pa.string()),
    "synthetic_words": pa.list_(pa.int32()),
    "synthetic_repeated": pa.list_(pa.float32()),
    "synthetic_truncated": pa.list_(pa.bool_()),
}
"""The captions, none at all where the image cannot be decoded; the number of their words, 0 for an
empty one; the share of their words that were said before, 0.67 for "dai dai dai"; and whether they
were cut at `max_length` before the captioner ended them."""

NUCLEI: dict[str, tuple[int, float]] = {"paper": (0, 1.0), "repository": (50, 1.1)}
"""top_k and repetition penalty: of BLIP's paper, and of its released code."""


@dataclass(frozen=True, kw_only=True)
class CaptionConfig(ModelConfig):
    """How captions are written (CapFilt, arXiv:2201.12086, section 3.3 and 4.4).

    The paper draws one caption an image by nucleus sampling with p = 0.9; the lengths are those
    of its released demo, as the paper gives none for CapFilt.

    Attributes:
        model: The captioner: a folder of `save_pretrained` or a name on the hub; by default the
            released one, fine-tuned on COCO.
        captioner: blip has a loop of its own and is the fastest; generic runs any
            AutoModelForImageTextToText (BLIP-2, LLaVA, ...); auto goes by the model's config.
        decoding: nucleus, beam or greedy.
        num_captions: Captions an image; one for greedy, up to `num_beams` for beam.
        nucleus: Whose sampling: paper is p alone (top_k 0, no repetition penalty); repository is
            the released code's, which adds transformers' default top_k 50 and a repetition
            penalty of 1.1.
        top_p: The mass of the nucleus.
        top_k: The tokens that may be in the nucleus, 0 for all; unset is as `nucleus` says.
        repetition_penalty: 1 is none; unset is as `nucleus` says, and none without sampling.
        num_beams: Of beam search.
        prompt: What every caption goes on from, left out of it; what is asked of a model with a
            chat template.
        max_length: In tokens, the prompt counted, and BLIP's [DEC].
        min_length: In tokens, the prompt counted, and BLIP's [DEC].
        continue_up_to: A generic captioner's captions of at most so many tokens are continued
            once: 80 in MiniGPT-4 (arXiv:2304.10592); 0 continues none.
        clean_up: Whether captions pass the rules after MiniGPT-4's second stage: repeated,
            unfinished and non-English sentences dropped.
        seed: Of the sampling.
    """

    stage = "caption"

    model: str = "Salesforce/blip-image-captioning-base"
    captioner: Literal["auto", "blip", "generic"] = "auto"
    decoding: Literal["nucleus", "beam", "greedy"] = "nucleus"
    num_captions: int = 1
    nucleus: Literal["paper", "repository"] = "paper"
    top_p: float = 0.9
    top_k: int | None = None
    repetition_penalty: float | None = None
    num_beams: int = 3
    prompt: str | None = "a picture of "
    max_length: int = 20
    min_length: int = 5
    continue_up_to: int = 0
    clean_up: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_captions", "num_beams", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"caption.{name} must be at least 1, got {getattr(self, name)}")
        most = {"greedy": 1, "beam": self.num_beams}.get(self.decoding, self.num_captions)
        if self.num_captions > most:
            raise ValueError(
                f"caption.num_captions must be at most {most} with {self.decoding} decoding, got "
                f"{self.num_captions}; use decoding: nucleus"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"caption.top_p must be above 0 and at most 1, got {self.top_p}")
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f"caption.top_k must be at least 0 (all tokens), got {self.top_k}")
        if self.repetition_penalty is not None and self.repetition_penalty <= 0:
            raise ValueError(
                f"caption.repetition_penalty must be above 0 (1 is none), got "
                f"{self.repetition_penalty}"
            )
        if not 0 <= self.min_length <= self.max_length:
            raise ValueError(
                f"caption.min_length must be from 0 to max_length ({self.max_length}), got "
                f"{self.min_length}"
            )
        if self.continue_up_to < 0:
            raise ValueError(
                f"caption.continue_up_to must be at least 0 (none is continued), got "
                f"{self.continue_up_to}"
            )
        if self.continue_up_to and self.captioner == "blip":
            raise ValueError(
                "caption.continue_up_to needs a generic captioner, BLIP writes one sentence; "
                "leave it unset"
            )

    def sampling(self) -> tuple[int, float]:
        """top_k and repetition penalty, in the place of those unset what `nucleus` says."""
        named = NUCLEI[self.nucleus] if self.decoding == "nucleus" else NUCLEI["paper"]
        given = self.top_k, self.repetition_penalty
        return (
            named[0] if given[0] is None else given[0],
            named[1] if given[1] is None else given[1],
        )

    def measurement(self) -> dict[str, Any]:
        """See `ModelConfig.measurement`; the numbers of the sampling, not their name."""
        fields = super().measurement()
        del fields["nucleus"]
        top_k, repetition_penalty = self.sampling()
        return {**fields, "top_k": top_k, "repetition_penalty": repetition_penalty}

    def settings_of_decoding(self) -> Settings:
        """What the captioner is told of decoding."""
        from models.inference.decoding import Settings

        top_k, repetition_penalty = self.sampling()
        return Settings(
            decoding=self.decoding,
            num_captions=self.num_captions,
            top_p=self.top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            num_beams=self.num_beams,
            max_length=self.max_length,
            min_length=self.min_length,
        )


class CaptionStage(Stage[CaptionConfig]):
    """Writes `num_captions` synthetic captions of each image.

    The random numbers of a caption are hash(seed, uid, which caption, which token), whatever the
    batch, shard or worker. No caption is judged here: an image whose captions are poor may have
    a good web caption, and the filter judges each text by itself.
    """

    name = "caption"
    version = 2
    config_type = CaptionConfig
    reads = ("image",)
    writes = pa.schema(WRITES)
    reasons: ClassVar[Mapping[str, str]] = {
        "undecodable": "The image cannot be decoded, so it has no captions.",
    }
    help = "write synthetic captions with BLIP"
    examples = ("capfilt caption manifest.yaml --set caption.num_captions=2",)
    paper = "BLIP (arXiv:2201.12086), BLIP-2 (arXiv:2301.12597), MiniGPT-4 (arXiv:2304.10592)"
    loader = "BlipForConditionalGeneration, or any AutoModelForImageTextToText"
    histograms = ()

    _captioner: Captioner | GenericCaptioner | None = None
    _detector: LanguageDetector | None = None

    def load(self) -> None:
        """Load the captioner.

        Raises:
            ValueError: A BLIP is to continue captions.
        """
        from models.text.captions import LanguageDetector
        from models.weights import folder_of

        config = self.config
        kind, model = config.captioner, folder_of(config.model)
        if kind == "auto":
            from models.inference.vlm import architecture_of

            is_blip = architecture_of(model, config.placement()["revision"]) == "blip"
            kind = "blip" if is_blip else "generic"
        if config.clean_up:
            self._detector = LanguageDetector(("en",))
        if kind == "generic":
            from models.inference.vlm import GenericCaptioner

            self._captioner = GenericCaptioner.from_pretrained(model, **config.placement())
            return
        if config.continue_up_to:
            raise ValueError(
                f"caption.continue_up_to needs a generic captioner, {config.model!r} is a BLIP; "
                f"leave it unset"
            )
        from models.inference.captioner import Captioner

        self._captioner = Captioner.from_pretrained(model, **config.placement())

    def annotate(self, rows: pa.Table) -> pa.Table:
        """Caption rows; see `Stage.annotate`."""
        if self._captioner is None:
            self.load()
        assert self._captioner is not None
        config = self.config
        more = {"continue_from": config.continue_up_to} if config.continue_up_to else {}
        captions = self._captioner.caption(
            [image or b"" for image in rows["image"].to_pylist()],
            [seed_of(config.seed, str(uid), bits=64) for uid in rows["uid"].to_pylist()],
            config.settings_of_decoding(),
            prompt=config.prompt,
            batch_size=config.batch_size,
            **more,
        )
        texts = [[self._cleaned(caption.text) for caption in some] for some in captions]
        words = [[text.split() for text in some] for some in texts]
        return pa.table(
            {
                "synthetic": texts,
                "synthetic_words": [[len(said) for said in some] for some in words],
                "synthetic_repeated": [[_repeated(said) for said in some] for some in words],
                "synthetic_truncated": [[c.truncated for c in some] for some in captions],
            },
            schema=self.writes,
        )

    def _cleaned(self, text: str) -> str:
        detector = self._detector
        if detector is None:
            return text
        from models.text.paragraphs import clean_paragraph

        return clean_paragraph(text, lambda sentence: detector(sentence)[1] >= 0.5)

    def judge(self, annotations: pa.Table) -> pa.StringArray:
        """Reject the images that could not be decoded, and nothing else."""
        count = pc.list_value_length(annotations["synthetic"]).fill_null(0).to_numpy()
        reasons = np.full(len(annotations), None, object)
        reasons[count == 0] = "undecodable"
        return pa.array(reasons, pa.string())


def _repeated(words: list[str]) -> float:
    return 1 - len(set(words)) / len(words) if words else 0.0
