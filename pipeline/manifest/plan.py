"""What follows from a manifest: the order of its stages, their columns, folders, fingerprints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.manifest.manifest import Manifest
from pipeline.manifest.train_config import TrainConfig
from stages.base import ModelConfig, Stage, StageConfig, digest
from stages.download import DownloadStage
from stages.export import ExportStage
from stages.filter import FilterStage
from stages.registry import STAGES
from stages.review import ReviewStage
from stages.schema import POOL

__all__ = ["Plan", "revisions"]


class Plan:
    """The stages of a manifest with all that is derived from their order and settings.

    Attributes:
        manifest: The manifest.
        names: The stages that annotate, download first, export left out.
        recorded: The `settings` and the `measurement` of stages, by their names, that a run has
            written down; they count where a model or an evaluation set is out of reach.
        asks_servers: Whether a server is asked which model it has; else what is recorded counts.
    """

    def __init__(
        self,
        manifest: Manifest,
        recorded: Mapping[str, Any] | None = None,
        *,
        asks_servers: bool = True,
    ) -> None:
        self.manifest = manifest
        self.recorded = recorded or {}
        self.asks_servers = asks_servers
        self.names = tuple(name for name in manifest.stages if name in STAGES)
        self._fingerprints: dict[str, str] = {}

    def stage(self, name: str) -> Stage[Any]:
        """The stage, built but not loaded."""
        return STAGES[name](self.manifest.stages[name])

    @property
    def exports(self) -> tuple[str, ...]:
        """The exports: `export`, where it is a stage, and `export:NAME` for the further ones."""
        own = (ExportStage.name,) if ExportStage.name in self.manifest.stages else ()
        return (*own, *(f"{ExportStage.name}:{name}" for name in self.manifest.exports))

    def export(self, name: str = ExportStage.name) -> ExportStage:
        """One of the exports."""
        config: Any = self._export_config(name)
        return ExportStage(config)

    def _export_config(self, name: str) -> StageConfig:
        if name == ExportStage.name:
            return self.manifest.stages[name]
        return self.manifest.exports[name.removeprefix(f"{ExportStage.name}:")]

    def judges(self, name: str) -> tuple[str, ...]:
        """The stages whose verdicts decide what reaches `name`, in order.

        Without the filter for an export that is not filtered, and for review, which serves those
        exports too.
        """
        before = self.before(name)
        is_filtered = name not in self.exports or self.export(name).config.filtered
        if name == ReviewStage.name or not is_filtered:
            return tuple(stage for stage in before if stage != FilterStage.name)
        return before

    def before(self, name: str) -> tuple[str, ...]:
        """The annotating stages before `name`; all of them before an export."""
        return self.names[: self.names.index(name)] if name in self.names else self.names

    def origin(self, name: str, column: str) -> str | None:
        """The stage before `name` whose annotations hold `column`.

        The last that writes it counts; download for a column of the pool, None where no stage
        writes it.
        """
        for earlier in reversed(self.before(name)):
            if earlier == DownloadStage.name:
                return earlier if column in POOL.names else None
            if column in self.columns(earlier).names:
                return earlier
        return None

    def columns(self, name: str) -> pa.Schema:
        """The columns that a stage adds, its summary's included."""
        return self.stage(name).own_columns()

    def inputs(self, name: str) -> dict[str, str]:
        """Each column that a stage (or export) takes, with the stage it comes from."""
        is_export = name in self.exports
        stage: Any = ExportStage if is_export else STAGES[name]
        config = self.export(name).config if is_export else self.manifest.stages[name]
        earlier = {one: self.manifest.stages[one] for one in self.before(name)}
        found = {}
        for column in ("uid", *stage.reads, *stage.uses, *config.reads, *config.uses(earlier)):
            if (origin := self.origin(name, column)) is not None:
                found[column] = origin
        spares = {} if is_export else {**stage.spares, **config.spares}
        for column, others in spares.items():
            if set(others) <= set(found):
                del found[column]
        return found

    def fingerprint(self, name: str) -> str:
        """What the measurement of a stage depends on, as 16 hex characters.

        Its version, its settings without thresholds, the revisions of its models, and the
        fingerprints of the stages it takes columns from.

        Raises:
            FileNotFoundError: A model that it names is not there yet.
        """
        if name in self._fingerprints:
            return self._fingerprints[name]
        stage = self.stage(name)
        origins = {} if name == DownloadStage.name else self.inputs(name)
        self._fingerprints[name] = digest(
            {
                "name": name,
                "version": stage.version,
                "measurement": self.measurement(name),
                "reads": {
                    column: self.fingerprint(origin)
                    for column, origin in origins.items()
                    if origin != DownloadStage.name
                },
            }
        )
        return self._fingerprints[name]

    def settings(self, name: str) -> dict[str, Any]:
        """Those of a stage, as recorded where an evaluation set is out of reach.

        Raises:
            FileNotFoundError: It is, and nothing is recorded.
        """
        return self._told(name, "settings")

    def measurement(self, name: str) -> dict[str, Any]:
        """That of a stage, as recorded where its model is out of reach.

        Raises:
            FileNotFoundError: It is, and nothing is recorded.
        """
        return self._told(name, "measurement")

    def _told(self, name: str, what: str) -> dict[str, Any]:
        config, recorded = self.manifest.stages[name], self.recorded.get(what, {})
        if config.is_remote and not self.asks_servers and name in recorded:
            return dict(recorded[name])
        try:
            found: dict[str, Any] = getattr(config, what)()
        except (FileNotFoundError, ValueError):
            if name not in recorded:
                raise
            return dict(recorded[name])
        return found

    def decision(self, name: str) -> str:
        """What the verdicts up to and with a stage depend on: fingerprints and thresholds."""
        if name in self.exports:
            own: list[Any] = [self._export_config(name).settings()]
        else:
            own = [self.fingerprint(name), self.settings(name)]
        before = self.before(name)
        return digest([*([self.decision(before[-1])] if before else []), *own])

    def folder(self, name: str) -> tuple[str, ...]:
        """Where a stage's annotations, or the pairs of an export, lie in the run."""
        if name == DownloadStage.name:
            return ("pool",)
        if name == ExportStage.name:
            return ("curated",)
        if name in self.exports:
            return ("exports", name.removeprefix(f"{ExportStage.name}:"))
        return ("annotations", f"{name}-{self.fingerprint(name)[:8]}")

    def summary_folder(self, name: str) -> tuple[str, ...]:
        """Where the summary of a global stage lies."""
        return (*self.folder(name), f"summary-{self.decision(name)[:8]}")

    def trainings(self, config: Any) -> tuple[str, ...]:
        """The trainings behind the models that the config of a stage or of a training names.

        In the order in which they are to be done.
        """
        if isinstance(config, ModelConfig):
            models = [name for name, _ in config.models().values()]
        else:
            is_training = isinstance(config, TrainConfig)
            models = [*config.objective.models().values()] if is_training else []
        root = f"{self.manifest.models}/"
        found: list[str] = []
        for model in models:
            needed = model.removeprefix(root).split("/")[0]
            if model.startswith(root) and needed in self.manifest.train:
                found += [*self.trainings(self.manifest.train[needed]), needed]
        return tuple(dict.fromkeys(found))


def revisions(measurement: Mapping[str, Any]) -> dict[str, str]:
    """Which weights a stage was measured with, or will be, by the role of the model."""
    found: dict[str, str] = {}
    for key in ("weights", "revision", "parts_of_speech"):
        revision = measurement.get(key)
        named = revision if isinstance(revision, Mapping) else {"model": revision}
        found |= {role: str(value) for role, value in named.items() if value is not None}
    return found
