"""Pools and pairs that tests make without a run."""

import pyarrow as pa

from helpers import fakes
from stages.schema import PAIRS, POOL, uid_of


def pool_of(captions):
    return [
        {
            **dict.fromkeys(POOL.names),
            "uid": uid_of(str(n), caption),
            "source": "web",
            "url": str(n),
            "caption": caption,
            "repeats": 0,
            "status": "success",
            "image": fakes.jpeg(n, (300, 260)),
            **dict.fromkeys(("width", "original_width"), 300),
            **dict.fromkeys(("height", "original_height"), 260),
            "original_bytes": 9000,
            "sha256": f"{n:064x}",
        }
        for n, caption in enumerate(captions)
    ]


def pairs_of(texts, first=0, scores=()):
    """The table of an export: for each image its texts, the first one of the web."""
    entries = [
        {
            "uid": f"{first + index:032x}",
            "image": {"bytes": fakes.jpeg(first + index), "path": None},
            "caption": text,
            "caption_source": "synthetic" if number else "web",
            "itm_score": scores[number] if scores else None,
            "width": 120,
            "height": 90,
            "url": f"http://example.org/{first + index}",
            "source": "list",
            "sha256": f"{first + index:064x}",
            "caption_name": "short" if number else None,
        }
        for index, captions in enumerate(texts)
        for number, text in enumerate(captions)
    ]
    return pa.Table.from_pylist(entries, schema=PAIRS)
