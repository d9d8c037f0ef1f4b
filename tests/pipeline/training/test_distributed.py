"""Several workers as one."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from helpers.trainings import NANO, ROOT, config_of, fitting, metrics
from safetensors.torch import load_file

from models.objectives.registry import DEFAULT
from models.objectives.sizes import BLIP_SIZES, CLIP_SIZES
from pipeline.manifest.train_config import Source, TrainConfig
from pipeline.training.distributed import notes, train_together
from pipeline.training.loop import train
from stages.base import Resources

RANK = """
import json, sys
import torch
from models.objectives.sizes import BLIP_SIZES, CLIP_SIZES, Size
from pipeline.manifest.train_config import TrainConfig
from pipeline.training.loop import train
runs, nano, pairs, meeting, rank = json.loads(sys.argv[1])
BLIP_SIZES["nano"] = CLIP_SIZES["nano"] = Size(**nano)
torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
for settings, out in runs:
    config = TrainConfig.of(**settings)
    train(config, [pairs], out, stop_at=2)
    result = train(config, [pairs], out)
    print(json.dumps([result.steps, result.images, result.resumed_from]))
torch.distributed.destroy_process_group()
"""
TOGETHER: dict[str, dict[str, Any]] = {
    "pretrain": {"negatives": "global"},
    "filter": {"objective": "filter", "mask_patches": 0.5, "drop_path": 0.5},
    "albef": {"objective": "albef", "negatives": "global"},
    "clip": {"objective": "clip"},
    "local": {"negatives": "local"},
    "parts": {"objective": "joint", "accumulate": 2},
}


def config_together(tokenizer: str, name: str) -> TrainConfig:
    plain: dict[str, Any] = {
        "batch_size": 8,
        "queue_size": 16,
        "streams": 2,
        "steps": 4,
        "prompt": "",
    }
    # A warm-up from next to nothing would hide a difference, and AdamW with a small eps makes a
    # whole step of a gradient that is nothing but rounding.
    plain |= {"warmup_steps": 0, "lr": 1e-3, "eps": 1e-4}
    plain = fitting(plain, TOGETHER[name].get("objective", DEFAULT))
    return config_of(tokenizer, **{**plain, **TOGETHER[name]})


@pytest.fixture(scope="module")
def two(tokenizer: str, pairs: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks make of each of `TOGETHER`, stopped once on the way."""
    folder = tmp_path_factory.mktemp("two")
    nano = dataclasses.asdict(dataclasses.replace(NANO, dropout=0.0))
    runs = [
        [{**config_together(tokenizer, name).settings(), "workers": 2}, f"{folder}/{name}"]
        for name in TOGETHER
    ]
    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen(
            [*command, json.dumps([runs, nano, pairs, f"file://{folder}/meeting", rank])],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    for rank in ranks:
        results = [json.loads(line) for line in rank.communicate(timeout=900)[0].splitlines()]
        assert results == [[4, 32, 2]] * len(TOGETHER)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", TOGETHER)
def test_two_workers_train_as_one_with_twice_the_batch_would(
    tokenizer: str,
    pairs: str,
    two: Path,
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for sizes in (BLIP_SIZES, CLIP_SIZES):
        monkeypatch.setitem(sizes, "nano", dataclasses.replace(NANO, dropout=0.0))
    train(config_together(tokenizer, name), [pairs], tmp_path / name)
    for alone, together in zip(metrics(tmp_path / name), metrics(two / name), strict=True):
        assert together == pytest.approx(alone, rel=1e-4, abs=1e-5)
    expected, found = (
        {str(path.relative_to(folder)): load_file(path) for path in folder.rglob("*.safetensors")}
        for folder in (tmp_path / name, two / name)
    )
    assert expected.keys() == found.keys()
    for file, tensors in expected.items():
        for key, weight in tensors.items():
            torch.testing.assert_close(
                found[file][key], weight, atol=1e-4, rtol=1e-3, msg=f"{file} {key}"
            )


@pytest.mark.slow
def test_ray_starts_the_workers(tokenizer: str, pairs: str, tmp_path: Path, ray_here: Any) -> None:
    config = config_of(
        tokenizer,
        objective="captioner",
        model="tiny",
        prompt="",
        batch_size=8,
        streams=2,
        steps=3,
        max_text_tokens=8,
    )
    train(config, [pairs], tmp_path / "one/model")
    together = dataclasses.replace(config, workers=2)
    sources = [Source(path=pairs)]
    result = train_together(together, sources, str(tmp_path / "two/model"), Resources(cpus=1))
    assert (result.steps, result.images) == (3, 24)
    one, two = (metrics(tmp_path / name / "model") for name in ("one", "two"))
    assert [row["lm"] for row in two] == pytest.approx([row["lm"] for row in one], rel=1e-4)
    # The error of a worker is that of the training, and no other worker waits for it.
    with pytest.raises(ValueError, match="batches of 64, more than the 20 images"):
        objective = dataclasses.replace(together.objective, batch_size=64)
        large = dataclasses.replace(together, objective=objective)
        train_together(large, sources, str(tmp_path / "three/model"), Resources(cpus=1))
    with pytest.raises(ValueError, match=r"train\.workers 2 take 200 CPU"):
        train_together(together, sources, str(tmp_path / "four/model"), Resources(cpus=100))


def test_what_a_killed_training_noted_is_not_taken_up_wherever_it_lies() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/models/m.ray.partial/train/state.json", b"of a killed one")
    with notes("memory://models/m") as folder:
        assert folder == "memory://models/m.ray.partial" and not memory.find("/models")
        memory.pipe("/models/m.ray.partial/train/state.json", b"of this one")
    assert not memory.find("/models")


def test_another_number_of_ranks_than_workers_is_refused(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"train\.workers is 2, and 1 train together"):
        train(config_of(tokenizer, workers=2), [pairs], tmp_path / "model")
