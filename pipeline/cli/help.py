"""What the terminal says of itself: examples of each command, the way on, what was meant."""

from __future__ import annotations

import argparse
import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

from pipeline.manifest.validation import did_you_mean

__all__ = ["EXAMPLES", "WAY", "Help", "Parser", "examples", "way"]

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
    "download": (
        "capfilt download manifest.yaml",
        "capfilt download manifest.yaml --retry timeout,http_5xx",
    ),
    "clean": ("capfilt clean manifest.yaml --set clean.preset=cc12m",),
    "dedup": ("capfilt dedup manifest.yaml --set dedup.max_hamming=4",),
    "select": ("capfilt select manifest.yaml --set select.max_per_phrase=50",),
    "caption": ("capfilt caption manifest.yaml --set caption.num_captions=2",),
    "filter": ("capfilt filter manifest.yaml --set filter.min_itm=0.4",),
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


def examples(command: str) -> str | None:
    """The examples of a command for the end of its help."""
    found = EXAMPLES.get(command)
    return None if found is None else "\n  ".join(("examples:", *found))


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
    """A parser whose mistakes are one line with what was meant."""

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
