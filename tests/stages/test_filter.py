from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from blips import WORDS, drawn, save, tokenizer_of
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from transformers import BlipForImageTextRetrieval

from stages.filter import FilterConfig, FilterStage


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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"min_itm": 1.5}, "filter.min_itm"),
        ({"batch_size": 0}, "filter.batch_size"),
        ({"cpus": 0}, "filter.cpus"),
        ({"max_itm": 1}, "max_itm"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(FilterConfig).validate_python(wrong)


def test_the_modules_do_not_import_torch_before_a_model_is_loaded() -> None:
    program = "import sys, stages.caption, stages.filter; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)
