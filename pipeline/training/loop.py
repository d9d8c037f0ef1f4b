"""The training loop: trains an objective on pairs, and resumes after an interruption."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.objectives.base import Objective, Step
from models.objectives.batch import Batch
from models.objectives.distributed import gather, num_ranks, rank
from models.random import seed_of
from models.text.near_misses import NearMisses, Vocabulary
from pipeline.manifest.train_config import Source, TrainConfig, as_sources, start_of
from pipeline.storage.staging import StagingDir
from pipeline.training import model_card
from pipeline.training.checkpoint import Checkpoint, cut_log, flush
from pipeline.training.data import Pairs, Position, fingerprints_of
from pipeline.training.loader import Loaded, ahead, make_batches
from pipeline.training.optim import (
    average_gradients,
    learning_rate,
    make_optimizer,
    use_bf16,
)
from stages.base import digest

__all__ = ["TrainResult", "train"]

logger = logging.getLogger(__name__)

RECENT_STEPS = 50

VOCABULARY_IMAGES = 20_000
"""Images whose texts provide the vocabulary of near misses."""

KEEP_SECONDS = 15.0
"""Seconds between copies of the log to object storage, from which other processes read progress."""

SAMPLES = 4


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The outcome of a training.

    Attributes:
        folder: The folder or URL of the model.
        steps: Optimiser steps, including those before the call.
        images: Images in all these steps, on all ranks.
        unreadable: Images left out because they cannot be opened, on all ranks.
        losses: Mean of each part of the loss over the last `RECENT_STEPS` steps.
        seconds: Seconds that the call took.
        resumed_from: The step of the checkpoint from which the call resumed; 0 without one.
    """

    folder: str
    steps: int
    images: int
    unreadable: int
    losses: Mapping[str, float]
    seconds: float
    resumed_from: int


def train(
    config: TrainConfig,
    data: Sequence[str | Source],
    out: str | os.PathLike[str],
    *,
    stop_at: int | None = None,
) -> TrainResult:
    """Train a model and save it in folders that stock transformers loads.

    A training writes to OUT.partial until it is finished. If it is killed, the next call resumes
    from the last checkpoint there, with the same losses as without the interruption; it ignores a
    checkpoint of another config or of other files. Under `torch.distributed` every rank calls this
    function; gradients are averaged, and rank 0 writes. Then OUT must be on shared storage. If OUT
    is a URL, ranks work in temporary folders, and rank 0 uploads each checkpoint and the model.

    Args:
        config: The config of the training.
        data: The data, in place of the config's; a plain text is a path of weight 1.
        out: The model folder or its URL. It is written, or replaced, when the training is
            finished. It holds the model; README.md, its card; `metrics.jsonl` with losses, lr and
            images per second of each step; and `samples.jsonl` with captions written in between.
        stop_at: Stop after this step with a checkpoint.

    Raises:
        ValueError: The config does not fit the files or the number of ranks.
        FloatingPointError: The loss is no longer a number.
    """
    staging = StagingDir(os.fspath(out))
    try:
        return _Training(config, data, staging).run(stop_at)
    finally:
        staging.close()


class _Training:
    """The state of one call of `train`."""

    def __init__(
        self,
        config: TrainConfig,
        data: Sequence[str | Source],
        staging: StagingDir,
    ) -> None:
        self.config = config
        self.batch_size = config.objective.batch_size
        self.staging = staging
        self.out, self.partial = staging.folder, staging.partial
        self.log = self.partial / "metrics.jsonl"
        self.samples = self.partial / "samples.jsonl"
        if config.threads:
            torch.set_num_threads(config.threads)
        if config.workers != num_ranks():
            raise ValueError(f"train.workers is {config.workers}, and {num_ranks()} train together")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.autocast = use_bf16(config.precision, self.device)

        share = config.streams // config.workers
        whole = Pairs(
            as_sources(data),
            seed=config.seed,
            num_streams=config.streams,
            shuffle_buffer=config.shuffle_buffer,
        )
        self.streams = [whole.of_stream(rank() * share + i) for i in range(share)]
        self.steps_an_epoch = whole.images_an_epoch // self.batch_size
        if not self.steps_an_epoch:
            raise ValueError(
                f"train.batch_size is {self.batch_size}, but an epoch has only "
                f"{whole.images_an_epoch} images: use a smaller batch_size"
            )
        self.steps = config.steps or config.objective.epochs * self.steps_an_epoch
        self.data = [
            {
                "path": source.path,
                "weight": source.weight,
                "images": whole.sizes[source],
                "sha256": together(fingerprints_of(files)),
            }
            for source, files in whole.files.items()
        ]

        torch.manual_seed(seed_of(config.seed, "weights"))
        self.start = config.start()
        self.model: Objective = config.objective.build().to(self.device).train()
        self.optimizer = make_optimizer(self.model, config.objective)
        settings = config.measurement() | {"tokenizer": None, "data": ()}
        for field, model in config.objective.models().items():
            if start_of(model):
                settings[field] = None  # the revisions identify the weights, wherever they are
        content = [(entry["weight"], entry["sha256"]) for entry in self.data]
        self.identity = digest([settings, self.start, content])
        self.checkpoint = Checkpoint(self.partial / "checkpoint.safetensors", self.identity)
        self.step = 0
        self.positions = [Position()] * share
        self.unreadable = 0

    def run(self, stop_at: int | None) -> TrainResult:
        """Train to the end, or to `stop_at`."""
        config = self.config
        began = kept = time.monotonic()
        if self.is_finished():
            self.step = self.steps
            return self.result({}, 0, began, self.steps)
        self.staging.fetch(self.checkpoint.path.name, self.log.name, self.samples.name)
        resumed_from = self.resume()
        self.partial.mkdir(parents=True, exist_ok=True)
        for path in (self.log, self.samples) if rank() == 0 else ():
            cut_log(path, resumed_from)
        recent: list[dict[str, float]] = []
        batches = make_batches(config, self.streams, self.model, self.positions, self.near_misses())
        if config.loaders:
            batches = ahead(batches)
        with contextlib.ExitStack() as opened:
            logs = self.open_logs(opened)
            while self.step < self.steps:
                if stop_at is not None and self.step >= stop_at:
                    self.save_checkpoint()
                    break
                started = time.monotonic()
                loaded = next(batches)
                self.positions = list(loaded.positions)
                self.unreadable += loaded.unreadable
                lr = learning_rate(config.objective, self.step, self.steps, self.steps_an_epoch)
                losses = self.update(loaded.batch, lr)
                self.step += 1
                recent = [*recent[1 - RECENT_STEPS :], losses]
                row = self.log_row(losses, lr, time.monotonic() - started)
                for log in logs:
                    log(row)
                every = config.sample_every
                if every and (self.step % every == 0 or self.step == self.steps):
                    self.sample(loaded)
                if config.checkpoint_every and self.step % config.checkpoint_every == 0:
                    self.save_checkpoint()
                if rank() == 0 and time.monotonic() - kept > KEEP_SECONDS:
                    self.staging.keep(self.log.name)
                    kept = time.monotonic()
        unreadable = int(gather(torch.tensor([self.unreadable], device=self.device)).sum())
        if self.step >= self.steps and rank() == 0:
            self.finish()
        if unreadable:
            logger.warning("%s: %d images could not be opened", self.out.name, unreadable)
        keys = recent[0] if recent else ()
        losses = {key: sum(row[key] for row in recent) / len(recent) for key in keys}
        return self.result(losses, unreadable, began, resumed_from)

    def near_misses(self) -> NearMisses | None:
        """The maker of near misses; None if the objective uses none."""
        number, tagger = self.config.objective.near_miss_settings()
        if not number:
            return None
        captions = itertools.islice(self.streams[0].captions(), VOCABULARY_IMAGES)
        try:
            return NearMisses(Vocabulary(captions, tagger))
        except OSError as error:
            raise ValueError(
                f"train.tagger: no spaCy pipeline {tagger!r}, which near misses need; install it "
                f"with `python -m spacy download {tagger}`, or name a folder that holds one"
            ) from error

    def result(
        self, losses: Mapping[str, float], unreadable: int, began: float, resumed_from: int
    ) -> TrainResult:
        """The outcome of this call."""
        return TrainResult(
            folder=self.staging.out,
            steps=self.step,
            images=self.step * self.batch_size,
            unreadable=unreadable,
            losses=losses,
            seconds=time.monotonic() - began,
            resumed_from=resumed_from,
        )

    def card(self) -> str:
        """The model card of this training."""
        usage = self.model.usage(self.config.objective.max_text_tokens)
        return model_card.text(self.config, self.data, self.start, self.steps, self.identity, usage)

    def is_finished(self) -> bool:
        """Whether the folder holds this training's model; the card is published last."""
        return self.staging.read("README.md") == self.card()

    def update(self, batch: Batch, lr: float) -> dict[str, float]:
        """Take one step of the optimiser and return the losses, averaged over all ranks."""
        config = self.config
        parts = batch.to(self.device).split(config.accumulate, len(self.streams))
        values: dict[str, Tensor] = {}
        for number, part in enumerate(parts):
            # Each step has its own seed, so that a resumed training draws the same numbers.
            seed = seed_of(config.seed, "step", self.step, number)
            torch.manual_seed(seed_of(seed, "dropout", rank()))
            step = Step(
                number=self.step,
                steps_an_epoch=self.steps_an_epoch,
                parts=len(parts),
                streams=len(self.streams),
                generator=torch.Generator(self.device).manual_seed(seed),
            )
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                losses = self.model(part, step)
            torch.autograd.backward(torch.stack(list(losses.values())).sum() / len(parts))
            for name, loss in losses.items():
                values[name] = values.get(name, 0) + loss.detach() / len(parts)
        average_gradients(self.model)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        means = gather(torch.stack(list(values.values()))[None]).mean(0).tolist()
        means_of = dict(zip(values, means, strict=True))
        means_of["loss"] = sum(means)
        if not math.isfinite(means_of["loss"]):
            raise FloatingPointError(
                f"train: the loss is {means_of} at step {self.step}; lower lr "
                f"({config.objective.lr}) or use precision fp32"
            )
        return means_of

    def log_row(self, losses: Mapping[str, float], lr: float, seconds: float) -> dict[str, Any]:
        """The row of the log for a step."""
        row: dict[str, Any] = {"step": self.step, "epoch": self.positions[0].epoch}
        row |= {name: round(value, 6) for name, value in losses.items()}
        row["lr"] = lr
        row |= {name: round(value, 6) for name, value in self.model.logged().items()}
        row["images_per_second"] = round(self.batch_size / seconds, 1)
        return row

    def open_logs(self, opened: contextlib.ExitStack) -> list[Callable[[dict[str, Any]], None]]:
        """The functions that write the row of a step; none on ranks other than 0."""
        if rank():
            return []
        file = opened.enter_context(self.log.open("a", encoding="utf-8"))

        def write(row: dict[str, Any]) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        if not self.config.tensorboard:
            return [write]
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ValueError(
                "train.tensorboard needs a package: pip install 'capfilt[tensorboard]'"
            ) from None
        events = SummaryWriter(str(self.partial / "tensorboard"), purge_step=self.step + 1)
        opened.callback(events.close)

        def show(row: dict[str, Any]) -> None:
            for name, value in row.items():
                if name != "step":
                    events.add_scalar(name, value, row["step"])

        return [write, show]

    @torch.no_grad()
    def sample(self, loaded: Loaded) -> None:
        """Log captions of the first images of a batch, if the model can write captions."""
        if rank():
            return
        self.model.eval()
        texts = self.model.sample(loaded.batch.pixels[:SAMPLES].to(self.device))
        self.model.train()
        if not texts:
            return
        with open(self.samples, "a", encoding="utf-8") as file:
            for caption, text in zip(loaded.captions, texts, strict=False):
                row = {"step": self.step, "caption": caption, "written": text}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def finish(self) -> None:
        """Write the model and its card, and move the folder into place."""
        self.model.write(self.partial)
        card = self.card()
        for folder in (self.partial, *(path.parent for path in self.partial.glob("*/config.json"))):
            (folder / "README.md").write_text(card, encoding="utf-8")
        for path in self.partial.rglob("*"):
            if path.is_file():
                flush(path)
        shutil.rmtree(self.out, ignore_errors=True)
        self.partial.rename(self.out)
        # If killed before this line, the next call resumes and writes the model again.
        (self.out / self.checkpoint.path.name).unlink(missing_ok=True)
        self.staging.publish()

    def save_checkpoint(self) -> None:
        """Write a checkpoint on rank 0, with the positions of the streams of all ranks."""
        # The count of a rank is stored with its first stream.
        counts = [self.unreadable] + [0] * len(self.positions[1:])
        at = [(p.epoch, p.block, p.offset, n) for p, n in zip(self.positions, counts, strict=True)]
        streams = gather(torch.tensor(at, device=self.device)).tolist()
        if rank():
            return
        self.checkpoint.save(self.model, self.optimizer, step=self.step, streams=streams)
        # The logs go first: resuming can cut rows after the checkpoint, but not restore others.
        self.staging.keep(self.log.name, self.samples.name, self.checkpoint.path.name)

    def resume(self) -> int:
        """Load this training's checkpoint and return its step; 0 without a checkpoint.

        Raises:
            ValueError: Ranks see different checkpoints.
            DamagedError: The checkpoint is damaged.
        """
        state = self.checkpoint.read()
        steps = torch.tensor([state.get("step", 0)], device=self.device)
        if len(set(gather(steps).tolist())) > 1:
            raise ValueError(f"train: {self.staging.out} must be on storage that all workers share")
        if not state:
            return 0
        self.checkpoint.restore(self.model, self.optimizer, state)
        self.step = state["step"]
        share = len(self.positions)
        own = state["streams"][rank() * share : (rank() + 1) * share]
        self.positions = [Position(epoch=e, block=b, offset=o) for e, b, o, _ in own]
        self.unreadable = sum(entry[3] for entry in own)
        logger.info("%s goes on from step %d", self.out.name, self.step)
        return self.step


def together(fingerprints: Sequence[str]) -> str:
    """The fingerprint of one file, or a digest of the fingerprints of several."""
    return fingerprints[0] if len(fingerprints) == 1 else digest(list(fingerprints))
