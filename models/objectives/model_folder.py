"""Model folders of architectures that transformers does not have: JSON settings and safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer
from transformers.utils.hub import cached_file

__all__ = ["first_and_last", "load_tokenizer", "read_folder", "write_folder"]


def write_folder(
    folder: Path, architecture: str, settings: Mapping[str, Any], state: Mapping[str, Tensor]
) -> None:
    """Write config.json, which names the architecture, and model.safetensors.

    Args:
        folder: Created if necessary.
        architecture: Of the model.
        settings: JSON-able, what the model is built from.
        state: Its weights; buffers that it makes by itself need not be there.
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
        architecture: That it must have, or those of which it must have one.
        revision: Of a hub name.

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
