"""Tensors that say they are on a GPU, on a machine without one.

A `CudaTensor` reports the device cuda:0 and computes on the CPU. Every call of PyTorch with such
tensors raises where a tensor of the CPU meets them, as a GPU would. So a model runs to its end on
"cuda", gradients and captured CUDA graphs included, its answers can be compared with those on the
CPU, and a tensor left on the CPU is found.

PyTorch's own FakeTensorMode has the rules (a test compares them), but no values, which decide where
captions end; and without CUDA it can neither index nor differentiate tensors on cuda.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

__all__ = ["DEVICE", "CudaTensor", "Graph", "cuda", "fake_cuda", "move"]

DEVICE = torch.device("cuda:0")

_CROSSES = {
    torch.Tensor.copy_,
    torch.Tensor.cpu,
    torch.Tensor.cuda,
    torch.Tensor.to,
    torch.Tensor.type_as,
}
"""Calls that move values from one device to another."""

_INDEXES = {torch.Tensor.__getitem__, torch.Tensor.index_put_, torch.Tensor.index_put}
"""Calls whose indices may be on the CPU."""

_READS = {
    torch.Tensor.__bool__,
    torch.Tensor.__float__,
    torch.Tensor.__index__,
    torch.Tensor.__int__,
    torch.Tensor.cpu,
    torch.Tensor.item,
    torch.Tensor.nonzero,
    torch.Tensor.tolist,
    torch.nonzero,
}
"""Calls that wait for the GPU, which no graph can capture."""


class CudaTensor(torch.Tensor):
    """A tensor on cuda:0 that computes on the CPU."""

    device = property(lambda self: DEVICE)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"CudaTensor({_plain(self)!r})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


class Graph:
    """A CUDA graph: what ran while it was captured runs again on the same memory."""

    capturing: Graph | None = None

    def __init__(self) -> None:
        self.steps: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, results in self.steps:
            with torch._C.DisableTorchFunctionSubclass():
                for old, new in zip(results, _tensors(func(*args, **kwargs)), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


def cuda(value: torch.Tensor) -> Any:
    """A tensor on cuda:0."""
    return value.as_subclass(CudaTensor)


def move(module: nn.Module) -> nn.Module:
    """Move the parameters and buffers of a module to cuda:0, as `module.to` does."""
    moved: dict[int, tuple[Any, Any]] = {}  # shared ones stay shared
    for part in module.modules():
        for kept in (part._parameters, part._buffers):
            for name, value in kept.items():
                if value is None or isinstance(value, CudaTensor):
                    continue
                if id(value) not in moved:
                    there = cuda(value.detach())
                    if kept is part._parameters:
                        there = nn.Parameter(there, value.requires_grad)
                    moved[id(value)] = value, there
                kept[name] = moved[id(value)][1]
    return module


@contextlib.contextmanager
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Graph]]:
    """Let code make tensors, streams and graphs on cuda:0; gives the graphs that it captures."""
    graphs: list[Graph] = []

    class Made(Graph):
        def __init__(self) -> None:
            super().__init__()
            graphs.append(self)

    @contextlib.contextmanager
    def capture(graph: Graph, **options: Any) -> Iterator[None]:
        Graph.capturing = graph
        try:
            yield
        finally:
            Graph.capturing = None

    class Stream:
        def wait_stream(self, stream: Stream) -> None:
            pass

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Made)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    with _Made():
        yield graphs


class _Made(TorchFunctionMode):
    """Sees the calls without a CudaTensor among their arguments, which may make one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


def _call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Carry out a call of PyTorch.

    Raises:
        RuntimeError: A tensor of the CPU meets one of cuda:0, or a graph captures what it cannot.
        TypeError: numpy is to see a tensor of cuda:0.
    """
    given = _tensors((args, kwargs))
    here = any(isinstance(one, CudaTensor) for one in given)
    if func is torch.Tensor.numpy and here:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")
    target = _target(func, args, kwargs, here)
    if Graph.capturing is not None and here and (func in _READS or target != DEVICE):
        raise RuntimeError(f"{func}: operation not permitted when stream is capturing")
    _check(func, args, kwargs, given, here)
    own = {k: v for k, v in kwargs.items() if k != "pin_memory"}
    if own.get("device") is not None:
        own["device"] = _computed_on(own["device"])
    own_args = tuple(_computed_on(one) if _is_device(one) else one for one in args)
    with torch._C.DisableTorchFunctionSubclass():
        found = func(*own_args, **own)
        if Graph.capturing is not None and here:
            Graph.capturing.steps.append((func, own_args, own, _tensors(found)))
        if func in (torch.Tensor.to, torch.Tensor.cpu) and found is args[0] and target != DEVICE:
            found = found.detach() if not found.requires_grad else found.view_as(found)
    return tree_map(_there if target == DEVICE else _plain, found)


def _target(func: Any, args: Any, kwargs: dict[str, Any], here: bool) -> torch.device:
    """The device of the results."""
    device = kwargs.get("device")
    if func is torch.Tensor.cuda:
        return DEVICE
    if func is torch.Tensor.cpu:
        return torch.device("cpu")
    if func is torch.Tensor.type_as:
        return torch.device(args[1].device)
    if func is torch.Tensor.to:
        others = [one for one in args[1:] if isinstance(one, torch.Tensor)]
        if others:
            return torch.device(others[0].device)
        options = {name: value for name, value in kwargs.items() if name != "copy"}
        device = torch._C._nn._parse_to(*args[1:], **options)[0]
    elif device is None:
        device = next((one for one in args if _is_device(one)), None)
    if device is None:
        return DEVICE if here else torch.device("cpu")
    return DEVICE if torch.device(device).type == "cuda" else torch.device("cpu")


def _check(
    func: Any, args: Any, kwargs: dict[str, Any], given: list[torch.Tensor], here: bool
) -> None:
    """Refuse a tensor of the CPU, other than a single number, beside one of cuda:0."""
    generator = kwargs.get("generator")
    if generator is not None:
        device = _target(func, args, kwargs, here)
        if torch.device(generator.device).type != device.type:
            raise RuntimeError(f"Expected a {device.type!r} device type for generator")
    if not here or func in _CROSSES:
        return
    if func in _INDEXES:
        given = _tensors(args[0]) + (_tensors(args[2:]) if len(args) > 2 else [])
    if func is torch.Tensor.__setitem__:
        if not _tensors(args[1]):
            return  # a slice is copied to, from any device
        given = _tensors((args[0], args[2]))
    strangers = [one for one in given if not isinstance(one, CudaTensor) and one.dim()]
    if strangers:
        shapes = ", ".join(str(tuple(one.shape)) for one in strangers)
        name = getattr(func, "__name__", func)
        raise RuntimeError(
            f"{name}: Expected all tensors to be on the same device, but found at least two "
            f"devices, cuda:0 and cpu (shapes {shapes})"
        )


def _computed_on(device: Any) -> torch.device:
    """The device that computes for another: the CPU for cuda, and meta for itself."""
    own = torch.device(device)
    return torch.device("cpu") if own.type == "cuda" else own


def _is_device(value: Any) -> bool:
    return isinstance(value, torch.device) or (
        isinstance(value, str) and value.split(":")[0] in ("cuda", "cpu")
    )


def _there(value: Any) -> Any:
    is_plain = isinstance(value, torch.Tensor) and not isinstance(value, CudaTensor)
    return cuda(value) if is_plain else value


def _plain(value: Any) -> Any:
    return value.as_subclass(torch.Tensor) if isinstance(value, CudaTensor) else value


def _tensors(value: Any) -> list[torch.Tensor]:
    return [one for one in tree_flatten(value)[0] if isinstance(one, torch.Tensor)]
