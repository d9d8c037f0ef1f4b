"""Training data and decisions that are broken on purpose: rows, or an error that names the file."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from pipeline.training.data import read_json
from stages.review import read_decisions

COCO = {
    "images": [{"id": 1, "file_name": "a.jpg"}],
    "annotations": [{"image_id": 1, "caption": "a"}],
}

PAIRS = [
    json.dumps({**COCO, "images": [{"file_name": "a.jpg"}]}),
    json.dumps({**COCO, "images": [7]}),
    json.dumps({**COCO, "images": [{"id": [1], "file_name": "a.jpg"}]}),
    json.dumps({**COCO, "annotations": ["a"]}),
    json.dumps({**COCO, "annotations": [{"image_id": 9, "caption": "a"}]}),
    json.dumps([{"image": 3, "caption": "a"}]),
    json.dumps(["a"]),
    "3",
    "[" * 100_000,
    '{"image": "a.jpg", "caption": "a"}\n{"image": ',
    '{"image": "a.jpg", "caption": "a"}\n' + "[" * 100_000,
    '{"image": "a.jpg", "caption": "a"}\n' + "9" * 5000,
]


@pytest.mark.parametrize("text", PAIRS, ids=range(len(PAIRS)))
def test_training_data_that_are_none_name_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"data\.json"):
        read_json(str(path))


def test_mutated_training_data_are_samples_or_an_error(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"image": f"{n}.jpg", "caption": f"ä {n}"}) + "\n" for n in range(9))
    path = tmp_path / "data.jsonl"
    for seed in range(300):
        rng = random.Random(seed)
        content = bytearray(rng.choice((lines, json.dumps(COCO))).encode())
        for _ in range(rng.choice((1, 2, 8))):
            at = rng.randrange(len(content))
            content[at : at + rng.choice((0, 1, 9))] = rng.choice(
                (b"", b'"', b"[", b"\xff", b"1e9")
            )
        path.write_bytes(content)
        try:
            read_json(str(path))
        except ValueError as error:
            assert "data.jsonl" in str(error), seed


DECISIONS = [
    b"7",
    b"[]",
    b'"accept"',
    b'{"uid": "a", "caption": "b"}',
    b'{"uid": "a", "caption": "b", "verdict": ["accept"]}',
    b'{"uid": "a", "caption": "b", "verdict": "fix"}',
    b'{"uid": "a", "caption": "b", "verdict": "fix", "fixed": "\\ud800"}',
    b'{"uid": "a", "caption": "\\ud800", "verdict": "accept"}',
    b'{"uid": "a", "caption": "caf\xe9", "verdict": "accept"}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("line", DECISIONS, ids=range(len(DECISIONS)))
def test_a_decision_that_is_none_names_its_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "reviews.jsonl"
    path.write_bytes(b'{"uid": "a", "caption": "b", "verdict": "accept"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=r"reviews\.jsonl:2: not a decision"):
        read_decisions(str(path))
