"""Embeddings: copies in the drawn world, rules beside brute force, copies among many rows, speed.

    export OMP_NUM_THREADS=2
    python -m benchmarks.embed views FOLDER
    python -m benchmarks.embed rules
    python -m benchmarks.embed copies --rows 1000000
    python -m benchmarks.embed images --number 256

`views` trains a small CLIP on the drawn world (in FOLDER, once), draws scenes and other views of
some of them, and counts which views are found. `rules` holds each rule of select, and the search
for copies, against plain float64 over all pairs of 10,000 rows. `copies` takes rows around 2,000
concepts, in threes of one scene each, and looks for the pairs of 200 rows by brute force; with
`--by faiss` they are found by faiss used plainly.
`images` embeds JPEGs by CLIP ViT-B/32 of random weights, beside the loop that the model card shows
and, where it is installed, open_clip's own.
"""

from __future__ import annotations

import argparse
import io
import random
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np

from models.embedding import copies, selection
from models.embedding.cells import Cells
from models.embedding.vectors import Float16s
from models.random import splitmix

STEPS = 700

SCENES, VIEWS = 1500, 500
THRESHOLDS = (0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.93, 0.92, 0.9)


def trained(folder: Path) -> Path:
    """A CLIP of the size tiny, trained on 12,000 drawn scenes with five captions each."""
    from pipeline.demo.tokenizer import write_tokenizer
    from pipeline.demo.web import build
    from pipeline.manifest.train_config import TrainConfig
    from pipeline.training.loop import train

    out, human = folder / f"clip{STEPS}", folder / "web" / "human.jsonl"
    if out.exists():
        return out
    if not (folder / "web" / "done").exists():
        build(folder / "web", base_url="http://127.0.0.1", seed=7, num_pages=100, num_human=12_000)
        write_tokenizer(folder / "tokenizer")
        (folder / "web" / "done").touch()
    config = TrainConfig.of(
        objective="clip",
        model="tiny",
        tokenizer=str(folder / "tokenizer"),
        image_size=64,
        batch_size=128,
        steps=STEPS,
        lr=2e-3,
        warmup_steps=50,
        beta2=0.98,
        augment="crop",
        crop_scale=0.8,
        precision="fp32",
        threads=1,
        max_text_tokens=24,
        data=[str(human)],
    )
    train(config, [str(human)], out)
    return out


def views(folder: Path, given: str | None) -> None:
    from models.image.hamming import near_pairs
    from models.inference.vision_tower import load_image_embedder
    from pipeline.demo.web import photograph, sample_scenes
    from pipeline.demo.world import SMALL
    from stages.image_prints import ImagePrints

    model = load_image_embedder(given or str(trained(folder)), device="cpu", dtype="float32")
    rng = random.Random("views")
    scenes = [
        scene for scene, _ in zip(sample_scenes(rng, SMALL, set()), range(SCENES), strict=False)
    ]
    shown = [*range(SCENES), *rng.sample(range(SCENES), VIEWS)]
    images = [photograph(scenes[scene], rng) for scene in shown]
    order = rng.sample(range(len(shown)), len(shown))  # the rank of dedup
    scene = np.array(shown)[order]
    images = [images[place] for place in order]
    embedded = [one for one in model.embed_each(images) if one is not None]
    found = np.stack([one.numpy() for one in embedded]).astype(np.float16)
    first = {one: place for place, one in reversed(list(enumerate(scene.tolist())))}
    is_view = np.array([first[one] != place for place, one in enumerate(scene.tolist())])
    prints = ImagePrints.of(iter(images))
    pairs = [np.stack(pair) for pair in near_pairs(prints.phash, 6)]
    near = np.concatenate([np.zeros((2, 0), int), *pairs], axis=1)
    hashed = int((scene[near[0]] == scene[near[1]]).sum())
    print(f"{len(scene):,} images, {is_view.sum()} of them another view of a scene before them")
    print(f"pairs of one scene that perceptual hashes find: {hashed}")
    print("| `dedup.semantic` | rejected | precision | recall |\n| ---: | ---: | ---: | ---: |")
    lots = splitmix(np.arange(len(scene), dtype=np.uint64))
    for least in THRESHOLDS:
        told = copies.find_copies(found, least, lots)
        is_right = told.is_copy & (scene[told.nearest] == scene)
        precision = is_right.sum() / max(told.is_copy.sum(), 1)
        recall = (is_right & is_view).sum() / is_view.sum()
        print(f"| {least} | {told.is_copy.sum()} | {precision:.1%} | {recall:.1%} |")


def rows_around(number: int, size: int, concepts: int, seed: int = 0) -> Float16s:
    """Unit vectors around concepts, each a view of one of `number` / 3 scenes."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(concepts, size)).astype(np.float32)
    found = np.zeros((number, size), np.float16)
    for start in range(0, number, 8192):
        count = min(8192, number - start)
        ids = rng.integers(0, max(number // 3, 1), count)
        scene = np.stack(
            [np.random.default_rng(10**9 + one).normal(size=size) for one in ids.tolist()]
        ).astype(np.float32)
        rows = centres[ids % concepts] + 0.8 * scene
        rows += 0.2 * rng.normal(size=rows.shape).astype(np.float32)
        found[start : start + count] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


def rules(number: int) -> None:
    images, texts = rows_around(number, 64, 200), rows_around(number, 64, 200, seed=1)
    lots = splitmix(np.arange(number, dtype=np.uint64))
    left, right = images.astype(np.float64), texts.astype(np.float64)
    print(f"{number:,} rows of 64 numbers, beside float64 over all pairs")

    def put(name: str, seconds: float, difference: str) -> None:
        print(f"| {name} | {seconds:.2f} s | {difference} |", flush=True)

    started = time.perf_counter()
    found = selection.neg_clip_loss(images, texts, lots, batch_size=number, shuffles=1)
    seconds = time.perf_counter() - started
    logits = left @ right.T / 0.01
    rows = np.log(np.exp(logits - 100).sum(1)) + 100, np.log(np.exp(logits - 100).sum(0)) + 100
    plain = (left * right).sum(1) - 0.005 * (rows[0] + rows[1])
    same = set(np.argsort(-found)[: number // 4]) == set(np.argsort(-plain)[: number // 4])
    put("neg_clip_loss", seconds, f"at most {abs(found - plain).max():.1e}; best 25% same: {same}")
    del logits
    started = time.perf_counter()
    found = selection.pool_norm(images)
    seconds = time.perf_counter() - started
    put(
        "target, pool",
        seconds,
        f"at most {abs(found - np.linalg.norm(left @ left.T, axis=1)).max():.1e}",
    )
    started = time.perf_counter()
    told = copies.find_copies(images, 0.9, lots)
    seconds = time.perf_counter() - started
    cosines = left @ left.T
    stays: list[int] = []
    is_copy = np.zeros(number, bool)
    for row in range(number):
        is_copy[row] = bool(stays) and cosines[row, stays].max() >= 0.9
        if not is_copy[row]:
            stays.append(row)
    put(
        "semantic copies",
        seconds,
        f"rows that differ: {(is_copy != told.is_copy).sum()} of {number}",
    )
    started = time.perf_counter()
    chosen, _ = selection.density(images, lots, number // 4, clusters=100)
    seconds = time.perf_counter() - started
    cells = Cells.train(images, 100, lots)
    nearest = (left @ cells.centres.T.astype(np.float64)).argmax(1)
    distance = 1 - (left * cells.centres[nearest]).sum(1)
    between = np.sort(1 - cells.centres.astype(np.float64) @ cells.centres.T, axis=1)[:, 1:21]
    sizes = np.bincount(nearest, minlength=100)
    worth = np.bincount(nearest, distance, 100) / sizes * between.mean(1)
    share = np.exp(worth / 0.1)
    wanted = selection.quotas(share / share.sum() * (number // 4), sizes, number // 4)
    plain_chosen = np.zeros(number, bool)
    for cell in range(100):
        members = np.flatnonzero(nearest == cell)
        plain_chosen[members[np.argsort(-distance[members])][: wanted[cell]]] = True
    put("density", seconds, f"rows that differ: {(chosen != plain_chosen).sum()}")
    scores = np.random.default_rng(3).normal(size=number)
    started = time.perf_counter()
    draws = selection.soft_cap_draws(scores, lots, 2 * number, batch_size=number // 10)
    seconds = time.perf_counter() - started
    plain_draws = np.zeros(number, int)
    for batch in range(20):
        noise = [int(one) for one in splitmix(lots ^ splitmix(batch)) >> np.uint64(11)]
        gumbel = [-np.log(-np.log((one + 0.5) / 2**53)) for one in noise]
        keys = [s - 0.15 * d + g for s, d, g in zip(scores, plain_draws, gumbel, strict=True)]
        for row in sorted(range(number), key=lambda one: -keys[one])[: number // 10]:
            plain_draws[row] += 1
    put("sample", seconds, f"rows that differ: {(draws != plain_draws).sum()}")


def by_faiss(embeddings: Float16s, least: float) -> Any:
    """Which rows are copies by faiss used plainly: IVF, 16 neighbours, stars in order of rows."""
    import faiss

    number, size = embeddings.shape
    cells = round(number**0.5)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(size), size, cells, faiss.METRIC_INNER_PRODUCT)
    chosen = np.random.default_rng(0).choice(number, min(64 * cells, number), replace=False)
    index.train(embeddings[chosen].astype(np.float32))
    for at in range(0, number, 65_536):
        index.add(embeddings[at : at + 65_536].astype(np.float32))
    index.nprobe = copies.PROBES
    is_copy = np.zeros(number, bool)
    for at in range(0, number, 8192):
        cosines, near = index.search(embeddings[at : at + 8192].astype(np.float32), 16)
        rows = np.arange(at, at + len(near))
        places, ranks = np.nonzero((cosines >= least) & (near < rows[:, None]) & (near >= 0))
        for row, other in zip(rows[places].tolist(), near[places, ranks].tolist(), strict=True):
            if not is_copy[other]:
                is_copy[row] = True
    return is_copy


def many(number: int, size: int, way: str) -> None:
    embeddings = rows_around(number, size, 2000)
    lots = splitmix(np.arange(number, dtype=np.uint64))
    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.perf_counter()
    if way == "faiss":
        is_copy = by_faiss(embeddings, 0.95)
    else:
        is_copy = copies.find_copies(embeddings, 0.95, lots).is_copy
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        f"{way}: {number:,} rows of {size}: {seconds:.0f} s, {spent:.0f} CPU seconds, peak "
        f"{after.ru_maxrss / 2**20:.1f} GiB of which the embeddings "
        f"{embeddings.nbytes / 2**30:.1f}; {is_copy.mean():.1%} are copies",
        flush=True,
    )
    stays = np.flatnonzero(~is_copy)
    missed = checked = 0
    for row in np.random.default_rng(5).choice(number, 200, replace=False).tolist():
        better = stays[stays < row]
        query = embeddings[row].astype(np.float32)
        best = max(
            (
                float((embeddings[better[at : at + 65_536]].astype(np.float32) @ query).max())
                for at in range(0, len(better), 65_536)
            ),
            default=-1.0,
        )
        checked += best >= 0.95
        missed += best >= 0.95 and not is_copy[row]
    print(f"of 200 rows, {checked} have a better one that stays within 0.95; {missed} are missed")


def images(number: int, rounds: int) -> None:
    import torch
    from PIL import Image
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from models.inference.dual_encoder import DualEncoder

    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(number):
        small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize((512, 384), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    torch.manual_seed(0)
    config = CLIPConfig(vision_config={"patch_size": 32})
    threads = torch.get_num_threads()
    print("| loop | dtype | images a second | images a CPU second |\n| --- | --- | ---: | ---: |")
    for dtype in (torch.float32, torch.bfloat16):
        model = CLIPModel(config).to(dtype).eval()
        processor = CLIPImageProcessorPil()

        class Tokenizer:
            all_special_ids: tuple[int, ...] = ()

        ours = DualEncoder(model, Tokenizer(), processor, threads)
        best: dict[str, tuple[float, float]] = {}

        def plain(size: int, model: Any = model, processor: Any = processor) -> None:
            with torch.inference_mode():
                for start in range(0, number, size):
                    some = [Image.open(io.BytesIO(o)) for o in encoded[start : start + size]]
                    pixels = processor(some, return_tensors="pt")["pixel_values"]
                    model.get_image_features(pixel_values=pixels.to(model.dtype))

        loops: dict[str, Any] = {
            "transformers, 1 at a time": lambda: plain(1),
            "transformers, 16 at a time": lambda: plain(16),
            "capfilt": lambda ours=ours: ours.embed_each(encoded),
            **open_clip_loop(encoded, dtype),
        }
        for _ in range(rounds):
            for name, call in loops.items():
                started, spent = time.perf_counter(), time.process_time()
                call()
                taken = time.perf_counter() - started, time.process_time() - spent
                rates = (number / taken[0], number / taken[1])
                before = best.get(name, (0.0, 0.0))
                best[name] = (max(before[0], rates[0]), max(before[1], rates[1]))
        for name, (wall, cpu) in best.items():
            print(f"| {name} | {dtype} | {wall:.1f} | {cpu:.1f} |", flush=True)


def open_clip_loop(encoded: list[bytes], dtype: Any) -> dict[str, Any]:
    """open_clip's model and transform, 16 images at a time; nothing where it is not installed."""
    import torch
    from PIL import Image

    try:
        import open_clip
    except ImportError:
        return {}
    precision = {torch.float32: "fp32", torch.bfloat16: "pure_bf16"}[dtype]
    model, _, transform = open_clip.create_model_and_transforms("ViT-B-32", precision=precision)
    model.eval()

    def loop() -> None:
        with torch.inference_mode():
            for start in range(0, len(encoded), 16):
                some = [Image.open(io.BytesIO(one)) for one in encoded[start : start + 16]]
                pixels = torch.stack([transform(image) for image in some]).to(dtype)
                model.encode_image(pixels, normalize=True)

    return {"open_clip, 16 at a time": loop}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("views", "rules", "copies", "images"))
    parser.add_argument("folder", nargs="?", default="runs/views")
    parser.add_argument("--model", help="of views, instead of the one that it trains")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--by", choices=("capfilt", "faiss"), default="capfilt", help="of copies")
    parser.add_argument("--number", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3, help="of images; the best one counts")
    given = parser.parse_args()
    if given.what == "views":
        views(Path(given.folder), given.model)
    elif given.what == "rules":
        rules(given.rows or 10_000)
    elif given.what == "copies":
        many(given.rows or 1_000_000, given.size, given.by)
    else:
        images(given.number, given.rounds)
