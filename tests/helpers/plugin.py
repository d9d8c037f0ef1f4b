"""The package of tests/plugin, installed into a virtual environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "tests" / "plugin"


class PluginEnvironment:
    """A virtual environment with this checkout, its dependencies, and the package of tests/plugin.

    The dependencies are those of the environment that runs the tests; no index is asked.

    Args:
        folder: Where the environment and a copy of the package's source are made.

    Attributes:
        packages: The site-packages of the environment.
    """

    def __init__(self, folder: Path) -> None:
        source = folder / "source"  # which the build writes into
        self.environment = folder / "environment"
        shutil.copytree(PLUGIN, source, ignore=shutil.ignore_patterns("__pycache__"))
        venv.create(self.environment)
        paths = {"base": str(self.environment), "platbase": str(self.environment)}
        self.packages = Path(sysconfig.get_path("purelib", "venv", paths))
        shared = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
        (self.packages / "shared.pth").write_text("\n".join([str(ROOT), *shared]))
        command = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
        command += ["--no-build-isolation", str(source)]
        done = self.python(*command)
        assert done.returncode == 0, done.stdout + done.stderr

    def python(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run the environment's Python; what it wrote and its exit status."""
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            [str(self.environment / "bin" / "python"), *arguments],
            env={**kept, "OMP_NUM_THREADS": "1", **environ},
            cwd=self.environment.parent,
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
