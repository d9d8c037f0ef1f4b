"""Captions and judged texts a second, beside stock transformers on the same weights.

    python -m benchmarks.capfilt                      # BLIP-base; under four minutes on two cores
    python -m benchmarks.capfilt --size large --images 512 --device cuda

Weights are random, so no caption ends early and everyone writes to the longest. All start from
the same JPEG bytes and end with texts or probabilities. `card` is the loop of the model card, in
float32, one image (or one pair) at a time; `batched` is stock transformers in our dtype at the
best of several batch sizes; `limit` is the floating-point operations of the work over the rate of
a large matrix product in our dtype. Needs torch, transformers, pillow and numpy alone. With
`--peer PYTHON`, an interpreter with py-data-juicer, its captioning mapper and matching filter
follow, on a CPU, with this interpreter's torch and transformers.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.operations import Shape
from models.image.decode import Preprocess
from models.inference.captioner import Captioner
from models.inference.decoding import Settings
from models.inference.matcher import Matcher
from models.weights import dtype_of

SIZES = {
    "small": {"width": 384, "layers": 6, "heads": 6, "side": 224},
    "base": {"width": 768, "layers": 12, "heads": 12, "side": 384},
    "large": {"width": 1024, "layers": 24, "heads": 16, "side": 384},
}
PROMPT = "a picture of "
LONGEST = 20
NUM_BEGUN = 4  # [DEC] and the prompt
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Rates = dict[str, float]

# Data-Juicer asks for 128 new tokens whatever it is told; here everyone writes as many.
PEER = r"""
import json, sys, time
sys.path.append(sys.argv[1])
work = json.load(sys.stdin)
import torch
torch.set_num_threads(work["threads"])
import data_juicer
from data_juicer.ops.filter.image_text_matching_filter import ImageTextMatchingFilter
from data_juicer.ops.mapper.image_captioning_mapper import ImageCaptioningMapper
from data_juicer.utils.constant import Fields
from data_juicer.utils.model_utils import get_model

def rate(run, amount, repeats):
    run()
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        rates.append(amount / (time.perf_counter() - start))
    return sorted(rates)[len(rates) // 2]

images, found = work["images"], {"version": data_juicer.__version__}
for number in work["captions"]:
    mapper = ImageCaptioningMapper(
        hf_img2seq=work["captioner"], caption_num=number, keep_candidate_mode="all"
    )
    model, _ = get_model(mapper.model_key, None, False)
    write = type(model).generate
    length = {"max_new_tokens": work["new"], "min_new_tokens": work["new"]}
    model.generate = lambda **given: write(model, **{**given, **length})
    def caption():
        for path in images:
            mapper._process_single_sample({"text": "<__dj__image>", "images": [path]})
    found[f"images captioned, {number} an image"] = rate(caption, len(images), work["repeats"])
judge = ImageTextMatchingFilter(hf_blip=work["filter"])
def match():
    for path, text in work["pairs"]:
        judge.compute_stats_single(
            {"text": f"<__dj__image> {text}", "images": [path], Fields.stats: {}}
        )
found["texts judged, 2 an image"] = rate(match, len(work["pairs"]), work["repeats"])
print("RESULT" + json.dumps(found))
"""


def make_models(folder: Path, size: str) -> None:
    """BLIPs with random weights and a tokenizer of BERT's size."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "picture", "of"]
    words += [f"word{i}" for i in range(30522 - len(words))]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    shape = SIZES[size]
    text = SIZES["base" if size == "large" else size]  # BLIP-large has BERT-base
    config = BlipConfig(
        vision_config={
            "hidden_size": shape["width"],
            "intermediate_size": 4 * shape["width"],
            "num_hidden_layers": shape["layers"],
            "num_attention_heads": shape["heads"],
            "image_size": shape["side"],
            "initializer_range": 0.02,
        },
        text_config={
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "sep_token_id": tokenizer.sep_token_id,
        },
    )
    torch.manual_seed(0)
    for name, architecture in (
        ("captioner", BlipForConditionalGeneration),
        ("filter", BlipForImageTextRetrieval),
    ):
        architecture(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        Preprocess(size=shape["side"]).save(folder / name)


def draw(seed: int) -> bytes:
    """A photograph's size and detail: clouds and noise, 500 x 375, as JPEG."""
    rng = np.random.default_rng(seed)
    clouds = Image.fromarray(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8))
    pixels = np.asarray(clouds.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
    pixels = (pixels + rng.integers(-12, 13, pixels.shape)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


class Stock:
    """Stock transformers, as its model cards use it."""

    def __init__(self, architecture: Any, folder: Path, device: str, dtype: str) -> None:
        self.model = architecture.from_pretrained(folder, dtype=getattr(torch, dtype))
        self.model = self.model.to(device).eval()
        self.tokenizer = BertTokenizer.from_pretrained(folder)
        self.processor = BlipImageProcessorPil.from_pretrained(folder)

    def pixels(self, images: list[bytes]) -> torch.Tensor:
        opened = [Image.open(io.BytesIO(image)).convert("RGB") for image in images]
        pixels = self.processor(opened, return_tensors="pt")["pixel_values"]
        return pixels.to(self.model.device, self.model.dtype)

    @torch.inference_mode()
    def caption(self, images: list[bytes], num_captions: int, batch_size: int) -> list[str]:
        texts: list[str] = []
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            ids = self.tokenizer([PROMPT] * len(batch), return_tensors="pt")["input_ids"]
            found = self.model.generate(
                self.pixels(batch),
                ids.to(self.model.device),
                do_sample=True,
                top_p=0.9,
                top_k=0,
                max_length=LONGEST,
                min_length=LONGEST,
                num_return_sequences=num_captions,
            )
            decoded = self.tokenizer.batch_decode(found, skip_special_tokens=True)
            texts += [text[len(PROMPT) :] for text in decoded]
        return texts

    @torch.inference_mode()
    def score(self, pairs: list[tuple[bytes, str]], batch_size: int) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(pairs), batch_size):
            batch = pairs[start : start + batch_size]
            encoded = self.tokenizer(
                [text for _, text in batch],
                padding=True,
                truncation=True,
                max_length=35,
                return_tensors="pt",
            ).to(self.model.device)
            ids = encoded["input_ids"]
            ids[:, 0] = self.model.config.text_config.vocab_size - 1
            pixels = self.pixels([image for image, _ in batch])
            found = self.model(ids, pixels, attention_mask=encoded["attention_mask"])
            scores += found.itm_score.float().softmax(-1)[:, 1].tolist()
        return scores


def matrix_rate(device: str, dtype: str) -> float:
    """Floating-point operations a second of a large product, the best of up to ten seconds."""
    side = 8192 if device.startswith("cuda") else 2048
    kind = getattr(torch, dtype)
    left, right = (torch.randn(side, side, device=device, dtype=kind) for _ in "ab")
    seconds: list[float] = []
    while len(seconds) < 20 and sum(seconds) < 10:
        start = time.perf_counter()
        left @ right
        wait(device)
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)


def shape_of(size: str) -> Shape:
    """The sizes of a key of SIZES."""
    shape, text = SIZES[size], SIZES["base" if size == "large" else size]
    return Shape(
        side=shape["side"],
        width=shape["width"],
        layers=shape["layers"],
        text_width=text["width"],
        text_layers=text["layers"],
    )


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def rate(run: Callable[[], Any], amount: int, args: argparse.Namespace) -> float:
    start = CLOCKS[args.clock]()
    run()
    wait(args.device)
    return amount / (CLOCKS[args.clock]() - start)


def compare(runs: dict[str, tuple[int, Callable[[], Any]]], args: argparse.Namespace) -> Rates:
    """The median rate of each, taken in turns; the first round is not counted on CUDA."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    warm = args.device.startswith("cuda")
    for _ in range(args.repeats + warm):
        for name, (amount, run) in runs.items():
            found[name].append(rate(run, amount, args))
    return {name: statistics.median(some[warm:]) for name, some in found.items()}


def best_size(run: Callable[[int], Any], args: argparse.Namespace) -> int:
    """The batch size at which stock transformers is fastest."""
    sizes = (16, 64, 256) if args.device.startswith("cuda") else (1, 4)
    run(sizes[0])
    return max(sizes, key=lambda size: rate(lambda: run(size), 1, args))


def data_juicer(
    args: argparse.Namespace, folder: Path, images: list[bytes], pairs: list[tuple[bytes, str]]
) -> dict[str, Any]:
    """What Data-Juicer's operators do a second, as `--peer` has them, and its version."""
    paths = {}
    for index, image in enumerate(images):
        paths[image] = str(folder / f"{index}.jpg")
        Path(paths[image]).write_bytes(image)
    work = {
        "threads": args.threads,
        "repeats": args.repeats,
        "captions": args.captions,
        "captioner": str(folder / "captioner"),
        "filter": str(folder / "filter"),
        "new": LONGEST - NUM_BEGUN,
        "images": list(paths.values()),
        "pairs": [(paths[image], text) for image, text in pairs],
    }
    site = str(Path(torch.__file__).parents[1])
    answer = subprocess.run(
        [args.peer, "-c", PEER, site], input=json.dumps(work), capture_output=True, text=True
    )
    if answer.returncode:
        raise SystemExit(f"{args.peer}: {answer.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(answer.stdout.split("RESULT")[1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="base")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto"
    )
    parser.add_argument("--images", type=int, help="by default 512 on CUDA, 16 on a CPU")
    parser.add_argument("--captions", type=int, nargs="*", default=[1, 5])
    parser.add_argument("--texts", type=int, nargs="*", default=[2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--clock",
        choices=sorted(CLOCKS),
        default="wall",
        help="cpu counts this process alone, for a machine that others use too",
    )
    parser.add_argument("--peer", metavar="PYTHON", help="an interpreter with py-data-juicer")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    on_cuda = args.device.startswith("cuda")
    args.dtype = dtype_of(args.dtype, args.device)
    args.images = args.images or (512 if on_cuda else 16)
    torch.set_num_threads(args.threads)
    images = [draw(seed) for seed in range(args.images)]
    few, one = images[: max(1, len(images) // (1 if on_cuda else 4))], images[:2]
    matrix = matrix_rate(args.device, args.dtype)
    where = torch.cuda.get_device_name() if on_cuda else f"{platform.machine()} CPU"
    print(
        f"BLIP-{args.size}, {args.dtype}, {where}, {args.threads} threads, {args.images} images, "
        f"median of {args.repeats}, {args.clock} seconds; torch {torch.__version__}, "
        f"transformers {transformers.__version__}, numpy {np.__version__}, "
        f"Python {platform.python_version()}; {args.dtype} products {matrix / 1e12:.2f} Tflop/s\n\n"
        "| work | ours /s | card /s | batched /s | over card | over batched | of the limit |\n"
        "| --- | --- | --- | --- | --- | --- | --- |",
        flush=True,
    )
    results = []

    def report(what: str, rates: Rates, batch: int, limit: float) -> None:
        ours, card, batched = rates["ours"], rates["card"], rates["batched"]
        results.append({"work": what, "rates": rates, "batched_size": batch, "limit": limit})
        print(
            f"| {what} | {ours:.2f} | {card:.2f} | {batched:.2f} (at {batch}) "
            f"| {ours / card:.2f}x | {ours / batched:.2f}x | {ours / limit:.0%} |",
            flush=True,
        )

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_models(folder, args.size)
        load: dict[str, Any] = {"device": args.device, "threads": args.threads}

        captioner = Captioner.from_pretrained(str(folder / "captioner"), dtype=args.dtype, **load)
        kind = BlipForConditionalGeneration
        card = Stock(kind, folder / "captioner", args.device, "float32")
        same = Stock(kind, folder / "captioner", args.device, args.dtype)
        captioner.caption(one, [0] * len(one))
        card.caption(one, 1, 1)
        for number in args.captions:
            settings = Settings(num_captions=number, max_length=LONGEST, min_length=LONGEST)
            batch = best_size(lambda size, k=number: same.caption(few, k, size), args)
            rates = compare(
                {
                    "ours": (
                        len(images),
                        lambda how=settings: captioner.caption(images, range(len(images)), how),
                    ),
                    "card": (len(one), lambda k=number: card.caption(one, k, 1)),
                    "batched": (
                        len(few),
                        lambda k=number, size=batch: same.caption(few, k, size),
                    ),
                },
                args,
            )
            limit = matrix / shape_of(args.size).captioning(number, NUM_BEGUN, LONGEST)
            report(f"images captioned, {number} an image", rates, batch, limit)

        matcher = Matcher.from_pretrained(str(folder / "filter"), dtype=args.dtype, **load)
        kind = BlipForImageTextRetrieval
        card = Stock(kind, folder / "filter", args.device, "float32")
        same = Stock(kind, folder / "filter", args.device, args.dtype)
        rng = np.random.default_rng(0)
        for number in args.texts:
            lengths = rng.integers(4, 16, (len(images), number))
            texts = [
                [" ".join(f"word{w}" for w in rng.integers(0, 30000, n)) for n in some]
                for some in lengths
            ]
            pairs = [
                (image, text) for image, some in zip(images, texts, strict=True) for text in some
            ]
            short, least = pairs[: len(few) * number], pairs[: len(one) * number]
            matcher.score(one, texts[: len(one)])
            batch = best_size(lambda size, some=short: same.score(some, size), args)
            rates = compare(
                {
                    "ours": (len(pairs), lambda some=texts: matcher.score(images, some)),
                    "card": (len(least), lambda some=least: card.score(some, 1)),
                    "batched": (
                        len(short),
                        lambda some=short, size=batch: same.score(some, size),
                    ),
                },
                args,
            )
            tokens = [float(n) + 2 for n in lengths.mean(0)]
            limit = number * matrix / shape_of(args.size).matching(tokens)
            report(f"texts judged, {number} an image", rates, batch, limit)
            ours = [match.itm for some in matcher.score(few, texts[: len(few)]) for match in some]
            apart = np.abs(np.array(ours) - card.score(short, 1)).max()
            print(f"\nITM probabilities differ from float32's by at most {apart:.1e}", flush=True)
        if args.peer:
            rates = data_juicer(args, folder, one, [pair for pair in pairs[: 2 * len(one)]])
            print(f"\n| work | ours /s | Data-Juicer {rates.pop('version')} /s | over it |")
            print("| --- | --- | --- | --- |")
            for result in results:
                if (peer := rates.get(result["work"])) is not None:
                    ours = result["rates"]["ours"]
                    print(f"| {result['work']} | {ours:.2f} | {peer:.2f} | {ours / peer:.2f}x |")
    if args.json:
        args.json.write_text(json.dumps({"arguments": vars(args), "results": results}, default=str))


if __name__ == "__main__":
    main()
