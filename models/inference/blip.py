"""BLIP (arXiv:2201.12086) from stock checkpoints: the base of captioner and matcher.

Weights and layers are those of transformers; the loops are our own. An image is encoded once, and
its keys and values for cross-attention are computed once, for any number of captions or texts.

Shapes: n images, k captions or texts of an image, t tokens, P patches plus one, D width, h heads.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import BertTokenizer

from models.attention import attend, cross_attention_kv, encode_images, first_fused, split_heads
from models.image.decode import Preprocess
from models.inference.batch_runner import BatchRunner
from models.weights import Dtype, place

__all__ = ["Blip", "ImageMemory"]


class Blip:
    """A stock BLIP model with its tokenizer and preprocessing, in evaluation mode on one device."""

    architecture: ClassVar[Any]

    seen_at_once: ClassVar[int] = 4
    """Images that a CPU encodes at a time, so that activations stay in its caches."""

    def __init__(self, model: Any, tokenizer: Any, preprocess: Preprocess) -> None:
        """Wrap a model that is already loaded.

        Raises:
            ValueError: The preprocessing makes images of another size than the model takes.
        """
        side = model.config.vision_config.image_size
        if preprocess.size != side:
            raise ValueError(
                f"the image processor makes images of {preprocess.size} pixels a side, but the "
                f"model takes {side}; save both from the same training"
            )
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.device: torch.device = model.device
        self.batches = BatchRunner(preprocess.square, self.device, preprocess.threads)

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        revision: str | None = None,
        device: str = "auto",
        dtype: Dtype = "auto",
        threads: int | None = None,
    ) -> Self:
        """Load a model from a folder or the hub; only safetensors, and no code from the hub.

        Args:
            model: A folder written by `save_pretrained`, or a name on the hub.
            revision: A branch, tag or commit on the hub.
            device: cpu, cuda, cuda:1, ...; auto takes CUDA if available.
            dtype: The dtype of the weights; auto is bfloat16 on devices that compute in it, and
                float32 elsewhere.
            threads: Threads that decode images and, on a CPU, compute; set for the whole process.
                None keeps torch's own number.

        Raises:
            ValueError: The checkpoint lacks weights of this architecture.
        """
        placement = place(device, dtype, threads)
        loaded, info = cls.architecture.from_pretrained(
            model,
            revision=revision,
            dtype=placement.dtype,
            use_safetensors=True,
            output_loading_info=True,
        )
        if info["missing_keys"]:
            raise ValueError(
                f"{model!r} is not a {cls.architecture.__name__}: it lacks "
                f"{len(info['missing_keys'])} weights, such as {min(info['missing_keys'])}"
            )
        return cls(
            loaded.to(placement.device),
            BertTokenizer.from_pretrained(model, revision=revision or "main"),
            Preprocess.from_pretrained(model, revision, threads=placement.threads),
        )

    def see(self, squares: Tensor) -> Tensor:
        """Encode images, uint8 (n, size, size, 3), as features (n, P, D)."""
        on_device = squares.to(self.device, non_blocking=True)
        at_once = self.seen_at_once if self.device.type == "cpu" else len(on_device)
        pixels = (self.preprocess.normalize(part) for part in torch.split(on_device, at_once))
        return torch.cat([encode_images(self.model.vision_model, part) for part in pixels])


class ImageMemory:
    """The keys and values of n images for the cross-attention layers of a text tower.

    Args:
        text: A `BlipTextModel` with cross-attention.
        features: (n, P, D).
    """

    def __init__(self, text: Any, features: Tensor) -> None:
        self.num_images = len(features)
        self.first = first_fused(text.config)
        self.crosses = [layer.crossattention for layer in text.encoder.layer[self.first :]]
        self.keys_and_values = [
            (key.contiguous(), value.contiguous())
            for key, value in cross_attention_kv(text, features)
        ]

    def replace(self, features: Tensor) -> None:
        """Replace the first images by others with these features, at most n."""
        for cross, (key, value) in zip(self.crosses, self.keys_and_values, strict=True):
            heads = cross.self.num_attention_heads
            key[: len(features)] = split_heads(cross.self.key(features), heads)
            value[: len(features)] = split_heads(cross.self.value(features), heads)

    def attend(self, index: int, x: Tensor) -> Tensor:
        """Cross-attention of layer `index` for (n * k, t, D); the k rows of an image are adjacent.

        The k rows of an image are queries of one attention, so its keys are not repeated.
        """
        cross = self.crosses[index - self.first]
        queries = cross.self.query(x).view(self.num_images, -1, x.shape[2])
        query = split_heads(queries, cross.self.num_attention_heads)
        context = attend(query, *self.keys_and_values[index - self.first]).view(x.shape)
        return cross.output(context, x)  # type: ignore[no-any-return]
