"""Small real things that several tests share: images, lists, manifests."""

from __future__ import annotations

import hashlib
import io
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from pipeline.storage.run import Run

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared"


def jpeg(seed: int, size: tuple[int, int] = (120, 90), quality: int = 90) -> bytes:
    """A picture unlike that of any other seed."""
    rng = random.Random(seed)
    color = lambda: tuple(rng.randrange(256) for _ in "rgb")  # noqa: E731
    image = Image.new("RGB", size, color())
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = rng.randrange(size[0]), rng.randrange(size[1])
        w, h = rng.randrange(8, size[0] // 2), rng.randrange(8, size[1] // 2)
        rng.choice((pen.rectangle, pen.ellipse))((x, y, x + w, y + h), fill=color())
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def painting(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Smooth random colours: no two seeds look alike."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


def ball(colour: str, x: int = 40) -> Image.Image:
    """One disc on white."""
    image = Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(image).ellipse((x, 30, x + 24, 54), colour)
    return image


def photo_folder(folder: Path, number: int, captions: bool = True) -> Path:
    """A folder of images with sidecar texts."""
    folder.mkdir(parents=True, exist_ok=True)
    things = ("dog", "house", "river", "train", "garden", "window", "bridge", "boat")
    for index in range(number):
        (folder / f"{index:04d}.jpg").write_bytes(jpeg(index))
        if captions:
            text = (
                f"The {things[index % 8]} number {index} stands beside the old "
                f"{things[(index // 8 + 3) % 8]} in the morning"
            )
            (folder / f"{index:04d}.txt").write_text(text)
    return folder


def measure(run: Run, content: dict[str, Any]) -> None:
    """Carry out the stages of a manifest over a pool of one shard, without Ray."""
    from pipeline.execution.worker import Worker
    from pipeline.manifest.manifest import Manifest

    run.write_json({"manifest": content}, "run.json")
    worker = Worker(Manifest.parse(content))
    for name in ("clean", "dedup", "caption", "filter"):
        worker.work(name, "00000")
        if name == "dedup":
            worker.summarize(name, ["00000"])


def photo_manifest(folder: Path, number: int, shard_size: int) -> Path:
    """A manifest of the stages without a model, over a folder of photos beside it."""
    photo_folder(folder / "photos", number)
    content = {
        "name": "small",
        "run": str(folder / "run"),
        "stages": {
            "download": {
                "source": str(folder / "photos"),
                "image_size": 64,
                "shard_size": shard_size,
            },
            "clean": {},
            "dedup": {},
            "export": {},
        },
    }
    path = folder / "m.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def url_list(path: Path, rows: list[tuple[str, str | None]]) -> Path:
    """A Parquet list of url and caption."""
    urls, captions = zip(*rows, strict=True)
    pq.write_table(pa.table({"url": list(urls), "caption": pa.array(captions, pa.string())}), path)
    return path


def tiny_blip(folder: Path) -> Path:
    """A captioner and a matcher of the real architecture with small random weights."""
    import torch

    from models.objectives.blip import MED
    from pipeline.demo.tokenizer import write_tokenizer

    write_tokenizer(folder / "tokenizer")
    torch.manual_seed(0)
    MED.from_pretrained("tiny", tokenizer=str(folder / "tokenizer")).save(folder / "models")
    return folder / "models"


def small_run(folder: Path, models: Path) -> Path:
    """A run of every stage over a few rows, made without Ray.

    web/good.jpg and its copy web/copy.jpg, web/name.jpg whose caption is a file's name, and
    web/gone.jpg that could not be downloaded.
    """
    from pipeline.storage.run import Run
    from stages.schema import POOL, uid_of

    captions = {
        "good.jpg": "A red house stands beside the river in the morning",
        "copy.jpg": "The house by the river once more",
        "name.jpg": "IMG_2034.JPG",
        "gone.jpg": "A picture that is not there",
    }
    rows = [
        {
            **dict.fromkeys(POOL.names),
            "uid": uid_of(f"web/{name}", caption),
            "source": "web",
            "url": f"web/{name}",
            "caption": caption,
            "repeats": 0,
            "status": "failed_to_download",
            "error": "http_404",
        }
        for name, caption in captions.items()
    ]
    for row, seed in zip(rows[:3], (1, 1, 2), strict=True):
        image = jpeg(seed, (300, 260))
        sides = {"width": 300, "height": 260, "original_width": 300, "original_height": 260}
        row.update(sides, status="success", error=None, image=image)
        row["sha256"] = hashlib.sha256(image).hexdigest()
        row["original_bytes"] = len(image)
    run = Run(str(folder))
    run.write_table(pa.Table.from_pylist(rows, POOL), "pool", "00000.parquet")
    content = {
        "name": "small",
        "run": str(folder),
        "stages": {
            "download": {"source": "x"},
            "clean": {},
            "dedup": {},
            "caption": {"model": str(models / "captioner")},
            "filter": {"model": str(models / "matcher"), "min_itm": 0},
            "export": {},
        },
    }
    measure(run, content)
    return folder
