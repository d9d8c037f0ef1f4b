from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.blips import (
    SIDE,
    WORDS,
    config_of,
    drawn,
    loaded,
    pixels,
    random_model,
    save,
    tokenizer_of,
)
from scipy import stats
from transformers import BertTokenizer, BlipForConditionalGeneration, BlipForImageTextRetrieval

from models.image.decode import Preprocess
from models.inference.captioner import Captioner, _Reader
from models.inference.decoding import Caption, Settings

BERT = Path(__file__).resolve().parents[3] / "../shared/data/bert/vocab.txt"
IMAGES = [drawn(seed) for seed in range(30)]


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Captioner:
    return loaded(Captioner, tmp_path_factory.mktemp("captioner"))


def written(
    captioner: Captioner,
    images: list[bytes],
    seeds: Any = None,
    prompt: str | None = "a picture of ",
    batch_size: int | None = None,
    **settings: Any,
) -> list[list[str]]:
    seeds = [0] * len(images) if seeds is None else seeds
    captions = captioner.caption(
        images, seeds, Settings(**settings), prompt=prompt, batch_size=batch_size
    )
    return [[caption.text for caption in some] for some in captions]


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
    ours = captioner.see(squares)  # in two parts
    stock = captioner.model.vision_model(pixels(IMAGES[:5])).last_hidden_state
    assert float((ours - stock).norm() / stock.norm()) < 1e-5


@torch.inference_mode()
def test_the_logits_of_every_step_equal_the_stock_decoders(captioner: Captioner) -> None:
    features = captioner.model.vision_model(pixels(IMAGES[:3])).last_hidden_state
    reader = _Reader(captioner.model.text_decoder, features, max_length=12)
    tokens = torch.randint(5, 20, (3, 2, 12), generator=torch.Generator().manual_seed(0))
    tokens[:, :, :4] = tokens[0, 0, :4]
    ours = [reader.prompt(tokens[0, 0, :4], 2)]
    ours += [reader.step(tokens[:, :, place]) for place in range(4, 12)]
    stock = captioner.model.text_decoder(
        tokens.flatten(0, 1), encoder_hidden_states=features.repeat_interleave(2, 0)
    ).logits.unflatten(0, (3, 2))
    apart = torch.stack(ours, 2) - stock[:, :, 3:]
    assert float(apart.norm() / stock.norm()) < 1e-5
    turned = torch.tensor([[1, 0]] * 3)
    reader.follow(turned)
    reader.position -= 1  # the last token once more, by the other caption
    again = reader.step(tokens[:, :, 11].gather(1, turned))
    torch.testing.assert_close(again, stock[:, :, -1].flip(1), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_reader_serves_a_smaller_batch_of_other_images(captioner: Captioner) -> None:
    seen = captioner.model.vision_model(pixels(IMAGES[:7])).last_hidden_state
    prompt = torch.tensor([captioner.begin, 7])
    reader = _Reader(captioner.model.text_decoder, seen[:4], max_length=9)
    reader.prompt(prompt, 2)
    reader.step(torch.full((4, 2), 9))
    assert reader.serves(3, 9) and not reader.serves(5, 9)
    assert not reader.serves(2, 9) and not reader.serves(4, 8)
    reader.memory.replace(seen[4:])
    fresh = _Reader(captioner.model.text_decoder, seen[4:], max_length=9)
    torch.testing.assert_close(reader.prompt(prompt, 2)[:3], fresh.prompt(prompt, 2))
    token = torch.full((4, 2), 8)
    torch.testing.assert_close(reader.step(token)[:3], fresh.step(token[:3]))


@pytest.mark.parametrize("decoding", ["nucleus", "beam", "greedy"])
def test_a_kept_reader_writes_what_a_new_one_writes(captioner: Captioner, decoding: Any) -> None:
    """As on CUDA, where the last batch of a shard is smaller than the others."""

    class Keeping(Captioner):
        def _reader_of(self, features: torch.Tensor, max_length: int) -> _Reader:
            self._reader = super()._reader_of(features, max_length)
            return self._reader

    keeping = Keeping(captioner.model, captioner.tokenizer, captioner.preprocess)
    options = {"decoding": decoding, "num_captions": 1 if decoding == "greedy" else 2}
    ours = written(keeping, IMAGES[:11], range(11), batch_size=4, **options)
    assert ours == written(captioner, IMAGES[:11], range(11), **options)
    assert keeping._reader is not None and keeping._reader.memory.num_images == 4


def many_images() -> list[bytes]:
    return [drawn(seed) for seed in range(200)]


@pytest.mark.parametrize(
    ("penalty", "shortest", "longest"), [(1.0, 5, 20), (1.0, 12, 30), (1.5, 1, 6)]
)
def test_greedy_captions_equal_generate(
    captioner: Captioner, penalty: float, shortest: int, longest: int
) -> None:
    options = {"repetition_penalty": penalty, "min_length": shortest, "max_length": longest}
    images = many_images()
    ours = written(captioner, images, decoding="greedy", batch_size=200, **options)
    stock = stock_captions(captioner, images, **options)
    assert first(ours) == stock
    assert len(set(stock)) > 20


@pytest.mark.parametrize(("num_beams", "penalty"), [(3, 1.0), (5, 1.2)])
def test_beam_captions_equal_generate(captioner: Captioner, num_beams: int, penalty: float) -> None:
    images = many_images()
    options = {"num_beams": num_beams, "repetition_penalty": penalty}
    # In float32 two beams may tie, and which is first then changes with the batch and the CPU.
    exact = Captioner(
        copy.deepcopy(captioner.model).double(), captioner.tokenizer, captioner.preprocess
    )
    ours = written(exact, images, decoding="beam", num_captions=2, batch_size=200, **options)
    stock = stock_captions(
        exact, images, num_return_sequences=2, min_length=5, max_length=20, **options
    )
    assert [caption for some in ours for caption in some] == stock
    assert len(set(stock)) > 40


def test_captions_end_at_sep_and_at_the_longest(captioner: Captioner) -> None:
    captions = captioner.caption(IMAGES, range(30), Settings(num_captions=4))
    flat = [caption for some in captions for caption in some]
    lengths = [len(captioner.tokenizer.tokenize(caption.text)) for caption in flat]
    assert max(lengths) <= 16 and min(lengths) < 16
    assert not any("[" in text or text.startswith("picture of") for text, *_ in flat)
    assert {caption.truncated for caption in flat} == {False, True}


def test_the_text_is_what_stands_before_sep_without_blips_own_tokens() -> None:
    tokenizer = tokenizer_of(["cat", "##s", "run"])
    model = random_model(BlipForConditionalGeneration, config_of(tokenizer))
    captioner = Captioner(model, tokenizer, Preprocess(size=SIDE))

    def caption(*tokens: str) -> Caption:
        return captioner._caption(tokenizer.convert_tokens_to_ids(list(tokens)))

    assert caption("cat", "##s", "run", "[SEP]", "cat", "[PAD]") == Caption("cats run", False)
    assert caption("##s", "[ENC]", "run", "[DEC]", "[CLS]") == Caption("s run", True)
    assert caption("[SEP]", "run") == Caption("", False)


def test_an_empty_prompt_and_none_are_alike_and_equal_generate(captioner: Captioner) -> None:
    for prompt in ("", None):
        ours = written(captioner, IMAGES, decoding="greedy", prompt=prompt)
        assert first(ours) == stock_captions(
            captioner, IMAGES, prompt="", min_length=5, max_length=20
        )


@pytest.mark.parametrize("decoding", ["nucleus", "beam", "greedy"])
def test_captions_do_not_depend_on_the_batch(captioner: Captioner, decoding: Any) -> None:
    seeds = [seed * 7919 for seed in range(30)]
    options = {"decoding": decoding, "num_captions": 1 if decoding == "greedy" else 3}
    whole = written(captioner, IMAGES, seeds, batch_size=30, **options)
    for batch_size in (1, 4, 13):
        assert written(captioner, IMAGES, seeds, batch_size=batch_size, **options) == whole
    order = np.random.default_rng(1).permutation(30).tolist()
    shuffled = written(captioner, [IMAGES[i] for i in order], [seeds[i] for i in order], **options)
    assert shuffled == [whole[i] for i in order]


def test_more_captions_begin_with_the_same_ones(captioner: Captioner) -> None:
    few = written(captioner, IMAGES[:8], range(8), num_captions=2)
    many = written(captioner, IMAGES[:8], range(8), num_captions=5)
    assert [some[:2] for some in many] == few
    assert any(len(set(some)) > 1 for some in many)


def test_another_seed_samples_other_captions(captioner: Captioner) -> None:
    assert written(captioner, IMAGES, range(30)) != written(captioner, IMAGES, range(30, 60))


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
    [captions] = written(
        captioner,
        IMAGES[:1],
        [3],
        num_captions=num_captions,
        top_p=top_p,
        top_k=top_k,
        max_length=5,
        min_length=0,
    )
    words = [captioner._caption([i]).text for i in expected]
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
    sampled = written(captioner, IMAGES, range(30), top_p=1e-6)
    assert sampled == written(captioner, IMAGES, decoding="greedy")


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


@pytest.mark.parametrize("max_length", [4, 65])
def test_lengths_that_leave_no_room_are_refused(captioner: Captioner, max_length: int) -> None:
    with pytest.raises(ValueError, match="max_length includes the 4 tokens"):
        captioner.caption(IMAGES[:1], [0], Settings(max_length=max_length))


def test_each_image_needs_a_seed(captioner: Captioner) -> None:
    with pytest.raises(ValueError, match="one seed"):
        captioner.caption(IMAGES[:2], [0])


def test_a_model_is_saved_as_stock_transformers_loads_it(
    captioner: Captioner, tmp_path: Path
) -> None:
    captioner.caption(IMAGES[:2], [0, 1])
    captioner.model.save_pretrained(tmp_path)
    stock, info = BlipForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, weights in stock.state_dict().items():
        torch.testing.assert_close(weights, captioner.model.state_dict()[name], rtol=0, atol=0)


def test_a_checkpoint_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, BlipForImageTextRetrieval, tokenizer_of(WORDS.split()))
    with pytest.raises(ValueError, match="not a BlipForConditionalGeneration"):
        Captioner.from_pretrained(folder)


def test_preprocessing_of_another_size_is_refused(captioner: Captioner) -> None:
    with pytest.raises(ValueError, match="24 pixels"):
        Captioner(captioner.model, captioner.tokenizer, Preprocess(size=24))


def test_a_tokenizer_without_blips_tokens_falls_back_to_the_config(captioner: Captioner) -> None:
    full = captioner.tokenizer
    plain = BertTokenizer(vocab={w: i for w, i in full.get_vocab().items() if i < len(full) - 2})
    bare = Captioner(captioner.model, plain, captioner.preprocess)
    assert bare.begin == len(full) - 2
    assert written(bare, IMAGES, range(30)) == written(captioner, IMAGES, range(30))


@pytest.mark.skipif(not BERT.is_file(), reason="BERT's vocabulary of ../shared is not here")
def test_blips_own_vocabulary_has_blips_own_tokens(tmp_path: Path) -> None:
    words = BERT.read_text(encoding="utf-8").splitlines()
    plain = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    config = config_of(plain)
    config.text_config.vocab_size = 30524
    config.text_config.bos_token_id = 30522
    random_model(BlipForConditionalGeneration, config).save_pretrained(tmp_path)
    plain.save_pretrained(tmp_path)
    captioner = Captioner.from_pretrained(str(tmp_path), dtype="float32")
    assert (captioner.begin, captioner.end) == (30522, 102)
    ours = written(captioner, IMAGES[:6], decoding="greedy")
    stock = stock_tokens(captioner, IMAGES[:6], min_length=5, max_length=20)
    assert first(ours) == [captioner._caption(ids).text for ids in stock[:, 4:].tolist()]
