"""The package of tests/plugin, installed into a virtual environment of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

from helpers.environment import Environment

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "tests" / "plugin"


class PluginEnvironment(Environment):
    """An environment with this checkout, its dependencies, and the package of tests/plugin.

    Args:
        folder: Where the environment and a copy of the package's source are made.
    """

    def __init__(self, folder: Path) -> None:
        source = folder / "source"  # which the build writes into
        shutil.copytree(PLUGIN, source, ignore=shutil.ignore_patterns("__pycache__"))
        super().__init__(folder / "environment", ROOT)
        self.install(source)
