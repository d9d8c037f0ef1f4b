"""ALBEF's pre-training (Li et al., arXiv 2107.07651): contrast, matching and masked words.

The model is BLIP's matcher whose lower text layers do not look at images, with a head that predicts
masked words. The head serves pre-training alone and is not saved, so that the trained model is a
folder that stock `BlipForImageTextRetrieval` loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.attention import Memory, cross_attention_kv, encode_texts
from models.objectives.base import Step
from models.objectives.batch import Batch
from models.objectives.blip import MED
from models.objectives.distributed import balance
from models.objectives.itc import Momentum
from models.objectives.masking import IGNORED, MaskedHead, distilled, mask_tokens

__all__ = ["Albef"]


class Albef(MED):
    """BLIP's matcher as ALBEF has it, with the head of masked language modelling.

    Attributes:
        mlm: The head.
    """

    slow_sees_patches = True  # the momentum text encoder looks at the images

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        if self.matcher is None or self.captioner is not None:
            raise ValueError("ALBEF has a matcher and no captioner")
        self._start_fusion()
        text = self.config.text_config
        self.mlm = MaskedHead(text.hidden_size, text.vocab_size, text.initializer_range)

    def _start_fusion(self) -> None:
        """Let the lower half of the text layers read the text alone, unless it does already.

        Raises:
            ValueError: There is a single text layer.
        """
        assert self.matcher is not None
        if self.first_fused:
            return
        layers: Any = self.matcher.text_encoder.encoder.layer
        if len(layers) < 2:
            raise ValueError(
                "train.model: ALBEF halves the text layers, and the model has one: use a larger one"
            )
        self.config.text_config.fusion_layer = len(layers) // 2
        with torch.no_grad():
            for layer in layers[: self.first_fused]:
                # Stock transformers adds cross-attention in every layer and norms the sum. Here it
                # adds 0, and its norm takes the place of the self-attention's norm.
                own, cross = layer.attention.output.LayerNorm, layer.crossattention.output
                cross.LayerNorm.load_state_dict(own.state_dict())
                own.weight.fill_(1.0)
                own.bias.zero_()
                cross.dense.weight.zero_()
                cross.dense.bias.zero_()
        self._freeze_unfused()

    def take_head(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the weights of BERT's head of masked language modelling."""
        own = {
            name.replace("transform.", "").replace("LayerNorm", "norm"): weight
            for name, weight in weights.items()
        }
        if own:
            more = self.mlm.bias.new_zeros(len(self.mlm.bias) - len(own["bias"]))
            self.mlm.load_state_dict({**own, "bias": torch.cat([own["bias"], more])})

    def start_momentum(self, *, queue_size: int = 65536, decay: float = 0.995) -> None:
        """Copy the encoders and the head as momentum encoders and empty the queue."""
        assert self.matcher is not None
        self.momentum = Momentum(self.matcher, queue_size, decay, self.mlm)

    def _followed(self) -> dict[str, nn.Parameter]:
        head = {f"mlm.{name}": weight for name, weight in self.mlm.named_parameters()}
        return super()._followed() | head

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        """The losses `itc`, `itm` and `mlm`; see `MED.forward`."""
        images, slow = self._encode(batch, step)
        assert slow is not None
        losses, memory = self._contrast_and_match(batch, images, slow, step)
        losses["mlm"] = self._mlm(batch, memory, slow, step)
        return losses

    def _mlm(self, batch: Batch, memory: Memory, slow: Tensor, step: Step) -> Tensor:
        """Masked language modelling beside the image, distilled from the momentum model."""
        assert self.matcher is not None and self.momentum is not None
        tokenizer, longest = self.tokenizer, self.config.text_config.max_position_embeddings
        chances = batch.chances((longest, 3), step.generator)[:, : batch.texts.shape[1]]
        tokens, labels = mask_tokens(
            batch.texts,
            chances,
            special=(self.pad, tokenizer.cls_token_id),
            mask=tokenizer.mask_token_id,
            vocabulary=self.dec,
        )
        tokens[:, 0] = self.enc
        asked, mask = labels != IGNORED, batch.texts != self.pad

        def guess(encoder: Any, head: Any, memory: Memory) -> Tensor:
            hidden = encode_texts(encoder, tokens, mask, memory, recompute=self._recomputes)
            logits: Tensor = head(hidden[asked], encoder.embeddings.word_embeddings.weight)
            return logits

        with torch.no_grad():
            encoder = self.momentum.text_encoder
            believed = guess(encoder, self.momentum.mlm, cross_attention_kv(encoder, slow))
        logits = guess(self.matcher.text_encoder, self.mlm, memory)
        alpha = self.alpha * step.ramp(self.alpha_epochs)
        loss = distilled(logits, labels[asked], believed, alpha)
        return loss * balance(len(logits), tokens.device)
