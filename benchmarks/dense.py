"""Dense captions of two to six sentences with none or one false: which filter notices it?

    OMP_NUM_THREADS=1 python -m benchmarks.dense runs/dense

On the drawn world, by the demo's filter of each seed. A caption of n sentences is n true captions
of a scene, each ended by a full stop; in its false twin one sentence, drawn at random, is a caption
of another scene that is not true here. `whole` judges the text as one, cut to what the model was
trained on; `longer` lets the model read 64 tokens, all its positions; `sentences` is
`filter: {unit: sentence}`, a text as good as its worst sentence. A text that the model reads whole
is judged as one by all three; `long sentences` are `sentences` of the pairs whose texts are both
longer than that. `cut` is the share of texts of which a part was not read.
"""

from __future__ import annotations

import argparse
import random
import statistics
from dataclasses import dataclass
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
COLUMNS = (*WAYS, "long sentences")
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


@dataclass(frozen=True)
class Judged:
    """The scores of a text's sentences, and which sentences are true.

    Attributes:
        scores: Of each sentence; that of the text where it was judged as one.
        are_true: Whether each is true.
        is_split: Whether each was judged by itself.
    """

    scores: list[float]
    are_true: list[bool]
    is_split: bool


def judged(itm: list[float], sentences: list[Any], length: int, place: int) -> list[Judged]:
    """The true text of a picture and its twin whose sentence number `place` is false."""
    return [
        Judged(
            scores=[part["itm"] for part in parts] if parts else [whole] * length,
            are_true=[text == 0 or sentence != place for sentence in range(length)],
            is_split=bool(parts),
        )
        for text, (whole, parts) in enumerate(zip(itm, sentences, strict=True))
    ]


def measures(pairs: list[list[Judged]]) -> dict[str, float]:
    """AUC of true texts against their twins; precision and recall of the sentences kept."""
    worst = np.array([[min(text.scores) for text in pair] for pair in pairs])
    each = [
        (score >= LEAST, is_true)
        for pair in pairs
        for text in pair
        for score, is_true in zip(text.scores, text.are_true, strict=True)
    ]
    kept_true = sum(is_kept and is_true for is_kept, is_true in each)
    ones = np.ones(len(pairs))
    return {
        "auc": float(roc_auc(worst[:, 0], worst[:, 1], ones, ones)),
        "precision": kept_true / max(sum(is_kept for is_kept, _ in each), 1),
        "recall": kept_true / sum(is_true for _, is_true in each),
    }


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
            columns = (table["itm_synthetic"].to_pylist(), table["sentences_synthetic"].to_pylist())
            pairs = [
                judged(itm, sentences, length, place)
                for (_, _, place), itm, sentences in zip(texts, *columns, strict=True)
            ]
            unread = [n > 0 for row in table["unread_synthetic"].to_pylist() for n in row]
            found[f"{length} {way}"] = {**measures(pairs), "cut": float(np.mean(unread))}
            if way == "sentences":
                long = [pair for pair in pairs if all(text.is_split for text in pair)]
                found[f"{length} long sentences"] = {**measures(long), "cut": 0.0}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where models and results are kept")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--field", action="append", default=[], help="as near_misses=1")
    parser.add_argument("--name", default="filter", help="of the filters with these fields")
    options = parser.parse_args()
    found = {}
    for seed in range(options.seeds):
        model = trained_filter(options.folder, seed, options.name, options.field)
        found[seed] = of_seed(model, seed, options.pictures)
        print(f"seed {seed}: done", flush=True)
    write(options.folder, f"dense-{options.name}", found)
    for measure in ("auc", "precision", "recall", "cut"):
        rows = []
        for length in LENGTHS:
            row = [str(length)]
            for way in COLUMNS:
                values = [own[f"{length} {way}"][measure] for own in found.values()]
                row.append(f"{statistics.mean(values):.3f} ({min(values):.3f})")
            rows.append(row)
        print(f"\n{measure}, mean of {options.seeds} seeds (least)\n")
        print(table(["sentences", *COLUMNS], rows))


if __name__ == "__main__":
    main()
