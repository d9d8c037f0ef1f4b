"""Measuring on the way: the curve, the best model, an early end, a training in progress."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from helpers.trainings import assert_same, config_of, metrics, weights
from transformers import CLIPModel

from models.objectives.clip import Contrastive
from pipeline.cli.main import main
from pipeline.manifest.train_config import TrainConfig, Validate
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.flops import counted
from pipeline.training.loop import train
from pipeline.training.progress import Best
from pipeline.training.validation import is_in_progress, model_in_progress


@pytest.fixture(scope="module")
def held_out(pairs: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four of the images, with their texts and labels."""
    folder = tmp_path_factory.mktemp("held-out")
    lines = []
    for i, row in enumerate(pq.read_table(pairs).to_pylist()[:8:2]):
        (folder / f"{i}.png").write_bytes(row["image"])
        label = row["caption"].split()[-2]
        lines.append({"image": f"{i}.png", "captions": [row["caption"]], "label": label})
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(folder / "test.jsonl")


def measured(out: Path) -> dict[int, dict[str, float]]:
    """The validations of a log by their steps."""
    return {int(row["step"]): row["validation"] for row in metrics(out) if "validation" in row}


def test_a_model_is_measured_while_it_is_trained_and_the_model_is_the_same(
    tokenizer: str, pairs: str, held_out: str, tmp_path: Path
) -> None:
    plain = config_of(tokenizer, objective="clip", steps=5)
    train(plain, [pairs], tmp_path / "plain")
    config = config_of(
        tokenizer, objective="clip", steps=5, validate=Validate(data=held_out, every=2)
    )
    assert config.measurement() == plain.measurement()
    train(config, [pairs], tmp_path / "model")
    assert_same(
        {name.replace("plain", "model"): w for name, w in weights(tmp_path / "plain").items()},
        weights(tmp_path / "model"),
    )
    found = measured(tmp_path / "model")
    assert list(found) == [2, 4, 5]
    for values in found.values():
        assert {"retrieval.itc.TR@1", "classification.accuracy@1", "seconds"} <= values.keys()
    assert not [path for path in (tmp_path / "model").iterdir() if path.is_dir()]


def test_the_best_model_is_kept_and_a_stop_changes_nothing(
    tokenizer: str, pairs: str, held_out: str, tmp_path: Path
) -> None:
    metric = "classification.accuracy@1"
    settings: dict[str, Any] = {
        "objective": "clip",
        "steps": 12,
        "lr": 3e-2,
        "checkpoint_every": 4,
        "validate": Validate(data=held_out, every=3),
        "keep": f"best {metric}",
    }
    config = config_of(tokenizer, **settings)
    train(config, [pairs], tmp_path / "whole")
    found = {step: values[metric] for step, values in measured(tmp_path / "whole").items()}
    best = max(found, key=lambda step: (found[step], -step))
    card = (tmp_path / "whole/README.md").read_text()
    assert f"the model after step {best}, the best validation by `{metric}`" in card
    CLIPModel.from_pretrained(tmp_path / "whole")
    if best != 12:
        last = config_of(tokenizer, **{**settings, "keep": "last"})
        train(last, [pairs], tmp_path / "last")
        one, other = weights(tmp_path / "whole"), weights(tmp_path / "last")
        names = [name.replace("whole", "last") for name in one]
        assert any(
            not torch.equal(one[mine], other[name]) for mine, name in zip(one, names, strict=True)
        )
    train(config, [pairs], tmp_path / "parts", stop_at=7)
    assert train(config, [pairs], tmp_path / "parts").resumed_from == 7
    assert {step: values[metric] for step, values in measured(tmp_path / "parts").items()} == found
    parts = {
        name.replace("parts", ""): weight for name, weight in weights(tmp_path / "parts").items()
    }
    whole = {
        name.replace("whole", ""): weight for name, weight in weights(tmp_path / "whole").items()
    }
    assert_same(parts, whole)


def test_a_training_ends_when_it_does_not_become_better(
    tokenizer: str, pairs: str, held_out: str, tmp_path: Path
) -> None:
    config = config_of(
        tokenizer,
        objective="clip",
        steps=50,
        lr=1e-12,
        validate=Validate(data=held_out, every=2),
        keep="best retrieval.itc.TR@10",
        patience=2,
    )
    result = train(config, [pairs], tmp_path / "model")
    # Of four images ten texts are always among the best ten.
    assert result.steps == 6 and list(measured(tmp_path / "model")) == [2, 4, 6]
    assert "the model after step 2, " in (tmp_path / "model/README.md").read_text()
    assert train(config, [pairs], tmp_path / "model").seconds < result.seconds


def test_a_metric_that_is_not_there_is_named(
    tokenizer: str, pairs: str, held_out: str, tmp_path: Path
) -> None:
    config = config_of(
        tokenizer,
        objective="captioner",
        validate=Validate(data=held_out, every=2),
        keep="best retrieval.itc.TR@1",
    )
    with pytest.raises(ValueError, match=r"no retrieval\.itc\.TR@1; they have captioning\.BLEU@4"):
        train(config, [pairs], tmp_path / "model")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"keep": "first"}, "`last` or `best METRIC`"),
        ({"keep": "best x"}, "needs `validate`"),
        ({"patience": 1}, "needs `keep: best METRIC`"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        config_of("t", objective="clip", **fields)
    with pytest.raises(ValueError, match="every must be at least 1"):
        Validate(data="x", every=0)


def test_what_is_kept_is_in_the_fingerprint() -> None:
    config = config_of("t", validate=Validate(data="x"), keep="best m")
    assert config.measurement()["keep"] == "best m"


def test_a_training_in_progress_is_measured_by_its_last_checkpoint(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    config = config_of(tokenizer, objective="clip")
    train(config, [pairs], tmp_path / "model", stop_at=3)
    for name in ("model", "model.partial"):
        assert is_in_progress(str(tmp_path / name))
        with model_in_progress(str(tmp_path / name)) as (folder, step):
            found = CLIPModel.from_pretrained(folder).state_dict()
            assert step == 3
    checkpoint = Checkpoint(tmp_path / "model.partial/checkpoint.safetensors", "")
    built = config.objective.build()
    assert isinstance(built, Contrastive)
    checkpoint.restore_model(built, checkpoint.read())
    assert_same(found, built.model.state_dict())
    train(config, [pairs], tmp_path / "model")
    assert not is_in_progress(str(tmp_path / "model"))


def test_the_command_measures_a_training_in_progress(
    tokenizer: str, pairs: str, held_out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config_of(tokenizer, objective="clip"), [pairs], tmp_path / "model", stop_at=3)
    model = str(tmp_path / "model")
    assert main(["evaluate", model, "--data", held_out, "--tagger", "none"]) == 0
    told = capsys.readouterr().out
    assert "in training, step 3" in told and "retrieval.itc.TR@1" in told


def test_settings_are_read_again(tokenizer: str) -> None:
    config = config_of(tokenizer, validate=Validate(data="x"), data=("curated",))
    told = json.loads(json.dumps(config.settings()))
    assert TrainConfig.from_settings(told) == config


def test_the_first_best_is_better_than_none_and_as_good_is_not_better() -> None:
    best = Best()
    assert best.add(1, 0.0) and not best.add(2, 0.0) and best.since == 1
    assert best.add(3, 0.5) and (best.step, best.since) == (3, 0)


def test_operations_are_counted_and_frozen_layers_count_once() -> None:
    layer = torch.nn.Linear(3, 5)
    with counted() as flops:
        layer(torch.ones(2, 3))
        with torch.no_grad():
            layer(torch.ones(2, 3))
    assert flops.number == (3 + 1) * 2 * 2 * 3 * 5
    layer(torch.ones(2, 3))
    assert flops.number == 4 * 60


def test_a_log_tells_waiting_from_computing(tokenizer: str, pairs: str, tmp_path: Path) -> None:
    train(config_of(tokenizer, steps=1), [pairs], tmp_path / "model")
    row = json.loads((tmp_path / "model/metrics.jsonl").read_text())
    assert row["wait_seconds"] > 0 and row["compute_seconds"] > 0 and row["tflops"] > 0
    seconds = row["wait_seconds"] + row["compute_seconds"]
    assert row["images_per_second"] == pytest.approx(4 / seconds, rel=0.01)
