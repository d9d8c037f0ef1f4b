"""A manifest: the YAML recipe of a run, validated before anything starts.

    name: birds
    seed: 0
    stages:
      download: {source: birds.parquet}
      clean: {}
      caption: {model: Salesforce/blip-image-captioning-base}
      filter: {model: train:filter}
      export: {human: [human.jsonl]}
    train:
      filter: {objective: filter, model: Salesforce/blip-itm-base-coco, data: [human.jsonl]}
    evaluate: {data: test.jsonl, models: [train:filter]}

An entry of `train` with `like: NAME` copies the fields of the entry NAME and may change some.
Paths are relative to the working directory. `train:NAME` is the model that this manifest trains
under that name; `train:NAME/captioner` and `train:NAME/matcher` are the parts of a model that has
both. A manifest that has `train` needs no stages.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeGuard

import pyarrow as pa
import pydantic

from models.errors import ManifestError, PluginError, YamlError
from models.objectives.registry import DEFAULT, OBJECTIVES
from pipeline.manifest import yaml
from pipeline.manifest.train_config import TrainConfig
from pipeline.manifest.validation import closest, did_you_mean, explain, switched
from stages.base import StageConfig
from stages.download import DownloadStage
from stages.export import ExportConfig, ExportStage
from stages.registry import STAGES
from stages.review import ReviewConfig, ReviewStage
from stages.schema import POOL

__all__ = ["A_NAME", "TRAINED", "EvaluateConfig", "Manifest", "is_name"]

REVIEWS = "reviews.jsonl"
"""The file under the run in which `capfilt review` records decisions."""

RECIPES = str(Path(__file__).resolve().parents[2] / "manifests")
"""The folder of the recipes that ship with capfilt."""

KEYS = ("name", "run", "seed", "stages", "exports", "train", "evaluate", "rounds")
"""The keys of a manifest."""

A_NAME = "a text of 1 to 100 characters without / or \\, not beginning with a dot"
"""What `is_name` requires, for messages."""

LONGEST = 500
"""Characters of a field or a message in an error, at most."""

TRAINED = "train:"
"""The prefix of a model that the manifest itself trains."""

NEG_CLIP_LOSS = "neg_clip_loss"
"""The method of select that may be written as a recipe of the filter."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The evaluation at the end of a run.

    Attributes:
        data: A jsonl file of held-out images, `image` and `captions` a line.
        models: Model folders or names; `train:NAME` is one that the manifest trains.
        tagger: A spaCy pipeline that tags parts of speech: the name of an installed one, or a
            folder. It is needed to measure near misses, which are left out without it.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    data: str
    models: tuple[str, ...]
    tagger: str = "en_core_web_sm"

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("evaluate.data must name a file of held-out images")
        if not self.models or not all(self.models):
            raise ValueError("evaluate.models must name at least one model, and no empty name")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A validated manifest.

    Attributes:
        name: The name of the run.
        run: The run's folder or URL; runs/NAME by default.
        seed: The seed of every stage and training that sets none; 0 by default.
        stages: The config of each stage, in order; download first, export last if at all.
        train: The config of each training, by the name of the model it makes.
        evaluate: What to evaluate at the end, if anything.
        exports: The config of each further export, by its name: the export stage with some fields
            changed. `export:NAME` in the data of a training.
        rounds: How often to bootstrap, 1 by default; later rounds caption and filter with models
            tuned from the one that the round before trained.
        branch: The folder under `run` for what a later round has of its own.
        source: The mapping it was read from, overrides applied, as the run records it.
    """

    name: str
    run: str
    seed: int
    stages: Mapping[str, StageConfig]
    train: Mapping[str, TrainConfig]
    evaluate: EvaluateConfig | None
    exports: Mapping[str, ExportConfig]
    rounds: int
    branch: str
    source: Mapping[str, Any]

    @classmethod
    def load(cls, path: str, overrides: Sequence[str] = (), run: str | None = None) -> Manifest:
        """Read and validate a manifest.

        Args:
            path: A YAML file, or a URL that fsspec can open.
            overrides: Texts `stage.field=value`; values are YAML.
            run: The run's folder or URL, in place of the manifest's own.

        Raises:
            ManifestError: The manifest is invalid; the message has a line for each mistake.
        """
        try:
            content = yaml.load_file(path)
        except FileNotFoundError:
            raise ManifestError(f"{path}: no such manifest{_beside(path)}") from None
        except IsADirectoryError:
            raise ManifestError(
                f"{path}: a folder, not a manifest; `capfilt init {path}` writes one for it"
            ) from None
        except YamlError as error:
            raise ManifestError(str(error)) from None
        if not isinstance(content, dict):
            raise ManifestError(
                f"{path}: a manifest is a mapping with `name` and `stages`; `capfilt init {path}` "
                "writes one for a list"
            )
        for override in overrides:
            _override(content, override)
        if run is not None:
            content["run"] = run
        return cls.parse(content, path)

    @classmethod
    def parse(
        cls,
        content: Mapping[str, Any],
        path: str = "manifest",
        branch: str = "",
        *,
        has_reviews: bool = False,
    ) -> Manifest:
        """Validate the content of a manifest, without reading any file.

        Args:
            content: The mapping, with overrides applied.
            path: The path of the manifest, for messages.
            branch: See `Manifest`.
            has_reviews: Whether people have reviewed pairs of the run. If so, the stage review is
                inserted before export if `stages` does not name it.

        Raises:
            ManifestError: The manifest is invalid; the message has a line for each mistake.
        """
        mistakes = _Mistakes(path)
        for field, fault in yaml.find_problems(content):
            mistakes.add(field, fault)
        mistakes.close()
        for key in content:
            if key not in KEYS:
                mistakes.add(str(key), f"unknown key{did_you_mean(str(key), KEYS)}")
        name = content.get("name")
        if not is_name(name):
            mistakes.add("name", f"a manifest needs a name, {A_NAME}")
            name = "unnamed"
        run = content.get("run", f"runs/{name}")
        if not isinstance(run, str) or not run:
            mistakes.add("run", "the run's folder or URL, a text")
            run = f"runs/{name}"
        seed = content.get("seed", 0)
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            mistakes.add("seed", f"a whole number from 0, got {seed!r}")
            seed = 0
        rounds = content.get("rounds", 1)
        if not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < 1:
            mistakes.add("rounds", f"a whole number from 1, got {rounds!r}")
            rounds = 1
        sections: dict[str, dict[str, Any]] = {}
        for key in ("stages", "exports", "train"):
            section = content.get(key)
            sections[key] = section if isinstance(section, dict) else {}
            if not isinstance(section, dict | None):
                mistakes.add(key, "a mapping from names to their fields")
        for key in ("exports", "train"):
            for one in sections[key]:
                if not is_name(one):
                    mistakes.add(f"{key}.{one}", f"a name must be {A_NAME}")
        sections["stages"] = _reviewed(sections["stages"], run, has_reviews)
        sections["stages"] = mistakes.ranked(sections["stages"])
        trained = {str(key): f"{_models(run, branch)}/{key}" for key in sections["train"]}
        stages: dict[str, StageConfig] = {}
        for key, fields in sections["stages"].items():
            kind = mistakes.config_type(f"stages.{key}", key)
            if kind is None:
                continue
            config = mistakes.validate(f"stages.{key}", kind, fields, seed, trained)
            if config is not None:
                stages[key] = config
        exports: dict[str, ExportConfig] = {}
        for key, fields in sections["exports"].items():
            base = sections["stages"].get(ExportStage.name)
            if isinstance(fields, dict) and isinstance(base, dict):
                fields = {**base, **fields}
            config = mistakes.validate(f"exports.{key}", ExportConfig, fields, seed, trained)
            if config is not None:
                exports[str(key)] = config
        train: dict[str, TrainConfig] = {}
        for key, fields in sections["train"].items():
            fields = mistakes.inherit(f"train.{key}", fields, sections["train"])
            config = mistakes.training(f"train.{key}", fields, seed, trained)
            if config is not None:
                train[str(key)] = config
        _check_trainings(mistakes, train, _models(run, branch))
        evaluate = None
        if content.get("evaluate") is not None:
            evaluate = mistakes.validate(
                "evaluate", EvaluateConfig, content["evaluate"], seed, trained
            )
        if not mistakes.lines and (stages or not train):
            _check_order(mistakes, stages, exports)
        mistakes.close()
        return cls(
            name=name,
            run=run,
            seed=seed,
            stages=stages,
            train=train,
            evaluate=evaluate,
            exports=exports,
            rounds=rounds,
            branch=branch,
            source={**content, "run": run},
        )

    @property
    def models(self) -> str:
        """The folder of the models that this manifest trains."""
        return _models(self.run, self.branch)

    @property
    def evaluated(self) -> dict[str, str]:
        """The models to evaluate, by name.

        The name is NAME or NAME/PART for a model that this manifest trains. For any other model it
        is the last part of its path, or the whole path if several models would share a name.
        """
        named: dict[str, list[str]] = {}
        for model in dict.fromkeys(self.evaluate.models if self.evaluate else ()):
            whole = model.rstrip("/")
            own = whole.removeprefix(f"{self.models}/")
            named.setdefault(own if own != whole else whole.rpartition("/")[2], []).append(model)
        return {
            name if len(models) == 1 else model: model
            for name, models in named.items()
            for model in models
        }

    def with_reviews(self) -> Manifest:
        """The manifest of a run whose pairs people have reviewed; see `parse`."""
        return Manifest.parse(self.source, branch=self.branch, has_reviews=True)

    @property
    def reviews(self) -> str:
        """The file of people's decisions on pairs."""
        config = self.stages.get(ReviewStage.name)
        return config.file if isinstance(config, ReviewConfig) else _reviews(self.run)


def is_name(value: Any) -> TypeGuard[str]:
    """Whether a value is safe as the name of a folder under a run; see `A_NAME`."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= 100
        and not value.startswith(".")
        and "/" not in value
        and "\\" not in value
        and value.isprintable()
    )


def _models(run: str, branch: str) -> str:
    return "/".join(part for part in (run.rstrip("/"), branch, "models") if part)


def _reviewed(stages: dict[str, Any], run: str, has_reviews: bool) -> dict[str, Any]:
    """The stages, with review inserted before export if people have reviewed the run."""
    name = ReviewStage.name
    if name not in stages and not has_reviews:
        return stages
    fields = stages.get(name)
    if isinstance(fields, dict | None):
        fields = {"file": _reviews(run), **(fields or {})}
    if name in stages:
        return {**stages, name: fields}
    entries = list(stages.items())
    is_exported = bool(entries) and entries[-1][0] == ExportStage.name
    entries.insert(len(entries) - is_exported, (name, fields))
    return dict(entries)


def _reviews(run: str) -> str:
    return f"{run.rstrip('/')}/{REVIEWS}"


class _Mistakes:
    """Collects the mistakes in a manifest."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.lines: list[str] = []

    def add(self, field: str, message: str) -> None:
        text = yaml.short(message, LONGEST)
        line = f"{self.path}: {yaml.short(field, LONGEST)}: {text}"
        if line not in self.lines:  # each part of a union complains
            self.lines.append(line)

    def close(self) -> None:
        if self.lines:
            raise ManifestError("\n".join(self.lines))

    def ranked(self, stages: dict[str, Any]) -> dict[str, Any]:
        """The stages, with the filter's recipe neg_clip_loss as the method of select that it is.

        It compares a pair with others of the pool, so select runs it, at the filter's place.
        """
        fields = stages.get("filter")
        if not isinstance(fields, dict) or fields.get("recipe") != NEG_CLIP_LOSS:
            return stages
        if "select" in stages:
            self.add(
                "stages.filter.recipe",
                f"{NEG_CLIP_LOSS} is short for select: {{method: {NEG_CLIP_LOSS}}}, and the "
                "manifest has select already; keep one of them",
            )
            return {name: stages[name] for name in stages if name != "filter"}
        rest = {name: fields[name] for name in fields if name != "recipe"}
        select = {"method": NEG_CLIP_LOSS, **rest}
        return dict(("select", select) if n == "filter" else (n, stages[n]) for n in stages)

    def validate(
        self, where: str, kind: type[Any], fields: Any, seed: int, trained: Mapping[str, str]
    ) -> Any:
        """An instance of the dataclass `kind`; None after adding mistakes."""
        fields = {} if fields is None else fields
        if not isinstance(fields, dict):
            self.add(where, f"a mapping of fields, got {fields!r}")
            return None
        if "seed" in (field.name for field in dataclasses.fields(kind)):
            fields = {"seed": seed, **fields}
            if isinstance(fields["seed"], int) and fields["seed"] < 0:
                self.add(f"{where}.seed", f"a whole number from 0, got {fields['seed']}")
        resolved = {key: self._trained(where, key, fields[key], trained) for key in fields}
        faults = list(switched(kind, resolved, where))
        for field, message in faults:
            self.add(field, message)
        if faults:
            return None
        try:
            return _adapter(kind).validate_python(resolved)  # type: ignore[arg-type]
        except pydantic.ValidationError as error:
            for field, message in explain(error, kind):
                self.add(f"{where}.{field}".rstrip("."), message)
            return None

    def config_type(self, where: str, name: Any) -> type[StageConfig] | None:
        """The class of a stage's config; None after adding a mistake."""
        if name == ExportStage.name:
            return ExportConfig
        try:
            return STAGES[name].config_type
        except KeyError:
            names = (*STAGES, ExportStage.name)
            hint = did_you_mean(str(name), names, else_list=False)
            self.add(
                where,
                f"unknown stage{hint}"
                if hint
                else f"unknown stage; known are {', '.join(names)}. If another package has it, "
                "install that package here",
            )
        except PluginError as error:
            self.add(where, str(error))
        return None

    def training(
        self, where: str, fields: Any, seed: int, trained: Mapping[str, str]
    ) -> TrainConfig | None:
        """The config of an entry of `train`; None after adding mistakes.

        An entry has the fields of `TrainConfig` and those of its objective in one mapping.
        """
        fields = {} if fields is None else fields
        if not isinstance(fields, dict):
            self.add(where, f"a mapping of fields, got {fields!r}")
            return None
        name = fields.get("objective", DEFAULT)
        try:
            kind = OBJECTIVES[name]
        except (KeyError, TypeError):
            hint = did_you_mean(str(name), OBJECTIVES)
            hint += " " if hint.endswith("?") else ". "
            self.add(
                f"{where}.objective",
                f"no objective {name!r}{hint}If another package has it, install that package here",
            )
            return None
        except PluginError as error:
            self.add(f"{where}.objective", str(error))
            return None
        own, rest = TrainConfig.split({k: v for k, v in fields.items() if k != "objective"})
        unknown = [str(field) for field in rest if field not in _fields(kind)]
        known = (*_fields(kind), *_fields(TrainConfig))
        for field in unknown:
            owners = [n for n in OBJECTIVES.ours if field in _fields(OBJECTIVES[n])]
            hint = f"; {', '.join(owners)} have it" if owners else did_you_mean(field, known)
            if (objective := kind.moved.get(field)) is not None:
                hint = f"; write `objective: {objective}` and leave it out"
            self.add(f"{where}.{field}", f"unknown field of objective {name}{hint}")
        if unknown:
            return None
        settings = self.validate(where, kind, kind.with_defaults(rest), seed, trained)
        if settings is None:
            return None
        config: TrainConfig | None = self.validate(
            where, TrainConfig, {**own, "objective": settings}, seed, trained
        )
        return config

    def inherit(self, where: str, fields: Any, others: Mapping[str, Any]) -> Any:
        """The fields of an entry, added to those of the entry that `like` names."""
        if not isinstance(fields, dict) or "like" not in fields:
            return fields
        fields = dict(fields)
        like = fields.pop("like")
        other = others.get(like) if isinstance(like, str) else None
        if not isinstance(other, dict) or "like" in other:
            known = [
                name for name, one in others.items() if isinstance(one, dict) and "like" not in one
            ]
            self.add(f"{where}.like", f"no such entry: {like!r}{did_you_mean(str(like), known)}")
            return fields
        return {**other, **fields}

    def _trained(self, where: str, key: str, value: Any, trained: Mapping[str, str]) -> Any:
        if isinstance(value, list):
            return [self._trained(where, key, entry, trained) for entry in value]
        if isinstance(value, dict):
            return {k: self._trained(where, f"{key}.{k}", v, trained) for k, v in value.items()}
        if not isinstance(value, str) or not value.startswith(TRAINED):
            return value
        name, slash, part = value.removeprefix(TRAINED).partition("/")
        if name not in trained:
            self.add(
                f"{where}.{key}",
                f"`train` has no {name!r}{did_you_mean(name, list(trained))}",
            )
            return value
        return trained[name] + slash + part


def _fields(kind: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


@functools.cache
def _adapter(kind: type[Any]) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(kind)


def _beside(path: str) -> str:
    """The hint at a manifest with a similar name, in the same folder or among the recipes."""
    folders = (RECIPES, "manifests", os.path.dirname(path))
    paths = [other for f in folders for other in glob.glob(os.path.join(f, "*.y*ml"))]
    names = {os.path.splitext(os.path.basename(other))[0]: other for other in paths}
    stem = os.path.splitext(os.path.basename(path))[0]
    meant = closest(stem, names)
    return "" if meant is None else f"; did you mean {os.path.relpath(names[meant])!r}?"


def _override(content: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ManifestError(f"--set {override}: write stage.field=value")
    if keys[0] in STAGES or keys[0] == ExportStage.name:
        keys.insert(0, "stages")
    if keys[0] not in KEYS:
        known = (*STAGES, ExportStage.name, *KEYS)
        raise ManifestError(f"--set {override}: no {keys[0]!r}{did_you_mean(keys[0], known)}")
    mapping = content
    for key in keys[:-1]:
        if mapping.get(key) is None:
            mapping[key] = {}
        mapping = mapping[key]
        if not isinstance(mapping, dict):
            raise ManifestError(f"--set {override}: {key} has no fields")
    try:
        mapping[keys[-1]] = yaml.loads(value)
    except YamlError as error:
        raise ManifestError(f"--set {override}: not a YAML value: {error}") from None


def _check_trainings(mistakes: _Mistakes, train: Mapping[str, TrainConfig], models: str) -> None:
    """Add a mistake for trainings that start from each other's models, in the folder `models`."""

    def follow(chain: tuple[str, ...]) -> None:
        for field, model in train[chain[-1]].objective.models().items():
            needed = f"{model}/".removeprefix(f"{models}/").split("/")[0]
            if not f"{model}/".startswith(f"{models}/") or needed not in train:
                continue
            if needed == chain[0]:
                circle = " -> ".join((*chain, needed))
                mistakes.add(
                    f"train.{chain[0]}.{field}", f"trainings start from each other: {circle}"
                )
            elif needed not in chain:
                follow((*chain, needed))

    for name in train:
        follow((name,))


def _check_order(
    mistakes: _Mistakes, stages: Mapping[str, StageConfig], exports: Mapping[str, ExportConfig]
) -> None:
    names = list(stages)
    if not names:
        mistakes.add("stages", f"name at least one of {', '.join((*STAGES, ExportStage.name))}")
        return
    if names[0] != DownloadStage.name:
        mistakes.add("stages", "download must be the first stage; it fills the pool")
    if ExportStage.name in names and names[-1] != ExportStage.name:
        mistakes.add("stages", "export must be the last stage")
    judging = [name for name in names if name != ExportStage.name]
    if ReviewStage.name in judging and judging[-1] != ReviewStage.name:
        mistakes.add("stages", "review must be the last stage before export")
    columns = {field.name: field for field in POOL}
    for name in names:
        if name not in STAGES or name == DownloadStage.name:
            continue
        for column in STAGES[name].reads:
            if column not in columns:
                mistakes.add(f"stages.{name}", f"reads {column!r}, which {_hint(column, name)}")
        for column in STAGES[name].uses:
            for late in () if column in columns else names[names.index(name) + 1 :]:
                if late in STAGES and column in STAGES[late].columns().names:
                    mistakes.add(
                        f"stages.{name}", f"takes {column!r} of {late}: put {late} before {name}"
                    )
        try:
            stages[name].check(pa.schema(list(columns.values())))
        except ValueError as error:
            mistakes.add(f"stages.{name}", str(error))
        own = STAGES[name](stages[name]).own_columns()
        columns.update({field.name: field for field in own})
    written: dict[str, StageConfig] = {f"exports.{name}": one for name, one in exports.items()}
    if ExportStage.name in stages:
        written[f"stages.{ExportStage.name}"] = stages[ExportStage.name]
    for where, config in written.items():
        try:
            config.check(pa.schema(list(columns.values())))
        except ValueError as error:
            mistakes.add(where, str(error))


def _hint(column: str, name: str) -> str:
    """The end of the message about a column that no earlier stage writes: who writes it."""
    writers = [one for one, stage in STAGES.usable() if column in stage.columns().names]
    if not writers:
        return "no stage writes"
    return f"{' or '.join(writers)} writes: put that before {name}"
