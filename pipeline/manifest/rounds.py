"""Bootstrap rounds: the model trained on one round's export captions and filters the next round.

Each round is a branch of the same run. Rounds share the pool and every annotation by the same
models; each has its own exports, models, evaluation and report. The new model of a round starts
from scratch, because continuing to train the old one gains nothing (BLIP, arXiv:2201.12086, table
13). The paper names such rounds as future work (section 6).
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
    """The manifest of each round; the first is the given one.

    In later rounds, trainings whose objective has `round_role` "tuned" start from the model that
    the previous round trained on `curated` with an objective whose `round_role` is "base".

    Raises:
        ManifestError: There is more than one round, but not exactly one such model, or no training
            that can start from it.
    """
    manifests = [manifest]
    if manifest.rounds == 1:
        return manifests
    new = fresh(manifest)
    tuned = [
        name for name, config in manifest.train.items() if config.objective.round_role == "tuned"
    ]
    if len(new) != 1:
        raise ManifestError(
            f"{path}: rounds: the next round starts from the model pre-trained on `{CURATED}`; "
            f"`train` must have exactly one, but has {len(new)} ({', '.join(new) or '-'})"
        )
    if not tuned:
        raise ManifestError(
            f"{path}: rounds: no training has one of the objectives {', '.join(_tuned())}, so the "
            "next round would not use the new model; add such a training and set caption.model or "
            "filter.model to train:NAME"
        )
    for number in range(2, manifest.rounds + 1):
        content: dict[str, Any] = copy.deepcopy(dict(manifest.source))
        for name in tuned:
            content["train"][name]["model"] = f"{manifests[-1].models}/{new[0]}"
            content["train"][name].pop("start", None)
        manifests.append(Manifest.parse(content, path, branch=branch(number)))
    return manifests


def fresh(manifest: Manifest) -> list[str]:
    """The models that a manifest pre-trains on its export; rounds need exactly one."""
    return [
        name
        for name, config in manifest.train.items()
        if config.objective.round_role == "base"
        and CURATED in {source.path for source in as_sources(config.data)}
    ]


def _tuned() -> list[str]:
    """The objectives that start from the model of the previous round."""
    return [name for name, kind in OBJECTIVES.usable() if kind.round_role == "tuned"]


def branch(number: int) -> str:
    """The folder under the run for the files of round `number`; empty for round 1."""
    return "" if number == 1 else f"rounds/{number}"
