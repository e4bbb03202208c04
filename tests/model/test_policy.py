"""The networks of a diffusion policy: what steers them, and that they survive the export."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from ddpm_deploy.model import PolicyConfig, PolicyNet, build_network
from ddpm_deploy.model.policy import denoiser, encoder

SMALL: dict[str, Any] = {"action_dim": 3, "cond_dim": 5, "channels": [8, 16, 32], "time_channels": 8, "norm_groups": 4}
OBSERVED: dict[str, Any] = {"obs_horizon": 2, "obs_dim": 3, "cond_dim": 5, "hidden": 16}


@pytest.fixture(scope="module")
def network() -> PolicyNet:
    return denoiser(**SMALL).eval()


def feeds(n: int, horizon: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x, cond = torch.randn(n, 3, horizon, generator=draw), torch.randn(n, 5, generator=draw)
    return x, torch.linspace(0, 99.5, n), cond


@torch.inference_mode()
def run(network: Any, *inputs: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = network(*inputs)
    return out


@pytest.mark.parametrize("horizon", [4, 8, 16])
def test_a_chunk_of_any_fitting_horizon_keeps_its_shape(network: PolicyNet, horizon: int) -> None:
    out = run(network, *feeds(2, horizon))
    assert out.shape == (2, 3, horizon)
    assert out.dtype == torch.float32


def test_the_default_is_the_network_of_the_paper() -> None:
    """Counted by hand from the layers that the paper lists; the time embedding is our own."""

    def block(a: int, b: int) -> int:
        convolutions = 5 * a * b + 5 * b * b + 2 * b + 4 * b  # two of them, with their normalisation
        return convolutions + (256 + 10 + 1) * 2 * b + (0 if a == b else (a + 1) * b)

    levels = [(2, 256), (256, 256), (256, 512), (512, 512), (512, 1024)] + [(1024, 1024)] * 3
    levels += [(2048, 512), (512, 512), (1024, 256), (256, 256)]
    resampling = sum(3 * c * c + c for c in (256, 512)) + sum(4 * c * c + c for c in (512, 256))
    end = 5 * 256 * 256 + 3 * 256 + 257 * 2
    time = 2 * 257 * 256
    with torch.device("meta"):
        network = PolicyNet(PolicyConfig(action_dim=2, cond_dim=10))
    assert (
        sum(p.numel() for p in network.parameters()) == sum(block(*pair) for pair in levels) + resampling + end + time
    )


def test_the_condition_and_the_time_reach_every_block(network: PolicyNet) -> None:
    """With the modulation's weights at zero neither changes anything; with one block's back, both do."""
    x, t, cond = feeds(2)
    films = [module for name, module in network.named_modules() if name.endswith("film")]
    assert len(films) == 2 * (3 + 1 + 2)
    kept = [film.weight.clone() for film in films]

    def changed(*other: torch.Tensor) -> float:
        return float((run(network, *other) - run(network, x, t, cond)).abs().max())

    with torch.no_grad():
        for film in films:
            film.weight.zero_()
    try:
        assert changed(x, t, cond + 1) == changed(x, t + 5, cond) == 0
        for film, weight in zip(films, kept, strict=True):
            with torch.no_grad():
                film.weight.copy_(weight)
            assert changed(x, t, cond + 1) > 1e-5
            assert changed(x, t + 5, cond) > 1e-5
            with torch.no_grad():
                film.weight.zero_()
    finally:
        with torch.no_grad():
            for film, weight in zip(films, kept, strict=True):
                film.weight.copy_(weight)


def test_modulation_scales_and_shifts_each_channel() -> None:
    """A block whose modulation says "times 0, plus 1" forgets its input, but for the shortcut."""
    block = denoiser(**{**SMALL, "channels": [8]}).down[0].second
    with torch.no_grad():
        block.film.weight.zero_()
        block.film.bias.copy_(torch.cat([torch.zeros(8), torch.ones(8)]))
    x, steer = torch.randn(2, 8, 8), torch.randn(2, 13)
    constant = run(block.block_out, torch.ones(2, 8, 8))
    torch.testing.assert_close(run(block, x, steer), x + constant)


def test_a_chunk_does_not_depend_on_its_neighbours(network: PolicyNet) -> None:
    x, t, cond = feeds(5)
    together = run(network, x, t, cond)
    for i in range(5):
        one = slice(i, i + 1)
        torch.testing.assert_close(run(network, x[one], t[one], cond[one]), together[one], rtol=1e-5, atol=1e-6)


def test_a_seed_gives_the_same_weights_and_leaves_the_generator_of_torch_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, second, other = denoiser(**SMALL), denoiser(**SMALL, seed=0), denoiser(**SMALL, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.outward.weight, other.outward.weight)
    assert not torch.equal(encoder(**OBSERVED).linear_in.weight, encoder(**OBSERVED, seed=1).linear_in.weight)


def test_spec_builds_the_same_network(network: PolicyNet) -> None:
    spec = network.spec()
    assert spec == {"kind": "policy", "config": {**SMALL, "kernel_size": 5, "time_scale": 1.0}}
    again = build_network(spec).eval()
    again.load_state_dict(network.state_dict())
    torch.testing.assert_close(run(again, *feeds(2)), run(network, *feeds(2)))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((torch.zeros(1, 3, 6), torch.zeros(1), torch.zeros(1, 5)), "x: got .* a multiple of 4"),
        ((torch.zeros(1, 2, 8), torch.zeros(1), torch.zeros(1, 5)), r"x: got .* expected \(B, 3, horizon\)"),
        ((torch.zeros(1, 3, 8), torch.zeros(1)), "global_cond: missing"),
    ],
    ids=["horizon", "channels", "condition"],
)
def test_wrong_inputs_are_refused(network: PolicyNet, inputs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(*inputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": []}, "channels: got none"),
        ({"channels": [8, 10]}, "10 is not a multiple of norm_groups 4"),
        ({"kernel_size": 4}, "kernel_size: got 4"),
        ({"time_channels": 7}, "time_channels: got 7"),
        ({"cond_dim": 0}, "cond_dim: got 0"),
        ({"width": 3}, "unknown key 'width'"),
        ({"action_dim": 2.5}, "action_dim: got 2.5"),
    ],
)
def test_a_bad_configuration_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        denoiser(**{**SMALL, **change})


def test_the_encoder_normalises_each_channel_by_its_statistics() -> None:
    mean, std = [1.0, -2.0, 0.5], [2.0, 0.1, 10.0]
    plain, scaled = encoder(**OBSERVED), encoder(**OBSERVED, mean=mean, std=std)
    observation = torch.randn(4, 2, 3)
    raw = observation * torch.tensor(std) + torch.tensor(mean)
    torch.testing.assert_close(run(scaled, raw), run(plain, observation), rtol=1e-4, atol=1e-5)
    assert run(plain, observation).shape == (4, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": [1.0]}, "mean: got 1 numbers, expected 3"),
        ({"std": [1.0, 0.0, 1.0]}, "std: got .* positive"),
        ({"obs_dim": 0}, "obs_dim: got 0"),
    ],
)
def test_a_bad_encoder_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder(**{**OBSERVED, **change})


# -- exported ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graph(network: PolicyNet) -> Any:
    """The exporter's own trace of the network."""
    pytest.importorskip("onnx", reason="writes ONNX")
    from ddpm_deploy.bundle import Condition
    from ddpm_deploy.export.graph import Denoiser, trace

    x, t, cond = (tensor.numpy() for tensor in feeds(2))
    wrapped = Denoiser(network, [Condition("global_cond", (5,), "float32")]).eval()
    return trace(wrapped, {"x": x, "t": t, "global_cond": cond}, 18)


@pytest.fixture(scope="module")
def session(graph: Any) -> Iterator[Any]:
    ort = pytest.importorskip("onnxruntime", reason="runs the graph")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("n", [1, 3, 7])
def test_onnx_runtime_agrees_at_odd_batches(session: Any, network: PolicyNet, n: int) -> None:
    x, t, cond = feeds(n, seed=n)
    (found,) = session.run(None, {"x": x.numpy(), "t": t.numpy(), "global_cond": cond.numpy()})
    expected = run(network, x, t, cond).numpy()
    assert np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


def test_the_graph_computes_no_shapes_at_run_time(graph: Any) -> None:
    from ddpm_deploy.export.graph import shape_nodes

    assert shape_nodes(graph) == 0
    assert "Mish" not in {node.op_type for node in graph.graph.node}
