"""Manifests of runs that an earlier version made."""

import pytest

from pipeline.manifest.manifest import Manifest, ManifestError
from pipeline.manifest.upgrade import upgraded

CLIP = {"objective": "clip", "data": ["curated"], "queue_size": 0, "prompt": "", "momentum": 0.98}


def test_a_recorded_training_is_read_in_the_fields_that_its_objective_has():
    train = {
        "albef": {"albef": True, "data": ["curated"], "queue_size": 1024, "label_smoothing": 0.2},
        "blip": {"albef": False, "data": ["curated"], "label_smoothing": 0.2},
        "clip": CLIP,
        "again": {"like": "clip", "seed": 1},
        "captioner": {"like": "albef", "objective": "captioner", "albef": False},
    }
    with pytest.raises(ManifestError, match="write `objective: albef` and leave it out"):
        Manifest.parse({"name": "m", "train": train})
    with pytest.raises(ManifestError, match="queue_size: unknown field of objective clip"):
        Manifest.parse({"name": "m", "train": {"clip": CLIP}})
    found = Manifest.parse(upgraded({"name": "m", "train": train})).train
    names = {name: config.objective.name for name, config in found.items()}
    assert names == {
        **{"albef": "albef", "blip": "pretrain", "clip": "clip", "again": "clip"},
        "captioner": "captioner",
    }
    assert found["albef"].objective.queue_size == 1024
    assert found["blip"].objective.label_smoothing == found["captioner"].objective.label_smoothing
    assert (found["again"].seed, found["clip"].seed) == (1, 0)
    assert upgraded(upgraded({"train": train})) == upgraded({"train": train})


@pytest.mark.parametrize("train", [None, [], {"a": None}, {"a": 3}, {"a": {"like": 3}}])
def test_what_is_no_training_is_left_to_validation(train):
    assert upgraded({"name": "m", "train": train}) == {"name": "m", "train": train}


def test_an_objective_that_is_not_here_is_left_to_validation():
    train = {"a": {"objective": "sing", "queue_size": 3}}
    assert upgraded({"train": train}) == {"train": train}
    with pytest.raises(ManifestError, match=r"no objective 'sing'.* install that package here"):
        Manifest.parse({"name": "m", "train": train})
