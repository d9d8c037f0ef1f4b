"""Images decoded and augmented for a training: ours beside torch's DataLoader and webdataset.

python -m benchmarks.loader [PHOTOGRAPHS] [--images 3000] [--size 224] [--processes 0 1 2]

PHOTOGRAPHS is a folder of JPEGs, by default flickr8k's of ../shared/data; they are repeated until
there are so many images. All read the same bytes from the disk: ours from Parquet, webdataset from
tars, DataLoader from files and from the same Parquet, each shuffled as it shuffles. All augment
with the same code (BLIP's: a random crop, a mirror image, RandAugment), decode with the same
library and give batches of 64 as uint8. `alone` decodes and augments in a plain loop, which is what
a core can do. Decoded images are not cached. Rates and CPU, of this process and of those below it,
are of the images after two batches.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import random
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import webdataset
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from models.image.augmentation import View
from pipeline.manifest.train_config import TrainConfig, as_sources
from pipeline.training import loader
from pipeline.training.data import Pairs, Position
from pipeline.training.decoding import Decoder

PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "shared/data/flickr8k/images"
BATCH = 64
A_SHARD = 250


class Texts:
    """Stands in for an objective: the texts are no part of the race."""

    def prepare(self, caption: str) -> str:
        return caption

    def tokenize(self, texts: Any, longest: int) -> torch.Tensor:
        return torch.zeros(len(texts), 1, dtype=torch.long)


class Files(Dataset[torch.Tensor]):
    """Images in files, for DataLoader."""

    def __init__(self, folder: Path, view: View) -> None:
        self.files = sorted(folder.glob("*.jpg"))
        self.decode = Decoder(view)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.decode(self.files[index].read_bytes(), random.getrandbits(60)))


class Shards(IterableDataset[torch.Tensor]):
    """The images of our Parquet files, for DataLoader; 1000 are held and shuffled, as in ours."""

    def __init__(self, folder: Path, view: View) -> None:
        self.files = sorted(folder.glob("*.parquet"))
        self.decode = Decoder(view)

    def __iter__(self) -> Iterator[torch.Tensor]:
        worker = get_worker_info()
        share = self.files[worker.id :: worker.num_workers] if worker else self.files
        held: list[bytes] = []
        while True:
            for file in random.sample(share, len(share)):
                held += pq.read_table(file, columns=["image"])["image"].to_pylist()
                while len(held) >= 1000:
                    yield self._view(held)
            while held:
                yield self._view(held)

    def _view(self, held: list[bytes]) -> torch.Tensor:
        at = random.randrange(len(held))
        held[at], held[-1] = held[-1], held[at]
        return torch.from_numpy(self.decode(held.pop(), random.getrandbits(60)))


def write(folder: Path, photographs: list[bytes], number: int) -> None:
    """The same images as Parquet, as tars and as files."""
    for name in ("parquet", "tars", "files"):
        (folder / name).mkdir()
    images = list(itertools.islice(itertools.cycle(photographs), number))
    for shard, first in enumerate(range(0, number, A_SHARD)):
        some = images[first : first + A_SHARD]
        rows = [
            {"uid": f"{first + i:032x}", "image": image, "caption": "a photograph"}
            for i, image in enumerate(some)
        ]
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, folder / f"parquet/{shard:05d}.parquet", compression="none")
        with tarfile.open(folder / f"tars/{shard:05d}.tar", "w") as tar:
            for i, image in enumerate(some):
                info = tarfile.TarInfo(f"{first + i:08d}.jpg")
                info.size = len(image)
                tar.addfile(info, io.BytesIO(image))
    for i, image in enumerate(images):
        (folder / f"files/{i:08d}.jpg").write_bytes(image)


def ours(folder: Path, view: View, processes: int) -> Iterator[int]:
    config = TrainConfig.of(
        objective="captioner",
        image_size=view.size,
        crop_scale=view.crop_scale,
        batch_size=BATCH,
        loaders=processes,
        shuffle_buffer=1000,
    )
    pairs = Pairs(as_sources([str(folder / "parquet")]), shuffle_buffer=1000)
    batches = loader.make_batches(config, [pairs], Texts(), [Position()])  # type: ignore[arg-type]
    for batch in loader.ahead(batches) if processes else batches:
        yield sum(len(part.pixels) for part in batch.batches)


def data_loader(folder: Path, view: View, processes: int) -> Iterator[int]:
    files = Files(folder / "files", view)
    batches = DataLoader(
        files,
        BATCH,
        shuffle=True,
        num_workers=processes,
        drop_last=True,
        persistent_workers=processes > 0,
    )
    while True:
        yield from map(len, batches)


def data_loader_of_shards(folder: Path, view: View, processes: int) -> Iterator[int]:
    shards = Shards(folder / "parquet", view)
    yield from map(len, DataLoader(shards, BATCH, num_workers=processes))


def tars(folder: Path, view: View, processes: int) -> Iterator[int]:
    decode = Decoder(view)

    def look(sample: dict[str, Any]) -> tuple[torch.Tensor]:
        return (torch.from_numpy(decode(sample["jpg"], random.getrandbits(60))),)

    shards = [str(path) for path in sorted((folder / "tars").glob("*.tar"))]
    data = webdataset.WebDataset(shards, shardshuffle=100, nodesplitter=webdataset.split_by_node)
    data = data.repeat().shuffle(1000).map(look).batched(BATCH, partial=False)
    for (batch,) in webdataset.WebLoader(data, batch_size=None, num_workers=processes):
        yield len(batch)


def cpu_seconds() -> dict[int, float]:
    """CPU seconds of this process and of each below it, by its number."""
    found = {}
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    return found


def measure(make: Callable[[], Iterator[int]], number: int) -> dict[str, float]:
    """Images a second and CPU milliseconds an image, after two batches."""
    batches = make()
    for _ in range(2):
        next(batches)
    before, began, counted = cpu_seconds(), time.perf_counter(), 0
    while counted < number:
        counted += next(batches)
    seconds, after = time.perf_counter() - began, cpu_seconds()
    batches.close()  # type: ignore[attr-defined]
    used = sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items())
    return {"images_per_second": counted / seconds, "cpu_ms": 1000 * used / counted}


def alone(photographs: list[bytes], view: View) -> Iterator[int]:
    decode = Decoder(view)
    for i, image in enumerate(itertools.cycle(photographs)):
        decode(image, i)
        yield 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", nargs="?", type=Path, default=PHOTOGRAPHS)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--processes", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    loader.CACHE_BYTES = 0
    view = View(size=options.size, augment="paper", crop_scale=0.5)
    photographs = [path.read_bytes() for path in sorted(options.photographs.glob("*.jpg"))]
    print(f"cores {len(os.sched_getaffinity(0))}, {len(photographs)} photographs")
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top)
        write(folder, photographs, options.images)
        found = {"alone": measure(lambda: alone(photographs, view), options.images)}
        for processes in options.processes:
            for name, run in (
                ("ours", ours),
                ("DataLoader, Parquet", data_loader_of_shards),
                ("DataLoader, files", data_loader),
                ("webdataset", tars),
            ):
                make = lambda run=run, n=processes: run(folder, view, n)  # noqa: E731
                found[f"{name}, {processes}"] = measure(make, options.images)
                print(name, processes, json.dumps(found[f"{name}, {processes}"]), flush=True)
    print("| | images a second | CPU ms an image |\n| --- | ---: | ---: |")
    for name, one in found.items():
        print(f"| {name} | {one['images_per_second']:.0f} | {one['cpu_ms']:.2f} |")


if __name__ == "__main__":
    main()
