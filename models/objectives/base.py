"""The interface of an objective: a model that computes losses and is saved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from models.image.decode import Preprocess
from models.objectives.batch import Batch, tokenize

__all__ = ["Objective", "Step"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """The position of a training when the losses of a batch are computed.

    Attributes:
        number: Steps of the optimiser before this one.
        steps_an_epoch: Steps in a pass over the images.
        parts: Number of parts that the batch of a step is computed in, one after the other.
        streams: Streams of the data in the batch, whose pairs follow one another in equal numbers.
        has_documents: Whether the step has a batch of documents, too.
        generator: Draws the random numbers of the losses; in the same state on each rank.
    """

    number: int = 0
    steps_an_epoch: int = 1
    parts: int = 1
    streams: int = 1
    has_documents: bool = False
    generator: torch.Generator | None = None

    def ramp(self, epochs: float) -> float:
        """A factor that rises evenly from 0 at the first step to 1 after so many epochs."""
        return min(1.0, self.number / max(1.0, epochs * self.steps_an_epoch))


class Objective(nn.Module, ABC):
    """A model with its losses.

    Parameters that are frozen (`requires_grad` is false) are not in the checkpoint: `build` must
    give them the same values every time. What a step changes beside the trained parameters is in
    `memory`.

    Under `torch.distributed` a batch is this rank's share of the whole batch, and the trained
    parameters get the mean of the ranks' gradients.

    Attributes:
        tokenizer: Reads the texts.
        frozen_parts: The parts that `freeze_parts` has frozen.
    """

    tokenizer: Any
    frozen_parts: tuple[nn.Module, ...] = ()

    def parts(self) -> dict[str, nn.Module]:
        """The parts that can be frozen, by their names in a manifest's `freeze`."""
        return {}

    def freeze_parts(self, names: Sequence[str], dtype: torch.dtype) -> None:
        """Freeze some parts, put them in evaluation mode and convert them to a dtype."""
        parts = self.parts()
        self.frozen_parts = tuple(
            parts[name].requires_grad_(False).to(dtype).eval() for name in names
        )

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all parts but the frozen ones."""
        super().train(mode)
        for part in self.frozen_parts:
            part.eval()
        return self

    def layers(self) -> Sequence[nn.Module]:
        """The layers that are gathered one by one where the weights are divided among workers.

        Each must only be computed by a call. They are asked for if the config has `is_divisible`.
        """
        return []

    def prepare(self, caption: str) -> str:
        """The text that is tokenized for a caption as it was found."""
        return caption

    def tokenize(self, texts: Sequence[str], max_tokens: int) -> Tensor:
        """int64 (n, L): the tokens of texts, cut to `max_tokens`, padded to the longest."""
        return tokenize(self.tokenizer, texts, max_tokens)

    def tokenize_documents(self, texts: Sequence[str], max_tokens: int) -> Tensor:
        """int64 (n, L): the tokens of documents, of which L is at most `max_tokens`.

        It is asked for if the config has `document_settings`.

        Args:
            texts: Texts with `<image>` where an image stands, once at least, and `<EOC>` where the
                text of an image ends.
            max_tokens: Longer documents are cut.

        Raises:
            TypeError: The class does not define it.
        """
        raise TypeError(
            f"{type(self).__name__} must define tokenize_documents, since its config has "
            "document_settings"
        )

    def normalize(self, squares: Tensor) -> Tensor:
        """float32 (n, 3, S, S), as the model reads it, of uint8 (n, S, S, 3)."""
        return Preprocess().normalize(squares)

    @abstractmethod
    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        """The losses by name, weighted: their sum is minimised."""

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that the optimiser changes, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def memory(self) -> dict[str, Tensor]:
        """The tensors that a step changes beside the trained parameters, by name.

        Examples are a queue, running means or momentum encoders. A checkpoint holds them, and a
        training that resumes copies them back into these same tensors. They must stay finite: a
        step with losses that are not finite is left out, but what it wrote here would stay.
        """
        return {}

    def logged(self) -> dict[str, float]:
        """Numbers to log after a step beside the losses, such as a temperature."""
        return {}

    def sample(self, pixels: Tensor) -> list[str]:
        """Captions of normalised images, for the log; empty where the model writes none."""
        return []

    def usage(self, max_text_tokens: int) -> str:
        """Markdown for the model card: how a text must be prepared for the saved model.

        Args:
            max_text_tokens: Tokens that texts were cut to in training.
        """
        return "Texts are read as the tokenizer makes them; nothing is changed before."

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write the folders that the config's `saves` names, as safetensors and JSON."""
