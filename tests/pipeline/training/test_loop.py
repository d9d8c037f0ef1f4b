"""Steps: what decides them, and how they go on after a stop."""

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.trainings import NANO, ROOT, assert_same, config_of, metrics, weights
from safetensors.torch import load_file

from models.objectives.blip import MED
from models.objectives.registry import OBJECTIVES
from models.objectives.sizes import BLIP_SIZES
from pipeline.manifest.train_config import TrainConfig
from pipeline.training.loop import train


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "pretrain"},
        {"objective": "captioner", "sample_every": 1, "ema": 0.5},
        {"objective": "filter", "mask_patches": 0.5, "drop_path": 0.5},
        {"objective": "albef"},
        {"objective": "clip"},
        {"accumulate": 2, "streams": 2, "gradient_checkpointing": True},
    ],
)
def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(
    tokenizer: str, pairs: str, tmp_path: Path, settings: dict[str, Any]
) -> None:
    config = config_of(tokenizer, augment="paper", checkpoint_every=2, **settings)
    train(config, [pairs], tmp_path / "whole/model")
    out = tmp_path / "parts/model"
    train(config, [pairs], out, stop_at=3)
    assert not out.exists()
    # Steps behind the last checkpoint are lost with a killed call, and their rows with them.
    with open(tmp_path / "parts/model.partial/metrics.jsonl", "a") as log:
        log.write('{"step": 4, "loss": 99.0}\n{"step": 5, "lo')
    result = train(config, [pairs], out)
    assert (result.resumed_from, result.steps) == (3, 6)
    assert metrics(out) == metrics(tmp_path / "whole/model")
    assert [row["step"] for row in metrics(out)] == [1, 2, 3, 4, 5, 6]
    logs = [path for path in out.glob("*.jsonl") if path.name != "metrics.jsonl"]
    assert [path.name for path in logs] == ["samples.jsonl"] * ("sample_every" in settings)
    for log in logs:
        assert log.read_text() == (tmp_path / "whole/model" / log.name).read_text()
    assert_same(
        {k.replace("parts", ""): v for k, v in weights(out).items()},
        {k.replace("whole", ""): v for k, v in weights(tmp_path / "whole/model").items()},
    )


ALONE = """
import json, sys
from models.objectives.sizes import BLIP_SIZES, Size
from pipeline.manifest.train_config import TrainConfig
from pipeline.training.loop import train
settings, nano, pairs, out = json.loads(sys.argv[1])
BLIP_SIZES["nano"] = Size(**nano)
train(TrainConfig.from_settings(settings), [pairs], out)
"""


@pytest.mark.slow
def test_a_training_that_was_killed_goes_on_as_if_it_had_not_been(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    made = config_of(tokenizer, steps=80, checkpoint_every=3, loaders=1)
    config = TrainConfig.from_settings(made.settings())  # with numbers as the process has them
    out = tmp_path / "killed"
    told = [config.settings(), dataclasses.asdict(NANO), pairs, str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", ALONE, json.dumps(told)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    log = tmp_path / "killed.partial/metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") > 7):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    result = train(config, [pairs], out)
    assert result.resumed_from > 0 and result.resumed_from % 3 == 0
    train(config, [pairs], tmp_path / "whole")
    assert metrics(out) == metrics(tmp_path / "whole")
    assert_same(
        load_file(out / "captioner/model.safetensors"),
        load_file(tmp_path / "whole/captioner/model.safetensors"),
    )


def test_a_training_killed_as_it_ends_is_not_done_again(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    config, out = config_of(tokenizer, checkpoint_every=2), tmp_path / "model"
    first = train(config, [pairs], out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = train(config, [pairs], out)
    assert again.steps == again.resumed_from == first.steps
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    other = train(dataclasses.replace(config, seed=1), [pairs], out)
    assert (
        other.resumed_from == 0
        and (out / "README.md").stat().st_mtime_ns != before[out / "README.md"]
    )


def test_the_seed_decides_the_weights(tokenizer: str, pairs: str, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        train(config_of(tokenizer, seed=seed, steps=2), [pairs], tmp_path / name / "model")
    one, same, other = (weights(tmp_path / name / "model") for name in ("one", "same", "other"))
    assert_same(one, same)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_of_other_starting_weights_is_not_taken_up(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    config = config_of(None, objective="filter", model=str(tmp_path / "start"))
    for seed, resumed_from in ((0, 0), (0, 3), (1, 0)):
        train(config_of(tokenizer, steps=1, seed=seed), [pairs], tmp_path / "start")
        assert train(config, [pairs], tmp_path / "model", stop_at=3).resumed_from == resumed_from


@pytest.mark.slow
def test_loaders_change_nothing_but_the_time(tokenizer: str, pairs: str, tmp_path: Path) -> None:
    for name, loaders in (("none", 0), ("two", 2)):
        config = config_of(tokenizer, loaders=loaders, augment="paper", steps=4)
        train(config, [pairs], tmp_path / name / "model")
    assert metrics(tmp_path / "none/model") == metrics(tmp_path / "two/model")


def test_training_learns_to_name_colours(tokenizer: str, pairs: str, tmp_path: Path) -> None:
    out = tmp_path / "model"
    config = config_of(tokenizer, objective="captioner", steps=60, lr=1e-2, prompt="")
    train(config, [pairs], out)
    rows = metrics(out)
    # Two forms and four colours of equal chance; what is left is the form and the smoothing.
    assert rows[0]["lm"] > 2.0
    assert rows[-1]["lm"] < 1.0


def test_what_the_objective_and_the_image_encoder_decide_is_set_on_the_model(
    tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    for objective, floor in (("pretrain", 1e-4), ("filter", 0.0), ("albef", 0.0)):
        model = config_of(tokenizer, objective=objective).objective.build()
        assert isinstance(model, MED) and (model.floor, model.drop_path) == (floor, 0.0)
    wide = dataclasses.replace(NANO, vision_width=1024, vision_heads=16)
    monkeypatch.setitem(BLIP_SIZES, "nano", wide)
    large = config_of(tokenizer).objective.build()
    assert isinstance(large, MED) and large.drop_path == 0.1 and not caplog.text
    large.save(tmp_path / "large")
    settings = {"objective": "captioner", "model": str(tmp_path / "large/captioner"), "lr": 1e-5}
    again = config_of(None, **settings).objective.build()
    assert isinstance(again, MED) and again.drop_path == 0.1
    assert "for a ViT-L it has 2e-06" in caplog.text
    plain = config_of(None, **settings, drop_path=0.0).objective.build()
    assert isinstance(plain, MED) and plain.drop_path == 0.0


def test_bf16_trains(tokenizer: str, pairs: str, tmp_path: Path) -> None:
    result = train(config_of(tokenizer, precision="bf16"), [pairs], tmp_path / "model")
    assert all(0 < loss < 10 for loss in result.losses.values())


@pytest.mark.slow
def test_a_compiled_model_trains_as_it_is(
    tokenizer: str, pairs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without a compiler of code: what torch makes of the model is run as it is.
    compiled = functools.partialmethod(torch.nn.Module.compile, backend="eager")
    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    config = config_of(tokenizer, objective="clip", steps=2)
    train(config, [pairs], tmp_path / "plain")
    train(dataclasses.replace(config, compile=True), [pairs], tmp_path / "compiled")
    plain, other = (metrics(tmp_path / name) for name in ("plain", "compiled"))
    assert [row["loss"] for row in other] == pytest.approx([row["loss"] for row in plain])
    assert load_file(tmp_path / "compiled/model.safetensors").keys() == (
        load_file(tmp_path / "plain/model.safetensors").keys()
    )
    assert "compile" not in config.measurement()


def test_a_checkpoint_is_taken_up_in_another_folder(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    train(config_of(tokenizer), [pairs], tmp_path / "one/model", stop_at=3)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    shutil.copytree(Path(pairs).parent, tmp_path / "pairs")
    moved = str(tmp_path / "pairs" / Path(pairs).name)
    assert train(config_of(tokenizer), [moved], tmp_path / "two/model").resumed_from == 3


def test_parts_of_a_batch_of_captions_are_the_whole(
    tokenizer: str, tmp_path: Path, pairs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BLIP_SIZES, "nano", dataclasses.replace(NANO, dropout=0.0))
    rows = pq.read_table(pairs).to_pylist()
    for row in rows:  # texts of one length, so that the mean of means is the mean
        row["caption"] = f"a {row['caption'].split()[-2]} square"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    for name, parts in (("whole", 1), ("parts", 2)):
        config = config_of(tokenizer, objective="captioner", accumulate=parts, prompt="")
        train(config, [str(tmp_path / "pairs.parquet")], tmp_path / name / "model")
    whole, parts = (metrics(tmp_path / name / "model") for name in ("whole", "parts"))
    assert [row["lm"] for row in parts] == pytest.approx([row["lm"] for row in whole], abs=1e-5)


def test_a_size_needs_a_tokenizer(pairs: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a tokenizer"):
        train(config_of(None), [pairs], tmp_path / "model")


@pytest.mark.slow
def test_trainings_of_every_objective_that_are_killed_at_random_moments_end_the_same(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "helpers.kills", tokenizer, pairs, str(tmp_path), "2"]
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [result["objective"] for result in results] == list(OBJECTIVES.ours)
    assert [result["differing"] for result in results] == [[]] * len(results)
    assert all(result["kills"] >= 2 for result in results)
