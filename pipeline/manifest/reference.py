"""The reference: every field of a manifest and every reason, out of the code that has them.

    python -m pipeline.manifest.reference docs

writes manifest.md and reasons.md into a folder.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.manifest.fields import as_yaml, attributes, describe
from pipeline.manifest.manifest import REVIEWS, STAGES, EvaluateConfig, Manifest
from pipeline.manifest.train_config import PAPER, TrainConfig
from stages.clean_presets import PRESETS
from stages.documents import Documents, DocumentsConfig
from stages.export import ExportConfig, ExportStage
from stages.review import ReviewConfig
from stages.sources import Source

__all__ = ["kinds", "manifest", "reasons", "write"]

NOTICE = "<!-- Made by `make docs` out of the code's own docstrings. -->"


def kinds() -> dict[str, type]:
    """The config of each section of a manifest, by its key."""
    stages = {name: stage.config_type for name, stage in STAGES.items()}
    return {**stages, ExportStage.name: ExportConfig, "train": TrainConfig}


def write(folder: Path) -> None:
    """Write the pages into a folder."""
    (folder / "manifest.md").write_text(manifest(), encoding="utf-8")
    (folder / "reasons.md").write_text(reasons(), encoding="utf-8")


def manifest() -> str:
    """The page of every field of a manifest, as Markdown."""
    own = attributes(Manifest)
    top = ("name", "run", "seed", "stages", "train", "evaluate", "exports", "rounds")
    return "\n".join(
        [
            NOTICE,
            "",
            "# Every field of a manifest",
            "",
            "A manifest is YAML; `--set stage.field=value` overrides a field for one command, and "
            "a mistake is told with file, stage, field and what was meant. A **threshold** only "
            "judges: to change it costs no measuring. Paths are relative to the working directory.",
            "",
            "| key | meaning |",
            "| --- | --- |",
            *(f"| `{name}` | {_cell(own[name])} |" for name in top),
            "",
            "`train:NAME` in the place of a model is the one that the manifest trains under that "
            "name; `like: NAME` in an entry of `train` takes over the fields of that entry.",
            "",
            *_sections(),
        ]
    )


def reasons() -> str:
    """The page of every reason of every stage, as Markdown."""
    lines = [
        NOTICE,
        "",
        "# Every reason",
        "",
        "Why a row is rejected, in the words of `capfilt status`, `capfilt verdicts` and the "
        "report. The first stage that has a reason decides; within a stage, the first of the "
        "list. Words with an underscore are fields: [manifest.md](manifest.md).",
        "",
    ]
    for name, stage in STAGES.items():
        lines += [f"## {name}", "", *_reasons(stage.every_reason()), ""]
    lines += [
        "## export, of interleaved documents",
        "",
        "Why a document is left out of `export.documents`.",
        "",
        *_reasons(Documents.reasons),
        "",
    ]
    return "\n".join(lines)


def _reasons(found: Mapping[str, str]) -> Iterator[str]:
    yield "| reason | meaning |"
    yield "| --- | --- |"
    yield from (f"| `{reason}` | {_cell(text)} |" for reason, text in found.items())


def _sections() -> Iterator[str]:
    for name, stage in STAGES.items():
        yield from _section(f"stages.{name}", stage.config_type)
        if name == "download":
            yield from _section("stages.download.source, as a mapping", Source)
        if name == "clean":
            yield from _presets()
    yield from _section("stages.export", ExportConfig)
    yield from _section("stages.export.documents", DocumentsConfig)
    yield from _section("train.NAME", TrainConfig)
    yield from _papers()
    yield from _section("evaluate", EvaluateConfig)


def _section(title: str, kind: type) -> Iterator[str]:
    yield f"## {title}"
    yield ""
    yield _cell(inspect.cleandoc(kind.__doc__ or "").split("\n\n", 1)[0])
    yield ""
    yield "| field | type | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for field in describe(kind):
        default = "needed" if field.default is None else f"`{field.default}`"
        if kind is TrainConfig and field.name in PAPER["pretrain"]:
            default = "by objective"
        if kind is ReviewConfig:
            default = f"`RUN/{REVIEWS}`"
        mark = "**threshold** " if field.is_threshold else ""
        yield f"| `{field.name}` | {_cell(field.type)} | {default} | {mark}{_cell(field.text)} |"
    yield ""


def _presets() -> Iterator[str]:
    """The thresholds of each preset of clean."""
    names = [field.name for field in dataclasses.fields(PRESETS["flamingo"])]
    used = [name for name in names if any(_preset(p, name) is not None for p in PRESETS)]
    yield "### Presets of clean"
    yield ""
    yield f"| field | {' | '.join(PRESETS)} |"
    yield f"| --- {'| --- ' * len(PRESETS)}|"
    for name in used:
        cells = (_preset(preset, name) for preset in PRESETS)
        shown = ("" if value is None else f"`{as_yaml(value)}`" for value in cells)
        yield f"| `{name}` | {' | '.join(shown)} |"
    yield ""


def _preset(preset: str, name: str) -> Any:
    return getattr(PRESETS[preset], name)


def _papers() -> Iterator[str]:
    """The defaults of a training that its objective decides."""
    yield "### Defaults by objective"
    yield ""
    yield f"| field | {' | '.join(PAPER)} |"
    yield f"| --- {'| --- ' * len(PAPER)}|"
    for name in PAPER["pretrain"]:
        values = (f"`{as_yaml(defaults[name])}`" for defaults in PAPER.values())
        yield f"| `{name}` | {' | '.join(values)} |"
    yield ""


def _cell(text: str) -> str:
    """A text for one cell of a Markdown table; what stands in backticks is shown as it is."""
    parts = " ".join(text.split()).replace("|", "\\|").split("`")
    return "`".join(part if n % 2 else part.replace("<", "&lt;") for n, part in enumerate(parts))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
