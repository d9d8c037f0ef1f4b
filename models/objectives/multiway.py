"""Multiway transformers (VLMo, arXiv 2111.02358; BEiT-3, arXiv 2208.10442): attention is shared.

Every layer has a feed-forward network, an expert, for each modality: of images, of texts and, in
the top layers, of both together.

Shapes: n rows, L text tokens, P patches with [CLS], D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from models.attention import attend, split_heads
from models.objectives.masking import kept_paths
from models.objectives.sizes import Size

__all__ = ["Expert", "Multiway", "first_joint_of"]

Expert = Literal["image", "text", "both"]


def first_joint_of(size: Size, joint_layers: int) -> int:
    """The first layer with a network of both modalities, where the top `joint_layers` have one.

    Raises:
        ValueError: The size has fewer layers.
    """
    if joint_layers > size.vision_layers:
        raise ValueError(
            f"train.joint_layers must be at most the {size.vision_layers} layers, got "
            f"{joint_layers}"
        )
    return size.vision_layers - joint_layers


class FeedForward(nn.Module):
    """The norm and the network of an expert.

    Args:
        width: Width of the tokens.
        is_sub_normed: Whether a second norm stands before the last layer (Magneto, arXiv
            2210.06423).
    """

    def __init__(self, width: int, *, is_sub_normed: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, 4 * width)
        self.sub_norm = nn.LayerNorm(4 * width, eps=1e-6) if is_sub_normed else nn.Identity()
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Compute what is added to tokens (n, L, D)."""
        out: Tensor = self.fc2(self.sub_norm(nn.functional.gelu(self.fc1(self.norm(x)))))
        return out


class Layer(nn.Module):
    """Shared attention and the experts behind it.

    Args:
        width: Width of the tokens.
        heads: Heads of the attention.
        has_both: Whether there is an expert of both modalities together.
        scale: The first value of what both additions are multiplied by; None for no factor.
        is_sub_normed: Whether norms stand before the last layers, too.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        has_both: bool,
        scale: float | None,
        is_sub_normed: bool,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.sub_norm = nn.LayerNorm(width, eps=1e-6) if is_sub_normed else nn.Identity()
        self.proj = nn.Linear(width, width)
        experts: tuple[Expert, ...] = ("image", "text", "both") if has_both else ("image", "text")
        self.experts = nn.ModuleDict(
            {name: FeedForward(width, is_sub_normed=is_sub_normed) for name in experts}
        )
        self.gamma_1, self.gamma_2 = (
            None if scale is None else nn.Parameter(torch.full((width,), scale)) for _ in range(2)
        )

    def forward(
        self, x: Tensor, mask: Tensor | None, experts: dict[Expert, int], paths: Tensor | None
    ) -> Tensor:
        """Tokens (n, L, D) after the layer.

        Args:
            x: The tokens.
            mask: bool, broadcasts to (n, heads, L, L), true where a token may look.
            experts: How many tokens each expert reads, in their order.
            paths: (n, 2), factors on what attention and experts add (stochastic depth).
        """
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = nn.functional.linear(self.norm(x), self.qkv.weight, bias)
        q, k, v = (split_heads(one, self.heads) for one in qkv.chunk(3, -1))
        x = x + self._scaled(self.proj(self.sub_norm(attend(q, k, v, mask))), 0, paths)
        parts = x.split(list(experts.values()), 1)  # type: ignore[no-untyped-call]
        added = [self.experts[name](part) for name, part in zip(experts, parts, strict=True)]
        return x + self._scaled(torch.cat(added, 1), 1, paths)

    def _scaled(self, added: Tensor, which: int, paths: Tensor | None) -> Tensor:
        gamma = self.gamma_2 if which else self.gamma_1
        added = added if gamma is None else added * gamma
        return added if paths is None else added * paths[:, which, None, None].to(added.dtype)


class Multiway(nn.Module):
    """Embeddings and layers of a multiway transformer.

    Args:
        width, layers, heads: Numbers of the transformer.
        vocabulary: Number of tokens.
        positions: The longest text, in tokens.
        image_size: Side of the square input, in pixels.
        patch: Side of a patch, in pixels.
        first_joint: The first layer with an expert of both modalities.
        scale: The first layer scale; None for none.
        is_sub_normed: Whether norms stand before the last layers, too (Magneto).
        spread: Standard deviation of new weights, which are cut at one deviation.
        drop_path: The chance that the last layer is skipped in training.
    """

    def __init__(
        self,
        *,
        width: int,
        layers: int,
        heads: int,
        vocabulary: int,
        positions: int,
        image_size: int,
        patch: int,
        first_joint: int,
        scale: float | None,
        is_sub_normed: bool,
        spread: float,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.first_joint = first_joint
        self.drop_path = drop_path
        patches = (image_size // patch) ** 2
        self.patch_embedding = nn.Conv2d(3, width, patch, patch)
        self.cls = nn.Parameter(torch.empty(1, 1, width))
        self.patch_positions = nn.Parameter(torch.empty(1, patches + 1, width))
        self.mask_patch = nn.Parameter(torch.empty(1, 1, width))
        self.words = nn.Embedding(vocabulary, width)
        self.word_positions = nn.Parameter(torch.empty(1, positions, width))
        self.types = nn.Embedding(2, width)
        self.layers = nn.ModuleList(
            [
                Layer(
                    width,
                    heads,
                    has_both=number >= first_joint,
                    scale=scale,
                    is_sub_normed=is_sub_normed,
                )
                for number in range(layers)
            ]
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.trunc_normal_(parameter, std=spread, a=-spread, b=spread)
            elif name.endswith("bias") and "_bias" not in name:
                nn.init.zeros_(parameter)

    def see(self, pixels: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Patches (n, P, D), [CLS] first; those of `hidden`, bool (n, P - 1), are masked."""
        x = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        if hidden is not None:
            x = torch.where(hidden[:, :, None], self.mask_patch.to(x.dtype), x)
        x = torch.cat([self.cls.expand(len(x), -1, -1).to(x.dtype), x], 1)
        patches: Tensor = x + self.patch_positions + self.types.weight[1]
        return patches

    def read(self, tokens: Tensor) -> Tensor:
        """Text tokens (n, L, D)."""
        places = self.word_positions[:, : tokens.shape[1]]
        words: Tensor = self.words(tokens) + places + self.types.weight[0]
        return words

    def forward(
        self,
        words: Tensor | None,
        patches: Tensor | None,
        mask: Tensor | None = None,
        *,
        is_joint: bool = False,
        chances: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of texts, of images, or of texts and images behind them.

        Args:
            words: (n, L, D), or None.
            patches: (n, P, D), or None.
            mask: bool, broadcasts to (n, heads, K, K), true where a token may look.
            is_joint: Whether the top layers' expert of both modalities reads all tokens.
            chances: (n, layers, 2) in [0, 1), which paths are skipped.
        """
        parts = {"text": words, "image": patches}
        there = {name: part for name, part in parts.items() if part is not None}
        x = torch.cat(list(there.values()), 1)
        lengths: dict[Expert, int] = {}
        for name, part in there.items():
            lengths["text" if name == "text" else "image"] = part.shape[1]
        paths = None if chances is None else kept_paths(chances, self.drop_path)
        for number, layer in enumerate(self.layers):
            experts = lengths
            if is_joint and number >= self.first_joint:
                experts = {"both": x.shape[1]}
            x = layer(x, mask, experts, None if paths is None else paths[:, number])
        hidden: Tensor = self.norm(x)
        return hidden
