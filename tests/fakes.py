"""Small real things that several tests share: images, lists, manifests."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared"


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


def url_list(path: Path, rows: list[tuple[str, str | None]]) -> Path:
    """A Parquet list of url and caption."""
    urls, captions = zip(*rows, strict=True)
    pq.write_table(pa.table({"url": list(urls), "caption": pa.array(captions, pa.string())}), path)
    return path


def tiny_blip(folder: Path) -> Path:
    """A captioner and a matcher of the real architecture with small random weights."""
    import torch

    from models.med import MED
    from pipeline.demo.tokenizer import write_tokenizer

    write_tokenizer(folder / "tokenizer")
    torch.manual_seed(0)
    MED.from_pretrained("tiny", tokenizer=str(folder / "tokenizer")).save(folder / "models")
    return folder / "models"
