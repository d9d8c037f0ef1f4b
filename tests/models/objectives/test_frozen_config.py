"""The language model of an objective has two spellings, and they are one setting."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.contract import small
from helpers.starts import language_of

from models.objectives.flamingo_config import FlamingoConfig
from models.objectives.generate_config import GenerateConfig
from models.objectives.instruct_config import InstructConfig
from models.objectives.project_config import ProjectConfig
from models.objectives.start import Start
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan


@pytest.mark.parametrize("kind", [FlamingoConfig, GenerateConfig, ProjectConfig])
def test_start_language_builds_the_same_model_under_the_same_fingerprint(
    tokenizer: str, kind: Any
) -> None:
    words = language_of(tokenizer)
    field = small(kind, tokenizer, language=words)
    start = small(kind, tokenizer, language=None, start=Start(language=words))
    assert start.measurement() == field.measurement() and start.models() == field.models()
    weights = []
    for config in (field, start):
        torch.manual_seed(0)
        weights.append(config.build().state_dict())
    assert all(torch.equal(weights[0][name], one) for name, one in weights[1].items())


def test_both_spellings_at_once_and_another_objective_are_refused() -> None:
    with pytest.raises(ValueError, match=r"language and train\.start\.language are the same"):
        ProjectConfig.of(language="a", start=Start(language="b"))
    with pytest.raises(ValueError, match=r"start\.language: objective instruct takes none"):
        InstructConfig.of(start=Start(language="b"))


def test_a_manifest_trains_the_language_model_first(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text("""
name: m
stages: {download: {source: pairs.jsonl}}
train:
  words: {objective: language, model: tiny, tokenizer: t, data: [pool]}
  llava: {objective: project, model: eyes, start: {language: train:words}, data: [pool]}
""")
    manifest = Manifest.load(str(path))
    assert manifest.train["llava"].objective.models()["language"] == "runs/m/models/words"
    assert Plan(manifest).trainings(manifest.train["llava"]) == ("words",)
