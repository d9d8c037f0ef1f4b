"""Planted swaps among photographs: does the filter drop them, and what does a CLIP learn without?

    python -m benchmarks.photographs captions_val2017.json --images val2017 --out runs/photographs

Reads photographs with true captions (COCO's JSON, or JSON Lines of {"image", "captions"}), sets a
fifth of them apart, and gives 20, 50 and 80% of the others the caption of another photograph.
manifests/photographs.yaml filters each of these lists, and the drops are held against what was
planted, with 95% intervals by Wilson's score. At 50% it also fine-tunes a CLIP on the pairs that
the filter keeps and one on all pairs, with equal steps, and measures both on the fifth set apart.
Near misses are those of `capfilt evaluate`. With --dense, JSON Lines of {"image", "caption"} with
long captions (DOCCI, DCI), one sentence of half of the captions is exchanged for one of another
caption, and `filter: {unit: sentence}` must drop these sentences and no others.

--set overrides fields of the manifest: `--set filter.model=FOLDER` takes other weights.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import capfilt
from benchmarks.drawn import table, write
from models.text.sentences import split_sentences
from pipeline.demo.run import MANIFESTS
from pipeline.manifest import yaml
from pipeline.manifest.manifest import Manifest
from pipeline.training.data import read_json
from pipeline.training.evaluate import evaluate
from stages.sources import Sample

SHARES = (0.2, 0.5, 0.8)
"""Shares of false captions."""
TRAINED = 0.5
"""The share of false captions at which CLIPs are fine-tuned."""
APART = 5
"""One photograph of so many is set apart."""
MOST_APART = 1000
"""Photographs that are set apart at most."""

Planted = tuple[Sample, str, bool]
"""A photograph, a caption, and whether the caption is its own."""


def swapped(samples: Sequence[Sample], share: float, rng: random.Random) -> list[Planted]:
    """Give a share of the photographs the first caption of another one.

    The photographs of this share are put in a circle, and each gets the caption of the next one. A
    photograph that has this caption itself keeps its own.
    """
    chosen = rng.sample(range(len(samples)), round(share * len(samples)))
    text_of = {index: sample.captions[0] for index, sample in enumerate(samples)}
    for index, following in zip(chosen, chosen[1:] + chosen[:1], strict=True):
        text = samples[following].captions[0]
        if text not in samples[index].captions:
            text_of[index] = text
    return [(s, text_of[i], text_of[i] in s.captions) for i, s in enumerate(samples)]


def interval(right: int, number: int) -> str:
    """A share with its 95% interval by Wilson's score."""
    if not number:
        return "-"
    z, share = 1.96, right / number
    middle = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    wide = z * math.sqrt(share * (1 - share) / number + z**2 / (4 * number**2))
    wide /= 1 + z**2 / number
    return f"{share:.3f} [{max(0.0, middle - wide):.3f}, {min(1.0, middle + wide):.3f}]"


def write_list(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def file_of(sample: Sample) -> str:
    """The photograph's file, in the folder of the images; its name begins with the source's."""
    return sample.name.partition("/")[2]


def set_apart(samples: Sequence[Sample], folder: Path) -> Path:
    """Copy photographs to a folder, since only images below a list are read, and list them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, sample in enumerate(samples):
        name = f"{number:05d}{Path(sample.name).suffix}"
        (folder / name).write_bytes(sample.read())
        rows.append({"image": name, "captions": sample.captions})
    write_list(folder / "test.jsonl", rows)
    return folder / "test.jsonl"


def source_of(path: Path, images: str) -> dict[str, str]:
    return {"path": str(path), "images": images}


def drops(
    photographs: Sequence[Sample], share: float, images: str, settings: Mapping[str, Any], out: Path
) -> dict[str, Any]:
    """What the filter drops of a list with planted swaps: precision, recall and numbers."""
    planted = swapped(photographs, share, random.Random(f"{share} swaps"))
    path = out / "pairs.jsonl"
    write_list(path, ({"image": file_of(sample), "caption": text} for sample, text, _ in planted))
    given = {"download.source": source_of(path, images), **settings}
    until = None if share == TRAINED else "filter"
    run = capfilt.run(
        MANIFESTS / "photographs.yaml", run=out / "run", settings=given, until=until, quiet=True
    )
    rows = run.verdicts().arrow().to_pylist()
    judged = [
        (is_true, row["stage"] == "filter")
        for (_, text, is_true), row in zip(planted, rows, strict=True)
        if row["stage"] in ("filter", "kept") and row["caption"] == text
    ]
    dropped = sum(is_dropped for _, is_dropped in judged)
    false = sum(not is_true for is_true, _ in judged)
    right = sum(is_dropped and not is_true for is_true, is_dropped in judged)
    found: dict[str, Any] = {
        "pairs": len(planted),
        "judged": len(judged),
        "false": false,
        "dropped": dropped,
        "precision": interval(right, dropped),
        "recall": interval(right, false),
    }
    if until is None:
        record = json.loads((out / "run" / "evaluation.json").read_text())
        found["clip"] = {name: one["metrics"] for name, one in record.items() if name != "seal"}
    return found


def dense(
    captions: Sequence[Sample], images: str, settings: Mapping[str, Any], out: Path
) -> dict[str, Any]:
    """Which sentences the filter drops of long captions, half of which have a planted one."""
    rng = random.Random("dense")
    split = [split_sentences(sample.captions[0]) for sample in captions]
    planted: list[str | None] = []
    rows = []
    for index, (sample, sentences) in enumerate(zip(captions, split, strict=True)):
        others = split[index - 1]
        wrong = rng.choice(others).strip() if rng.random() < 0.5 and len(sentences) > 1 else None
        if wrong is not None:
            sentences = list(sentences)
            sentences[rng.randrange(len(sentences))] = f"{wrong} "
        planted.append(wrong)
        rows.append({"image": file_of(sample), "caption": "".join(sentences).strip()})
    path = out / "dense.jsonl"
    write_list(path, rows)
    given = {"download.source": source_of(path, images), **settings, "filter.unit": "sentence"}
    run = capfilt.run(
        MANIFESTS / "photographs.yaml", run=out / "run", settings=given, until="filter", quiet=True
    )
    verdicts = run.verdicts().arrow().to_pylist()
    judged = [
        (sentence["sentence"].strip() != wrong, sentence["kept"])
        for wrong, row in zip(planted, verdicts, strict=True)
        for sentence in json.loads(row["filter_sentences"] or "[]")
    ]
    dropped = sum(not is_kept for _, is_kept in judged)
    false = sum(not is_true for is_true, _ in judged)
    right = sum(not is_kept and not is_true for is_true, is_kept in judged)
    return {
        "captions": len(captions),
        "sentences": len(judged),
        "false": false,
        "dropped": dropped,
        "precision": interval(right, dropped),
        "recall": interval(right, false),
    }


def _parts(override: str) -> tuple[str, str, str]:
    return override.partition("=")


def show(found: Mapping[str, Mapping[str, Any]]) -> None:
    columns = ("false", "dropped", "precision", "recall")
    rows = [[name, *(str(one[column]) for column in columns)] for name, one in found.items()]
    print(table(("planted", *columns), rows), end="\n\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("captions", help="photographs with true captions")
    parser.add_argument("--images", help="their folder; that of the list by default")
    parser.add_argument("--out", type=Path, default=Path("runs/photographs"))
    parser.add_argument("--dense", help="photographs with long captions")
    parser.add_argument("--dense-images", help="their folder; that of the list by default")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    images = str(Path(options.images or Path(options.captions).parent).resolve())
    samples = [one for one in read_json(options.captions, options.images) if one.captions]
    apart = samples[::APART][:MOST_APART]
    test = set_apart(apart, out / "apart")
    kept_apart = {one.name for one in apart}
    photographs = [one for one in samples if one.name not in kept_apart]
    overrides = [f"evaluate.data={test}", *options.set]
    manifest = Manifest.load(str(MANIFESTS / "photographs.yaml"), overrides, str(out))
    settings = {name: yaml.loads(value) for name, _, value in map(_parts, overrides)}
    found: dict[str, Any] = {
        f"{share:.0%} of {len(photographs)} captions": drops(
            photographs, share, images, settings, out / f"{share:.0%}"
        )
        for share in SHARES
    }
    show(found)
    if options.dense:
        folder = options.dense_images or str(Path(options.dense).parent)
        long = [one for one in read_json(options.dense, options.dense_images) if one.captions]
        found["sentences"] = dense(long, str(Path(folder).resolve()), settings, out / "dense")
        show({"sentences": found["sentences"]})
    model: Any = manifest.stages["filter"]
    measured = evaluate(model.model, str(test), tagger=manifest.evaluate.tagger)
    found["filter"] = measured
    print(json.dumps(measured.get("near_misses"), indent=1))
    write(out, "photographs", found)


if __name__ == "__main__":
    main()
