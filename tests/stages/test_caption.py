from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from helpers.blips import WORDS, drawn, save, save_blip2, tokenizer_of
from pydantic import TypeAdapter, ValidationError
from transformers import BlipForConditionalGeneration

from models.inference.captioner import Captioner
from models.inference.vlm import GenericCaptioner
from stages.caption import CaptionConfig, CaptionStage, _repeated


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("captioner")
    return save(folder, BlipForConditionalGeneration, tokenizer_of(WORDS.split()))


@pytest.fixture(scope="module")
def stage(model: str) -> CaptionStage:
    stage = CaptionStage(CaptionConfig(model=model, num_captions=2, device="cpu"))
    stage.load()
    return stage


def rows_of(images: list[bytes | None]) -> pa.Table:
    uids = [hashlib.sha256(str(i).encode()).hexdigest()[:32] for i in range(len(images))]
    return pa.table({"uid": uids, "image": pa.array(images, pa.binary())})


ROWS = rows_of([drawn(seed) for seed in range(12)])


def test_every_row_gets_its_captions_in_order(stage: CaptionStage) -> None:
    written = stage.annotate(ROWS)
    assert written.schema == stage.writes and len(written) == len(ROWS)
    captions = written["synthetic"].to_pylist()
    assert all(len(some) == 2 for some in captions)
    assert written["synthetic_words"].to_pylist() == [
        [len(caption.split()) for caption in some] for some in captions
    ]
    assert stage.judge(written).to_pylist() == [None] * len(ROWS)


def test_a_caption_depends_on_its_row_and_the_seed_alone(stage: CaptionStage, model: str) -> None:
    whole = stage.annotate(ROWS).to_pylist()
    apart = [stage.annotate(ROWS.slice(start, 5)).to_pylist() for start in (0, 5, 10)]
    assert [row for part in apart for row in part] == whole
    backwards = ROWS.take(list(range(11, -1, -1)))
    assert stage.annotate(backwards).to_pylist() == whole[::-1]
    other = CaptionStage(CaptionConfig(model=model, num_captions=2, device="cpu", seed=1))
    assert other.annotate(ROWS).to_pylist() != whole


def test_the_same_image_under_another_uid_gets_captions_of_its_own(stage: CaptionStage) -> None:
    same = rows_of([drawn(0)] * 12)
    captions = stage.annotate(same)["synthetic"].to_pylist()
    assert len({tuple(some) for some in captions}) > 1


def test_an_image_that_does_not_open_is_a_row_with_a_reason(stage: CaptionStage) -> None:
    rows = rows_of([drawn(0), b"junk", None, drawn(3)])
    written = stage.annotate(rows)
    assert [len(some) for some in written["synthetic"].to_pylist()] == [2, 0, 0, 2]
    assert stage.judge(written).to_pylist() == [None, "undecodable", "undecodable", None]
    expected = stage.annotate(ROWS)["synthetic"].to_pylist()
    assert written["synthetic"].to_pylist()[::3] == [expected[0], expected[3]]


def test_no_rows_give_no_rows(stage: CaptionStage) -> None:
    written = stage.annotate(ROWS.slice(0, 0))
    assert written.schema == stage.writes and len(written) == 0
    assert stage.judge(written).to_pylist() == []


def test_an_image_that_the_captioner_is_silent_about_is_kept() -> None:
    stage = CaptionStage(CaptionConfig())
    silent = pa.table(
        {
            "synthetic": [[""]],
            "synthetic_words": [[0]],
            "synthetic_repeated": [[0.0]],
            "synthetic_truncated": [[False]],
        },
        schema=stage.writes,
    )
    assert stage.judge(silent).to_pylist() == [None]


def test_reasons_are_the_ones_declared(stage: CaptionStage) -> None:
    given = stage.judge(stage.annotate(rows_of([None])))
    assert set(given.to_pylist()) == set(stage.reasons)


def test_repetition_is_measured() -> None:
    assert _repeated(["dai", "dai", "dai"]) == pytest.approx(2 / 3)
    assert _repeated(["a", "dog", "and", "cat"]) == 0 == _repeated([])


def test_a_caption_cut_at_the_greatest_length_is_told_from_one_that_ended(model: str) -> None:
    def truncated(longest: int) -> list[bool]:
        config = CaptionConfig(model=model, device="cpu", max_length=longest, min_length=0)
        lists = CaptionStage(config).annotate(ROWS)["synthetic_truncated"].to_pylist()
        return [cut for some in lists for cut in some]

    assert all(truncated(5)) and not all(truncated(64))


def test_the_nucleus_is_the_papers_or_by_name_the_repositorys(model: str) -> None:
    paper, repository = CaptionConfig(model=model), CaptionConfig(model=model, nucleus="repository")
    assert (paper.sampling(), repository.sampling()) == ((0, 1.0), (50, 1.1))
    spelt = CaptionConfig(model=model, top_k=50, repetition_penalty=1.1)
    assert spelt.measurement() == repository.measurement() != paper.measurement()
    assert CaptionConfig(nucleus="repository", top_k=7).sampling() == (7, 1.1)
    assert CaptionConfig(nucleus="repository", decoding="beam").sampling() == (0, 1.0)


@pytest.fixture(scope="module")
def generic(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_blip2(tmp_path_factory.mktemp("blip2"))


def test_the_kind_of_captioner_goes_by_the_models_config(model: str, generic: str) -> None:
    for name, kind in ((model, Captioner), (generic, GenericCaptioner)):
        stage = CaptionStage(CaptionConfig(model=name, device="cpu"))
        stage.load()
        assert type(stage._captioner) is kind


def test_any_vision_language_model_captions_by_its_name(generic: str) -> None:
    config = CaptionConfig(model=generic, device="cpu", num_captions=2, prompt="a picture of")
    stage = CaptionStage(config)
    rows = rows_of([drawn(0), b"junk", drawn(1)])
    written = stage.annotate(rows)
    assert written.schema == stage.writes
    assert [len(some) for some in written["synthetic"].to_pylist()] == [2, 0, 2]
    alone = stage.annotate(rows.slice(2, 1))
    assert alone.to_pylist() == written.slice(2, 1).to_pylist()


def test_a_blip_is_not_asked_to_continue(model: str) -> None:
    stage = CaptionStage(CaptionConfig(model=model, device="cpu", continue_up_to=80))
    with pytest.raises(ValueError, match=r"caption\.continue_up_to"):
        stage.load()


def test_captions_are_cleaned_where_asked(model: str) -> None:
    plain = CaptionStage(CaptionConfig(model=model, device="cpu"))
    cleaned = CaptionStage(CaptionConfig(model=model, device="cpu", clean_up=True))
    cleaned.load()
    text = "A dog runs on the green grass. A dog runs on the green grass. It has a"
    assert cleaned._cleaned(text) == "A dog runs on the green grass."
    assert plain._cleaned(text) == text
    assert cleaned._cleaned("Ein Hund rennt mit dem Ball über die grüne Wiese.") == ""


def test_the_measurement_names_the_weights_and_not_the_effort(model: str, tmp_path: Path) -> None:
    config = CaptionConfig(model=model)
    measured = config.measurement()
    for change in ({"batch_size": 3}, {"device": "cuda"}, {"cpus": 2}):
        assert dataclasses.replace(config, **change).measurement() == measured
    for change in ({"seed": 1}, {"top_p": 0.8}, {"prompt": None}, {"dtype": "bfloat16"}):
        assert dataclasses.replace(config, **change).measurement() != measured
    copy = save(tmp_path, BlipForConditionalGeneration, tokenizer_of(WORDS.split()))
    assert dataclasses.replace(config, model=copy).measurement() == measured
    other = save(tmp_path, BlipForConditionalGeneration, tokenizer_of([*WORDS.split(), "more"]))
    assert dataclasses.replace(config, model=other).measurement() != measured


def test_resources_follow_the_device() -> None:
    assert CaptionConfig(device="cpu", cpus=3).resources.gpus == 0
    assert CaptionConfig(device="cpu", cpus=3).resources.cpus == 3
    assert CaptionConfig(device="cuda").resources.gpus == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_captions": 2, "decoding": "greedy"}, "caption.num_captions"),
        ({"num_captions": 4, "decoding": "beam"}, "caption.num_captions"),
        ({"top_p": 0}, "caption.top_p"),
        ({"top_k": -1}, "caption.top_k"),
        ({"continue_up_to": -1}, "caption.continue_up_to"),
        ({"continue_up_to": 80, "captioner": "blip"}, "caption.continue_up_to"),
        ({"repetition_penalty": 0}, "caption.repetition_penalty"),
        ({"min_length": 21}, "caption.min_length"),
        ({"batch_size": 0}, "caption.batch_size"),
        ({"cpus": 0}, "caption.cpus"),
        ({"decoding": "top"}, "decoding"),
        ({"beams": 3}, "beams"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(CaptionConfig).validate_python(wrong)


def test_settings_come_from_yaml_values(model: str) -> None:
    config = TypeAdapter(CaptionConfig).validate_python(
        {"model": model, "decoding": "beam", "num_captions": 2, "prompt": None, "batch_size": 4}
    )
    written = CaptionStage(config).annotate(ROWS.slice(0, 2))
    assert [len(set(some)) for some in written["synthetic"].to_pylist()] == [2, 2]
