"""Every path of a model on a GPU that is not there: it finds whatever is left on the CPU."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.blips import WORDS, drawn, loaded, save_blip2, save_clip
from helpers.contract import built, small
from helpers.fake_cuda import DEVICE, CudaTensor, Graph, cuda, fake_cuda, move
from helpers.nano import batch_of
from helpers.vlms import save_llava
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from models.inference.captioner import Captioner
from models.inference.decoding import Settings
from models.inference.dual_encoder import DualEncoder
from models.inference.matcher import Matcher
from models.inference.vlm import GenericCaptioner
from models.objectives.base import Step
from models.objectives.registry import OBJECTIVES

IMAGES = [drawn(seed) for seed in range(6)]
TEXTS = [WORDS.split()[: 3 + seed] for seed in range(6)]
MIXED = "Expected all tensors to be on the same device"


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Graph]]:
    with fake_cuda(monkeypatch) as captured:
        yield captured


@contextlib.contextmanager
def left_on_cpu(module: nn.Module, name: str) -> Iterator[None]:
    """A module whose parameter or buffer of that name was not moved."""
    owner, _, leaf = name.rpartition(".")
    kept: Any = module.get_submodule(owner)
    kept = kept._parameters if leaf in kept._parameters else kept._buffers
    moved = kept[leaf]
    kept[leaf] = moved.detach().as_subclass(torch.Tensor)
    try:
        yield
    finally:
        kept[leaf] = moved


def check_every_tensor(module: nn.Module, run: Callable[[], Any], at_least: int) -> None:
    """Leave tensors on the CPU one after the other: each is found, unless it is not used."""
    named = [*module.named_parameters(), *module.named_buffers()]
    found = 0
    for name, _ in named[:: max(1, len(named) // 12)]:
        with left_on_cpu(module, name):
            try:
                run()
            except RuntimeError as error:
                assert "same device" in str(error)
                found += 1
    assert found >= at_least


# Captioner


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Captioner:
    found: Captioner = loaded(Captioner, tmp_path_factory.mktemp("captioner"))
    return found


def captioner_on_cuda(captioner: Captioner) -> Captioner:
    return Captioner(
        move(copy.deepcopy(captioner.model)), captioner.tokenizer, captioner.preprocess
    )


@pytest.mark.parametrize("decoding", ["nucleus", "beam", "greedy"])
def test_the_captioner_writes_on_cuda_what_it_writes_on_the_cpu(
    captioner: Captioner, graphs: list[Graph], decoding: Any
) -> None:
    settings = Settings(
        decoding=decoding, num_captions=1 if decoding == "greedy" else 2, repetition_penalty=1.1
    )
    moved = captioner_on_cuda(captioner)
    assert moved.device == DEVICE
    expected = captioner.caption(IMAGES, range(6), settings)
    assert moved.caption(IMAGES, range(6), settings) == expected
    [graph] = graphs  # a step was captured, and replayed for all further ones
    assert graph.replays > 5
    # Fewer images after more: the reader and its graph serve again.
    assert moved.caption(IMAGES[:4], range(4), settings) == expected[:4]
    assert len(graphs) == 1


def test_whatever_of_the_captioner_is_left_on_the_cpu_is_found(
    captioner: Captioner, graphs: list[Graph]
) -> None:
    moved = captioner_on_cuda(captioner)
    check_every_tensor(moved.model, lambda: moved.caption(IMAGES, range(6)), 10)
    moved.device = torch.device("cpu")  # of the prompt and of the random numbers
    with pytest.raises(RuntimeError, match=MIXED):
        moved.caption(IMAGES, range(6))


def test_a_graph_that_would_wait_for_the_gpu_is_given_up(
    captioner: Captioner,
    graphs: list[Graph],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from models.inference.captioner import _Reader

    step = _Reader._step

    def waits(reader: _Reader) -> torch.Tensor:
        logits = step(reader)
        bool(logits.isnan().any())
        return logits

    monkeypatch.setattr(_Reader, "_step", waits)
    moved = captioner_on_cuda(captioner)
    assert moved.caption(IMAGES, range(6)) == captioner.caption(IMAGES, range(6))
    assert "CUDA cannot record" in caplog.text and not graphs[0].replays


# Matcher and dual encoder


def assert_close(scored: Any, expected: Any) -> None:
    """Equal but for the rounding of products, which depends on where tensors lie in memory."""
    assert [len(row) for row in scored] == [len(row) for row in expected]
    for row, other in zip(scored, expected, strict=True):
        for score, value in zip(row, other, strict=True):
            numbers = [number for number in value if number is not None]
            assert [number for number in score if number is not None] == pytest.approx(
                numbers, abs=1e-5
            )


def test_the_matcher_scores_on_cuda_as_on_the_cpu(tmp_path: Path, graphs: list[Graph]) -> None:
    matcher: Matcher = loaded(Matcher, tmp_path)
    moved = Matcher(move(copy.deepcopy(matcher.model)), matcher.tokenizer, matcher.preprocess)
    assert_close(moved.score(IMAGES, TEXTS), matcher.score(IMAGES, TEXTS))
    check_every_tensor(moved.model, lambda: moved.score(IMAGES, TEXTS), 10)


def test_clip_scores_on_cuda_as_on_the_cpu(tmp_path: Path, graphs: list[Graph]) -> None:
    clip = DualEncoder.from_pretrained(save_clip(tmp_path), dtype="float32")
    moved = DualEncoder(move(copy.deepcopy(clip.model)), clip.tokenizer, clip.processor)
    assert moved.device == DEVICE
    assert_close(moved.score(IMAGES, TEXTS), clip.score(IMAGES, TEXTS))
    check_every_tensor(moved.model, lambda: moved.score(IMAGES, TEXTS), 10)


# Vision-language models


@pytest.mark.parametrize("save", [save_blip2, save_llava])
@pytest.mark.parametrize("decoding", ["nucleus", "greedy"])
def test_a_vision_language_model_writes_on_cuda_what_it_writes_on_the_cpu(
    tmp_path: Path, graphs: list[Graph], save: Any, decoding: Any
) -> None:
    captioner = GenericCaptioner.from_pretrained(save(tmp_path), dtype="float32")
    moved = GenericCaptioner(move(copy.deepcopy(captioner.model)), captioner.processor)
    settings = Settings(decoding=decoding, max_tokens=8, max_length=10)
    images = IMAGES[:3]

    def write(one: GenericCaptioner) -> Any:
        return one.caption(images, range(3), settings, prompt="a picture")

    assert moved.device == DEVICE and write(moved) == write(captioner)
    check_every_tensor(moved.model, lambda: write(moved), 8)


# Objectives


def step(model: Any, batch: Any) -> dict[str, torch.Tensor]:
    """Two steps of training; the losses of both, and the parameters after them."""
    parameters = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    found = {}
    for number in range(2):
        torch.manual_seed(number)
        losses = model(batch, Step(number=number))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        found |= {f"{name} {number}": loss.detach() for name, loss in losses.items()}
    return found | {str(index): one.detach() for index, one in enumerate(parameters)}


@pytest.mark.parametrize(
    ("name", "fields"), [*((name, {}) for name in OBJECTIVES.ours), ("clip", {"loss": "sigmoid"})]
)
def test_an_objective_trains_on_cuda_as_on_the_cpu(
    tokenizer: str, graphs: list[Graph], name: str, fields: dict[str, Any]
) -> None:
    kind = OBJECTIVES[name]
    queue = {"queue_size": 8} if "queue_size" in kind.__dataclass_fields__ else {}
    model = built(small(kind, tokenizer, **queue, **fields)).train()
    batch = batch_of(model)
    moved = move(copy.deepcopy(model))
    expected, found = step(model, batch), step(moved, batch.to(DEVICE))
    assert expected.keys() == found.keys() and len(expected) > 3
    for name, value in found.items():
        assert isinstance(value, CudaTensor)
        torch.testing.assert_close(value.cpu(), expected[name], msg=name)
    check_every_tensor(moved, lambda: step(moved, batch.to(DEVICE)), 8)
    with pytest.raises(RuntimeError, match=MIXED):
        step(moved, batch)


# The rules


CASES: list[tuple[str, Callable[[Any, Any], Any]]] = [
    ("sum", lambda here, there: here + there),
    ("number", lambda here, there: here[0, 0] + there),
    ("product", lambda here, there: there @ here),
    ("concatenation", lambda here, there: torch.cat([there, here])),
    ("choice", lambda here, there: torch.where(here > 0, there, there)),
    ("embedding", lambda here, there: nn.functional.embedding(here.long(), there)),
    ("linear", lambda here, there: nn.functional.linear(there, there, here[0])),
    ("move", lambda here, there: here.to(there.device) + there),
    ("like", lambda here, there: torch.zeros_like(there) + there),
    ("gather", lambda here, there: there.gather(0, here.long())),
    ("filled", lambda here, there: there.masked_fill(here > 0, 1.0)),
    ("attention", lambda here, there: nn.functional.softmax(there @ there + here, -1)),
    ("made", lambda here, there: torch.ones(3, 3, device=there.device) + there),
    ("made here", lambda here, there: torch.ones(3, 3) + there),
]


@pytest.mark.parametrize(("name", "call"), CASES, ids=[name for name, _ in CASES])
def test_the_rules_are_those_of_pytorchs_fake_tensors(
    monkeypatch: pytest.MonkeyPatch, name: str, call: Callable[[Any, Any], Any]
) -> None:
    def refused(*tensors: Any) -> bool:
        try:
            call(*tensors)
        except RuntimeError as error:
            assert "device" in str(error)
            return True
        return False

    with torch.no_grad():
        with FakeTensorMode():
            expected = refused(torch.ones(3, 3), torch.ones(3, 3, device=DEVICE))
        with fake_cuda(monkeypatch):
            assert refused(torch.ones(3, 3), cuda(torch.ones(3, 3))) == expected


def test_what_a_gpu_does_not_give_is_refused(graphs: list[Graph]) -> None:
    there = torch.arange(6.0, device="cuda").view(2, 3)
    assert isinstance(there, CudaTensor) and there.device == DEVICE and there.is_cuda
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    assert type(there.cpu()) is torch.Tensor and there.cpu().numpy().sum() == 15
    assert there.tolist() == [[0, 1, 2], [3, 4, 5]] and there.sum().item() == 15
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device=DEVICE, generator=torch.Generator())
    with pytest.raises(RuntimeError, match=MIXED):
        there[there > 1] = torch.zeros(4)
    there[0] = torch.zeros(3)
    assert there.sum() == 12
