"""Pools that tests make without downloading."""

import fakes

from stages.schema import POOL, uid_of


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
