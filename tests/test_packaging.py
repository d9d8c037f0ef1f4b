"""The wheel: every file of the packages and the recipes, built without a warning, and it runs."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers import fakes
from helpers.environment import Environment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("pipeline", "stages", "models", "manifests")


def copied(folder):
    """What the wheel is built from, without what an editor or an interpreter leaves."""
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("*.pyc", "*~", ".*")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("capfilt.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def test_the_wheel_holds_every_file_and_is_built_without_a_warning(tmp_path):
    pytest.importorskip("setuptools", "77", reason="--no-build-isolation needs it")
    copied(tmp_path)
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
    assert held == {"capfilt.py"} | {
        path.relative_to(tmp_path).as_posix() for path in files if path.suffix != ".pyc"
    }


def test_an_environment_that_has_only_installed_it_runs_it(tmp_path):
    """`pip install .` elsewhere than in the checkout; its dependencies are those of the tests."""
    pytest.importorskip("setuptools", "77", reason="--no-build-isolation needs it")
    (tmp_path / "source").mkdir()
    environment = Environment(tmp_path / "environment")
    environment.install(copied(tmp_path / "source"))
    shutil.rmtree(tmp_path / "source")
    path = fakes.photo_manifest(tmp_path, number=6, shard_size=3)
    told = environment.capfilt("run", str(path), "--workers", "1")
    assert "export     2/2 shards" in told
    code = f"import capfilt; print(len(capfilt.open({str(tmp_path / 'run')!r}).pairs().arrow()))"
    assert environment.python("-c", code).stdout == "6\n"
    assert "manifests/cc3m.yaml" in environment.capfilt("run", "cc3m.yaml", status=2)
