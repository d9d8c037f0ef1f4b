from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.blips import SIDE, WORDS, config_of, drawn, loaded, pixels, random_model, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer, BlipForImageTextRetrieval

from models.image.decode import Preprocess
from models.inference.matcher import Match, Matcher
from pipeline.demo.web import photograph
from pipeline.demo.world import describe, sample_scene

MINIATURE = Path(__file__).resolve().parents[3] / "pipeline/demo/miniature/matcher"
IMAGES = [drawn(seed) for seed in range(6)]


@pytest.fixture(scope="module")
def matcher(tmp_path_factory: pytest.TempPathFactory) -> Matcher:
    return loaded(Matcher, tmp_path_factory.mktemp("matcher"))


TEXTS = [
    ["a red dog on the house", "two cats"],
    [],
    ["birds", "a big green tree in the picture and two small dogs on the blue house " * 3, ""],
    ["the cat"],
]


def stock_scores(matcher: Matcher, image: bytes, text: str) -> tuple[torch.Tensor, float]:
    """ITM logits with [ENC] in the first place, and the ITC cosine, by the stock forward."""
    encoded = matcher.tokenizer([text], return_tensors="pt", truncation=True, max_length=35)
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    cosine = matcher.model(ids, pixels([image]), use_itm_head=False, attention_mask=mask)
    ids = ids.clone()
    ids[:, 0] = matcher.tokenizer.convert_tokens_to_ids("[ENC]")
    logits = matcher.model(ids, pixels([image]), attention_mask=mask).itm_score
    return logits[0], float(cosine.itm_score)


def test_scores_equal_the_stock_forward_with_enc_in_place(matcher: Matcher) -> None:
    scores = matcher.score(IMAGES[:4], TEXTS)
    assert [len(some) for some in scores] == [2, 0, 3, 1]
    for image, texts, found in zip(IMAGES, TEXTS, scores, strict=False):
        for text, match in zip(texts, found, strict=True):
            logits, cosine = stock_scores(matcher, image, text)
            ours = np.log(match.itm) - np.log1p(-match.itm)
            assert ours == pytest.approx(float(logits[1] - logits[0]), rel=1e-4, abs=1e-4)
            assert match.itc == pytest.approx(cosine, abs=1e-5)
    flat = [match.itm for some in scores for match in some]
    assert max(flat) - min(flat) > 0.01


def test_the_first_token_matters(matcher: Matcher) -> None:
    """Guards the test above: with [CLS] the stock forward says something else."""
    ids = matcher.tokenizer(["a red dog"], return_tensors="pt")["input_ids"]
    plain = matcher.model(ids, pixels(IMAGES[:1])).itm_score[0]
    logits, _ = stock_scores(matcher, IMAGES[0], "a red dog")
    assert (plain - logits).abs().max() > 1e-2


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_scores_do_not_depend_on_the_batch_or_the_other_texts(
    matcher: Matcher, data: st.DataObject
) -> None:
    text = st.lists(st.sampled_from(WORDS.split()), max_size=40).map(" ".join)
    texts = data.draw(st.lists(st.lists(text, max_size=4), min_size=1, max_size=6))
    images = IMAGES[: len(texts)]
    together = matcher.score(images, texts, batch_size=data.draw(st.integers(1, 6)))
    for image, some, found in zip(images, texts, together, strict=True):
        for one, match in zip(some, found, strict=True):
            assert matcher.score([image], [[one]])[0][0] == pytest.approx(tuple(match), abs=1e-5)


def test_an_image_that_does_not_open_gets_no_scores(matcher: Matcher) -> None:
    assert matcher.score([b"junk"], [["a dog"]]) == [[]]
    scores = matcher.score([b"junk", IMAGES[0]], [["a dog"], ["a dog", "a cat"]])
    assert scores[0] == [] and [type(match) for match in scores[1]] == [Match, Match]


def test_scores_need_the_texts_of_each_image(matcher: Matcher) -> None:
    with pytest.raises(ValueError, match="texts"):
        matcher.score(IMAGES[:2], [["a dog"]])


def test_bfloat16_on_a_cpu_gives_nearly_the_scores_of_float32() -> None:
    tokenizer = tokenizer_of(WORDS.split())
    model = random_model(BlipForImageTextRetrieval, config_of(tokenizer), spread=1.0)
    exact = Matcher(model, tokenizer, Preprocess(size=SIDE)).score(IMAGES[:4], TEXTS)
    rough = Matcher(model.bfloat16(), tokenizer, Preprocess(size=SIDE)).score(IMAGES[:4], TEXTS)
    for some, found in zip(exact, rough, strict=True):
        for ours, theirs in zip(some, found, strict=True):
            assert tuple(ours) == pytest.approx(tuple(theirs), abs=0.03)


def test_what_the_filter_accepts_with_enc_and_without() -> None:
    """Of matched and of swapped pairs of the drawn world, by what stands in the first place."""
    matcher = Matcher.from_pretrained(str(MINIATURE), dtype="float32")
    rng = random.Random(0)
    scenes = [sample_scene(rng) for _ in range(150)]
    images = [photograph(scene, rng) for scene in scenes]
    texts = [describe(scene, rng) for scene in scenes]
    pairs = [list(pair) for pair in zip(texts, texts[1:] + texts[:1], strict=True)]

    def scores() -> Any:
        return np.array([[match.itm for match in some] for some in matcher.score(images, pairs)])

    assert matcher.encode == matcher.tokenizer.convert_tokens_to_ids("[ENC]")
    with_enc = scores()
    matcher.encode = matcher.tokenizer.cls_token_id  # as stock transformers leaves it
    without = scores()
    assert not np.allclose(with_enc, without, atol=1e-5)
    for found in (with_enc, without):
        matched, swapped = (found >= 0.5).mean(0)
        assert matched > 0.85 and swapped < 0.02


def test_a_tokenizer_without_blips_tokens_falls_back_to_the_config(matcher: Matcher) -> None:
    full = matcher.tokenizer
    plain = BertTokenizer(vocab={w: i for w, i in full.get_vocab().items() if i < len(full) - 2})
    bare = Matcher(matcher.model, plain, matcher.preprocess)
    assert bare.encode == len(full) - 1
    assert bare.score(IMAGES[:4], TEXTS) == matcher.score(IMAGES[:4], TEXTS)
