"""A training of a manifest: its data as files, its fingerprint, and its model.

RUN/models/NAME/        the model, in save_pretrained folders
RUN/models/NAME.json    the record of the training; it is written last and marks it as done
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from models.errors import DamagedError
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.train_config import CURATED, DOCUMENTS, POOL, Source, as_sources, word_of
from pipeline.results import retries
from pipeline.results.open_run import plan_for
from pipeline.storage.checksum import CHANGED
from pipeline.storage.records import ExportRecord, ListRecord, ModelRecord, content_of
from pipeline.storage.run import Run
from pipeline.storage.successor import standing
from pipeline.training.data import files_of, fingerprint_of, fingerprints_of
from pipeline.training.placing import holds, place_model
from stages.base import Resources, digest
from stages.export import ExportStage

__all__ = ["TrainingJob"]


class TrainingJob:
    """One entry of a manifest's `train`.

    Args:
        manifest: The manifest.
        name: The name of the entry.
    """

    def __init__(self, manifest: Manifest, name: str) -> None:
        self.manifest = manifest
        self.name = name
        self.config = manifest.train[name]
        self.run = Run(manifest.run, manifest.branch)
        self.out = f"{manifest.models}/{name}"

    def sources(self) -> list[Source]:
        """The data of the training; words for data of the run are replaced by their folders.

        Raises:
            ValueError: A path matches no file, or the pool or export is not finished, or an export
                is not Parquet.
        """
        sources = []
        for source in as_sources(self.config.data):
            word, inner = word_of(source.path)
            if (folder := self._folder(word)) is not None:
                is_pool = word == POOL
                if inner:
                    self._check_documents(word, folder)
                else:
                    self._check_format(word)
                names = self.run.shards(*standing(self.run, *folder), *inner)
                if not names or not (is_pool or self.run.exists(*folder, "manifest.json")):
                    raise ValueError(
                        f"train.{self.name}.data: {source.path} of {self.run.root} is not "
                        f"finished; run `capfilt {'download' if is_pool else 'run'} MANIFEST` first"
                    )
                source = dataclasses.replace(
                    source, path=self.run.url(*standing(self.run, *folder), *inner)
                )
            else:
                try:
                    files_of(source)
                except ValueError as error:
                    raise ValueError(f"train.{self.name}.data: {error}") from None
            sources.append(source)
        return sources

    def _check_format(self, entry: str) -> None:
        """Refuse an export that training cannot read."""
        plan, name = (
            plan_for(self.run, self.manifest),
            ExportStage.name if entry == CURATED else entry,
        )
        if name in plan.exports and (form := plan.export(name).config.format) != "parquet":
            raise ValueError(
                f"train.{self.name}.data: {entry} is written as {form}, but training reads "
                "parquet; name an export in that format"
            )

    def _check_documents(self, word: str, folder: tuple[str, ...]) -> None:
        """Refuse an export that has no documents; one that is not finished may get some."""
        record = self.run.find_record(ExportRecord, *folder, "manifest.json")
        if word == POOL or (record is not None and record.documents is None):
            raise ValueError(
                f"train.{self.name}.data: {word} has no documents; an export writes some where it "
                "has the field `documents`"
            )
        if record is not None and record.documents is not None and not record.documents.files:
            raise ValueError(
                f"train.{self.name}.data: {word} kept none of its {record.documents.rows} "
                f"documents; `{DOCUMENTS}/verdicts.parquet` has the reason of each"
            )

    def _folder(self, entry: str) -> tuple[str, ...] | None:
        """The folder in the run that a word of `data` stands for; None for a path."""
        if entry == POOL:
            return (POOL,)
        if entry == CURATED:
            return (CURATED,)
        if entry in (plan := plan_for(self.run, self.manifest)).exports:
            return plan.folder(entry)
        if entry.startswith("export:"):
            raise ValueError(
                f"train.{self.name}.data: the manifest has no {entry}; it has "
                f"{', '.join(plan.exports) or 'no exports'}"
            )
        return None

    @property
    def resources(self) -> Resources:
        """The resources of the training's own process; none if it only waits for workers."""
        if self.config.workers > 1:
            return Resources(cpus=0, gpus=0.0)
        return self.worker_resources

    @property
    def worker_resources(self) -> Resources:
        """The resources of a worker: a GPU, if this machine or the cluster has one."""
        import ray
        import torch

        gpus = torch.cuda.is_available()
        if not gpus and ray.is_initialized():
            gpus = ray.cluster_resources().get("GPU", 0) >= 1  # type: ignore[no-untyped-call]
        return Resources(cpus=max(self.config.threads, 1), gpus=1.0 if gpus else 0.0)

    @property
    def fingerprint(self) -> str:
        """A digest of everything the model depends on: settings, data and starting weights."""
        data: dict[str, Any] = {}
        for source in as_sources(self.config.data):
            word, inner = word_of(source.path)
            folder = self._folder(word)
            if folder is not None and inner:
                path = self.run.url(*standing(self.run, *folder), *inner)
                data[source.path] = fingerprints_of(files_of(Source(path=path)))
            elif source.path == POOL:
                listed = self.run.read_record(ListRecord, "list", "_list.json")
                data[POOL] = [listed.fingerprint, retries.pool_state(self.run, listed.content)]
            elif folder is not None:
                export = self.run.read_record(ExportRecord, *folder, "manifest.json")
                data[source.path] = [content_of(file) for file in export.files]
            else:
                data[source.path] = fingerprints_of(files_of(source))
        start = self.config.start()
        before = [TrainingJob(self.manifest, n).fingerprint for n in self._needs()]
        settings = self.config.measurement()
        return digest({"settings": settings, "data": data, "start": start, "before": before})

    def _needs(self) -> tuple[str, ...]:
        return plan_for(self.run, self.manifest).trainings(self.config)

    @property
    def is_done(self) -> bool:
        """Whether the model exists and matches the current fingerprint of this entry.

        Raises:
            DamagedError: It does, but a file is missing or changed.
        """
        made = self.run.find_record(ModelRecord, "models", f"{self.name}.json")
        if made is None:
            return False
        try:
            is_wanted = made.fingerprint == self.fingerprint
        except DamagedError:
            raise
        except (ValueError, FileNotFoundError):
            return False
        if not is_wanted or holds(self.run, f"models/{self.name}", made.next):
            return False
        self._check(made.files)
        return True

    def _check(self, files: dict[str, str]) -> None:
        """Check that the files of a model are those that the training wrote."""
        for path, sha256 in files.items():
            parts = ("models", self.name, *path.split("/"))
            if not self.run.exists(*parts):
                raise self.run.damaged("it is missing", *parts)
            if fingerprint_of(f"{self.out}/{path}") != sha256:
                raise self.run.damaged(CHANGED, *parts)

    def progress(self) -> str:
        """The progress of a training in another process, in words; empty before its first step."""
        try:
            lines = self.run.read("models", f"{self.name}.partial", "metrics.jsonl").rstrip()
            row = json.loads(lines.rsplit(b"\n", 1)[-1])
        except (FileNotFoundError, ValueError):  # not started, or the line is incomplete
            return ""
        of = f" of {self.config.steps}" if self.config.steps else f", epoch {row['epoch'] + 1}"
        loss = f"loss {row['loss']:.3f}" if "loss" in row else f"{row['skipped']} steps skipped"
        return (
            f"{self.name} step {row['step']}{of}, {loss}, {row['images_per_second']:.0f} images/s"
        )

    def _take_over(self, fingerprint: str) -> bool:
        """Copy the model from the first round if it has the same fingerprint; True if so.

        The files are taken from the record, because a listing of object storage can be outdated.
        """
        trunk, path_of_record = Run(self.manifest.run), ("models", f"{self.name}.json")
        made = trunk.find_record(ModelRecord, *path_of_record) if self.run.branch else None
        if made is None or made.fingerprint != fingerprint:
            return False
        name = f"{self.name}.copy.partial"
        if not self.run.is_local:
            name = self.name
            self.run.remove(*path_of_record)
        self.run.remove("models", name)
        for path in made.files:
            own = self.run.at("models", name, path)
            self.run.fs.makedirs(own.rpartition("/")[0], exist_ok=True)
            self.run.fs.cp_file(trunk.at("models", self.name, path), own)
        if self.run.is_local:
            place_model(Path(self.run.at("models", name)), Path(self.out))
        self.run.write_record(made, *path_of_record)
        return True

    def carry_out(self, *, go_on: bool = False, launch: Any = None) -> None:
        """Train or resume, save the model, and write the record of the training.

        Args:
            go_on: Also continue from a checkpoint with other settings.
            launch: Trains in place of `train_together`, with the same arguments.
        """
        if launch is None:
            from pipeline.training.distributed import train_together as launch

        fingerprint = self.fingerprint
        if self._take_over(fingerprint):
            return
        result = launch(self.config, self.sources(), self.out, self.worker_resources, go_on=go_on)
        record = ModelRecord(
            name=self.name,
            fingerprint=fingerprint,
            data=[source.path for source in as_sources(self.config.data)],
            result=dataclasses.asdict(result),
            files=self.run.digests("models", self.name),
        )
        self.run.write_record(record, "models", f"{self.name}.json")
