from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.blips import WORDS, drawn
from helpers.filters import OLD, recipe_of
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.filter import FilterConfig, FilterStage

DENSE = "a red dog on the house. two small birds in the tree! the green cat and a big house"
"""Three sentences; 18 words, 25 tokens with what the tokenizer adds."""


def reads(model: str, folder: Path, tokens: int) -> str:
    """The same model, trained on texts of so many tokens."""
    shutil.copytree(model, folder)
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"max_text_tokens": tokens}
    path.write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="module")
def short(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return reads(model, tmp_path_factory.mktemp("short") / "model", 10)


def judging(model: str, **settings: Any) -> FilterStage:
    stage = FilterStage(FilterConfig(model=model, device="cpu", **settings))
    stage.load()
    return stage


def test_a_text_that_was_cut_says_how_much_was_not_read(short: str, model: str) -> None:
    rows = OLD.slice(0, 2).set_column(1, "caption", pa.array([DENSE, "a dog"]))
    cut = judging(short)
    written = cut.annotate(rows)
    tokens = len(judging(model)._matcher._tokenize([DENSE])[0])  # type: ignore[union-attr]
    assert written["unread_web"].to_pylist() == [tokens - 10, 0]
    assert written["unread_synthetic"].to_pylist() == [[0, 0], [0]]
    [(sentence, number)] = cut.notices(written).items()
    assert number == 1 and "filter.unit: sentence" in sentence
    assert judging(model).annotate(rows)["unread_web"].to_pylist() == [0, 0]


def test_each_sentence_of_a_long_text_is_judged_as_a_short_text_is(short: str) -> None:
    rows = OLD.slice(0, 2).set_column(1, "caption", pa.array([DENSE, "a cat. a dog"]))
    rows = rows.set_column(2, "synthetic", pa.array([["a dog", DENSE], []]))
    stage = judging(short, unit="sentence", dtype="float32")
    seen: list[int] = []
    assert stage._matcher is not None
    hook = stage._matcher.model.vision_model.register_forward_hook(
        lambda _, __, output: seen.append(len(output[0]))
    )
    written = stage.annotate(rows)
    hook.remove()
    sentences = written["sentences_web"][0].as_py()
    assert "".join(sentence["text"] for sentence in sentences) == DENSE
    alone = [sentence["text"].strip() for sentence in sentences]
    assert alone == [
        "a red dog on the house.",
        "two small birds in the tree!",
        "the green cat and a big house",
    ]
    [expected] = stage._matcher.score([drawn(0)], [alone])
    assert [s["itm"] for s in sentences] == pytest.approx([m.itm for m in expected], abs=1e-5)
    assert [s["itc"] for s in sentences] == pytest.approx([m.itc for m in expected], abs=1e-5)
    assert written["itm_web"][0].as_py() == max(sentence["itm"] for sentence in sentences)
    assert written["sentences_synthetic"].to_pylist() == [[None, sentences], []]
    assert written["sentences_web"][1].as_py() is None  # two sentences that the model reads whole
    assert written["unread_web"].to_pylist() == [0, 0] and not stage.notices(written)


def test_a_long_text_of_one_sentence_is_cut_and_told(short: str) -> None:
    text = " and ".join(["a red dog on the house"] * 3)
    stage = judging(short, unit="sentence")
    written = stage.annotate(OLD.slice(0, 1).set_column(1, "caption", pa.array([text])))
    assert written["sentences_web"].to_pylist() == [None]
    assert written["unread_web"][0].as_py() > 0
    [sentence] = stage.notices(written)
    assert "a sentence that is longer" in sentence


def test_a_dual_encoder_judges_sentences_too(clips: tuple[str, str]) -> None:
    text = " ".join(f"a red dog on the house number {word}." for word in WORDS.split()[:12])
    rows = OLD.slice(0, 1).set_column(1, "caption", pa.array([text]))
    whole = recipe_of("clip", clips, min_clip=0.0).annotate(rows)
    assert whole["unread_web"][0].as_py() > 0
    stage = recipe_of("clip", clips, min_clip=0.0, unit="sentence")
    written = stage.annotate(rows)
    sentences = written["sentences_web"][0].as_py()
    assert len(sentences) == 12 and written["unread_web"].to_pylist() == [0]
    assert stage._clip is not None
    [expected] = stage._clip.score([drawn(0)], [[s["text"].strip() for s in sentences]])
    cosines = [similarity.cosine for similarity in expected]
    assert [s["clip"] for s in sentences] == pytest.approx(cosines, abs=1e-2)


def in_sentences(scores: list[list[float]], score: str = "itm") -> pa.Table:
    """Rows of one synthetic text each, of sentences with these scores; one is judged whole."""
    rows = []
    for row, own in enumerate(scores):
        parts = [{"text": f"this is {row} {n}. ", score: value} for n, value in enumerate(own)]
        rows.append(
            {
                f"{score}_synthetic": [max(own)],
                "itm_synthetic": [max(own) if score == "itm" else None],
                "itm_further": [],
                "sentences_synthetic": [parts if len(own) > 1 else None],
                "itm_decoded": True,
            }
        )
    return pa.Table.from_pylist(rows, schema=FilterStage.writes)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=5), min_size=1, max_size=6),
    st.floats(0, 1, width=32),
)
def test_a_text_is_what_is_left_of_its_sentences(scores: list[list[float]], least: float) -> None:
    table = in_sentences(scores)
    stage = FilterStage(FilterConfig(unit="sentence", min_itm=least))
    keeps, reasons = stage.keep_texts(table).to_pylist(), stage.judge(table).to_pylist()
    for row, (own, keep, reason) in enumerate(zip(scores, keeps, reasons, strict=True)):
        flags = [score >= np.float32(least) for score in own]
        [is_kept], [kept], [text], [itm] = (
            keep[f"{name}_synthetic"]
            for name in ("keep", "sentences_kept", "kept_text", "kept_itm")
        )
        assert is_kept == any(flags) == (reason is None)
        if len(own) == 1:
            assert (kept, text, itm) == (None, None, None)
            continue
        assert kept == flags
        left = [f"this is {row} {n}." for n, flag in enumerate(flags) if flag]
        assert text == (" ".join(left) if left and not all(flags) else None)
        assert itm == (min(s for s in own if s >= np.float32(least)) if left else None)


def test_texts_are_ranked_by_the_mean_of_their_sentences() -> None:
    table = in_sentences([[0.5, 0.1], [0.4], [0.2]], "clip")
    row = {
        name: [value for some in table[name].to_pylist() for value in some]
        for name in ("clip_synthetic", "itm_synthetic", "sentences_synthetic")
    }
    table = pa.Table.from_pylist(
        [{**row, "itm_further": [], "itm_decoded": True}], schema=FilterStage.writes
    )
    keeps = FilterStage(FilterConfig(recipe="blip2", unit="sentence")).keep_texts(table)
    assert keeps["keep_synthetic"].to_pylist() == [[True, True, False]]
    keeps = FilterStage(FilterConfig(recipe="blip2", unit="sentence", min_clip=0.15)).keep_texts(
        table
    )
    assert keeps["sentences_kept_synthetic"].to_pylist() == [[[True, False], None, None]]
    assert keeps["kept_text_synthetic"].to_pylist() == [["this is 0 0.", None, None]]
