from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from helpers.blips import WORDS, save, tokenizer_of
from pydantic import TypeAdapter, ValidationError
from transformers import BlipForImageTextRetrieval

from stages.filter import FilterConfig


def test_recipes_with_the_same_models_share_what_they_measured(clips: tuple[str, str]) -> None:
    first, second = clips
    blip2 = FilterConfig(recipe="blip2", clip=first, model="nobody/none")
    alone = FilterConfig(recipe="clip", clip=first, min_clip=0.28, model="nobody/none")
    assert blip2.measurement() == alone.measurement()
    other = dataclasses.replace(blip2, clip=second)
    assert other.measurement() != blip2.measurement()


def test_the_threshold_is_no_part_of_the_measurement(model: str, tmp_path: Path) -> None:
    config = FilterConfig(model=model)
    measured = config.measurement()
    for change in ({"min_itm": 0.3}, {"batch_size": 3}, {"device": "cuda"}, {"cpus": 2}):
        assert dataclasses.replace(config, **change).measurement() == measured
    assert dataclasses.replace(config, dtype="bfloat16").measurement() != measured
    other = save(tmp_path, BlipForImageTextRetrieval, tokenizer_of([*WORDS.split(), "more"]))
    assert dataclasses.replace(config, model=other).measurement() != measured


def test_a_model_that_is_nowhere_is_named_with_its_remedy() -> None:
    with pytest.raises(FileNotFoundError, match="hf download nobody/none"):
        FilterConfig(model="nobody/none").measurement()


def test_the_unit_is_part_of_what_is_measured_where_it_is_a_sentence(model: str) -> None:
    whole, parts = FilterConfig(model=model), FilterConfig(model=model, unit="sentence")
    assert parts.measurement() == {**whole.measurement(), "unit": "sentence"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"unit": "word"}, "unit"),
        ({"min_itm": 1.5}, "filter.min_itm"),
        ({"batch_size": 0}, "filter.batch_size"),
        ({"cpus": 0}, "filter.cpus"),
        ({"max_itm": 1}, "max_itm"),
        ({"min_clip": 1.5, "recipe": "clip"}, "filter.min_clip"),
        ({"min_clip": 0.3}, "set filter.clip"),
        ({"recipe": "clip"}, "filter.min_clip must be set"),
        ({"recipe": "best"}, "recipe"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(FilterConfig).validate_python(wrong)
