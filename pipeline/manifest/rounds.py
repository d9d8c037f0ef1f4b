"""Bootstrap rounds: the model trained on one round's export writes and filters the next round's.

Each round is a branch of the same run: pool, cleaning and every annotation whose model is the same
are shared, while exports, models, evaluation and report are its own. A new model starts from
scratch in every round, since going on with the old one gains nothing (BLIP, arXiv:2201.12086,
table 13); rounds are the paper's future work (section 6).
"""

from __future__ import annotations

import copy
from typing import Any

from models.errors import ManifestError
from models.objectives.registry import OBJECTIVES
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.train_config import CURATED, as_sources

__all__ = ["branch", "fresh", "rounds"]


def rounds(manifest: Manifest, path: str = "manifest") -> list[Manifest]:
    """The manifest of each round, that of the first as given.

    In later rounds the trainings whose objective is `tuned` start from the model that the round
    before trained on `curated` with a `base` objective.

    Raises:
        ManifestError: There are later rounds, but no such model or more than one, or no training
            that could start from it.
    """
    found = [manifest]
    if manifest.rounds == 1:
        return found
    new = fresh(manifest)
    tuned = [
        name for name, config in manifest.train.items() if config.objective.round_role == "tuned"
    ]
    if len(new) != 1:
        raise ManifestError(
            f"{path}: rounds: the next round starts from the model pre-trained on `{CURATED}`; "
            f"`train` has {len(new)} such ({', '.join(new) or '-'}), make it one"
        )
    if not tuned:
        raise ManifestError(
            f"{path}: rounds: no training has one of the objectives {', '.join(_tuned())}, so a "
            "new model would change nothing in the next round; add one and name it in "
            "caption.model or filter.model as train:NAME"
        )
    for number in range(2, manifest.rounds + 1):
        content: dict[str, Any] = copy.deepcopy(dict(manifest.source))
        for name in tuned:
            content["train"][name]["model"] = f"{found[-1].models}/{new[0]}"
        found.append(Manifest.parse(content, path, branch=branch(number)))
    return found


def fresh(manifest: Manifest) -> list[str]:
    """The models that a manifest pre-trains on its export: one, if there are to be rounds."""
    return [
        name
        for name, config in manifest.train.items()
        if config.objective.round_role == "base"
        and CURATED in {source.path for source in as_sources(config.data)}
    ]


def _tuned() -> list[str]:
    """The objectives that start from the model of the round before."""
    return [name for name, kind in OBJECTIVES.usable() if kind.round_role == "tuned"]


def branch(number: int) -> str:
    """The folder under the run for what round `number`, from 1, has of its own."""
    return "" if number == 1 else f"rounds/{number}"
