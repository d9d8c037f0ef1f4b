"""The wheel: every file of the packages and the recipes, built without a warning."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("pipeline", "stages", "models", "manifests")


def test_the_wheel_holds_every_file_and_is_built_without_a_warning(tmp_path):
    pytest.importorskip("setuptools", "77", reason="--no-build-isolation needs it")
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("*.pyc", "*~", ".*")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "models" / "__pycache__").mkdir(exist_ok=True)
    (tmp_path / "models" / "__pycache__" / "text.cpython-311.pyc").write_bytes(b"")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-v"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(tmp_path / "out"), str(tmp_path)],
        env={k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout
    assert "warning" not in done.stdout.lower(), done.stdout
    (wheel,) = (tmp_path / "out").iterdir()
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = (path for name in FOLDERS for path in (tmp_path / name).rglob("*") if path.is_file())
    assert held == {
        path.relative_to(tmp_path).as_posix() for path in files if path.suffix != ".pyc"
    }
