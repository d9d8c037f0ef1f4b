"""`benchmarks.photographs`: swaps planted among real photographs, and what is counted of them.

What a filter notices takes trained weights. With random ones the counts are known where the
threshold keeps everything or nothing.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import fakes

from benchmarks import photographs
from pipeline.training.data import read_json

FLICKR = fakes.SHARED / "data" / "flickr8k"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FLICKR.exists(), reason="needs ../shared/data/flickr8k"),
]


def listed(path: Path, number: int) -> Path:
    """Flickr8k's first photographs with five captions each, as JSON Lines."""
    captions: dict[str, list[str]] = {}
    for line in (FLICKR / "captions.tsv").read_text().splitlines():
        name, caption = line.split("\t")
        captions.setdefault(name, []).append(caption)
    rows = [{"image": name, "captions": own} for name, own in captions.items()][:number]
    photographs.write_list(path, rows)
    return path


def measured(folder: Path, number: int, *settings: str, dense: Sequence[str] = ()) -> Any:
    path = listed(folder / "captions.jsonl", number)
    out = folder / "out"
    given = [str(path), "--images", str(FLICKR / "images"), "--out", str(out), *dense, "--set"]
    photographs.main([*given, "filter.device=cpu", "filter.dtype=float32", *settings])
    return json.loads((out / "photographs.json").read_text())


@pytest.mark.parametrize("share", photographs.SHARES)
def test_a_share_of_the_photographs_gets_the_caption_of_another(tmp_path, share):
    samples = read_json(str(listed(tmp_path / "captions.jsonl", 100)), str(FLICKR / "images"))
    planted = photographs.swapped(samples, share, random.Random(0))
    assert [sample for sample, _, _ in planted] == samples
    assert sum(not is_true for _, _, is_true in planted) == round(100 * share)
    assert all(is_true == (text in sample.captions) for sample, text, is_true in planted)
    first = sorted(sample.captions[0] for sample in samples)
    assert sorted(text for _, text, _ in planted) == first  # none is there twice


def test_a_filter_that_drops_nothing_or_all_is_counted_so(tmp_path, ray_here):
    models = fakes.tiny_blip(tmp_path)
    names = sorted(path.name for path in (FLICKR / "images").iterdir())[:8]
    more = "and there is much more to be seen of all this on the left and on the right"
    texts = (
        f"A dog runs {n} {more}. A man sits {n} {more}. It rains {n} {more}." for n in range(8)
    )
    long = [{"image": name, "caption": text} for name, text in zip(names, texts, strict=True)]
    photographs.write_list(tmp_path / "dense.jsonl", long)
    dense = ["--dense", str(tmp_path / "dense.jsonl"), "--dense-images", str(FLICKR / "images")]
    settings = [f"filter.model={models / 'matcher'}", "download.image_size=64"]
    settings.append(f"evaluate.tagger={fakes.SHARED / 'data' / 'en_core_web_sm_port'}")
    clip = ["train.kept.model=tiny", f"train.kept.tokenizer={tmp_path / 'tokenizer'}"]
    clip += ["train.kept.image_size=64", "train.kept.steps=2", "train.kept.batch_size=4"]
    both = [*clip, *(one.replace("kept", "all") for one in clip)]
    found = measured(tmp_path, 30, *settings, *both, "filter.min_itm=0.0", dense=dense)
    for share in photographs.SHARES:
        one = found[f"{share:.0%} of 24 captions"]
        assert one["judged"] == 24 and one["dropped"] == 0
        assert one["false"] == round(24 * share) and one["precision"] == "-"
        assert one["recall"].startswith("0.000 [0.000, ")
    clips = found["50% of 24 captions"]["clip"]
    assert clips.keys() == {"kept", "all"} and clips["kept"] == clips["all"]  # the same pairs
    assert found["sentences"]["sentences"] == 24 and found["sentences"]["dropped"] == 0
    assert 0 < found["sentences"]["false"] < 8
    assert "colour" in found["filter"]["near_misses"]

    strict = {"filter.model": str(models / "matcher"), "filter.min_itm": 1.0}
    strict |= {"download.image_size": 64, "filter.device": "cpu", "filter.dtype": "float32"}
    samples = read_json(str(tmp_path / "captions.jsonl"), str(FLICKR / "images"))
    one = photographs.drops(samples, 0.2, str(FLICKR / "images"), strict, tmp_path / "strict")
    assert one["dropped"] == one["judged"] == 30 and one["false"] == 6
    assert one["precision"].startswith("0.200 [") and one["recall"].startswith("1.000 [")


@pytest.mark.network
@pytest.mark.skipif(
    not os.environ.get("CAPFILT_NETWORK"),
    reason="downloads released weights; CAPFILT_NETWORK=1 runs it",
)
def test_released_weights_notice_swaps(tmp_path):
    found = measured(tmp_path, 500)
    for share in photographs.SHARES:
        one = found[f"{share:.0%} of 400 captions"]
        assert float(one["recall"].split()[0]) > 0.5 and float(one["precision"].split()[0]) > share
    print(json.dumps(found, indent=1))
