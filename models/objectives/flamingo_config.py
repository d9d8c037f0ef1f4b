"""The settings of Flamingo (Alayrac et al., arXiv 2204.14198)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from models.image.augmentation import Augment
from models.objectives.config import Saved, Schedule, check_least, check_positive
from models.objectives.frozen_config import FrozenLanguageConfig
from models.weights import folder_of

if TYPE_CHECKING:
    from models.objectives.flamingo import Flamingo

__all__ = ["FlamingoConfig"]

OF_DOCUMENTS = ("document_batch_size", "max_document_tokens", "pair_weight", "document_weight")


@dataclass(frozen=True, kw_only=True)
class FlamingoConfig(FrozenLanguageConfig):
    """Flamingo's training: a frozen language model looks at the images between its words.

    A resampler makes a few latents of each image, and gated cross-attention between the layers of
    the language model looks at them. A sequence holds several pairs, or one interleaved document of
    several images: a word reads all that stands before it, and looks at the image right before it
    alone. Where the data have pairs and documents, each step has both, each kind with a loss and a
    backward pass of its own. Image encoder and language model are frozen. The defaults are those of
    OpenFlamingo's code.

    Attributes:
        model: What the training starts from: a CLIP or SigLIP, or what `flamingo` itself has
            trained.
        images: Pairs in a sequence, each with its image; `batch_size` is a multiple of them.
        document_batch_size: Interleaved documents in a step, if the data have some; those of all
            workers together.
        max_document_tokens: Maximum number of tokens of a document. A longer one is cut; if that
            would cut its first image off, it begins with this image.
        pair_weight: Weight of the loss of the pairs in a step that has documents, too.
        document_weight: Weight of the loss of the documents.
        every: Cross-attention stands before every so many-th layer of the language model.
        latents: Made of each image.
        depth: Layers of the resampler.
        heads: Of the resampler and of the cross-attention, each 64 wide.
    """

    name = "flamingo"
    paper = "Flamingo (arXiv 2204.14198)"
    departs = (
        "No videos; several pairs are packed into a sequence; a document has no loss before its "
        "first image, as in OpenFlamingo; weights of the resampler decay as the others do; images "
        "are squashed to a square."
    )
    public = "`openai/clip-vit-large-patch14` with `language: facebook/opt-1.3b`."
    saves: ClassVar[Mapping[str, Saved]] = {
        ".": Saved("Flamingo", "models.inference.trained:Flamingo")
    }
    library = "capfilt"
    task = "image-to-text"
    is_divisible = True

    model: str = "openai/clip-vit-large-patch14"
    images: int = 5
    document_batch_size: int = 160
    max_document_tokens: int = 256
    pair_weight: float = 0.2
    document_weight: float = 1.0
    every: int = 1
    latents: int = 64
    depth: int = 6
    heads: int = 8
    batch_size: int = 320
    epochs: int = 1
    warmup_steps: int = 1875
    warmup_lr: float = 0.0
    schedule: Schedule = "constant"
    weight_decay: float = 0.1
    max_text_tokens: int = 32
    augment: Augment = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 1, "images", "every", "latents", "depth", "heads")
        check_least(self, 1, "document_batch_size")
        check_least(self, 3, "max_document_tokens")  # the beginning, an image, a word
        check_positive(self, "pair_weight", "document_weight")

    @property
    def pairs_together(self) -> int:
        """The pairs of a sequence."""
        return self.images

    def document_settings(self) -> tuple[int, int]:
        """Documents of a step, and the most tokens of one."""
        return self.document_batch_size, self.max_document_tokens

    def measurement(self) -> dict[str, Any]:
        """The settings, without those of documents that have their defaults."""
        own = super().measurement()
        for name in OF_DOCUMENTS:
            if own[name] == getattr(FlamingoConfig, name):
                del own[name]  # as before documents were read
        return own

    def build(self) -> Flamingo:
        """Make the model."""
        from models.objectives.flamingo import Flamingo

        model = Flamingo.from_pretrained(
            folder_of(self.model),
            language=self.language_model and folder_of(self.language_model),
            tokenizer=self.tokenizer and folder_of(self.tokenizer),
            image_size=self.image_size,
            every=self.every,
            latents=self.latents,
            depth=self.depth,
            heads=self.heads,
        )
        model.images = self.images
        model.pair_weight = self.pair_weight
        model.document_weight = self.document_weight
        return model
