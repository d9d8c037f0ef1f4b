"""Training on pairs: BLIP's pre-training, and the fine-tuning of a captioner and of a filter."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import json
import logging
import math
import os
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.augmentation import View
from models.contrast import gather
from models.images import ImageError, Preprocess, open_rgb
from models.med import MED, Batch
from models.queue import check_queue
from models.weights import revision_of
from pipeline.objective import PARTS, TrainConfig
from pipeline.pairs import Example, Pairs, Position, pre_caption, seed_of
from stages.base import digest

__all__ = ["TrainResult", "train"]

logger = logging.getLogger(__name__)

CACHE_BYTES = 1 << 30
"""Decoded images that are kept in memory; the images behind them are decoded every time."""

RECENT_STEPS = 50

Loaded = tuple[Batch, Position, int]
"""A batch, the position behind it, and how many images before it could not be opened."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training did.

    Attributes:
        folder: Where the model stands.
        steps: Optimiser steps in all.
        images: Images seen in all, on all ranks.
        unreadable: Images left out because they cannot be opened, on this rank.
        losses: Mean of each part of the loss over the last steps.
        seconds: Of this call.
        resumed_from: The step of the checkpoint it went on from, 0 for none.
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
    paths: Sequence[str],
    out: str | os.PathLike[str],
    *,
    tokenizer: str | None = None,
    stop_at: int | None = None,
) -> TrainResult:
    """Train a model and save it as plain BLIP folders.

    Until it is finished all lies in OUT.partial. A call that was killed goes on from the last
    checkpoint there, with the losses it would have had; a checkpoint of another config or of
    other files is ignored. Under `torch.distributed` every rank calls this; gradients are
    averaged and rank 0 writes.

    Args:
        config: What to do.
        paths: Parquet files (columns image, caption, uid) or JSON lines; globs allowed.
        out: The model folder, local. It appears, or is replaced, when the training is finished:
            the model, and `metrics.jsonl` with losses, lr and images a second of each step.
        tokenizer: In place of the config's.
        stop_at: Leave after this step with a checkpoint.

    Raises:
        ValueError: The config does not fit the files or the number of ranks.
        FloatingPointError: The loss is no longer a number.
    """
    return _Training(config, paths, Path(out), tokenizer or config.tokenizer).run(stop_at)


class _Training:
    """The state of one call of `train`."""

    def __init__(
        self,
        config: TrainConfig,
        paths: Sequence[str],
        out: Path,
        tokenizer: str | None,
    ) -> None:
        self.config = config
        self.out = out
        self.partial = out.with_name(out.name + ".partial")
        self.log = self.partial / "metrics.jsonl"
        self.checkpoint = self.partial / "checkpoint.safetensors"
        if config.threads:
            torch.set_num_threads(config.threads)
        distributed = torch.distributed.is_initialized()
        self.rank = torch.distributed.get_rank() if distributed else 0
        self.num_ranks = torch.distributed.get_world_size() if distributed else 1
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.autocast = use_bf16(config, self.device)

        files = [file for path in paths for file in sorted(glob.glob(path)) or [path]]
        self.pairs = Pairs(files, seed=config.seed, rank=self.rank, num_ranks=self.num_ranks)
        global_batch = config.batch_size * self.num_ranks
        self.steps_an_epoch = self.pairs.num_images // global_batch
        if not self.steps_an_epoch:
            raise ValueError(
                f"train.batch_size makes batches of {global_batch}, more than the "
                f"{self.pairs.num_images} images there are: use a smaller one"
            )
        self.steps = config.steps or config.epochs * self.steps_an_epoch

        torch.manual_seed(seed_of(config.seed, "weights"))
        parts = PARTS[config.objective]
        self.med = MED.from_pretrained(
            config.model,
            parts=parts,
            tokenizer=tokenizer,
            image_size=config.image_size,
            label_smoothing=config.label_smoothing,
        )
        self.med.prompt = config.prompt
        if "matcher" in parts:
            check_queue(config.queue_size, global_batch)
            self.med.start_momentum(queue_size=config.queue_size, decay=config.momentum)
        self.med.to(self.device).train()
        self.optimizer = make_optimizer(self.med, config)
        settings = dataclasses.asdict(config) | {"data": (), "checkpoint_every": 0}
        self.identity = digest([settings, start_of(config), contents(files), self.num_ranks])
        self.step = 0
        self.position = Position()
        self.unreadable = 0

    def run(self, stop_at: int | None) -> TrainResult:
        """Train to the end, or to `stop_at`."""
        config = self.config
        began = time.monotonic()
        resumed_from = self.resume()
        self.partial.mkdir(parents=True, exist_ok=True)
        self.keep_log(resumed_from)
        prompt = self.prompt_length()
        recent: list[dict[str, float]] = []
        batches = make_batches(config, self.pairs, self.med, self.position, prompt)
        if config.loaders:
            batches = ahead(batches)
        with (
            open(self.log, "a", encoding="utf-8") if self.rank == 0 else contextlib.nullcontext()
        ) as log:
            while self.step < self.steps:
                if stop_at is not None and self.step >= stop_at:
                    self.save_checkpoint()
                    break
                started = time.monotonic()
                batch, self.position, unreadable = next(batches)
                self.unreadable += unreadable
                lr = learning_rate(config, self.step, self.steps, self.steps_an_epoch)
                losses = self.update(batch, lr)
                self.step += 1
                recent = [*recent[1 - RECENT_STEPS :], losses]
                seconds = time.monotonic() - started
                if log is not None:
                    row = self.log_row(losses, lr, seconds)
                    log.write(json.dumps(row) + "\n")
                    log.flush()
                if config.checkpoint_every and self.step % config.checkpoint_every == 0:
                    self.save_checkpoint()
        if self.step >= self.steps and self.rank == 0:
            self.med.write(self.partial)
            self.checkpoint.unlink(missing_ok=True)
            shutil.rmtree(self.out, ignore_errors=True)
            self.partial.rename(self.out)
        seconds = time.monotonic() - began
        if self.unreadable:
            logger.warning("%s: %d images could not be opened", self.out.name, self.unreadable)
        return TrainResult(
            folder=str(self.out),
            steps=self.step,
            images=self.step * config.batch_size * self.num_ranks,
            unreadable=self.unreadable,
            losses={k: sum(row[k] for row in recent) / len(recent) for k in recent[0]}
            if recent
            else {},
            seconds=seconds,
            resumed_from=resumed_from,
        )

    def update(self, batch: Batch, lr: float) -> dict[str, float]:
        """One step of the optimiser; the losses of this rank."""
        config = self.config
        # Every step draws from its own seed, so that a resumed step draws what it would have.
        seed = seed_of(config.seed, "step", self.step, self.rank)
        torch.manual_seed(seed)
        generator = torch.Generator(self.device).manual_seed(seed)
        ramp = max(1.0, config.alpha_epochs * self.steps_an_epoch)
        alpha = config.alpha * min(1.0, self.step / ramp)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            losses = self.med(batch.to(self.device), alpha=alpha, generator=generator)
        total = torch.stack(list(losses.values())).sum()
        torch.autograd.backward(total)
        average_gradients(self.med, self.num_ranks)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        values = {name: loss.item() for name, loss in losses.items()}
        values["loss"] = sum(values.values())
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(
                f"train: the loss is {values} at step {self.step}; lower lr "
                f"({config.lr}) or use precision fp32"
            )
        return values

    def log_row(self, losses: Mapping[str, float], lr: float, seconds: float) -> dict[str, Any]:
        """What the log keeps of a step."""
        row: dict[str, Any] = {"step": self.step, "epoch": self.position.epoch}
        row |= {name: round(value, 6) for name, value in losses.items()}
        row["lr"] = lr
        if self.med.matcher is not None:
            row["temperature"] = round(self.med.temperature.item(), 6)
        row["images_per_second"] = round(self.config.batch_size * self.num_ranks / seconds, 1)
        return row

    def prompt_length(self) -> int:
        """Tokens of the prompt, [CLS] included and [SEP] not; 0 without one."""
        if not self.config.prompt.strip():
            return 0
        return len(self.med.tokenizer(self.config.prompt)["input_ids"]) - 1

    def tensors(self) -> dict[str, Tensor]:
        """All that a step changes, by name; shared weights once."""
        named = dict(self.med.named_parameters())
        state: dict[str, Tensor] = {f"model.{name}": p for name, p in named.items()}
        if self.med.momentum is not None:
            buffers = self.med.momentum.named_buffers()
            state |= {f"queue.{k}": v for k, v in buffers if "." not in k}
        for name, parameter in named.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                state[f"optimizer.{key}.{name}"] = value
        return state

    def save_checkpoint(self) -> None:
        """Write everything a later call needs into one file, or leave the old one."""
        at = [self.position.epoch, self.position.block, self.position.offset, self.unreadable]
        ranks = gather(torch.tensor([at], device=self.device)).tolist()
        if self.rank:
            return
        tensors = {
            name: value.detach().cpu().contiguous() for name, value in self.tensors().items()
        }
        state = {
            "identity": self.identity,
            "step": self.step,
            "ranks": ranks,
        }
        partial = self.checkpoint.with_name(self.checkpoint.name + ".partial")
        save_file(tensors, partial, metadata={"state": json.dumps(state)})
        partial.replace(self.checkpoint)

    def resume(self) -> int:
        """Take up this training's checkpoint; the step it is of, 0 for none."""
        if not self.checkpoint.exists():
            return 0
        with safe_open(self.checkpoint, "pt") as file:
            state = json.loads(file.metadata()["state"])
            if state["identity"] != self.identity:
                logger.warning("%s is of another training and is ignored", self.checkpoint)
                return 0
            named = dict(self.med.named_parameters())
            for key in file.keys():  # noqa: SIM118
                kind, _, name = key.partition(".")
                if kind == "optimizer":
                    slot, _, name = name.partition(".")
                    value = file.get_tensor(key).to(self.device)
                    self.optimizer.state[named[name]][slot] = value
        with safe_open(self.checkpoint, "pt") as file, torch.no_grad():
            for key, tensor in self.tensors().items():
                if not key.startswith("optimizer."):
                    tensor.copy_(file.get_tensor(key))
        self.step = state["step"]
        epoch, block, offset, self.unreadable = state["ranks"][self.rank]
        self.position = Position(epoch=epoch, block=block, offset=offset)
        logger.info("%s goes on from step %d", self.out.name, self.step)
        return self.step

    def keep_log(self, step: int) -> None:
        """Cut the log behind the step that this call goes on from."""
        if self.rank or not self.log.exists():
            return
        rows = self.log.read_text(encoding="utf-8").splitlines()
        # A row that a killed call left unfinished is behind the checkpoint.
        kept = [row for row in rows if row.endswith("}") and json.loads(row)["step"] <= step]
        self.log.write_text("".join(row + "\n" for row in kept), encoding="utf-8")


def start_of(config: TrainConfig) -> list[str]:
    """Which weights a training starts from: revisions where it starts from folders."""
    folders = [Path(config.model), *(Path(config.model, part) for part in ("captioner", "matcher"))]
    return [revision_of(str(f)) for f in folders if (f / "model.safetensors").is_file()]


def contents(files: Sequence[str]) -> list[tuple[str, int]]:
    """Name and size of each file."""
    found = [fsspec.core.url_to_fs(file) for file in files]
    return [(os.path.basename(path), fs.size(path)) for fs, path in found]


def use_bf16(config: TrainConfig, device: torch.device) -> bool:
    """Whether to autocast: as told, or where the device multiplies bf16 faster than fp32."""
    if config.precision != "auto":
        return config.precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported())


def make_optimizer(med: MED, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with decay on matrices only."""
    trained = [p for p in med.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), fused=True)


def learning_rate(config: TrainConfig, step: int, steps: int, steps_an_epoch: int) -> float:
    """The learning rate of a step, counted from 0."""
    if step < config.warmup_steps:
        return 1e-6 + (config.lr - 1e-6) * step / config.warmup_steps
    if config.schedule == "exponential":
        return max(config.min_lr, config.lr * config.decay_rate ** (step // steps_an_epoch))
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * done)) / 2


def average_gradients(med: MED, num_ranks: int) -> None:
    """Replace each gradient by its mean over the ranks."""
    if num_ranks == 1:
        return
    for parameter in med.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= num_ranks


class Decoder:
    """Examples to views, with the decoded images of the first GiB kept in memory."""

    def __init__(self, config: TrainConfig) -> None:
        self.view = View(
            size=config.image_size, augment=config.augment, crop_scale=config.crop_scale
        )
        self.seed = config.seed
        self.room = CACHE_BYTES
        self.kept: dict[str, npt.NDArray[np.uint8]] = {}

    def __call__(self, example: Example) -> npt.NDArray[np.uint8] | None:
        """A view, uint8 (size, size, 3), or null where the image cannot be opened."""
        pixels = self.kept.get(example.image_id)
        if pixels is None:
            least = (2 * self.view.size, 2 * self.view.size)
            try:
                pixels = np.asarray(open_rgb(example.image, min_size=least))
            except ImageError as error:
                logger.debug("%s: %s", example.image_id, error)
                return None
            if pixels.nbytes <= self.room:
                self.room -= pixels.nbytes
                self.kept[example.image_id] = pixels
        rng = random.Random(seed_of(self.seed, "view", example.epoch, example.image_id))
        return self.view(Image.fromarray(pixels), rng)


def make_batches(
    config: TrainConfig, pairs: Pairs, med: MED, position: Position, prompt: int
) -> Iterator[Loaded]:
    """Full batches without end, the position behind each, and how many images were unreadable.

    An epoch's last, incomplete batch is left out.

    Raises:
        ValueError: An epoch holds no full batch of readable images.
    """
    decode = Decoder(config)
    normalize = Preprocess(size=config.image_size).normalize
    stream = pairs.examples(position)
    epoch = full_epoch = position.epoch
    examples: list[Example] = []
    views: list[npt.NDArray[np.uint8]] = []
    unreadable = 0
    with ThreadPoolExecutor(max(1, config.loaders)) as pool:
        while True:
            wanted = [next(stream) for _ in range(config.batch_size - len(views))]
            position = wanted[-1][1]
            if position.epoch != epoch:
                epoch, examples, views = position.epoch, [], []
                wanted = [(example, at) for example, at in wanted if example.epoch == epoch]
            if epoch > full_epoch + 1:
                raise ValueError(
                    f"train.batch_size is {config.batch_size}, and fewer images can "
                    f"be read in an epoch on rank {pairs.rank}: use a smaller one"
                )
            fresh = [example for example, _ in wanted]
            decoded = (pool.map if config.loaders else map)(decode, fresh)
            for example, view in zip(fresh, decoded, strict=True):
                if view is None:
                    unreadable += 1
                else:
                    examples.append(example)
                    views.append(view)
            if len(views) < config.batch_size:
                continue
            captions = [config.prompt + pre_caption(example.caption) for example in examples]
            ids = [seed_of(example.image_id) for example in examples]
            batch = Batch(
                pixels=normalize(torch.from_numpy(np.stack(views))),
                tokens=med.tokenize(captions, config.max_text_tokens),
                image_ids=torch.tensor(ids),
                prompt=prompt,
            )
            yield batch, position, unreadable
            full_epoch, examples, views, unreadable = epoch, [], [], 0


def ahead(batches: Iterator[Loaded]) -> Iterator[Loaded]:
    """The same batches, the next one made while the last is trained on."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, batches)
        while True:
            batch = coming.result()
            coming = pool.submit(next, batches)
            yield batch
