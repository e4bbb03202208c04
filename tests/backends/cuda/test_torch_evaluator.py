"""The torch evaluator where it differs from what a host can run: compiling, failures, and what they leave behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="evaluates the network")

import torch
from host_device import HostDevice

from ddpm_deploy.backends import open_backend
from ddpm_deploy.backends.cuda import Loop, OutOfDeviceMemory
from ddpm_deploy.backends.cuda.device import Buffers
from ddpm_deploy.backends.cuda.loop import Draw, Key
from ddpm_deploy.backends.cuda.torch_evaluator import TorchEvaluator, compiled
from ddpm_deploy.bundle import Bundle
from ddpm_deploy.errors import BackendError

SHAPE = (1, 2, 2)


class Failing(torch.nn.Module):
    """Raises what it is given, or copies x."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Any, t: Any) -> Any:
        if self.error is not None:
            raise self.error
        return x * 1


def make_draw(n: int) -> Draw:
    tables = {"t": np.zeros(1), "predict": np.zeros((1, 2)), "clip": np.zeros((1, 2)), "update": np.zeros((1, 1, 4))}
    tables["update"][0, 0, 2] = 1  # the state becomes the network's output
    floats: Any = {name: table.astype(np.float32) for name, table in tables.items()}
    return Draw(floats, False, 0, range(n), SHAPE, np.ones((n, *SHAPE), np.float32), {})


def test_every_shape_is_compiled_however_many_there_are() -> None:
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    module = Failing()
    for n in range(1, 12):  # PyTorch's own limit is 8 for each piece of code
        network = compiled(module, backend)
        for _ in range(2):
            assert network(torch.ones(n, *SHAPE), torch.ones(n)).shape[0] == n
        assert len(graphs) == n


def test_a_shape_is_compiled_once_for_all_buckets_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(
        "ddpm_deploy.backends.cuda.torch_evaluator.compiled", lambda module: made.append(module) or module
    )
    evaluator = TorchEvaluator(Failing(), autocast=None, learned=False, compiles=True)
    for batch, given in ((1, True), (1, False), (2, True)):
        key = Key(batch, SHAPE, 1, 1000, False, False, given, False, ())
        buffers = {"state": (np.float32, (1, batch, *SHAPE)), "row_t": (np.float32, (batch,)), **evaluator.layout(key)}
        evaluator.prepare(Buffers(HostDevice(), buffers), key)
    assert len(made) == 2


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("CUDA out of memory. Tried to allocate 2 GiB", OutOfDeviceMemory),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate", OutOfDeviceMemory),
        ("CUDA error: an illegal memory access", BackendError),
    ],
)
def test_errors_of_torch_are_ours(said: str, kind: type[Exception]) -> None:
    evaluator = TorchEvaluator(Failing(RuntimeError(said)), autocast=None, learned=False)
    made = Loop(HostDevice(), evaluator, (1,))
    expected = "not even a batch of 1 fits" if kind is OutOfDeviceMemory else said
    with pytest.raises(BackendError, match=expected) as caught:
        made.sample(make_draw(1))
    assert isinstance(caught.value.__cause__, kind if kind is OutOfDeviceMemory else RuntimeError)


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """torch.cuda whose captures fail when they end, as spoilt ones do; what streams are entered and left."""
    seen: list[str] = []

    @contextmanager
    def stream(of: Any) -> Iterator[None]:
        seen.append("enter")
        try:
            yield
        finally:
            seen.append("leave")

    class Graph:
        def __init__(self, graph: Any, **settings: Any) -> None:
            assert settings["capture_error_mode"] == "thread_local"

        def __enter__(self) -> None: ...

        def __exit__(self, *exc: object) -> None:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    fake = {"stream": stream, "graph": Graph, "CUDAGraph": SimpleNamespace, "ExternalStream": lambda *a, **k: None}
    for name, value in fake.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return seen


def test_what_failed_in_a_capture_counts_more_than_how_it_ended(fake_cuda: list[str]) -> None:
    evaluator = TorchEvaluator(Failing(), autocast=None, learned=False)
    device: Any = SimpleNamespace(kind="cuda", stream=1, index=0, active=nullcontext)

    def enqueue() -> None:
        raise OutOfDeviceMemory("no room")

    with pytest.raises(OutOfDeviceMemory, match="no room"):
        evaluator.capture(device, enqueue)
    assert fake_cuda == ["enter", "leave"]
    with pytest.raises(BackendError, match="previous error during capture"):
        evaluator.capture(device, lambda: None)


def test_memory_that_torch_keeps_goes_back_before_a_batch_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    device, events = HostDevice(), list[str]()
    evaluator = TorchEvaluator(Failing(), autocast=None, learned=False)
    made = Loop(device, evaluator, (1, 4))
    made.sample(make_draw(1))
    monkeypatch.setattr(evaluator, "release", lambda: events.append(f"release at {device.used_bytes}"))
    monkeypatch.setattr(device, "free_graphs", lambda: events.append("graphs"))
    refuses = iter([True, False])
    allocate = device.allocate

    def allocate_or_not(size_bytes: int) -> Any:
        if next(refuses):
            raise OutOfDeviceMemory("host: no room")
        return allocate(size_bytes)

    monkeypatch.setattr(device, "allocate", allocate_or_not)
    assert made.sample(make_draw(4)).shape == (4, *SHAPE)
    assert events == ["graphs", "release at 0"]
    assert made.buckets == (1, 4)


def test_network_with_conditions_is_compiled_whole_and_computes_the_same(stepped: Bundle) -> None:
    network: Any = open_backend("torch", stepped, threads=1)._runtime  # type: ignore[attr-defined]
    inputs = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 99.0])
    labels = torch.tensor([0, 2])
    with torch.no_grad():
        got = compiled(network, "eager")(*inputs, labels=labels)
        torch.testing.assert_close(got, network(*inputs, labels=labels))
