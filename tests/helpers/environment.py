"""A virtual environment of its own, with the dependencies of the one that runs the tests."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import venv
from pathlib import Path


class Environment:
    """A new virtual environment; no index is asked.

    Args:
        folder: Where it is made.
        paths: Further folders that it imports from.

    Attributes:
        packages: Its site-packages.
    """

    def __init__(self, folder: Path, *paths: Path) -> None:
        self.folder = folder
        venv.create(folder)
        bases = {"base": str(folder), "platbase": str(folder)}
        self.packages = Path(sysconfig.get_path("purelib", "venv", bases))
        shared = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
        (self.packages / "shared.pth").write_text("\n".join([*map(str, paths), *shared]))

    def install(self, source: Path) -> None:
        """Install a package from its source, without its dependencies."""
        command = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
        done = self.python(*command, "--ignore-installed", "--no-build-isolation", str(source))
        assert done.returncode == 0, done.stdout + done.stderr

    def python(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run the environment's Python; what it wrote and its exit status."""
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            [str(self.folder / "bin" / "python"), *arguments],
            env={**kept, "OMP_NUM_THREADS": "1", **environ},
            cwd=self.folder.parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )

    def capfilt(self, *arguments: str, status: int = 0) -> str:
        """Run the command line; its stdout, or its stderr where it is to fail."""
        done = self.python("-m", "pipeline.cli", *arguments)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stderr if status else done.stdout
