"""The objectives by name, in the order of the documentation.

An objective of this repository is a line here. One of another package is a line in its own
pyproject.toml, in the entry point group `capfilt.objectives` (docs/objective.md).
"""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from models.plugins import Registry

if TYPE_CHECKING:
    from models.objectives.config import ObjectiveConfig

__all__ = ["DEFAULT", "OBJECTIVES", "reader_of"]

DEFAULT = "pretrain"
"""The objective of a training that names none."""


RELEASED = ("SiglipModel", "Siglip2Model", "MetaClip2Model")
"""Dual encoders that can be measured, although no objective here trains them."""


def _find_fault(name: str, loaded: Any) -> str | None:
    """Say why an object cannot be the objective of a name; None if it can."""
    from models.objectives.config import ObjectiveConfig

    if not isinstance(loaded, type) or not issubclass(loaded, ObjectiveConfig):
        return "it is not a subclass of models.objectives.config.ObjectiveConfig"
    if "__dataclass_fields__" not in vars(loaded):
        return f"{loaded.__name__} lacks @dataclass(frozen=True, kw_only=True)"
    if inspect.isabstract(loaded):
        return f"it lacks the methods {', '.join(sorted(loaded.__abstractmethods__))}"
    if missing := [one for one in ("name", "paper", "saves") if not hasattr(loaded, one)]:
        return f"it lacks the class attributes {', '.join(missing)}"
    if loaded.name != name:
        return f"its `name` is {loaded.name!r}; it must be {name!r}, as the entry point is called"
    try:
        typing.get_type_hints(loaded)
    except Exception as error:
        return f"the types of {loaded.__name__} cannot be read: {type(error).__name__}: {error}"
    return None


OBJECTIVES: Registry[ObjectiveConfig] = Registry(
    "objective",
    "capfilt.objectives",
    {
        "pretrain": "models.objectives.blip_config:PretrainConfig",
        "captioner": "models.objectives.blip_config:CaptionerConfig",
        "filter": "models.objectives.blip_config:FilterConfig",
        "joint": "models.objectives.blip_config:JointConfig",
        "albef": "models.objectives.albef_config:AlbefConfig",
        "clip": "models.objectives.clip_config:ClipConfig",
        "coca": "models.objectives.coca_config:CocaConfig",
        "qformer": "models.objectives.qformer_config:QFormerConfig",
        "language": "models.objectives.language_config:LanguageConfig",
        "generate": "models.objectives.generate_config:GenerateConfig",
        "project": "models.objectives.project_config:ProjectConfig",
        "instruct": "models.objectives.instruct_config:InstructConfig",
        "flamingo": "models.objectives.flamingo_config:FlamingoConfig",
        "vilt": "models.objectives.vilt_config:ViltConfig",
        "simvlm": "models.objectives.simvlm_config:SimVlmConfig",
        "vlmo": "models.objectives.vlmo_config:VlmoConfig",
        "beit3": "models.objectives.beit3_config:Beit3Config",
    },
    _find_fault,
)


def reader_of(architecture: str) -> Any:
    """The class that runs a model of an architecture here.

    Raises:
        ValueError: No objective makes such a model, or none that can be run here.
    """
    known = []
    for saved in _saved():
        if saved.reader and saved.architecture == architecture:
            module, _, name = saved.reader.partition(":")
            return getattr(importlib.import_module(module), name)
        known += [saved.architecture] if saved.reader else []
    raise ValueError(
        f"{architecture or 'a model without a named architecture'} cannot be measured; known are "
        f"{', '.join(dict.fromkeys(known))}"
    )


def _saved() -> Iterator[Any]:
    """Folders that trainings write: this repository's first, then those of other packages."""
    from models.objectives.config import Saved

    for name in OBJECTIVES.ours:
        yield from OBJECTIVES[name].saves.values()
        yield from OBJECTIVES[name].may_save
    for architecture in RELEASED:
        yield Saved(architecture, "models.inference.dual_encoder:DualEncoder")
    for name, config in OBJECTIVES.usable():
        if name not in OBJECTIVES.ours:
            yield from config.saves.values()
