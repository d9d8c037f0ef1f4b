"""Near-identical captions and images found a CPU-second, beside the peers that are installed.

    python -m benchmarks.dedup                       # captions, hashes, fingerprints
    python -m benchmarks.dedup --rows 1000000        # and that many rows through the whole summary
    python -m benchmarks.dedup --only pictures --plot docs/dedup.svg
    python -m benchmarks.dedup --only templates

Pictures: 200 different ones of each family that `tests/helpers/graphics.py` draws, and 200
photographs where there are some, none of which may be merged with another; and copies of them,
which must be. Templates: captions that a site fills in, and captions that are no template of one
another.

Captions: web captions (drawn sentences where there are none), a tenth of them variants of
others in one word, short ones too. All tools get the same strings, shingles, permutations, bands
and threshold, and put captions into stars in the same order; the truth is that loop with every pair
compared. Hashes: the pairs within a radius among uniform 64-bit hashes of which a fifth is near
another. Peers that are not installed are left out: datasketch, rensa, faiss-cpu, imagededup,
ImageHash.
"""

from __future__ import annotations

import argparse
import importlib.metadata
from pathlib import Path

from benchmarks.dedup.captions import compare_captions
from benchmarks.dedup.hashes import compare_fingerprints, compare_hashes
from benchmarks.dedup.pictures import compare_pictures
from benchmarks.dedup.summary import summarize
from benchmarks.dedup.templates import compare_templates
from benchmarks.dedup.timing import installed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--captions", type=int, default=20_000)
    parser.add_argument("--radius", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--only", choices=("pictures", "templates"))
    options = parser.parse_args()
    packages = ("numpy", "pillow", "datasketch", "rensa", "faiss-cpu", "imagededup", "ImageHash")
    print(*(f"{p} {importlib.metadata.version(p)}" for p in packages if installed(p)), sep=", ")
    if options.only != "templates":
        compare_pictures(options.pictures, options.plot)
    if options.only != "pictures":
        compare_templates()
    if options.only:
        return
    compare_captions(options.captions, options.repeats)
    compare_hashes(options.radius, options.repeats)
    compare_fingerprints(options.repeats)
    if options.rows:
        summarize(options.rows)


if __name__ == "__main__":
    main()
