"""Transformer blocks of architectures that transformers does not have.

Parameters have the names that they have in open_clip, so that its models load ours.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from models.attention import attend, split_heads

__all__ = ["Attention", "Block", "Blocks", "DecoderBlock", "causal_mask"]


def causal_mask(length: int, device: torch.device) -> Tensor:
    """Mask (L, L), bool: true where a position may attend: itself and those before it."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


class Attention(nn.MultiheadAttention):
    """Multi-head attention with torch's parameters, and the project's faster computation."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, batch_first=True)

    def forward(  # type: ignore[override]
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Attention of x (n, L, width) to a context (n, M, width), by default to x itself.

        Args:
            x: Gives the queries.
            context: Gives the keys and values.
            mask: bool, broadcasts to (n, heads, L, M), true where x may attend.
        """
        assert self.in_proj_weight is not None
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if context is None:
            q, k, v = nn.functional.linear(x, weight, bias).chunk(3, -1)
        else:
            width = self.embed_dim
            q = nn.functional.linear(x, weight[:width], bias[:width])
            k, v = nn.functional.linear(context, weight[width:], bias[width:]).chunk(2, -1)
        q, k, v = (split_heads(one, self.num_heads) for one in (q, k, v))
        out: Tensor = self.out_proj(attend(q, k, v, mask))
        return out


class Block(nn.Module):
    """A pre-norm block: attention and an MLP four times as wide, each added to its input.

    Args:
        width: Width of the tokens.
        heads: Heads of the attention.
        is_cross: Whether it looks at a context instead of at its own tokens.
    """

    def __init__(self, width: int, heads: int, *, is_cross: bool = False) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        if is_cross:
            self.ln_1_kv = nn.LayerNorm(width)
        self.ln_2 = nn.LayerNorm(width)
        c_fc, c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(OrderedDict(c_fc=c_fc, gelu=nn.GELU(), c_proj=c_proj))

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Tokens (n, L, width) after the block; see `Attention.forward`."""
        seen = None if context is None else self.ln_1_kv(context)
        x = x + self.attn(self.ln_1(x), seen, mask)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out

    def start(self, layers: int) -> None:
        """Draw the weights as CLIP's text encoder does, for a stack of so many layers."""
        width = self.attn.embed_dim
        spreads = {
            "attn.in_proj_weight": width**-0.5,
            "attn.out_proj.weight": (width * 2 * layers) ** -0.5,
            "mlp.c_fc.weight": (2 * width) ** -0.5,
            "mlp.c_proj.weight": (width * 2 * layers) ** -0.5,
        }
        for name, spread in spreads.items():
            nn.init.normal_(self.get_parameter(name), std=spread)


class Blocks(nn.Module):
    """A stack of blocks, one after the other."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (n, L, width) after all blocks."""
        for block in self.resblocks:
            x = block(x, mask=mask)
        return x


class DecoderBlock(nn.Module):
    """A pre-norm block of a decoder: attention to itself, to a context, and an MLP.

    Args:
        width: Width of the tokens.
        heads: Heads of both attentions.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.cross = Attention(width, heads)
        self.ln_3 = nn.LayerNorm(width)
        c_fc, c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(OrderedDict(c_fc=c_fc, gelu=nn.GELU(), c_proj=c_proj))

    def forward(
        self, x: Tensor, context: Tensor, mask: Tensor, context_mask: Tensor | None = None
    ) -> Tensor:
        """Tokens (n, L, width) after the block; masks as in `Attention.forward`."""
        x = x + self.attn(self.ln_1(x), mask=mask)
        x = x + self.cross(self.ln_2(x), context, context_mask)
        out: Tensor = x + self.mlp(self.ln_3(x))
        return out
