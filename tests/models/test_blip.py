from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blips import SIDE, WORDS, config_of, drawn, random_model, save, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers import (
    BertTokenizer,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
)

from models.blip import Captioner, Match, Matcher, _attention, uniforms
from models.images import Preprocess

BERT = Path(__file__).resolve().parents[2] / "../shared/data/bert/vocab.txt"
IMAGES = [drawn(seed) for seed in range(30)]


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Captioner:
    folder = tmp_path_factory.mktemp("captioner")
    tokenizer = tokenizer_of(WORDS.split())
    return Captioner.from_pretrained(save(folder, BlipForConditionalGeneration, tokenizer))


@pytest.fixture(scope="module")
def matcher(tmp_path_factory: pytest.TempPathFactory) -> Matcher:
    folder = tmp_path_factory.mktemp("matcher")
    tokenizer = tokenizer_of(WORDS.split())
    return Matcher.from_pretrained(save(folder, BlipForImageTextRetrieval, tokenizer))


def pixels(images: list[bytes]) -> torch.Tensor:
    return Preprocess(size=SIDE)(images)


def stock_tokens(
    captioner: Captioner, images: list[bytes], prompt: str = "a picture of ", **options: Any
) -> torch.Tensor:
    ids = captioner.tokenizer([prompt] * len(images), return_tensors="pt")["input_ids"]
    found: torch.Tensor = captioner.model.generate(pixels(images), ids, do_sample=False, **options)
    return found


def stock_captions(captioner: Captioner, images: list[bytes], **options: Any) -> list[str]:
    """The model card's way: tokenise the prompt, generate, decode, cut the prompt off."""
    prompt = options.pop("prompt", "a picture of ")
    found = stock_tokens(captioner, images, prompt, **options)
    texts = captioner.tokenizer.batch_decode(found, skip_special_tokens=True)
    return [text[len(prompt) :].strip() for text in texts]


def first(captions: list[list[str]]) -> list[str]:
    return [some[0] for some in captions]


def test_features_equal_the_stock_vision_transformer(captioner: Captioner) -> None:
    squares = torch.from_numpy(np.stack([captioner.preprocess.square(i) for i in IMAGES[:5]]))
    ours = captioner._see(squares)
    stock = captioner.model.vision_model(pixels(IMAGES[:5])).last_hidden_state
    torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("penalty", [1.0, 1.5])
@pytest.mark.parametrize(("shortest", "longest"), [(5, 20), (12, 30), (1, 6)])
def test_greedy_captions_equal_generate(
    captioner: Captioner, penalty: float, shortest: int, longest: int
) -> None:
    ours = captioner.caption(
        IMAGES,
        [0] * len(IMAGES),
        decoding="greedy",
        repetition_penalty=penalty,
        min_length=shortest,
        max_length=longest,
    )
    stock = stock_captions(
        captioner,
        IMAGES,
        repetition_penalty=penalty,
        min_length=shortest,
        max_length=longest,
    )
    assert first(ours) == stock
    assert len(set(stock)) > 5


@pytest.mark.parametrize("penalty", [1.0, 1.2])
@pytest.mark.parametrize("num_beams", [2, 3, 5])
def test_beam_captions_equal_generate(captioner: Captioner, num_beams: int, penalty: float) -> None:
    ours = captioner.caption(
        IMAGES,
        [0] * len(IMAGES),
        decoding="beam",
        num_beams=num_beams,
        num_captions=2,
        repetition_penalty=penalty,
        batch_size=7,
    )
    stock = stock_captions(
        captioner,
        IMAGES,
        num_beams=num_beams,
        num_return_sequences=2,
        repetition_penalty=penalty,
        min_length=5,
        max_length=20,
    )
    assert [caption for some in ours for caption in some] == stock
    assert len(set(stock)) > 10


def test_captions_end_at_sep_and_at_the_longest(captioner: Captioner) -> None:
    captions = captioner.caption(IMAGES, range(30), num_captions=4)
    lengths = [len(captioner.tokenizer.tokenize(text)) for some in captions for text in some]
    assert max(lengths) <= 16 and min(lengths) < 16
    assert not any(
        "[" in text or text.startswith("picture of") for some in captions for text in some
    )


def test_the_text_is_what_stands_before_sep_without_blips_own_tokens() -> None:
    tokenizer = tokenizer_of(["cat", "##s", "run"])
    model = random_model(BlipForConditionalGeneration, config_of(tokenizer))
    captioner = Captioner(model, tokenizer, Preprocess(size=SIDE))
    ids = tokenizer.convert_tokens_to_ids
    assert captioner._text(ids(["cat", "##s", "run", "[SEP]", "cat", "[PAD]"])) == "cats run"
    assert captioner._text(ids(["##s", "[ENC]", "run", "[DEC]", "[CLS]"])) == "s run"
    assert captioner._text(ids(["[SEP]", "run"])) == ""


def test_an_empty_prompt_and_none_are_alike_and_equal_generate(captioner: Captioner) -> None:
    for prompt in ("", None):
        ours = captioner.caption(IMAGES, [0] * 30, decoding="greedy", prompt=prompt)
        assert first(ours) == stock_captions(
            captioner, IMAGES, prompt="", min_length=5, max_length=20
        )


@pytest.mark.parametrize("decoding", ["nucleus", "beam", "greedy"])
def test_captions_do_not_depend_on_the_batch(captioner: Captioner, decoding: Any) -> None:
    seeds = [seed * 7919 for seed in range(30)]
    options = {"decoding": decoding, "num_captions": 1 if decoding == "greedy" else 3}
    whole = captioner.caption(IMAGES, seeds, batch_size=30, **options)
    for batch_size in (1, 4, 13):
        assert captioner.caption(IMAGES, seeds, batch_size=batch_size, **options) == whole
    order = np.random.default_rng(1).permutation(30).tolist()
    shuffled = captioner.caption([IMAGES[i] for i in order], [seeds[i] for i in order], **options)
    assert shuffled == [whole[i] for i in order]


def test_more_captions_begin_with_the_same_ones(captioner: Captioner) -> None:
    few = captioner.caption(IMAGES[:8], range(8), num_captions=2)
    many = captioner.caption(IMAGES[:8], range(8), num_captions=5)
    assert [some[:2] for some in many] == few
    assert any(len(set(some)) > 1 for some in many)


def test_another_seed_samples_other_captions(captioner: Captioner) -> None:
    assert captioner.caption(IMAGES, range(30)) != captioner.caption(IMAGES, range(30, 60))


def exact_nucleus(logits: np.ndarray[Any, Any], top_p: float, top_k: int) -> dict[int, float]:
    """By the definition: the likeliest tokens until their mass reaches p, scaled to one."""
    chances = np.exp(logits - logits.max()).astype(np.float64)
    order = np.argsort(-chances)[: top_k or None]
    chances = chances[order] / chances[order].sum()
    count = int(np.searchsorted(np.cumsum(chances), top_p)) + 1
    return dict(zip(order[:count].tolist(), chances[:count] / chances[:count].sum(), strict=True))


@pytest.mark.parametrize(("top_p", "top_k"), [(0.9, 0), (0.5, 0), (0.9, 3), (1.0, 0), (1.0, 4)])
def test_samples_follow_the_exact_nucleus(captioner: Captioner, top_p: float, top_k: int) -> None:
    num_captions = 4000
    flat = random_model(BlipForConditionalGeneration, captioner.model.config, spread=1.0)
    captioner = Captioner(flat, captioner.tokenizer, captioner.preprocess)
    prompt = captioner.tokenizer(["a picture of"], return_tensors="pt")["input_ids"][:, :-1]
    prompt[:, 0] = captioner.tokenizer.bos_token_id
    logits = captioner.model(pixels(IMAGES[:1]), prompt).logits[0, -1].numpy()
    expected = exact_nucleus(logits, top_p, top_k)
    [captions] = captioner.caption(
        IMAGES[:1],
        [3],
        num_captions=num_captions,
        top_p=top_p,
        top_k=top_k,
        max_length=5,
        min_length=0,
    )
    words = [captioner._text([i]) for i in expected]
    assert set(captions) <= set(words)
    by_word = {word: 0.0 for word in words}  # special tokens all read as nothing
    for word, share in zip(words, expected.values(), strict=True):
        by_word[word] += share
    if len(by_word) > 1:
        counts = [captions.count(word) for word in by_word]
        shares = np.array(list(by_word.values())) * num_captions
        assert stats.chisquare(counts, shares).pvalue > 1e-4
    assert len(expected) > 1


def test_a_tiny_nucleus_is_greedy(captioner: Captioner) -> None:
    sampled = captioner.caption(IMAGES, range(30), top_p=1e-6)
    assert sampled == captioner.caption(IMAGES, range(30), decoding="greedy")


@given(st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=4), st.integers(1, 3))
def test_the_random_numbers_of_a_row_are_its_own(seeds: list[int], num_captions: int) -> None:
    together = uniforms(seeds, num_captions, 5)
    assert together.shape == (len(seeds), num_captions, 5)
    assert (together >= 0).all() and (together < 1).all()
    for i, seed in enumerate(seeds):
        np.testing.assert_array_equal(uniforms([seed], 7, 9)[0, :num_captions, :5], together[i])


def test_the_random_numbers_are_uniform_and_uncorrelated() -> None:
    numbers = uniforms(range(200), 10, 16)
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-3
    for axis in range(3):
        moved = np.roll(numbers, 1, axis)
        assert abs(np.corrcoef(numbers.ravel(), moved.ravel())[0, 1]) < 0.03


def test_an_image_that_does_not_open_gets_no_caption_and_disturbs_no_other(
    captioner: Captioner,
) -> None:
    images = [b"junk", IMAGES[0], b"", IMAGES[1]]
    captions = captioner.caption(images, [9, 0, 9, 1], batch_size=2)
    assert captions == [
        [],
        *captioner.caption(IMAGES[:1], [0]),
        [],
        *captioner.caption(IMAGES[1:2], [1]),
    ]
    assert captioner.caption([b"junk"], [0]) == [[]]
    assert captioner.caption([], []) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_captions": 2, "decoding": "greedy"}, "num_captions"),
        ({"num_captions": 4, "decoding": "beam"}, "num_captions"),
        ({"num_captions": 0}, "num_captions"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"max_length": 4}, "max_length"),
        ({"max_length": 65}, "max_length"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_impossible_arguments_are_refused(
    captioner: Captioner, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        captioner.caption(IMAGES[:1], [0], **wrong)


class CrampedCaptioner(Captioner):
    """A captioner on a device that has room for three images."""

    def _see(self, squares: torch.Tensor) -> torch.Tensor:
        if len(squares) > 3:
            raise torch.OutOfMemoryError("no room")
        return super()._see(squares)


class FullMatcher(Matcher):
    """A matcher on a device that has room for no image."""

    def _see(self, squares: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("no room")


def test_a_batch_that_does_not_fit_is_halved(captioner: Captioner) -> None:
    cramped = CrampedCaptioner(captioner.model, captioner.tokenizer, captioner.preprocess)
    captions = cramped.caption(IMAGES, range(30), batch_size=16)
    assert captions == captioner.caption(IMAGES, range(30))
    assert cramped._most == 2


def test_one_image_that_does_not_fit_raises(matcher: Matcher) -> None:
    full = FullMatcher(matcher.model, matcher.tokenizer, matcher.preprocess)
    with pytest.raises(torch.OutOfMemoryError):
        full.score(IMAGES[:2], [["a dog"], ["a cat"]])


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


def test_a_checkpoint_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(WORDS.split())
    folder = save(tmp_path, BlipForImageTextRetrieval, tokenizer)
    with pytest.raises(ValueError, match="not a BlipForConditionalGeneration"):
        Captioner.from_pretrained(folder)


def test_preprocessing_of_another_size_is_refused(captioner: Captioner) -> None:
    with pytest.raises(ValueError, match="24 pixels"):
        Captioner(captioner.model, captioner.tokenizer, Preprocess(size=24))


def test_a_tokenizer_without_blips_tokens_falls_back_to_the_config(tmp_path: Path) -> None:
    full, bare = tokenizer_of(WORDS.split()), tokenizer_of(WORDS.split())
    for name, architecture in (
        ("c", BlipForConditionalGeneration),
        ("f", BlipForImageTextRetrieval),
    ):
        save(tmp_path / name, architecture, full)
    plain = BertTokenizer(vocab={w: i for w, i in full.get_vocab().items() if i < len(full) - 2})
    assert len(plain) == len(bare) - 2
    captioner = Captioner.from_pretrained(str(tmp_path / "c"))
    expected = captioner.caption(IMAGES, range(30))
    captioner = Captioner(captioner.model, plain, captioner.preprocess)
    assert captioner.begin == len(full) - 2
    assert captioner.caption(IMAGES, range(30)) == expected
    matcher = Matcher.from_pretrained(str(tmp_path / "f"))
    expected_scores = matcher.score(IMAGES[:4], TEXTS)
    assert Matcher(matcher.model, plain, matcher.preprocess).encode == len(full) - 1
    assert Matcher(matcher.model, plain, matcher.preprocess).score(IMAGES[:4], TEXTS) == (
        expected_scores
    )


@pytest.mark.parametrize("causal", [False, True])
def test_attention_in_parts_is_the_fused_attention(causal: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    heads = torch.randn(3, 2, 4, 5, 16, generator=generator).unbind(0)
    mask = None if causal else torch.rand(2, 1, 1, 5, generator=generator) < 0.7
    fused = _attention(*heads, mask, causal)
    parts = _attention(*(part.double() for part in heads), mask, causal)
    torch.testing.assert_close(fused, parts.float(), rtol=1e-5, atol=1e-5)


def test_bfloat16_on_a_cpu_gives_nearly_the_scores_of_float32() -> None:
    tokenizer = tokenizer_of(WORDS.split())
    model = random_model(BlipForImageTextRetrieval, config_of(tokenizer), spread=1.0)
    exact = Matcher(model, tokenizer, Preprocess(size=SIDE)).score(IMAGES[:4], TEXTS)
    rough = Matcher(model.bfloat16(), tokenizer, Preprocess(size=SIDE)).score(IMAGES[:4], TEXTS)
    for some, found in zip(exact, rough, strict=True):
        for ours, theirs in zip(some, found, strict=True):
            assert tuple(ours) == pytest.approx(tuple(theirs), abs=0.03)


@pytest.mark.skipif(not BERT.is_file(), reason="BERT's vocabulary of ../shared is not here")
def test_blips_own_vocabulary_has_blips_own_tokens(tmp_path: Path) -> None:
    words = BERT.read_text(encoding="utf-8").splitlines()
    plain = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    config = config_of(plain)
    config.text_config.vocab_size = 30524
    config.text_config.bos_token_id = 30522
    for name, architecture in (
        ("c", BlipForConditionalGeneration),
        ("f", BlipForImageTextRetrieval),
    ):
        random_model(architecture, config).save_pretrained(tmp_path / name)
        plain.save_pretrained(tmp_path / name)
    captioner = Captioner.from_pretrained(str(tmp_path / "c"))
    assert (captioner.begin, captioner.end) == (30522, 102)
    ours = captioner.caption(IMAGES[:6], [0] * 6, decoding="greedy")
    stock = stock_tokens(captioner, IMAGES[:6], min_length=5, max_length=20)
    assert first(ours) == [captioner._text(ids) for ids in stock[:, 4:].tolist()]
    matcher = Matcher.from_pretrained(str(tmp_path / "f"))
    assert matcher.encode == 30523
    assert len(matcher.score(IMAGES[:1], [["A zebra, un-tokenised: 日本 \U0001f600"]])[0]) == 1
