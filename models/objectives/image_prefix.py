"""Language modelling of a text behind an image, for BLIP-2's second stage and LLaVA's first.

Shapes: n images, N image tokens, L tokens of a sequence, D width of the language model.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from models.image.decode import Preprocess
from models.objectives.base import Objective, Step
from models.objectives.batch import Batch
from models.objectives.distributed import balance
from models.objectives.language_tokenizer import IMAGE
from models.objectives.lm import lm_loss
from models.objectives.masking import IGNORED

__all__ = ["ImagePrefix", "end_of", "layers_of", "placeholder"]


def placeholder(tokenizer: Any) -> int:
    """The token that is replaced by the features of an image."""
    found: int = tokenizer.convert_tokens_to_ids(IMAGE)
    return found


def end_of(tokenizer: Any) -> int:
    """The token that ends a caption: a line break, or the tokenizer's end where it has none."""
    ids = tokenizer("\n", add_special_tokens=False)["input_ids"]
    if ids and ids[-1] != tokenizer.unk_token_id:
        return int(ids[-1])
    return int(tokenizer.eos_token_id)


def layers_of(language: Any) -> list[nn.Module]:
    """The layers of a stock language model without its head.

    Raises:
        ValueError: They are not in a list.
    """
    number = language.config.num_hidden_layers
    for module in language.modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return list(module)
    raise ValueError(
        f"train.language: {type(language).__name__} has no list of {number} layers, which Flamingo "
        "and `shard` need"
    )


class ImagePrefix(Objective):
    """A language model that continues from an image, with the loss of the caption's words.

    Args:
        model: A stock model of images and texts.
        tokenizer: Tokenizer of its language model, made by `language_tokenizer`.
        image_tokens: Number of tokens that stand for an image, N.
        preprocess: Preprocessing of the images.

    Attributes:
        prompt: Text between the image and each caption; the loss leaves it out.
        frozen: Modules that are not trained and stay in evaluation mode.
    """

    image_first = True
    """Whether the image stands before the token that begins a text, or behind it."""

    frozen: tuple[nn.Module, ...]

    def __init__(
        self, model: Any, tokenizer: Any, image_tokens: int, preprocess: Preprocess
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.image_tokens = image_tokens
        self.preprocess = preprocess
        self.prompt = ""
        self.image = placeholder(tokenizer)
        self.end = end_of(tokenizer)
        self.pad: int = tokenizer.pad_token_id
        self.frozen = ()

    @property
    @abstractmethod
    def language(self) -> Any:
        """The language model without its head."""

    @property
    @abstractmethod
    def head(self) -> nn.Module:
        """The head of the language model."""

    @abstractmethod
    def look(self, pixels: Tensor) -> Tensor:
        """Features (n, N, D) of normalised images."""

    def freeze(self, *modules: nn.Module) -> None:
        """Freeze some modules and put them in evaluation mode."""
        for module in modules:
            module.requires_grad_(False).eval()
        self.frozen = (*self.frozen, *modules)

    def thaw(self, *modules: nn.Module) -> None:
        """Train some frozen modules again."""
        for module in modules:
            module.requires_grad_(True)
        self.frozen = tuple(one for one in self.frozen if all(one is not m for m in modules))

    def layers(self) -> list[nn.Module]:
        """The layers of the language model."""
        return layers_of(self.language)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; frozen modules stay in evaluation mode."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def prepare(self, caption: str) -> str:
        """The caption with single spaces in the place of other whitespace."""
        return " ".join(caption.split())

    def normalize(self, squares: Tensor) -> Tensor:
        """float32 (n, 3, S, S), as the image encoder reads it, of uint8 (n, S, S, 3)."""
        return self.preprocess.normalize(squares)

    def prefix(self) -> list[int]:
        """The tokens before every caption: the image's, the beginning of a text, the prompt."""
        image, begin = [self.image] * self.image_tokens, self.tokenizer("")["input_ids"]
        words = self.tokenizer(self.prompt, add_special_tokens=False)["input_ids"]
        return [*(image + begin if self.image_first else begin + image), *words]

    def tokenize(self, texts: Sequence[str], max_tokens: int) -> Tensor:
        """int64 (n, L): the prefix, then texts cut to `max_tokens` and ended, padded."""
        prefix = self.prefix()
        words = [self._words(text) for text in texts]
        rows = [[*prefix, *ids[: max_tokens - 1], self.end] for ids in words]
        length = max(map(len, rows))
        return torch.tensor([row + [self.pad] * (length - len(row)) for row in rows])

    def _words(self, text: str) -> list[int]:
        """The tokens of a text, without those that stand for an image or end a text."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [token for token in ids if token not in (self.image, self.end)]

    def labels(self, tokens: Tensor) -> Tensor:
        """int64 (n, L - 1): the next token; IGNORED in the prefix and behind the end."""
        first = len(self.prefix())
        text = tokens[:, first:]
        ended = (text == self.end).cumsum(1)
        is_over = (ended > 0) & ~((text == self.end) & (ended == 1))
        labels = tokens.clone()
        labels[:, :first] = IGNORED
        labels[:, first:] = text.masked_fill(is_over, IGNORED)
        return labels[:, 1:]

    def read(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Hidden states (n, L, D) of sequences; image features replace the image tokens."""
        words = self.language.get_input_embeddings()(tokens)
        is_image = (tokens == self.image)[:, :, None].expand_as(words)
        words = words.masked_scatter(is_image, features.to(words.dtype))
        hidden: Tensor = self.language(inputs_embeds=words, use_cache=False).last_hidden_state
        return hidden

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        """The loss, `lm`: the mean over the words of the captions and their ends.

        Args:
            batch: n pairs on the device of the model.
            step: Where the training is.
        """
        labels = self.labels(batch.texts)
        asked = labels != IGNORED
        hidden = self.read(self.look(batch.pixels), batch.texts[:, :-1])[asked]
        loss = lm_loss(self.head(hidden), labels[asked], 0.0)
        return {"lm": loss * balance(int(asked.sum()), loss.device)}

    def usage(self, max_text_tokens: int) -> str:
        """Markdown for the model card: what stands before a caption, and where it ends."""
        before = f", then `{self.prompt}`" if self.prompt.strip() else " and nothing else"
        return (
            f"Each image stands for {self.image_tokens} tokens `{IMAGE}`, which the processor of "
            f"the folder puts into the text{before}. Captions were cut to {max_text_tokens} "
            "tokens and end with a line break, or with the end of a text where the tokenizer has "
            "no token for one; `generation_config.json` says so."
        )

    def end_generation(self) -> None:
        """Make `generate` of the stock model stop at the token that ended captions in training."""
        generation = self.model.generation_config
        generation.eos_token_id = self.end
        generation.pad_token_id = self.pad
        generation.bos_token_id = self.tokenizer.bos_token_id
