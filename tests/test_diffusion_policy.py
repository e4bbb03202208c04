"""The diffusion policy example: one export, then the loop, against torch and the arithmetic of the units."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exports from torch")
pytest.importorskip("onnx", reason="writes ONNX")
pytest.importorskip("onnxruntime", reason="runs the policy")

from ddpm_deploy import Sampler  # noqa: E402
from ddpm_deploy.model.policy import denoiser, encoder  # noqa: E402
from ddpm_deploy.noise import initial_noise  # noqa: E402

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    sys.path.insert(0, str(EXAMPLES))
    yield importlib.import_module("diffusion_policy")
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def bundle(example: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return example.export(tmp_path_factory.mktemp("policy") / "bundle")


@pytest.fixture(scope="module")
def sampler(bundle: Any) -> Iterator[Sampler]:
    with Sampler.load(bundle, threads=1) as opened:
        yield opened


def test_a_chunk_is_what_torch_computes_from_the_raw_observations(example: Any, bundle: Any, sampler: Sampler) -> None:
    observation = example.PointRobot((1.0, 2.0)).observe()
    statistics = {"mean": [0.0, 0.5, 0.0, 1.0], "std": [0.5, 0.5, 1.0, 1.0]}
    observer = encoder(obs_horizon=2, obs_dim=4, cond_dim=example.FEATURES, **statistics).eval()
    network = denoiser(action_dim=2, cond_dim=example.FEATURES, channels=[32, 64], time_channels=32).eval()

    @torch.inference_mode()
    def denoise(x: Any, t: Any) -> Any:
        steer = observer(torch.from_numpy(observation)[None])
        return network(torch.from_numpy(np.array(x)), torch.from_numpy(np.array(t)), steer).numpy()

    expected = sampler.plan().run(denoise, initial_noise(0, range(1), (2, example.HORIZON)))
    found = sampler.sample(1, condition={"observation": observation})
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert any(file.role == "encoder" for file in bundle.manifest.files)


def test_the_observation_changes_the_chunk(example: Any, sampler: Sampler) -> None:
    here, there = (example.PointRobot((goal, 2.0)).observe() for goal in (1.0, -3.0))
    one, other = (sampler.sample(1, condition={"observation": seen}) for seen in (here, there))
    assert np.abs(one - other).max() > 1e-3


def test_actions_are_in_metres_per_second_by_the_range_of_each_axis(example: Any, sampler: Sampler) -> None:
    ends = np.stack([np.full((2, example.HORIZON), value, np.float32) for value in (-1, 1)])
    low, high = sampler.to_user(ends)[..., 0]
    np.testing.assert_allclose(low, example.LOW, atol=1e-6)
    np.testing.assert_allclose(high, example.HIGH, atol=1e-6)
    assert sampler.manifest.output.units == "m/s"


def test_the_loop_runs_part_of_each_chunk_and_looks_again(example: Any, sampler: Sampler) -> None:
    robot = example.PointRobot((1.0, 2.0))
    actions, latencies_ms = example.control(sampler, robot, chunks=3)
    assert actions.shape == (3 * example.EXECUTED, 2)
    assert len(latencies_ms) == 3
    assert (actions >= example.LOW - 1e-5).all()
    assert (actions <= example.HIGH + 1e-5).all()
    assert np.abs(robot.position - example.SECONDS * actions.sum(axis=0)).max() < 0.2
    np.testing.assert_array_equal(robot.observe()[-1][:2], robot.position.astype(np.float32))
    first = sampler.to_user(sampler.sample(1, condition={"observation": example.PointRobot((1.0, 2.0)).observe()}))
    np.testing.assert_array_equal(actions[: example.EXECUTED], first[0].T[: example.EXECUTED])


def test_it_prints_latency_and_units_and_claims_no_skill(
    example: Any, bundle: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(example, "export", lambda out: bundle)
    monkeypatch.setattr(sys, "argv", ["diffusion_policy.py", "--chunks", "2"])
    example.main()
    printed = capsys.readouterr().out
    assert "2 chunks of 16 actions, 8 of each run; dpmpp_2m, 5 steps, batch 1" in printed
    assert "latency of a chunk: median" in printed
    assert printed.count("m/s") == 2
    assert "weights are random" in printed
