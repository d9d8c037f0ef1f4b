import random
from itertools import islice
from pathlib import Path

import pytest
import spacy
from spacy.language import Language
from transformers import BertTokenizer

from pipeline.demo.language import gold, sample_phrases, train_language
from pipeline.demo.tokenizer import write_tokenizer
from pipeline.demo.world import PLURALS, describe, sample_scene, tell, vocabulary


@pytest.fixture(scope="module")
def nlp(tmp_path_factory: pytest.TempPathFactory) -> Language:
    folder = tmp_path_factory.mktemp("language")
    train_language(folder, seed=0, num_sentences=1200)
    return spacy.load(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BertTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return BertTokenizer.from_pretrained(folder, local_files_only=True)


def test_the_gold_parse_gives_the_phrase_of_each_thing() -> None:
    nlp = spacy.blank("en")
    things = {*PLURALS, *PLURALS.values()}
    for seed in range(1000):
        rng = random.Random(seed)
        text = tell(sample_scene(rng), rng)
        named = [w for w in text.words if w in things]
        chunks = [chunk.text.split() for chunk in gold(nlp, text).noun_chunks]
        found = [chunk for chunk in chunks if chunk[-1] in things]
        assert [chunk[-1] for chunk in found] == named
        assert {chunk[0] for chunk in found} <= {"a", "an", "two", "three"}


def test_noun_chunks_of_unseen_captions_are_right(nlp: Language) -> None:
    rng = random.Random(12345)
    right = wrong = missed = 0
    for _ in range(300):
        text = tell(sample_scene(rng), rng)
        true = {(chunk.start, chunk.end) for chunk in gold(nlp, text).noun_chunks}
        found = {(chunk.start, chunk.end) for chunk in nlp(text.text).noun_chunks}
        right += len(true & found)
        wrong += len(found - true)
        missed += len(true - found)
    assert right / (right + wrong) >= 0.98
    assert right / (right + missed) >= 0.98


@pytest.mark.parametrize(
    ("text", "chunks"),
    [
        (
            "a small red ball to the left of a big blue star on a green field",
            ["a small red ball", "the left", "a big blue star", "a green field"],
        ),
        ("two yellow fish in the dark sky", ["two yellow fish", "the dark sky"]),
        ("Photo: An Orange House At Night", ["Photo", "An Orange House", "Night"]),
        (
            "three huge kites and a heart | Stock Photo",
            ["three huge kites", "a heart", "Stock Photo"],
        ),
        ("A man in a blue shirt sitting on a bench", ["A man", "a blue shirt", "a bench"]),
    ],
)
def test_noun_chunks_are_those_of_a_reader(nlp: Language, text: str, chunks: list[str]) -> None:
    assert [chunk.text for chunk in nlp(text).noun_chunks] == chunks


@pytest.mark.parametrize(
    "text", ["", "   ", "IMG_4032.JPG", "!!!! $$$", "\u96ea\u306e\u4e2d", "a\n\nb"]
)
def test_noise_is_parsed_without_error(nlp: Language, text: str) -> None:
    assert all(token.pos_ for token in nlp(text) if not token.is_space)
    list(nlp(text).noun_chunks)


def test_the_same_seed_gives_the_same_pipeline(tmp_path: Path) -> None:
    for name in "ab":
        train_language(tmp_path / name, num_sentences=40)
    a, b = (spacy.load(tmp_path / name).to_bytes() for name in "ab")
    assert a == b


def test_phrases_are_tokenized_as_they_were_written(nlp: Language) -> None:
    for text in islice(sample_phrases(random.Random(5)), 300):
        assert [token.text for token in nlp.tokenizer(text.text)] == list(text.words)


def test_the_tokenizer_ends_with_the_tokens_of_blip(tokenizer: BertTokenizer) -> None:
    last = len(tokenizer) - 1
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("[DEC]", last - 1)
    assert tokenizer.convert_tokens_to_ids("[ENC]") == last
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.convert_tokens_to_ids(special) == [0, 1, 2, 3, 4]


def test_every_word_of_the_world_is_one_token(tokenizer: BertTokenizer) -> None:
    assert all(tokenizer.tokenize(w) == [w] for w in vocabulary())


def test_captions_come_back_from_their_tokens(tokenizer: BertTokenizer) -> None:
    rng = random.Random(0)
    for _ in range(100):
        caption = describe(sample_scene(rng), rng)
        ids = tokenizer(caption).input_ids
        assert ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == caption


def test_any_ascii_text_can_be_spelt(tokenizer: BertTokenizer) -> None:
    printable = "".join(map(chr, range(32, 127)))
    assert "[UNK]" not in tokenizer.tokenize(printable + " Quick brown fox's 42% {deal}")
