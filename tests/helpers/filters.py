"""Rows with texts, and filters on small models."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from helpers.blips import drawn
from stages.filter import FilterConfig, FilterStage

ROWS = pa.table(
    {
        "uid": [f"{i:032x}" for i in range(6)],
        "image": pa.array([*(drawn(i) for i in range(4)), b"junk", drawn(5)], pa.binary()),
        "caption": ["A Red Dog", None, "  ", "two birds", "a cat", None],
        "text": ["a red dog", None, "", "two birds", "a cat", None],
        "synthetic": [["a dog", "a house"], ["a cat"], ["", "a tree"], [], ["a dog"], []],
    }
)
FURTHER = ROWS.append_column(
    "further_captions",
    pa.array([["a bird", "A Dog"], None, ["a cat"], [" ", None], ["a dog"], []]),
)


def recipe_of(recipe: Any, clips: tuple[str, str], **settings: Any) -> FilterStage:
    first, second = clips
    settings = {"device": "cpu", "model": "nobody/none", **settings}
    stage = FilterStage(FilterConfig(recipe=recipe, clip=first, second_clip=second, **settings))
    stage.load()
    return stage


OLD = pa.table(
    {
        "image": pa.array([drawn(i) for i in range(4)], pa.binary()),
        "caption": [
            "A Red Dog",
            "two birds in the house.",
            None,
            'a cat. a dog! "the big green tree"',
        ],
        "synthetic": [
            ["a dog", "a house"],
            ["a cat"],
            ["", "a tree"],
            [
                "a picture of the red dog on the house and the blue bird in a small green tree. "
                "two cats"
            ],
        ],
        "further_captions": [["small birds; red"], [], ["A Red Dog"], ["two"]],
    }
)
