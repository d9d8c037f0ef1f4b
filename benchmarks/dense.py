"""Dense captions of two to six sentences with none or one false: which filter notices it?

    OMP_NUM_THREADS=1 python -m benchmarks.dense runs/dense

On the drawn world, by the demo's filter of each seed. A caption of n sentences is n true captions
of a scene, each ended by a full stop; in its false twin one sentence, drawn at random, is a caption
of another scene that is not true here. `whole` judges the text as one, cut to what the model was
trained on; `longer` lets the model read 64 tokens, all its positions; `sentences` is
`filter: {unit: sentence}`, a text as good as its worst sentence.
"""

from __future__ import annotations

import argparse
import random
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.drawn import Picture, pictures, table, trained_filter, write
from models.metrics import roc_auc
from pipeline.demo.world import holds
from stages.filter import FilterConfig, FilterStage

LENGTHS = (2, 3, 4, 5, 6)
WAYS = ("whole", "longer", "sentences")
LONGER = 64
LEAST = 0.5


def dense(
    some: list[Picture], number: int, rng: random.Random
) -> list[tuple[list[str], list[str], int]]:
    """For each picture `number` true sentences, the same with one false, and which one it is."""
    found = []
    for index, picture in enumerate(some):
        true = picture.captions[:number]
        place = rng.randrange(number)
        while True:
            other = rng.choice(some[:index] + some[index + 1 :])
            wrong = rng.choice(other.captions)
            if not holds(wrong, picture.scene):
                break
        found.append((true, [*true[:place], wrong, *true[place + 1 :]], place))
    return found


def judge(model: Path, way: str, some: list[Picture], texts: list[list[str]]) -> pa.Table:
    """Measure the texts of each picture with the filter; one row per picture."""
    unit: Any = "sentence" if way == "sentences" else "text"
    stage = FilterStage(FilterConfig(model=str(model), unit=unit, device="cpu", dtype="float32"))
    stage.load()
    if way == "longer":
        assert stage._matcher is not None
        stage._matcher.max_text = LONGER
    rows = pa.table(
        {
            "image": pa.array([picture.image for picture in some], pa.binary()),
            "caption": pa.nulls(len(some), pa.string()),
            "synthetic": texts,
        }
    )
    return stage.annotate(rows)


def of_seed(model: Path, seed: int, number: int) -> dict[str, dict[str, float]]:
    """AUC, precision and recall of each way at each length."""
    some = list(pictures(seed, number, max(LENGTHS)))
    found: dict[str, dict[str, float]] = {}
    for length in LENGTHS:
        rng = random.Random(f"{seed} {length}")
        texts = dense(some, length, rng)
        both = [[". ".join(own) + "." for own in (true, false)] for true, false, _ in texts]
        for way in WAYS:
            table = judge(model, way, some, both)
            scores, kept_true, kept, all_true = [], 0, 0, 0
            columns = (table["itm_synthetic"].to_pylist(), table["sentences_synthetic"].to_pylist())
            for (_, _, place), itm, sentences in zip(texts, *columns, strict=True):
                for text, (whole, parts) in enumerate(zip(itm, sentences, strict=True)):
                    each = [part["itm"] for part in parts] if parts else [whole] * length
                    scores.append(min(each))
                    are_true = [text == 0 or sentence != place for sentence in range(length)]
                    all_true += sum(are_true)
                    kept += sum(score >= LEAST for score in each)
                    kept_true += sum(
                        score >= LEAST and is_true
                        for score, is_true in zip(each, are_true, strict=True)
                    )
            pairs = np.array(scores).reshape(-1, 2)
            ones = np.ones(len(pairs))
            found[f"{length} {way}"] = {
                "auc": float(roc_auc(pairs[:, 0], pairs[:, 1], ones, ones)),
                "precision": kept_true / max(kept, 1),
                "recall": kept_true / all_true,
                "cut": float(
                    np.mean([n > 0 for row in table["unread_synthetic"].to_pylist() for n in row])
                ),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where models and results are kept")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=200)
    options = parser.parse_args()
    found = {}
    for seed in range(options.seeds):
        model = trained_filter(options.folder, seed, "filter")
        found[seed] = of_seed(model, seed, options.pictures)
        print(f"seed {seed}: done", flush=True)
    write(options.folder, "dense", found)
    for measure in ("auc", "precision", "recall", "cut"):
        rows = []
        for length in LENGTHS:
            row = [str(length)]
            for way in WAYS:
                values = [own[f"{length} {way}"][measure] for own in found.values()]
                row.append(f"{statistics.mean(values):.3f} ({min(values):.3f})")
            rows.append(row)
        print(f"\n{measure}, mean of {options.seeds} seeds (least)\n")
        print(table(["sentences", *WAYS], rows))


if __name__ == "__main__":
    main()
