"""The help: examples of each command, the first steps, and hints after a mistyped command."""

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
from pipeline.manifest.validation import closest, did_you_mean
from stages.registry import STAGES

__all__ = [
    "EXAMPLES",
    "WAY",
    "Help",
    "Parser",
    "Version",
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
    "ablate": (
        "capfilt ablate manifests/ablation.yaml --dry-run",
        "capfilt ablate manifests/ablation.yaml --run runs/ablation",
    ),
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
    "search": (
        'capfilt search runs/photos "a red kite over the sea"',
        "capfilt search runs/photos kite.jpg --of kept --out kites.html",
    ),
    "review": (
        "capfilt review runs/photos --sample 50",
        "capfilt review runs/photos --of borderline",
    ),
    "view": ("capfilt view runs/photos",),
    "report": ("capfilt report runs/photos",),
    "compare": (
        "capfilt compare runs/photos runs/strict",
        "capfilt compare runs/photos runs/strict --out changes.html",
    ),
    "verify": ("capfilt verify runs/photos",),
    "verdicts": ("capfilt verdicts runs/photos --out verdicts.csv",),
    "push": (
        "capfilt push runs/photos --repo my-org/photos --dry-run",
        "capfilt push runs/photos --repo my-org/photos --private",
    ),
    "completion": (
        'eval "$(capfilt completion bash)"    # in ~/.bashrc',
        'eval "$(capfilt completion zsh)"     # in ~/.zshrc',
        "capfilt completion fish > ~/.config/fish/completions/capfilt.fish",
    ),
}
"""Examples of the commands that are not stages; a stage has its own."""

WAY = """\
first steps:
  capfilt init photos/                look at it and write a manifest.yaml
  capfilt run manifest.yaml           everything, to the report; also resumes
  capfilt status runs/photos --watch  show the progress of each stage
  capfilt report runs/photos          the page of what was dropped, and why

  capfilt demo                        run everything on a drawn web, in minutes
  capfilt COMMAND --help              show options and examples of a command

exit status: 0 done; 1 something failed, the same command resumes; 2 the input
  is wrong; 3 a file is damaged; 128 plus the number of the signal that ended
  the command, which resumes too: 143 SIGTERM, 129 SIGHUP"""


def examples(commands: Sequence[str]) -> str:
    """The section of examples at the end of a command's help."""
    return "\n  ".join(("examples:", *commands))


def stage_line(name: str) -> str:
    """The line for a stage in the list of commands; the stage's module is not imported."""
    line = STAGES.read(name, "help")
    if not isinstance(line, str) or not line.strip():
        line = f"a stage of {' '.join(STAGES.distribution(name) or ('capfilt',))}"
    return " ".join(line.split())


def stage_details(name: str) -> str:
    """The fields, reasons and examples of a stage, for the end of its command's help.

    Raises:
        PluginError: The stage is from another package and cannot be used.
    """
    stage = STAGES[name]
    config = stage.config_type
    title = f"fields of stages.{name} in a manifest, or --set {name}.FIELD=VALUE; changing a "
    title += "threshold needs no new measurement:"
    parts = [[_wrapped(title, 0), *_fields(config)]] if dataclasses.fields(config) else []
    reasons = (f"  {reason}: {text}" for reason, text in stage.every_reason().items())
    parts.append(["reasons to reject a row:", *(_wrapped(line, 6) for line in reasons)])
    package = " ".join(STAGES.distribution(name) or ())
    facts = {"method": stage.paper, "model": stage.loader, "package": package}
    parts.append([_wrapped(f"{what}: {text}", 2) for what, text in facts.items() if text])
    parts.append([examples(stage.examples or (f"capfilt {name} manifest.yaml",))])
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _fields(config: type[Any], prefix: str = "") -> Iterator[str]:
    """The fields of a config and of the mappings in it, two lines each."""
    for field in describe(config):
        default = "needed" if field.default is None else f"default {field.default}"
        kind = field.type.replace("`", "") + "; threshold" * field.is_threshold
        yield _wrapped(f"  {prefix}{field.name} ({kind}; {default})", 6)
        if field.text:
            yield _wrapped(f"      {field.text}", 6)
        if field.config is not None:
            yield from _fields(field.config, f"{prefix}{field.name}.")


def _wrapped(line: str, indent: int) -> str:
    """A text wrapped to the width of the terminal, with lines after the first indented."""
    width = shutil.get_terminal_size().columns - 2
    return textwrap.fill(line, width, subsequent_indent=" " * indent, break_on_hyphens=False)


def way(folder: str = ".") -> Iterator[str]:
    """The next step in a folder, from the manifests and runs in it."""
    runs = sorted(glob.glob(os.path.join(folder, "runs", "*", "run.json")), key=os.path.getmtime)
    if runs:
        run = os.path.relpath(os.path.dirname(runs[-1]), folder)
        yield f"here: the run {run}; `capfilt status {run}`"
    elif os.path.isfile(os.path.join(folder, "manifest.yaml")):
        yield "here: manifest.yaml; `capfilt run manifest.yaml --dry-run`"


class Help(argparse.RawDescriptionHelpFormatter):
    """Formats help in narrow columns, and keeps the lines of examples."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=18)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Wrap a description of one line; texts with lines of their own keep them."""
        if "\n" in text:
            return super()._fill_text(text, width, indent)
        return textwrap.fill(text, width, break_on_hyphens=False)

    def add_argument(self, action: argparse.Action) -> None:
        """Add the two columns of indentation of commands, which argparse does not count."""
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length += 2


class Version(argparse.Action):
    """Prints the version of capfilt; it is looked up only then, so that help starts fast."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        """Print the version and exit."""
        from importlib.metadata import version

        print(f"capfilt {version('capfilt')}")
        parser.exit()


class Parser(argparse.ArgumentParser):
    """A parser that reports a mistake on one line, with a likely correction.

    Attributes:
        details: Makes the end of the help when the help is printed; None keeps the epilog.
        run: The parser of `capfilt run`; its options are often given to a single stage.
    """

    details: Callable[[], str] | None = None
    run: Parser | None = None

    def format_help(self) -> str:
        """The help, with `details` at the end."""
        if self.details is not None:
            self.epilog = self.details()
        return super().format_help()

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; a mistake in the options of a command is one of that command."""
        options, extra = self.parse_known_args(args, namespace)
        if extra:
            parser = self
            for action in self._actions:
                if isinstance(action, argparse._SubParsersAction):
                    parser = action.choices.get(str(getattr(options, action.dest, "")), self)
                    parser.run = action.choices.get("run")
            parser.error(f"unrecognized arguments: {' '.join(extra)}")
        return options

    def error(self, message: str) -> NoReturn:
        """Print the mistake and a likely correction, and exit with status 2."""
        text = self._with_correction(message)
        self.exit(2, f"{self.prog}: {text}\n`{self.prog} --help` shows examples\n")

    def _with_correction(self, message: str) -> str:
        """The message of argparse in plain words, with a likely correction."""
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
            return f"no option {word!r}{self._meant_option(word)}"
        value = re.match(r"argument (\S+): invalid (int|float) value: (.*)", message)
        if value is not None:
            what = {"int": "a whole number", "float": "a number"}[value[2]]
            return f"{value[1]}: must be {what}, got {value[3]}"
        return message.replace("the following arguments are required:", "still needed:")

    def _options(self) -> list[str]:
        """The options of the parser, without those of its commands."""
        return sorted(option for action in self._actions for option in action.option_strings)

    def _meant_option(self, word: str) -> str:
        """The end of a message about an unknown option; its dashes are not compared."""
        of_run = self.run._options() if self.run is not None else []
        known = {option.lstrip("-"): option for option in (*of_run, *self._options())}
        match = closest(word.split("=")[0].lstrip("-"), known)
        if match is None:
            return ""
        if known[match] in self._options():
            return f"; did you mean {known[match]!r}?"
        return f"; `capfilt run` has {known[match]!r}"


def _meant(word: str, known: Sequence[str]) -> str:
    return did_you_mean(word, known, else_list=False)


def _input(word: str) -> str:
    """The end of a message about a file or folder given as a command: the command to use."""
    if word.endswith((".yaml", ".yml")):
        return f"; to carry out a manifest, `capfilt run {word}`"
    if os.path.isdir(word) and os.path.isfile(os.path.join(word, "run.json")):
        return f"; to look at a run, `capfilt status {word}`"
    if os.path.exists(word) or "." in word or "/" in word:
        return f"; for a manifest that fits it, `capfilt init {word}`"
    return "; `capfilt` lists all"
