"""Kills trainings at random moments, and compares what they end in with undisturbed ones.

    python -m helpers.kills TOKENIZER DATA FOLDER KILLS OBJECTIVE...

DATA are paths with commas between them, such as those of pairs and of documents. A process
imports everything once; each training is a fork of it that is killed with SIGKILL after a random
part of the time that the undisturbed one took, while it steps or writes a checkpoint. It prints a
line of JSON for each objective: the kills, the steps from which trainings continued, and the
tensors and lines that differ.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from helpers.contract import small
from helpers.nano import NANO
from helpers.trainings import metrics, weights
from models.objectives.registry import OBJECTIVES
from models.objectives.sizes import BLIP_SIZES, CLIP_SIZES
from pipeline.manifest.train_config import TrainConfig
from pipeline.training.loop import train

STEPS = 12


def config_of(name: str, tokenizer: str) -> TrainConfig:
    kind = OBJECTIVES[name]
    fields = {field.name for field in dataclasses.fields(kind)}
    own = {"queue_size": 16, "document_batch_size": 4}
    own = {field: value for field, value in own.items() if field in fields}
    objective = small(kind, tokenizer, batch_size=4, augment="paper", **own)
    return TrainConfig(
        objective=objective,
        steps=STEPS,
        precision="fp32",
        threads=1,
        checkpoint_every=2,
        sample_every=4,
    )


def start(config: TrainConfig, data: list[str], out: Path, note: Path) -> int:
    """Fork a training; it notes the step that it continues from."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        result = train(config, data, out)
        note.write_text(str(result.resumed_from))
        status = 0
    finally:
        os._exit(status)


def finish(child: int) -> float:
    began = time.monotonic()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"a training ended with {status}"
    return time.monotonic() - began


def check(name: str, tokenizer: str, data: list[str], folder: Path, kills: int) -> dict[str, Any]:
    config, rng = config_of(name, tokenizer), random.Random(name)
    whole, out, note = folder / "whole", folder / "killed", folder / "note"
    seconds = finish(start(config, data, whole, note))
    done, continued, differing = 0, [], []
    while done < kills:
        shutil.rmtree(out, ignore_errors=True)
        while True:
            child = start(config, data, out, note)
            time.sleep(rng.uniform(0, 1.2 * seconds) if done < kills else 0)
            if done < kills:
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if os.WIFSIGNALED(status):
                done += 1
                continue
            assert status == 0, f"a training ended with {status}"
            break
        continued.append(int(note.read_text()))
        mine, theirs = weights(out), weights(whole)
        names = {key: key.replace("killed/", "whole/") for key in mine}
        assert set(names.values()) == set(theirs)
        differing += [
            key for key, other in names.items() if not torch.equal(mine[key], theirs[other])
        ]
        differing += ["metrics"] * (metrics(out) != metrics(whole))
    return {"objective": name, "kills": done, "continued": continued, "differing": differing}


def main() -> None:
    tokenizer, data, folder, kills, *names = sys.argv[1:]
    torch.set_num_threads(1)
    for sizes in (BLIP_SIZES, CLIP_SIZES):
        sizes["nano"] = NANO
    for name in names or OBJECTIVES.ours:
        place = Path(folder, name)
        place.mkdir(parents=True)
        told = check(name, tokenizer, data.split(","), place, int(kills))
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
