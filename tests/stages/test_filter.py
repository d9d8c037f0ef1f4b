from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers.blips import WORDS, drawn, save, save_clip, tokenizer_of
from helpers.cocas import save_coca
from helpers.runs import with_nulls
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from transformers import BlipForImageTextRetrieval, ViltConfig, ViltForMaskedLM

from models.inference.dual_encoder import DualEncoder
from models.inference.trained import Coca
from models.inference.trained import Vilt as TrainedVilt
from models.objectives.vilt import Vilt
from stages.filter import LISTS, FilterConfig, FilterStage


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("filter")
    return save(folder, BlipForImageTextRetrieval, tokenizer_of(WORDS.split()))


@pytest.fixture(scope="module")
def stage(model: str) -> FilterStage:
    stage = FilterStage(FilterConfig(model=model, device="cpu"))
    stage.load()
    return stage


ROWS = pa.table(
    {
        "uid": [f"{i:032x}" for i in range(6)],
        "image": pa.array([*(drawn(i) for i in range(4)), b"junk", drawn(5)], pa.binary()),
        "caption": ["A Red Dog", None, "  ", "two birds", "a cat", None],
        "text": ["a red dog", None, "", "two birds", "a cat", None],
        "synthetic": [["a dog", "a house"], ["a cat"], ["", "a tree"], [], ["a dog"], []],
    }
)


def test_web_and_synthetic_texts_are_scored_each_by_itself(stage: FilterStage) -> None:
    written = stage.annotate(ROWS)
    assert written.schema == stage.writes and len(written) == len(ROWS)
    web, synthetic = written["itm_web"].to_pylist(), written["itm_synthetic"].to_pylist()
    assert [score is None for score in web] == [False, True, True, False, True, True]
    assert [[score is None for score in some] for some in synthetic] == [
        [False, False],
        [False],
        [True, False],
        [],
        [True],
        [],
    ]
    assert written["itm_decoded"].to_pylist() == [True, True, True, True, False, True]
    assert [len(some) for some in written["itc_synthetic"].to_pylist()] == [2, 1, 2, 0, 1, 0]
    assert stage._matcher is not None
    [[dog, house]] = stage._matcher.score([drawn(0)], [["a dog", "a house"]])
    assert synthetic[0] == pytest.approx([dog.itm, house.itm], abs=1e-6)
    assert written["itc_synthetic"][0].as_py() == pytest.approx([dog.itc, house.itc], abs=1e-6)


def test_the_normalised_web_caption_is_scored_where_clean_ran(stage: FilterStage) -> None:
    rows = ROWS.set_column(3, "text", pa.array(["a big house"] * 6))
    cleaned = stage.annotate(rows)["itm_web"][0].as_py()
    as_found = stage.annotate(rows.drop_columns("text"))["itm_web"][0].as_py()
    assert cleaned != as_found
    assert as_found == pytest.approx(stage.annotate(ROWS)["itm_web"][0].as_py(), abs=1e-6)


def test_without_a_caption_stage_only_web_captions_are_scored(stage: FilterStage) -> None:
    written = stage.annotate(ROWS.drop_columns("synthetic"))
    assert written["itm_synthetic"].to_pylist() == [[]] * 6
    reasons = stage.judge(written).to_pylist()
    assert [reasons[1], reasons[2], reasons[4], reasons[5]] == [
        "no_text",
        "no_text",
        "undecodable",
        "no_text",
    ]


def test_scores_do_not_depend_on_how_rows_are_split(stage: FilterStage) -> None:
    whole = stage.annotate(ROWS)
    parts = pa.concat_tables([stage.annotate(ROWS.slice(i, 1)) for i in range(6)])
    for name in ("itm_web", "itc_web"):
        ours = whole[name].to_numpy()
        np.testing.assert_allclose(ours, parts[name].to_numpy(), atol=1e-5, equal_nan=True)
    assert stage.judge(parts).to_pylist() == stage.judge(whole).to_pylist()


def annotations(rows: list[tuple[float | None, list[float | None], bool]]) -> pa.Table:
    columns = [
        {
            "itm_web": web,
            "itm_synthetic": synthetic,
            "itc_web": web,
            "itc_synthetic": synthetic,
            "itm_decoded": decoded,
        }
        for web, synthetic, decoded in rows
    ]
    return pa.Table.from_pylist(columns, schema=FilterStage.writes)


def test_an_image_keeps_none_one_or_all_of_its_texts() -> None:
    stage = FilterStage(FilterConfig())
    table = annotations(
        [
            (0.9, [0.8], True),
            (0.9, [0.1, 0.7], True),
            (0.1, [0.5], True),
            (0.4999, [0.2], True),
            (None, [], True),
            (None, [None], True),
            (None, [None], False),
        ]
    )
    assert stage.judge(table).to_pylist() == [
        None,
        None,
        None,
        "unmatched",
        "no_text",
        "no_text",
        "undecodable",
    ]
    keeps = stage.keep_texts(table)
    assert keeps["keep_further"].to_pylist() == [[]] * 7
    assert keeps["keep_web"].to_pylist() == [True, True, False, False, False, False, False]
    assert keeps["keep_synthetic"].to_pylist() == [
        [True],
        [False, True],
        [True],
        [False],
        [],
        [False],
        [False],
    ]


score = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.7, 1.0]), st.floats(0, 1, width=32))
row = st.tuples(score, st.lists(score, max_size=4), st.just(True))


@given(st.lists(row, max_size=12), st.sampled_from([0.0, 0.25, 0.5, 0.7, 1.0]), st.integers(0, 12))
def test_a_row_is_kept_if_and_only_if_a_text_of_it_is(
    rows: list[Any], least: float, cut: int
) -> None:
    stage = FilterStage(FilterConfig(min_itm=least))
    table = annotations(rows)
    table = pa.concat_tables([table.slice(0, cut), table.slice(cut)])  # chunks and offsets
    keeps, reasons = stage.keep_texts(table), stage.judge(table).to_pylist()
    assert len(keeps) == len(reasons) == len(rows)
    for (web, synthetic, _), keep, reason in zip(rows, keeps.to_pylist(), reasons, strict=True):
        floor = np.float32(least)
        assert keep["keep_web"] == (web is not None and np.float32(web) >= floor)
        assert keep["keep_synthetic"] == [
            s is not None and bool(np.float32(s) >= floor) for s in synthetic
        ]
        assert (reason is None) == (keep["keep_web"] or any(keep["keep_synthetic"]))
        if reason is not None:
            scored = web is not None or any(s is not None for s in synthetic)
            assert reason == ("unmatched" if scored else "no_text")


FURTHER = ROWS.append_column(
    "further_captions",
    pa.array([["a bird", "A Dog"], None, ["a cat"], [" ", None], ["a dog"], []]),
)


def test_further_web_captions_are_scored_and_kept_like_others(stage: FilterStage) -> None:
    written, before = stage.annotate(FURTHER), stage.annotate(ROWS)
    lists = written["itm_further"].to_pylist()
    assert [[score is None for score in some] for some in lists] == [
        [False, False],
        [],
        [False],
        [True, True],
        [True],
        [],
    ]
    assert [len(some) for some in written["itc_further"].to_pylist()] == [2, 0, 1, 2, 1, 0]
    assert before["itm_further"].to_pylist() == [[]] * 6
    assert written["itm_decoded"].equals(before["itm_decoded"])
    scores = [score for some in lists for score in some if score is not None]
    for least in (0.0, *scores, 1.0):
        judged = FilterStage(FilterConfig(min_itm=least))
        keeps = judged.keep_texts(written)
        assert keeps["keep_further"].to_pylist() == [
            [score is not None and np.float32(score) >= np.float32(least) for score in some]
            for some in lists
        ]
    only = annotations([(0.1, [0.2], True)])
    place = only.schema.get_field_index("itm_further")
    only = only.set_column(place, "itm_further", pa.array([[0.9]], LISTS))
    assert FilterStage(FilterConfig()).judge(only).to_pylist() == [None]


def test_a_text_said_again_has_one_score(stage: FilterStage) -> None:
    rows = ROWS.slice(0, 1).set_column(4, "synthetic", pa.array([["a dog", "a red dog", "a dog"]]))
    [scores] = stage.annotate(rows)["itm_synthetic"].to_pylist()
    assert scores[0] == scores[2] and scores[1] == stage.annotate(rows)["itm_web"][0].as_py()


DRESS = st.sampled_from(['"{}"', "{}.", "({})", "  {} !", "*{}*", "#{}: ", "~{};", "{}\n"])
SAID = st.lists(st.sampled_from(WORDS.split()), min_size=1, max_size=40).map(" ".join)
CASE = st.sampled_from([str, str.upper, str.capitalize, str.title])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(SAID, DRESS, CASE), min_size=1, max_size=4))
def test_marks_capitals_and_spaces_around_a_text_turn_no_verdict(
    stage: FilterStage, said: list[Any]
) -> None:
    plain = [text for text, _, _ in said]
    dressed = [dress.format(case(text)) for text, dress, case in said]
    image = pa.array([drawn(0)], pa.binary())
    first, second = (
        stage.annotate(
            pa.table(
                {
                    "image": image,
                    "caption": [texts[0]],
                    "synthetic": [texts],
                    "further_captions": [texts],
                }
            )
        )
        for texts in (plain, dressed)
    )
    assert first.equals(second)


def test_a_text_of_nothing_that_blip_reads_is_no_text(
    stage: FilterStage, model: str, clips: tuple[str, str]
) -> None:
    texts = ["...", '"!"', "a dog."]
    rows = pa.table(
        {"image": pa.array([drawn(0), drawn(1), b"junk"]), "caption": [*texts[:2], "***"]}
    )
    assert stage.judge(stage.annotate(rows)).to_pylist() == ["no_text"] * 3
    rows = rows.append_column("synthetic", pa.array([texts] * 3))
    written = stage.annotate(rows)
    assert [[s is None for s in some] for some in written["itm_synthetic"].to_pylist()] == [
        [True, True, False],
        [True, True, False],
        [True, True, True],
    ]
    assert written["itm_decoded"].to_pylist() == [True, True, False]
    beside = recipe_of("blip", clips, model=model).annotate(rows)
    assert [[s is None for s in some] for some in beside["clip_synthetic"].to_pylist()][:1] == [
        [False, False, False]
    ]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    first, second = (tmp_path_factory.mktemp(name) for name in ("clip", "second"))
    return save_clip(first), save_clip(second, seed=1)


def recipe_of(recipe: Any, clips: tuple[str, str], **settings: Any) -> FilterStage:
    first, second = clips
    settings = {"device": "cpu", "model": "nobody/none", **settings}
    stage = FilterStage(FilterConfig(recipe=recipe, clip=first, second_clip=second, **settings))
    stage.load()
    return stage


def test_a_recipe_loads_what_it_needs_alone(model: str, clips: tuple[str, str]) -> None:
    def loaded(stage: FilterStage) -> list[bool]:
        models = stage._matcher, stage._clip, stage._second_clip
        return [model is not None for model in models]

    assert loaded(recipe_of("blip", clips, model=model)) == [True, True, False]
    assert loaded(recipe_of("clip", clips, min_clip=0.28)) == [False, True, False]
    assert loaded(recipe_of("blip2", clips)) == [False, True, False]
    assert loaded(recipe_of("laion_coco", clips)) == [False, True, True]
    blip = FilterStage(FilterConfig(model=model, device="cpu"))
    blip.load()
    assert loaded(blip) == [True, False, False]


def test_clip_measures_beside_itm_and_alone(model: str, clips: tuple[str, str]) -> None:
    both = recipe_of("blip", clips, model=model).annotate(FURTHER)
    alone = recipe_of("clip", clips, min_clip=0.0).annotate(FURTHER)
    for kind in ("web", "synthetic", "further"):
        assert both[f"clip_{kind}"].equals(alone[f"clip_{kind}"])
    assert alone["itm_web"].null_count == 6 and alone["clip_web"].null_count == 4
    assert alone["itm_synthetic"].to_pylist()[0] == [None, None]
    expected = DualEncoder.from_pretrained(clips[0]).score([drawn(0)], [["a red dog"]])
    assert alone["clip_web"][0].as_py() == pytest.approx(expected[0][0].cosine, abs=1e-2)
    web = sorted(score for score in alone["clip_web"].to_pylist() if score is not None)
    judged = FilterStage(FilterConfig(recipe="clip", min_clip=web[1]))
    assert sum(judged.keep_texts(alone)["keep_web"].to_pylist()) == 1
    beside = FilterStage(FilterConfig(clip=clips[0], min_itm=0.0, min_clip=1.0))
    assert set(beside.judge(both).to_pylist()) == {"dissimilar", "no_text", "undecodable"}
    keeps = FilterStage(FilterConfig(clip=clips[0], min_itm=1.0, min_clip=-1.0)).judge(both)
    assert "unmatched" in keeps.to_pylist()


def clip_rows(rows: list[tuple[Any, list[Any], list[Any], list[Any]]]) -> pa.Table:
    """Similarities of web, synthetic, further; and of synthetic captions by the second CLIP."""
    columns = [
        {
            "clip_web": web,
            "clip_synthetic": synthetic,
            "clip_further": further,
            "second_clip_synthetic": second,
            "itm_synthetic": [None] * len(synthetic),
            "itm_further": [None] * len(further),
            "itm_decoded": True,
        }
        for web, synthetic, further, second in rows
    ]
    return pa.Table.from_pylist(columns, schema=FilterStage.writes)


def test_blip2_keeps_the_two_most_similar_texts_whatever_they_are() -> None:
    table = clip_rows(
        [
            (0.3, [0.1, 0.2, 0.4], [], []),
            (0.1, [0.2, 0.2, 0.3], [], []),
            (0.2, [-0.1, 0.1], [0.3, 0.05], []),
            (None, [-0.9], [], []),
            (None, [None], [], []),
        ]
    )
    stage = FilterStage(FilterConfig(recipe="blip2"))
    keeps = stage.keep_texts(table)
    assert keeps["keep_web"].to_pylist() == [True, False, True, False, False]
    assert keeps["keep_synthetic"].to_pylist() == [
        [False, False, True],
        [True, False, True],
        [False, False],
        [True],
        [False],
    ]
    assert keeps["keep_further"].to_pylist() == [[], [], [True, False], [], []]
    assert stage.judge(table).to_pylist() == [None] * 4 + ["no_text"]
    floored = FilterStage(FilterConfig(recipe="blip2", min_clip=0.35))
    assert floored.judge(table).to_pylist() == [None, *["dissimilar"] * 3, "no_text"]


def test_laion_coco_ranks_synthetic_captions_to_five_and_then_to_one() -> None:
    first = [0.1, 0.6, 0.5, 0.4, 0.3, 0.2]
    table = clip_rows([(0.9, first, [0.9], [0.9, 0.1, 0.2, 0.3, 0.2, 0.1]), (0.9, [], [], [])])
    stage = FilterStage(FilterConfig(recipe="laion_coco"))
    keeps = stage.keep_texts(table)
    assert keeps["keep_synthetic"].to_pylist() == [[False] * 3 + [True] + [False] * 2, []]
    assert keeps["keep_web"].to_pylist() == [False, False]
    assert keeps["keep_further"].to_pylist() == [[False], []]


@given(st.lists(st.tuples(score, st.lists(score, max_size=5), st.lists(score, max_size=3))))
def test_blip2_keeps_no_text_less_similar_than_one_it_drops(rows: list[Any]) -> None:
    table = clip_rows([(*row, [None] * len(row[1])) for row in rows])
    keeps = FilterStage(FilterConfig(recipe="blip2")).keep_texts(table).to_pylist()
    for (web, synthetic, further), keep in zip(rows, keeps, strict=True):
        scores = [web, *synthetic, *further]
        kept = [keep["keep_web"], *keep["keep_synthetic"], *keep["keep_further"]]
        best = sorted({np.float32(s) for s in scores if s is not None})[-2:]
        found = [np.float32(s) for s, k in zip(scores, kept, strict=True) if k]
        assert sorted(found) == best


def test_recipes_with_the_same_models_share_what_they_measured(clips: tuple[str, str]) -> None:
    first, second = clips
    blip2 = FilterConfig(recipe="blip2", clip=first, model="nobody/none")
    alone = FilterConfig(recipe="clip", clip=first, min_clip=0.28, model="nobody/none")
    assert blip2.measurement() == alone.measurement()
    other = dataclasses.replace(blip2, clip=second)
    assert other.measurement() != blip2.measurement()


def test_the_threshold_is_no_part_of_the_measurement(model: str, tmp_path: Path) -> None:
    config = FilterConfig(model=model)
    measured = config.measurement()
    for change in ({"min_itm": 0.3}, {"batch_size": 3}, {"device": "cuda"}, {"cpus": 2}):
        assert dataclasses.replace(config, **change).measurement() == measured
    assert dataclasses.replace(config, dtype="bfloat16").measurement() != measured
    other = save(tmp_path, BlipForImageTextRetrieval, tokenizer_of([*WORDS.split(), "more"]))
    assert dataclasses.replace(config, model=other).measurement() != measured


def test_a_model_that_is_nowhere_is_named_with_its_remedy() -> None:
    with pytest.raises(FileNotFoundError, match="hf download nobody/none"):
        FilterConfig(model="nobody/none").measurement()


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


RECORDED = {
    "itm_web": [0.957493, 0.312472, None, 0.952565],
    "itm_synthetic": [[0.532941, 0.507474], [0.458253], [None, 0.975168], [0.992701]],
    "itm_further": [[0.519648], [], [0.965951], [0.343388]],
    "itc_web": [0.261784, 0.076898, None, 0.248081],
    "clip_web": [-0.349311, -0.277998, None, -0.007666],
    "clip_synthetic": [[-0.02873, -0.032434], [0.010021], [None, -0.309157], [0.180603]],
    "clip_further": [[-0.357919], [], [-0.051008], [0.253619]],
}
"""What version 3 of the stage wrote of `OLD`, before it knew sentences."""
OLD = pa.table(
    {
        "image": pa.array([drawn(i) for i in range(4)], pa.binary()),
        "caption": [
            "A Red Dog",
            "two birds in the house.",
            None,
            'a cat. a dog! "the big green tree"',
        ],
        "synthetic": [
            ["a dog", "a house"],
            ["a cat"],
            ["", "a tree"],
            [
                "a picture of the red dog on the house and the blue bird in a small green tree. "
                "two cats"
            ],
        ],
        "further_captions": [["small birds; red"], [], ["A Red Dog"], ["two"]],
    }
)


@pytest.mark.parametrize("unit", ["text", "sentence"])
def test_short_texts_have_the_scores_they_always_had(
    model: str, clips: tuple[str, str], unit: Any
) -> None:
    written = recipe_of("blip", clips, model=model, unit=unit, dtype="float32").annotate(OLD)
    for name, values in RECORDED.items():
        found = written[name].to_pylist()
        for ours, theirs in zip(found, values, strict=True):
            assert ours == pytest.approx(theirs, abs=2e-4), name
    assert written["sentences_web"].null_count == 4
    assert written["unread_web"].to_pylist() == [0, 0, None, 0]


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


def test_the_unit_is_part_of_what_is_measured_where_it_is_a_sentence(model: str) -> None:
    whole, parts = FilterConfig(model=model), FilterConfig(model=model, unit="sentence")
    assert parts.measurement() == {**whole.measurement(), "unit": "sentence"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"unit": "word"}, "unit"),
        ({"min_itm": 1.5}, "filter.min_itm"),
        ({"batch_size": 0}, "filter.batch_size"),
        ({"cpus": 0}, "filter.cpus"),
        ({"max_itm": 1}, "max_itm"),
        ({"min_clip": 1.5, "recipe": "clip"}, "filter.min_clip"),
        ({"min_clip": 0.3}, "set filter.clip"),
        ({"recipe": "clip"}, "filter.min_clip must be set"),
        ({"recipe": "best"}, "recipe"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(FilterConfig).validate_python(wrong)


@pytest.mark.slow
def test_the_modules_do_not_import_torch_before_a_model_is_loaded() -> None:
    program = "import sys, stages.caption, stages.filter; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)


def test_a_threshold_is_compared_with_the_highest_score_of_a_row() -> None:
    scores = {
        "itm_web": [0.25, None, None],
        "itm_synthetic": [[0.75, None], [], None],
        "itm_further": [[0.5], [0.125, 0.25], []],
        "clip_web": [None, 0.5, None],
    }
    table = with_nulls(FilterStage.writes, 3, itm_decoded=[True] * 3, **scores)
    (itm,) = FilterStage(FilterConfig(min_itm=0.3)).cutoffs(table)
    assert (itm.reason, itm.name, itm.limit) == ("unmatched", "min_itm", 0.3)
    np.testing.assert_array_equal(itm.values, [0.75, 0.25, np.nan])
    _, clip = FilterStage(FilterConfig(min_clip=0.2, clip="x")).cutoffs(table)
    assert (clip.reason, clip.limit) == ("dissimilar", 0.2)
    np.testing.assert_array_equal(clip.values, [np.nan, 0.5, np.nan])


def test_a_model_that_transformers_does_not_have_scores_by_cosine(tmp_path: Path) -> None:
    folder = save_coca(tmp_path)
    config = FilterConfig(recipe="clip", clip=folder, min_clip=0.0, device="cpu", dtype="float32")
    written = FilterStage(config).annotate(ROWS)
    [[found]] = Coca.from_pretrained(folder, dtype="float32").score([drawn(0)], [["a red dog"]])
    assert written["clip_web"][0].as_py() == pytest.approx(found.cosine, abs=1e-6)
    with pytest.raises(ValueError, match="is a Coca, which cannot be 'itm' of recipe blip"):
        FilterStage(FilterConfig(model=folder, device="cpu")).load()


def test_a_matcher_that_transformers_does_not_have_reads_texts_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reader = tokenizer_of(WORDS.split())
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    config = ViltConfig(**shape, vocab_size=len(reader), initializer_range=0.5)
    Vilt(ViltForMaskedLM(config), reader).write(tmp_path)
    folder = str(tmp_path / "retrieval")
    stage = FilterStage(FilterConfig(model=folder, device="cpu", dtype="float32"))
    rows = ROWS.set_column(3, "text", pa.array(["A red dog!"] * 6))
    written = stage.annotate(rows)["itm_web"][0].as_py()
    matcher = TrainedVilt.from_pretrained(folder, dtype="float32")
    [[found, prepared]] = matcher.score([drawn(0)], [["A red dog!", "a red dog"]])
    assert written == pytest.approx(found.itm, abs=1e-6) != pytest.approx(prepared.itm, abs=1e-6)
    with pytest.raises(ValueError, match="is a Vilt, which cannot be 'clip' of recipe clip"):
        FilterStage(FilterConfig(recipe="clip", clip=folder, min_clip=0, device="cpu")).load()
