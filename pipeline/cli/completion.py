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
    """What a shell has to evaluate, once for each session."""
    from argcomplete.shell_integration import shellcode

    code: str = shellcode(["capfilt"], shell=shell)
    return code


def autocomplete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell, if it is the one that asks, and end; else do nothing."""
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
    """Folders that are runs; any folder that may lead to one."""
    found = [path for path in glob.glob(f"{glob.escape(prefix)}*") if os.path.isdir(path)]
    found += [os.path.dirname(path) for path in glob.glob("runs/*/run.json")]
    runs = [path for path in found if os.path.isfile(os.path.join(path, "run.json"))]
    return [path for path in runs if path.startswith(prefix)] or [f"{path}/" for path in found]


def _stages(**_: Any) -> list[str]:
    return [*STAGES, "export"]


def _settings(prefix: str, **_: Any) -> dict[str, str]:
    """Each `stage.field=` with what it means, or the values of one."""
    from pipeline.manifest.fields import describe
    from pipeline.manifest.reference import kinds

    found = {}
    for stage, kind in kinds().items():
        for field in describe(kind) if stage != "train" else ():
            name = f"{stage}.{field.name}="
            if prefix.startswith(name):
                found.update({name + value: field.text for value in field.values})
            else:
                found[name] = field.text
    return found


def _reasons(prefix: str, **_: Any) -> dict[str, str]:
    """The reasons of download, the last of several after a comma."""
    from stages.download import DownloadStage

    before = prefix[: prefix.rfind(",") + 1]
    return {before + reason: text for reason, text in DownloadStage.reasons.items()}
