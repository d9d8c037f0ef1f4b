"""The reference pages: every field, reason and objective, generated from docstrings.

    python -m pipeline.manifest.reference docs

writes manifest.md, reasons.md and objectives.md for what this repository ships into the folder.

    python -m pipeline.manifest.reference docs ink

writes ink.md, with the fields and reasons of the stage `ink`, which may be of another package. The
name of an objective writes the page of the objective.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from models.objectives.config import ObjectiveConfig
from models.objectives.registry import DEFAULT, OBJECTIVES
from models.objectives.start import Shape, Start
from pipeline.manifest.fields import Field, as_yaml, attributes, describe, summary
from pipeline.manifest.manifest import REVIEWS, EvaluateConfig, Manifest
from pipeline.manifest.train_config import TrainConfig
from stages.base import Stage, StageConfig
from stages.documents import Documents
from stages.export import ExportConfig, ExportStage
from stages.registry import STAGES
from stages.review import ReviewConfig

__all__ = ["kinds", "manifest", "objective", "objectives", "reasons", "stage", "write"]

NOTICE = "<!-- Made by `make docs` out of the code's own docstrings. -->"


def kinds() -> dict[str, type]:
    """The config of each section of a manifest, by key, including stages of other packages."""
    stages = {name: stage.config_type for name, stage in STAGES.usable()}
    return {**stages, ExportStage.name: ExportConfig, "train": TrainConfig}


def write(folder: Path, *names: str) -> None:
    """Write the pages of what this repository ships, or a page for each named stage or objective.

    Raises:
        KeyError: A name is neither a stage nor an objective.
    """
    pages = {
        name: stage(STAGES[name]) if name in STAGES else objective(OBJECTIVES[name])
        for name in names
    }
    shipped = {"manifest": manifest, "reasons": reasons, "objectives": objectives}
    pages = pages or {name: page() for name, page in shipped.items()}
    for name, text in pages.items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")


def manifest() -> str:
    """The page of all fields of a manifest, in Markdown."""
    own = attributes(Manifest)
    top = ("name", "run", "seed", "stages", "train", "evaluate", "exports", "rounds")
    return "\n".join(
        [
            NOTICE,
            "",
            "# Every field of a manifest",
            "",
            "A manifest is YAML; `--set stage.field=value` overrides a field for one command. An "
            "error message names the file, the stage and the field, and suggests a correction. "
            "Changing a **threshold** needs no new measurement. Paths are relative to the working "
            "directory.",
            "",
            "| key | meaning |",
            "| --- | --- |",
            *(f"| `{name}` | {_cell(own[name])} |" for name in top),
            "",
            "`train:NAME` in place of a model is the model that the manifest trains under that "
            "name; `like: NAME` in an entry of `train` copies the fields of that entry.",
            "",
            *_sections(),
        ]
    )


def reasons() -> str:
    """The page of all reasons of all stages, in Markdown."""
    lines = [
        NOTICE,
        "",
        "# Every reason",
        "",
        "Why a row is rejected, in the words of `capfilt status`, `capfilt verdicts` and the "
        "report. The first stage with a reason decides; within a stage, the first reason in its "
        "table. Words with an underscore are fields: [manifest.md](manifest.md).",
        "",
    ]
    for name in STAGES.ours:
        lines += [f"## {name}", "", *_reasons(STAGES[name].every_reason()), ""]
    lines += [
        "## export, of interleaved documents",
        "",
        "Why a document is left out of `export.documents`.",
        "",
        *_reasons(Documents.reasons),
        "",
    ]
    return "\n".join(lines)


def stage(kind: type[Stage[Any]]) -> str:
    """The page of a stage: its description, its fields and its reasons, in Markdown."""
    return "\n".join(
        [
            f"# {kind.name}",
            "",
            _cell(summary(kind) or kind.help),
            "",
            *_stage(kind),
            "## Reasons",
            "",
            *_reasons(kind.every_reason()),
            "",
        ]
    )


def _reasons(meanings: Mapping[str, str]) -> Iterator[str]:
    yield "| reason | meaning |"
    yield "| --- | --- |"
    yield from (f"| `{reason}` | {_cell(text)} |" for reason, text in meanings.items())


def _sections() -> Iterator[str]:
    for name in STAGES.ours:
        yield from _stage(STAGES[name])
    yield from _section("stages.export", ExportConfig)
    yield from _section("train.NAME", TrainConfig)
    yield (
        "The fields of the objective, in [objectives.md](objectives.md), go into the same mapping."
    )
    yield ""
    yield from _section("evaluate", EvaluateConfig)


def _stage(kind: type[Stage[Any]]) -> Iterator[str]:
    more = {"Method": kind.paper, "Model": kind.loader}
    yield from _section(
        f"stages.{kind.name}",
        kind.config_type,
        *(f"{name}: {_cell(text)}." for name, text in more.items() if text),
    )
    if kind.presets:
        yield from _presets(kind.name, kind.presets)


def _section(title: str, kind: type, *more: str, level: int = 2) -> Iterator[str]:
    """The fields of a config and of the mappings in it; `more` are further paragraphs."""
    fields = describe(kind)
    yield f"{'#' * level} {title}"
    yield ""
    for paragraph in (_cell(summary(kind)), *more):
        yield paragraph
        yield ""
    yield "| field | type | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for field in fields:
        default = "needed" if field.default is None else f"`{field.default}`"
        if kind is TrainConfig and field.name == "objective":
            yield _objective_row(field)
            continue
        if kind is ReviewConfig:
            default = f"`RUN/{REVIEWS}`"
        mark = "**threshold** " if field.is_threshold else ""
        yield f"| `{field.name}` | {_cell(field.type)} | {default} | {mark}{_cell(field.text)} |"
    yield ""
    for field in fields:
        if field.config not in (None, ObjectiveConfig):
            yield from _section(
                f"{title}.{field.name}, as a mapping", field.config, level=level + 1
            )


def _presets(stage: str, presets: Mapping[str, StageConfig]) -> Iterator[str]:
    """The fields that each preset of a stage sets."""
    fields = dataclasses.fields(next(iter(presets.values())))
    yield f"### Presets of {stage}"
    yield ""
    yield f"| field | {' | '.join(presets)} |"
    yield f"| --- {'| --- ' * len(presets)}|"
    for name in (field.name for field in fields):
        values = [getattr(preset, name) for preset in presets.values()]
        if any(value is not None for value in values):
            cells = ("" if value is None else f"`{as_yaml(value)}`" for value in values)
            yield f"| `{name}` | {' | '.join(cells)} |"
    yield ""


def _objective_row(field: Field) -> str:
    names = ", ".join(f"`{name}`" for name in OBJECTIVES.ours)
    return f"| `objective` | {names} | `{DEFAULT}` | {_cell(field.text)} |"


def _objective_fields(names: Sequence[str]) -> Iterator[str]:
    """A table of fields, with the default of each objective that has the field."""
    kinds = [OBJECTIVES[name] for name in OBJECTIVES.ours]
    fields = {field.name: field for kind in reversed(kinds) for field in describe(kind)}
    yield f"| field | type | meaning | {' | '.join(OBJECTIVES.ours)} |"
    yield f"| --- | --- | --- {'| --- ' * len(kinds)}|"
    for name in names:
        defaults = " | ".join(_default(kind, name) for kind in kinds)
        field = fields[name]
        yield f"| `{name}` | {_cell(field.type)} | {_cell(field.text)} | {defaults} |"


def _default(kind: type[ObjectiveConfig], name: str) -> str:
    """The default of a field, and its other defaults; empty if there is no such field."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if name not in fields:
        return ""
    make = fields[name].default_factory
    default = getattr(kind, name) if make is dataclasses.MISSING else make()
    sizes = (
        f"; `{as_yaml(defaults[name])}` for `{size}`"
        for size, defaults in kind.by_size.items()
        if name in defaults
    )
    choices = (
        f"; `{as_yaml(defaults[name])}` with `{field}: {value}`"
        for field, values in kind.by_choice.items()
        for value, defaults in values.items()
        if name in defaults
    )
    return f"`{as_yaml(default)}`{''.join((*sizes, *choices))}"


def objective(kind: type[ObjectiveConfig]) -> str:
    """The page of an objective: what it trains, its paper, what loads the result, its fields."""
    lines = [
        f"# {kind.name}",
        "",
        _cell(_text(kind)),
        "",
        f"Paper: {kind.paper}. Loads as {_loaded(kind)}.",
        "",
        "| field | type | default | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for field in describe(kind):
        default = _default(kind, field.name)
        lines.append(f"| `{field.name}` | {_cell(field.type)} | {default} | {_cell(field.text)} |")
    return "\n".join([*lines, ""])


def _loaded(kind: type[ObjectiveConfig]) -> str:
    """The class that loads each folder a training writes."""
    folders = ", ".join(
        f"`{saved.architecture}`" + ("" if folder == "." else f" (`{folder}/`)")
        for folder, saved in kind.saves.items()
    )
    return " or ".join((folders, *(f"`{saved.architecture}`" for saved in kind.may_save)))


def objectives() -> str:
    """The page of all objectives: what each trains, its paper, what loads it, and its fields."""
    kinds = {name: OBJECTIVES[name] for name in OBJECTIVES.ours}
    shared = [field.name for field in dataclasses.fields(ObjectiveConfig)]
    every = {field.name: None for kind in kinds.values() for field in dataclasses.fields(kind)}
    lines = [
        NOTICE,
        "",
        "# Every objective",
        "",
        "What a training learns: `train: {NAME: {objective: filter, ...}}`. "
        "[objective.md](objective.md) says how to add one, and "
        "[ablation.md](ablation.md#every-objective) what curated pairs bring to each.",
        "",
        "| objective | what it trains | paper | loads as |",
        "| --- | --- | --- | --- |",
    ]
    for name, kind in kinds.items():
        lines.append(f"| `{name}` | {_cell(_text(kind))} | {kind.paper} | {_loaded(kind)} |")
    return "\n".join(
        [
            *lines,
            "",
            "## Differences from the papers, and public weights",
            "",
            "Losses and their weights, masks, frozen parts and defaults are those of the paper or "
            "of its released code, except as follows.",
            "",
            "| objective | differs from the paper | starts from |",
            "| --- | --- | --- |",
            *(
                f"| `{name}` | {_cell(kind.departs)} | {_cell(kind.public)} |"
                for name, kind in kinds.items()
            ),
            "",
            "## Fields of every objective",
            "",
            "They go into the same mapping as the fields of [every training]"
            "(manifest.md#trainname). The defaults come from the paper or its released code.",
            "",
            *_objective_fields(shared),
            "",
            "## Fields of some objectives",
            "",
            "An objective without a default here does not have the field.",
            "",
            *_objective_fields([name for name in every if name not in shared]),
            "",
            *_section("start, as a mapping", Start),
            *_section("shape, as a mapping", Shape),
        ]
    )


def _text(kind: type) -> str:
    """A class's docstring without the descriptions of its attributes."""
    return inspect.cleandoc(kind.__doc__ or "").partition("Attributes:")[0]


def _cell(text: str) -> str:
    """A text for a cell of a Markdown table; `<` is escaped outside backquotes."""
    parts = " ".join(text.split()).replace("|", "\\|").split("`")
    return "`".join(part if n % 2 else part.replace("<", "&lt;") for n, part in enumerate(parts))


if __name__ == "__main__":
    write(Path(sys.argv[1]), *sys.argv[2:])
