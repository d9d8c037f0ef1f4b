"""Completion of commands, options, runs and `stage.field=value` by the shell's TAB."""

from __future__ import annotations

import argparse
import glob
import os
from collections.abc import Iterator
from typing import Any

from stages.registry import STAGES

__all__ = ["SHELLS", "autocomplete", "script"]

SHELLS = ("bash", "zsh", "fish")


def script(shell: str) -> str:
    """The code that a shell evaluates, once in each session."""
    from argcomplete.shell_integration import shellcode

    code: str = shellcode(["capfilt"], shell=shell)
    return code


def autocomplete(parser: argparse.ArgumentParser) -> None:
    """Answer a request for completion and exit; do nothing if the shell did not send one."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    from argcomplete.completers import FilesCompleter
    from argcomplete.finders import CompletionFinder

    completers = {
        "MANIFEST": FilesCompleter(["yaml", "yml"]),
        "RUN": _runs,
        "RUN_A": _runs,
        "RUN_B": _runs,
        "STAGE": _stages,
        "STAGE.FIELD=VALUE": _settings,
        "REASONS": _reasons,
    }
    for action in _actions(parser):
        if isinstance(action.metavar, str) and action.metavar in completers:
            action.completer = completers[action.metavar]  # type: ignore[attr-defined]
    CompletionFinder()(parser)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)


def _runs(prefix: str, **_: Any) -> list[str]:
    """Folders that are runs; if there are none, folders that may contain one."""
    folders = [path for path in glob.glob(f"{glob.escape(prefix)}*") if os.path.isdir(path)]
    folders += [os.path.dirname(path) for path in glob.glob("runs/*/run.json")]
    runs = [path for path in folders if os.path.isfile(os.path.join(path, "run.json"))]
    return [path for path in runs if path.startswith(prefix)] or [f"{path}/" for path in folders]


def _stages(**_: Any) -> list[str]:
    return [*STAGES, "export"]


def _settings(prefix: str, **_: Any) -> dict[str, str]:
    """Each `stage.field=` with its description, or the values of one field."""
    from pipeline.manifest.fields import describe
    from pipeline.manifest.reference import kinds

    settings = {}
    for stage, kind in kinds().items():
        for field in describe(kind) if stage != "train" else ():
            name = f"{stage}.{field.name}="
            if prefix.startswith(name):
                settings.update({name + value: field.text for value in field.values})
            else:
                settings[name] = field.text
    return settings


def _reasons(prefix: str, **_: Any) -> dict[str, str]:
    """The reasons of download, after any that are complete."""
    from stages.download import DownloadStage

    before = prefix[: prefix.rfind(",") + 1]
    return {before + reason: text for reason, text in DownloadStage.reasons.items()}
