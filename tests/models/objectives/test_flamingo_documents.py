"""Flamingo on interleaved documents: which words are asked for, and which image each looks at."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from helpers.contract import HEART, share_known, small
from helpers.flamingos import make
from helpers.nano import batch_of, step_of

from models.objectives.batch import Documents
from models.objectives.flamingo import EOC
from models.objectives.flamingo_config import OF_DOCUMENTS, FlamingoConfig
from models.objectives.language_tokenizer import IMAGE
from models.objectives.masking import IGNORED
from pipeline.training.optim import make_optimizer

PAGES = [
    f"the house {EOC}{IMAGE}a red dog and {EOC}{IMAGE}two blue birds{EOC}",
    f"{EOC}{IMAGE}a small cat {EOC}",
]


def documents_of(model: Any, texts: list[str] = PAGES, most: int = 24) -> Documents:
    generator = torch.Generator().manual_seed(0)
    places = max(text.count(IMAGE) for text in texts)
    return Documents(
        pixels=torch.randn(len(texts), places, 3, 32, 32, generator=generator),
        tokens=model.tokenize_documents(texts, most),
        image_ids=torch.arange(len(texts)),
    )


def words(model: Any, row: torch.Tensor) -> list[str]:
    """The tokens of a document, those in brackets that the loss leaves out."""
    ids = torch.where(row < 0, ~row, row).tolist()
    said = model.tokenizer.convert_ids_to_tokens(ids)
    return [f"({word})" if id < 0 else word for word, id in zip(said, row.tolist(), strict=True)]


def moved(one: torch.Tensor, two: torch.Tensor) -> list[list[bool]]:
    return ((one - two).abs().amax(-1) > 1e-6).tolist()


def test_words_behind_an_image_are_asked_for_up_to_the_end_of_its_text(tokenizer: str) -> None:
    model = make(tokenizer)
    first = f"the house {IMAGE} a red dog {EOC} the {EOC} {IMAGE} two {EOC}"
    long, short = (words(model, row) for row in model.tokenize_documents([first, PAGES[1]], 24))
    begin, pad = f"({long[0][1:-1]})", f"({model.tokenizer.pad_token})"
    image, end = f"({IMAGE})", f"({EOC})"
    expected = [begin, "(the)", "(house)", image, "a", "red", "dog", EOC, "(the)", end, image]
    assert long == [*expected, "two", EOC]
    assert short == [begin, end, image, "a", "small", "cat", EOC, *[pad] * (len(long) - 7)]


def test_a_document_is_cut_at_its_end_but_keeps_an_image(tokenizer: str) -> None:
    model = make(tokenizer)
    begin = words(model, model.tokenize_documents(PAGES, 24)[0])[0]
    image, end = f"({IMAGE})", f"({EOC})"
    (row,) = model.tokenize_documents(PAGES[:1], 6)
    assert words(model, row) == [begin, "(the)", "(house)", end, image, "a"]
    (row,) = model.tokenize_documents(PAGES[:1], 5)  # the image would stand at the very end
    assert words(model, row) == [begin, image, "a", "red", "dog"]
    model.model.config.max_position_embeddings = 16
    with pytest.raises(ValueError, match=r"max_document_tokens is 24, but the language model"):
        model.tokenize_documents(PAGES, 24)


def test_the_first_loss_is_that_of_a_guess_times_its_weight(tokenizer: str) -> None:
    model = make(tokenizer, pair_weight=0.3, document_weight=2.0)
    with torch.no_grad():
        model.head.weight.zero_()
        model.mark_scores.zero_()
    guess = math.log(len(model.tokenizer))
    both = dataclasses.replace(step_of(), has_documents=True)
    found = model(documents_of(model), both)
    assert found["documents"].item() == pytest.approx(2.0 * guess, rel=1e-5)
    assert model(batch_of(model), both)["lm"].item() == pytest.approx(0.3 * guess, rel=1e-5)
    assert model(batch_of(model), step_of())["lm"].item() == pytest.approx(guess, rel=1e-5)


def test_a_word_looks_at_the_last_image_of_its_document_alone(tokenizer: str) -> None:
    model = make(tokenizer, every=2)  # one block, so that no layer carries an image further
    batch = documents_of(model)
    tokens = torch.where(batch.texts < 0, ~batch.texts, batch.texts)[:, :-1]
    hidden: list[torch.Tensor] = []
    model.blocks[-1].register_forward_hook(lambda *call: hidden.append(call[-1]))
    seen = []
    with torch.no_grad():
        model.read_documents(batch)
        for page, place in ((0, 0), (0, 1), (1, 0), (1, 1)):
            other = batch.pixels.clone()
            other[page, place] += 1.0
            model.read_documents(dataclasses.replace(batch, pixels=other))
            seen.append(moved(hidden[0], hidden[-1]))
    number = (tokens == model.image).cumsum(1).tolist()
    nothing = [[False] * len(row) for row in number]
    first, second, third, black = seen
    assert first == [[n == 1 for n in number[0]], nothing[1]]
    assert second == [[n == 2 for n in number[0]], nothing[1]]
    assert third == [nothing[0], [n == 1 for n in number[1]]]
    assert black == nothing  # behind the last image of a document


def test_a_changed_word_moves_itself_and_those_behind_it_in_its_document(tokenizer: str) -> None:
    model = make(tokenizer)
    batch = documents_of(model)
    changed = batch.texts.clone()
    changed[0, 6] = model.tokenizer.convert_tokens_to_ids("cat")
    with torch.no_grad():
        one, _ = model.read_documents(batch)
        two, _ = model.read_documents(dataclasses.replace(batch, tokens=changed))
    length = one.shape[1]
    assert moved(one, two) == [[i >= 6 for i in range(length)], [False] * length]


def test_documents_without_a_word_to_ask_for_have_no_loss(tokenizer: str) -> None:
    model = make(tokenizer).train()
    loss = model(documents_of(model, [f"a dog {EOC}{IMAGE}"]), step_of())["documents"]
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.trained().values())


def test_sixteen_documents_are_learnt_by_heart(tokenizer: str) -> None:
    config = small(FlamingoConfig, tokenizer, lr=3e-3, weight_decay=0.0)
    torch.manual_seed(0)
    model: Any = config.build().train()
    turned = [*HEART[8:], *HEART[:8]]
    pages = [
        f"the {IMAGE}{one} {EOC}{IMAGE}{two} {EOC}" for one, two in zip(HEART, turned, strict=True)
    ]
    batch = documents_of(model, pages)
    optimizer = make_optimizer(model, config)
    for _ in range(200):
        model(batch, step_of())["documents"].backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        hidden, labels = model.eval().read_documents(batch)
        assert share_known(model.logits(hidden), labels) > 0.9
    assert (labels != IGNORED).sum(1).tolist() == [10] * 16


def test_settings_of_documents_at_their_defaults_leave_fingerprints_as_they_were() -> None:
    plain = FlamingoConfig(model="clip", language="words").measurement()
    assert not plain.keys() & set(OF_DOCUMENTS)
    changed = FlamingoConfig(model="clip", language="words", document_weight=2.0).measurement()
    assert changed.keys() - plain.keys() == {"document_weight"}
    for field, value in (("pair_weight", 0.0), ("max_document_tokens", 2)):
        with pytest.raises(ValueError, match=f"train.{field} must be"):
            FlamingoConfig(**{field: value})
