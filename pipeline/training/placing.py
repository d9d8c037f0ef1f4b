"""How a finished model takes the place of the one that stands.

    RUN/models/NAME/                what stands
    RUN/models/NAME.json            its files, and those of the model that takes its place (`next`)
    RUN/models/NAME.ready.partial/  the finished model, and afterwards the former one

NAME.json is told the files of the new model first; then the two folders exchange their names. So
the folder is, at every moment, a model that NAME.json knows.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.storage.records import ModelRecord
from pipeline.storage.run import Run
from pipeline.storage.successor import put_in_place

__all__ = ["CHECKPOINT", "LEFTOVERS", "holds", "place_model", "resume_placing"]

CHECKPOINT = "checkpoint.safetensors"
"""The name of the file in the folder of an unfinished training."""

BEST = "best"
"""The folder of the best model so far, in the folder of an unfinished training."""

LEFTOVERS = (BEST, CHECKPOINT, f"previous-{CHECKPOINT}")
"""What the folder of an unfinished training has beside the model."""


def place_model(new: Path, out: Path) -> None:
    """Move a finished model to where another may stand, and remove that one.

    Args:
        new: The local folder of the training, with all files of the model.
        out: The model folder.
    """
    ready = _ready(out)
    shutil.rmtree(ready, ignore_errors=True)
    new.rename(ready)
    _exchange(ready, out)


def resume_placing(out: Path, fingerprint: str) -> None:
    """Finish a `place_model` that was killed, or remove what it left.

    Args:
        out: The model folder.
        fingerprint: A line of the card of the model that is to be placed.
    """
    ready = _ready(out)
    # Only the folder of a training has a checkpoint; the former model has none.
    if (ready / CHECKPOINT).exists() and fingerprint in _card(ready):
        _exchange(ready, out)
    shutil.rmtree(ready, ignore_errors=True)
    if fingerprint in _card(out):
        _clear(out)


def holds(run: Run, folder: str, files: dict[str, str]) -> bool:
    """Whether a folder has some files, with these SHA-256."""
    paths = {(*folder.split("/"), *path.split("/")): sha256 for path, sha256 in files.items()}
    return bool(paths) and all(
        run.exists(*path) and run.sha256(*path) == sha256 for path, sha256 in paths.items()
    )


def _ready(out: Path) -> Path:
    return out.with_name(f"{out.name}.ready.partial")


def _card(folder: Path) -> str:
    card = folder / "README.md"
    return card.read_text(encoding="utf-8") if card.is_file() else ""


def _exchange(ready: Path, out: Path) -> None:
    run, name = Run(str(out.parent)), f"{out.name}.json"
    record = run.find_record(ModelRecord, name, damaged_ok=True)
    if record is not None:
        if holds(run, out.name, record.next):  # a kill kept its own record from being written
            record = record.model_copy(update={"fingerprint": "", "files": record.next})
        digests = Run(str(ready)).digests()
        files = {path: d for path, d in digests.items() if path.split("/")[0] not in LEFTOVERS}
        run.write_record(record.model_copy(update={"next": files}), name)
    put_in_place(str(ready), str(out))
    _clear(out)
    shutil.rmtree(ready, ignore_errors=True)


def _clear(out: Path) -> None:
    """Remove what is no part of a model."""
    for name in LEFTOVERS:
        shutil.rmtree(out / name, ignore_errors=True)
        if (out / name).exists():
            (out / name).unlink()
