"""What stops an export, and that it then replaces nothing."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddpm_deploy.bundle import Condition, OutputAffine, read_bundle
from ddpm_deploy.errors import BundleError, ExportError, ParityError
from ddpm_deploy.export import Options, export_module, gate, graphs
from ddpm_deploy.export.__main__ import main
from ddpm_deploy.model import PointConfig, PointNet
from ddpm_deploy.reference import read_reference
from ddpm_deploy.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.linear(20, 1e-3, 0.2)
METRES = OutputAffine((1.0,), (0.0,), "m")


_traced: dict[Any, Any] = {}


@pytest.fixture(autouse=True)
def _trace_each_network_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace takes a second or two, and the same weights give the same graph."""
    trace = graphs.trace

    def cached(network: nn.Module, feeds: dict[str, np.ndarray], opset: int, **options: Any) -> Any:
        weights = [tensor.numpy().tobytes() for tensor in network.state_dict().values()]
        key = (repr(network), *feeds, opset, repr(options), *weights)
        if key not in _traced:
            _traced[key] = trace(network, feeds, opset, **options)
        return _traced[key]

    monkeypatch.setattr(graphs, "trace", cached)


def point_net() -> PointNet:
    torch.manual_seed(1)
    return PointNet(PointConfig(dim=2, hidden=8, layers=1))


def export(out: Path, module: nn.Module | None = None, **changes: Any) -> Any:
    settings = {"sample_shape": (2,), "schedule": SCHEDULE, "output": METRES} | changes
    return export_module(module or point_net(), out, **settings)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def disturb(monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, np.ndarray], np.ndarray], np.ndarray]) -> None:
    """Let ONNX Runtime answer wrongly where `change` wants it."""
    true = gate.evaluator

    @contextlib.contextmanager
    def wrong(*args: Any) -> Iterator[Any]:
        with true(*args) as evaluate:
            yield lambda feeds: change(dict(feeds), evaluate(feeds))

    monkeypatch.setattr(gate, "evaluator", wrong)


def test_over_budget_raises_and_leaves_the_old_bundle_byte_for_byte(tmp_path: Path) -> None:
    export(tmp_path / "b")
    before = contents(tmp_path / "b")
    with pytest.raises(ParityError, match=r"relative error of one evaluation .* is over 1e-12; nothing was written"):
        export(tmp_path / "b", PointNet(PointConfig(dim=2)), options=Options(max_relative_error=1e-12))
    assert contents(tmp_path / "b") == before
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_an_error_at_one_timestep_and_one_batch_size_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    def change(feeds: dict[str, np.ndarray], out: np.ndarray) -> np.ndarray:
        return out * np.float32(1.001) if (len(out), feeds["t"][0]) == (batch, 13) else out

    disturb(monkeypatch, change)
    message = rf"relative error of one evaluation \S+ at t = 13, batch {batch}, is over 1e-05"
    with pytest.raises(ParityError, match=message):
        export(tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_nan_from_the_runtime_is_over_any_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disturb(monkeypatch, lambda feeds, out: out * np.float32(np.nan) if feeds["t"][0] == 0 else out)
    with pytest.raises(ParityError, match="the output is not finite at t = 0"):
        export(tmp_path / "b", options=Options(max_relative_error=1000))


class Overflowing(nn.Module):
    """Finite in float32; in fp16 the second product is not, once x is large."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(4))
        for layer, scale in zip(self.layers, (500.0, 500.0, 1e-3, 1e-3), strict=True):
            layer.weight.data = scale * torch.eye(2)  # type: ignore[union-attr, operator]

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x + 0 * t[:, None]


def test_an_overflow_names_its_node_and_a_bundle_with_it_can_be_written_all_the_same(tmp_path: Path) -> None:
    options = {"targets": ("onnxruntime-cuda",), "precisions": ("fp16",), "batches": (1,), "unroll": False}
    with pytest.raises(ParityError, match=r"not finite at t = 19, batch 1; first at node .*\((Gemm|MatMul)\), output"):
        export(tmp_path / "b", Overflowing(), options=Options(**options, graphs=("denoiser",)))
    export(tmp_path / "b", Overflowing(), options=Options(**options, allow_parity_failure=True))
    files = {file.role: file for file in read_bundle(tmp_path / "b").manifest.files if file.precision == "fp16"}
    assert "first at node" in files["denoiser"].over_budget[0]
    assert "bits_excess" not in files["denoiser"].parity
    assert files["step"].over_budget[-1] == "a prediction was not finite"
    assert set(files["step"].parity) == {"rows"}
    assert files["sampler"].over_budget == ("the samples are not finite",)


def test_a_schedule_of_one_timestep_is_exported(tmp_path: Path) -> None:
    export(tmp_path / "b", schedule=NoiseSchedule.linear(1), options=Options(graphs=("denoiser",)))
    assert read_bundle(tmp_path / "b").manifest.files[0].parity["bits_excess"] == 0


def test_gate_sees_every_timestep_at_every_batch_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, float]] = []
    disturb(monkeypatch, lambda feeds, out: seen.append((len(out), float(feeds["t"][0]))) or out)
    export(tmp_path / "b")
    assert set(seen) >= {(batch, float(t)) for batch in (1, 2, 7) for t in range(20)}


def test_gate_takes_states_from_the_chain_of_the_model_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddpm_deploy.noise import initial_noise, noise_source
    from ddpm_deploy.solvers import make_plan

    states: list[np.ndarray] = []
    disturb(monkeypatch, lambda feeds, out: (len(out) == 7 and states.append(feeds["x"])) or out)
    export(tmp_path / "b")
    network = point_net().eval()

    def denoise(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            out: np.ndarray = network(torch.from_numpy(x), torch.from_numpy(t)).numpy()
        return out

    plan = make_plan("ddpm", SCHEDULE)
    x_T = initial_noise(0, range(7), (2,))
    frames = list(plan.frames(denoise, x_T, noise_source(0, range(7), (2,))))
    chain = states[12 : 12 + 20]  # after the rows of the default solver
    for state, expected in zip(chain, [x_T, *(frame.x for frame in frames[:-1])], strict=True):
        np.testing.assert_allclose(state, expected, rtol=1e-6, atol=1e-6)


def test_fewer_timesteps_can_be_asked_for(tmp_path: Path) -> None:
    bundle = export(tmp_path / "b", options=Options(parity_timesteps=13))
    assert bundle.manifest.files[0].parity["timesteps"] == 12 + 13


class Scaled(nn.Module):
    """A network with a float condition and a learned variance."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 4)

    def forward(self, x: Tensor, t: Tensor, *, goal: Tensor) -> Tensor:
        out: Tensor = self.linear(torch.cat([x, goal, t[:, None] / 20], dim=1))
        return out


GOAL = (Condition("goal", (2,), "float32"),)


def test_learned_variance_and_float_conditions_are_exported(tmp_path: Path) -> None:
    bundle = export(tmp_path / "b", Scaled(), variance="learned", conditions=GOAL)
    file = bundle.manifest.files[0]
    assert ([spec.name for spec in file.inputs], file.outputs[0].shape) == (["x", "t", "goal"], ("B", 4))
    assert [f.target for f in bundle.manifest.files] == ["onnx", "onnxruntime-cpu"]
    assert bundle.manifest.reference is not None
    reference = read_reference(bundle.open_bytes(bundle.manifest.reference))
    assert reference.trajectory.predictions.shape == (12, 2, 4)
    assert reference.trajectory.states.shape == (13, 2, 2)


def test_given_example_conditions_are_used(tmp_path: Path) -> None:
    goal = np.full((7, 2), 0.25, np.float32)
    bundle = export(tmp_path / "b", Scaled(), variance="learned", conditions=GOAL, example={"goal": goal})
    assert bundle.manifest.reference is not None
    reference = read_reference(bundle.open_bytes(bundle.manifest.reference))
    assert (reference.conditions["goal"] == 0.25).all()
    for wrong in ({"goal": goal[:0]}, {"goal": goal.astype(np.float64)}, {"text": goal}):
        with pytest.raises(ValueError, match="example"):
            export(tmp_path / "b", Scaled(), variance="learned", conditions=GOAL, example=wrong)


def test_flow_matching_network_is_exported(tmp_path: Path) -> None:
    bundle = export(tmp_path / "b", schedule=NoiseSchedule.flow_matching(10), prediction="flow")
    assert bundle.manifest.files[0].parity["timesteps"] == 10 + 10


class Faulty(nn.Module):
    """A network with one of several faults."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.extra_repr = lambda: fault  # type: ignore[method-assign]
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor, t: Tensor) -> Any:
        if self.fault == "no time":
            return self.linear(x)
        out = self.linear(x) + t[:, None]
        if self.fault == "tuple":
            return (out,)
        if self.fault == "fixed batch":
            return out.reshape(2, 2) + 0 * out
        if self.fault == "wrong shape":
            return torch.cat([out, out], dim=1)
        if self.fault == "data-dependent":
            return out if out.sum() > 0 else -out
        return out.detach().numpy()


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("tuple", ExportError, "got an output of type tuple, expected a tensor; wrap the module"),
        ("fixed batch", ExportError, "the network fixes the batch to 2; leave it to -1 in its reshapes"),
        ("wrong shape", ExportError, r"graph: got outputs .*'B', 4.*expected"),
        ("data-dependent", ExportError, "network: torch.onnx cannot export it"),
    ],
)
def test_network_that_cannot_be_exported_is_refused_in_one_line(
    tmp_path: Path, fault: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        export(tmp_path / "b", Faulty(fault))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_network_that_ignores_time_still_has_the_input(tmp_path: Path) -> None:
    assert [spec.name for spec in export(tmp_path / "b", Faulty("no time")).manifest.files[0].inputs] == ["x", "t"]


def test_spec_of_another_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="spec: builds another network"):
        export(tmp_path / "b", spec=PointNet(PointConfig(dim=2, hidden=16)).spec())


def test_folder_that_is_no_bundle_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").touch()
    monkeypatch.setattr(graphs, "trace", lambda *args: pytest.fail("the export began"))
    with pytest.raises(BundleError, match="is no bundle"):
        export(tmp_path / "b")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"name": "two\nlines"}, "name: got 'two"),
        ({"clip": (0.0, 0.0)}, "clip: got"),
        ({"provenance": {"when": object()}}, "cannot store object"),
    ],
)
def test_what_the_bundle_would_refuse_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(graphs, "trace", lambda *args: pytest.fail("the export began"))
    with pytest.raises(BundleError, match=message):
        export(tmp_path / "b", **said)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_relative_error": 0.0}, "max_relative_error: got 0.0"),
        ({"parity_timesteps": 0}, "parity_timesteps: got 0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**options)


def test_opset_out_of_range_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="opset: got 11, expected a number from 18 to 25"):
        export(tmp_path / "b", options=Options(opset=11))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("accelerate", reason="trains a network to export")
    from ddpm_deploy.train import TrainConfig, train

    out = tmp_path_factory.mktemp("runs") / "points"
    config = TrainConfig(steps=4, batch_size=8, checkpoint_every=2, log_every=2, sample_every=0, tensorboard=False)
    train(point_net(), torch.randn(32, 2), SCHEDULE, out=out, config=config, cpu=True)
    return out


def test_command_exports_a_run_with_its_averaged_weights(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ddpm_deploy.train.runs import load_run

    assert main([str(run_folder), "--out", str(tmp_path / "b"), "--licence", "MIT", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    bundle = read_bundle(tmp_path / "b", digest=printed["digest"])
    assert printed["files"][0]["parity"] == bundle.manifest.files[0].parity
    assert (bundle.manifest.model.name, bundle.manifest.model.licence) == ("points", "MIT")
    assert bundle.manifest.model.provenance["steps"] == 4
    run = load_run(run_folder)
    assert (bundle.manifest.defaults, bundle.manifest.schedule) == (run.defaults, SCHEDULE)
    reference = read_reference(bundle.open_bytes(bundle.manifest.reference))  # type: ignore[arg-type]
    with torch.inference_mode():
        expected = run.network(torch.from_numpy(reference.x.copy()), torch.from_numpy(reference.t.copy())).numpy()
    np.testing.assert_allclose(reference.prediction, expected, rtol=1e-5, atol=1e-6)


def test_command_over_budget_returns_1_and_writes_nothing(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run_folder), "--out", str(tmp_path / "b"), "--max-relative-error", "1e-15"]) == 1
    captured = capsys.readouterr()
    assert "is over 1e-15" in captured.err
    assert "nothing was written" in captured.err
    assert not captured.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: there is no such file or folder"),
        (["{run}", "--step", "3"], "3"),
        (["{run}", "--opset", "7"], "opset: got 7"),
    ],
)
def test_command_with_bad_input_returns_2_and_one_line(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    filled = [argument.format(run=run_folder) for argument in arguments]
    assert main([*filled, "--out", str(tmp_path / "b")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1
