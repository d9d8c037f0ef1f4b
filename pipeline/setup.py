"""Setup: install the spaCy pipeline that tells noun phrases and parts of speech, with consent."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from models.nouns import revision
from pipeline.manifest import Manifest
from stages.select import SelectConfig

__all__ = ["offer", "setup"]

NAME = re.compile(r"[a-z]{2,3}(_[a-z0-9]+)+")
"""A pipeline as spaCy names them: en_core_web_sm."""

SECONDS = 1800.0
"""After how long an installation that does not end is given up."""


def setup(model: str, console: Console, *, yes: bool = False) -> bool:
    """Install a spaCy pipeline into this environment, once that is agreed to.

    Args:
        model: The name of one of spaCy's own, or its wheel as a local file.
        console: Where it is said what will be done.
        yes: Whether it is agreed to beforehand; otherwise the terminal is asked.

    Returns:
        Whether the pipeline is installed now; False where the answer was no.

    Raises:
        ValueError: There is nothing to install by that name, or no terminal to ask.
        RuntimeError: The installation failed.
    """
    is_wheel = model.endswith(".whl")
    name = Path(model).name.split("-")[0] if is_wheel else model
    if Path(model).is_dir():
        raise ValueError(f"--model {model}: a folder needs no setup; name it as select.model")
    if is_wheel and not Path(model).is_file():
        raise ValueError(f"--model {model}: no such file")
    if not NAME.fullmatch(name):
        raise ValueError(
            f"--model {model}: not the name of a spaCy pipeline, such as en_core_web_sm, nor a "
            "wheel of one"
        )
    if (found := _installed(name)) is not None:
        _say(console, f"{name} {found} is installed; nothing to do")
        return True
    tool = ["pip", "install", "--no-deps", model] if is_wheel else ["spacy", "download", model]
    command = [sys.executable, "-m", *tool]
    _say(console, f"{name} will be installed into {sys.prefix} by\n  {shlex.join(command)}")
    if not is_wheel:
        _say(console, "which downloads it from https://github.com/explosion/spacy-models")
    if not yes and not sys.stdin.isatty():
        raise ValueError("there is no terminal to ask whether to go on; give --yes to agree")
    if not yes and not _agreed(console):
        _say(console, "nothing was installed")
        return False
    _carry_out(command, name)
    _say(console, f"{name} {_installed(name)} is installed")
    return True


def offer(manifest: Manifest, console: Console) -> None:
    """Ask on a terminal whether to install the pipeline that a manifest names and that is missing.

    Without a terminal, or when the answer is no, the run itself says what is missing.
    """
    config = manifest.stages.get("select")
    if not isinstance(config, SelectConfig) or not sys.stdin.isatty():
        return
    try:
        config.measurement()
    except FileNotFoundError:
        if NAME.fullmatch(config.model):
            setup(config.model, console)


def _installed(name: str) -> str | None:
    importlib.invalidate_caches()
    try:
        return revision(name)
    except FileNotFoundError:
        return None


def _agreed(console: Console) -> bool:
    try:
        return console.input("go on? [y/N] ", markup=False).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _carry_out(command: list[str], name: str) -> None:
    """Run an installation; pip's and spaCy's own words go to the terminal, a failure's are told."""
    if importlib.util.find_spec("pip") is None:
        raise RuntimeError(
            f"this environment has no pip to install {name} with: `{sys.executable} -m ensurepip`"
        )
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=SECONDS,
        )
        why = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
    except subprocess.TimeoutExpired:
        why = f"it did not end within {SECONDS:.0f} s"
    if _installed(name) is None:
        raise RuntimeError(
            f"{name} could not be installed: {why[:300]}\nWithout a way to the internet, fetch its "
            "wheel from https://github.com/explosion/spacy-models/releases elsewhere and give "
            "`capfilt setup --model FILE.whl`"
        )


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False)
