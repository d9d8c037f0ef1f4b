"""Captions and matched pairs a second, beside stock transformers on the same weights.

    python benchmarks/capfilt.py                      # a small BLIP, minutes on two cores
    python benchmarks/capfilt.py --size base --device cuda --dtype bfloat16 --images 512

Weights are random, so no caption ends early and everyone writes to the longest. All start from
the same JPEG bytes and end with texts or probabilities. `card` is the loop of the model card, one
image (or one pair) at a time; `batched` gives stock transformers the same batches as ours.
Needs torch, transformers, pillow and numpy alone.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.blip import Captioner, Matcher
from models.images import Preprocess

SIZES = {
    "small": {"width": 384, "layers": 6, "heads": 6, "side": 224},
    "base": {"width": 768, "layers": 12, "heads": 12, "side": 384},
    "large": {"width": 1024, "layers": 24, "heads": 16, "side": 384},
}
PROMPT = "a picture of "


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
                max_length=20,
                min_length=5,
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


def medians(runs: dict[str, Callable[[], Any]], args: argparse.Namespace) -> dict[str, float]:
    """The median seconds of each, taken in turns, after a round that is not counted."""
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[args.clock]
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.repeats + 1):
        for name, run in runs.items():
            start = clock()
            run()
            if args.device.startswith("cuda"):
                torch.cuda.synchronize()
            seconds[name].append(clock() - start)
    return {name: statistics.median(some[1:]) for name, some in seconds.items()}


def report(what: str, amount: int, seconds: dict[str, float]) -> dict[str, Any]:
    rates = {name: amount / taken for name, taken in seconds.items()}
    ratios = {name: rates["ours"] / rate for name, rate in rates.items() if name != "ours"}
    print(
        f"{what:24}"
        + "".join(f"  {name} {rate:8.2f}/s" for name, rate in rates.items())
        + "".join(f"  x{ratio:5.2f} {name}" for name, ratio in ratios.items()),
        flush=True,
    )
    return {"what": what, "rates": rates, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--captions", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--texts", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu counts this process alone, for a machine that others use too",
    )
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    images = [draw(seed) for seed in range(args.images)]
    results = []
    print(
        f"BLIP-{args.size}, {args.dtype} on {args.device}, {args.threads} threads, "
        f"{args.images} images in batches of {args.batch_size}, median of {args.repeats}, "
        f"{args.clock} seconds",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_models(folder, args.size)
        load = {"device": args.device, "dtype": args.dtype, "threads": args.threads}

        captioner = Captioner.from_pretrained(str(folder / "captioner"), **load)
        stock = Stock(BlipForConditionalGeneration, folder / "captioner", args.device, args.dtype)
        for number in args.captions:
            runs: dict[str, Callable[[], Any]] = {
                "ours": lambda number=number: captioner.caption(
                    images, range(len(images)), num_captions=number, batch_size=args.batch_size
                ),
                "card": lambda number=number: stock.caption(images, number, 1),
                "batched": lambda number=number: stock.caption(images, number, args.batch_size),
            }
            seconds = medians(runs, args)
            results.append(report(f"captions, {number} an image", number * len(images), seconds))

        matcher = Matcher.from_pretrained(str(folder / "filter"), **load)
        stock = Stock(BlipForImageTextRetrieval, folder / "filter", args.device, args.dtype)
        rng = np.random.default_rng(0)
        for number in args.texts:
            texts = [
                [
                    " ".join(f"word{word}" for word in rng.integers(0, 30000, rng.integers(4, 16)))
                    for _ in range(number)
                ]
                for _ in images
            ]
            pairs = [
                (image, text) for image, some in zip(images, texts, strict=True) for text in some
            ]
            runs = {
                "ours": lambda texts=texts: matcher.score(images, texts, args.batch_size),
                "card": lambda pairs=pairs: stock.score(pairs, 1),
                "batched": lambda pairs=pairs: stock.score(pairs, args.batch_size),
            }
            seconds = medians(runs, args)
            ours = [match.itm for some in matcher.score(images, texts) for match in some]
            apart = float(np.abs(np.array(ours) - stock.score(pairs, args.batch_size)).max())
            results.append(report(f"pairs, {number} an image", len(pairs), seconds))
            print(
                f"    largest difference of an ITM probability: {apart:.1e} (ours also gives ITC)"
            )
    if args.json:
        args.json.write_text(json.dumps({"arguments": vars(args), "results": results}, default=str))


if __name__ == "__main__":
    main()
