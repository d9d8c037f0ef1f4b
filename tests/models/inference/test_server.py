from __future__ import annotations

import email.utils
import io
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers import fakes
from helpers.chat_server import ChatServer, Fault, Request, caption_of, completion
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from models.errors import StageUnavailableError
from models.inference.decoding import Caption, Settings
from models.inference.server import ServedCaptioner, served_revision

IMAGES = [fakes.jpeg(seed) for seed in range(8)]
KEY = "sk-very-secret-0123456789"


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer() as started:
        yield started


def captioner(*servers: ChatServer | str, **changes: Any) -> ServedCaptioner:
    urls = [one if isinstance(one, str) else one.url for one in servers]
    given: dict[str, Any] = {"backoff": 0.001, "timeout": 30.0, "patience": 5.0}
    return ServedCaptioner(urls, "m", **{**given, **changes})


def captions(
    one: ServedCaptioner, images: list[bytes] = IMAGES, prompt: str = "Describe", **changes: Any
) -> list[list[Caption]]:
    asked = Settings(**changes)
    return one.caption(images, range(len(images)), asked, prompt=[prompt] * len(images))


def texts(found: list[list[Caption]]) -> list[list[str]]:
    assert not any(caption.error for some in found for caption in some)
    return [[caption.text for caption in some] for some in found]


def only(answer: Callable[[Request], Any], image: bytes = IMAGES[2]) -> Callable[[Request], Any]:
    """An answer to one image alone; the others, and probes, have their caption."""
    return lambda request: answer(request) if request.image == image else caption_of(request)


def test_a_request_holds_what_the_api_asks_for(server: ChatServer) -> None:
    found = texts(captions(captioner(server), IMAGES[:1], max_tokens=99))
    [request] = server.requests
    assert request.image == IMAGES[0] and request.prompt == "Describe"
    assert {k: v for k, v in request.body.items() if k != "messages"} == {
        "model": "m",
        "max_tokens": 99,
        "temperature": 1.0,
        "top_p": 0.9,
        "seed": request.body["seed"],
    }
    [turn] = request.body["messages"]
    assert [turn["role"], *(part["type"] for part in turn["content"])] == [
        "user",
        "image_url",
        "text",
    ]
    assert found == [[caption_of(request)]]


def test_settings_that_are_set_are_sent(server: ChatServer) -> None:
    one = captioner(server)
    captions(one, IMAGES[:1], temperature=0.5, top_k=7, repetition_penalty=1.1)
    captions(one, IMAGES[:1], decoding="greedy", prompt="")
    nucleus, greedy = (request.body for request in server.requests)
    assert (nucleus["temperature"], nucleus["top_k"]) == (0.5, 7)
    assert nucleus["repetition_penalty"] == 1.1
    assert greedy["temperature"] == 0 and "top_p" not in greedy
    assert [part["type"] for part in greedy["messages"][0]["content"]] == ["image_url"]


def test_large_images_are_resized_before_they_are_sent(server: ChatServer) -> None:
    images = [fakes.jpeg(1, (900, 300)), fakes.jpeg(2, (200, 100))]
    captions(captioner(server, image_size=300, threads=2), images)
    sent = [Image.open(io.BytesIO(request.image)).size for request in server.requests]
    assert sorted(sent) == [(200, 100), (300, 100)]


def test_a_caption_depends_on_image_prompt_and_seed_alone(server: ChatServer) -> None:
    one = captioner(server, concurrency=3)
    whole = texts(captions(one, num_captions=3))
    assert len({text for some in whole for text in some}) == 24
    asked = Settings(num_captions=3)
    part = one.caption(IMAGES[5:2:-1], [5, 4, 3], asked, prompt=["Describe"] * 3)
    assert texts(part) == whole[5:2:-1]
    more = one.caption(IMAGES, range(8), Settings(num_captions=4), prompt=["Describe"] * 8)
    assert [some[:3] for some in texts(more)] == whole
    assert texts(one.caption(IMAGES[:1], [9], asked, prompt=["Describe"]))[0] != whole[0]
    assert all(0 <= request.body["seed"] < 2**31 for request in server.requests)


def test_every_image_has_a_prompt_of_its_own(server: ChatServer) -> None:
    prompts = ["Describe", "Read the text", "Describe"]
    images = [IMAGES[0], IMAGES[0], IMAGES[1]]
    found = captioner(server).caption(images, [0, 1, 2], Settings(), prompt=prompts)
    by_caption = {caption_of(request): request for request in server.requests}
    asked = [by_caption[some[0].text] for some in found]
    assert [request.prompt for request in asked] == prompts
    assert [request.image for request in asked] == images


def test_requests_in_flight_are_bounded(server: ChatServer) -> None:
    together = threading.Barrier(4, timeout=60)

    def answer(request: Request) -> str:
        together.wait()  # passes four at a time, so that four are in flight
        return caption_of(request)

    server.answer = answer
    texts(captions(captioner(server, concurrency=4)))
    assert server.most_in_flight == 4


def test_an_image_that_cannot_be_decoded_is_not_sent(server: ChatServer) -> None:
    found = captions(captioner(server), [IMAGES[0], b"junk", b"", IMAGES[1]])
    assert [len(some) for some in found] == [1, 0, 0, 1]
    assert len(server.requests) == 2


def test_no_images_ask_nothing(server: ChatServer) -> None:
    assert captions(captioner(server), []) == [] and not server.requests


def test_two_servers_share_the_requests() -> None:
    together = threading.Barrier(2, timeout=60)

    def answer(request: Request) -> str:
        together.wait()  # passes only when both servers have one
        return caption_of(request)

    with ChatServer(answer=answer) as first, ChatServer(answer=answer) as second:
        found = texts(captions(captioner(first, second, concurrency=2)))
        with ChatServer() as alone:
            assert texts(captions(captioner(alone))) == found
        assert [len(first.requests), len(second.requests)] == [4, 4]


def test_a_server_that_goes_away_leaves_its_requests_to_the_other() -> None:
    with ChatServer() as first, ChatServer() as second:
        one = captioner(first, second)
        expected = texts(captions(one))
        first.close()
        second.requests.clear()
        assert texts(captions(one)) == expected
        assert len(second.requests) == len(IMAGES)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(500, b'{"error": {"message": "out of blocks"}}'),
        Fault(502, b"<html>Bad Gateway</html>"),
        Fault(408),
        Fault(cut=1, content=b'{"choices": []}'),
        Fault(cut=0, content=b"{}"),
        Fault(content=b'{"choices": [{"message": {"cont'),
        Fault(content=b"[]"),
        Fault(content=b'{"choices": []}'),
        Fault(content=json.dumps(completion(7)).encode()),
    ],
    ids=["500", "502", "408", "cut", "closed", "half", "list", "no choice", "no text"],
)
def test_a_fault_that_passes_is_a_retry(server: ChatServer, fault: Fault) -> None:
    expected = texts(captions(captioner(server)))
    server.requests.clear()
    server._seen.clear()
    server.answer = lambda r: fault if r.attempt == 0 and not r.is_probe else caption_of(r)
    assert texts(captions(captioner(server))) == expected
    assert len(server.requests) == 2 * len(IMAGES)


@pytest.mark.parametrize(
    ("fault", "error", "tries"),
    [
        (Fault(500, b'{"error": {"message": "out of blocks"}}'), "server_error", 3),
        (Fault(cut=1), "server_error", 3),
        (Fault(content=b"not JSON"), "bad_answer", 3),
        (Fault(content=b"[" * 100_000), "bad_answer", 3),
        (Fault(content=b"x" * 2_000_000), "bad_answer", 3),
        (Fault(hangs=True), "timeout", 3),
        (Fault(400, b'{"message": "image is too small"}'), "refused", 1),
        (Fault(413), "refused", 1),
        (Fault(422, b'{"detail": [{"msg": "too many tokens"}]}'), "refused", 1),
        (Fault(content=json.dumps(completion("", reason="content_filter")).encode()), "refused", 1),
    ],
    ids=["500", "cut", "text", "deep", "long", "hang", "400", "413", "422", "filter"],
)
def test_a_fault_that_stays_is_an_error_of_its_row(
    server: ChatServer, fault: Fault, error: str, tries: int
) -> None:
    server.answer = only(lambda request: fault)
    found = captions(captioner(server, timeout=0.5 if fault.hangs else 600.0))
    assert [some[0].error for some in found] == [None, None, error, *[None] * 5]
    assert found[2][0].text == "" and found[2][0].message
    assert sum(request.image == IMAGES[2] for request in server.requests) == tries


def test_what_a_server_says_of_an_error_is_kept(server: ChatServer) -> None:
    for content, said in (
        (b'{"error": {"message": "the image\\n is \\u0000 too small"}}', "the image is too small"),
        (b'{"error": "no such thing"}', "no such thing"),
        (b'{"detail": [{"msg": "x"}]}', '[{"msg": "x"}]'),
        (b"<html>\xff", "<html>\ufffd"),
        (b"y" * 5000, "y" * 300 + "..."),
    ):
        server.answer = only(lambda request, content=content: Fault(400, content))
        assert captions(captioner(server))[2][0].message == f"status 400: {said}"


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_when_it_says(server: ChatServer, status: int) -> None:
    times: dict[bytes, list[float]] = {}

    def answer(request: Request) -> str | Fault:
        times.setdefault(request.image, []).append(time.monotonic())
        if len(times[request.image]) > 1:
            return caption_of(request)
        return Fault(status, headers={"Retry-After": "0.3"})

    server.answer = answer
    assert len(texts(captions(captioner(server, concurrency=1), IMAGES[:2]))) == 2
    assert all(again - first >= 0.29 for first, again in times.values())


def test_a_retry_after_may_be_a_date_and_is_no_reason_to_fail(server: ChatServer) -> None:
    past = email.utils.formatdate(time.time() - 60, usegmt=True)
    for value in (past, "soon", "-1", "nan", ""):
        seen: Counter[bytes] = Counter()

        def answer(request: Request, value: str = value, seen: Any = seen) -> str | Fault:
            seen[request.image] += 1
            is_first = seen[request.image] == 1
            return Fault(429, headers={"Retry-After": value}) if is_first else caption_of(request)

        server.answer = answer
        assert len(texts(captions(captioner(server)))) == len(IMAGES)


def test_being_busy_does_not_count_as_a_try(server: ChatServer) -> None:
    server.answer = lambda r: Fault(429, headers={"Retry-After": "0"}) if r.attempt < 9 else "ok"
    assert texts(captions(captioner(server, tries=1), IMAGES[:2])) == [["ok"], ["ok"]]


def test_a_server_that_stays_busy_ends_the_stage(server: ChatServer) -> None:
    server.answer = lambda request: Fault(429, b'{"error": {"message": "quota is used up"}}')
    with pytest.raises(
        StageUnavailableError, match=r"no request for .*quota is used up.*concurrency"
    ):
        captions(captioner(server, patience=0.1))


def test_a_server_that_fails_on_every_request_ends_the_stage(server: ChatServer) -> None:
    server.answer = lambda request: Fault(500, b'{"error": {"message": "CUDA error"}}')
    with pytest.raises(StageUnavailableError, match=r"fails on every request.*CUDA error"):
        captions(captioner(server))


def test_a_server_that_is_gone_ends_the_stage() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(StageUnavailableError, match="no connection"):
        captions(captioner(url, patience=0.05))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(401), "key in \\$OPENAI_API_KEY"),
        (Fault(403), "key in \\$OPENAI_API_KEY"),
        (Fault(404, b'{"detail": "Not Found"}'), "/v1"),
        (Fault(301, headers={"Location": "https://elsewhere/v1"}), "https://elsewhere/v1"),
    ],
)
def test_a_server_that_lets_nobody_in_ends_the_stage(
    server: ChatServer, fault: Fault, message: str
) -> None:
    server.answer = only(lambda request: fault)
    with pytest.raises(StageUnavailableError, match=message):
        captions(captioner(server))


def test_the_key_is_sent_and_shown_nowhere(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv("MY_KEY", KEY)
    one = captioner(server, key_env="MY_KEY", revision=None)
    echo = json.dumps({"error": {"message": f"bad key {KEY}"}}).encode()
    server.answer = only(lambda request: Fault(400, echo))
    found = captions(one)
    assert found[2][0].message == "status 400: bad key ***"
    assert set(server.authorizations) == {f"Bearer {KEY}"}
    for status in (401, 404, 500):
        server.answer = lambda request, status=status: Fault(status, echo)
        with pytest.raises(StageUnavailableError) as error:
            captions(one)
        assert KEY not in str(error.value) and "***" in str(error.value)
    server.models = [{"id": KEY}]
    with pytest.raises(StageUnavailableError) as error:
        served_revision((server.url,), "m", "MY_KEY")
    assert KEY not in str(error.value)
    assert KEY not in caplog.text


def test_no_key_is_sent_where_none_is_set(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "")
    captions(captioner(server, key_env="MY_KEY"))
    assert set(server.authorizations) == {None}


def test_a_check_asks_each_server_for_one_token() -> None:
    seen: list[Request] = []

    def answer(request: Request) -> str:
        seen.append(request)
        return caption_of(request)

    with ChatServer(answer=answer) as first, ChatServer(answer=answer) as second:
        captioner(first, second).check(Settings(top_k=3), "Describe")
    assert len(seen) == 2
    for request in seen:
        assert request.is_probe and request.body["top_k"] == 3 and request.prompt == "Describe"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(400, b'{"message": "unknown field top_k"}'), "unknown field top_k"),
        (Fault(503, b'{"error": {"message": "Loading model"}}'), "Loading model"),
        (Fault(500), "status 500"),
        (Fault(401), "OPENAI_API_KEY"),
        (Fault(content=b"hello"), "no JSON"),
    ],
)
def test_a_check_tells_what_is_wrong_at_once(
    server: ChatServer, fault: Fault, message: str
) -> None:
    server.answer = lambda request: fault
    with pytest.raises(StageUnavailableError, match=message):
        captioner(server).check(Settings(), "Describe")


def test_a_server_without_seeds_is_asked_without(
    server: ChatServer, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(request: Request) -> str | Fault:
        return Fault(400, b"unknown field seed") if "seed" in request.body else "a dog"

    server.answer = answer
    one = captioner(server)
    one.check(Settings(), "Describe")
    assert "accepts no seeds" in caplog.text
    assert texts(captions(one))[0] == ["a dog"]


def test_the_revision_is_what_a_server_says_of_the_model() -> None:
    with ChatServer("m", root="/models/qwen", max_model_len=4096, created=1) as server:
        found = served_revision((server.url,), "m", "NONE")
        assert found == 'm {"root": "/models/qwen"}'
        server.models[0].update(created=2, max_model_len=8192)  # the server has started again
        served_revision.cache_clear()
        assert served_revision((server.url,), "m", "NONE") == found
        server.models[0]["root"] = "/models/other"
        assert served_revision((server.url,), "m", "NONE") == found  # asked once in a process
        served_revision.cache_clear()
        assert served_revision((server.url,), "m", "NONE") != found
        server.models = [{"id": "m", "meta": {"n_params": 7, "n_ctx": 512}}]
        served_revision.cache_clear()
        assert served_revision((server.url,), "m", "NONE") == 'm {"n_params": 7}'


def test_servers_of_different_models_are_refused() -> None:
    with (
        ChatServer("m", root="a") as first,
        ChatServer("m", root="b") as second,
        pytest.raises(StageUnavailableError, match=r'"root": "a".*"root": "b".*same model'),
    ):
        served_revision((first.url, second.url), "m", "NONE")


def test_a_model_that_a_server_lacks_is_named(server: ChatServer) -> None:
    with pytest.raises(StageUnavailableError, match="has no model 'other'; it has m"):
        served_revision((server.url,), "other", "NONE")


@pytest.mark.parametrize(
    "fault",
    [Fault(404), Fault(500), Fault(503), Fault(content=b"no"), Fault(cut=1), Fault(301)],
)
def test_a_server_that_lists_no_models_is_refused(server: ChatServer, fault: Fault) -> None:
    server.lists = lambda: fault
    with pytest.raises(StageUnavailableError, match=server.url):
        served_revision((server.url,), "m", "NONE")


def test_a_model_that_changes_while_captions_are_written_is_noticed() -> None:
    with ChatServer("m", root="a") as server:
        one = captioner(server, revision=served_revision((server.url,), "m", "NONE"))
        assert len(texts(captions(one))) == len(IMAGES)

        def answer(request: Request) -> str:
            server.models[0]["root"] = "b"
            return caption_of(request)

        server.answer = answer
        with pytest.raises(
            StageUnavailableError, match=r'changed: it was m \{"root": "a"\}, now it is.*"b"'
        ):
            captions(one)
        server.requests.clear()
        with pytest.raises(StageUnavailableError, match="changed"):
            captions(one)
        assert not server.requests  # noticed before anything is asked


def test_a_model_that_answers_by_another_name_is_noticed(server: ChatServer) -> None:
    server.answer = only(lambda request: completion("a dog", "n"))
    with pytest.raises(StageUnavailableError, match="answered as m and now as n"):
        captions(captioner(server, concurrency=1))


def test_a_text_is_one_clean_line_and_tells_whether_it_was_cut(server: ChatServer) -> None:
    server.answer = lambda request: completion(
        "  a dog\n\non\tthe \u0000grass\ud800 ", "m", "length"
    )
    [[found]] = captions(captioner(server), IMAGES[:1])
    assert found == Caption("a dog on the grass", True)
    for content in (None, "", []):
        server.answer = lambda request, content=content: completion(content)
        assert captions(captioner(server), IMAGES[:1]) == [[Caption("", False)]]
    parts = [{"type": "text", "text": "a dog"}, {"type": "other"}]
    server.answer = lambda request: completion(parts)
    assert texts(captions(captioner(server), IMAGES[:1])) == [["a dog"]]


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "finish_reason", "model", "type"]),
            inner,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answer=JSON | st.builds(completion, JSON, st.just("m"), JSON))
def test_no_answer_raises_anything_but_what_is_foreseen(server: ChatServer, answer: Any) -> None:
    body = json.dumps(answer).encode()
    server.answer = lambda request: "ok" if request.is_probe else Fault(content=body)
    try:
        [[found]] = captions(captioner(server, tries=1), IMAGES[:1])
    except StageUnavailableError as error:
        assert "changed" in str(error)  # an answer by another model
    else:
        assert found.error in (None, "bad_answer", "refused")
        found.text.encode()


def test_an_unforeseen_error_is_raised(server: ChatServer) -> None:
    with pytest.raises(IndexError):
        captioner(server).caption(IMAGES[:2], [0, 1], Settings(), prompt=["Describe"])
