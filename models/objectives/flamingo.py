"""Flamingo (Alayrac et al., arXiv 2204.14198): a frozen language model that looks at images.

Shapes: n images, s sequences of k images each, q latents of an image, W width of the image encoder,
L tokens of a sequence, D width of the language model.

A sequence is made of `images` pairs, or is an interleaved document. The tokens of a document that
the loss leaves out are kept as their complement, `~token`, which is negative.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from models.attention import attend, split_heads
from models.image.decode import Preprocess
from models.objectives.base import Step
from models.objectives.batch import Batch, Documents
from models.objectives.distributed import balance
from models.objectives.frozen import only_part
from models.objectives.generate import load_language_model
from models.objectives.image_prefix import ImagePrefix
from models.objectives.language_tokenizer import IMAGE, language_tokenizer
from models.objectives.lm import lm_loss
from models.objectives.masking import IGNORED
from models.objectives.model_folder import read_folder, write_folder
from models.objectives.project import HALF, TOWERS

__all__ = ["EOC", "Flamingo", "Shape"]

EOC = "<EOC>"
"""The token that ends the text of an image, as in exported documents."""

HEAD_WIDTH = 64

_VISION: Any = AutoModel
_LANGUAGE: Any = AutoModelForCausalLM


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a Flamingo has beside its two frozen models; see `FlamingoConfig`."""

    every: int
    latents: int
    depth: int
    heads: int


class Seen(NamedTuple):
    """What the tokens of sequences may look at.

    Attributes:
        latents: (s, k * q, W) of the images of each sequence.
        mask: bool (s, 1, L, k * q), true where a token may look; true everywhere in the row of a
            token before the first image.
        has_image: (s, L, 1), 1 for a token behind an image and 0 before.
    """

    latents: Tensor
    mask: Tensor
    has_image: Tensor


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to others, without biases.

    Args:
        width: Of the tokens that ask.
        context_width: Of those that are looked at.
        heads: Each `HEAD_WIDTH` wide.
    """

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        inner = heads * HEAD_WIDTH
        self.heads = heads
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(context_width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention of x (n, L, width) to a context (n, M, context_width); see `attend`."""
        k, v = self.to_kv(context).chunk(2, -1)
        q, k, v = (split_heads(one, self.heads) for one in (self.to_q(x), k, v))
        out: Tensor = self.to_out(attend(q, k, v, mask))
        return out


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, 4 * width, bias=False),
        nn.GELU(),
        nn.Linear(4 * width, width, bias=False),
    )


class ResamplerLayer(nn.Module):
    """Latents look at the features of an image and at themselves."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.norm_features = nn.LayerNorm(width)
        self.attention = CrossAttention(width, width, heads)
        self.feed = _feed_forward(width)

    def forward(self, latents: Tensor, features: Tensor) -> Tensor:
        """Latents (n, q, W) after the layer, of features (n, P, W)."""
        asking = self.norm(latents)
        context = torch.cat([self.norm_features(features), asking], 1)
        latents = latents + self.attention(asking, context)
        out: Tensor = latents + self.feed(latents)
        return out


class Resampler(nn.Module):
    """Makes a few latents out of the features of an image (a Perceiver)."""

    def __init__(self, width: int, shape: Shape) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(shape.latents, width))
        self.layers = nn.ModuleList(
            [ResamplerLayer(width, shape.heads) for _ in range(shape.depth)]
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        """Latents (n, q, W) of features (n, P, W)."""
        latents = self.latents.expand(len(features), -1, -1)
        for layer in self.layers:
            latents = layer(latents, features)
        out: Tensor = self.norm(latents)
        return out


class GatedBlock(nn.Module):
    """Cross-attention before a layer of the language model, behind gates that begin closed.

    Args:
        width: Of the language model.
        context_width: Of the latents.
        heads: Of the attention.

    Attributes:
        seen: What the tokens of the next call may look at.
    """

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = CrossAttention(width, context_width, heads)
        self.attention_gate = nn.Parameter(torch.zeros(1))
        self.feed = _feed_forward(width)
        self.feed_gate = nn.Parameter(torch.zeros(1))
        self.seen: Seen | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states (s, L, D) that have looked at the images."""
        assert self.seen is not None
        latents, mask, has_image = self.seen
        looked = self.attention(self.norm(x), latents, mask) * has_image
        x = x + self.attention_gate.tanh() * looked
        out: Tensor = x + self.feed_gate.tanh() * self.feed(x)
        return out

    def gates(self) -> tuple[Tensor, Tensor]:
        """Both gates before their tanh."""
        return self.attention_gate, self.feed_gate

    def enter(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Look at the images before a layer of the language model is called."""
        if args:
            return (self(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self(kwargs["hidden_states"])}


class Flamingo(ImagePrefix):
    """A frozen image encoder and a frozen language model, what joins them, and its loss.

    Args:
        vision: A stock image encoder.
        model: A stock causal language model.
        tokenizer: Of the language model, with the tokens `IMAGE` and `EOC`.
        shape: The numbers of what joins them.

    Attributes:
        images: Pairs of a sequence, k.
        pair_weight: Weight of the loss of the pairs in a step that has documents, too.
        document_weight: Weight of the loss of the documents.
        opening: How far the gates were open in the last step on average.
        marks: (2, D) the embeddings of the two tokens.
        mark_scores: (2, D) their rows of the head.
    """

    architecture = "Flamingo"
    image_first = False

    def __init__(self, vision: Any, model: Any, tokenizer: Any, shape: Shape) -> None:
        side = vision.config.image_size
        self.is_siglip = vision.config.model_type == "siglip_vision_model"
        preprocess = Preprocess(size=side)
        if self.is_siglip:
            preprocess = Preprocess(size=side, mean=HALF, std=HALF)
        super().__init__(model, tokenizer, 1, preprocess)
        self.vision = vision
        self.shape = shape
        self.images = 1
        self.pair_weight = self.document_weight = 1.0
        self.begin: int = tokenizer("")["input_ids"][0]
        self.end = tokenizer.convert_tokens_to_ids(EOC)
        self.max_text: int = model.config.max_position_embeddings - 1  # the image takes a place
        self.opening = 0.0
        self.freeze(vision, model)
        words = model.get_input_embeddings().weight
        spread = float(words.std())
        self.marks = nn.Parameter(torch.randn(2, words.shape[1]) * spread)
        spread = float(self.head.weight.std())
        self.mark_scores = nn.Parameter(torch.randn(2, self.head.weight.shape[1]) * spread)
        seen_width, width = vision.config.hidden_size, model.config.hidden_size
        self.resampler = Resampler(seen_width, shape)
        layers = self.layers()[shape.every - 1 :: shape.every]
        if not layers:
            raise ValueError(
                f"train.every is {shape.every}, but the language model has fewer layers"
            )
        blocks = [GatedBlock(width, seen_width, shape.heads) for _ in layers]
        for layer, block in zip(layers, blocks, strict=True):
            layer.register_forward_pre_hook(block.enter, with_kwargs=True)
        self.blocks = nn.ModuleList(blocks)

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        revision: str | None = None,
        *,
        language: str | None = None,
        tokenizer: str | None = None,
        image_size: int | None = None,
        every: int = 1,
        latents: int = 64,
        depth: int = 6,
        heads: int = 8,
    ) -> Self:
        """Build from an image encoder and a language model, or from a folder of `write`.

        Args:
            model: A CLIP or SigLIP, or a Flamingo; a folder or a name on the Hugging Face hub.
            revision: Of a hub name.
            language: A causal language model; required for an image encoder.
            tokenizer: Of the language model; its own by default.
            image_size: Side in pixels, that of the image encoder.
            every: See `FlamingoConfig`; a folder of `write` has its own numbers.
            latents: See `FlamingoConfig`.
            depth: See `FlamingoConfig`.
            heads: See `FlamingoConfig`.

        Raises:
            ValueError: The settings do not fit the models; the message names the field.
        """
        folder, config = only_part(os.fspath(model), "model", revision)
        kind = (config.get("architectures") or [""])[0]
        if kind == cls.architecture:
            made = cls._reloaded(folder, revision, tokenizer)
        elif kind in TOWERS:
            tower = getattr(transformers, kind).from_pretrained(
                folder, revision=revision, dtype=torch.float32, use_safetensors=True
            )
            tower = getattr(tower, "vision_model", tower)
            words, reader = load_language_model(language, tokenizer, EOC)
            shape = Shape(every=every, latents=latents, depth=depth, heads=heads)
            vision = _VISION.from_config(tower.config)
            vision.load_state_dict(tower.state_dict())
            made = cls(vision, words, reader, shape)
        else:
            raise ValueError(
                f"train.model: {model} is {kind!r} and none of {', '.join(TOWERS)}, whose image "
                "encoder Flamingo looks through"
            )
        side = made.preprocess.size
        if image_size not in (None, side):
            raise ValueError(
                f"train.image_size must be {side}, that of the frozen image encoder, got "
                f"{image_size}"
            )
        return made

    @classmethod
    def _reloaded(cls, folder: str, revision: str | None, tokenizer: str | None) -> Self:
        settings, state = read_folder(folder, cls.architecture, revision)
        vision, words = (
            AutoConfig.for_model(**settings[part]) for part in ("vision_config", "text_config")
        )
        made = cls(
            _VISION.from_config(vision),
            _LANGUAGE.from_config(words, trust_remote_code=False),
            language_tokenizer(tokenizer or folder, revision),
            Shape(**settings["shape"]),
        )
        made.load_state_dict(state)
        return made

    @property
    def language(self) -> Any:
        """The language model without its head."""
        return self.model.base_model

    @property
    def head(self) -> Any:
        """The head of the language model."""
        return self.model.get_output_embeddings()

    def look(self, pixels: Tensor) -> Tensor:
        """Latents (n, q, W) of normalised images."""
        with torch.no_grad():
            features = self.vision(pixel_values=pixels).last_hidden_state
            if not self.is_siglip:
                features = self.vision.post_layernorm(features[:, 1:])
        latents: Tensor = self.resampler(features)
        return latents

    remember = look

    def pack(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Sequences of `images` pairs that follow one another, without padding in between.

        Args:
            tokens: int64 (n, M), pairs as `tokenize` gives them.

        Returns:
            The tokens, int64 (s, L), and the label of each: itself if the loss asks for it, or
            IGNORED. What fills a shorter sequence is behind all that counts.
        """
        n, first = len(tokens), len(self.prefix())
        labels = functional.pad(self.labels(tokens), (1, 0), value=IGNORED)
        is_kept = labels != IGNORED
        is_kept[:, :first] = True
        # One token begins the whole sequence.
        is_later = torch.arange(n, device=tokens.device) % self.images > 0
        is_kept[:, 0] = ~is_later
        rows = n // self.images
        is_kept = is_kept.view(rows, -1)
        order = (~is_kept).int().argsort(dim=1, stable=True)[:, : int(is_kept.sum(1).max())]
        return tokens.view(rows, -1).gather(1, order), labels.view(rows, -1).gather(1, order)

    def tokenize_documents(self, texts: Sequence[str], max_tokens: int) -> Tensor:
        """int64 (s, L): see `Objective`; asked for are the words behind an image, up to the end."""
        longest = self.model.config.max_position_embeddings
        if max_tokens > longest:
            raise ValueError(
                f"train.max_document_tokens is {max_tokens}, but the language model reads {longest}"
            )
        rows = [self._document(text, max_tokens) for text in texts]
        length = max(map(len, rows))
        return torch.tensor([row + [~self.pad] * (length - len(row)) for row in rows])

    def _document(self, text: str, max_tokens: int) -> list[int]:
        """The tokens of a document; those that the loss leaves out are complemented."""
        words: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if self.image not in words[: max_tokens - 2]:  # an image has a word behind it
            words = words[words.index(self.image) :]
        row, is_asked = [~self.begin], False
        for token in words[: max_tokens - 1]:
            is_image = token == self.image
            row.append(token if is_asked and not is_image else ~token)
            is_asked = is_image or (is_asked and token != self.end)
        return row

    def read_documents(self, documents: Documents) -> tuple[Tensor, Tensor]:
        """Hidden states (s, L - 1, D) of documents, and the label of each, or IGNORED."""
        given = documents.texts
        tokens = torch.where(given < 0, ~given, given)
        number, places = (tokens == self.image).sum(1), documents.pixels.shape[1]
        is_there = torch.arange(places, device=number.device) < number[:, None]
        seen = self.look(documents.pixels[is_there])
        latents = seen.new_zeros(*is_there.shape, *seen.shape[1:])
        latents[is_there] = seen
        hidden = self.read(latents.flatten(0, 1), tokens[:, :-1])
        return hidden, given.masked_fill(given < 0, IGNORED)[:, 1:]

    def read(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Hidden states (s, L, D) of sequences.

        Args:
            features: Latents (n, q, W) of the images, sequence by sequence.
            tokens: int64 (s, L), with the token of an image where each image stands.
        """
        size, each = len(tokens), features.shape[1]
        number = (tokens == self.image).cumsum(1)  # of the last image at or before a token
        images = torch.arange(1, len(features) // size + 1, device=tokens.device)
        has_image = number > 0
        is_own = (number[:, :, None] == images) | ~has_image[:, :, None]
        seen = Seen(
            features.reshape(size, -1, features.shape[2]),
            is_own.repeat_interleave(each, 2)[:, None],
            has_image[:, :, None].to(features.dtype),
        )
        words = self.language.get_input_embeddings()(tokens)
        for token, mark in zip((self.image, self.end), self.marks, strict=True):
            words = torch.where((tokens == token)[:, :, None], mark, words)
        for block in self.blocks:
            block.seen = seen  # type: ignore[assignment]
        hidden: Tensor = self.language(inputs_embeds=words, use_cache=False).last_hidden_state
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        logits = self.head(hidden)
        marks = torch.tensor([self.image, self.end], device=hidden.device)
        scores = functional.linear(hidden, self.mark_scores).to(logits.dtype)
        scored: Tensor = logits.index_copy(-1, marks, scores)
        return scored

    def next_logits(self, memory: Tensor, tokens: Tensor) -> Tensor:
        """Logits (n, V), float32, of the token after texts (n, M) that begin with the first."""
        image = torch.full_like(tokens[:, :1], self.image)
        tokens = torch.cat([tokens[:, :1], image, tokens[:, 1:]], 1)
        logits = self.logits(self.read(memory, tokens)[:, -1]).float()
        logits[:, self.image] = -torch.inf
        return logits

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        """The loss of pairs, `lm`, or of documents, `documents`: the mean over the words asked for.

        These are the words of the captions and their ends.

        Args:
            batch: n pairs on the device of the model; those of a sequence follow one another. Or
                documents.
            step: Where the training is.
        """
        gates = [gate for block in self.blocks for gate in block.gates()]  # type: ignore[operator]
        self.opening = float(torch.cat(gates).detach().tanh().abs().mean())
        if isinstance(batch, Documents):
            loss = self._loss(*self.read_documents(batch))
            return {"documents": loss * self.document_weight}
        tokens, labels = self.pack(batch.texts)
        loss = self._loss(self.read(self.look(batch.pixels), tokens[:, :-1]), labels[:, 1:])
        return {"lm": loss * self.pair_weight if step.has_documents else loss}

    def _loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of hidden states (s, L, D) over the labels (s, L) of all ranks."""
        asked = labels != IGNORED
        count = int(asked.sum())
        loss = hidden.sum() * 0.0
        if count:
            loss = lm_loss(self.logits(hidden[asked]), labels[asked], 0.0)
        return loss * balance(count, loss.device)

    def logged(self) -> dict[str, float]:
        """How far the gates were open in the last step on average, from 0 to 1."""
        return {"gates": self.opening}

    def usage(self, max_text_tokens: int) -> str:
        """Markdown for the model card: what stands before a caption, and where it ends."""
        return (
            "transformers has no Flamingo; `capfilt evaluate` and the stage caption run this "
            f"folder. A sequence held {self.images} times `{IMAGE}`, a caption cut to "
            f"{max_text_tokens} tokens, and `{EOC}`; where the data had interleaved documents, "
            "others held one of these."
        )

    def write(self, folder: Path) -> None:
        """Write config.json, all weights, the tokenizer and the preprocessing."""
        settings = {
            "shape": asdict(self.shape),
            "vision_config": self.vision.config.to_dict(),
            "text_config": self.model.config.to_dict(),
        }
        state = {name: value.clone() for name, value in self.state_dict().items()}  # tied ones too
        write_folder(folder, self.architecture, settings, state)
        self.tokenizer.save_pretrained(folder)
        self.preprocess.save(folder)
