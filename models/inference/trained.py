"""Models of architectures that transformers does not have, run as the stages run stock ones.

    coca = Coca.from_pretrained("runs/mine/models/coca")
    coca.caption([jpeg], seeds=[0])   # captions, as of BLIP's captioner
    coca.score([jpeg], [["a dog"]])   # cosines, as of CLIP

A class here is what such a model can do: it embeds (`Embeds`), matches (`Judges`) or writes
(`Describes`). The computation is the objective's own, which the model was trained with.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers.utils.hub import cached_file

from models.inference.batch_runner import BatchRunner, check_one_each
from models.inference.decoding import Caption, Settings
from models.inference.dual_encoder import Similarity
from models.inference.generation import Reread, write
from models.inference.matcher import Match
from models.weights import Dtype, place

__all__ = [
    "BEiT3Captioner",
    "BEiT3Retrieval",
    "Coca",
    "Describes",
    "Embeds",
    "Flamingo",
    "Judges",
    "QFormer",
    "SimVLM",
    "Trained",
    "VLMo",
    "Vilt",
    "architecture_in",
]


def architecture_in(model: str, revision: str | None = None) -> str:
    """The architecture that the config.json of a folder or of a model on the hub names, or ""."""
    path = cached_file(model, "config.json", revision=revision)
    assert path is not None
    named = json.loads(Path(path).read_text(encoding="utf-8")).get("architectures") or [""]
    return str(named[0])


class Trained:
    """A model that an objective of this project trained, in evaluation mode on one device.

    Attributes:
        max_text: Tokens of a text that are read; the rest is cut.
        longest: Tokens of the longest caption that it can write.
    """

    objective: ClassVar[str]
    """`module:Class` of the objective."""

    texts_at_once: ClassVar[int] = 256

    def __init__(self, model: Any, device: str = "cpu", threads: int = 4) -> None:
        self.model = model.eval().requires_grad_(False)
        self.device = torch.device(device)
        self.tokenizer = model.tokenizer
        self.dtype: torch.dtype = next(model.parameters()).dtype
        self.max_text: int = model.max_text
        self.longest: int = getattr(model, "longest", model.max_text)
        self.batches = BatchRunner(model.preprocess.square, self.device, threads)

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        revision: str | None = None,
        device: str = "auto",
        dtype: Dtype = "auto",
        threads: int | None = None,
    ) -> Self:
        """Load a model folder or a model of the hub; see `Blip.from_pretrained`."""
        placement = place(device, dtype, threads)
        module, _, name = cls.objective.partition(":")
        kind = getattr(importlib.import_module(module), name)
        loaded = kind.from_pretrained(model, revision)
        return cls(
            loaded.to(placement.device, placement.dtype), placement.device, placement.threads
        )

    def see(self, squares: Tensor) -> Tensor:
        """Normalised images (n, 3, S, S) of uint8 (n, S, S, 3), on the model's device."""
        pixels: Tensor = self.model.normalize(squares.to(self.device))
        return pixels.to(self.dtype)

    def read(self, texts: Sequence[str]) -> Tensor:
        """int64 (n, L) tokens of texts, prepared as in training."""
        prepared = [self.model.prepare(text) for text in texts]
        tokens: Tensor = self.model.tokenize(prepared, self.max_text)
        return tokens.to(self.device)

    def unread(self, texts: Sequence[str]) -> list[int]:
        """How many tokens at the end of each text are cut off."""
        if not texts:
            return []
        prepared = [self.model.prepare(text) for text in texts]
        whole = self.tokenizer(prepared, verbose=False)["input_ids"]
        return [max(0, len(ids) - self.max_text) for ids in whole]


class Embeds(Trained):
    """A model that embeds images and texts in one space; see `Embedder`."""

    def embed_images(self, images: Sequence[bytes], batch_size: int | None = None) -> Tensor:
        """Unit embeddings of encoded images; see `Ranks`.

        Raises:
            ImageError: An image cannot be decoded.
        """

        def embed(positions: list[int], squares: Tensor) -> list[Tensor]:
            return list(self.model.embed_images(self.see(squares)))

        return torch.stack(self.batches.map_all(images, embed, batch_size))

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings (m, d) of texts; see `Ranks`."""
        at_once = self.texts_at_once
        parts = (texts[start : start + at_once] for start in range(0, len(texts), at_once))
        return torch.cat([self.model.embed_texts(self.read(part)) for part in parts])

    def logits(self, cosines: Tensor) -> Tensor:
        """See `Embedder.logits`."""
        scaled: Tensor = cosines * self.model.logit_scale.float().exp()
        return scaled

    def score(
        self,
        images: Sequence[bytes],
        texts: Sequence[Sequence[str]],
        batch_size: int | None = None,
    ) -> list[list[Any]]:
        """The cosine of each text with its image; see `DualEncoder.score`."""
        check_one_each(images, texts, "list of texts")
        unread = [self.unread(own) for own in texts]

        def compare(positions: list[int], squares: Tensor) -> list[list[Any]]:
            cosines = self._cosines(squares, [texts[position] for position in positions])
            return [
                [Similarity(*one) for one in zip(own, unread[position], strict=True)]
                for position, own in zip(positions, cosines, strict=True)
            ]

        return [found or [] for found in self.batches.map(images, compare, batch_size)]

    def _cosines(self, squares: Tensor, texts: list[Sequence[str]]) -> list[list[float]]:
        """The cosine of each text with its image."""
        seen = self.model.embed_images(self.see(squares))
        # Of several embeddings of an image the one most like a text counts.
        return [
            (self.embed_texts(own) @ image.reshape(-1, image.shape[-1]).T).amax(1).tolist()
            if own
            else []
            for own, image in zip(texts, seen, strict=True)
        ]


class Judges(Trained):
    """A model that judges an image and a text together; see `Matches`."""

    def match(
        self,
        images: Sequence[bytes],
        texts: Sequence[Sequence[str]],
        batch_size: int | None = None,
    ) -> list[Tensor]:
        """For each image, logits (k, 2) of its k texts; column 1 says that they match.

        Raises:
            ImageError: An image cannot be decoded.
        """
        check_one_each(images, texts, "list of texts")

        def judge(positions: list[int], squares: Tensor) -> list[Tensor]:
            return self._judge(squares, [texts[position] for position in positions])

        return self.batches.map_all(images, judge, batch_size)

    def score(
        self,
        images: Sequence[bytes],
        texts: Sequence[Sequence[str]],
        batch_size: int | None = None,
    ) -> list[list[Any]]:
        """Score every text against its image; see `Matcher.score`.

        `itc` is NaN for a model that does not embed.
        """
        check_one_each(images, texts, "list of texts")
        unread = [self.unread(own) for own in texts]

        def judge(positions: list[int], squares: Tensor) -> list[list[Any]]:
            some = [texts[position] for position in positions]
            cosines = (
                self._cosines(squares, some)
                if isinstance(self, Embeds)
                else [[math.nan] * len(own) for own in some]
            )
            return [
                [Match(*one) for one in zip(itm, itc, unread[position], strict=True)]
                for position, itm, itc in zip(
                    positions,
                    (logits.softmax(-1)[:, 1].tolist() for logits in self._judge(squares, some)),
                    cosines,
                    strict=True,
                )
            ]

        return [found or [] for found in self.batches.map(images, judge, batch_size)]

    def _judge(self, squares: Tensor, texts: list[Sequence[str]]) -> list[Tensor]:
        memory = self.model.remember(self.see(squares))
        places = [(row, text) for row, own in enumerate(texts) for text in own]
        parts = []
        for start in range(0, len(places), self.texts_at_once):
            some = places[start : start + self.texts_at_once]
            rows = torch.tensor([row for row, _ in some], device=self.device)
            tokens = self.read([text for _, text in some])
            parts.append(self.model.match(tokens, memory[rows]).float())
        if not parts:
            return [torch.zeros(0, 2) for _ in texts]
        return list(torch.split(torch.cat(parts), [len(own) for own in texts]))


class Describes(Trained):
    """A model that writes captions."""

    def caption(
        self,
        images: Sequence[bytes],
        seeds: Sequence[int],
        settings: Settings | None = None,
        *,
        prompt: str | None = "",
        batch_size: int | None = None,
    ) -> list[list[Caption]]:
        """Write captions of each image; see `Captioner.caption`."""
        settings = settings or Settings()
        check_one_each(images, seeds, "seed")
        words = self.tokenizer(prompt or "", add_special_tokens=False)["input_ids"]
        begun = torch.tensor([self.model.begin, *words], device=self.device)
        if not len(begun) < settings.max_length <= self.longest:
            raise ValueError(
                f"max_length counts the {len(begun)} tokens of the beginning and the prompt and "
                f"must be from {len(begun) + 1} to {self.longest}, got {settings.max_length}"
            )
        end, pad = self.model.end, self.model.pad

        def describe(positions: list[int], squares: Tensor) -> list[list[Caption]]:
            decoder = Reread(self.model.next_logits, self.model.remember(self.see(squares)))
            some = [seeds[position] for position in positions]
            ids = write(decoder, begun, some, settings, end=end, pad=pad)[:, :, len(begun) :]
            return [[self._caption(row) for row in rows] for rows in ids.tolist()]

        return [found or [] for found in self.batches.map(images, describe, batch_size)]

    def write_captions(
        self, images: Sequence[bytes], settings: Settings, batch_size: int | None = None
    ) -> list[str]:
        """The best caption of each image; see `Writes`.

        Raises:
            ImageError: An image cannot be decoded.
        """
        prompt = getattr(self.model, "prompt", "")
        longest = min(settings.max_length, self.longest)
        settings = dataclasses.replace(settings, max_length=longest)
        written = self.caption(
            images, [0] * len(images), settings, prompt=prompt, batch_size=batch_size
        )
        for image, captions in zip(images, written, strict=True):
            if not captions:
                self.batches.open_image(image)  # raises what is wrong with it
        return [captions[0].text for captions in written]

    def _caption(self, ids: list[int]) -> Caption:
        truncated = self.model.end not in ids
        if not truncated:
            ids = ids[: ids.index(self.model.end)]
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return Caption(text.removeprefix("##").strip(), truncated)


class BEiT3Captioner(Describes):
    """BEiT-3 (arXiv 2208.10442), tuned for captions."""

    objective = "models.objectives.beit3:Beit3"


class BEiT3Retrieval(Embeds):
    """BEiT-3 (arXiv 2208.10442), tuned for retrieval."""

    objective = "models.objectives.beit3:Beit3"


class Coca(Embeds, Describes):
    """CoCa (arXiv 2205.01917): cosines and captions."""

    objective = "models.objectives.coca:Coca"


class Flamingo(Describes):
    """Flamingo (arXiv 2204.14198): captions."""

    objective = "models.objectives.flamingo:Flamingo"


class QFormer(Judges, Embeds, Describes):
    """BLIP-2's first stage (arXiv 2301.12597): cosines, matching and captions."""

    objective = "models.objectives.qformer:QFormer"


class SimVLM(Describes):
    """SimVLM (arXiv 2108.10904): captions."""

    objective = "models.objectives.simvlm:SimVLM"


class VLMo(Judges, Embeds):
    """VLMo (arXiv 2111.02358): cosines and matching."""

    objective = "models.objectives.vlmo:Vlmo"


class Vilt(Judges):
    """ViLT (arXiv 2102.03334): matching."""

    objective = "models.objectives.vilt:Vilt"
