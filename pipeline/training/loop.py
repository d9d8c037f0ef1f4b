"""The training loop: trains an objective on pairs or documents, and resumes if interrupted."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from models.objectives.base import Objective, Step
from models.objectives.batch import Batch, Documents
from models.objectives.distributed import gather, num_ranks, rank
from models.random import seed_of
from pipeline.manifest.train_config import Source, TrainConfig, as_sources
from pipeline.storage.staging import StagingDir
from pipeline.training import model_card
from pipeline.training.checkpoint import Checkpoint, check_finite, flush
from pipeline.training.course import (
    Turn,
    changed_settings,
    check_same_course,
    identity_of,
    positions_of,
    shift_of,
    turned,
)
from pipeline.training.data import Position
from pipeline.training.flops import counted
from pipeline.training.loader import ahead, make_batches, near_misses_of
from pipeline.training.log import Log, rounded, timing
from pipeline.training.optim import (
    Average,
    clip,
    learning_rate,
    make_optimizer,
    parallel,
    use_bf16,
)
from pipeline.training.placing import BEST, CHECKPOINT, place_model, resume_placing
from pipeline.training.progress import Progress
from pipeline.training.streams import all_positions, open_streams, own_positions
from pipeline.training.validation import measure, model_in_progress, write

__all__ = ["TrainResult", "train"]

logger = logging.getLogger(__name__)

RECENT_STEPS = 50

KEEP_SECONDS = 15.0
"""Seconds between copies of the log to object storage, from which other processes read progress."""

CURRENT = "current"
"""The folder of the measured model, in the folder of an unfinished training."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The outcome of a training.

    Attributes:
        folder: The folder or URL of the model.
        steps: Optimiser steps, including those before the call.
        images: Images in all these steps, on all ranks; a document counts as one.
        unreadable: Images left out because they cannot be opened, on all ranks.
        skipped: Steps without an update, because a loss or a gradient was not finite.
        losses: Mean of each part of the loss over the last `RECENT_STEPS` steps.
        seconds: Seconds that the call took.
        resumed_from: The step of the checkpoint from which the call resumed; 0 without one.
    """

    folder: str
    steps: int
    images: int
    unreadable: int
    skipped: int
    losses: Mapping[str, float]
    seconds: float
    resumed_from: int


def train(
    config: TrainConfig,
    data: Sequence[str | Source],
    out: str | os.PathLike[str],
    *,
    stop_at: int | None = None,
    go_on: bool = False,
) -> TrainResult:
    """Train a model and save it in folders that stock transformers loads.

    A training writes to OUT.partial until it is finished. If it is killed, the next call resumes
    from the last checkpoint there, with the same losses as without the interruption. A checkpoint
    of another config or of other files is moved to OUT.FINGERPRINT.partial, and moved back when
    its own training is called again; with `go_on` this training continues from it.

    Under `torch.distributed` every rank calls this function; gradients are averaged, and rank 0
    writes. Then OUT must be on shared storage. If OUT is a URL, ranks work in temporary folders,
    and rank 0 uploads each checkpoint and the model.

    A step with a loss or a gradient that is not finite is skipped: it changes no weight, and its
    line in the log has `skipped`, the number of such steps, instead of losses.

    Args:
        config: The config of the training.
        data: The data, in place of the config's; a plain text is a path of weight 1.
        out: The model folder or its URL. It is written, or replaced, when the training is
            finished. It holds the model; README.md, its card; `metrics.jsonl` with losses, lr and
            times of each step; and `samples.jsonl` with captions written in between.
        stop_at: Stop after this step with a checkpoint.
        go_on: Continue from a checkpoint with other settings, if its objective, data, starting
            weights and the shapes of its tensors are the same. Model, optimiser, queue and
            position are restored, and the card and the log name the changed settings.

    Raises:
        ValueError: The config does not fit the files or the number of ranks.
        FloatingPointError: Ten steps in a row are not finite, or the weights are not.
    """
    staging = StagingDir(os.fspath(out))
    try:
        return _Training(config, data, staging).run(stop_at, go_on)
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
        self.staging = staging
        self.out, self.partial = staging.folder, staging.partial
        self.log = Log(self.partial, config.tensorboard)
        if config.threads:
            torch.set_num_threads(config.threads)
        if config.workers != num_ranks():
            raise ValueError(f"train.workers is {config.workers}, and {num_ranks()} train together")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.autocast = use_bf16(config.precision, self.device)

        self.share = share = config.streams // config.workers
        kinds = open_streams(config, as_sources(data))
        self.kinds = len(kinds)
        first = rank() * share
        self.streams = [kind.like(stream=first + i) for kind in kinds for i in range(share)]
        self.batch_sizes = {kind.field: getattr(config.objective, kind.field) for kind in kinds}
        self.leading = kinds[0].field
        self.steps_an_epoch = kinds[0].images_an_epoch // self.batch_sizes[self.leading]
        self.data = [entry for kind in kinds for entry in kind.described()]

        torch.manual_seed(seed_of(config.seed, "weights"))
        self.start = config.start()
        self.model: Objective = config.objective.build().to(self.device).train()
        if config.objective.freeze:
            has_bf16 = use_bf16("auto", self.device)
            self.model.freeze_parts(
                config.objective.freeze, torch.bfloat16 if has_bf16 else torch.float32
            )
        if config.compile:
            self.model.compile(dynamic=True)
        self.parallel = parallel(self.model, self.device, is_divided=config.shard)
        self.optimizer = make_optimizer(self.model, config.objective)
        self.average = Average(self.model, config.ema) if config.ema else None
        content = [[entry["weight"], entry["sha256"]] for entry in self.data]
        self.settings = json.loads(json.dumps({**config.settings(), "data": None}))
        self.identity = identity_of(config, self.start, content)
        self.basis = {
            "objective": config.objective.name,
            "starting weights": self.start,
            "data": content,
        }
        means = self.average.means if self.average else None
        self.checkpoint = Checkpoint(self.partial / CHECKPOINT, self.identity, means)
        self.at = Progress()
        self.flops = 0.0
        self.positions = [Position()] * len(self.streams)
        self.unreadable = 0

    @property
    def steps(self) -> int:
        """The number of the last step."""
        return self.config.steps or self.schedule_steps - self.at.shift

    @property
    def images_a_step(self) -> int:
        """Pairs and documents of a step, on all ranks."""
        return sum(self.batch_sizes.values())

    @property
    def is_over(self) -> bool:
        """Whether all steps are done, or the patience with validations has ended."""
        patience = self.config.patience
        return self.at.step >= self.steps or bool(patience and self.at.best.since >= patience)

    @property
    def schedule_steps(self) -> int:
        """The steps of the schedule of the learning rate."""
        return self.config.steps or self.config.objective.epochs * self.steps_an_epoch

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        objective, step, shift = self.config.objective, self.at.step, self.at.shift
        if not self.config.steps:
            step, shift = step + shift, 0
        return learning_rate(objective, step, self.schedule_steps, self.steps_an_epoch, shift)

    def run(self, stop_at: int | None, go_on: bool) -> TrainResult:
        """Train to the end, or to `stop_at`."""
        config, at = self.config, self.at
        began = kept = time.monotonic()
        if rank() == 0:
            resume_placing(self.out, model_card.fingerprint(self.identity))
        gather(torch.zeros(1, device=self.device))  # the others wait
        if self.is_finished():
            at.step, at.images = self.steps, self.steps * self.images_a_step
            return self.result({}, 0, began, self.steps)
        logs = (self.log.metrics, self.log.samples)
        kept_files = (self.checkpoint.path, self.checkpoint.previous, *logs)
        names = [path.name for path in kept_files]
        self.staging.fetch(*names)
        self.staging.fetch_folder(BEST)
        self.set_aside(go_on, names)
        resumed_from = self.resume()
        at = self.at
        self.partial.mkdir(parents=True, exist_ok=True)
        recent: list[dict[str, float]] = []
        batches = make_batches(
            config,
            self.streams,
            self.model,
            self.positions,
            near_misses_of(config, self.streams[0]),
        )
        if config.loaders:
            batches = ahead(batches)
        with contextlib.ExitStack() as opened:
            if rank() == 0:
                opened.callback(self.log.close)
                self.log.open(at.step)
            while not self.is_over:
                if stop_at is not None and at.step >= stop_at:
                    self.save_checkpoint()
                    break
                started = time.monotonic()
                loaded = next(batches)
                waited = time.monotonic() - started
                self.positions = list(loaded.positions)
                self.unreadable += loaded.unreadable
                lr = self.lr
                found = self.update(loaded.on(self.device, self.model), lr)
                seconds = time.monotonic() - started
                at.step += 1
                at.images += self.images_a_step
                if not at.skipped.in_a_row:
                    recent = [*recent[1 - RECENT_STEPS :], found]
                row = self.log_row(found, lr)
                row |= timing(self.images_a_step, self.flops, waited, seconds, self.device)
                row |= self.validate()
                if rank() == 0:
                    self.log.write(row)
                    every = 0 if config.shard else config.sample_every
                    if every and (at.step % every == 0 or at.step == self.steps):
                        self.log.sample(self.model, loaded, at.step)
                if config.checkpoint_every and at.step % config.checkpoint_every == 0:
                    self.save_checkpoint()
                if rank() == 0 and time.monotonic() - kept > KEEP_SECONDS:
                    self.staging.keep(self.log.metrics.name)
                    kept = time.monotonic()
        unreadable = int(gather(torch.tensor([self.unreadable], device=self.device)).sum())
        if self.is_over:
            self.finish()
        if unreadable:
            logger.warning("%s: %d images could not be opened", self.out.name, unreadable)
        if at.skipped.total:
            logger.warning("%s: %d steps were skipped", self.out.name, at.skipped.total)
        keys = [key for key in recent[0] if key != "grad_norm"] if recent else ()
        losses = {key: sum(row[key] for row in recent) / len(recent) for key in keys}
        return self.result(losses, unreadable, began, resumed_from)

    def result(
        self, losses: Mapping[str, float], unreadable: int, began: float, resumed_from: int
    ) -> TrainResult:
        """The outcome of this call."""
        return TrainResult(
            folder=self.staging.out,
            steps=self.at.step,
            images=self.at.images,
            unreadable=unreadable,
            skipped=self.at.skipped.total,
            losses=losses,
            seconds=time.monotonic() - began,
            resumed_from=resumed_from,
        )

    def card(self) -> str:
        """The model card of this training."""
        usage = self.model.usage(self.config.objective.max_text_tokens)
        return model_card.text(self.config, self.data, self.start, self.at, self.identity, usage)

    def is_finished(self) -> bool:
        """Whether the folder holds this training's model; the card is published last."""
        return model_card.fingerprint(self.identity) in (self.staging.read("README.md") or "")

    def update(self, batches: Sequence[Batch], lr: float) -> dict[str, float]:
        """Take one step of the optimiser, unless a loss or a gradient is not finite.

        The gradients of all batches are added up.

        Returns:
            The losses, averaged over all ranks, and `grad_norm`.
        """
        config, at = self.config, self.at
        parts = [part for b in batches for part in b.split(config.accumulate, self.share)]
        has_documents = any(isinstance(batch, Documents) for batch in batches)
        flops = 0.0
        values: dict[str, Tensor] = {}
        for number, part in enumerate(parts):
            # Each step has its own seed, so that a resumed training draws the same numbers.
            seed = seed_of(config.seed, "step", at.step, number)
            torch.manual_seed(seed_of(seed, "dropout", rank()))
            step = Step(
                number=at.step + at.shift,
                steps_an_epoch=self.steps_an_epoch,
                parts=config.accumulate,
                streams=self.share,
                has_documents=has_documents,
                generator=torch.Generator(self.device).manual_seed(seed),
            )
            with contextlib.ExitStack() as around:
                if isinstance(self.parallel, DistributedDataParallel) and part is not parts[-1]:
                    around.enter_context(self.parallel.no_sync())  # the last part averages the sum
                with (
                    torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast),
                    contextlib.nullcontext() if self.flops else counted() as count,
                ):
                    losses = self.parallel(part, step)
                if count is not None:
                    flops += count.number
                total = torch.stack(list(losses.values())).sum()
                torch.autograd.backward(total / config.accumulate)
            for name, loss in losses.items():
                values[name] = values.get(name, 0) + loss.detach() / config.accumulate
        self.flops = self.flops or flops
        norm = clip(self.model, config.max_grad_norm)
        means = gather(torch.stack([*values.values(), norm])[None]).mean(0).tolist()
        found = dict(zip([*values, "grad_norm"], means, strict=True))
        found["loss"] = sum(means[:-1])
        if all(map(math.isfinite, found.values())):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            if self.average:
                self.average.update()
            at.skipped.in_a_row = 0
        else:
            told = at.skipped.add(at.step, found, config.objective.lr)
            logger.warning("%s: %s", self.out.name, told)
        self.optimizer.zero_grad()
        return found

    def log_row(self, found: Mapping[str, float], lr: float) -> dict[str, Any]:
        """The row of the log for a step, with its losses unless it was skipped."""
        at, logged = self.at, rounded(self.model.logged())
        row: dict[str, Any] = {"step": at.step, "epoch": self.positions[0].epoch}
        if at.skipped.in_a_row:
            return {**row, "skipped": at.skipped.total, "lr": lr, **logged}
        losses = rounded({name: value for name, value in found.items() if name != "grad_norm"})
        row |= {**losses, "lr": lr, **logged, **rounded(found, ["grad_norm"])}
        if at.course and at.course[-1].step == at.step - 1:
            row["changed"] = at.course[-1].changed
        return row

    def validate(self) -> dict[str, Any]:
        """The metrics of the model after a step; empty if no validation is due."""
        validate, metric, at = self.config.validate, self.config.best_metric, self.at
        if validate is None or (at.step % validate.every and at.step != self.steps):
            return {}
        found: dict[str, float] = {}
        if rank() == 0:
            found = measure(self.model, self.partial / CURRENT, validate.data, metric, self.average)
        if metric:
            told = torch.tensor([found.get(metric, 0.0)], dtype=torch.float64, device=self.device)
            if at.best.add(at.step, gather(told)[0].item()) and rank() == 0:
                shutil.rmtree(self.partial / BEST, ignore_errors=True)
                (self.partial / CURRENT).rename(self.partial / BEST)
                self.staging.keep_folder(BEST)
        shutil.rmtree(self.partial / CURRENT, ignore_errors=True)
        return {"validation": found}

    def finish(self) -> None:
        """Write the model and its card on rank 0, and move the folder into place."""
        is_divided = self.config.shard and num_ranks() > 1
        if is_divided:
            self.save_checkpoint()  # brings the parts of the weights together
        if rank():
            return
        if not is_divided:
            check_finite(self.model.trained())
        if self.at.best.step:
            shutil.copytree(self.partial / BEST, self.partial, dirs_exist_ok=True)
        elif is_divided:
            with model_in_progress(str(self.partial)) as (made, _):
                shutil.copytree(made, self.partial, dirs_exist_ok=True)
        else:
            write(self.model, self.partial, self.average)
        card = self.card()
        for folder in (self.partial, *(path.parent for path in self.partial.glob("*/config.json"))):
            (folder / "README.md").write_text(card, encoding="utf-8")
        for path in self.partial.rglob("*"):
            if path.is_file():
                flush(path)
        place_model(self.partial, self.out)
        self.staging.publish()

    def save_checkpoint(self) -> None:
        """Write a checkpoint on rank 0, with the positions of the streams of all ranks."""
        # The count of a rank is stored with its first stream.
        counts = [self.unreadable] + [0] * len(self.positions[1:])
        at = [(p.epoch, p.block, p.offset, n) for p, n in zip(self.positions, counts, strict=True)]
        gathered = gather(torch.tensor(at, device=self.device)).tolist()
        if rank() and not self.config.shard:
            return
        self.checkpoint.save(
            self.model,
            self.optimizer,
            streams=all_positions(gathered, self.kinds, num_ranks()),
            settings=self.settings,
            basis=self.basis,
            **self.at.state(),
        )
        if rank():
            return
        # The logs go first: resuming can cut rows after the checkpoint, but not restore others.
        self.staging.keep(self.log.metrics.name, self.log.samples.name)
        self.staging.rename(self.checkpoint.path.name, self.checkpoint.previous.name)
        self.staging.keep(self.checkpoint.path.name)

    def set_aside(self, go_on: bool, names: Sequence[str]) -> None:
        """Set the checkpoint of another training aside, and restore one of this training.

        Args:
            go_on: Do not set it aside, because this training continues from it.
            names: The files of a training.
        """
        state, own = self.checkpoint.read(), self.identity[:8]
        is_foreign = bool(state) and not self.checkpoint.is_own(state)
        if (state and not is_foreign) or (is_foreign and go_on):
            return
        gather(torch.zeros(1, device=self.device))  # every rank has read it
        if rank() == 0:
            if is_foreign:
                other = state["identity"][:8]
                self.staging.set_aside(other)
                logger.warning(
                    "%s: the checkpoint at step %d has other settings, and is kept in %s; "
                    "`capfilt train MANIFEST --continue` would have continued from it",
                    self.out.name,
                    state["step"],
                    self.staging.beside(other),
                )
            self.staging.take_back(own)
        gather(torch.zeros(1, device=self.device))
        self.staging.fetch(*names)

    def resume(self) -> int:
        """Load the checkpoint and return its step; 0 without a checkpoint.

        Raises:
            ValueError: Ranks see different checkpoints, or it does not fit this training.
            DamagedError: The checkpoint is damaged.
        """
        state = self.checkpoint.read()
        found = torch.tensor([state.get("step", 0)], device=self.device)
        if len(set(gather(found).tolist())) > 1:
            raise ValueError(f"train: {self.staging.out} must be on storage that all workers share")
        if not state:
            return 0
        is_own = self.checkpoint.is_own(state)
        if not is_own:
            check_same_course(state, self.basis, self.checkpoint.path)
            self.checkpoint.check_fit(self.model)
        self.checkpoint.restore(self.model, self.optimizer, state)
        self.at = Progress.of(state, self.images_a_step)
        # The counts of all streams are on one rank: how many there are may have changed.
        self.unreadable = 0 if rank() else sum(entry[3] for entry in state["streams"])
        if is_own:
            whole = positions_of(state)
            self.positions = own_positions(whole, self.kinds, rank(), num_ranks())
        else:
            self.turn(state)
        logger.info("%s goes on from step %d", self.out.name, self.at.step)
        return self.at.step

    def turn(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint with other settings, and record the changes."""
        at = self.at
        at.shift = shift_of(state, self.leading, self.batch_sizes[self.leading])
        self.positions = turned(self.streams, state, self.config)
        changed = changed_settings(state["settings"], self.settings)
        at.course.append(Turn(step=at.step, changed=changed))
        logger.warning("%s goes on %s", self.out.name, at.course[-1])
        self.save_checkpoint()
