"""Several workers as one."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import psutil
import pytest
import torch
from helpers.contract import NANO_FIELDS, STARTS
from helpers.documents import write_documents
from helpers.nano import stand_in
from helpers.trainings import NANO, ROOT, config_of, fitting, metrics
from safetensors.torch import load_file

from models.objectives.registry import DEFAULT
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.train_config import Source, TrainConfig
from pipeline.training.distributed import notes, train_together
from pipeline.training.loop import train
from pipeline.training.ranks import launched_ranks
from stages.base import Resources

RANK = """
import json, sys
import torch
from models.objectives.sizes import BLIP_SIZES, CLIP_SIZES, Size
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.train_config import TrainConfig
from pipeline.training.loop import train
from pipeline.training.sharding import divide
runs, nano, meeting, rank = json.loads(sys.argv[1])
BLIP_SIZES["nano"] = CLIP_SIZES["nano"] = Size(**nano)
torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
for settings, data, out, stops in runs:
    config = TrainConfig.from_settings(settings)
    for stop in stops:
        result = train(config, data, out, stop_at=stop, go_on=True)
    print(json.dumps([result.steps, result.images, result.resumed_from]))
divided = next(settings for settings, *_ in runs if settings["shard"])
model = TrainConfig.from_settings(divided).objective.build()
divide(model, torch.device("cpu"))
held = sum(weight.to_local().numel() for weight in model.parameters())
print(json.dumps(held / sum(weight.numel() for weight in model.parameters())))
torch.distributed.destroy_process_group()
"""
SIZE = dataclasses.replace(NANO, dropout=0.0, vision_layers=2)
TOGETHER: dict[str, dict[str, Any]] = {
    "pretrain": {"negatives": "global"},
    "filter": {"objective": "filter", "mask_patches": 0.5, "drop_path": 0.5},
    "albef": {"objective": "albef", "negatives": "global"},
    "clip": {"objective": "clip"},
    "local": {"negatives": "local"},
    "parts": {"objective": "joint", "accumulate": 2},
    "sigmoid": {"objective": "clip", "loss": "sigmoid"},
    "coca": {"objective": "coca", "queries": 4, "patch_size": 16},
    "qformer": {"objective": "qformer", "queries": 4, "skip_layers": 0},
    "language": {"objective": "language"},
    "generate": {"objective": "generate"},
    "project": {"objective": "project"},
    "instruct": {"objective": "instruct"},
    "flamingo": {"objective": "flamingo", **NANO_FIELDS["flamingo"]},
    "divided": {"objective": "instruct", "shard": True, "max_grad_norm": 0.1, "accumulate": 2},
    "divided and frozen": {"objective": "flamingo", "shard": True, **NANO_FIELDS["flamingo"]},
    "documents": {"objective": "flamingo", **NANO_FIELDS["flamingo"], "document_batch_size": 4},
    "documents, divided": {
        "objective": "flamingo",
        "shard": True,
        **NANO_FIELDS["flamingo"],
        "document_batch_size": 4,
        "accumulate": 2,
    },
    "vilt": {"objective": "vilt", "patch_size": 16},
    "simvlm": {"objective": "simvlm", "conv_blocks": [1, 1, 1]},
    "vlmo": {"objective": "vlmo", "joint_layers": 1, "drop_path": 0.5},
    "beit3": {"objective": "beit3", "joint_layers": 1, "drop_path": 0.5},
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
    objective = TOGETHER[name].get("objective", DEFAULT)
    plain = fitting(plain, objective)
    plain |= {field: start(tokenizer) for field, start in STARTS.get(objective, {}).items()}
    own = None if "model" in plain else tokenizer  # or the language model's
    config = config_of(own, **{**plain, **TOGETHER[name]})
    return TrainConfig.from_settings(config.settings())  # as a manifest has it


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_documents(tmp_path_factory.mktemp("documents"))


def data_of(name: str, pairs: str, documents: str) -> list[str]:
    """What a training of `TOGETHER` reads."""
    return [pairs, documents] if "document_batch_size" in TOGETHER[name] else [pairs]


@pytest.fixture(scope="module")
def two(
    tokenizer: str, pairs: str, documents: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What two ranks make of each of `TOGETHER`, stopped once on the way."""
    folder = tmp_path_factory.mktemp("two")
    nano = dataclasses.asdict(SIZE)
    with pytest.MonkeyPatch.context() as monkeypatch:
        stand_in(monkeypatch, SIZE)  # for the models that others start from
        runs = [
            [
                {**config_together(tokenizer, name).settings(), "workers": 2},
                data_of(name, pairs, documents),
                f"{folder}/{name}",
                [2, None],
            ]
            for name in TOGETHER
        ]
        config = config_together(tokenizer, "filter")
        both = {**config.settings(), "workers": 2}
        for name, streams in (("more", 2), ("more streams", 1)):
            first = dataclasses.replace(config, streams=streams)
            train(first, [pairs], folder / name, stop_at=2)
            runs.append([both, [pairs], f"{folder}/{name}", [None]])
        runs.append([both, [pairs], f"{folder}/fewer", [2]])
        divided = config_together(tokenizer, "divided").settings()
        runs.append([{**divided, "workers": 2}, [pairs], f"{folder}/undivided", [2]])
    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen(
            [*command, json.dumps([runs, nano, f"file://{folder}/meeting", rank])],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    for rank in ranks:
        lines = rank.communicate(timeout=900)[0].splitlines()
        *results, held = (json.loads(line) for line in lines)
        seen = [32 + 4 * fields.get("document_batch_size", 0) for fields in TOGETHER.values()]
        assert results == [[4, n, 2] for n in (*seen, 32, 32)] + [[2, 16, 0]] * 2
        assert held == pytest.approx(0.5, abs=0.02)  # a rank holds its half of the weights
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", TOGETHER)
def test_two_workers_train_as_one_with_twice_the_batch_would(
    tokenizer: str,
    pairs: str,
    documents: str,
    two: Path,
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(monkeypatch, SIZE)
    data = data_of(name, pairs, documents)
    train(config_together(tokenizer, name), data, tmp_path / name)
    assert_close(tmp_path / name, two / name)


@pytest.mark.slow
def test_a_training_goes_on_with_another_number_of_workers(
    tokenizer: str, pairs: str, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, SIZE)
    config = config_together(tokenizer, "filter")
    train(config, [pairs], tmp_path / "one")
    assert_close(tmp_path / "one", two / "more")
    assert not any("changed" in row for row in metrics(two / "more"))
    # And with fewer again: what two workers have begun, one ends.
    assert train(config, [pairs], two / "fewer").resumed_from == 2
    assert_close(tmp_path / "one", two / "fewer")


@pytest.mark.slow
def test_divided_weights_are_put_together_by_a_training_that_does_not_divide_them(
    tokenizer: str, pairs: str, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, SIZE)
    config = dataclasses.replace(config_together(tokenizer, "divided"), shard=False)
    train(config, [pairs], tmp_path / "one")
    assert train(config, [pairs], two / "undivided").resumed_from == 2
    assert_close(tmp_path / "one", two / "undivided")


@pytest.mark.slow
def test_another_number_of_workers_with_other_streams_is_a_changed_setting(
    tokenizer: str, pairs: str, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, SIZE)
    config = config_together(tokenizer, "filter")
    first = dataclasses.replace(config, streams=1)
    train(first, [pairs], tmp_path / "one", stop_at=2)
    train(config, [pairs], tmp_path / "one", go_on=True)
    assert_close(tmp_path / "one", two / "more streams")
    changed = [row["changed"] for row in metrics(two / "more streams") if "changed" in row]
    assert changed == [{"workers": [1, 2], "streams": [1, 2]}]


def assert_close(one: Path, other: Path) -> None:
    """The logs and weights of two trainings are the same, but for rounding."""
    for alone, together in zip(metrics(one), metrics(other), strict=True):
        numbers = ({k: v for k, v in row.items() if k != "changed"} for row in (together, alone))
        assert next(numbers) == pytest.approx(next(numbers), rel=1e-4, abs=1e-5)
    expected, found = (
        {str(path.relative_to(folder)): load_file(path) for path in folder.rglob("*.safetensors")}
        for folder in (one, other)
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
    with pytest.raises(ValueError, match="batch_size is 64, but an epoch has only 20 images"):
        objective = dataclasses.replace(together.objective, batch_size=64)
        large = dataclasses.replace(together, objective=objective)
        train_together(large, sources, str(tmp_path / "three/model"), Resources(cpus=1))
    with pytest.raises(ValueError, match=r"train\.workers 2 take 200 CPU"):
        train_together(together, sources, str(tmp_path / "four/model"), Resources(cpus=100))


@pytest.mark.slow
def test_a_training_goes_on_by_itself_after_a_worker_was_killed(
    tokenizer: str, pairs: str, tmp_path: Path, ray_here: Any
) -> None:
    config = config_together(tokenizer, "filter")
    objective = dataclasses.replace(
        config.objective, model="tiny", mask_patches=0.0, drop_path=None
    )
    config = dataclasses.replace(config, objective=objective, steps=40, checkpoint_every=3)
    train(config, [pairs], tmp_path / "one")
    together = dataclasses.replace(config, workers=2)
    log = tmp_path / "two.partial/metrics.jsonl"
    killed = []

    def kill() -> None:
        while not (log.exists() and log.read_text().count("\n") > 7):
            time.sleep(0.02)
        workers = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    workers.append(process)
        killed.append(len(workers))
        workers[0].kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    result = train_together(
        together, [Source(path=pairs)], str(tmp_path / "two"), Resources(cpus=1)
    )
    killer.join()
    assert killed == [2] and result.steps == 40 and result.resumed_from >= 3
    assert_close(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_torchrun_trains_as_one_process_would(
    tokenizer: str, pairs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {
        "objective": "captioner",
        "model": "tiny",
        "tokenizer": tokenizer,
        "image_size": 64,
        "data": [pairs],
        "batch_size": 8,
        "streams": 4,
        "steps": 3,
        "prompt": "",
        "lr": 1e-3,
        "eps": 1e-4,
        "max_text_tokens": 8,
        "precision": "fp32",
        "threads": 1,
    }
    monkeypatch.chdir(tmp_path)
    for name, workers in (("one", 1), ("four", 4)):
        manifest = {"name": name, "run": name, "train": {"m": {**entry, "workers": workers}}}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(manifest))
    config = Manifest.load("one.yaml").train["m"]
    train(config, [pairs], tmp_path / "one/models/m")
    capfilt = [sys.executable, "-m", "pipeline.cli", "train", "four.yaml"]
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for number, returncode in ((2, 1), (4, 0)):
        done = subprocess.run(
            [*run, str(number), "--no-python", *capfilt],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert (done.returncode != 0) == returncode, done.stderr
        if returncode:
            assert "train.m.workers is 4, and 2 ranks were launched: set it to 2" in done.stderr
    assert_close(tmp_path / "one/models/m", tmp_path / "four/models/m")
    assert json.loads((tmp_path / "four/models/m.json").read_text())["result"]["steps"] == 3


def test_the_variables_of_torchrun_and_slurm_say_which_rank_this_is() -> None:
    torchrun = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert launched_ranks({**torchrun, "HOME": "/"}) == torchrun
    slurm = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
    assert launched_ranks({**slurm, "MASTER_ADDR": "node1"}) == torchrun
    # A shell that Slurm has opened is not a rank, and one task is alone.
    assert launched_ranks(slurm) == {}
    assert launched_ranks({**slurm, "SLURM_NTASKS": "1", "MASTER_ADDR": "node1"}) == {}
    assert launched_ranks({}) == {}


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
