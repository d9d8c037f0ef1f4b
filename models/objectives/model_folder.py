"""Model folders of architectures that transformers does not have: JSON settings and safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer
from transformers.utils.hub import cached_file

from models.objectives.sizes import Size

__all__ = [
    "first_and_last",
    "load_model",
    "load_tokenizer",
    "read_folder",
    "side_of",
    "write_folder",
]


class Shape(Protocol):
    """The settings that a model is built from."""

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""


ShapeT = TypeVar("ShapeT", bound=Shape)
ModelT = TypeVar("ModelT", bound=nn.Module)


def write_folder(
    folder: Path, architecture: str, settings: Mapping[str, Any], state: Mapping[str, Tensor]
) -> None:
    """Write config.json, which names the architecture, and model.safetensors.

    Args:
        folder: Created if necessary.
        architecture: Name of the architecture, for config.json.
        settings: The settings that the model is built from, as JSON values.
        state: The weights; buffers that the model makes by itself may be left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"architectures": [architecture], **settings}
    text = json.dumps(whole, indent=2, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    plain = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})


def read_folder(
    model: str | os.PathLike[str],
    architecture: str | tuple[str, ...],
    revision: str | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write_folder` wrote, weights as float32.

    Args:
        model: A folder, or a name on the Hugging Face hub.
        architecture: The architecture that the folder must have, or several that it may have.
        revision: Revision of a name on the hub.

    Raises:
        OSError: There is no such folder or model.
        ValueError: It is of another architecture.
    """
    name = os.fspath(model)
    config, weights = (
        cached_file(name, file, revision=revision) for file in ("config.json", "model.safetensors")
    )
    assert config is not None and weights is not None
    settings: dict[str, Any] = json.loads(Path(config).read_text(encoding="utf-8"))
    architectures = settings.pop("architectures", None)
    wanted = (architecture,) if isinstance(architecture, str) else architecture
    if not architectures or architectures[0] not in wanted:
        raise ValueError(
            f"train.model: {name} is not {wanted[0]} but {architectures}: name a size or a "
            f"model that this objective has trained"
        )
    state = {
        key: value.to(torch.float32) if value.is_floating_point() else value
        for key, value in load_file(weights).items()
    }
    return settings, state


def load_model(
    make: Callable[[ShapeT, Any], ModelT],
    shape_of: Callable[[dict[str, Any]], ShapeT],
    name: str,
    architecture: str | tuple[str, ...],
    *,
    revision: str | None,
    tokenizer: str | None,
    image_size: int | None,
) -> ModelT:
    """Build a model with the weights and the tokenizer of a folder of `write_folder`.

    Args:
        make: Builds the model from its shape and a tokenizer.
        shape_of: Builds the shape from the settings in config.json.
        name: A folder, or a name on the Hugging Face hub.
        architecture: See `read_folder`.
        revision: Revision of a name on the hub.
        tokenizer: Another tokenizer than the folder's: a folder or name.
        image_size: Side of the images in pixels; None takes that of the folder.

    Raises:
        OSError: There is no such folder or model.
        ValueError: It is of another architecture or image size.
    """
    settings, state = read_folder(name, architecture, revision)
    shape = shape_of(settings)
    if image_size not in (None, shape.image_size):
        raise ValueError(
            f"train.image_size must be {shape.image_size} for {name}, got {image_size}"
        )
    reader = AutoTokenizer.from_pretrained(
        tokenizer or name, revision=None if tokenizer else revision, trust_remote_code=False
    )
    model = make(shape, reader)
    model.load_state_dict(state)
    return model


def side_of(size: Size, image_size: int | None, patch: int) -> int:
    """Return the side of the images in pixels: the given one, or that of the size.

    Raises:
        ValueError: Patches of the side `patch` do not fill it.
    """
    side = image_size or size.image_size
    if side % patch:
        raise ValueError(f"train.image_size must be a multiple of patch_size {patch}, got {side}")
    return side


def load_tokenizer(name: str | None, size: str) -> Any:
    """The tokenizer for a model of a size.

    Raises:
        ValueError: None is named.
    """
    if name is None:
        raise ValueError(
            f"train.tokenizer: model {size!r} is an architecture and needs a tokenizer"
        )
    return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def first_and_last(tokenizer: Any) -> tuple[int, int]:
    """The tokens that a tokenizer puts before and behind every text.

    Raises:
        ValueError: It does not put both, or pads with one of them.
    """
    ids = tokenizer("")["input_ids"]
    if len(ids) != 2 or tokenizer.pad_token_id in (None, *ids):
        raise ValueError(
            "train.tokenizer: it must begin and end each text with a token of its own and pad "
            "with a third one, as BERT's does"
        )
    return ids[0], ids[1]
