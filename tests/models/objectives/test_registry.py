"""The objectives by name: what they import, and those of other packages that cannot be used."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from models.objectives.registry import OBJECTIVES, reader_of

ROOT = Path(__file__).resolve().parents[3]

BROKEN = {
    "none": ("broken:NONE", "it is not a subclass of models.objectives.config.ObjectiveConfig"),
    "bare": ("broken:Bare", r"Bare lacks @dataclass\(frozen=True, kw_only=True\)"),
    "empty": ("broken:Empty", "it lacks the methods build"),
    "silent": ("broken:Silent", "it lacks the class attributes paper, saves"),
    "misnamed": ("broken:Misnamed", "its `name` is 'other'; it must be 'misnamed'"),
    "untyped": ("broken:Untyped", "the types of Untyped cannot be read: NameError"),
    "missing": ("broken:Missing", "cannot be imported: AttributeError"),
}

MODULE = """
from dataclasses import dataclass
from models.objectives.config import ObjectiveConfig

NONE = None

class Bare(ObjectiveConfig):
    name, paper, saves, build = "bare", "", {}, None

@dataclass(frozen=True, kw_only=True)
class Empty(ObjectiveConfig):
    name, paper, saves = "empty", "", {}

@dataclass(frozen=True, kw_only=True)
class Silent(ObjectiveConfig):
    name, build = "silent", None

@dataclass(frozen=True, kw_only=True)
class Misnamed(ObjectiveConfig):
    name, paper, saves, build = "other", "", {}, None

@dataclass(frozen=True, kw_only=True)
class Untyped(ObjectiveConfig):
    name, paper, saves, build = "untyped", "", {}, None
    field: "Nowhere" = None
"""


def install(folder: Path, points: dict[str, str], module: str = "") -> dict[str, str]:
    """Put a package with entry points into a folder; the environment that has it."""
    (folder / "broken.py").write_text(module)
    metadata = folder / "broken-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    lines = ["[capfilt.objectives]", *(f"{name} = {target}" for name, target in points.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}


def dry_run(folder: Path, environ: dict[str, str], *objectives: str) -> str:
    """What a manifest with trainings of some objectives is refused with."""
    train = ", ".join(f"{name}: {{objective: {name}}}" for name in objectives)
    (folder / "m.yaml").write_text(f"name: m\ntrain: {{{train}}}\n")
    command = [sys.executable, "-m", "pipeline.cli", "run", str(folder / "m.yaml"), "--dry-run"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    return done.stderr


@pytest.mark.slow
def test_an_objective_of_another_package_that_cannot_be_used_names_the_package(
    tmp_path: Path,
) -> None:
    points = {name: target for name, (target, _) in BROKEN.items()}
    told = dry_run(tmp_path, install(tmp_path, points, MODULE), *BROKEN)
    for name, (target, fault) in BROKEN.items():
        where = rf"train\.{name}\.objective: entry point {name} = {target} in capfilt\.objectives"
        pattern = rf"{where} of broken 1\.0: {fault}"
        assert re.search(pattern, " ".join(told.split())), (pattern, told)


@pytest.mark.slow
def test_an_objective_of_another_package_cannot_take_one_of_our_names(tmp_path: Path) -> None:
    told = dry_run(tmp_path, install(tmp_path, {"clip": "broken:Clip"}), "clip")
    assert "broken 1.0: capfilt has a objective 'clip'" in " ".join(told.split())


@pytest.mark.slow
def test_settings_of_every_objective_are_validated_without_torch() -> None:
    program = (
        "import sys\n"
        "from pipeline.manifest.manifest import Manifest\n"
        "from models.objectives.registry import OBJECTIVES\n"
        "train = {name: {'objective': name} for name in OBJECTIVES.ours}\n"
        "Manifest.parse({'name': 'm', 'train': train})\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.slow
def test_the_names_alone_import_neither_numpy_nor_torch() -> None:
    program = (
        "import sys\n"
        "from models.objectives.registry import OBJECTIVES\n"
        "assert 'clip' in OBJECTIVES and 'x' not in OBJECTIVES\n"
        "print(*OBJECTIVES, {'numpy', 'torch'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.startswith(
        "pretrain captioner filter joint albef clip coca qformer language generate project "
    )
    assert done.stdout.endswith("set()\n"), done.stderr


def test_a_reader_is_found_by_the_architecture_that_a_training_writes() -> None:
    for name in OBJECTIVES.ours:
        for saved in OBJECTIVES[name].saves.values():
            if not saved.reader:
                continue
            module, _, kind = saved.reader.partition(":")
            found = reader_of(saved.architecture)
            assert (found.__module__, found.__name__) == (module, kind)
    with pytest.raises(ValueError, match="Other cannot be measured; known are BlipFor"):
        reader_of("Other")
    with pytest.raises(ValueError, match="a model without a named architecture cannot"):
        reader_of("")
