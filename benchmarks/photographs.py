"""Does the filter drop swapped captions of photographs, and does a CLIP learn more without them?

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
from pipeline.storage.records import EvaluationRecord
from pipeline.storage.run import Run
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
    """Write rows as JSON Lines."""
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


def filtered(
    path: Path, images: str, settings: Mapping[str, Any], out: Path, until: str | None = "filter"
) -> list[dict[str, Any]]:
    """Run the manifest on a list in `out/run`, and return the verdict on each of its rows."""
    given = {"download.source": {"path": str(path), "images": images}, **settings}
    manifest = MANIFESTS / "photographs.yaml"
    run = capfilt.run(manifest, run=out / "run", settings=given, until=until, quiet=True)
    verdicts: list[dict[str, Any]] = run.verdicts().arrow().to_pylist()
    return verdicts


def counted(judged: Sequence[tuple[bool, bool]]) -> dict[str, Any]:
    """Count what was dropped, from whether each text is true and whether it was dropped."""
    dropped = sum(is_dropped for _, is_dropped in judged)
    false = sum(not is_true for is_true, _ in judged)
    right = sum(is_dropped and not is_true for is_true, is_dropped in judged)
    return {
        "false": false,
        "dropped": dropped,
        "precision": interval(right, dropped),
        "recall": interval(right, false),
    }


def drops(
    photographs: Sequence[Sample], share: float, images: str, settings: Mapping[str, Any], out: Path
) -> dict[str, Any]:
    """Filter a list with planted swaps, and count how many the filter drops and how many it misses.

    At the share `TRAINED`, the CLIPs are trained and measured as well.
    """
    planted = swapped(photographs, share, random.Random(f"{share} swaps"))
    path = out / "pairs.jsonl"
    write_list(path, ({"image": file_of(sample), "caption": text} for sample, text, _ in planted))
    is_trained = share == TRAINED
    rows = filtered(path, images, settings, out, None if is_trained else "filter")
    judged = [
        (is_true, row["stage"] == "filter")
        for (_, text, is_true), row in zip(planted, rows, strict=True)
        if row["stage"] in ("filter", "kept") and row["caption"] == text
    ]
    found = {"pairs": len(planted), "judged": len(judged), **counted(judged)}
    if is_trained:
        record = Run(str(out / "run")).read_record(EvaluationRecord, "evaluation.json")
        found["clip"] = {name: one.metrics for name, one in record.root.items()}
    return found


def dense(
    captions: Sequence[Sample], images: str, settings: Mapping[str, Any], out: Path
) -> dict[str, Any]:
    """Plant a sentence in half of some long captions, and count which sentences the filter drops.

    A caption that the filter reads whole is not judged by sentence and not counted.
    """
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
    verdicts = filtered(path, images, {**settings, "filter.unit": "sentence"}, out)
    judged = [
        (sentence["sentence"].strip() != wrong, not sentence["kept"])
        for wrong, row in zip(planted, verdicts, strict=True)
        for sentence in json.loads(row["filter_sentences"] or "[]")
    ]
    return {"captions": len(captions), "sentences": len(judged), **counted(judged)}


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
    pairs = (one.split("=", 1) for one in overrides)
    settings = {name: yaml.loads(value) for name, value in pairs}
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
