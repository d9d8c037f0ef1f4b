"""Which change of a true caption does a filter notice, with and without training on near misses?

    OMP_NUM_THREADS=1 python -m benchmarks.near_misses runs/near_misses

On the drawn world, by filters of each seed that are trained as the demo's is, with and without near
misses. Near misses of held-out pictures are made as
`capfilt evaluate` makes them, and those that are true of the scene are left out. `others` are true
captions of other pictures that are false here.
"""

from __future__ import annotations

import argparse
import random
import statistics
from pathlib import Path

import numpy as np

from benchmarks.drawn import Picture, pictures, prepare, table, trained_filter, write
from models.inference.matcher import Matcher
from models.metrics import roc_auc
from models.text.near_misses import KINDS, NearMisses, Vocabulary, words_of
from pipeline.demo.world import holds

CAPTIONS = 5
"""True captions of each picture."""
ROWS = (*KINDS, "others")


def asked(some: list[Picture], make: NearMisses, rng: random.Random) -> list[dict[str, str]]:
    """For each picture one false text of each kind that can be made of its captions."""
    texts = []
    for index, picture in enumerate(some):
        known = words_of(picture.captions)
        found: dict[str, str] = {}
        for kind in KINDS:
            for caption in picture.captions:
                near = make(caption, rng, known=known, kind=kind)
                if near is not None and not holds(near.text, picture.scene):
                    found[kind] = near.text
                    break
        while "others" not in found:
            other = rng.choice(rng.choice(some[:index] + some[index + 1 :]).captions)
            if not holds(other, picture.scene):
                found["others"] = other
        texts.append(found)
    return texts


def of_seed(model: Path, place: Path, seed: int, number: int) -> dict[str, float]:
    """AUC of true captions against each kind of false ones, over all pictures."""
    some = list(pictures(seed, number, CAPTIONS))
    rng = random.Random(f"{seed} near misses")
    train = [picture.captions for picture in pictures(seed + 1000, 1000, CAPTIONS)]
    texts = asked(some, NearMisses(Vocabulary(train, str(place / "language"))), rng)
    matcher = Matcher.from_pretrained(str(model), device="cpu", dtype="float32")
    rows = [[*p.captions, *own.values()] for p, own in zip(some, texts, strict=True)]
    scores = [[m.itm for m in own] for own in matcher.score([p.image for p in some], rows)]
    true = np.array([own[:CAPTIONS] for own in scores]).ravel()
    found = {}
    for kind in ROWS:
        false = np.array(
            [
                own[CAPTIONS + list(names).index(kind)]
                for own, names in zip(scores, texts, strict=True)
                if kind in names
            ]
        )
        found[kind] = float(roc_auc(true, false, np.ones(len(true)), np.ones(len(false))))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where models and results are kept")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--near-misses", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    measured: dict[str, list[dict[str, float]]] = {}
    for number in options.near_misses:
        for seed in range(options.seeds):
            place = prepare(options.folder, seed)
            name, field = f"near_misses-{number}", f"near_misses={number}"
            model = trained_filter(options.folder, seed, name, [field])
            own = of_seed(model, place, seed, options.pictures)
            measured.setdefault(str(number), []).append(own)
            print(f"near_misses {number}, seed {seed}: {own}", flush=True)
    write(options.folder, "near_misses", measured)
    rows = []
    for kind in ROWS:
        row = [kind]
        for number in options.near_misses:
            values = [own[kind] for own in measured[str(number)]]
            row.append(f"{statistics.mean(values):.3f} ({min(values):.3f})")
        rows.append(row)
    print(f"\nAUC, mean of {options.seeds} seeds (least)\n")
    print(table(["false text", *(f"near_misses: {n}" for n in options.near_misses)], rows))


if __name__ == "__main__":
    main()
