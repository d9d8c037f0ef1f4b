from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pytest
from helpers.blips import WORDS, drawn, save, save_blip2, tokenizer_of
from helpers.chat_server import ChatServer, Fault, Request, caption_of
from helpers.cocas import save_coca
from helpers.vlms import save_llava
from pydantic import TypeAdapter, ValidationError
from transformers import BlipForConditionalGeneration

from models.errors import StageUnavailableError
from models.inference.captioner import Captioner
from models.inference.decoding import CaptionError
from models.inference.server import served_revision
from models.inference.trained import Coca
from models.inference.vlm import GenericCaptioner
from models.random import seed_of
from stages.caption import CaptionConfig, CaptionStage, _repeated
from stages.caption_config import CHAT_PROMPT


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
SERVED = {"server": "http://127.0.0.1:8000/v1", "model": "m"}


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
            "synthetic_names": [[None]],
            "synthetic_fused": [[False]],
            "synthetic_words": [[0]],
            "synthetic_repeated": [[0.0]],
            "synthetic_truncated": [[False]],
            "caption_failures": [[]],
        },
        schema=stage.writes,
    )
    assert stage.judge(silent).to_pylist() == [None]


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
    for change in ({"seed": 1}, {"top_p": 0.8}, {"prompt": ""}, {"dtype": "bfloat16"}):
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
        ({"continue_up_to": 80, "engine": "blip"}, "caption.continue_up_to"),
        ({"repetition_penalty": 0}, "caption.repetition_penalty"),
        ({"min_length": 21}, "caption.min_length"),
        ({"batch_size": 0}, "caption.batch_size"),
        ({"cpus": 0}, "caption.cpus"),
        ({"decoding": "top"}, "decoding"),
        ({"beams": 3}, "beams"),
        ({"temperature": 0}, "caption.temperature"),
        ({"temperature": float("inf")}, "caption.temperature"),
        ({"max_tokens": 0}, "caption.max_tokens"),
        ({"engine": "blip", "max_tokens": 9}, "caption.max_tokens is for chat models"),
        ({"image_size": 512}, "caption.image_size is for caption.server"),
        ({"engine": "vllm", "image_size": 8}, "caption.image_size must be from 16"),
        ({"engine": "vllm", "max_length": 30}, "caption.max_length is not for chat models"),
        ({"engine": "vllm", "decoding": "beam"}, "caption.decoding: beam"),
        ({"concurrency": 8}, "caption.concurrency is for caption.server"),
        ({**SERVED, "engine": "vllm"}, "caption.engine"),
        ({**SERVED, "continue_up_to": 80}, "caption.continue_up_to is not for chat models"),
        ({**SERVED, "device": "cuda"}, "caption.device is for a model that runs in the workers"),
        ({**SERVED, "concurrency": 0}, "caption.concurrency must be at least 1"),
        ({**SERVED, "timeout": 0}, "caption.timeout"),
        ({**SERVED, "tries": 0}, "caption.tries"),
        ({**SERVED, "server": []}, "caption.server names no URL"),
        ({**SERVED, "server": "localhost:8000"}, "caption.server must be a URL"),
        ({**SERVED, "server": "http://[::1"}, "caption.server must be a URL"),
        ({**SERVED, "server": "https://u:hunter2@h/v1"}, "api_key_env"),
        ({**SERVED, "server": "https://h/v1?api_key=hunter2"}, "api_key_env"),
        ({"prompt": "a", "prompts": {"b": "c"}}, "caption.prompt and caption.prompts"),
        ({"prompts": {"a b": "c"}}, "caption.prompts: a name"),
        ({"prompts": {"a": " "}}, "caption.prompts.a is empty"),
        ({"prompt": "Use {alttext}"}, r"\{alttext\} stands for nothing"),
        ({"prompts": {"a": "Use {caption}"}}, r"\{caption\} stands for nothing"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as error:
        TypeAdapter(CaptionConfig).validate_python(wrong)
    assert "hunter2" not in str(error.value.errors()[0]["msg"])


def test_settings_come_from_yaml_values(model: str) -> None:
    config = TypeAdapter(CaptionConfig).validate_python(
        {"model": model, "decoding": "beam", "num_captions": 2, "prompt": "", "batch_size": 4}
    )
    written = CaptionStage(config).annotate(ROWS.slice(0, 2))
    assert [len(set(some)) for some in written["synthetic"].to_pylist()] == [2, 2]


@pytest.fixture
def server() -> Iterator[ChatServer]:
    served_revision.cache_clear()
    with ChatServer(root="one") as started:
        yield started


def served(*servers: ChatServer, **changes: Any) -> CaptionStage:
    given = {"server": [f"{one.url}/" for one in servers], "model": "m", **changes}
    return CaptionStage(TypeAdapter(CaptionConfig).validate_python(given))


def captioned(rows: pa.Table, captions: list[str | None]) -> pa.Table:
    return rows.append_column("caption", pa.array(captions, pa.string()))


def test_a_server_writes_the_captions_of_rows(server: ChatServer) -> None:
    stage = served(server, num_captions=2)
    written = stage.annotate(ROWS)
    assert written.schema == stage.writes
    assert [len(some) for some in written["synthetic"].to_pylist()] == [2] * 12
    assert written["synthetic_names"].to_pylist() == [[None, None]] * 12
    assert written["synthetic_fused"].to_pylist() == [[False, False]] * 12
    asked = {caption_of(request) for request in server.requests}
    assert {text for some in written["synthetic"].to_pylist() for text in some} == asked
    assert {request.prompt for request in server.requests} == {CHAT_PROMPT}
    assert {request.body["max_tokens"] for request in server.requests} == {256}
    apart = [stage.annotate(ROWS.slice(start, 5)).to_pylist() for start in (0, 5, 10)]
    assert [row for part in apart for row in part] == written.to_pylist()


def test_each_prompt_gives_captions_with_its_name(server: ChatServer) -> None:
    prompts = {"short": "Say it in a word", "dense": "Say all", "signs": "Read what is written"}
    written = served(server, prompts=prompts, num_captions=2).annotate(ROWS)
    expected = ["short", "short", "dense", "dense", "signs", "signs"]
    assert written["synthetic_names"].to_pylist() == [expected] * 12
    by_caption = {caption_of(request): request for request in server.requests}
    for row, some in enumerate(written["synthetic"].to_pylist()):
        asked = [by_caption[text] for text in some]
        assert [request.prompt for request in asked] == [prompts[name] for name in expected]
        assert {request.image for request in asked} == {ROWS["image"][row].as_py()}
        assert len({request.body["seed"] for request in asked}) == 6


def test_a_prompt_with_the_web_caption_gives_fused_captions(server: ChatServer) -> None:
    rows = captioned(ROWS.slice(0, 3), ["A red <b>bus</b> [IMG]\n{alt_text}", None, " "])
    prompts = {"plain": "Describe", "fused": "The page says {alt_text}. Describe"}
    stage = served(server, prompts=prompts)
    written = stage.annotate(rows)
    assert written["synthetic_names"].to_pylist() == [["plain", "fused"], ["plain"], ["plain"]]
    assert written["synthetic_fused"].to_pylist() == [[False, True], [False], [False]]
    failures = written["caption_failures"].to_pylist()
    assert failures[0] == [] and failures[1] == failures[2]
    assert failures[1] == [{"name": "fused", "error": "no_alt_text", "message": ""}]
    assert stage.judge(written).to_pylist() == [None] * 3
    [asked] = [request.prompt for request in server.requests if "says" in request.prompt]
    assert asked == "The page says A red (b)bus(/b) (IMG) {alt_text}. Describe"


def test_the_web_caption_is_the_one_that_clean_left(server: ChatServer) -> None:
    config = served(server, prompt="Improve on {alt_text}").config
    assert config.reads == ("caption", "text")
    assert served(server, prompt="Describe").config.reads == ()
    rows = captioned(ROWS.slice(0, 1), ["IMG: a bus"]).append_column("text", pa.array(["a bus"]))
    served(server, prompt="Improve on {alt_text}").annotate(rows)
    assert server.requests[0].prompt == "Improve on a bus"


def test_a_web_caption_in_a_prompt_is_bounded(server: ChatServer) -> None:
    rows = captioned(ROWS.slice(0, 1), ["x" * 100_000])
    served(server, prompt="{alt_text}").annotate(rows)
    assert server.requests[0].prompt == "x" * 1000


def test_rows_without_any_caption_have_the_reason(server: ChatServer) -> None:
    faults: dict[str, Any] = {
        "refused": Fault(400, b'{"message": "too small"}'),
        "server_error": Fault(500),
        "bad_answer": Fault(content=b"{}"),
        "repetitive": "a dog on the grass " * 20,
    }
    images = [drawn(seed) for seed in range(5)]
    answers = dict(zip(images, [None, *faults.values()], strict=True))
    server.answer = lambda request: answers.get(request.image) or caption_of(request)
    rows = captioned(rows_of([*images, b"junk", None]), ["a"] * 7)
    stage = served(server, tries=1)
    written = stage.annotate(rows)
    reasons = [None, *faults, "undecodable", "undecodable"]
    assert stage.judge(written).to_pylist() == reasons
    failures = written["caption_failures"].to_pylist()
    assert [[failure["error"] for failure in some] for some in failures] == [
        [reason] * (reason is not None) for reason in reasons
    ]
    assert failures[1][0]["message"] == "status 400: too small"
    assert failures[4][0]["message"].startswith("a dog on the grass a dog")
    fused = served(server, prompt="{alt_text}").annotate(captioned(ROWS.slice(0, 1), [None]))
    assert stage.judge(fused).to_pylist() == ["no_alt_text"]


def test_every_reason_is_declared() -> None:
    errors = (*get_args(CaptionError), "no_alt_text", "repetitive")
    assert set(CaptionStage.reasons) == set(errors)


def test_a_caption_that_is_had_keeps_a_row_whatever_the_others(server: ChatServer) -> None:
    server.answer = lambda r: Fault(400) if r.prompt == "dense" else caption_of(r)
    stage = served(server, prompts={"short": "short", "dense": "dense"})
    server.answer, answer = caption_of, server.answer
    stage.load()
    server.answer = answer
    written = stage.annotate(ROWS)
    assert written["synthetic_names"].to_pylist() == [["short"]] * 12
    assert [f[0]["name"] for f in written["caption_failures"].to_pylist()] == ["dense"] * 12
    assert stage.judge(written).to_pylist() == [None] * 12


def test_a_server_that_fails_is_no_fault_of_a_row(server: ChatServer) -> None:
    stage = served(server)
    stage.load()
    server.answer = lambda request: Fault(401)
    with pytest.raises(StageUnavailableError, match="OPENAI_API_KEY"):
        stage.annotate(ROWS)
    server.answer = lambda request: Fault(422, b'{"detail": "unknown field top_k"}')
    with pytest.raises(StageUnavailableError, match="unknown field top_k"):
        served(server, top_k=3).load()
    server.close()
    with pytest.raises(FileNotFoundError, match=r"caption\.server: http"):
        served(server, model="other").config.measurement()


def test_a_model_that_a_server_changes_is_no_fault_of_a_row(server: ChatServer) -> None:
    stage = served(server)
    stage.load()

    def answer(request: Request) -> str:
        server.models[0]["root"] = "two"
        return caption_of(request)

    server.answer = answer
    with pytest.raises(StageUnavailableError, match=r'changed: it was m \{"root": "one"\}'):
        stage.annotate(ROWS)


def test_what_a_server_says_of_its_model_is_measured_and_where_it_is_is_not(
    server: ChatServer,
) -> None:
    measured = served(server).config.measurement()
    assert measured["weights"] == 'm {"root": "one"}' and measured["max_tokens"] == 256
    with ChatServer(root="one") as other:
        same = {"concurrency": 3, "timeout": 5.0, "tries": 9, "api_key_env": "K", "cpus": 2}
        assert served(other, **same, max_tokens=256).config.measurement() == measured
        both = served(server, other)
        assert both.config.measurement() == measured
    changes: list[dict[str, Any]] = [
        {"prompt": "Say"},
        {"prompts": {"a": "Say"}},
        {"max_tokens": 9},
        {"temperature": 0.5},
        {"seed": 1},
        {"image_size": 512},
        {"decoding": "greedy"},
    ]
    found = [served(server, **change).config.measurement() for change in changes]
    assert all(one != measured for one in found)
    server.models[0]["root"] = "two"
    served_revision.cache_clear()
    assert served(server).config.measurement() != measured


def test_a_server_needs_no_device() -> None:
    config = TypeAdapter(CaptionConfig).validate_python({**SERVED, "cpus": 2})
    assert (config.resources.cpus, config.resources.gpus, config.models()) == (2, 0, {})
    assert CaptionConfig(engine="vllm").resources.gpus == 1


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_that_is_not_installed_is_said_clearly() -> None:
    stage = CaptionStage(CaptionConfig(engine="vllm", model="some/model", device="cpu"))
    with pytest.raises(StageUnavailableError, match=r'pip install "capfilt\[vllm\]".*server'):
        stage.load()


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llava(tmp_path_factory.mktemp("llava"))


def test_a_chat_model_in_transformers_has_a_prompt_and_a_length_of_its_own(chat: str) -> None:
    stage = CaptionStage(CaptionConfig(model=chat, device="cpu", max_tokens=40))
    written = stage.annotate(ROWS.slice(0, 4))
    [asked] = stage.config.asked(is_chat=True)
    assert stage._is_chat and asked.text == CHAT_PROMPT
    assert max(max(some) for some in written["synthetic_words"].to_pylist()) > 20
    prompts = {"short": "a picture of the dog", "fused": "Describe {alt_text}"}
    both = CaptionStage(CaptionConfig(model=chat, device="cpu", prompts=prompts, max_tokens=6))
    rows = captioned(ROWS.slice(0, 3), ["a red bus", None, "a bird"])
    names = both.annotate(rows)["synthetic_names"].to_pylist()
    assert names == [["short", "fused"], ["short"], ["short", "fused"]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"max_tokens": 9}, r"caption\.max_tokens"), ({"prompt": "{alt_text}"}, "alt_text")],
)
def test_what_only_a_chat_model_can_do_is_refused(
    model: str, generic: str, wrong: dict[str, Any], message: str
) -> None:
    for name, why in ((model, "is a BLIP"), (generic, "has no chat template")):
        stage = CaptionStage(CaptionConfig(model=name, device="cpu", **wrong))
        with pytest.raises(ValueError, match=f"{message}.*{why}"):
            stage.load()


def test_a_blip_is_asked_by_several_prompts_too(model: str) -> None:
    prompts = {"a": "a picture of ", "b": "the red"}
    stage = CaptionStage(CaptionConfig(model=model, device="cpu", prompts=prompts))
    written = stage.annotate(ROWS)
    assert written["synthetic_names"].to_pylist() == [["a", "b"]] * 12
    alone = CaptionStage(CaptionConfig(model=model, device="cpu", prompts={"b": "the red"}))
    expected = [some[0] for some in alone.annotate(ROWS)["synthetic"].to_pylist()]
    assert [some[1] for some in written["synthetic"].to_pylist()] == expected


def test_what_will_be_asked_can_be_told(model: str, chat: str, tmp_path: Path) -> None:
    prompts = {"short": "In a word", "fused": "Use {alt_text}"}
    config = {**SERVED, "prompts": prompts, "num_captions": 2, "max_tokens": 99}
    assert TypeAdapter(CaptionConfig).validate_python(config).explain() == [
        "asks m at http://127.0.0.1:8000/v1: 64 requests at once a worker, 300 s each",
        "short: asks 'In a word' for 2 captions",
        "fused: asks 'Use {alt_text}' for 2 captions, fused with the web caption",
        "nucleus p=0.9, temperature 1, at most 99 tokens",
    ]
    assert CaptionConfig(model=model).explain() == [
        f"runs {model} in the workers",
        "goes on from 'a picture of ' for 1 caption",
        "nucleus p=0.9, temperature 1, at most 20 tokens with the prompt",
    ]
    assert CaptionConfig(model=chat, decoding="greedy").explain() == [
        f"runs {chat} in the workers",
        f"asks {CHAT_PROMPT!r} for 1 caption",
        "greedy, at most 256 tokens",
    ]
    missing = CaptionConfig(model=str(tmp_path / "none")).explain()
    assert missing[1] == "the prompt depends on the model, which is not here yet"


def test_a_captioner_that_transformers_does_not_have_writes(tmp_path: Path) -> None:
    folder = save_coca(tmp_path)
    config = CaptionConfig(model=folder, prompt="", num_captions=2, device="cpu", dtype="float32")
    written = CaptionStage(config).annotate(ROWS)["synthetic"].to_pylist()
    reader = Coca.from_pretrained(folder, dtype="float32")
    uid = ROWS["uid"][0].as_py()
    seed = seed_of(config.seed, uid, bits=64)
    image = ROWS["image"][0].as_py()
    [captions] = reader.caption([image], [seed], config.settings_of_decoding())
    assert written[0] == [caption.text for caption in captions]
    with pytest.raises(ValueError, match="is no chat model"):
        CaptionStage(CaptionConfig(model=folder, max_tokens=5, device="cpu")).load()
