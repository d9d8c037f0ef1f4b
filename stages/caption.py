"""Caption: a captioner writes synthetic captions of every live image."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.base import ModelConfig, Stage

if TYPE_CHECKING:
    from models.blip import Captioner

__all__ = ["CaptionConfig", "CaptionStage"]

WRITES: dict[str, pa.DataType] = {
    "synthetic": pa.list_(pa.string()),
    "synthetic_words": pa.list_(pa.int32()),
    "synthetic_repeated": pa.list_(pa.float32()),
}
"""The captions, none at all where the image cannot be decoded; the number of their words; and the
share of their words that were said before, 0.67 for "dai dai dai"."""


@dataclass(frozen=True, kw_only=True)
class CaptionConfig(ModelConfig):
    """How captions are written (CapFilt, arXiv:2201.12086, section 3.3 and 4.4).

    The paper draws one caption an image by nucleus sampling with p = 0.9; the lengths are those
    of its released demo, as the paper gives none for CapFilt.

    Attributes:
        model: The captioner: a folder of `save_pretrained` or a name on the hub; by default the
            released one, fine-tuned on COCO.
        decoding: nucleus, beam or greedy.
        num_captions: Captions an image; one for greedy, up to `num_beams` for beam.
        top_p: The mass of the nucleus.
        top_k: The tokens that may be in the nucleus; 0 is all. (The released code leaves
            transformers' default of 50 in force.)
        repetition_penalty: 1 is none, as in the paper. (The released code has 1.1 with nucleus.)
        num_beams: Of beam search.
        prompt: What every caption goes on from, left out of it.
        max_length: In tokens, [DEC] and the prompt counted.
        min_length: In tokens, [DEC] and the prompt counted.
        seed: Of the sampling.
    """

    stage = "caption"

    model: str = "Salesforce/blip-image-captioning-base"
    decoding: Literal["nucleus", "beam", "greedy"] = "nucleus"
    num_captions: int = 1
    top_p: float = 0.9
    top_k: int = 0
    repetition_penalty: float = 1.0
    num_beams: int = 3
    prompt: str | None = "a picture of "
    max_length: int = 20
    min_length: int = 5
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
        if self.top_k < 0:
            raise ValueError(f"caption.top_k must be at least 0 (all tokens), got {self.top_k}")
        if self.repetition_penalty <= 0:
            raise ValueError(
                f"caption.repetition_penalty must be above 0 (1 is none), got "
                f"{self.repetition_penalty}"
            )
        if not 0 <= self.min_length <= self.max_length:
            raise ValueError(
                f"caption.min_length must be from 0 to max_length ({self.max_length}), got "
                f"{self.min_length}"
            )


class CaptionStage(Stage[CaptionConfig]):
    """Writes `num_captions` synthetic captions of each image.

    The random numbers of a caption are hash(seed, uid, which caption, which token), whatever the
    batch, shard or worker. No caption is judged here: an image whose captions are poor may have
    a good web caption, and the filter judges each text by itself.
    """

    name = "caption"
    version = 1
    config_type = CaptionConfig
    reads = ("image",)
    writes = pa.schema(WRITES)
    reasons: ClassVar[Mapping[str, str]] = {
        "undecodable": "The image cannot be decoded, so it has no captions.",
    }

    _captioner: Captioner | None = None

    def load(self) -> None:
        """Load the captioner."""
        from models.blip import Captioner

        config = self.config
        self._captioner = Captioner.from_pretrained(config.model, **config.placement())

    def annotate(self, rows: pa.Table) -> pa.Table:
        """Caption rows; see `Stage.annotate`."""
        if self._captioner is None:
            self.load()
        assert self._captioner is not None
        config = self.config
        captions = self._captioner.caption(
            [image or b"" for image in rows["image"].to_pylist()],
            [_seed(config.seed, str(uid)) for uid in rows["uid"].to_pylist()],
            decoding=config.decoding,
            num_captions=config.num_captions,
            top_p=config.top_p,
            top_k=config.top_k,
            repetition_penalty=config.repetition_penalty,
            num_beams=config.num_beams,
            prompt=config.prompt,
            max_length=config.max_length,
            min_length=config.min_length,
            batch_size=config.batch_size,
        )
        words = [[caption.split() for caption in some] for some in captions]
        return pa.table(
            {
                "synthetic": captions,
                "synthetic_words": [[len(said) for said in some] for some in words],
                "synthetic_repeated": [[_repeated(said) for said in some] for some in words],
            },
            schema=self.writes,
        )

    def judge(self, annotations: pa.Table) -> pa.StringArray:
        """Reject the images that could not be decoded, and nothing else."""
        count = pc.list_value_length(annotations["synthetic"]).fill_null(0).to_numpy()
        reasons = np.full(len(annotations), None, object)
        reasons[count == 0] = "undecodable"
        return pa.array(reasons, pa.string())


def _seed(seed: int, uid: str) -> int:
    """64 bits for a row."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{uid}".encode(), digest_size=8).digest())


def _repeated(words: list[str]) -> float:
    return 1 - len(set(words)) / len(words) if words else 0.0
