"""The reference: every field of a manifest and every reason, out of the code that has them.

    python -m pipeline.reference docs

writes manifest.md and reasons.md into a folder.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pipeline.manifest import STAGES, EvaluateConfig, Manifest
from pipeline.objective import PAPER, TrainConfig
from stages.documents import Documents, DocumentsConfig
from stages.export import ExportConfig, ExportStage
from stages.presets import PRESETS
from stages.sources import Source

__all__ = ["Field", "fields", "kinds", "manifest", "reasons", "write"]

ARTICLE = ("text", "whole", "number", "list", "mapping")
"""First words of types that take an article."""

NOTICE = "<!-- Made by `make docs` out of the code's own docstrings. -->"


@dataclass(frozen=True, kw_only=True)
class Field:
    """A field of a config.

    Attributes:
        name: Its name.
        type: What it holds, in words.
        values: What it may be, where these can be listed.
        default: Its default as YAML has it; None where it is needed.
        text: What it means.
        is_threshold: Whether a changed value costs no measuring.
    """

    name: str
    type: str
    values: tuple[str, ...]
    default: str | None
    text: str
    is_threshold: bool

    @property
    def wanted(self) -> str:
        """What it must be, for a sentence."""
        parts = self.type.replace("`", "").split(" or ")
        if ", " in parts[0]:
            parts[0] = f"one of {parts[0]}"
        return " or ".join(f"a {p}" if p.split()[0] in ARTICLE else p for p in parts)


def kinds() -> dict[str, type]:
    """The config of each section of a manifest, by its key."""
    stages = {name: stage.config_type for name, stage in STAGES.items()}
    return {**stages, ExportStage.name: ExportConfig, "train": TrainConfig}


def fields(kind: type) -> list[Field]:
    """The fields of a config with what its docstring, or that of a base, says of them.

    Raises:
        ValueError: A field has no line in a docstring.
    """
    told = {name: text for base in reversed(kind.__mro__) for name, text in _told(base).items()}
    hints = get_type_hints(kind, include_extras=True)
    found = []
    for field in dataclasses.fields(kind):
        if field.name not in told:
            raise ValueError(f"{kind.__name__}.{field.name}: no docstring tells what it is")
        found.append(
            Field(
                name=field.name,
                type=_type(hints[field.name]),
                values=_values(hints[field.name]),
                default=None if field.default is dataclasses.MISSING else _yaml(field.default),
                text=told[field.name],
                is_threshold=bool(field.metadata.get("threshold")),
            )
        )
    return found


def write(folder: Path) -> None:
    """Write the pages into a folder."""
    (folder / "manifest.md").write_text(manifest(), encoding="utf-8")
    (folder / "reasons.md").write_text(reasons(), encoding="utf-8")


def manifest() -> str:
    """The page of every field of a manifest, as Markdown."""
    own = _told(Manifest)
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
        lines += [f"## {name}", "", *_reasons(stage.reasons), ""]
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
    for field in fields(kind):
        default = "needed" if field.default is None else f"`{field.default}`"
        if kind is TrainConfig and field.name in PAPER["pretrain"]:
            default = "by objective"
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
        shown = ("" if value is None else f"`{_yaml(value)}`" for value in cells)
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
        values = (f"`{_yaml(defaults[name])}`" for defaults in PAPER.values())
        yield f"| `{name}` | {' | '.join(values)} |"
    yield ""


def _told(kind: type) -> dict[str, str]:
    """What the section `Attributes` of a class's own docstring says, by name."""
    text = inspect.cleandoc(kind.__dict__.get("__doc__") or "")
    _, _, section = text.partition("Attributes:\n")
    entries = re.split(r"^ {4}(?=\w+:)", section.split("\n\n")[0], flags=re.M)
    parts = (entry.partition(":") for entry in entries if entry.strip())
    return {name: " ".join(meaning.split()) for name, _, meaning in parts}


def _type(hint: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _type(inner[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(part) for part in inner))
    if origin is tuple:
        whole = inner[:1] if inner[-1] is Ellipsis else inner
        return f"list of {' or '.join(dict.fromkeys(_type(part) for part in whole))}"
    if dataclasses.is_dataclass(hint):
        return "mapping"
    names = {str: "text", int: "whole number", float: "number", bool: "on/off", type(None): "null"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _values(hint: Any) -> tuple[str, ...]:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return tuple(map(_yaml, inner))
    if origin in (Union, types.UnionType):
        return tuple(value for part in inner for value in _values(part))
    return {bool: ("true", "false"), type(None): ("null",)}.get(hint, ())


def _yaml(value: Any) -> str:
    """A default as a manifest would have it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, str):
        return value if value and value.strip() == value else f'"{value}"'
    return str(value)


def _cell(text: str) -> str:
    """A text for one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
