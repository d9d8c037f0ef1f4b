"""The plan of a manifest: the order of its stages, their columns, fingerprints and folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


DRAWS = "draws"
"""The column of a stage that draws rows with repetition."""


class Plan:
    """The stages of a manifest and everything that follows from their order and settings.

    Attributes:
        manifest: The manifest.
        names: The stages that annotate, download first, without export.
        recorded: The `settings` and the `measurement` of stages that a run recorded, by name; used
            if a model or an evaluation set is unavailable. Also its `decided`.
        asks_servers: Whether to ask a server which model it serves; otherwise the recorded answer
            is used.
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
        """A stage; its model is not loaded yet."""
        return STAGES[name](self.manifest.stages[name])

    @property
    def exports(self) -> tuple[str, ...]:
        """The names of the exports: `export`, if it is a stage, and `export:NAME` for others."""
        own = (ExportStage.name,) if ExportStage.name in self.manifest.stages else ()
        return (*own, *(f"{ExportStage.name}:{name}" for name in self.manifest.exports))

    def export(self, name: str = ExportStage.name) -> ExportStage:
        """The export of this name."""
        config: Any = self._export_config(name)
        return ExportStage(config, is_drawn=self._is_drawn)

    @property
    def _is_drawn(self) -> bool:
        """Whether exports say how often a row was drawn."""
        return self.origin(ExportStage.name, DRAWS) is not None

    def _export_config(self, name: str) -> StageConfig:
        if name == ExportStage.name:
            return self.manifest.stages[name]
        return self.manifest.exports[name.removeprefix(f"{ExportStage.name}:")]

    def judges(self, name: str) -> tuple[str, ...]:
        """The stages whose verdicts decide which rows reach `name`, in order.

        The filter is left out for exports without filtering, and for review, because such exports
        use its decisions too.
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
        """The last stage before `name` that writes `column`.

        It is download for a column of the pool, and None if no stage writes the column.
        """
        for earlier in reversed(self.before(name)):
            if earlier == DownloadStage.name:
                return earlier if column in POOL.names else None
            if column in self.columns(earlier).names:
                return earlier
        return None

    def columns(self, name: str) -> pa.Schema:
        """The columns that a stage adds, including those of its summary."""
        return self.stage(name).own_columns()

    def inputs(self, name: str) -> dict[str, str]:
        """The columns that a stage or an export reads, with the stage that writes each."""
        is_export = name in self.exports
        stage: Any = ExportStage if is_export else STAGES[name]
        config = self.export(name).config if is_export else self.manifest.stages[name]
        earlier = {one: self.manifest.stages[one] for one in self.before(name)}
        origins = {}
        for column in ("uid", *stage.reads, *stage.uses, *config.reads, *config.uses(earlier)):
            if (origin := self.origin(name, column)) is not None:
                origins[column] = origin
        spares = {} if is_export else {**stage.spares, **config.spares}
        for column, others in spares.items():
            if set(others) <= set(origins):
                del origins[column]
        return origins

    def fingerprint(self, name: str) -> str:
        """The fingerprint of a stage: 16 hex characters that change with its measurement.

        It covers the stage's version, its settings without thresholds, the revisions of its models
        and the fingerprints of the stages whose columns it reads.

        Raises:
            FileNotFoundError: A model that it names does not exist yet.
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
        """A stage's settings; the recorded ones if an evaluation set is unavailable.

        Raises:
            FileNotFoundError: An evaluation set is unavailable and no settings are recorded.
        """
        return self._or_recorded(name, "settings")

    def measurement(self, name: str) -> dict[str, Any]:
        """A stage's measurement settings; the recorded ones if its model is unavailable.

        Raises:
            FileNotFoundError: The model is unavailable and no measurement is recorded.
        """
        return self._or_recorded(name, "measurement")

    def _or_recorded(self, name: str, what: str) -> dict[str, Any]:
        config, recorded = self.manifest.stages[name], self.recorded.get(what, {})
        if config.is_remote and not self.asks_servers and name in recorded:
            return dict(recorded[name])
        try:
            values: dict[str, Any] = getattr(config, what)()
        except (FileNotFoundError, ValueError):
            if name not in recorded:
                raise
            return dict(recorded[name])
        return values

    def decided(self, name: str) -> dict[str, Any]:
        """The settings of a stage that its verdicts depend on, as `decision` digests them.

        Paths of models and files are left out; the fingerprint has their content. A run that was
        made when they were digested too keeps what it recorded until something else changes.

        Raises:
            FileNotFoundError: An evaluation set is unavailable and no settings are recorded.
        """
        places = self.manifest.stages[name].places
        own = _without(self.settings(name), places)
        recorded = self.recorded.get("decided", {}).get(name)
        if recorded is not None and digest(_without(recorded, places)) == digest(own):
            return dict(recorded)
        return own

    def decision(self, name: str) -> str:
        """A digest of the fingerprints and thresholds of a stage and of all stages before it."""
        if name in self.exports:
            own: list[Any] = [self._export_config(name).settings(), *[DRAWS] * self._is_drawn]
        else:
            own = [self.fingerprint(name), self.decided(name)]
        before = self.before(name)
        return digest([*([self.decision(before[-1])] if before else []), *own])

    def folder(self, name: str) -> tuple[str, ...]:
        """The folder in the run for a stage's annotations or an export's pairs."""
        if name == DownloadStage.name:
            return ("pool",)
        if name == ExportStage.name:
            return ("curated",)
        if name in self.exports:
            return ("exports", name.removeprefix(f"{ExportStage.name}:"))
        return ("annotations", f"{name}-{self.fingerprint(name)[:8]}")

    def summary_folder(self, name: str) -> tuple[str, ...]:
        """The folder in the run for the summary of a global stage."""
        return (*self.folder(name), f"summary-{self.decision(name)[:8]}")

    def trainings(self, config: Any) -> tuple[str, ...]:
        """The trainings that make the models named by the config of a stage or a training.

        They are in the order in which they must run.
        """
        if isinstance(config, ModelConfig):
            models = [name for name, _ in config.models().values()]
        else:
            is_training = isinstance(config, TrainConfig)
            models = [*config.objective.models().values()] if is_training else []
        root = f"{self.manifest.models}/"
        names: list[str] = []
        for model in models:
            needed = model.removeprefix(root).split("/")[0]
            if model.startswith(root) and needed in self.manifest.train:
                names += [*self.trainings(self.manifest.train[needed]), needed]
        return tuple(dict.fromkeys(names))


def _without(settings: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


def revisions(measurement: Mapping[str, Any]) -> dict[str, str]:
    """The revisions of the weights in a stage's measurement settings, by the role of the model."""
    by_role: dict[str, str] = {}
    for key in ("weights", "revision", "parts_of_speech"):
        revision = measurement.get(key)
        named = revision if isinstance(revision, Mapping) else {"model": revision}
        by_role |= {role: str(value) for role, value in named.items() if value is not None}
    return by_role
