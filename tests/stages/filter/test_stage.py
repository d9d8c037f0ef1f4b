from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers.blips import WORDS, drawn, tokenizer_of
from helpers.cocas import save_coca
from helpers.filters import FURTHER, OLD, ROWS, recipe_of
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ViltConfig, ViltForMaskedLM

from models.inference.trained import Coca
from models.inference.trained import Vilt as TrainedVilt
from models.objectives.vilt import Vilt
from stages.filter import FilterConfig, FilterStage


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


def test_a_score_that_is_remembered_is_looked_up(stage: FilterStage) -> None:
    """The images that were scored are gone, so whatever has a score now was looked up."""
    before = stage.annotate(FURTHER)
    fewer = [some and some[:1] for some in FURTHER["further_captions"].to_pylist()]
    place = FURTHER.column_names.index("further_captions")
    rows = FURTHER.set_column(place, "further_captions", pa.array(fewer))
    gone = pa.array([b"gone"] * len(rows), pa.binary())
    rows = rows.set_column(rows.column_names.index("image"), "image", gone)
    again = stage.annotate(rows.append_column("scored", before["scored"]))
    for kind in ("web", "synthetic"):
        assert again[f"itm_{kind}"].equals(before[f"itm_{kind}"])
        assert again[f"itc_{kind}"].equals(before[f"itc_{kind}"])
        assert again[f"unread_{kind}"].equals(before[f"unread_{kind}"])
    lists = before["itm_further"].to_pylist()
    assert again["itm_further"].to_pylist() == [some[:1] for some in lists]
    assert again["itm_decoded"].equals(before["itm_decoded"])
    assert again["scored"].equals(before["scored"])  # so that the other texts can come back
    assert again["itm_web"].null_count < len(rows)


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


@pytest.mark.slow
def test_the_modules_do_not_import_torch_before_a_model_is_loaded() -> None:
    program = "import sys, stages.caption, stages.filter; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[3]
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)


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
