"""Small trained models that objectives with frozen parts start from, made once a process."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import torch
from torch import nn

from helpers import nano
from models.objectives.base import Objective
from models.objectives.clip import Contrastive
from models.objectives.generate import Generate
from models.objectives.language import Language
from models.objectives.project import Project
from models.objectives.qformer import QFormer

__all__ = ["blip_of", "clip_of", "language_of", "llava_of", "minigpt4_of", "qformer_of"]


def _folder(name: str) -> Path:
    top = tempfile.mkdtemp(prefix="capfilt-starts-")
    atexit.register(shutil.rmtree, top, ignore_errors=True)
    return Path(top) / name


@functools.cache
def blip_of(tokenizer: str) -> str:
    """A nano BLIP with large random weights: `captioner/` and `matcher/`."""
    folder = _folder("blip")
    nano.make(tokenizer).save(folder)
    return str(folder)


@functools.cache
def clip_of(tokenizer: str) -> str:
    """A nano CLIP with large random weights."""
    torch.manual_seed(0)
    return _written(Contrastive.from_pretrained("nano", tokenizer=tokenizer), "clip")


@functools.cache
def qformer_of(tokenizer: str) -> str:
    """A nano Q-Former with large random weights on the image encoder of `blip_of`."""
    torch.manual_seed(0)
    blip = blip_of(tokenizer)
    model = QFormer.from_pretrained("nano", tokenizer=tokenizer, vision=blip, queries=4)
    return _written(model, "qformer")


@functools.cache
def language_of(tokenizer: str) -> str:
    """A nano Llama with large random weights."""
    torch.manual_seed(0)
    return _written(Language.from_pretrained("nano", tokenizer=tokenizer), "language")


@functools.cache
def llava_of(tokenizer: str) -> str:
    """A nano LLaVA of one layer, out of `clip_of` and `language_of`."""
    torch.manual_seed(0)
    return _saved(
        Project.from_pretrained(clip_of(tokenizer), language=language_of(tokenizer)), "llava"
    )


@functools.cache
def minigpt4_of(tokenizer: str) -> str:
    """A nano MiniGPT-4, out of `qformer_of` and `language_of`."""
    torch.manual_seed(0)
    return _saved(
        Generate.from_pretrained(qformer_of(tokenizer), language=language_of(tokenizer)), "minigpt4"
    )


def _saved(model: Objective, name: str) -> str:
    folder = _folder(name)
    folder.mkdir()
    model.write(folder)
    return str(folder)


def _written(model: nn.Module, name: str) -> str:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    folder = _folder(name)
    folder.mkdir()
    model.write(folder)  # type: ignore[operator]
    return str(folder)
