from __future__ import annotations

import numpy as np
import pyarrow as pa

from stages.dedup.fingerprints import WRITES, Fingerprints
from stages.image_prints import COLOURS, LUMA, ImagePrints
from stages.spilled import Spilled


def shard(number: int, texts: list[str | None]) -> pa.Table:
    n = len(texts)
    rows = {
        "uid": [f"{number:016x}{i:016x}" for i in range(n)],
        "image_url": [bytes([number, i] * 8) for i in range(n)],
        "image_sha256": [None] * n,
        "image_area": [None] * n,
        "image_phash": [-1 if i % 2 else None for i in range(n)],
        "image_contrast": [9.0 if i % 2 else None for i in range(n)],
        "image_colours": [bytes([i]) * COLOURS if i % 2 else None for i in range(n)],
        "image_luma": [bytes([i]) * LUMA if i % 2 else None for i in range(n)],
        "caption_text": texts,
        "caption_key": [None if text is None else text.encode()[:16].ljust(16) for text in texts],
        "caption_words": [None if text is None else 1 for text in texts],
        "caption_minhash": [None if text is None else bytes([number]) * 512 for text in texts],
    }
    return pa.table(rows, schema=pa.schema([pa.field("uid", pa.string()), *WRITES]))


def test_rows_of_many_shards_are_read_as_they_were() -> None:
    texts: list[str | None] = ["caf\u00e9", None, "", "\U0001f600 smile", "last"]
    cut = shard(3, ["left out", *texts[:2]])[1:]
    rows = Fingerprints.gather(iter([shard(1, texts), shard(2, []), cut]), bands=18, rows=7)
    assert len(rows) == 7
    assert [rows.text(i) for i in range(7)] == [text or "" for text in (*texts, *texts[:2])]
    assert rows.contrast.tolist() == [-1, 9, -1, 9, -1, 9, -1]
    assert rows.phash.tolist() == [0, 2**64 - 1, 0, 2**64 - 1, 0, 2**64 - 1, 0]
    assert rows.colours[:, 0].tolist()[1::2] == [1, 3, 1]
    assert rows.luma[:, 7].tolist()[1::2] == [1, 3, 1]
    assert rows.area.tolist() == [-1] * 7
    assert rows.words.tolist() == [1, 0, 1, 1, 1, 1, 0]
    assert not rows.sha256.any() and rows.url.any(axis=1).all()
    assert rows.caption.any(axis=1).tolist() == [True, False, True, True, True, True, False]
    assert len(rows.bands) == 18
    for band in (spilled.read() for spilled in rows.bands):
        assert len({band[i] for i in (0, 2, 3, 4)}) == 1 and band[0] != band[5]


def test_no_rows_have_no_fingerprints() -> None:
    rows = Fingerprints.gather(iter([]), bands=2, rows=3)
    assert len(rows) == 0 and rows.colours.shape == (0, COLOURS) and len(rows.bands) == 2
    assert len(ImagePrints.of([]).phash) == 0


def test_what_is_spilled_comes_back() -> None:
    for width in (None, 3):
        spilled = Spilled(np.uint64, width)
        parts = [np.arange(6 * i, dtype=np.uint64) for i in range(4)]
        parts = [part if width is None else part.reshape(-1, width) for part in parts]
        for part in parts:
            spilled.append(part)
            assert (spilled.read() == spilled.mapped()).all()
        assert (spilled.mapped() == np.concatenate(parts)).all()
