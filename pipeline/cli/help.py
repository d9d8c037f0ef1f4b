"""What the terminal says of itself: examples of each command, the way on, what was meant."""

from __future__ import annotations

import argparse
import dataclasses
import glob
import os
import re
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from pipeline.manifest.fields import describe
from pipeline.manifest.validation import did_you_mean
from stages.registry import STAGES

__all__ = [
    "EXAMPLES",
    "WAY",
    "Help",
    "Parser",
    "examples",
    "stage_details",
    "stage_line",
    "way",
]

EXAMPLES: Mapping[str, Sequence[str]] = {
    "demo": ("capfilt demo", "capfilt demo --seed 1 --run runs/demo1"),
    "init": ("capfilt init photos/", "capfilt init pairs.tsv --out pairs.yaml"),
    "plan": (
        "capfilt run manifest.yaml --set download.limit=20000 --run runs/sample",
        "capfilt plan manifest.yaml --rows 129M --from runs/sample",
        "capfilt plan manifest.yaml --rows 129M --from runs/sample --workers 64 "
        "--workers caption=8",
    ),
    "run": (
        "capfilt run manifest.yaml --dry-run",
        "capfilt run manifest.yaml",
        "capfilt run manifest.yaml --set download.limit=1000 --run runs/try --until clean",
    ),
    "export": ("capfilt export manifest.yaml",),
    "train": ("capfilt train manifest.yaml", "capfilt train manifest.yaml --objective filter"),
    "evaluate": ("capfilt evaluate runs/demo/models/curated --data test.jsonl --json",),
    "ablate": ("capfilt ablate manifests/ablation.yaml --run runs/ablation",),
    "status": (
        "capfilt status runs/photos",
        "capfilt status runs/photos --watch",
        "capfilt status runs/photos --json",
    ),
    "show": (
        "capfilt show runs/photos 12dac34efd6b",
        "capfilt show runs/photos beach.jpg",
        "capfilt show runs/photos beach.jpg --json",
    ),
    "review": (
        "capfilt review runs/photos --sample 50",
        "capfilt review runs/photos --of borderline",
    ),
    "report": ("capfilt report runs/photos",),
    "compare": (
        "capfilt compare runs/photos runs/strict",
        "capfilt compare runs/photos runs/strict --out changes.html",
    ),
    "verify": ("capfilt verify runs/photos",),
    "verdicts": ("capfilt verdicts runs/photos --out verdicts.csv",),
    "completion": (
        'eval "$(capfilt completion bash)"    # in ~/.bashrc',
        'eval "$(capfilt completion zsh)"     # in ~/.zshrc',
        "capfilt completion fish > ~/.config/fish/completions/capfilt.fish",
    ),
}
"""Examples of the commands that are no stages; a stage has its own."""

WAY = """\
the way:
  capfilt init photos/                look at a folder or a list; write a commented manifest.yaml
  capfilt run manifest.yaml           all of it, from the list to the report; again to resume
  capfilt status runs/photos --watch  the funnel as it fills
  capfilt report runs/photos          the page that says what was dropped, and why

  capfilt demo                        the whole job on a drawn web, in minutes
  capfilt COMMAND --help              examples of a command

exit status: 0 done; 1 something failed, the same command resumes; 2 the input is wrong; 3 a file is
  damaged; 128 plus the number of the signal that ended the command, which resumes too: 143 SIGTERM,
  129 SIGHUP"""


def examples(commands: Sequence[str]) -> str:
    """The examples at the end of the help of a command."""
    return "\n  ".join(("examples:", *commands))


def stage_line(name: str) -> str:
    """What a stage does, one line for the list of commands; its module is not imported."""
    line = STAGES.read(name, "help")
    if not isinstance(line, str) or not line.strip():
        line = f"a stage of {' '.join(STAGES.distribution(name) or ('capfilt',))}"
    return " ".join(line.split())


def stage_details(name: str) -> str:
    """The fields, reasons and examples of a stage for the end of the help of its command.

    Raises:
        PluginError: The stage is another package's and cannot be used.
    """
    stage = STAGES[name]
    config = stage.config_type
    title = f"fields of stages.{name} in a manifest, or --set {name}.FIELD=VALUE; a changed "
    title += "threshold measures nothing anew:"
    parts = [[_wrapped(title, 0), *_fields(config)]] if dataclasses.fields(config) else []
    reasons = (f"  {reason}: {text}" for reason, text in stage.every_reason().items())
    parts.append(["reasons to reject a row:", *(_wrapped(line, 6) for line in reasons)])
    package = " ".join(STAGES.distribution(name) or ())
    facts = {"method": stage.paper, "model": stage.loader, "package": package}
    parts.append([_wrapped(f"{what}: {text}", 2) for what, text in facts.items() if text])
    parts.append([examples(stage.examples or (f"capfilt {name} manifest.yaml",))])
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _fields(config: type[Any], prefix: str = "") -> Iterator[str]:
    """The fields of a config, two lines each, and those of the mappings among them."""
    for field in describe(config):
        default = "needed" if field.default is None else f"default {field.default}"
        kind = field.type.replace("`", "") + "; threshold" * field.is_threshold
        yield _wrapped(f"  {prefix}{field.name} ({kind}; {default})", 6)
        if field.text:
            yield _wrapped(f"      {field.text}", 6)
        if field.config is not None:
            yield from _fields(field.config, f"{prefix}{field.name}.")


def _wrapped(line: str, indent: int) -> str:
    """A line at the width of the terminal, further lines indented."""
    width = shutil.get_terminal_size().columns - 2
    return textwrap.fill(line, width, subsequent_indent=" " * indent, break_on_hyphens=False)


def way(folder: str = ".") -> Iterator[str]:
    """What to do next in a folder, by the manifests and runs that lie there."""
    runs = sorted(glob.glob(os.path.join(folder, "runs", "*", "run.json")), key=os.path.getmtime)
    if runs:
        run = os.path.relpath(os.path.dirname(runs[-1]), folder)
        yield f"here: the run {run}; `capfilt status {run}`"
    elif os.path.isfile(os.path.join(folder, "manifest.yaml")):
        yield "here: manifest.yaml; `capfilt run manifest.yaml --dry-run`"


class Help(argparse.RawDescriptionHelpFormatter):
    """Help in narrow columns, examples as they stand."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=18)

    def add_argument(self, action: argparse.Action) -> None:
        """Leave commands the room that argparse forgets: they stand two columns further in."""
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length += 2


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one line with what was meant.

    Attributes:
        details: Makes the end of the help when the help is asked for; None leaves it as it is.
    """

    details: Callable[[], str] | None = None

    def format_help(self) -> str:
        """The help, with `details` at its end."""
        if self.details is not None:
            self.epilog = self.details()
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and how it is mended, and end with status 2."""
        self.exit(2, f"{self.prog}: {self._mended(message)}\n`{self.prog} --help` shows examples\n")

    def _mended(self, message: str) -> str:
        choice = re.match(r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)", message)
        if choice is not None:
            where, word, listed = choice.groups()
            known = re.findall(r"[\w-]+", listed)
            if where == "COMMAND":
                return f"no command {word!r}{_meant(word, known) or _input(word)}"
            return f"{where}: no {word!r}{_meant(word, known) or f'; known are {listed}'}"
        unknown = re.match(r"unrecognized arguments: (.*)", message)
        if unknown is not None:
            word = unknown[1].split()[0]
            if not word.startswith("-"):
                return f"{unknown[1]!r} is one argument too many"
            return f"no option {word!r}{_meant(word, sorted(self._options()))}"
        value = re.match(r"argument (\S+): invalid (int|float) value: (.*)", message)
        if value is not None:
            what = {"int": "a whole number", "float": "a number"}[value[2]]
            return f"{value[1]}: must be {what}, got {value[3]}"
        return message.replace("the following arguments are required:", "still needed:")

    def _options(self) -> set[str]:
        """The options of the parser and of all its commands."""
        found = {option for action in self._actions for option in action.option_strings}
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                found.update(*(parser._options() for parser in action.choices.values()))
        return found


def _meant(word: str, known: Sequence[str]) -> str:
    return did_you_mean(word.split("=")[0], known, else_list=False)


def _input(word: str) -> str:
    """What to do with a file or folder that stands in the place of a command."""
    if word.endswith((".yaml", ".yml")):
        return f"; to carry out a manifest, `capfilt run {word}`"
    if os.path.isdir(word) and os.path.isfile(os.path.join(word, "run.json")):
        return f"; to look at a run, `capfilt status {word}`"
    if os.path.exists(word) or "." in word or "/" in word:
        return f"; for a manifest that fits it, `capfilt init {word}`"
    return "; `capfilt` lists all"
