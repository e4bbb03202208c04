"""What ONNX Runtime is told on a GPU: its stream, its graphs, its precision; computed on the host all the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from host_device import HostDevice

from ddpm_deploy import Sampler
from ddpm_deploy.backends import onnxruntime as backend
from ddpm_deploy.backends.cuda import Loop
from ddpm_deploy.bundle import Bundle

STREAM = 4711


class Gpu(HostDevice):
    """A host that says that it is a GPU."""

    kind, stream = "cuda", STREAM


class Binding:
    def __init__(self, real: Any) -> None:
        self.real = real
        self.places: set[tuple[str, int]] = set()

    def bind_input(self, name: str, kind: str, index: int, *rest: Any) -> None:
        self.places.add((kind, index))
        self.real.bind_input(name, "cpu", index, *rest)

    def bind_output(self, name: str, kind: str, index: int, *rest: Any) -> None:
        self.places.add((kind, index))
        self.real.bind_output(name, "cpu", index, *rest)


class Session:
    """Computes on the CPU; runs: (binding, graph id, whether it does not wait) of every evaluation."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.runs: list[tuple[Binding, str, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def io_binding(self) -> Binding:
        return Binding(self._real.io_binding())

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        entries = (
            options.get_run_config_entry(name) for name in ("gpu_graph_id", "disable_synchronize_execution_providers")
        )
        self.runs.append((binding, *entries))
        self._real.run_with_iobinding(binding.real)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, str], Session]]:
    """(options of its provider, session) of everything that is opened on a machine whose build has CUDA."""
    opened: list[tuple[dict[str, str], Session]] = []
    real = backend.open_session

    def open_session(model: Any, weights: Any, provider: str, options: dict[str, str], threads: int) -> Any:
        assert provider == backend.CUDA
        session, placement = real(model, weights, backend.CPU, {}, threads)
        opened.append((options, Session(session)))
        return opened[-1][1], placement

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [backend.CUDA, backend.CPU])
    monkeypatch.setattr(backend, "open_session", open_session)
    return opened


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", "0"), ("tf32", "1")])
def test_session_is_told_its_stream_and_precision_and_to_capture(
    precision: str, tf32: str, stepped: Bundle, sessions: Any
) -> None:
    backend.step_evaluator(stepped, precision, "cuda:1", 1, Gpu()).close()
    ((options, _),) = sessions
    assert options == {
        "device_id": "1", "use_tf32": tf32, "user_compute_stream": str(STREAM), "enable_cuda_graph": "1"
    }  # fmt: skip


def test_every_bucket_and_direction_of_the_state_has_a_graph_of_its_own(stepped: Bundle, sessions: Any) -> None:
    device = Gpu()
    with Sampler.load(stepped, backend="torch", threads=1) as sampler:
        how: Any = {"solver": "unipc", "steps": 5, "seed": 3, "condition": {"labels": np.array([0, 1, 2, 1])}}
        expected = sampler.sample(4, **how)
        sampler.backend.loop = Loop(device, backend.step_evaluator(stepped, "fp32", "cuda", 1, device), (1, 4))
        drawn = sampler.sample(4, **how)
        one = sampler.sample(1, **{**how, "condition": {"labels": np.array([0])}})
    np.testing.assert_allclose(drawn, expected, atol=5e-4)
    np.testing.assert_allclose(one, expected[:1], atol=5e-4)
    ((_, session),) = sessions
    graphs = {(id(binding), graph) for binding, graph, _ in session.runs}
    assert len(graphs) == len({graph for _, graph in graphs}) == len({binding for binding, _ in graphs}) == 4
    assert {graph for _, graph in graphs} == {"1", "2", "3", "4"}
    assert {waits for _, _, waits in session.runs} == {"1"}
    assert set().union(*(binding.places for binding, _, _ in session.runs)) == {("cuda", 0)}
    going = [graph for _, graph, _ in session.runs[:5]]
    assert going[::2] == [going[0]] * 3
    assert going[1::2] == [going[1]] * 2
