import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blips import WORDS, config_of, drawn, random_model, tokenizer_of
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

from models.images import Preprocess
from models.med import MED
from models.metrics import retrieval_recall, roc_auc
from pipeline.evaluate import evaluate

IMAGES = 6
TEXTS = [
    ["a red dog", "the dog in the house"],
    ["two blue birds", "birds on a tree"],
    ["a small green cat", "the cat"],
    ["a big red house", "a picture of a house"],
    ["a tree in green", "big trees and a bird"],
    ["two dogs and two cats", "small dogs on the red tree"],
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two parts of one random BLIP, as training leaves them."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = tokenizer_of(WORDS.split())
    config = config_of(tokenizer)
    captioner = random_model(BlipForConditionalGeneration, config)
    captioner.config.caption_prompt = ""
    matcher = random_model(BlipForImageTextRetrieval, config)
    MED(captioner=captioner, matcher=matcher, tokenizer=tokenizer).save(folder / "med")
    return folder / "med"


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("test")
    rows = []
    for i, captions in enumerate(TEXTS):
        (folder / f"{i}.png").write_bytes(drawn(i))
        rows.append({"image": f"{i}.png", "captions": captions})
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "test.jsonl")


def stock_scores(folder: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Cosines (images, texts) and ITM logits (images, texts, 2) by stock transformers."""
    model = BlipForImageTextRetrieval.from_pretrained(folder / "matcher").eval()
    med = MED.from_pretrained(folder, parts=("matcher",))
    pixels = Preprocess.from_pretrained(folder / "matcher")([drawn(i) for i in range(IMAGES)])
    tokens = med.tokenize([text for texts in TEXTS for text in texts], 35)
    mask = (tokens != med.pad).long()
    asked = tokens.clone()
    asked[:, 0] = med.enc
    with torch.no_grad():
        cosine = model(tokens, pixels, attention_mask=mask, use_itm_head=False).itm_score
        logits = [
            model(asked, p.expand(len(tokens), -1, -1, -1), attention_mask=mask).itm_score
            for p in pixels[:, None]
        ]
    return cosine.numpy(), torch.stack(logits).numpy()


OWNERS = [i for i, texts in enumerate(TEXTS) for _ in texts]


def test_retrieval_is_that_of_the_stock_model(models: Path, test_set: str) -> None:
    cosine, logits = stock_scores(models)
    found = evaluate(str(models), test_set, top_k=12)["retrieval"]
    assert found["itc"] == pytest.approx(retrieval_recall(cosine, OWNERS), abs=1e-6)
    # With every candidate ranked again the score is logit plus cosine, as in BLIP's code.
    expected = retrieval_recall(logits[..., 1] + cosine, OWNERS)
    assert found["itm"] == pytest.approx(expected, abs=1e-6)


def test_a_pair_outside_the_first_k_of_contrast_is_not_found_by_matching(
    models: Path, test_set: str
) -> None:
    found = evaluate(str(models), test_set, top_k=1)["retrieval"]
    # Only the first candidate has a score, so matching cannot change who is first.
    for name in ("TR@1", "IR@1"):
        assert found["itm"][name] == found["itc"][name] == found["itm"][name.replace("1", "5")]


def test_matching_is_that_of_the_stock_model(models: Path, test_set: str) -> None:
    _, logits = stock_scores(models)
    probability = np.exp(logits[..., 1]) / np.exp(logits).sum(-1)
    found = evaluate(str(models), test_set, seed=3)["matching"]
    own = np.asarray(OWNERS)
    positive = probability[own, np.arange(len(own))]
    assert found["accepted_true"] == pytest.approx((positive >= 0.5).mean(), abs=1e-6)
    # The partners go round all images once, so one of the 120 orders explains the rest.
    assert 0 <= found["roc_auc"] <= 1
    others = [probability[i, own == j] for i in range(IMAGES) for j in range(IMAGES) if i != j]
    bounds = [roc_auc(positive, other) for other in others]
    assert min(bounds) <= found["roc_auc"] <= max(bounds)
    accuracy = (found["accepted_true"] + 1 - found["accepted_false"]) / 2
    assert found["accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_an_evaluation_is_json_and_the_same_twice(models: Path, test_set: str) -> None:
    found = evaluate(str(models), test_set)
    assert found.keys() == {"images", "captions", "retrieval", "matching", "captioning"}
    assert (found["images"], found["captions"]) == (6, 12)
    assert json.loads(json.dumps(found)) == found == evaluate(str(models), test_set)


@pytest.mark.parametrize(
    ("part", "measured"),
    [("captioner", {"captioning"}), ("matcher", {"retrieval", "matching"})],
)
def test_one_part_is_measured_at_what_it_does(
    models: Path, test_set: str, part: str, measured: set[str]
) -> None:
    whole = evaluate(str(models), test_set)
    found = evaluate(str(models / part), test_set)
    assert found.keys() == {"images", "captions"} | measured
    assert all(found[name] == whole[name] for name in measured)


def test_a_set_of_one_image_is_refused(models: Path, tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"image": "a.png", "captions": ["a dog"]}\n')
    with pytest.raises(ValueError, match="two are the least"):
        evaluate(str(models), str(tmp_path / "test.jsonl"))


def test_a_folder_that_is_no_blip_is_refused(test_set: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "blip", "architectures": ["Other"]}')
    with pytest.raises(ValueError, match="neither a BLIP captioner nor a BLIP matcher"):
        evaluate(str(tmp_path), test_set)
