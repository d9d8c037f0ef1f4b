"""Images with several captions, and records that cannot be read, on their way to the pool."""

from __future__ import annotations

import json
from pathlib import Path

from helpers.downloads import Web, encode, photo, stage

from stages import sources


def test_an_image_with_several_captions_is_asked_for_once(web: Web, tmp_path: Path) -> None:
    class Counted(set[str]):
        times = 0

        def add(self, path: str) -> None:
            super().add(path)
            self.times += path == "a.jpg"

    web.asked = counted = Counted()
    web.files = {"a.jpg": encode(photo(seed=1)), "b.jpg": encode(photo(seed=2))}
    lines = [
        json.dumps({"url": web.url("a.jpg"), "captions": ["one", "two", "three"]}),
        json.dumps({"url": web.url("b.jpg"), "caption": "four"}),
        "{",
    ]
    path = tmp_path / "list.jsonl"
    path.write_text("\n".join(lines))
    one = stage(source=str(path))
    (listed,) = sources.shards(one.config)
    rows = one.annotate(listed).to_pylist()
    assert [row["caption"] for row in rows] == ["one", "two", "three", "four", None]
    assert [row["error"] for row in rows] == [None] * 4 + ["malformed"]
    assert rows[4]["url"] == "web/list.jsonl:3" and rows[4]["error"] in one.reasons
    assert len({row["sha256"] for row in rows[:3]}) == 1 != len({row["sha256"] for row in rows[:4]})
    assert rows[0]["image"] == rows[2]["image"] and rows[0]["width"] == rows[2]["width"]
    assert counted.times == 1
