"""Heads: a linear layer or a small MLP that turns an embedding into one number.

    head = Head.load("aesthetic.safetensors")
    head(embeddings)   # (n,) float32

A file holds the weights of the layers, `layers.0.weight` of shape (out, in) and `layers.0.bias`,
`layers.1.weight` and so on; the numbers only give the order. `weight` and `bias` alone are a linear
layer. Its metadata may name the `activation` between the layers (none, relu or gelu; none by
default) and the `output` (none or sigmoid).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

__all__ = ["Head"]

Float32s = npt.NDArray[np.float32]


def _relu(values: Float32s) -> Float32s:
    return np.maximum(values, np.float32(0))


def _gelu(values: Float32s) -> Float32s:
    from scipy.special import erf

    activated: Float32s = values * np.float32(0.5) * (1 + erf(values / np.float32(np.sqrt(2))))
    return activated


def _sigmoid(values: Float32s) -> Float32s:
    from scipy.special import expit

    probabilities: Float32s = expit(values)
    return probabilities


def _same(values: Float32s) -> Float32s:
    return values


ACTIVATIONS: Mapping[str, Callable[[Float32s], Float32s]] = {
    "none": _same,
    "relu": _relu,
    "gelu": _gelu,
}
OUTPUTS: Mapping[str, Callable[[Float32s], Float32s]] = {"none": _same, "sigmoid": _sigmoid}


@dataclass(frozen=True, kw_only=True)
class Head:
    """The layers of a head.

    Attributes:
        layers: The weight (out, in) and bias (out,) of each layer, in order.
        activation: What comes between two layers.
        output: What the last number goes through.
    """

    layers: tuple[tuple[Float32s, Float32s], ...]
    activation: str
    output: str

    @classmethod
    def load(cls, path: str) -> Self:
        """Read a head from a safetensors file.

        Raises:
            ValueError: The file is no such head; the message says why.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "np") as file:
                tensors = {key: np.asarray(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
                metadata = dict(file.metadata() or {})
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path}: cannot be read as safetensors: {error}") from None
        activation = _named(path, metadata, "activation", ACTIVATIONS)
        output = _named(path, metadata, "output", OUTPUTS)
        weights = sorted((k for k in tensors if _is(k, "weight")), key=_order)
        unknown = sorted(k for k in tensors if not _is(k, "weight") and not _is(k, "bias"))
        if unknown or not weights:
            what = f"the tensor {unknown[0]}" if unknown else "no weight"
            raise ValueError(
                f"{path}: it has {what}; a head has layers.0.weight, layers.0.bias, "
                "layers.1.weight and so on"
            )
        layers: list[tuple[Float32s, Float32s]] = []
        for key in weights:
            weight = tensors[key].astype(np.float32)
            bias = tensors.get(f"{key.removesuffix('weight')}bias")
            if weight.ndim != 2 or (layers and weight.shape[1] != len(layers[-1][0])):
                raise ValueError(
                    f"{path}: {key} is of shape {weight.shape}; it must be (out, in), and its in "
                    "the out of the layer before"
                )
            zero = np.zeros(len(weight), np.float32)
            layers.append((weight, zero if bias is None else bias.astype(np.float32).reshape(-1)))
            if len(layers[-1][1]) != len(weight):
                raise ValueError(f"{path}: the bias of {key} has not its {len(weight)} numbers")
        if len(layers[-1][0]) != 1:
            raise ValueError(
                f"{path}: it gives {len(layers[-1][0])} numbers; the last layer must give one"
            )
        return cls(layers=tuple(layers), activation=activation, output=output)

    @property
    def size(self) -> int:
        """Numbers of the embedding that it takes."""
        return int(self.layers[0][0].shape[1])

    def __call__(self, embeddings: Float32s) -> Float32s:
        """The number of each of n embeddings; (n, size) float32 in, (n,) float32 out."""
        values = embeddings
        for number, (weight, bias) in enumerate(self.layers):
            if number:
                values = ACTIVATIONS[self.activation](values)
            values = values @ weight.T + bias
        numbers: Float32s = OUTPUTS[self.output](values[:, 0]).astype(np.float32)
        return numbers


def _is(key: str, kind: str) -> bool:
    return re.fullmatch(rf"(.*\.)?{kind}", key) is not None


def _order(key: str) -> list[tuple[int, Any]]:
    """Sorts layers.10 after layers.2."""
    parts = re.split(r"(\d+)", key)
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts]


def _named(path: str, metadata: Mapping[str, str], key: str, known: Mapping[str, Any]) -> str:
    name = metadata.get(key, "none")
    if name not in known:
        raise ValueError(f"{path}: its {key} is {name!r}; known are {', '.join(known)}")
    return name
